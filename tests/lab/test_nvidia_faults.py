"""What goes wrong with drivers: each is refused with a clear line, or made good, and nothing stays half done.

Simulated: GPUs, driver, firmware and RHEL. Real: apt, dnf, DKMS, signatures, file systems, SSH.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleets import wait
from gpus import GPU_DEPLOY, NEW, OLD, bare_again, cuda, driver_versions, family, loaded, provision
from support import Node, hosts_of, lab_data, pyinfra_command, write_inventory
from test_interrupted import kill_command

from quench import openpgp
from quench.facts import REBOOT_UNIT
from quench.lab.state import HostSpec

DEB, RPM = "debian-13", "rhel-9"
PLATFORMS = [DEB, RPM]
FAULTS = "/etc/quench-lab/faults"


@pytest.fixture(scope="module")
def lab() -> Iterator[dict[str, Node]]:
    """Bare hosts with two L4, and one with an HGX board."""
    specs = [HostSpec(f"{platform}-{use}", platform, "2xl4") for platform in PLATFORMS for use in ("served", "bare")]
    yield from hosts_of("test-nvidia", [*specs, HostSpec("hgx", "debian-12", "8xh100")])


@pytest.fixture(scope="module")
def served(lab: dict[str, Node], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Node]:
    """Hosts that a first run has brought up; faults come between that and the next run."""
    nodes = {name: node for name, node in lab.items() if not name.endswith("bare")}
    run = provision(list(nodes.values()), tmp_path_factory.mktemp("first"))
    assert run.code == 0, run.text[-6000:]
    return nodes


def repository(node: Node) -> str:
    """The file of NVIDIA's repository, or an empty text."""
    return node.root("ls /etc/apt/sources.list.d/quench-nvidia.* /etc/yum.repos.d/quench-nvidia.* 2>/dev/null; true")


@contextmanager
def fault(node: Node, inject: str, undo: str) -> Iterator[None]:
    """Something is wrong with a host, for a while: commands that bring it about and undo it."""
    try:
        node.root(inject)
        yield
    finally:
        node.root(undo)


