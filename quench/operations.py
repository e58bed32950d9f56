"""The operations that roles are made of. Each asks for state in one remote command, and changes what
differs in one more."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import tarfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pyinfra import context
from pyinfra.api import StringCommand, operation

from quench import facts
from quench.facts import NEW_SUFFIX, STATE_DIRECTORY, Entry, RoleState, UnitState
from quench.files import Managed, ManagedDirectory, ManagedFile
from quench.plan import Question, recording
from quench.problems import Problem

Commands = Generator[StringCommand, None, None]

_REMOTE = Path(__file__).parent / "remote"

# Held by each command that changes a host. What a killed run left running comes to its end first, be it the
# download of a model.
_LOCK = "flock --timeout 3600 --conflict-exit-code 75 /run/quench.lock"
_LOCKED = (
    "{ code=$?; [ $code != 75 ] || echo 'quench: another run has worked on this host for an hour; "
    "it holds /run/quench.lock' >&2; exit $code; }"
)


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
        yield _script("install.sh", role, STATE_DIRECTORY, NEW_SUFFIX, f"{guard or ''}", stdin=archive)


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
            _add(tar, "rollback", _stripped(_REMOTE / "rollback.sh").encode())
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
    _services(name=f"Keep {unit} running with its present configuration", units=[unit], managed=list(managed))


def services(units: Sequence[str], managed: Sequence[Managed]) -> None:
    """The same for several units, one after the other; the host is asked for all of them at once."""
    name = f"Keep {', '.join(units)} running with their present configuration"
    _services(name=name, units=list(units), managed=list(managed))


@operation()
def _services(units: list[str], managed: list[Managed]) -> Commands:
    states = context.host.get_fact(facts.Units, units=units)
    files = [item for item in managed if isinstance(item, ManagedFile)]
    enable, starts, stale = [], [], False
    for unit in units:
        state = states.get(unit, UnitState({}, "", ""))
        restart = _digest(item for item in files if item.restarts == unit)
        reload = _digest(item for item in files if item.reloads == unit)
        must_restart = state.restarted != restart or not (state.settled or state.starting)
        # `packages` masks a new service until its configuration is in place.
        if must_restart or state.properties.get("UnitFileState") not in ("enabled", "static"):
            enable.append(unit)
        stale |= state.properties.get("NeedDaemonReload") == "yes"
        if must_restart or state.reloaded != reload:
            starts.append(_start(unit, restart, reload, restarts=must_restart))
        elif state.starting:
            # A restart would begin the loading of weights anew. This waits for the start that is under way.
            starts.append(_or_journal(unit, f"systemctl start {shlex.quote(unit)}"))
    steps = []
    if enable:
        steps.append(f"systemctl unmask --runtime --quiet --no-reload {shlex.join(enable)}")
        # Else it calls update-rc.d(8) for each that has a script of SysV's as well, which reloads systemd twice.
        steps.append(f"SYSTEMCTL_SKIP_SYSV=1 systemctl enable --quiet --no-reload {shlex.join(enable)}")
    if enable or stale:
        # Once for all of them: it takes a tenth of a second, in which systemd does nothing else.
        steps.append("systemctl daemon-reload")
    if steps or starts:
        yield change(f"{{ {' && '.join([*steps, *starts])}; }} || {{ {_ROLL_BACK}; exit 1; }}")


def _start(unit: str, restart: str, reload: str, *, restarts: bool) -> str:
    """Restart or reload a unit, and remember for which files that was."""
    quoted, stamp = shlex.quote(unit), shlex.quote(f"{STATE_DIRECTORY}/converged/{unit}")
    steps = [f"systemctl reload {quoted}"]
    if restarts:
        # What a killed run left running may have done it, while this one waited for it to end.
        done = f'[ "$(cat {stamp}.restart 2>/dev/null)" = {restart} ] && systemctl is-active --quiet {quoted}'
        # A unit that failed before its files came stays failed if its own condition keeps it from starting now.
        anew = f"{{ systemctl reset-failed {quoted} 2>/dev/null || true; }} && systemctl restart {quoted}"
        steps = [f"{{ {{ {done}; }} || {{ {anew}; }}; }}"]
    steps += [
        f"mkdir -p {STATE_DIRECTORY}/converged",
        f"echo {restart} >{stamp}.restart",
        f"echo {reload} >{stamp}.reload",
    ]
    return _or_journal(unit, " && ".join(steps))


def _or_journal(unit: str, command: str) -> str:
    # The journal says why a unit did not start; without it the operator would have to log in.
    journal = f"journalctl --unit {shlex.quote(unit)} --lines 20 --no-pager --output cat >&2"
    return f"{{ {{ {command}; }} || {{ {journal}; false; }}; }}"


# A unit that does not start with guarded files need not wait for their timer.
_ROLL_BACK = (
    f"for role in $(ls {STATE_DIRECTORY}/guard 2>/dev/null); do "
    'echo "quench: the former files of $role come back now" >&2; '
    "systemctl start --no-block quench-rollback-$role.service; done"
)


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
    manager = _manager()
    installed = context.host.get_fact(facts.Packages, names=names, manager=manager)
    missing = [name for name in names if name not in installed]
    if not missing:
        return
    lines = "\n".join(f"{name} *" for name in missing)
    yield _script("packages.sh", manager, "", "true", shlex.join(hold_back), lines, "")


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
        yield _script("packages.sh", manager, " ".join(family), check, shlex.join(hold_back), "\n".join(lines), source)


def _upstream(version: str) -> str:
    """The upstream version of an installed package: what is left without epoch, release and revision."""
    return version.partition(":")[2].rpartition("-")[0] if ":" in version else version.rpartition("-")[0]


def _manager() -> str:
    return "dnf" if context.host.data.get("platform", "").startswith("rhel") else "apt"


def account(
    user: str, *, home: str, shell: str = "/usr/sbin/nologin", groups: Sequence[str] = (), person: bool = False
) -> None:
    """Have a user with a locked password and a group of its own.

    Args:
        home: home folder; it is not created.
        groups: supplementary groups, which the user is added to and never removed from.
        person: a number for people, and not one for services, if the user is made.
    """
    _account(name=f"Have the user {user}", user=user, home=home, shell=shell, groups=list(groups), person=person)


@operation()
def _account(user: str, home: str, shell: str, groups: list[str], person: bool = False) -> Commands:
    present = context.host.get_fact(facts.Account, user=user)
    quoted = shlex.quote(user)
    attributes = f"--home-dir {shlex.quote(home)} --shell {shlex.quote(shell)}"
    if not present:
        yield change(
            f"id -u {quoted} >/dev/null 2>&1 || "
            f"useradd {'' if person else '--system '}--user-group --no-create-home {attributes} {quoted}"
        )
    elif (present["home"], present["shell"]) != (home, shell):
        yield change(f"usermod {attributes.replace('--home-dir', '--home')} {quoted}")
    missing = sorted(set(groups) - set(present.get("groups", "").split()))
    if missing:
        yield change(f"usermod --append --groups {','.join(missing)} {quoted}")


def python_environment(folder: str, lock: str, *, index_url: str | None, key: str) -> None:
    """Have a Python environment with exactly the packages of a lock file, checked by their hashes.

    Args:
        folder: absolute path of the environment; it is complete or it is built anew.
        lock: text of a requirements file with a hash for each package.
        index_url: package index, such as an internal mirror; None for the one pip is set up with.
        key: the inventory's key that names the lock file.
    """
    what = f"{folder} was built from another lock file, and what is built is never changed"
    remedy = "give the lock file a name of its own, such as 1.2.3+2, and set the key to that"
    want = hashlib.sha256(lock.encode()).hexdigest()
    _stays(f"cat {shlex.quote(folder)}/.complete 2>/dev/null", want, key, what, remedy)
    _python_environment(name=f"Build {folder} from its lock file", folder=folder, lock=lock, index_url=index_url)


@operation()
def _python_environment(folder: str, lock: str, index_url: str | None) -> Commands:
    want = hashlib.sha256(lock.encode()).hexdigest()
    if context.host.get_fact(facts.Text, path=f"{folder}/.complete") != want:
        yield _script("python_environment.sh", folder, want, index_url or "", stdin=lock)


def model_files(folder: str, *, url: str, sha256: str, key: str) -> None:
    """Have a model's files in a folder, each verified by checksum before the folder appears.

    Args:
        folder: absolute path, one for each revision.
        url: where SHA256SUMS and the files it names are served.
        sha256: hash of SHA256SUMS itself, in hex.
        key: the inventory's key that names the revision.
    """
    what = f"{folder} holds other files than the inventory pins, and an engine may serve them"
    sums = f"sha256sum {shlex.quote(folder)}/SHA256SUMS 2>/dev/null | cut -d' ' -f1"
    _stays(sums, sha256, key, what, "name a new revision")
    _model_files(name=f"Fetch and verify {folder}", folder=folder, url=url, sha256=sha256)


@operation()
def _model_files(folder: str, url: str, sha256: str) -> Commands:
    if context.host.get_fact(facts.Sha256, path=f"{folder}/SHA256SUMS") != sha256:
        yield _script("fetch_model.sh", url, folder, sha256)


def _stays(question: str, want: str, key: str, what: str, remedy: str) -> None:
    """Refuse the run, before it changes anything, if the host has something else already where this is to be."""
    plan = recording()
    if plan is not None:
        problem = Problem(context.host.name, key, what, remedy)
        plan.questions.append(Question(question, lambda answer: [problem] * (answer not in ([], [want]))))


def require_path(path: str, *, key: str, remedy: str) -> None:
    """Refuse the run, before it changes anything, unless a path is on the host."""
    plan = recording()
    if plan is not None:
        problem = Problem(context.host.name, key, f"{path} is not on the host", remedy)
        plan.questions.append(
            Question(f"test -e {shlex.quote(path)} || echo missing", lambda answer: [problem] * len(answer))
        )


def ask(command: str, problems: Callable[[list[str]], Iterable[Problem]]) -> None:
    """Ask the host before the run changes anything, and refuse the run if the answer says so.

    Args:
        command: shell, run as root. It changes nothing.
        problems: what the answer, line by line, says against the run.
    """
    plan = recording()
    if plan is not None:
        plan.questions.append(Question(command, problems))


def ensure(name: str, question: str, command: str) -> None:
    """Run a command as root as long as a question has an answer.

    Args:
        name: imperative sentence, the operation's name.
        question: shell that prints what is amiss, and nothing if all is well. It changes nothing.
        command: shell that mends it.
    """
    _ensure(name=name, question=question, command=command)


@operation()
def _ensure(question: str, command: str) -> Commands:
    if context.host.get_fact(facts.Lines, command=question):
        yield change(command)


def keep_off(name: str, units: Sequence[str]) -> None:
    """Keep units of packages from running, at boots as well: what `packages` has held back comes with them.

    Args:
        name: imperative sentence, the operation's name.
        units: those that are not there are none of its business.
    """
    words = " ".join(units)
    ensure(
        name,
        f"systemctl is-enabled {words} 2>/dev/null | grep -E '^(enabled|masked-runtime)'",
        f"systemctl unmask --runtime --quiet {words}; systemctl disable --quiet --now {words} 2>/dev/null; true",
    )


def confirm(name: str, question: str) -> None:
    """End the run on this host, with the answer, if a question has one.

    Args:
        name: imperative sentence, the operation's name.
        question: shell that prints `KEY: WHAT; REMEDY` for each thing that is amiss. It changes nothing.
    """
    _confirm(name=name, question=question)


@operation()
def _confirm(question: str) -> Commands:
    amiss = context.host.get_fact(facts.Lines, command=question)
    if amiss:
        yield failure(amiss)


def failure(lines: Iterable[str]) -> StringCommand:
    """A command that ends the run on the current host with some lines for people."""
    words = " ".join(shlex.quote(f"{context.host.name}: {line}") for line in lines)
    return StringCommand(f"printf '%s\\n' {words} >&2; exit 1")


def shell_script(path: Path, *arguments: str) -> str:
    """A command that runs a shell script of the checkout on the host, comments left out."""
    words = " ".join(shlex.quote(argument) for argument in arguments)
    return f"sh -c {shlex.quote(_stripped(path))} {shlex.quote(path.name)} {words}".rstrip()


def remote_script(name: str, *arguments: str) -> str:
    """A command that runs a script of quench/remote/ on the host, as root, when no other command changes it."""
    return f"{_LOCK} {shell_script(_REMOTE / name, *arguments)} || {_LOCKED}"


def change(command: str) -> StringCommand:
    """A command that changes the host, as root, when no other one does."""
    return StringCommand(f"{_LOCK} sh -c {shlex.quote(command)} || {_LOCKED}")


def _script(name: str, *arguments: str, stdin: str | None = None) -> StringCommand:
    command = remote_script(name, *arguments)
    return StringCommand(command) if stdin is None else StringCommand(command, _stdin=stdin)


@cache
def _stripped(path: Path) -> str:
    # Comments stay in the file: they need not travel, and `-vv` stays readable.
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
