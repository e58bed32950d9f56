"""GPUs in containers, and GPUs cut into slices. Real: podman, and CDI as it reads it. Simulated: GPUs, MIG, toolkit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleets import wait
from gpus import provision
from support import MODEL, Node, hosts_of, lab_data, run_pyinfra, write_inventory

from quench.lab.state import HostSpec

SETTINGS: dict[str, Any] = {
    "container_toolkit_engine": "podman",
    "mig_layout": [{"gpus": [0], "slices": {"1g.10gb": 7}}, {"gpus": [1], "slices": {"3g.40gb": 2}}],
}
# A root file system with a shell, from the host's own files. The hosts of the lab have neither a registry nor the
# control groups that a container would get.
_ROOT_FS = """
root=/var/tmp/rootfs
mkdir -p $root/usr/bin $root/usr/lib/x86_64-linux-gnu $root/usr/lib64 $root/dev $root/proc $root/sys
ln -sfn usr/bin $root/bin; ln -sfn usr/lib $root/lib; ln -sfn usr/lib64 $root/lib64
cp -L /bin/sh /bin/sleep $root/usr/bin/; cp -L /lib64/ld-linux-x86-64.so.2 $root/usr/lib64/
cp -L /usr/lib/x86_64-linux-gnu/libc.so.6 $root/usr/lib/x86_64-linux-gnu/
"""
_STORAGE = (
    """'[storage]' 'driver="vfs"' 'runroot="/run/containers/storage"' 'graphroot="/var/lib/containers/storage"'"""
)
_PODMAN = "podman run --cgroups=disabled --network=none --ulimit=host --pids-limit=-1"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    for nodes in hosts_of("test-nvidia", [HostSpec("containers", "debian-13", "8xh100")]):
        node = nodes["containers"]
        # A container's file system cannot be laid over that of the container which the host is.
        node.root(f"mkdir -p /etc/containers; printf '%s\\n' {_STORAGE} >/etc/containers/storage.conf")
        run = provision([node], tmp_path_factory.mktemp("first"), **SETTINGS)
        assert run.code == 0, run.text[-4000:]
        node.root(_ROOT_FS)
        yield node


def test_the_second_run_changes_nothing(node: Node, tmp_path: Path) -> None:
    run = provision([node], tmp_path, "--json", **SETTINGS)
    assert (run.code, run.totals["success"]) == (0, 0), run.text[-3000:]


def test_a_container_has_the_gpus_it_names_and_no_others(node: Node) -> None:
    said = node.root(f"{_PODMAN} --rm --device nvidia.com/gpu=2 --rootfs /var/tmp/rootfs sh -c 'echo /dev/nvidia*'")
    assert said.split() == ["/dev/nvidia-uvm", "/dev/nvidia2", "/dev/nvidiactl"]
    said = node.root(f"{_PODMAN} --rm --rootfs /var/tmp/rootfs sh -c 'echo /dev/nvidia*'")
    assert said == "/dev/nvidia*"


def test_a_daemon_reload_takes_no_gpu_from_a_container(node: Node) -> None:
    loop = "while sleep 0.1; do : </dev/nvidia2 && : </dev/nvidiactl || exit 1; done"
    name = node.root(f"{_PODMAN} --detach --device nvidia.com/gpu=all --rootfs /var/tmp/rootfs sh -c '{loop}'")
    node.root("for i in 1 2 3; do systemctl daemon-reload; sleep 0.5; done")
    state = node.root(f"podman inspect --format '{{{{.State.Status}}}}' {name}")
    node.root(f"podman rm --force --time 0 {name}")
    assert state == "running"


def test_podman_brings_no_interface_and_no_updates_of_its_own(node: Node) -> None:
    assert node.root("systemctl is-enabled podman.socket podman-auto-update.timer; true").split() == ["disabled"] * 2
    assert node.root("systemctl is-active podman.socket podman-auto-update.timer; true").split() == ["inactive"] * 2


def slices(node: Node) -> int:
    return node.root("nvidia-smi -L").count("UUID: MIG-")


def test_the_layout_is_applied_and_containers_see_the_slices(node: Node) -> None:
    assert slices(node) == 9
    listed = node.root("nvidia-ctk cdi list 2>/dev/null").splitlines()
    assert [name for name in listed if name.startswith("nvidia.com/gpu=0:")] == [
        f"nvidia.com/gpu=0:{i}" for i in range(7)
    ]


def test_the_layout_is_there_again_after_a_reboot(node: Node, tmp_path: Path) -> None:
    before = node.root("cut -d' ' -f22 /proc/1/stat")
    node.root("systemctl reboot", check=False)
    assert wait(lambda: node.root("cut -d' ' -f22 /proc/1/stat", check=False) not in ("", before), 60)
    assert wait(lambda: node.root("systemctl is-active multi-user.target", check=False) == "active", 60)
    assert slices(node) == 9
    run = provision([node], tmp_path, "--json", **SETTINGS)
    assert (run.code, run.totals["success"]) == (0, 0), run.text[-3000:]


def test_a_model_is_not_split_over_gpus_that_are_cut(node: Node, tmp_path: Path) -> None:
    model = {**lab_data(node)["vllm_models"][MODEL], "gpus": [0, 2]}
    changes = {**SETTINGS, "vllm_device": "cuda", "vllm_models": {MODEL: model}}
    inventory = write_inventory(tmp_path, {"*": changes}, [node.name])
    run = run_pyinfra(node, "-y", inventory=inventory)
    assert run.code == 1
    line = f"{node.name}: vllm_models.{MODEL}.gpus: names GPU 0, which mig_layout cuts into slices; give it a mig_slice"
    assert line in run.text
    assert "Connected" not in run.text


def test_a_cut_that_nobody_declares_is_refused(node: Node, tmp_path: Path) -> None:
    run = provision([node], tmp_path, **{**SETTINGS, "mig_layout": []})
    assert run.code == 1
    assert f"{node.name}: mig_layout: is empty, and GPU 0 is cut into slices" in run.text
    assert slices(node) == 9


def test_a_gpu_that_the_layout_no_longer_names_is_whole_again(node: Node, tmp_path: Path) -> None:
    run = provision([node], tmp_path, **{**SETTINGS, "mig_layout": SETTINGS["mig_layout"][:1]})
    assert run.code == 0, run.text[-4000:]
    modes = node.root("nvidia-smi --query-gpu=mig.mode.current --format=csv,noheader").split()
    assert (slices(node), modes) == (7, ["Enabled", *["Disabled"] * 7])


def test_every_gpu_can_be_made_whole_again(node: Node, tmp_path: Path) -> None:
    whole = {**SETTINGS, "mig_layout": [{"gpus": "all", "slices": {}}]}
    run = provision([node], tmp_path, **whole)
    assert run.code == 0, run.text[-4000:]
    assert slices(node) == 0
