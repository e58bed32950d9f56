import base64
import hashlib
import io
import re
import shlex
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from quench import ManagedDirectory, ManagedFile, facts, operations, secrets
from quench.facts import NEW_SUFFIX
from quench.plan import HostPlan
from quench.secrets import SecretRef

CANARY = "canary-5f1d"
UNIT = "engine.service"


@pytest.fixture
def wanted(tmp_path, me):
    root = tmp_path / "root"
    return [
        ManagedDirectory(f"{root}/etc/engine", mode=0o750, **me),
        ManagedFile(f"{root}/etc/engine/a.conf", "a\n", check="check-a", reloads=UNIT, **me),
        ManagedFile(f"{root}/etc/engine/b.conf", "b\n", mode=0o600, check="check-b", restarts=UNIT, **me),
    ]


@pytest.fixture
def install(this_machine):
    """The commands of an installation on this machine, as it is."""
    return lambda managed: list(operations._install._inner(role="engine", managed=managed))


def archive(commands):
    """What goes over standard input: lines of the lists, and the tree by its paths."""
    items = members(commands)
    lists = {name: items[name][1].decode().splitlines() for name in ("meta", "checks", "stamps", "manifest")}
    tree = {name.removeprefix("tree"): content for name, (_, content) in items.items() if name.startswith("tree/")}
    return lists, tree


def members(commands):
    (command,) = commands
    data = io.BytesIO(base64.b64decode(command.connector_arguments["_stdin"]))
    with tarfile.open(fileobj=data) as tar:
        return {item.name: (item.mode, tar.extractfile(item).read() if item.isfile() else None) for item in tar}


def shell(command):
    """What runs under the lock."""
    words = shlex.split(command)
    assert words[0] == "flock"
    return words[words.index("-c") + 1]


def arguments(command):
    words = shlex.split(command)
    return words[words.index("-c") + 2 : words.index("||")]


@pytest.fixture
def installed(install, wanted, this_machine):
    """Everything in place, as `install.sh` leaves it."""
    lists, _ = archive(install(wanted))
    for item in wanted:
        path = Path(item.dest)
        if isinstance(item, ManagedDirectory):
            path.mkdir(parents=True)
        else:
            path.write_bytes(item.revealed())
        path.chmod(item.mode)
    (this_machine / "manifest").mkdir(parents=True)
    (this_machine / "manifest" / "engine").write_text("".join(f"{line}\n" for line in lists["manifest"]))
    return [Path(item.dest) for item in wanted]


def test_a_bare_host_gets_every_file_in_one_command(install, wanted, me):
    lists, tree = archive(install(wanted))
    folder, a, b = (item.dest for item in wanted)
    assert tree == {folder: None, a: b"a\n", b: b"b\n"}
    owner = f"{me['owner']} {me['group']}"
    assert lists["meta"] == [f"dir 750 {owner} {folder}", f"file 644 {owner} {a}", f"file 600 {owner} {b}"]
    assert lists["checks"] == ["check-a", "check-b"]
    assert lists["stamps"] == [f"{UNIT}.reload", f"{UNIT}.restart"]


def test_the_manifest_names_each_file_with_its_hash_and_no_folder(install, wanted, me):
    rows = archive(install(wanted))[0]["manifest"]
    owner = f"{me['owner']} {me['group']}"
    assert rows == [
        f"{hashlib.sha256(b'a' + bytes([10])).hexdigest()} 644 {owner} {wanted[1].dest}",
        f"{hashlib.sha256(b'b' + bytes([10])).hexdigest()} 600 {owner} {wanted[2].dest}",
    ]


def test_the_archive_lets_nobody_else_read_it_while_it_is_unpacked(install, wanted):
    assert all(mode & 0o077 == 0 for mode, _ in members(install(wanted)).values())


def test_a_host_on_which_all_is_in_place_gets_no_command(install, wanted, installed):
    assert install(wanted) == []


def test_only_what_differs_travels_and_only_its_checks_run(install, wanted, installed):
    installed[1].write_text("edited\n")
    lists, tree = archive(install(wanted))
    assert tree == {wanted[1].dest: b"a\n"}
    assert lists["checks"] == ["check-a"]
    assert lists["stamps"] == [f"{UNIT}.reload"]
    assert len(lists["manifest"]) == 2