def answers(node: Node) -> bool:
    """Whether somebody listens on the host's SSH port."""
    try:
        socket.create_connection((node.address, 22), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(params=PLATFORMS)
def bare(request: pytest.FixtureRequest, lab: dict[str, Node]) -> Iterator[Node]:
    """A host to which no run has brought anything, before the test and after it."""
    node = lab[f"{request.param}-bare"]
    assert family(node) == {}
    yield node
    assert family(node) == {}, "something of the driver was installed"


def heals(node: Node, folder: Path) -> None:
    """A run without the fault ends with a host that computes."""
    run = provision([node], folder / "healed")
    assert run.code == 0, run.text[-4000:]
    assert (driver_versions(node), loaded(node), cuda(node)) == ({OLD}, OLD, "0 2")


# --- before anything changes -----------------------------------------------------------------------------------


def test_secure_boot_with_a_key_that_is_not_enrolled_is_refused(bare: Node, tmp_path: Path) -> None:
    switch, show = f"{FAULTS}/secure-boot", "systemctl reload quench-lab-gpus"
    with fault(bare, f"mkdir -p {FAULTS} && touch {switch} && {show}", f"rm -f {switch} && {show}"):
        run = provision([bare], tmp_path)
    assert run.code == 1
    assert f"{bare.name}: nvidia_driver_version: Secure Boot is on" in run.text
    assert "mokutil --import" in run.text
    assert "nothing was changed" in run.text
    assert bare.root("ls /var/lib/quench 2>/dev/null; true") == ""


def test_a_host_without_room_is_refused(bare: Node, tmp_path: Path) -> None:
    folder = "/var/cache/apt/archives" if bare.name.startswith("debian") else "/var/cache/dnf"
    with fault(bare, f"mkdir -p {folder} && mount -t tmpfs -o size=20m tmpfs {folder}", f"umount {folder}"):
        run = provision([bare], tmp_path)
    assert run.code == 1
    assert f"{bare.name}: nvidia_driver_version: {folder} has 20 MiB free" in run.text


def test_leftovers_of_other_ways_to_install_a_driver_are_refused_together(bare: Node, tmp_path: Path) -> None:
    debian = bare.name.startswith("debian")
    folder, kind = ("/etc/apt/sources.list.d", "sources") if debian else ("/etc/yum.repos.d", "repo")
    off = "Enabled: no" if debian else "enabled=0"
    source = "https://developer.download.nvidia.com/compute"
    left = f"touch /usr/bin/nvidia-uninstall; echo 'baseurl={source}' >{folder}/cuda-old.{kind}"
    # Neither a comment nor a source that is off is in the way.
    harmless = f"echo '# {source}' >{folder}/a.{kind}; printf '%s\\n' '{off}' 'baseurl={source}' >{folder}/b.{kind}"
    undo = f"rm -f /usr/bin/nvidia-uninstall {folder}/cuda-old.{kind} {folder}/a.{kind} {folder}/b.{kind}"
    with fault(bare, f"{left}; {harmless}", undo):
        run = provision([bare], tmp_path)
    assert run.code == 1
    assert "2 problems, nothing was changed" in run.text
    assert "remove it: /usr/bin/nvidia-uninstall --silent" in run.text
    assert f"{folder}/cuda-old.{kind} is another source of the same packages" in run.text


def test_a_repository_signed_by_somebody_else_is_refused(bare: Node, tmp_path: Path) -> None:
    other = str(Path(lab_data(bare)["nvidia_driver_repository_key"]).with_name("other-key.asc"))
    fingerprint = openpgp.fingerprint(Path(other).read_text())
    # The key is not the one that is expected: said without a connection.
    run = provision([bare], tmp_path / "offline", nvidia_driver_repository_key=other)
    assert run.code == 1
    assert f"is the key {fingerprint}" in run.text
    assert "Connected" not in run.text
    # It is what the operator expects, and the repository is signed with another.
    keys = {"nvidia_driver_repository_key": other, "nvidia_driver_repository_fingerprint": fingerprint}
    run = provision([bare], tmp_path, **keys)
    assert run.code == 1
    assert "a repository's signature could not be verified" in run.text
    # It would fail whatever else asks the repositories.
    assert repository(bare) == ""
    bare.root("apt-get -q update" if bare.name.startswith("debian") else "dnf -q makecache")


def test_headers_that_the_mirror_no_longer_has_are_named(bare: Node, tmp_path: Path) -> None:
    folder, kind = (
        ("/etc/apt/sources.list.d", "sources") if bare.name.startswith("debian") else ("/etc/yum.repos.d", "repo")
    )
    away = f"for file in {folder}/*archive.{kind}; do mv $file $file.off; done"
    with fault(bare, away, f"for file in {folder}/*archive.{kind}.off; do mv $file ${{file%.off}}; done"):
        run = provision([bare], tmp_path)
    assert run.code == 1
    assert "no repository of this host has: " in run.text
    assert bare.root("uname -r") in run.text
    assert "nothing was installed" in run.text
    # Nothing but the next run is to bring what was refused.
    assert repository(bare) == ""


# --- on the way ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_module_that_does_not_build_brings_the_former_set_back(
    served: dict[str, Node], platform: str, tmp_path: Path
) -> None:
    node = served[f"{platform}-served"]
    with fault(node, f"mkdir -p {FAULTS} && echo {NEW} >{FAULTS}/dkms-build", f"rm -f {FAULTS}/dkms-build"):
        run = provision([node], tmp_path, nvidia_driver_version=NEW)
    assert run.code == 1
    assert f"should be {NEW}" in run.text
    assert "the former packages are back" in run.text
    # The set that worked is whole, loaded, built for the kernel, and computes.
    assert (driver_versions(node), loaded(node), cuda(node)) == ({OLD}, OLD, "0 2")
    assert node.root("modinfo -F version nvidia") == OLD
    heals(node, tmp_path)


def test_a_fabric_manager_one_version_off_is_brought_back(served: dict[str, Node], tmp_path: Path) -> None:
    node = served["hgx"]
    node.root(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y --allow-downgrades install nvidia-fabricmanager=580.126.20-1 "
        ">/dev/null; systemctl restart nvidia-fabricmanager || true"
    )
    assert cuda(node).startswith("802")
    run = provision([node], tmp_path)
    assert run.code == 0, run.text[-4000:]
    assert (driver_versions(node), cuda(node)) == ({OLD}, "0 8")


