"""Packages of the distribution, in any version or in a pinned one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from pyinfra import context
from pyinfra.api import operation

from quench import facts
from quench.operations.commands import Commands, script


def packages(names: Sequence[str], *, hold_back: Sequence[str] = ()) -> None:
    """Have packages installed, without their recommendations.

    Args:
        names: package names.
        hold_back: services that must not start before their configuration is in place. Debian starts
            a service as soon as its package is unpacked, nginx with a welcome page on port 80.
    """
    _packages(name=f"Install {', '.join(names)}", names=list(names), hold_back=list(hold_back))


@operation()
def _packages(names: list[str], hold_back: list[str]) -> Commands:
    manager = _manager()
    installed = context.host.get_fact(facts.Packages, names=names, manager=manager)
    missing = [name for name in names if name not in installed]
    if not missing:
        return
    lines = "\n".join(f"{name} *" for name in missing)
    yield script("packages.sh", manager, "", "true", shlex.join(hold_back), lines, "")


def pinned_packages(
    name: str,
    versions: Mapping[str, str],
    *,
    family: Sequence[str] = (),
    former: Sequence[str] = (),
    extra: Sequence[str] = (),
    source: str = "",
    check: str = "true",
    hold_back: Sequence[str] = (),
) -> None:
    """Have packages in exactly these versions, all in one transaction, or else the ones that were there.

    The versions must be the only ones that the package manager may choose: a pin stands before this.

    Args:
        name: imperative sentence, the operation's name.
        versions: upstream version, without epoch and release, by package name.
        family: patterns of the names of all that moves with them, and comes back with them.
        former: names under which another version of the set is installed; they go.
        extra: further packages, in any version, before these. `$(uname -r)` and `$(next-kernel)` are filled in on
            the host.
        source: the repository's file, which goes with a failure: a pin that names the new set stands already, and an
            upgrade by somebody else would bring it unchecked. The next run puts it back.
        check: shell, run as root once the package manager is done, whatever that says: its failure brings the
            former packages back.
        hold_back: services that the package manager may not start or restart.
    """
    _pinned_packages(
        name=name,
        versions=dict(versions),
        family=list(family),
        former=list(former),
        extra=list(extra),
        source=source,
        check=check,
        hold_back=list(hold_back),
    )


@operation()
def _pinned_packages(
    versions: dict[str, str],
    family: list[str],
    former: list[str],
    extra: list[str],
    source: str,
    check: str,
    hold_back: list[str],
) -> Commands:
    manager = _manager()
    installed = context.host.get_fact(facts.Packages, names=[*versions, *former], manager=manager)
    wrong = [name for name, version in versions.items() if _upstream(installed.get(name, "")) != version]
    wrong += [name for name in former if name in installed]
    if wrong or context.host.get_fact(facts.Lines, command=f"{{ {check}; }} >/dev/null 2>&1 || echo no"):
        wanted = [f"{name} {version}" for name, version in sorted(versions.items())]
        lines = [*wanted, *(f"{name} -" for name in former), *(f"{name} *" for name in extra)]
        # Not shlex.join: the patterns are the package manager's, and no shell's.
        yield script("packages.sh", manager, " ".join(family), check, shlex.join(hold_back), "\n".join(lines), source)


def _upstream(version: str) -> str:
    """The upstream version of an installed package: what is left without epoch, release and revision."""
    return version.partition(":")[2].rpartition("-")[0] if ":" in version else version.rpartition("-")[0]


def _manager() -> str:
    return "dnf" if context.host.data.get("platform", "").startswith("rhel") else "apt"