@pytest.mark.parametrize("number", [0, 1, 2], ids=["folder", "open file", "closed file"])
def test_a_mode_that_drifted_is_a_change(install, wanted, installed, number):
    installed[number].chmod(0o777)
    lists, _ = archive(install(wanted))
    assert [row.split()[-1] for row in lists["meta"]] == [wanted[number].dest]


def test_another_owner_is_a_change(install, wanted, installed):
    other = replace(wanted[1], owner="nobody")
    lists, _ = archive(install([wanted[0], other, wanted[2]]))
    (row,) = lists["meta"]
    assert row.startswith("file 644 nobody ")


def test_a_file_that_is_gone_is_put_back(install, wanted, installed):
    installed[2].unlink()
    assert archive(install(wanted))[1] == {wanted[2].dest: b"b\n"}


def test_a_link_in_the_place_of_a_file_is_a_change_even_if_it_leads_to_the_same_bytes(install, wanted, installed):
    moved = installed[1].rename(installed[1].with_name("elsewhere"))
    installed[1].symlink_to(moved)
    assert wanted[1].dest in archive(install(wanted))[1]


def test_what_an_interrupted_run_left_beside_a_file_is_a_change(install, wanted, installed):
    installed[2].with_name(installed[2].name + NEW_SUFFIX).touch()
    assert archive(install(wanted))[1] == {wanted[2].dest: b"b\n"}


def test_a_missing_manifest_is_a_change_although_every_file_is_in_place(install, wanted, installed, this_machine):
    (this_machine / "manifest" / "engine").unlink()
    lists, tree = archive(install(wanted))
    assert (tree, lists["meta"]) == ({}, [])
    assert len(lists["manifest"]) == 2


def test_a_file_that_the_role_no_longer_wants_goes(install, wanted, installed):
    lists, tree = archive(install(wanted[:2]))
    assert lists["meta"] == [f"gone 0 root root {wanted[2].dest}"]
    # Its folder is staged, so that a check can be shown the host without the file.
    assert tree == {str(installed[2].parent): None}
    assert [row.split()[-1] for row in lists["manifest"]] == [wanted[1].dest]


def test_a_file_that_the_role_never_had_is_left_alone(install, wanted, installed):
    installed[1].with_name("theirs.conf").touch()
    assert install(wanted) == []


@pytest.fixture
def install_some(this_machine):
    """The same for some of the role's files."""
    return lambda managed: list(operations._install._inner(role="engine", managed=managed, partial=True))


def test_some_files_of_a_role_leave_its_others_alone(install_some, wanted, installed):
    assert install_some(wanted[1:2]) == []
    installed[1].write_text("edited\n")
    installed[2].write_text("edited too\n")
    commands = install_some(wanted[1:2])
    lists, tree = archive(commands)
    assert tree == {wanted[1].dest: b"a\n"}
    assert [row.split()[-1] for row in lists["meta"]] == [wanted[1].dest]
    assert [row.split()[-1] for row in lists["manifest"]] == [wanted[1].dest]
    assert "partial" in members(commands)


def test_all_files_of_a_role_are_not_marked_as_some(install, wanted):
    assert "partial" not in members(install(wanted))


def test_some_files_that_the_manifest_does_not_name_are_a_change(install_some, wanted, installed, this_machine):
    manifest = this_machine / "manifest" / "engine"
    manifest.write_text(manifest.read_text().splitlines(keepends=True)[1])
    lists, tree = archive(install_some(wanted[1:2]))
    assert (tree, len(lists["manifest"])) == ({}, 1)