def test_a_run_that_is_killed_while_the_driver_is_installed_is_made_good_by_the_next(
    lab: dict[str, Node], tmp_path: Path
) -> None:
    node = lab[f"{RPM}-bare"]
    inventory = write_inventory(tmp_path, {"*": {}}, [node.name])
    command = pyinfra_command(inventory, "-y", deploy=GPU_DEPLOY)
    # Packages are on their way: dnf is at a transaction, and at no question.
    transaction = "pgrep -f 'bin/dnf .*--allowerasin[g]'"
    assert kill_command(node, command, 2, begun_there=lambda: node.root(transaction, check=False) != "")
    assert loaded(node) == ""
    heals(node, tmp_path)


def test_a_run_that_is_killed_at_the_reboot_is_made_good_once_the_host_is_back(
    lab: dict[str, Node], tmp_path: Path
) -> None:
    node = bare_again(lab[f"{RPM}-bare"])
    inventory = write_inventory(tmp_path, {"*": {}}, [node.name])
    boot = f"systemctl is-active {REBOOT_UNIT}.timer; cut -d' ' -f22 /proc/1/stat"
    before = node.root(boot, check=False)
    command = pyinfra_command(inventory, "-y", deploy=GPU_DEPLOY)
    # The one before: pyinfra calls the reboot itself a serial operation. Then its timer runs, or the host is on its way
    # down, or in its next boot.
    operation = "nvidia_driver | Rebuild the initramfs"
    assert kill_command(node, command, operation, begun_there=lambda: node.root(boot, check=False) != before)
    # At once: the host still answers, or goes down in the midst of the run, or is down.
    deadline = time.monotonic() + 60
    run = provision([node], tmp_path / "at-once")
    while run.code != 0 and time.monotonic() < deadline:
        assert "internal exception" not in run.text and "Traceback" not in run.text
        run = provision([node], tmp_path / "again")
    heals(node, tmp_path)


def test_secure_boot_with_a_key_that_is_enrolled_is_no_obstacle(lab: dict[str, Node], tmp_path: Path) -> None:
    node = bare_again(lab[f"{DEB}-bare"])
    node.root(f"mkdir -p {FAULTS} && touch {FAULTS}/secure-boot && systemctl reload quench-lab-gpus")
    # What the person at the console does.
    node.root(
        "mkdir -p /var/lib/dkms && openssl req -new -x509 -newkey rsa:2048 -nodes -subj /CN=mok -days 30 -outform DER "
        "-keyout /var/lib/dkms/mok.key -out /var/lib/dkms/mok.pub 2>/dev/null && "
        "quench-lab-enroll-mok /var/lib/dkms/mok.pub"
    )
    heals(node, tmp_path)


def test_a_host_that_is_lost_at_its_reboot_keeps_others_from_theirs_and_heals(
    lab: dict[str, Node], tmp_path: Path
) -> None:
    pair = [bare_again(lab[f"{platform}-bare"]) for platform in PLATFORMS]
    for node in pair:
        # nouveau has these GPUs, so that a reboot is needed.
        assert node.root("ls -d /sys/module/nouveau") == "/sys/module/nouveau"
    run = provision(pair, tmp_path / "never", nvidia_driver_reboot="never")
    assert run.code == 1
    for node in pair:
        assert f"{node.name}: nvidia_driver_reboot: a reboot is pending: nouveau has the GPUs" in run.text
        assert (driver_versions(node), loaded(node)) == ({OLD}, "")

    try:
        for node in pair:
            node.root(f"mkdir -p {FAULTS} && touch {FAULTS}/reboot-lost")
        run = provision(pair, tmp_path / "lost", nvidia_driver_reboot_seconds=20)
    finally:
        for node in pair:
            node.root(f"rm -f {FAULTS}/reboot-lost; systemctl start ssh")
    assert run.code == 1
    said = {node.name: [line for line in run.text.splitlines() if f"[{node.name}]" in line] for node in pair}
    lost = [name for name, lines in said.items() if "not back after 20 s" in "".join(lines)]
    spared = [name for name, lines in said.items() if "did not come back; see to that one first" in "".join(lines)]
    assert sorted([*lost, *spared]) == sorted(said), run.text[-3000:]
    assert len(lost) == 1

    assert wait(lambda: all(answers(node) for node in pair), 60)
    healed = provision(pair, tmp_path / "healed")
    assert healed.code == 0, healed.text[-4000:]
    assert [cuda(node) for node in pair] == ["0 2", "0 2"]
