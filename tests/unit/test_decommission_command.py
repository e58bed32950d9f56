"""`quench decommission`, as a person types it, and its report."""

import json

import pytest
from click.testing import CliRunner

from quench import cli, decommission_command
from quench.cli import main
from quench.decommission import Found, Result
from quench.decommission_command import told
from quench.problems import Refused

GOODS = [
    Found("unit", "nginx.service", "active"),
    Found("unit", "vllm@llama.service", "active"),
    Found("secret", "/etc/nginx/quench/tls.key", size=227),
    Found("data", "/srv/models", files=3, size=140_200_000_000),
]


def result(**changes):
    values = {"outcome": "done", "seconds": 12.0, "stopped": ["nginx.service"], "removed": GOODS[2:]}
    return Result("node3", **(values | changes))


def test_the_report_is_for_people(tmp_path):
    lines = list(told(result(stays=["logs"], todo=["take it out"], trimmed=["/"])))
    assert lines == [
        "node3 is decommissioned, 12 s",
        "  stopped  nginx.service",
        "  removed  /etc/nginx/quench/tls.key (227 B)",
        "  removed  /srv/models (3 files, 140.2 GB)",
        "  trimmed  /: the disk was told which blocks are free",
        "  stays    logs",
        "  to do    take it out",
    ]


class FakeWork:
    """A decommission that asks for confirmation, and is done."""

    def __init__(self, confirm):
        self.confirm = confirm

    def run(self, *, take_over):
        if not self.confirm(GOODS):
            raise Refused([])
        return result()


@pytest.fixture
def command(monkeypatch):
    """`quench decommission prod.py node3`, as a person types it, without a fleet."""
    monkeypatch.setattr(decommission_command, "prepare", lambda *words, confirm, **options: FakeWork(confirm))

    def run(*words, typed=None):
        if typed is not None:
            monkeypatch.setattr(cli, "_terminal", lambda: True)
        return CliRunner().invoke(main, ["decommission", "prod.py", "node3", *words], input=typed)

    return run


def test_without_a_terminal_and_without_yes_it_is_refused(command):
    done = command()
    assert done.exit_code == 1
    assert (
        "node3: confirmation: nobody is there to confirm this: standard input is no terminal; say --yes" in done.output
    )
    assert "is decommissioned" not in done.output


def test_the_name_of_the_node_is_asked_for(command):
    done = command(typed="node3\n")
    assert done.exit_code == 0
    assert "secret    /etc/nginx/quench/tls.key (227 B)" in done.stderr
    assert "node3 leaves its fleet, and loses all of this. This cannot be undone." in done.stderr
    assert done.stdout.startswith("node3 is decommissioned")


@pytest.mark.parametrize("typed", ["node2\n", "y\n", "\n", ""])
def test_another_name_is_none(command, typed):
    done = command(typed=typed)
    assert done.exit_code == 1
    assert "is decommissioned" not in done.output
    assert "Traceback" not in done.output


def test_one_object_of_json_and_nothing_else_on_stdout(command):
    done = command("--yes", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["removed"][0] == {
        "kind": "secret", "name": "/etc/nginx/quench/tls.key", "detail": "", "files": 0, "size": 227,
    }  # fmt: skip


def test_a_refusal_is_json_too(command):
    done = command("--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["outcome"] == "refused"
