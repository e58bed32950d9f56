"""DCGM: the host engine of the pinned version runs in its sandbox, and nobody but this host reaches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Packages, Unit

# capabilities(7), by number: what the unit says, and no more.
CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID, IPC_LOCK, SYS_ADMIN, SYS_NICE = 0, 1, 3, 6, 7, 14, 21, 23
CAPABILITIES = sum(1 << n for n in (CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID, IPC_LOCK, SYS_ADMIN, SYS_NICE))


@pytest.fixture(scope="module")
def engine(unit: Callable[[str], Unit]) -> Unit:
    return unit("nvidia-dcgm.service")


@pytest.fixture(scope="module")
def words(engine: Unit) -> list[str]:
    """The command line of the host engine."""
    return engine.property("ExecStart").partition("argv[]=")[2].partition(" ;")[0].split()


def test_it_is_enabled_and_runs(host: Host, engine: Unit) -> None:
    assert host.service(engine.name).is_enabled
    assert engine.property("ActiveState") == "active", engine.journal()


def test_it_runs_with_its_present_unit_file(engine: Unit) -> None:
    assert engine.property("NeedDaemonReload") == "no"
    assert engine.property("FragmentPath") == f"/etc/systemd/system/{engine.name}"


def test_it_listens_on_the_loopback_address_alone(engine: Unit, words: list[str]) -> None:
    port = words[words.index("-p") + 1]
    assert engine.listens_on() == {f"127.0.0.1:{port}"}, engine.journal()


def test_the_kernel_drops_what_comes_from_elsewhere(engine: Unit) -> None:
    assert sorted(engine.property("IPAddressDeny").split()) == ["0.0.0.0/0", "::/0"]
    assert sorted(engine.property("IPAddressAllow").split()) == ["127.0.0.0/8", "::1/128"]


def test_it_has_an_account_without_login_for_what_needs_no_privilege(host: Host, words: list[str]) -> None:
    user = host.user(words[words.index("--service-account") + 1])
    assert user.exists
    assert user.uid != 0
    assert user.shell.endswith(("/nologin", "/false"))


def test_the_kernel_gives_it_no_more_than_it_needs(engine: Unit) -> None:
    status = engine.kernel_says()
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapBnd"], 16) & ~CAPABILITIES == 0


def test_it_is_shut_in(engine: Unit) -> None:
    wanted = {"ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "RestrictSUIDSGID": "yes"}
    assert {name: engine.property(name) for name in wanted} == wanted


def test_it_comes_back_after_a_failure(engine: Unit) -> None:
    assert engine.property("Restart") == "always"


def test_all_its_packages_are_of_the_pinned_version(packages: Packages) -> None:
    parts = {
        name: version for name, version in packages.installed().items() if name.startswith("datacenter-gpu-manager-4")
    }
    assert "datacenter-gpu-manager-4-core" in parts
    assert parts == {name: packages.pinned("datacenter-gpu-manager-4-core") for name in parts}


def test_the_parts_for_profiling_counters_are_there(packages: Packages) -> None:
    # Recommendations of the core, which Quench does not install by themselves.
    assert "datacenter-gpu-manager-4-proprietary" in packages.installed()


def test_the_former_dcgm_is_not_there_beside_it(host: Host) -> None:
    assert not host.package("datacenter-gpu-manager").is_installed
