"""Which GPUs, drivers and packages go together: the table `compatibility.yaml`, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from quench.settings import Model, Platform

Modules = Literal["open", "proprietary"]
Fabric = Literal["nvswitch", "nvlink5"]


class Release(Model):
    """Versions that are one set."""

    nvlsm: str | None = None
    dcgm: str | None = None
    exporter: str | None = None
    toolkit: str | None = None
    mig: str | None = None
    distro: Platform | None = None
    source: str


class Branch(Model):
    """A branch of the driver."""

    cuda: str
    modules: list[Modules]
    source: str


class Architecture(Model):
    """A generation of GPUs."""

    modules: list[Modules]
    last: int | None = None
    fabric_state: bool = False
    source: str


class Gpu(Model):
    """A GPU as it is bought."""

    name: str
    device: str = Field(pattern=r"^[0-9a-f]{4}$")
    architecture: str
    fabric: Fabric | None = None
    first: str | None = None
    slices: bool = False
    source: str


class Names(Model):
    """What a source calls the parts of the driver."""

    until: int | None = None
    compute: list[str]
    open: list[str]
    proprietary: list[str]
    source: str


class FabricParts(Model):
    """What the switches between GPUs need."""

    driver: list[str]
    own: list[str]
    deb: list[str]
    rpm: list[str]
    source: str


class Table(Model):
    """The whole of `compatibility.yaml`."""

    sets: dict[str, Release]
    branches: dict[int, Branch]
    architectures: dict[str, Architecture]
    gpus: dict[str, Gpu]
    packages: dict[str, list[Names]]
    fabrics: dict[Fabric, FabricParts]


@cache
def table() -> Table:
    """The table as it stands beside this file."""
    return Table.model_validate(yaml.safe_load((Path(__file__).parent / "compatibility.yaml").read_text()))


@dataclass(frozen=True)
class DriverSet:
    """What a host gets: versions by package name, and what they are."""

    version: str
    branch: int
    cuda: str
    modules: Modules
    fabric: Fabric | None
    release: Release
    packages: dict[str, str]
    former: list[str]


def branch_of(version: str) -> int:
    """580 of 580.95.05."""
    return int(version.partition(".")[0])


def impossible(gpus: Mapping[str, int], version: str, platform: Platform) -> Iterator[tuple[str, str, str]]:
    """Why a set cannot drive these GPUs on this platform: field, what, and what would work."""
    rows = table()
    release = rows.sets[version]
    if release.distro is not None and release.distro != platform:
        yield "version", f"{version} is a driver of {release.distro}'s own archive", _choice(_sets(platform, gpus))
        return
    if not _sets(platform, gpus):
        names = " and ".join(rows.gpus[gpu].name for gpu in gpus)
        yield "gpus", f"no driver drives {names} in one host", "put them into different hosts"
        return
    for gpu in gpus:
        architecture = rows.architectures[rows.gpus[gpu].architecture]
        reason = _unsuitable(gpu, version)
        if reason is not None:
            yield "version", f"{version} {reason}", _choice(_sets(platform, gpus))
        elif not set(architecture.modules) & set(rows.branches[branch_of(version)].modules):
            what = f"{version} has no {' or '.join(architecture.modules)} kernel module for {rows.gpus[gpu].name}"
            yield "version", what, _choice(_sets(platform, gpus))


def driver_set(gpus: Mapping[str, int], version: str, platform: Platform) -> DriverSet:
    """The set for these GPUs, which `impossible` has nothing against."""
    rows = table()
    branch = branch_of(version)
    release = rows.sets[version]
    modules = _modules(gpus, version)
    assert modules is not None
    fabric = fabric_of(gpus)
    source = "distro" if release.distro else platform.partition("-")[0]
    every = [_parts(names, modules, number) for names in rows.packages[source] for number in _numbers(names)]
    mine = _parts(_names(source, branch), modules, branch)
    other: Modules = "proprietary" if modules == "open" else "open"
    every += [_parts(names, other, number) for names in rows.packages[source] for number in _numbers(names)]
    packages = dict.fromkeys(mine, version)
    if fabric is not None:
        packages |= dict.fromkeys(rows.fabrics[fabric].driver, version)
        packages |= {name: str(getattr(release, name)) for name in rows.fabrics[fabric].own}
    return DriverSet(
        version=version,
        branch=branch,
        cuda=rows.branches[branch].cuda,
        modules=modules,
        fabric=fabric,
        release=release,
        packages=packages,
        former=sorted({name for parts in every for name in parts} - set(mine)),
    )


def fabric_of(gpus: Mapping[str, int]) -> Fabric | None:
    """The switches between the GPUs of a board with eight, if it has any."""
    return next((table().gpus[gpu].fabric for gpu, count in gpus.items() if count >= 8), None)


def tells_fabric_state(gpus: Mapping[str, int]) -> bool:
    """Whether the driver tells the state of the switches between these GPUs."""
    rows = table()
    return fabric_of(gpus) is not None and all(
        rows.architectures[rows.gpus[gpu].architecture].fabric_state for gpu in gpus
    )


def oldest_branches() -> dict[int, int]:
    """The oldest branch that runs a CUDA, by the CUDA's major version."""
    newest_first = sorted(table().branches, reverse=True)
    return {int(table().branches[branch].cuda.partition(".")[0]): branch for branch in newest_first}


def gpu_of(device: str) -> str | None:
    """The table's name of a PCI device id, such as `2330`."""
    return next((name for name, gpu in table().gpus.items() if gpu.device == device), None)


def _sets(platform: Platform, gpus: Mapping[str, int]) -> list[str]:
    return [
        version
        for version, release in table().sets.items()
        if release.distro in (None, platform) and _modules(gpus, version) is not None
    ]


def _choice(versions: list[str]) -> str:
    return f"choose {' or '.join(versions)}" if versions else "no version of the table does"


def _unsuitable(gpu: str, version: str) -> str | None:
    row = table().gpus[gpu]
    architecture = table().architectures[row.architecture]
    if row.first is not None and _number(version) < _number(row.first):
        return f"is too old for {row.name}, which needs {row.first} or newer"
    if architecture.last is not None and branch_of(version) > architecture.last:
        return f"no longer drives {row.name}; {architecture.last} is the last branch that does"
    return None


def _number(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _modules(gpus: Mapping[str, int], version: str) -> Modules | None:
    """The kernel modules that drive all of these GPUs, or None."""
    if any(_unsuitable(gpu, version) for gpu in gpus):
        return None
    orders = [table().architectures[table().gpus[gpu].architecture].modules for gpu in gpus]
    usable = [kind for kind in orders[0] if all(kind in order for order in orders)]
    return next((kind for kind in usable if kind in table().branches[branch_of(version)].modules), None)


def _names(source: str, branch: int) -> Names:
    rows = table().packages[source]
    return next(names for names in rows if names.until is None or branch <= names.until)


def _numbers(names: Names) -> list[int]:
    """Branches that a row's names stand for."""
    return [number for number in table().branches if names.until is None or number <= names.until]


def _parts(names: Names, modules: Modules, branch: int) -> list[str]:
    kernel = names.open if modules == "open" else names.proprietary
    return [name.format(B=branch) for name in [*names.compute, *kernel]]
