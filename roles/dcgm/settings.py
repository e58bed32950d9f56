"""Settings of the dcgm role."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from quench.settings import EVERY_PLATFORM, Platform, RoleSettings


class DcgmSettings(RoleSettings):
    """NVIDIA's data centre GPU manager: the host engine that reads the GPUs' counters, on loopback alone."""

    prefix: ClassVar[str] = "dcgm"
    platforms: ClassVar[tuple[Platform, ...]] = EVERY_PLATFORM

    port: int = Field(
        default=5555,
        ge=1024,
        le=65535,
        description="TCP port of the host engine on 127.0.0.1. It knows no login, and is bound nowhere else.",
    )
