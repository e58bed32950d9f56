import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quench.lab import gpus, nvidia_driver, nvidia_repository, nvidia_scripts, nvidia_sets, state, systems
from quench.lab.fleet import _addressed
from quench.lab.gpu_host import simulated
from quench.lab.progress import LabError
from quench.lab.state import HostSpec, Lab, LabHost
from roles.dcgm_exporter.files import COUNTERS

KERNEL = "6.1.0-99-amd64"
FAMILIES = ["debian", "ubuntu", "rhel9", "rhel10"]


def names(packages):
    return {package.name for package in packages}


@pytest.mark.parametrize(
    ("profile", "classes", "devices", "fabric"),
    [
        ("none", [], set(), "none"),
        ("2xl4", ["0x030200"] * 2, {"0x27b8"}, "none"),
        ("8xh100", ["0x030200"] * 8 + ["0x068000"] * 4, {"0x2330", "0x22a3"}, "nvswitch"),
        # The switches of this board are not on the host's PCI bus.
        ("8xb200", ["0x030200"] * 8, {"0x2901"}, "nvlink5"),
        ("v100+b200", ["0x030200"] * 2, {"0x1db5", "0x2901"}, "nvlink5"),
    ],
)
def test_a_profile_is_a_tree_as_the_kernel_shows_it(profile, classes, devices, fabric):
    tree = gpus.PROFILES[profile].pci()
    assert [entry["class"] for entry in tree.values()] == classes
    assert {entry["device"] for entry in tree.values()} == devices
    assert {entry["vendor"] for entry in tree.values()} <= {"0x10de"}
    assert all(re.fullmatch(r"0000:[0-9a-f]{2}:00\.0", address) for address in tree)
    assert gpus.PROFILES[profile].fabric == fabric


def test_a_host_is_told_that_its_gpus_are_simulated_and_names_them_the_same_each_time():
    first, again, other = (gpus.PROFILES["2xl4"].as_json(host) for host in ("node1", "node1", "node2"))
    assert first == again != other
    assert json.loads(first)["simulated"] is True


def test_only_debian_is_real():
    assert {name for name, system in systems.SYSTEMS.items() if not system.simulated} == {"debian-12", "debian-13"}
    ubuntu = systems.os_release(systems.SYSTEMS["ubuntu-24.04"])
    assert 'ID="ubuntu"\n' in ubuntu
    assert 'VERSION_CODENAME="noble"\n' in ubuntu
    assert 'ID_LIKE="rhel centos fedora"\n' in systems.os_release(systems.SYSTEMS["rhel-9"])
    assert all("simulated" in systems.os_release(system) for system in systems.SYSTEMS.values() if system.simulated)


def test_a_lab_of_an_older_quench_has_no_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = tmp_path / "quench" / "labs" / "old"
    folder.mkdir(parents=True)
    host = {"name": "node1", "address": "198.18.1.11", "system": "debian-12"}
    (folder / "lab.json").write_text(json.dumps({"name": "old", "slot": 1, "engine": "stand-in", "hosts": [host]}))
    (found,) = state.load("old").hosts
    assert (found.gpus, found.prepared) == ("none", False)


@pytest.mark.parametrize("wrong", [{"system": "suse"}, {"gpus": "3xtpu"}])
def test_a_host_that_the_lab_cannot_play_is_refused(wrong):
    with pytest.raises(LabError, match=next(iter(wrong.values()))):
        HostSpec("node1", **wrong)


def test_hosts_of_any_name_get_addresses_of_their_own_and_keep_them():
    lab = Lab("gx", 7, "stand-in", [LabHost("balancer", "198.18.7.150", "debian-12")])
    found = _addressed(lab, [HostSpec(name) for name in ("node2", "other", "balancer")])
    assert [host.address for host in found] == ["198.18.7.12", "198.18.7.151", "198.18.7.150"]


