import base64
import hashlib
import io
import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from quench import ManagedDirectory, ManagedFile, facts
from quench.facts import NEW_SUFFIX
from quench.operations import files
from quench.operations.commands import REMOTE


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
    assert lists["stamps"] == ["engine.service.reload", "engine.service.restart"]


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
    assert lists["stamps"] == ["engine.service.reload"]
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
    return lambda managed: list(files._install._inner(role="engine", managed=managed, partial=True))


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
    script = (REMOTE / "install.sh").read_text()
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


def test_a_secret_travels_on_standard_input_and_stands_in_no_command(install, secret_file, canary):
    commands = install([secret_file])
    assert archive(commands)[1] == {secret_file.dest: f"key={canary}\n".encode()}
    (command,) = commands
    for text in (str(command), repr(command), command.get_raw_value()):
        assert canary not in text
        assert base64.b64encode(canary.encode()).decode().rstrip("=")[:-1] not in text
        assert command.connector_arguments["_stdin"][:12] not in text


def test_a_role_without_files_asks_for_none_and_changes_nothing(commands):
    """With no name at all, sha256sum would read standard input and answer for a file called "-"."""
    command = facts.RoleFiles().command("base-sources", [], [])
    assert "sha256sum" not in command and "stat" not in command
    assert facts.RoleFiles().process([]) == facts.RoleState()
    assert commands(files._install, [], role="base-sources", managed=[]) == []


def test_a_file_that_came_between_two_questions_is_left_to_the_next_run():
    state = facts.RoleFiles().process([f"{'ab' * 32}  /etc/late"])
    assert state.entries == {}


def test_a_folder_is_asked_for_as_what_it_leads_to():
    state = facts.RoleFiles().process(["stat 755 root root /srv/models/."])
    assert list(state.entries) == ["/srv/models"]
