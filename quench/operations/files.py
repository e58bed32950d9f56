"""All files of a role in one operation."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from pyinfra import context
from pyinfra.api import operation

from quench import facts
from quench.facts import NEW_SUFFIX, STATE_DIRECTORY, Entry, RoleState
from quench.files import Managed, ManagedDirectory, ManagedFile
from quench.operations.commands import REMOTE, Commands, script, stripped
from quench.plan import recording


def install(
    role: str,
    managed: Sequence[Managed],
    *,
    guard: int | None = None,
    beside: Sequence[str] = (),
    partial: bool = False,
) -> None:
    """Bring all files of a role into place in one operation.

    What differs goes to the host in one stream, is checked there by the checks of the changed files, and
    only then moved into place, file by file, by rename. Files that the role had and no longer wants go.

    Args:
        guard: seconds after which the host brings the former files back by itself, and restarts the units that
            they name, unless `prove` has found before that the controller still gets in.
        beside: paths of the distribution that the role changes in place afterwards, and that go back as well.
        partial: these are some of the role's files. The others, and what the manifest says of them, stay.
    """
    plan = recording()
    if plan is not None:
        plan.files.extend(item for item in managed if isinstance(item, ManagedFile))
        plan.directories.extend(item for item in managed if isinstance(item, ManagedDirectory))
    _install(
        name=f"Install {'some' if partial else 'the'} files of {role}",
        role=role,
        managed=list(managed),
        guard=guard,
        beside=list(beside),
        partial=partial,
    )


@operation()
def _install(
    role: str,
    managed: list[Managed],
    guard: int | None = None,
    beside: Sequence[str] = (),
    partial: bool = False,
) -> Commands:
    wanted = {item.dest: _entry(item) for item in managed}
    files = {path: entry for path, entry in wanted.items() if entry.sha256}
    state = context.host.get_fact(facts.RoleFiles, **asked(role, managed))
    changed = [item for item in managed if not _in_place(item.dest, wanted[item.dest], state)]
    known = {path: entry for path, entry in state.manifest.items() if not partial or path in wanted}
    gone = sorted(set(known) - set(wanted))
    if changed or gone or known != files:
        units = sorted({unit for item in managed if isinstance(item, ManagedFile) for unit in _units(item)})
        guarded = {} if guard is None else {"guarded": units, "beside": beside}
        archive = _archive(changed, gone, files, guarded, partial=partial)
        # On standard input: secrets show up neither in a process list nor in pyinfra's output.
        yield script("install.sh", role, STATE_DIRECTORY, NEW_SUFFIX, f"{guard or ''}", stdin=archive)


def _units(file: ManagedFile) -> list[str]:
    return [unit for unit in (file.reloads, file.restarts) if unit]


def _entry(item: Managed) -> Entry:
    sha256 = item.sha256() if isinstance(item, ManagedFile) else ""
    return Entry(item.mode, item.owner, item.group, sha256)


def asked(role: str, managed: Sequence[Managed]) -> dict[str, Any]:
    """Arguments of the fact that tells of a role's files."""
    files = [item.dest for item in managed if isinstance(item, ManagedFile)]
    return {
        "role": role,
        "files": [*files, *(path + NEW_SUFFIX for path in files)],
        "directories": [item.dest for item in managed if isinstance(item, ManagedDirectory)],
    }


def in_place(managed: Sequence[Managed], state: RoleState) -> bool:
    """Whether a host has all files of a role as they shall be, and no other one that the role had before."""
    wanted = {item.dest: _entry(item) for item in managed}
    files = {path: entry for path, entry in wanted.items() if entry.sha256}
    return state.manifest == files and all(_in_place(path, entry, state) for path, entry in wanted.items())


def _in_place(path: str, wanted: Entry, state: RoleState) -> bool:
    return state.entries.get(path) == wanted and path + NEW_SUFFIX not in state.entries


def _archive(
    changed: Sequence[Managed],
    gone: Sequence[str],
    files: dict[str, Entry],
    guarded: Mapping[str, Sequence[str]],
    *,
    partial: bool,
) -> str:
    meta, checks, stamps = [], set[str](), set[str]()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        _add(tar, "tree", None)
        for item in sorted(changed, key=lambda item: item.dest):
            if isinstance(item, ManagedDirectory):
                _add(tar, f"tree{item.dest}", None)
                meta.append(f"dir {item.mode:o} {item.owner} {item.group} {item.dest}")
                continue
            _add(tar, f"tree{item.dest}", item.revealed())
            meta.append(f"file {item.mode:o} {item.owner} {item.group} {item.dest}")
            checks.update({item.check} if item.check else ())
            stamps.update({f"{item.reloads}.reload"} if item.reloads else ())
            stamps.update({f"{item.restarts}.restart"} if item.restarts else ())
        meta += [f"gone 0 root root {path}" for path in gone]
        manifest = [f"{e.sha256} {e.mode:o} {e.owner} {e.group} {path}" for path, e in sorted(files.items())]
        for name, lines in (
            ("meta", meta),
            ("checks", sorted(checks)),
            ("stamps", sorted(stamps)),
            ("manifest", manifest),
        ):
            _add(tar, name, "".join(f"{line}\n" for line in lines).encode())
        for name, words in guarded.items():
            _add(tar, name, "".join(f"{word}\n" for word in words).encode())
        if partial:
            _add(tar, "partial", b"")
        if guarded:
            _add(tar, "rollback", stripped(REMOTE / "rollback.sh").encode())
        for path in gone:
            # The folder of a file to hide must be there for the overlay.
            _add(tar, f"tree{path.rpartition('/')[0]}", None)
    return base64.b64encode(buffer.getvalue()).decode()


def _add(tar: tarfile.TarFile, name: str, content: bytes | None) -> None:
    info = tarfile.TarInfo(name)
    if content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(info)
    else:
        info.size, info.mode = len(content), 0o600
        tar.addfile(info, io.BytesIO(content))
