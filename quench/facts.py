"""What Quench asks a host. Each fact is one remote command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase
from typing_extensions import override

STATE_DIRECTORY = "/var/lib/quench"
# A file on its way to its place. No program that reads a drop-in folder takes this suffix.
NEW_SUFFIX = ".quench-new"
# The timer that reboots a host.
REBOOT_UNIT = "quench-reboot"


def rollback_unit(role: str) -> str:
    """The timer, and the service, that bring the former files of a role back."""
    return f"quench-rollback-{role}"


@dataclass(frozen=True)
class HostIdentity:
    """What a host says of itself: `debian-12`, sudo without a password, whether it is about to reboot, and its
    answers, line by line."""

    platform: str
    sudo: bool
    going_down: bool
    answers: tuple[list[str], ...]


class Identity(FactBase[HostIdentity]):
    """Operating system, whether the login user may use sudo, and what some commands print as root."""

    @override
    def command(self, questions: list[str]) -> str:
        asked = "".join(
            f'; sudo -n sh -c {shlex.quote(question)} quench "$SSH_CONNECTION" </dev/null 2>/dev/null'
            f" | sed 's/^/answer {number} /'"
            for number, question in enumerate(questions)
        )
        # The RHEL family is one platform for each major version, whoever rebuilt it.
        system = 'case " $ID $ID_LIKE " in *" rhel "*) ID=rhel VERSION_ID=${VERSION_ID%%.*};; esac'
        system = f'. /etc/os-release; {system}; echo "platform $ID-$VERSION_ID"'
        # A run may have been killed just after it told the host to reboot.
        down = f'systemctl is-active -q {REBOOT_UNIT}.timer || [ "$(systemctl is-system-running)" = stopping ]'
        system += f"; {{ {down}; }} 2>/dev/null && echo going-down"
        return f"{system}; sudo -n true 2>/dev/null && echo sudo{asked}; true"

    @override
    def process(self, output: list[str]) -> HostIdentity:
        answers: dict[int, list[str]] = {}
        for line in output:
            if line.startswith("answer "):
                _, number, text = line.split(" ", 2)
                answers.setdefault(int(number), []).append(text)
        return HostIdentity(
            platform=next((line.split(" ", 1)[1] for line in output if line.startswith("platform ")), "unknown"),
            sudo="sudo" in output,
            going_down="going-down" in output,
            answers=tuple(answers.get(number, []) for number in range(max(answers, default=-1) + 1)),
        )


@dataclass(frozen=True)
class Entry:
    """A file or directory on the host. `sha256` is empty for a directory."""

    mode: int
    owner: str
    group: str
    sha256: str = ""


@dataclass
class RoleState:
    """The files of a role on the host, and those it was given by the last complete install."""

    entries: dict[str, Entry] = field(default_factory=dict)
    manifest: dict[str, Entry] = field(default_factory=dict)


class RoleFiles(FactBase[RoleState]):
    """State of all files of a role: content hash, mode, owner, and the role's manifest."""

    @override
    def command(self, role: str, files: list[str], directories: list[str]) -> str:
        # A folder may be a link to where there is room, so it is asked for as what it leads to.
        entries = " ".join(shlex.quote(path) for path in [*files, *(f"{path}/." for path in directories)])
        names = " ".join(shlex.quote(path) for path in files)
        manifest = shlex.quote(f"{STATE_DIRECTORY}/manifest/{role}")
        # Without a name, sha256sum would read standard input.
        steps = [f"stat -c 'stat %a %U %G %n' -- {entries} 2>/dev/null"] if entries else []
        steps += [f"sha256sum -- {names} 2>/dev/null"] if names else []
        return "; ".join([*steps, f"sed 's/^/manifest /' {manifest} 2>/dev/null", "true"])

    @override
    @staticmethod
    def default() -> RoleState:
        return RoleState()

    @override
    def process(self, output: list[str]) -> RoleState:
        state = RoleState()
        hashes: dict[str, str] = {}
        for line in output:
            kind, rest = line.split(" ", 1)
            if kind == "stat":
                mode, owner, group, path = rest.split(" ", 3)
                state.entries[path.removesuffix("/.")] = Entry(int(mode, 8), owner, group)
            elif kind == "manifest":
                sha256, mode, owner, group, path = rest.split(" ", 4)
                state.manifest[path] = Entry(int(mode, 8), owner, group, sha256)
            else:
                hashes[rest.lstrip(" *")] = kind
        for path, sha256 in hashes.items():
            if path not in state.entries:  # it came between the two commands; the next run sees it
                continue
            entry = state.entries[path]
            state.entries[path] = Entry(entry.mode, entry.owner, entry.group, sha256)
        return state


class ProvedFiles(FactBase[RoleState | None]):
    """The same for guarded files; None as long as they wait for the proof that they let the controller in."""

    @override
    def command(self, role: str, files: list[str], directories: list[str]) -> str:
        # sudo may be what the new files have taken away; a host that waits for nothing has it.
        state = shlex.quote(RoleFiles().command(role, files, directories))
        timer = f"/etc/systemd/system/{rollback_unit(role)}.timer"
        return f"if [ -e {timer} ]; then echo waits; else sudo -n sh -c {state}; fi; true"

    @override
    @staticmethod
    def default() -> RoleState | None:
        return RoleState()

    @override
    def process(self, output: list[str]) -> RoleState | None:
        return None if output == ["waits"] else RoleFiles().process(output)


