"""Settings of the mig role."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from quench.settings import EVERY_PLATFORM, Model, Platform, RoleSettings

# A GPU has seven slices of compute. MIG User Guide, Concepts.
_COMPUTE = 7


class Layout(Model):
    """How some GPUs are cut."""

    gpus: Literal["all"] | list[Annotated[int, Field(ge=0)]] = Field(
        description="GPUs by index, or `all`.", examples=[[0, 1]]
    )
    slices: dict[str, Annotated[int, Field(ge=1)]] = Field(
        description="Number of slices by profile, as `nvidia-smi mig -lgip` names them. Empty: the GPU stays whole.",
        examples=[{"1g.10gb": 7}],
    )

    @field_validator("slices")
    @classmethod
    def _fit(cls, value: dict[str, int]) -> dict[str, int]:
        used = 0
        for profile, count in value.items():
            match = re.fullmatch(r"(\d)g\.\d+gb([+-][a-z.]+)*", profile)
            if match is None:
                raise ValueError(f"{profile!r} is no profile; nvidia-smi mig -lgip lists those of a GPU")
            used += int(match[1]) * count
        if used > _COMPUTE:
            raise ValueError(f"take {used} slices of compute, and a GPU has {_COMPUTE}; ask for fewer")
        return value


class MigSettings(RoleSettings):
    """GPUs cut into slices that share nothing. The layout is declared, applied, and there after a reboot."""

    prefix: ClassVar[str] = "mig"
    platforms: ClassVar[tuple[Platform, ...]] = EVERY_PLATFORM

    layout: list[Layout] = Field(
        default=[],
        description=(
            "Which GPUs are cut, and how; those that are not named are made whole. Empty: none may be cut. A slice is "
            "given to a model by its UUID, and no model can be split over slices: there is no NVLink between them."
        ),
        examples=[[{"gpus": [0], "slices": {"1g.10gb": 7}}]],
    )

    @field_validator("layout")
    @classmethod
    def _each_gpu_once(cls, value: list[Layout]) -> list[Layout]:
        named = [gpu for layout in value if layout.gpus != "all" for gpu in layout.gpus]
        twice = {gpu for gpu in named if named.count(gpu) > 1}
        if twice or (len(value) > 1 and any(layout.gpus == "all" for layout in value)):
            raise ValueError("has a GPU twice; give each GPU one layout")
        return value

    def sliced(self, count: int) -> tuple[int, ...]:
        """Indices of the GPUs that are cut, of `count`."""
        gpus = [range(count) if layout.gpus == "all" else layout.gpus for layout in self.layout if layout.slices]
        return tuple(sorted(gpu for part in gpus for gpu in part))

    def undeclared(self, count: int) -> list[int]:
        """Indices of the GPUs that no layout names, of `count`."""
        if any(layout.gpus == "all" for layout in self.layout):
            return []
        return sorted(set(range(count)) - {gpu for layout in self.layout for gpu in layout.gpus})
