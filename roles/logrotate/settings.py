"""Settings of the logrotate role."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from quench.settings import RoleSettings


class LogrotateSettings(RoleSettings):
    """How long logs are kept, and how large one file may grow."""

    prefix: ClassVar[str] = "logrotate"

    keep_days: int = Field(
        default=365,
        ge=1,
        description=(
            "Days after which a log file is deleted. HIPAA asks for six years (2190) where logs are the "
            "record of activity; the GDPR asks for no longer than needed."
        ),
    )
    max_mebibytes: int = Field(
        default=256, ge=1, description="Size from which a file is rotated before its day is over, in MiB."
    )
