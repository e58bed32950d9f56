"""The checks of tests/host, on balancers and on nodes behind them. The engine is the stand-in; all else is real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fleets import Fleet, all_up
from support import CHECKOUT, environment

from quench.lab import fleet as labs

BALANCER = ("haproxy", "keepalived", "base", "firewall", "hardening", "logrotate", "drift")
NODE = ("nginx", "vllm", "base", "firewall", "hardening", "logrotate", "drift")


def checked(fleet: Fleet, folder: Path, host: str, roles: tuple[str, ...]) -> str:
    """What pytest says of a host, over SSH as an ordinary user with sudo."""
    config = folder / "ssh_config"
    config.write_text(labs.ssh_config(fleet.nodes[0].lab))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(f"tests/host/test_{role}.py" for role in roles), "--sudo",
         f"--hosts=ssh://{host}", f"--ssh-config={config}"],
        cwd=CHECKOUT, env=environment(fleet.nodes[0]), capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    # pytest ends with 0 as well if all is skipped.
    assert " passed" in done.stdout.splitlines()[-1]
    return done.stdout


@pytest.mark.parametrize("number", [0, 1], ids=["debian-12", "debian-13"])
def test_the_host_checks_pass_on_a_balancer(fleet: Fleet, tmp_path: Path, number: int) -> None:
    assert all_up(fleet)
    said = checked(fleet, tmp_path, fleet.balancers[number].name, BALANCER)
    assert "no run has brought the role" not in said


@pytest.mark.parametrize("number", [0, 1], ids=["debian-12", "debian-13"])
def test_the_host_checks_pass_on_a_node_behind_balancers(fleet: Fleet, tmp_path: Path, number: int) -> None:
    said = checked(fleet, tmp_path, fleet.nodes[number].name, NODE)
    assert "no run has brought the role" not in said
    # It has no keyring to look at, and is looked at as what it is.
    assert "behind balancers, who have the keyring" in said
    assert "no balancer in front of this host" not in said
