"""What a fixture package is, before it is a .deb or an .rpm."""

from __future__ import annotations

from dataclasses import dataclass, field

_UNITS = "/usr/lib/systemd/system"


@dataclass(frozen=True)
class File:
    """A file of a package: a source in nvidia_packages/, or a text, or where a link leads."""

    source: str = ""
    text: str = ""
    link: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Package:
    """A package, before it is a .deb or an .rpm.

    Attributes:
        depends: names; one with `=` at its end means exactly the version that the same set has.
        conflicts: packages that it replaces, or that cannot stand beside it.
        units: what the .deb enables and starts.
        users: system users it makes.
        dkms: version of the dkms modules that it brings.
        words: what `@WORD@` stands for in its files.
    """

    name: str
    version: str
    release: str = "1"
    epoch: int = 0
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    files: dict[str, File] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    dkms: str = ""
    words: dict[str, str] = field(default_factory=dict)

    @property
    def full_version(self) -> str:
        """Version as the package manager has it."""
        return f"{f'{self.epoch}:' if self.epoch else ''}{self.version}-{self.release}"


def program(source: str, path: str = "") -> dict[str, File]:
    """A program in /usr/bin, or at a path."""
    return {path or f"/usr/bin/{source}": File(source, mode=0o755)}


def units(*names: str) -> dict[str, File]:
    """Units of systemd."""
    return {f"{_UNITS}/{name}": File(name) for name in names}


def versions(package: Package, group: list[Package]) -> dict[str, str]:
    """Full versions of the packages that belong to a package: those of its own version, by all their names."""
    same = [other for other in group if other.version == package.version]
    return {name: other.full_version for other in same for name in (other.name, *other.provides)}