@dataclass(frozen=True)
class UnitState:
    """A systemd unit and the hashes for which it was last restarted and reloaded with success."""

    properties: dict[str, str]
    restarted: str
    reloaded: str

    @property
    def starting(self) -> bool:
        """On its way up, as an engine that loads its weights is after a boot."""
        return self.properties.get("ActiveState") == "activating"

    @property
    def settled(self) -> bool:
        """Running, or kept from running by a condition in the unit itself, such as no right to set a clock."""
        active = self.properties.get("ActiveState")
        # A unit that systemd has just read, since it was stopped and disabled, says `no` as well, and was never asked.
        asked = self.properties.get("ConditionTimestampMonotonic", "0") != "0"
        skipped = asked and self.properties.get("ConditionResult") == "no" and active == "inactive"
        return active == "active" or (skipped and bool(self.restarted))


class Units(FactBase[dict[str, UnitState]]):
    """State of some systemd units by their names, with Quench's own stamps."""

    @override
    def command(self, units: list[str]) -> str:
        return (
            f"for unit in {' '.join(shlex.quote(unit) for unit in units)}; do "
            'echo "unit=$unit"; '
            "systemctl show -p ActiveState,UnitFileState,NeedDaemonReload,ConditionResult,ConditionTimestampMonotonic "
            '"$unit"; '
            f'echo "restarted=$(cat "{STATE_DIRECTORY}/converged/$unit.restart" 2>/dev/null)"; '
            f'echo "reloaded=$(cat "{STATE_DIRECTORY}/converged/$unit.reload" 2>/dev/null)"; done'
        )

    @override
    @staticmethod
    def default() -> dict[str, UnitState]:
        return {}

    @override
    def process(self, output: list[str]) -> dict[str, UnitState]:
        found: dict[str, dict[str, str]] = {}
        unit = ""
        for key, value in (line.split("=", 1) for line in output if "=" in line):
            if key == "unit":
                unit = value
            found.setdefault(unit, {})[key] = value
        return {
            unit: UnitState(values, values.pop("restarted", ""), values.pop("reloaded", ""))
            for unit, values in found.items()
        }


class Packages(FactBase[dict[str, str]]):
    """Installed versions of some packages, by name. A package that is half installed is left out."""

    @override
    def command(self, names: list[str], manager: str = "apt") -> str:
        words = " ".join(shlex.quote(name) for name in names)
        if manager == "dnf":
            return f"rpm -q --qf 'ii |%{{NAME}}|%{{VERSION}}-%{{RELEASE}}\n' {words} 2>/dev/null | grep '^ii '; true"
        # dpkg-query(1): db:Status-Abbrev is "ii " for a package that is whole, and "hi " for one that is also held.
        return f"dpkg-query -W -f '${{db:Status-Abbrev}}|${{Package}}|${{Version}}\\n' {words} 2>/dev/null; true"

    @override
    @staticmethod
    def default() -> dict[str, str]:
        return {}

    @override
    def process(self, output: list[str]) -> dict[str, str]:
        rows = [line.split("|") for line in output if line[1:3] == "i "]
        return {name: version for _, name, version in rows}


class Account(FactBase[dict[str, str]]):
    """`home`, `shell` and `groups` (sorted, comma-separated) of a user; empty if there is none."""

    @override
    def command(self, user: str) -> str:
        name = shlex.quote(user)
        return (
            f'getent passwd {name} | awk -F: \'{{print "home=" $6; print "shell=" $7}}\'; '
            f"id -nG {name} 2>/dev/null | sed 's/^/groups=/'; true"
        )

    @override
    @staticmethod
    def default() -> dict[str, str]:
        return {}

    @override
    def process(self, output: list[str]) -> dict[str, str]:
        return dict(line.split("=", 1) for line in output if "=" in line)


class Text(FactBase[str]):
    """The content of a small file, or an empty text."""

    @override
    def command(self, path: str) -> str:
        return f"cat {shlex.quote(path)} 2>/dev/null; true"

    @override
    @staticmethod
    def default() -> str:
        return ""


class Lines(FactBase[list[str]]):
    """What a command prints as root, line by line."""

    @override
    def command(self, command: str) -> str:
        return f"sh -c {shlex.quote(command)} </dev/null; true"

    @override
    @staticmethod
    def default() -> list[str]:
        return []

    @override
    def process(self, output: list[str]) -> list[str]:
        return [line for line in output if line]


class Sha256(FactBase[str]):
    """SHA-256 of a file, or an empty text."""

    @override
    def command(self, path: str) -> str:
        return f"sha256sum {shlex.quote(path)} 2>/dev/null | cut -d' ' -f1"

    @override
    @staticmethod
    def default() -> str:
        return ""
