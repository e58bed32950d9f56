import hashlib
import json
import os
import re
import stat
from datetime import UTC, date, datetime, timedelta

import pytest
from click.testing import CliRunner

from quench import Refused, keyring, keys_command
from quench.cli import main
from roles.haproxy import HaproxySettings

KEY = re.compile(r"^sk-[\w-]{43}$")
DAY = "2099-01-01"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keyring.yaml"


@pytest.fixture
def quench(path):
    """`quench keys` with this file, as a person types it."""

    def run(command, *words):
        return CliRunner().invoke(main, ["keys", command, *words, "--keyring", str(path)])

    return run


def sha256(key):
    return hashlib.sha256(key.encode()).hexdigest()


def added(quench, client="team-a", *words):
    done = quench("add", client, "--expires", DAY, *words)
    assert done.exit_code == 0, done.stderr
    return done.stdout.strip()


def problems(call, *words):
    with pytest.raises(Refused) as refused:
        call(*words)
    return [str(problem) for problem in refused.value.problems]


def refused(done):
    """The one line in which a command says why it does nothing."""
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    _, line = done.stderr.strip().splitlines()
    return line.strip()


def test_a_key_is_shown_once_and_only_its_hash_is_kept(quench, path):
    done = quench("add", "team-a", "--expires", DAY)
    key = done.stdout.strip()
    assert KEY.match(key)
    assert key not in done.stderr
    text = path.read_text()
    assert key not in text
    assert sha256(key) in text
    assert key not in quench("list").output + quench("list", "--json").output


def test_what_add_writes_is_what_the_settings_take(quench, path):
    key = added(quench, "team-a", "--models", "llama, qwen", "--requests-per-minute", "120", "--concurrent", "16")
    found = keyring.load(path)
    assert found == {
        "team-a": {
            "keys": [{"sha256": sha256(key), "expires": DAY}],
            "models": ["llama", "qwen"],
            "requests_per_minute": 120,
            "concurrent": 16,
        }
    }
    assert HaproxySettings._names(keyring.read(path)).keys() == {"team-a"}


def test_what_is_not_said_is_left_to_the_model(quench, path):
    added(quench)
    assert set(keyring.load(path)["team-a"]) == {"keys"}


def test_a_key_lives_for_a_year_if_nothing_is_said(quench, path):
    assert quench("add", "a").exit_code == 0
    (key,) = keyring.read(path)["a"].keys
    assert date.fromisoformat(key.expires) - datetime.now(UTC).date() in (timedelta(364), timedelta(365))


def test_a_client_that_is_there_is_refused_with_the_way_on(quench, path):
    added(quench)
    before = path.read_bytes()
    assert "team-a: is there already; give it a second key: quench keys rotate team-a" in refused(
        quench("add", "team-a")
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a b"], "'a b' cannot name a client"),
        (["a", "--expires", "2020-01-01"], "2020-01-01 is not in the future"),
        (["a", "--expires", "2099-02-30"], "2099-02-30 is no day"),
        (["a", "--expires", "soon"], "a.keys.0.expires: string should match pattern"),
        (["a", "--requests-per-minute", "0"], "a.requests_per_minute: input should be greater than or equal to 1"),
        (["a", "--concurrent", "99999"], "a.concurrent: input should be less than or equal to 10000"),
    ],
)
def test_what_add_does_not_take_is_said_in_one_line_and_nothing_is_written(quench, path, words, said):
    assert said in refused(quench("add", *words))
    assert not path.exists()


def test_a_folder_that_is_not_there_is_said(quench, tmp_path):
    done = CliRunner().invoke(main, ["keys", "add", "a", "--keyring", str(tmp_path / "absent" / "keyring.yaml")])
    assert "no such file or directory" in refused(done)


