"""The NVIDIA driver: modules, libraries and fabric are of one pinned version, in use, and stay so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

from roles.nvidia_driver.compatibility import gpu_of, tells_fabric_state

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Packages, Unit

Manifests = dict[str, dict[str, "Entry"]]

FABRIC_MANAGER = "nvidia-fabricmanager"
# PCI classes: VGA and 3D controllers are GPUs, other bridges are NVSwitches. pci.ids
GPU, NVSWITCH = ("0x0300", "0x0302"), "0x0680"
# What a CUDA program does first. cuda.h: 100 no device, 802 fabric not up, 803 module and library differ.
CUDA = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
count = ctypes.c_int()
print(cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)), count.value)
"""
# Where NVIDIA, and those who pack its driver anew, have their packages.
FOREIGN = (
    "download[.]nvidia[.]com|nvidia[.]github[.]io|graphics-drivers|negativo17|nonfree-nvidia"
    "|file:/+var/nvidia-driver-local-repo-"
)


@pytest.fixture(scope="module")
def version(packages: Packages) -> str:
    """The version that the host is pinned to."""
    pinned = packages.pinned("nvidia-persistenced")
    assert pinned is not None, packages.pins
    return pinned


@pytest.fixture(scope="module")
def devices(host: Host) -> list[tuple[str, str]]:
    """PCI class and device id of each of NVIDIA's devices."""
    each = 'echo "$(cat $device/class) $(cat $device/device)"'
    rows = host.check_output(
        f"cd /sys/bus/pci/devices && grep -lx 0x10de */vendor | cut -d/ -f1 | while read -r device; do {each}; done"
    ).splitlines()
    return [(kind, device) for kind, device in (row.split() for row in rows)]


@pytest.fixture(scope="module")
def models(devices: list[tuple[str, str]]) -> Counter[str]:
    """Number of GPUs on the PCI bus, by the names of the table."""
    return Counter(gpu_of(device.removeprefix("0x")) or device for kind, device in devices if kind.startswith(GPU))


@pytest.fixture(scope="module")
def gpus(models: Counter[str]) -> int:
    """Number of GPUs on the PCI bus."""
    return models.total()


@pytest.fixture(scope="module")
def smi(host: Host) -> Callable[[str], list[str]]:
    """What nvidia-smi says of each GPU."""

    def ask(fields: str) -> list[str]:
        return str(host.check_output("nvidia-smi --query-gpu=%s --format=csv,noheader", fields)).splitlines()

    return ask


@pytest.fixture(scope="module")
def fabric(packages: Packages) -> None:
    if FABRIC_MANAGER not in packages.installed():
        pytest.skip("no switches between the GPUs of this host")


@pytest.fixture(scope="module")
def repository(host: Host, packages: Packages, manifests: Manifests) -> dict[str, str]:
    """The one section of the repository's file, by its keys."""
    suffix = ".repo" if packages.manager == "dnf" else ".sources"
    (path,) = [path for path in manifests["nvidia_driver-sources"] if path.endswith(suffix)]
    return dict(re.findall(r"^([\w-]+)(?:=|: )(.*)$", host.file(path).content_string, re.MULTILINE))


def test_the_loaded_module_is_of_the_pinned_version(host: Host, version: str) -> None:
    assert host.file("/sys/module/nvidia/version").content_string.strip() == version


def test_the_module_for_unified_memory_is_loaded_too(host: Host) -> None:
    assert host.file("/sys/module/nvidia_uvm").exists


@pytest.mark.parametrize("library", ["libcuda.so", "libnvidia-ml.so"])
def test_each_library_is_of_the_pinned_version(host: Host, version: str, library: str) -> None:
    paths = re.findall(rf"=> (\S+/{re.escape(library)}\.1)$", host.check_output("ldconfig -p"), re.MULTILINE)
    assert paths != []
    # The file behind the link bears the version: libcuda.so.580.95.05.
    assert {host.check_output("basename $(readlink -f %s)", path) for path in paths} == {f"{library}.{version}"}


def test_every_installed_package_is_of_its_pinned_version(packages: Packages) -> None:
    installed = packages.installed()
    assert installed != {}
    assert installed == {name: packages.pinned(name) for name in installed}


def test_the_package_manager_would_choose_no_other_version(packages: Packages) -> None:
    installed = packages.installed()
    assert {name: packages.choice(name) for name in installed} == installed


def test_an_upgrade_of_the_host_moves_nothing_of_the_driver(packages: Packages) -> None:
    assert packages.would_move() == []


@pytest.fixture(scope="module")
def on_disk(host: Host) -> Callable[[str], str]:
    """Version of the module that a kernel would load."""
    # Debian's own packages name its file nvidia-current.
    command = "modinfo -k %s -F version nvidia || modinfo -k %s -F version nvidia-current"
    return lambda kernel: str(host.run(command, kernel, kernel).stdout.strip())


def test_the_module_on_the_disk_is_of_the_pinned_version_for_this_kernel_and_the_next(
    host: Host, version: str, on_disk: Callable[[str], str]
) -> None:
    newest = "grubby --default-kernel 2>/dev/null || ls -1 /boot/vmlinuz-* | sort -V | tail -n 1"
    following = host.check_output(newest).strip().rpartition("/vmlinuz-")[2]
    assert following != ""
    found = {kernel: on_disk(kernel) for kernel in (host.check_output("uname -r"), following)}
    assert set(found.values()) == {version}, found