@pytest.mark.parametrize("other", [{"system": "debian-13"}, {"gpus": "2xl4"}])
def test_a_host_that_is_up_does_not_become_another(other):
    lab = Lab("gx", 7, "stand-in", [LabHost("node1", "198.18.7.11", "debian-12")])
    with pytest.raises(LabError, match="quench lab down --name gx"):
        _addressed(lab, [HostSpec("node1", **other)])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_distribution_has_all_driver_versions_and_each_set_fits_together(family):
    found = [nvidia_driver.driver_set(family, version) for version in nvidia_driver.DRIVERS]
    assert [packages[0].version for packages in found] == list(nvidia_driver.DRIVERS)
    for packages in found:
        known = names(packages) | {name for package in packages for name in package.provides}
        needed = {name.rstrip("=") for package in packages for name in package.depends}
        assert needed - known <= {"dkms"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proprietary_module_ends_before_615(family):
    proprietary = {"nvidia-kernel-dkms", "nvidia-dkms-580", "nvidia-dkms", "kmod-nvidia-latest-dkms", "cuda-drivers"}
    offered = [names(nvidia_driver.driver_set(family, version)) & proprietary for version in nvidia_driver.DRIVERS]
    assert all(offered[:3])
    assert not offered[3]


def test_ubuntu_names_lose_their_branch_and_replace_each_other_both_ways():
    old, new = (
        {package.name: package for package in nvidia_driver.driver_set("ubuntu", version)}
        for version in ("580.95.05", "595.71.05")
    )
    assert {name for name in old if "580" in name} == {
        "libnvidia-compute-580", "nvidia-utils-580", "nvidia-kernel-common-580",
        "nvidia-dkms-580-open", "nvidia-dkms-580",
    }  # fmt: skip
    assert not [name for name in new if "580" in name]
    assert "nvidia-dkms-580-open" in new["nvidia-dkms-open"].conflicts
    assert "nvidia-dkms-open" in old["nvidia-dkms-580-open"].conflicts
    assert {old["libnvidia-compute-580"].full_version, new["libnvidia-compute"].full_version} == {
        "580.95.05-0ubuntu1", "595.71.05-1ubuntu1",
    }  # fmt: skip


def test_versions_are_written_as_nvidia_writes_them():
    rhel = {package.name: package.full_version for package in nvidia_driver.driver_set("rhel9", "580.95.05")}
    assert rhel["nvidia-driver-cuda"] == "3:580.95.05-1.el9"
    assert rhel["nvidia-fabricmanager"] == "580.95.05-1.el9"
    other = {(package.name, package.full_version) for package in nvidia_sets.other_packages()}
    assert ("datacenter-gpu-manager-4-core", "1:4.6.0-1") in other
    assert ("datacenter-gpu-manager-exporter", "4.8.2-1") in other


def test_a_part_depends_on_exactly_its_own_version():
    packages = nvidia_driver.driver_set("debian", "595.71.05")
    control = nvidia_repository.deb_control(next(p for p in packages if p.name == "nvidia-open"), packages)
    assert "Depends: nvidia-driver-cuda (= 595.71.05-1), nvidia-kernel-open-dkms (= 595.71.05-1)\n" in control
    packages = nvidia_driver.driver_set("rhel10", "595.71.05")
    spec = nvidia_scripts.rpm_spec(packages, packages, Path("/tree"))
    assert "Requires: nvidia-kmod = 3:595.71.05-1.el10\n" in spec


def test_a_part_of_a_group_with_several_versions_depends_on_its_own_and_not_on_the_newest():
    packages = nvidia_sets.container_packages()
    first = next(p for p in packages if p.name == "nvidia-container-toolkit")
    assert "Depends: nvidia-container-toolkit-base (= 1.18.0-1), libnvidia-container-tools (= 1.18.0-1)\n" in (
        nvidia_repository.deb_control(first, packages)
    )
    assert "Requires: libnvidia-container-tools = 1.18.0-1\n" in nvidia_scripts.rpm_spec([first], packages, Path("/t"))


def test_both_flavours_of_a_module_come_from_specs_of_their_own():
    # They own the same paths, with different contents.
    packages = nvidia_driver.driver_set("rhel9", "580.95.05")
    specs = nvidia_repository._one_spec_each(packages)
    for spec in specs:
        paths = [path for package in spec for path in package.files]
        assert len(paths) == len(set(paths))
    assert sorted(p.name for spec in specs for p in spec) == sorted(p.name for p in packages)


def test_a_module_that_does_not_build_does_not_fail_the_package_manager():
    (package,) = [p for p in nvidia_driver.driver_set("debian", "580.95.05") if p.name == "nvidia-kernel-open-dkms"]
    script = nvidia_scripts.after_install(package, "deb")
    assert re.search(r"dkms install .* \|\|\n\s+echo", script)
    assert script.rstrip().endswith("exit 0")


@pytest.mark.parametrize("distro", ["debian12", "ubuntu2404"])
def test_the_archive_has_headers_for_the_kernel_that_runs(distro):
    found = names(nvidia_sets.archive_packages(distro, KERNEL))
    assert f"linux-headers-{KERNEL}" in found
    assert (f"linux-modules-extra-{KERNEL}" in found) == distro.startswith("ubuntu")


def test_rhels_headers_are_found_by_the_kernels_own_name():
    found = {package.name: package for package in nvidia_sets.archive_packages("rhel9", "5.14.0-570.el9.x86_64")}
    assert found["kernel-devel"].provides == ("kernel-devel-5.14.0-570.el9.x86_64",)
    assert "python3-dnf-plugin-versionlock" in found
    assert found["infiniband-diags"].files["/usr/sbin/ibstat"].mode == 0o755


def test_every_source_of_a_package_is_there_and_says_that_it_is_simulated():
    folder = Path(nvidia_repository._SOURCES)
    used = {
        file.source
        for packages in (
            *(nvidia_driver.driver_set(family, version) for family in FAMILIES for version in nvidia_driver.DRIVERS),
            nvidia_sets.other_packages(),
            nvidia_sets.container_packages(),
        )
        for package in packages
        for file in package.files.values()
        if file.source
    }
    sources = {name.replace(".so", ".c") for name in used}
    assert sources == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        assert "SIMULATED" in path.read_text(), path.name
    for path in folder.parent.joinpath("gpu_host").iterdir():
        if path.is_file():
            assert "SIMULATED" in "".join(path.read_text().splitlines()[:3]), path.name


def test_other_sources_make_another_repository(tmp_path, monkeypatch):
    before = nvidia_repository.folder(tmp_path)
    assert before == nvidia_repository.folder(tmp_path)
    monkeypatch.setattr(nvidia_repository.platform, "release", lambda: KERNEL)
    assert nvidia_repository.folder(tmp_path) != before


@pytest.mark.parametrize(
    "data",
    [
        {"mig-configs": {"all": [{"devices": "all", "mig-enabled": True, "mig-devices": {"1g.10gb": 7, "+me": 1}}]}},
        {"version": "v1", "mig-configs": {"none": [{"devices": [0, 1], "mig-enabled": False, "mig-devices": {}}]}},
        {"mig-configs": {"x": [{"device-filter": ["0x233010DE"], "devices": [2]}, {"devices": "all"}]}},
        {"tls_server_config": {"cert_file": "/etc/a b.crt", "key_file": "k", "min_version": "TLS13"}},
        {"version": "v1", "hooks": {"apply-start": [{"workdir": "/etc", "command": "/bin/sh", "args": ["-x", "a"]}]}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("style", [None, False, True])
def test_the_hosts_yaml_reader_reads_what_our_dumper_writes(data, style):
    text = "# a comment\n" + yaml.safe_dump(data, default_flow_style=style, width=1000)
    assert simulated.read_yaml(text) == data
    assert simulated.read_yaml(json.dumps(data)) == data


def test_the_hosts_yaml_reader_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="cannot read"):
        simulated.read_yaml("a: 1\n  - b\n c")


@pytest.fixture
def exporter_says(tmp_path):
    """Why the simulated exporter ends with this list of counters."""
    # All that it knows of its host.
    (tmp_path / "simulated.py").write_text("def loaded_version():\n    return '580.95.05'\n")
    program = Path(nvidia_repository._SOURCES) / "dcgm-exporter"

    def run(rows):
        path = tmp_path / "counters.csv"
        path.write_text("".join(f"{name}, {kind}, {text}\n" for name, kind, text in rows))
        # The host engine that it asks. With a good list, it finds that the address is taken.
        with socket.create_server(("127.0.0.1", 0)) as engine:
            address = f"127.0.0.1:{engine.getsockname()[1]}"
            done = subprocess.run(
                [sys.executable, str(program), "-f", str(path), "-a", address, "-r", address],
                env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=30,
            )  # fmt: skip
        assert done.returncode == 1
        return done.stderr

    return run


def test_the_simulated_exporter_knows_the_counters_of_the_role_and_starts_with_them(exporter_says):
    assert "Address already in use" in exporter_says(COUNTERS)


@pytest.mark.parametrize("name", ["DCGM_FI_DEV_GPU_TEMPERATURE", "DCGM_FI_DEV_SM_CLOCKS", "DCGM_EXP_XID_COUNT", "x"])
def test_the_simulated_exporter_ends_with_a_field_that_dcgm_does_not_have(exporter_says, name):
    assert f"could not find DCGM field '{name}'" in exporter_says([*COUNTERS, (name, "gauge", "Some help.")])


def test_the_simulated_exporter_knows_what_its_own_list_names():
    text = (Path(nvidia_repository._SOURCES) / "default-counters.csv").read_text()
    names = re.findall(r"^(?:# )?(DCGM_\w+), ", text, re.MULTILINE)
    program = (Path(nvidia_repository._SOURCES) / "dcgm-exporter").read_text()
    assert len(names) > 20
    assert [name for name in names if not re.search(rf"\b{name}\b", program)] == []