def test_the_file_is_sorted_and_keeps_its_mode_and_the_comments_at_its_top(quench, path):
    path.write_text("# Ours.\n\n# Ask before you change it.\n")
    path.chmod(0o640)
    for client in ("b", "a", "c"):
        added(quench, client)
    text = path.read_text()
    assert text.startswith("# Ours.\n\n# Ask before you change it.\na:\n")
    assert list(keyring.load(path)) == ["a", "b", "c"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_is_its_owners_alone(quench, path):
    added(quench)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_a_link(quench, path, tmp_path):
    (tmp_path / "real").mkdir()
    path.symlink_to(tmp_path / "real" / "keys.yaml")
    added(quench)
    assert path.is_symlink()
    assert "team-a" in (tmp_path / "real" / "keys.yaml").read_text()


def test_a_write_that_fails_leaves_the_old_file(quench, path, monkeypatch):
    added(quench)
    before = path.read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = quench("add", "b")
    assert "cannot be written: No space left on device" in refused(done)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_rotate_adds_a_second_key_and_no_third(quench, path):
    first = added(quench)
    done = quench("rotate", "team-a", "--expires", "2099-06-01")
    second = done.stdout.strip()
    assert KEY.match(second)
    assert f"quench keys revoke team-a --key {sha256(first)[:8]}" in done.stderr
    assert [key["sha256"] for key in keyring.load(path)["team-a"]["keys"]] == [sha256(first), sha256(second)]
    assert second not in path.read_text()
    line = refused(quench("rotate", "team-a"))
    assert f"has two keys already: {sha256(first)[:8]} (until {DAY}) and {sha256(second)[:8]}" in line


def test_rotate_and_revoke_name_the_clients_that_there_are(quench):
    added(quench)
    for command in ("rotate", "revoke"):
        assert refused(quench(command, "team-b")).endswith("team-b: no such client; clients: team-a")


def test_one_key_is_taken_back_and_the_rest_of_the_client_stays(quench, path):
    first = added(quench, "team-a", "--models", "llama")
    second = quench("rotate", "team-a", "--expires", DAY).stdout.strip()
    done = quench("revoke", "team-a", "--key", sha256(first)[:8])
    assert done.exit_code == 0
    assert "quench keys push" in done.stdout
    assert keyring.load(path)["team-a"] == {
        "keys": [{"sha256": sha256(second), "expires": DAY}],
        "models": ["llama"],
    }


def test_with_all_its_keys_a_client_goes(quench, path):
    added(quench)
    added(quench, "team-b")
    assert quench("revoke", "team-a").exit_code == 0
    assert quench("rotate", "team-b").exit_code == 0
    assert list(keyring.load(path)) == ["team-b"]


def test_the_last_client_stays_and_the_way_out_is_named(quench, path):
    key = added(quench)
    for words in ([], ["--key", sha256(key)[:8]]):
        assert "is the last client, and a keyring has at least one; rotate it" in refused(
            quench("revoke", "team-a", *words)
        )
    assert "team-a" in keyring.load(path)


def test_a_key_that_is_given_in_the_place_of_its_hash_is_not_repeated(quench):
    key = added(quench)
    for given in (key, ""):
        done = quench("revoke", "team-a", "--key", given)
        assert f"no key of it begins so; it has {sha256(key)[:8]} (until {DAY})" in refused(done)
        assert key not in done.output


def test_a_beginning_that_both_keys_have_takes_neither(quench, path):
    rows = [{"sha256": f"aa{number}{'0' * 61}", "expires": DAY} for number in (1, 2)]
    path.write_text(json.dumps({"a": {"keys": rows}, "b": {"keys": [{"sha256": "b" * 64, "expires": DAY}]}}))
    assert "both keys of it begin so" in refused(quench("revoke", "a", "--key", "aa"))
    assert quench("revoke", "a", "--key", "aa2").exit_code == 0
    assert keyring.load(path)["a"]["keys"] == rows[:1]


@pytest.fixture
def aged(path, monkeypatch):
    """A keyring on the first of June, with keys that end on these days."""
    monkeypatch.setattr(keys_command, "_today", lambda: date(2030, 6, 1))
    days = ["2030-06-01", "2030-06-30", "2030-07-01"]
    path.write_text(
        "".join(
            f"c{number}:\n  keys: [{{sha256: {'abc'[number] * 64}, expires: {day}}}]\n"
            for number, day in enumerate(days)
        )
    )


def test_the_list_counts_days_and_warns_of_those_that_end_soon(quench, aged):
    lines = quench("list").stdout.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["CLIENT", "KEY", "HASH", "EXPIRES", "DAYS", "MODELS", "LIMITS"]
    rows = [re.split(r"\s{2,}", line) for line in lines[1:]]
    assert [(line[:4], row[-4]) for line, row in zip(lines[1:], rows, strict=True)] == [
        ("! c0", "2030-06-01"),
        ("! c1", "2030-06-30"),
        ("  c2", "2030-07-01"),
    ]
    assert [row[-3] for row in rows] == ["over", "29", "30"]
    assert rows[0][1:] == ["1 of 1", "aaaaaaaa", "2030-06-01", "over", "all", "60 a minute, 8 at once"]


def test_the_list_is_json_too(quench, aged):
    found = json.loads(quench("list", "--json").stdout)
    assert found[1] == {
        "client": "c1",
        "keys": [{"hash": "bbbbbbbb", "expires": "2030-06-30", "days_left": 29}],
        "models": None,
        "requests_per_minute": 60,
        "burst": 20,
        "concurrent": 8,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keyring: has no clients; add one: quench keys add CLIENT"),
        ("- a", "the file: is no mapping of clients"),
        ("a: [", "line 1: "),
        ("a: {keys: []}", "a.keys: list should have at least 1 item"),
        ("a: {}", "a.keys: is not set"),
        ("a: {keys: [{sha256: xyz, expires: 2099-01-01}]}", "a.keys.0.sha256: string should match pattern"),
        ("a: {keys: [{sha256: '%s', expires: 2099-02-30}]}", "a.keys.0.expires: 2099-02-30 is no day"),
        ("a: {keys: [{sha256: '%s', expired: 2099-01-01, expires: 2099-01-01}]}", "a.keys.0.expired: unknown key"),
        ("a: {keys: [{sha256: '%s', expires: 2099-01-01}], model: x}", "a.model: unknown key; valid keys: burst,"),
        (
            "a: {keys: [{sha256: '%s', expires: 2099-01-01}], concurrent: '4'}",
            "a.concurrent: input should be a valid int",
        ),
        ("a b: {keys: [{sha256: '%s', expires: 2099-01-01}]}", "'a b' cannot name a client"),
        ("a: &k {keys: [{sha256: '%s', expires: 2099-01-01}]}\nb: *k", "clients a and b have the same key"),
        ("a: {keys: [{sha256: '%s', expires: 2099-01-01}]}\na: {}", "line 2: a stands there twice"),
        ("? [a]\n: b", "line 1: found unhashable key"),
        ("!!python/object/apply:os.getcwd []", "line 1: could not determine a constructor"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_file_and_place(path, text, said):
    path.write_text(text.replace("%s", "a" * 64))
    (line,) = problems(keyring.load, path)
    assert line.startswith(f"{path}: {said}") or said in line
    assert "\n" not in line


def test_a_key_in_the_place_of_its_hash_is_not_repeated(path):
    canary = "sk-canary-5f1d"
    for text in (
        f"a: {{keys: [{{sha256: {canary}, expires: 2099-01-01}}]}}",
        f"a: {{keys: [{{sha256: {canary}, expires: 2099-01-01}}",
        f"a: {{keys: [{canary}]}}",
    ):
        path.write_text(text)
        assert not any(canary in line for line in problems(keyring.load, path))


def test_a_file_that_is_not_there_or_is_no_text_is_one_line(path, tmp_path):
    assert "no such file or directory" in problems(keyring.load, path)[0]
    assert "is a directory" in problems(keyring.load, tmp_path)[0]
    path.write_bytes(b"\xff\xfe")
    assert "no text in UTF-8" in problems(keyring.load, str(path))[0]


def test_a_path_is_from_the_checkout_wherever_one_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert set(keyring.load("inventories/keyring.yaml")) == {"batch", "team-a"}


def test_an_inventory_with_a_wrong_keyring_is_refused_without_a_traceback(tmp_path, path):
    path.write_text("a: {}")
    inventory = tmp_path / "inventory.py"
    inventory.write_text(f"from quench import keyring\nkeyring.load({str(path)!r})\n")
    done = CliRunner().invoke(main, ["check", str(inventory), "deploys/keys.py"])
    assert f"{path}: a.keys: is not set" in refused(done)


def test_the_hosts_that_check_keys_are_balancers_and_nodes_without_one():
    assert keys_command.holders("inventories/medium.py", ("inventories/group_data",)) == [
        "lb1.example.org",
        "lb2.example.org",
    ]
    assert len(keys_command.holders("inventories/example.py", ("inventories/group_data",))) == 4


def test_an_inventory_where_nobody_checks_keys_is_refused(tmp_path):
    inventory = tmp_path / "none.py"
    inventory.write_text("inference = [('node1', {})]\n")
    done = CliRunner().invoke(main, ["keys", "push", str(inventory)])
    assert "no host checks keys" in refused(done)
    found = json.loads(CliRunner().invoke(main, ["keys", "push", str(inventory), "--json"]).stdout)
    assert (found["ok"], found["hosts"]) == (False, {})
    assert "no host checks keys" in found["reasons"][0]


def results(*operations):
    rows = [{"no_change": [], "success": [], "error": [], **row} for row in operations]
    return json.dumps({"plan": [], "results": {"operations": rows, "totals": {}}})


@pytest.fixture
def pyinfra(tmp_path, monkeypatch):
    """A pyinfra that says this and ends so. Its command line is written down."""

    def make(out="", err="", code=0):
        for name, text in (("out", out), ("err", err)):
            (tmp_path / name).write_text(text)
        program = tmp_path / "pyinfra"
        program.write_text(f'#!/bin/sh\ncd {tmp_path}\necho "$@" >words\ncat out\ncat err >&2\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setattr(keys_command, "pyinfra_command", lambda *words: [str(program), words[0], *words[1]])
        return lambda *words: CliRunner().invoke(main, ["keys", "push", "inventories/medium.py", *words])

    return make


def test_push_runs_pyinfra_for_these_hosts_and_says_what_became_of_each(pyinfra, tmp_path):
    hosts = ["lb1.example.org", "lb2.example.org"]
    push = pyinfra(results({"no_change": hosts[:1], "success": hosts[1:]}, {"no_change": hosts}))
    done = push("--exclude", "x*")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == ["lb1.example.org  unchanged", "lb2.example.org  changed"]
    assert "2 hosts up to date" in done.stdout
    words = (tmp_path / "words").read_text()
    assert words.startswith("inventories/medium.py deploys/keys.py -y --json --limit lb1.example.org --limit lb2")
    assert "--exclude x*" in words
    assert json.loads(push("--json").stdout)["hosts"] == {hosts[0]: "unchanged", hosts[1]: "changed"}


def test_a_push_that_takes_long_says_what_it_may_wait_for(pyinfra, monkeypatch):
    push = pyinfra(results({"success": ["lb1.example.org"]}))
    assert "takes longer" not in push().stderr
    monkeypatch.setattr(keys_command, "_SOON", 0)
    done = push("--json")
    assert "a balancer that was reloaded a moment ago is waited for" in done.stderr
    assert json.loads(done.stdout)["hosts"] == {"lb1.example.org": "changed"}


def test_a_host_that_fails_is_named_and_the_others_have_their_keyring(pyinfra):
    out = results({"success": ["lb2"], "error": ["lb1"]}, {"success": ["lb2"], "error": ["lb1"]})
    push = pyinfra(out, "--> Starting\n    [lb2] Success\n    [lb1] Error: no space left\n", 1)
    done = push()
    assert done.exit_code == 1
    assert done.stdout.splitlines() == ["lb1  failed", "lb2  changed"]
    assert done.stderr.splitlines() == ["[lb1] Error: no space left"]


def test_a_run_that_was_refused_says_why(pyinfra):
    push = pyinfra("", "--> pyinfra error: 1 problem, nothing was changed:\n  lb1: ssh_hostname: is off; start it\n", 1)
    done = push()
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines() == ["lb1: ssh_hostname: is off; start it"]
    found = json.loads(push("--json").stdout)
    assert found["reasons"] == ["lb1: ssh_hostname: is off; start it"]