def test_the_lines_of_the_other_files_stay_in_the_manifest(wanted, install, install_some, installed, tmp_path):
    """The part of install.sh that puts them together, as it is."""
    state, stage = tmp_path / "state", tmp_path / "stage"
    stage.mkdir()
    full = (state / "manifest" / "engine").read_text()
    new = [replace(wanted[1], content="new\n"), ManagedFile(f"{tmp_path}/root/a file", "c\n", mode=0o600)]
    for name, (_, content) in members(install_some(new)).items():
        if content is not None and "/" not in name:
            (stage / name).write_bytes(content)
    script = (operations._REMOTE / "install.sh").read_text()
    part = re.search(r'^if \[ -e "\$stage/partial" \].*?^fi$', script, re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-euc", f"role=engine state={state} stage={stage}\n{part[0]}"], check=True)
    rows = (stage / "manifest").read_text().splitlines()
    whole = archive(install([wanted[0], *new, wanted[2]]))[0]["manifest"]
    assert rows == whole != full.splitlines()
    assert len(rows) == 3


def test_a_path_with_a_space_or_a_quote_is_found_in_place(install, this_machine, tmp_path, me):
    managed = [ManagedFile(f"{tmp_path}/it's here.conf", "x", **me)]
    lists, _ = archive(install(managed))
    (tmp_path / "it's here.conf").write_text("x")
    (this_machine / "manifest").mkdir(parents=True)
    (this_machine / "manifest" / "engine").write_text("".join(f"{line}\n" for line in lists["manifest"]))
    assert install(managed) == []


@pytest.fixture
def secret_file(tmp_path, me, monkeypatch):
    monkeypatch.setenv("QUENCH_TEST_INSTALL", CANARY)
    secrets._resolve.cache_clear()
    secret = SecretRef("env:QUENCH_TEST_INSTALL")
    yield ManagedFile(f"{tmp_path}/key", f"key={secret}\n", mode=0o600, restarts=UNIT, secrets=(secret,), **me)
    secrets._resolve.cache_clear()


def test_a_secret_travels_on_standard_input_and_stands_in_no_command(install, secret_file):
    commands = install([secret_file])
    assert archive(commands)[1] == {secret_file.dest: f"key={CANARY}\n".encode()}
    (command,) = commands
    for text in (str(command), repr(command), command.get_raw_value()):
        assert CANARY not in text
        assert base64.b64encode(CANARY.encode()).decode().rstrip("=")[:-1] not in text
        assert command.connector_arguments["_stdin"][:12] not in text


def test_a_lock_file_travels_on_standard_input_too(this_machine):
    (command,) = operations._python_environment._inner(
        folder="/opt/x/1", lock="vllm==1 --hash=sha256:00\n", index_url=None
    )
    assert command.connector_arguments["_stdin"].startswith("vllm==1")
    assert "vllm==1" not in str(command)


@pytest.fixture
def service(commands, wanted):
    """The command that keeps a unit running, on a host where systemd answers this."""

    def run(answers=(), managed=wanted):
        found = commands(operations._services, answers, units=[UNIT], managed=managed)
        return [shell(command) for command in found]

    return run


@pytest.fixture
def settled(service):
    """What a host answers after a first run."""
    (command,) = service()
    stamps = dict(re.findall(r"echo (\w{64}) >\S+\.(restart|reload)", command))
    hashes = {kind: digest for digest, kind in stamps.items()}
    return {
        "ActiveState": "active",
        "UnitFileState": "enabled",
        "NeedDaemonReload": "no",
        "ConditionResult": "yes",
        "ConditionTimestampMonotonic": "4711",
        "restarted": hashes["restart"],
        "reloaded": hashes["reload"],
    }


def answers(values, unit=UNIT):
    return [f"unit={unit}", *(f"{key}={value}" for key, value in values.items())]


def test_a_unit_that_never_ran_is_freed_enabled_and_restarted_in_this_order(service):
    (command,) = service()
    steps = ["unmask --runtime", "enable", "daemon-reload", "restart"]
    places = [command.index(f"systemctl {step}") for step in steps]
    assert places == sorted(places)


def test_several_units_are_read_at_once_and_started_one_after_the_other(commands, wanted):
    other = "other.service"
    found = commands(operations._services, units=[UNIT, other], managed=wanted)
    (command,) = (shell(each) for each in found)
    assert command.count("systemctl daemon-reload") == 1
    assert f"systemctl enable --quiet --no-reload {UNIT} {other}" in command
    assert command.index(f"systemctl restart {UNIT}") < command.index(f"systemctl restart {other}")


@pytest.mark.parametrize("works", [True, False])
def test_a_restart_is_stamped_if_it_worked_and_says_why_if_it_did_not(service, tmp_path, monkeypatch, works):
    monkeypatch.setattr(operations, "STATE_DIRECTORY", str(tmp_path / "state"))
    for name, body in {
        "systemctl": "true" if works else '[ "$1" != restart ]',
        "journalctl": "echo the reason",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = subprocess.run(["sh", "-c", *service()], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is works
    assert (done.stderr == "") is works
    # A stamp without success would hide the failed restart from the next run.
    assert len(list(tmp_path.glob("state/converged/*"))) == (2 if works else 0)
    assert works or done.stderr == "the reason\n"


def test_a_unit_that_is_on_its_way_up_with_its_present_files_is_waited_for_and_not_restarted(service, settled):
    (command,) = service(answers(settled | {"ActiveState": "activating"}))
    assert f"systemctl start {UNIT}" in command
    assert "systemctl restart" not in command
    (command,) = service(answers(settled | {"ActiveState": "activating", "restarted": "former"}))
    assert f"systemctl restart {UNIT}" in command


def test_a_restart_that_a_killed_run_has_done_meanwhile_is_not_done_again(service, tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/done\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for _ in range(2):
        subprocess.run(["sh", "-c", *service()], check=True)
    assert (tmp_path / "done").read_text().split().count("restart") == 1


def test_a_unit_that_runs_with_its_present_files_gets_no_command(service, settled):
    assert service(answers(settled)) == []


def test_a_changed_file_that_a_reload_reads_reloads_and_does_not_restart(service, settled, wanted, me):
    changed = [wanted[0], ManagedFile(wanted[1].dest, "new", reloads=UNIT, **me), wanted[2]]
    (command,) = service(answers(settled), managed=changed)
    assert f"systemctl reload {UNIT}" in command
    assert "systemctl restart" not in command
    assert "daemon-reload" not in command


def test_a_changed_file_that_only_a_start_reads_restarts(service, settled, wanted, me):
    changed = [wanted[0], wanted[1], ManagedFile(wanted[2].dest, "b\n", mode=0o640, restarts=UNIT, **me)]
    (command,) = service(answers(settled), managed=changed)
    assert f"systemctl restart {UNIT}" in command


def test_a_file_of_another_unit_touches_nothing(service, settled, wanted, me):
    other = ManagedFile("/etc/other.conf", "x", restarts="other.service", **me)
    assert service(answers(settled), managed=[*wanted, other]) == []


def test_a_new_value_of_a_secret_restarts(service, secret_file, monkeypatch):
    before = service(managed=[secret_file])
    assert service(managed=[secret_file]) == before
    monkeypatch.setenv("QUENCH_TEST_INSTALL", "another")
    secrets._resolve.cache_clear()
    assert service(managed=[secret_file]) != before


def test_a_unit_that_died_is_restarted_although_nothing_changed(service, settled):
    (command,) = service(answers(settled | {"ActiveState": "failed"}))
    assert f"systemctl restart {UNIT}" in command


def test_a_restart_that_failed_last_time_is_tried_again(service, settled):
    # install.sh removes the stamp before it changes a file.
    assert f"systemctl restart {UNIT}" in service(answers(settled | {"restarted": ""}))[0]
    assert f"systemctl reload {UNIT}" in service(answers(settled | {"reloaded": ""}))[0]


def test_a_unit_that_a_condition_keeps_from_running_is_settled_once_it_was_tried(service, settled):
    skipped = {"ActiveState": "inactive", "ConditionResult": "no"}
    assert service(answers(settled | skipped)) == []
    assert service(answers(settled | skipped | {"restarted": ""})) != []
    assert service(answers(settled | skipped | {"ConditionResult": "yes"})) != []
    # Stopped and disabled by somebody: systemd has forgotten it, and read it anew.
    assert service(answers(settled | skipped | {"ConditionTimestampMonotonic": "0"})) != []


def test_a_unit_that_was_disabled_is_enabled_without_a_restart(service, settled):
    (command,) = service(answers(settled | {"UnitFileState": "disabled"}))
    assert f"systemctl enable --quiet --no-reload {UNIT}" in command
    assert "systemctl restart" not in command


def test_a_unit_file_that_changed_on_disk_is_read_again_without_a_restart(service, settled):
    (command,) = service(answers(settled | {"NeedDaemonReload": "yes"}))
    assert "systemctl daemon-reload" in command
    assert "systemctl restart" not in command


@pytest.fixture
def packages(commands):
    """What the script is told: the units to hold back, and a line for each package."""

    def run(*installed, names=("nginx", "curl"), hold_back=()):
        found = commands(operations._packages, installed, names=list(names), hold_back=list(hold_back))
        return [(arguments(command)[-3], arguments(command)[-2].splitlines()) for command in found]

    return run


def test_packages_that_are_there_are_left_as_they_are(packages):
    assert packages("ii |nginx|1.22.1-9", "ii |curl|7.88") == []


def test_only_missing_packages_are_installed_in_whatever_version(packages):
    assert packages("ii |nginx|1.22.1-9") == [("", ["curl *"])]


@pytest.mark.parametrize("status", ["iF ", "iU ", "rc ", "un "])
def test_a_package_that_is_not_whole_counts_as_missing(packages, status):
    assert packages(f"{status}|nginx|1.22.1-9", "ii |curl|7.88") == [("", ["nginx *"])]


def test_a_service_is_held_back(packages):
    assert packages(hold_back=["nginx.service"]) == [("nginx.service", ["nginx *", "curl *"])]


@pytest.fixture
def account(commands):
    def run(*answers, groups=()):
        wanted = {"user": "ops", "home": "/home/ops", "shell": "/bin/bash", "groups": list(groups)}
        return [shell(command) for command in commands(operations._account, answers, **wanted)]

    return run


def test_a_missing_user_is_made_without_a_home_and_then_put_into_its_groups(account):
    create, add = account(groups=["sudo"])
    assert create.endswith("useradd --system --user-group --no-create-home --home-dir /home/ops --shell /bin/bash ops")
    assert add == "usermod --append --groups sudo ops"


def test_a_user_as_wanted_is_left_alone_with_its_other_groups(account):
    assert account("home=/home/ops", "shell=/bin/bash", "groups=ops sudo audio", groups=["sudo"]) == []


def test_a_user_with_another_shell_is_changed(account):
    (command,) = account("home=/home/ops", "shell=/bin/sh", "groups=ops")
    assert command == "usermod --home /home/ops --shell /bin/bash ops"


def test_an_environment_is_built_unless_it_is_complete_for_this_very_lock(commands):
    wanted = {"folder": "/opt/vllm/1", "lock": "vllm==1\n", "index_url": None}
    sha256 = hashlib.sha256(b"vllm==1\n").hexdigest()
    assert commands(operations._python_environment, [sha256], **wanted) == []
    for answer in ([], [sha256[::-1]]):
        (command,) = commands(operations._python_environment, answer, **wanted)
        assert arguments(command) == ["python_environment.sh", "/opt/vllm/1", sha256, ""]


def test_a_model_is_fetched_unless_its_list_of_checksums_is_the_pinned_one(commands):
    wanted = {"folder": "/srv/models/a/1", "url": "http://mirror.example.org/a", "sha256": "ab" * 32}
    assert commands(operations._model_files, ["ab" * 32], **wanted) == []
    (command,) = commands(operations._model_files, ["cd" * 32], **wanted)
    assert arguments(command) == ["fetch_model.sh", "http://mirror.example.org/a", "/srv/models/a/1", "ab" * 32]


@pytest.mark.parametrize("list_of_another", [True, False])
@pytest.mark.parametrize("folder_of_the_list", ["", "./"])
def test_a_model_has_no_file_that_its_list_does_not_name(tmp_path, list_of_another, folder_of_the_list):
    """Such as one that an interrupted fetch of another list has left."""
    source, folder = tmp_path / "source", tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    for name in ("a.safetensors", "deep/b.json"):
        (source / name).write_text(name)
    names = [f"{folder_of_the_list}{name}" for name in ("a.safetensors", "deep/b.json")]
    sums = subprocess.run(["sha256sum", *names], cwd=source, capture_output=True, text=True, check=True).stdout
    (source / "SHA256SUMS").write_text(sums)
    if list_of_another:
        (tmp_path / "model.part" / "deep").mkdir(parents=True)
        for name in ("c.safetensors", "deep/b"):
            (tmp_path / "model.part" / name).write_text("left behind")
    script = operations._REMOTE / "fetch_model.sh"
    pin = hashlib.sha256(sums.encode()).hexdigest()
    subprocess.run(["sh", str(script), source.as_uri(), str(folder), pin], check=True)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["SHA256SUMS", "a.safetensors", "deep/b.json"]


def test_what_stands_in_an_argument_is_no_shell(commands):
    wanted = {"folder": "/srv/models/$(reboot)/1", "url": "http://a/;reboot", "sha256": "ab" * 32}
    (command,) = commands(operations._model_files, [], **wanted)
    assert f"'http://a/;reboot' '/srv/models/$(reboot)/1' {'ab' * 32} ||" in command


def test_a_command_that_changes_a_host_waits_for_what_a_killed_run_left_running(commands, install, wanted):
    found = [
        *map(str, install(wanted)),
        *commands(operations._services, units=[UNIT], managed=wanted),
        *commands(operations._packages, names=["nginx"], hold_back=[]),
        *commands(operations._account, user="a", home="/a", shell="/bin/sh", groups=["b"]),
        *commands(operations._model_files, folder="/a", url="http://a", sha256="00"),
    ]
    assert len(found) == 6
    # With an end to the waiting.
    assert all(re.match(r"flock --timeout \d+ --conflict-exit-code 75 (/run/\S+) sh -c ", command) for command in found)


def test_a_role_without_files_asks_for_none_and_changes_nothing(commands):
    """With no name at all, sha256sum would read standard input and answer for a file called "-"."""
    command = facts.RoleFiles().command("base-sources", [], [])
    assert "sha256sum" not in command and "stat" not in command
    assert facts.RoleFiles().process([]) == facts.RoleState()
    assert commands(operations._install, [], role="base-sources", managed=[]) == []


def test_a_file_that_came_between_two_questions_is_left_to_the_next_run():
    state = facts.RoleFiles().process([f"{'ab' * 32}  /etc/late"])
    assert state.entries == {}


def test_a_folder_is_asked_for_as_what_it_leads_to():
    state = facts.RoleFiles().process(["stat 755 root root /srv/models/."])
    assert list(state.entries) == ["/srv/models"]


def test_a_package_that_is_held_counts_as_installed():
    rows = ["ii |a|1", "hi |b|2", "iU |c|3", "rc |d|4", "un |e|"]
    assert facts.Packages().process(rows) == {"a": "1", "b": "2"}


@pytest.fixture
def pinned(commands):
    """What the script is told on a host with these packages, where the check's failure prints `no`."""

    def run(*installed, check_fails=False, platform="debian-12", **more):
        answers = {
            "dpkg-query": list(installed),
            "rpm -q": list(installed),
            "is-well": ["no"] if check_fails else [],
        }
        wanted = {"versions": {"libcuda1": "580.95.05", "nvlsm": "2025.10.12"}, "family": ["nvidia-*"], "former": [],
                  "extra": [], "source": "/etc/x.repo", "check": "is-well", "hold_back": []} | more  # fmt: skip
        found = commands(operations._pinned_packages, answers, on={"platform": platform}, **wanted)
        return [arguments(command) for command in found]

    return run


WHOLE = ("ii |libcuda1|580.95.05-1", "ii |nvlsm|2025.10.12-1")


def test_packages_of_the_pinned_versions_are_left_alone(pinned):
    assert pinned(*WHOLE) == []
    assert pinned("hi |libcuda1|3:580.95.05-0ubuntu1", "ii |nvlsm|2025.10.12-1") == []


@pytest.mark.parametrize(
    "row",
    ["ii |libcuda1|580.126.20-1", "ii |libcuda1|595.71.05-1", "iF |libcuda1|580.95.05-1"],
)
def test_one_package_of_another_version_moves_them_all(pinned, row):
    ((_, manager, _, _, _, lines, _),) = pinned(row, WHOLE[1])
    assert manager == "apt"
    assert lines.splitlines() == ["libcuda1 580.95.05", "nvlsm 2025.10.12"]


def test_a_package_that_is_missing_moves_them_all(pinned):
    assert len(pinned(WHOLE[0])) == 1


def test_a_former_name_that_is_still_there_goes(pinned):
    ((*_, lines, _),) = pinned(*WHOLE, "ii |libnvidia-compute-580|580.95.05-1", former=["libnvidia-compute-580"])
    assert "libnvidia-compute-580 -" in lines.splitlines()
    assert pinned(*WHOLE, former=["libnvidia-compute-580"]) == []


def test_what_comes_along_in_any_version_is_no_reason_by_itself(pinned):
    extra = ["linux-headers-$(uname -r)"]
    assert pinned(*WHOLE, extra=extra) == []
    ((*_, lines, _),) = pinned(WHOLE[0], extra=extra)
    # Filled in on the host, and by no shell on the way.
    assert lines.splitlines()[-1] == "linux-headers-$(uname -r) *"


def test_a_check_that_fails_is_a_reason_although_all_packages_are_there(pinned):
    assert len(pinned(*WHOLE, check_fails=True)) == 1


def test_the_check_the_family_and_what_is_held_back_reach_the_script_as_they_are(pinned):
    family, units = ["*nvidia*", "libnvsdm*"], ["nvidia-dcgm.service", "x.service"]
    ((name, _, given, check, held, _, source),) = pinned(family=family, hold_back=units)
    assert (name, given, check, held, source) == (
        "packages.sh",
        "*nvidia* libnvsdm*",
        "is-well",
        "nvidia-dcgm.service x.service",
        "/etc/x.repo",
    )


def test_the_rhel_family_is_asked_through_rpm_and_changed_through_dnf(pinned):
    assert pinned("ii |libcuda1|580.95.05-1.el9", "ii |nvlsm|2025.10.12-1", platform="rhel-9") == []
    assert pinned(platform="rhel-10")[0][1] == "dnf"


def test_what_is_well_is_not_mended(commands):
    wanted = {"question": "how-is-it", "command": "mend it"}
    assert commands(operations._ensure, {"how-is-it": []}, **wanted) == []
    (command,) = commands(operations._ensure, {"how-is-it": ["stale"]}, **wanted)
    assert shell(command) == "mend it"


def test_a_question_is_asked_as_one_command_whatever_stands_in_it():
    command = facts.Lines().command('echo a; echo "b\'s"; false')
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, facts.Lines().process(done.stdout.splitlines())) == (0, ["a", "b's"])


def test_an_empty_answer_is_none():
    assert facts.Lines().process(["", ""]) == []


def test_a_host_on_which_nothing_is_amiss_is_confirmed_without_a_command(commands):
    assert commands(operations._confirm, [], question="what") == []


def test_what_is_amiss_ends_the_run_on_the_host_with_a_line_each(commands):
    amiss = ["nvidia_driver_version: it isn't loaded; look", "nvidia_driver_gpus: $(touch /tmp/x) `id`; count"]
    (command,) = commands(operations._confirm, amiss, question="what")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"@fake: {line}" for line in amiss]


def test_a_host_is_asked_in_the_plan_and_not_in_the_run(monkeypatch, this_machine):
    operations.ask("true", lambda answer: [])
    plan = HostPlan("node1")
    monkeypatch.setattr(operations, "recording", lambda: plan)
    operations.ask("cat /proc/version", lambda answer: answer)
    (question,) = plan.questions
    assert (question.command, question.problems(["a"])) == ("cat /proc/version", ["a"])


def test_a_script_gets_its_arguments_as_they_are(tmp_path):
    (tmp_path / "say.sh").write_text("# A comment.\nprintf '%s|' \"$@\"\n")
    words = ["a b", "it's", "$HOME", "*", ""]
    command = operations.shell_script(tmp_path / "say.sh", *words)
    assert "A comment" not in command
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{word}|" for word in words)