def test_no_reboot_is_pending(host: Host, packages: Packages, on_disk: Callable[[str], str]) -> None:
    loaded = host.file("/sys/module/nvidia/version").content_string.strip()
    assert loaded == on_disk(host.check_output("uname -r"))
    # Written by packages of Debian and Ubuntu.
    waiting = host.run("cat /run/reboot-required.pkgs").stdout.split()
    assert [name for name in waiting if packages.pinned(name)] == []


def test_nouveau_is_not_loaded_and_may_not_be(host: Host) -> None:
    assert not host.file("/sys/module/nouveau").exists
    # The configuration in force, whichever file it comes from.
    assert "blacklist nouveau" in host.check_output("modprobe --showconfig").splitlines()


def test_the_initramfs_has_the_present_module_options(host: Host) -> None:
    options = host.check_output("sha256sum </etc/modprobe.d/quench-nvidia.conf")
    assert host.file("/var/lib/quench/converged/initramfs").content_string.strip() == options


def test_nvidia_smi_sees_every_gpu_with_the_pinned_driver(
    smi: Callable[[str], list[str]], gpus: int, version: str
) -> None:
    assert gpus > 0
    assert smi("driver_version") == [version] * gpus


def test_cuda_starts_and_sees_every_gpu(host: Host, smi: Callable[[str], list[str]], gpus: int) -> None:
    error, count = host.check_output("python3 -c %s", CUDA).split()
    assert error == "0"
    # MIG User Guide, CUDA Device Enumeration: where GPUs are cut, a program does not see all there is.
    assert int(count) == gpus or ("Enabled" in smi("mig.mode.current") and int(count) > 0)


def test_the_fabric_manager_is_there_if_there_are_switches(devices: list[tuple[str, str]], packages: Packages) -> None:
    # Those of boards with fifth-generation NVLink are not on the PCI bus.
    if not [kind for kind, _ in devices if kind.startswith(NVSWITCH)]:
        pytest.skip("no NVSwitch on the PCI bus")
    assert FABRIC_MANAGER in packages.installed()


@pytest.mark.usefixtures("fabric")
def test_the_fabric_manager_is_of_the_pinned_version(host: Host, version: str) -> None:
    says = host.run("nv-fabricmanager --version")
    assert re.search(r"version is *: *([\d.]+)", says.stdout + says.stderr)[1] == version  # type: ignore[index]


@pytest.mark.usefixtures("fabric")
def test_the_fabric_manager_is_enabled_and_runs(host: Host, unit: Callable[[str], Unit]) -> None:
    manager = unit(f"{FABRIC_MANAGER}.service")
    assert host.service(manager.name).is_enabled
    assert manager.property("ActiveState") == "active", manager.journal()


@pytest.mark.usefixtures("fabric")
def test_the_fabric_is_up_on_every_gpu(
    smi: Callable[[str], list[str]], models: Counter[str], unit: Callable[[str], Unit]
) -> None:
    # nvml.h, nvmlDeviceGetGpuFabricInfo: Hopper and newer. Of an older one's fabric, CUDA's start tells.
    wanted = "Completed, Success" if tells_fabric_state(models) else "[N/A], [N/A]"
    states = smi("fabric.state,fabric.status")
    assert states == [wanted] * models.total(), unit(f"{FABRIC_MANAGER}.service").journal()


def test_persistence_is_on_for_every_gpu(
    host: Host, unit: Callable[[str], Unit], smi: Callable[[str], list[str]], gpus: int
) -> None:
    daemon = unit("nvidia-persistenced.service")
    assert host.service(daemon.name).is_enabled
    assert daemon.property("ActiveState") == "active", daemon.journal()
    words = daemon.property("ExecStart").split()
    assert "--persistence-mode" in words
    assert "--no-persistence-mode" not in words
    assert smi("persistence_mode") == ["Enabled"] * gpus


def test_the_signature_of_the_repository_is_checked_with_a_key_that_is_there(
    host: Host, packages: Packages, repository: dict[str, str]
) -> None:
    if packages.manager == "dnf":
        assert (repository["gpgcheck"], repository["repo_gpgcheck"]) == ("1", "1")
        key = repository["gpgkey"].removeprefix("file://")
    else:
        # sources.list(5): either of them switches checks off.
        assert {"Trusted", "Allow-Insecure"} & set(repository) == set()
        key = repository["Signed-By"]
    file = host.file(key)
    assert file.size > 0
    assert (file.user, file.mode & 0o022) == ("root", 0)


def test_packages_come_from_no_other_source(host: Host, packages: Packages, repository: dict[str, str]) -> None:
    own = [name for name in packages.installed() if "container" not in name]
    if packages.manager == "dnf":
        offered = host.check_output(rf"dnf -q repoquery --qf '%{{repoid}}\n' {' '.join(own)}").split()
        assert set(offered) == {"quench-nvidia"}
    else:
        # Priority 1001 is the pin's; what a source offers below 0 is never installed.
        offered = re.findall(
            r"^ +(\d+) (http\S+)", host.check_output(f"apt-cache policy {' '.join(own)}"), re.MULTILINE
        )
        assert {url for priority, url in offered if int(priority) > 0} == {repository["URIs"]}


def test_no_other_repository_of_nvidia_packages_is_set_up(host: Host) -> None:
    folders = "/etc/apt/sources.list /etc/apt/sources.list.d /etc/yum.repos.d"
    found = host.run(f"grep -rlE '^[^#]*({FOREIGN})' {folders}").stdout.split()
    assert [path for path in found if not path.rpartition("/")[2].startswith("quench-")] == []


def test_no_driver_of_the_run_installer_is_there(host: Host) -> None:
    # It brings files that no package manager knows of.
    assert not host.file("/usr/bin/nvidia-uninstall").exists
