"""The container toolkit: containers get their GPUs by CDI, of the driver that is loaded, and in no other way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Packages, Unit

SPECIFICATION = "/var/run/cdi/nvidia.yaml"
PACKAGE = "nvidia-container-toolkit-base"


@pytest.fixture(scope="module")
def devices(host: Host) -> list[str]:
    """What a container can be given."""
    return str(host.check_output("nvidia-ctk cdi list 2>/dev/null")).splitlines()


def test_all_its_packages_are_of_the_pinned_version(packages: Packages) -> None:
    parts = {name: version for name, version in packages.installed().items() if "nvidia-container" in name}
    assert PACKAGE in parts
    assert parts == {name: packages.pinned(PACKAGE) for name in parts}


def test_a_container_can_be_given_all_gpus_and_each_by_itself(host: Host, devices: list[str]) -> None:
    rows = host.check_output("nvidia-smi --query-gpu=index,mig.mode.current --format=csv,noheader").splitlines()
    whole = [index for index, _, mode in (row.partition(", ") for row in rows) if mode != "Enabled"]
    assert {"nvidia.com/gpu=all", *(f"nvidia.com/gpu={index}" for index in whole)} <= set(devices)


def test_no_device_is_there_twice(devices: list[str]) -> None:
    # As with a specification that an older guide has left in /etc/cdi.
    assert sorted(devices) == sorted(set(devices))


def test_every_slice_can_be_given_to_a_container(host: Host, devices: list[str]) -> None:
    slices = re.findall(r"UUID: (MIG-\S+)\)", host.check_output("nvidia-smi -L"))
    if not slices:
        pytest.skip("no GPU of this host is cut")
    # INDEX:NUMBER. The specification does not follow a new layout by itself.
    assert len([name for name in devices if re.fullmatch(r"nvidia\.com/gpu=\d+:\d+", name)]) == len(slices)


def test_the_specification_is_of_the_loaded_driver(host: Host) -> None:
    loaded = host.file("/sys/module/nvidia/version").content_string.strip()
    assert loaded in host.file(SPECIFICATION).content_string


def test_the_specification_follows_a_new_driver(host: Host, unit: Callable[[str], Unit]) -> None:
    path = unit("nvidia-cdi-refresh.path")
    assert host.service(path.name).is_enabled
    assert path.property("ActiveState") == "active", path.journal()


def test_nothing_of_the_older_hook_is_left(host: Host) -> None:
    # What it gives to a container is lost with the next `systemctl daemon-reload`.
    assert not host.exists("nvidia-container-runtime-hook")
    for path in ("/etc/cdi/nvidia.yaml", "/usr/share/containers/oci/hooks.d/oci-nvidia-hook.json"):
        assert not host.file(path).exists, path


def test_docker_has_cdi_and_no_runtime_of_nvidia(host: Host, manifests: dict[str, dict[str, Entry]]) -> None:
    if "/etc/docker/daemon.json" not in manifests["container_toolkit"]:
        pytest.skip("the engine of this host is not docker")
    settings = json.loads(host.file("/etc/docker/daemon.json").content_string)
    assert settings["features"]["cdi"] is True
    assert {"runtimes", "default-runtime"} & set(settings) == set()
    assert "nvidia" not in host.check_output("docker info --format '{{json .Runtimes}}'")


def test_an_old_podman_gets_a_specification_that_it_can_read(host: Host) -> None:
    if not host.exists("podman"):
        pytest.skip("the engine of this host is not podman")
    number = re.findall(r"\d+", host.check_output("podman --version"))
    if (int(number[0]), int(number[1])) >= (5, 1):
        pytest.skip("this podman knows all of CDI 0.7")
    # container-toolkit, release notes of 1.19.1, known issues.
    assert "additionalGids" not in host.file(SPECIFICATION).content_string
    environment = host.file("/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env").content_string
    flags = re.findall(r"^NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS=(.*)$", environment, re.MULTILINE)
    assert flags == ["no-additional-gids-for-device-nodes"]


def test_the_signature_of_the_repository_is_checked_with_a_key_that_is_there(
    host: Host, packages: Packages, manifests: dict[str, dict[str, Entry]]
) -> None:
    suffix = ".repo" if packages.manager == "dnf" else ".sources"
    (path,) = [path for path in manifests["container_toolkit-sources"] if path.endswith(suffix)]
    text = host.file(path).content_string
    values = dict(re.findall(r"^([\w-]+)(?:=|: )(.*)$", text, re.MULTILINE))
    if packages.manager == "dnf":
        assert (values["gpgcheck"], values["repo_gpgcheck"]) == ("1", "1")
        key = values["gpgkey"].removeprefix("file://")
    else:
        # sources.list(5): either of them switches checks off.
        assert {"Trusted", "Allow-Insecure"} & set(values) == set()
        key = values["Signed-By"]
    assert host.file(key).size > 0
