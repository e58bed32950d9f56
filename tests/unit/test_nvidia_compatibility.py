import re
from pathlib import Path

import pytest

from roles.nvidia_driver import compatibility
from roles.nvidia_driver.compatibility import Release, driver_set, gpu_of, impossible, table

PCI_IDS = [Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids")]


def only(found):
    (problem,) = found
    return problem


def sections():
    rows = table()
    yield from rows.sets.items()
    yield from rows.branches.items()
    yield from rows.architectures.items()
    yield from rows.gpus.items()
    yield from rows.fabrics.items()
    for source, names in rows.packages.items():
        yield from ((f"{source}, until {row.until}", row) for row in names)


def test_every_row_says_where_it_is_from():
    rows = list(sections())
    assert rows != []
    assert [name for name, row in rows if not row.source.strip()] == []


def test_every_set_is_of_a_branch_and_every_gpu_of_an_architecture_that_the_table_has():
    rows = table()
    assert {int(version.split(".")[0]) for version in rows.sets} <= set(rows.branches)
    assert {gpu.architecture for gpu in rows.gpus.values()} <= set(rows.architectures)
    assert {gpu.fabric for gpu in rows.gpus.values()} - {None} <= set(rows.fabrics)


def test_every_gpu_has_a_device_id_of_its_own():
    devices = [gpu.device for gpu in table().gpus.values()]
    assert len(devices) == len(set(devices))
    assert {gpu_of(gpu.device): name for name, gpu in table().gpus.items()} == {name: name for name in table().gpus}


@pytest.mark.parametrize("gpu", table().gpus)
def test_every_gpu_has_a_set_that_drives_it(gpu):
    fitting = [version for version in table().sets if not list(impossible({gpu: 1}, version, "debian-13"))]
    assert fitting
    assert driver_set({gpu: 1}, fitting[0], "debian-13").packages


@pytest.fixture(scope="module")
def known_devices():
    """NVIDIA's devices by their id, as the list of this machine's distribution has them."""
    path = next((path for path in PCI_IDS if path.is_file()), None)
    if path is None:
        pytest.skip(f"this machine has no {PCI_IDS[0]}: install pci.ids")
    vendor = re.search(r"^10de .*\n((?:[\t#].*\n)+)", path.read_text(errors="replace"), re.MULTILINE)
    return dict(re.findall(r"^\t([0-9a-f]{4})  (.+)$", vendor[1], re.MULTILINE))


@pytest.mark.parametrize("gpu", [name for name, gpu in table().gpus.items() if gpu.source == "ids"])
def test_a_device_id_is_that_of_the_gpu(known_devices, gpu):
    row = table().gpus[gpu]
    known = known_devices.get(row.device, "")
    if "[" not in known:
        pytest.skip(f"this machine's pci.ids is older than {row.name}")
    assert plain(row.name) in plain(known)


def plain(name):
    return re.sub(r"[^a-z0-9]", "", name.lower())


def test_volta_and_blackwell_in_one_host_are_refused_since_no_driver_drives_both():
    field, what, remedy = only(impossible({"v100-sxm2-32gb": 1, "b200": 1}, "580.95.05", "debian-12"))
    assert field == "gpus"
    assert "V100 SXM2 32 GB and B200" in what
    assert "different hosts" in remedy


def test_volta_is_refused_with_a_branch_that_no_longer_drives_it_and_told_of_the_last():
    field, what, remedy = only(impossible({"v100-sxm2-32gb": 4}, "595.71.05", "ubuntu-24.04"))
    assert field == "version"
    assert "580 is the last branch" in what
    assert "580.126.20" in remedy
    assert "595.71.05" not in remedy


def test_blackwell_is_refused_with_a_branch_from_before_it():
    field, what, remedy = only(impossible({"b200": 8}, "550.163.01", "debian-13"))
    assert field == "version"
    assert "570.86.15 or newer" in what
    assert "595.71.05" in remedy


def test_a_point_release_from_before_a_gpu_is_refused_although_its_branch_has_newer_ones(monkeypatch):
    rows = table()
    older = {"580.65.06": Release(source="a test"), **rows.sets}
    monkeypatch.setattr(compatibility, "table", lambda: rows.model_copy(update={"sets": older}))
    assert list(impossible({"b200": 8}, "580.65.06", "rhel-9")) == []
    field, what, remedy = only(impossible({"b300": 8}, "580.65.06", "rhel-9"))
    assert field == "version"
    assert "580.82.07 or newer" in what
    assert "580.95.05" in remedy


def test_a_driver_of_a_distribution_is_refused_on_another_platform():
    field, what, remedy = only(impossible({"l4": 2}, "550.163.01", "ubuntu-24.04"))
    assert field == "version"
    assert "debian-13's own archive" in what
    assert "550.163.01" not in remedy
    assert "580.95.05" in remedy
    assert list(impossible({"l4": 2}, "550.163.01", "debian-13")) == []


@pytest.mark.parametrize(
    ("gpus", "version", "modules"),
    [
        ({"h100-sxm": 8}, "580.95.05", "open"),
        ({"b200": 8}, "580.95.05", "open"),
        ({"v100-sxm2-32gb": 4}, "580.95.05", "proprietary"),
        # What drives both, though the newer GPU would rather have the other.
        ({"v100-pcie-16gb": 1, "a10": 1}, "580.95.05", "proprietary"),
        ({"a10": 1, "v100-pcie-16gb": 1}, "580.95.05", "proprietary"),
    ],
)
def test_all_gpus_of_a_host_get_kernel_modules_that_drive_them(gpus, version, modules):
    assert list(impossible(gpus, version, "debian-12")) == []
    assert driver_set(gpus, version, "debian-12").modules == modules


def test_the_oldest_branch_that_runs_a_cuda_is_known_by_its_major_version():
    assert compatibility.oldest_branches() == {12: 535, 13: 580}


def test_what_a_set_was_called_goes_when_it_moves_and_the_other_way_round():
    older, newer = (driver_set({"h100-sxm": 8}, version, "ubuntu-24.04") for version in ("580.95.05", "595.71.05"))
    renamed = {"libnvidia-compute-580": "libnvidia-compute", "nvidia-dkms-580-open": "nvidia-dkms-open"}
    assert set(renamed) <= set(older.packages)
    assert set(renamed.values()) <= set(newer.packages)
    assert set(renamed) <= set(newer.former)
    assert set(renamed.values()) <= set(older.former)


def test_the_kernel_modules_of_the_other_kind_go_too():
    assert "nvidia-kernel-dkms" in driver_set({"h100-sxm": 8}, "580.95.05", "debian-12").former
    assert "nvidia-kernel-open-dkms" in driver_set({"t4": 1, "v100-pcie-16gb": 1}, "580.95.05", "debian-12").former


@pytest.mark.parametrize("platform", ["debian-12", "ubuntu-22.04", "rhel-10"])
@pytest.mark.parametrize("version", [version for version, row in table().sets.items() if row.distro is None])
def test_nothing_that_a_set_has_is_among_what_goes(platform, version):
    found = driver_set({"b200": 8}, version, platform)
    assert set(found.packages) & set(found.former) == set()


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        ({"b200": 8}, {"nvidia-fabricmanager", "libnvidia-nscq", "libnvsdm", "nvlsm"}),
        ({"h100-sxm": 8}, {"nvidia-fabricmanager", "libnvidia-nscq"}),
        # A board with four has no switches, and neither have cards.
        ({"h100-sxm": 4}, set()),
        ({"h100-nvl": 8}, set()),
        ({"l40s": 10}, set()),
    ],
)
def test_a_board_gets_what_its_switches_need(gpus, names):
    parts = {"nvidia-fabricmanager", "libnvidia-nscq", "libnvsdm", "nvlsm"}
    assert set(driver_set(gpus, "580.95.05", "debian-12").packages) & parts == names


def test_the_fabric_manager_moves_with_the_driver_and_the_subnet_manager_has_its_own_version():
    packages = driver_set({"b200": 8}, "595.71.05", "rhel-9").packages
    assert packages["nvidia-fabricmanager"] == "595.71.05"
    assert packages["nvlsm"] == table().sets["595.71.05"].nvlsm
    assert set(packages.values()) == {"595.71.05", packages["nvlsm"]}
