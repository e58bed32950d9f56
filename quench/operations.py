"""The operations that roles are made of. Each asks for state in one remote command, and changes what
differs in one more."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import tarfile
from collections.abc import Generator, Iterable, Sequence
from functools import cache
from pathlib import Path

from pyinfra import context
from pyinfra.api import StringCommand, operation

from quench import facts
from quench.facts import NEW_SUFFIX, STATE_DIRECTORY, Entry, RoleState
from quench.files import Managed, ManagedDirectory, ManagedFile
from quench.plan import HostPath, recording

Commands = Generator[StringCommand, None, None]

# Held by each command that changes a host. What a killed run left running comes to its end first, be it the
# download of a model.
_LOCK = "flock --timeout 3600 --conflict-exit-code 75 /run/quench.lock"
_LOCKED = (
    "{ code=$?; [ $code != 75 ] || echo 'quench: another run has worked on this host for an hour; "
    "it holds /run/quench.lock' >&2; exit $code; }"
)
# A package manager that runs by itself, as on a fresh cloud image, holds locks that apt does not wait for.
_RETRY = 'retry() { left=$1; shift; until "$@"; do left=$((left - 1)); [ $left -gt 0 ] || return 1; sleep 10; done; }'


def install(role: str, managed: Sequence[Managed]) -> None:
    """Bring all files of a role into place in one operation.

    What differs goes to the host in one stream, is checked there by the checks of the changed files, and
    only then moved into place, file by file, by rename. Files that the role had and no longer wants go.
    """
    plan = recording()
    if plan is not None:
        plan.files.extend(item for item in managed if isinstance(item, ManagedFile))
        plan.directories.extend(item for item in managed if isinstance(item, ManagedDirectory))
    _install(name=f"Install the files of {role}", role=role, managed=list(managed))


@operation()
def _install(role: str, managed: list[Managed]) -> Commands:
    wanted = {item.dest: _entry(item) for item in managed}
    files = {path: entry for path, entry in wanted.items() if entry.sha256}
    state = context.host.get_fact(
        facts.RoleFiles,
        role=role,
        files=[*files, *(path + NEW_SUFFIX for path in files)],
        directories=[path for path in wanted if path not in files],
    )
    changed = [item for item in managed if not _in_place(item.dest, wanted[item.dest], state)]
    gone = sorted(set(state.manifest) - set(wanted))
    if changed or gone or state.manifest != files:
        archive = _archive(changed, gone, files)
        # On standard input: secrets show up neither in a process list nor in pyinfra's output.
        yield _script("install.sh", role, STATE_DIRECTORY, NEW_SUFFIX, stdin=archive)


def _entry(item: Managed) -> Entry:
    sha256 = item.sha256() if isinstance(item, ManagedFile) else ""
    return Entry(item.mode, item.owner, item.group, sha256)


def _in_place(path: str, wanted: Entry, state: RoleState) -> bool:
    return state.entries.get(path) == wanted and path + NEW_SUFFIX not in state.entries


def _archive(changed: Sequence[Managed], gone: Sequence[str], files: dict[str, Entry]) -> str:
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


def service(unit: str, managed: Sequence[Managed]) -> None:
    """Keep a unit enabled and running, with the files that it has now.

    The hash for which the last restart or reload succeeded stands on the host. As long as it is not the
    present one the unit is restarted (or reloaded, where that is enough), also by a later run.

    Args:
        unit: systemd unit name, with its suffix.
        managed: files of the role; those that name the unit count.
    """
    _service(name=f"Keep {unit} running with its present configuration", unit=unit, managed=list(managed))


@operation()
def _service(unit: str, managed: list[Managed]) -> Commands:
    files = [item for item in managed if isinstance(item, ManagedFile)]
    restart = _digest(item for item in files if item.restarts == unit)
    reload = _digest(item for item in files if item.reloads == unit)
    state = context.host.get_fact(facts.Unit, unit=unit)
    properties = state.properties
    quoted, stamp = shlex.quote(unit), shlex.quote(f"{STATE_DIRECTORY}/converged/{unit}")
    must_restart = state.restarted != restart or not state.settled
    must_reload = state.reloaded != reload

    steps = []
    if must_restart or properties.get("NeedDaemonReload") == "yes":
        steps.append("systemctl daemon-reload")
    if must_restart or properties.get("UnitFileState") != "enabled":
        # `packages` masks a new service until its configuration is in place.
        steps.append(f"systemctl unmask --runtime --quiet {quoted}")
        steps.append(f"systemctl enable --quiet {quoted}")
    if must_restart:
        steps.append(f"systemctl restart {quoted}")
    elif must_reload:
        steps.append(f"systemctl reload {quoted}")
    if must_restart or must_reload:
        steps.append(f"mkdir -p {STATE_DIRECTORY}/converged")
        steps.append(f"echo {restart} >{stamp}.restart")
        steps.append(f"echo {reload} >{stamp}.reload")
    if steps:
        # The journal says why a unit did not start; without it the operator would have to log in.
        why = f"{{ journalctl --unit {quoted} --lines 20 --no-pager --output cat >&2; exit 1; }}"
        yield _change(f"{{ {' && '.join(steps)}; }} || {why}")


def _digest(files: Iterable[ManagedFile]) -> str:
    lines = sorted(f"{item.dest} {item.sha256()} {item.mode:o} {item.owner}:{item.group}" for item in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
    installed = context.host.get_fact(facts.Packages, names=names)
    missing = [name for name in names if name not in installed]
    if not missing:
        return
    words = " ".join(shlex.quote(name) for name in missing)
    masks = [f"systemctl mask --runtime --quiet {shlex.quote(unit)}" for unit in hold_back]
    options = "-q -y -o Acquire::Retries=3 -o Dpkg::Options::=--force-confold -o DPkg::Lock::Timeout=300"
    steps = [
        "export DEBIAN_FRONTEND=noninteractive",
        *masks,
        # Heals what an interrupted run left half configured.
        _RETRY,
        '{ [ -z "$(dpkg --audit)" ] || retry 30 dpkg --configure -a --force-confold; }',
        "retry 6 apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 update",
        f"apt-get {options} --fix-broken --no-install-recommends install {words}",
    ]
    yield _change(" && ".join(steps))


def account(user: str, *, home: str, shell: str = "/usr/sbin/nologin", groups: Sequence[str] = ()) -> None:
    """Have a user with a locked password and a group of its own.

    Args:
        home: home folder; it is not created.
        groups: supplementary groups, which the user is added to and never removed from.
    """
    _account(name=f"Have the user {user}", user=user, home=home, shell=shell, groups=list(groups))


@operation()
def _account(user: str, home: str, shell: str, groups: list[str]) -> Commands:
    present = context.host.get_fact(facts.Account, user=user)
    quoted = shlex.quote(user)
    attributes = f"--home-dir {shlex.quote(home)} --shell {shlex.quote(shell)}"
    if not present:
        yield _change(
            f"id -u {quoted} >/dev/null 2>&1 || useradd --system --user-group --no-create-home {attributes} {quoted}"
        )
    elif (present["home"], present["shell"]) != (home, shell):
        yield _change(f"usermod {attributes.replace('--home-dir', '--home')} {quoted}")
    missing = sorted(set(groups) - set(present.get("groups", "").split()))
    if missing:
        yield _change(f"usermod --append --groups {','.join(missing)} {quoted}")


def python_environment(folder: str, lock: str, *, index_url: str | None) -> None:
    """Have a Python environment with exactly the packages of a lock file, checked by their hashes.

    Args:
        folder: absolute path of the environment; it is complete or it is built anew.
        lock: text of a requirements file with a hash for each package.
        index_url: package index, such as an internal mirror; None for the one pip is set up with.
    """
    _python_environment(name=f"Build {folder} from its lock file", folder=folder, lock=lock, index_url=index_url)


@operation()
def _python_environment(folder: str, lock: str, index_url: str | None) -> Commands:
    want = hashlib.sha256(lock.encode()).hexdigest()
    if context.host.get_fact(facts.Text, path=f"{folder}/.complete") != want:
        yield _script("python_environment.sh", folder, want, index_url or "", stdin=lock)


def model_files(folder: str, *, url: str, sha256: str) -> None:
    """Have a model's files in a folder, each verified by checksum before the folder appears.

    Args:
        folder: absolute path, one for each revision.
        url: where SHA256SUMS and the files it names are served.
        sha256: hash of SHA256SUMS itself, in hex.
    """
    _model_files(name=f"Fetch and verify {folder}", folder=folder, url=url, sha256=sha256)


@operation()
def _model_files(folder: str, url: str, sha256: str) -> Commands:
    if context.host.get_fact(facts.Sha256, path=f"{folder}/SHA256SUMS") != sha256:
        yield _script("fetch_model.sh", url, folder, sha256)


def require_path(path: str, *, key: str, remedy: str) -> None:
    """Refuse the run, before it changes anything, unless a path is on the host."""
    plan = recording()
    if plan is not None:
        plan.paths.append(HostPath(path, key, remedy))


def _change(command: str) -> StringCommand:
    return StringCommand(f"{_LOCK} sh -c {shlex.quote(command)} || {_LOCKED}")


def _script(name: str, *arguments: str, stdin: str | None = None) -> StringCommand:
    words = " ".join(shlex.quote(argument) for argument in arguments)
    command = f"{_LOCK} sh -c {shlex.quote(_remote(name))} {shlex.quote(name)} {words} || {_LOCKED}"
    return StringCommand(command) if stdin is None else StringCommand(command, _stdin=stdin)


@cache
def _remote(name: str) -> str:
    # Comments stay in the file: they need not travel, and `-vv` stays readable.
    lines = (Path(__file__).parent / "remote" / name).read_text().splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))
