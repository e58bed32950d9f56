"""vLLM: each engine runs, answers on the loopback address alone, and is shut in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Unit

EXPOSURE = 2.0
_SECONDS = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1,
    "min": 60,
    "h": 3600,
    "d": 86400,
    "w": 604800,
    "month": 2629800,
    "y": 31557600,
}


@dataclass(frozen=True)
class EngineUnit:
    """An engine: its unit, and the arguments that it is started with."""

    unit: Unit
    arguments: dict[str, Any]

    @property
    def environment_file(self) -> str:
        return f"/etc/vllm/{self.arguments['served-model-name']}.env"


@pytest.fixture(scope="module")
def engines(host: Host, unit: Callable[[str], Unit]) -> list[EngineUnit]:
    """All engines that the host is meant to run."""
    paths = host.check_output("find /etc/vllm -name '*.yaml'").split()
    assert paths != []
    return [
        EngineUnit(
            unit(f"vllm@{path.removeprefix('/etc/vllm/').removesuffix('.yaml')}.service"),
            yaml.safe_load(host.file(path).content_string),
        )
        for path in sorted(paths)
    ]


def seconds(text: str) -> float:
    """A time span as `systemctl show` writes it, `5min 30s`."""
    if text == "infinity":
        return float("inf")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([a-z]+)", text))


def test_engines_are_enabled_and_run(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        assert host.service(engine.unit.name).is_enabled
        assert engine.unit.property("ActiveState") == "active", engine.unit.journal()


def test_no_other_engine_is_left_running(host: Host, engines: list[EngineUnit]) -> None:
    listed = host.check_output("systemctl list-units --all --plain --no-legend 'vllm@*.service'").splitlines()
    assert {line.split()[0] for line in listed} == {engine.unit.name for engine in engines}


def test_engines_run_with_their_present_unit_file(engines: list[EngineUnit]) -> None:
    for engine in engines:
        assert engine.unit.property("NeedDaemonReload") == "no", engine.unit.name
        assert engine.unit.property("FragmentPath") == f"/etc/systemd/system/{engine.unit.name}"


def test_engines_answer(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        url = f"http://127.0.0.1:{engine.arguments['port']}"
        assert host.run("curl --fail --silent --max-time 10 %s/health", url).rc == 0, engine.unit.journal()
        models = json.loads(host.check_output("curl --fail --silent --max-time 10 %s/v1/models", url))
        assert [model["id"] for model in models["data"]] == [engine.arguments["served-model-name"]]


def test_engines_listen_on_the_loopback_address_alone(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        port = engine.arguments["port"]
        bound = {line.split()[3] for line in host.check_output("ss -Hltn sport = :%s", str(port)).splitlines()}
        assert bound == {f"127.0.0.1:{port}"}, engine.unit.journal()
        # Workers open ports of their own.
        open_to_all = [at for at in engine.unit.listens_on() if not at.startswith(("127.", "[::1]"))]
        assert open_to_all == [], engine.unit.name


def test_engines_run_as_a_user_without_login(host: Host, engines: list[EngineUnit]) -> None:
    user = host.user("vllm")
    assert user.shell == "/usr/sbin/nologin"
    assert user.password.startswith(("!", "*"))
    for engine in engines:
        assert engine.unit.kernel_says()["Uid"] == " ".join([str(user.uid)] * 4), engine.unit.name


def test_the_kernel_gives_engines_no_privilege(engines: list[EngineUnit]) -> None:
    for engine in engines:
        status = engine.unit.kernel_says()
        found = {key: status[key] for key in ("NoNewPrivs", "CapEff", "CapBnd", "Seccomp")}
        assert found == {"NoNewPrivs": "1", "CapEff": "0" * 16, "CapBnd": "0" * 16, "Seccomp": "2"}, engine.unit.name


def test_engines_are_shut_in(engines: list[EngineUnit]) -> None:
    exposures = {engine.unit.name: engine.unit.exposure() for engine in engines}
    assert max(exposures.values()) <= EXPOSURE, exposures


def test_engines_reach_nothing_but_the_host(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        if "HF_HUB_OFFLINE=0" in host.file(engine.environment_file).content_string.splitlines():
            continue  # relaxed by vllm_hub_access = True
        denied = engine.unit.property("IPAddressDeny").split()
        allowed = engine.unit.property("IPAddressAllow").split()
        assert sorted(denied) == ["0.0.0.0/0", "::/0"], engine.unit.name
        assert sorted(allowed) == ["127.0.0.0/8", "::1/128"], engine.unit.name


def test_engines_leave_no_core_dump(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        limits = host.file(f"/proc/{engine.unit.property('MainPID')}/limits").content_string
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), engine.unit.name


def test_a_stop_lets_answers_come_to_their_end(engines: list[EngineUnit]) -> None:
    for engine in engines:
        # Only the main process is told; systemd must not lose patience before the engine does.
        assert engine.unit.property("KillMode") == "mixed", engine.unit.name
        assert seconds(engine.unit.property("TimeoutStopUSec")) > engine.arguments["shutdown-timeout"]


def test_environment_files_are_for_root_alone(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        file = host.file(engine.environment_file)
        assert (file.mode, file.user, file.group) == (0o600, "root", "root"), file.path
        assert host.run("runuser -u vllm -- test -r %s", file.path).rc == 1


def test_engines_run_from_a_complete_version(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        command = engine.unit.property("ExecStart")
        version = re.search(r"path=(/opt/vllm/[^/]+)/bin/vllm", command)
        assert version, command
        # The hash of the lock file that it was built from.
        assert re.fullmatch(r"[0-9a-f]{64}", host.file(f"{version[1]}/.complete").content_string.strip())
        # What serves installs nothing.
        assert not host.file(f"{version[1]}/bin/pip").exists


def test_models_are_complete(host: Host, engines: list[EngineUnit]) -> None:
    for engine in engines:
        folder = engine.arguments["model"]
        assert host.file(f"{folder}/config.json").exists
        # Their checksums were compared before the folder got its name, and take minutes for a large model.
        sums = host.run("cat %s/SHA256SUMS", folder).stdout.splitlines()
        missing = [
            name for _, name in (line.split("  ", 1) for line in sums) if not host.file(f"{folder}/{name}").exists
        ]
        assert missing == [], folder


def test_engines_cannot_change_code_or_weights(host: Host) -> None:
    writable = r"\( -user vllm -o -group vllm -perm /020 -o -perm /002 \)"
    assert host.check_output(f"find /opt/vllm /srv/models /etc/vllm ! -type l {writable} -print -quit") == ""
