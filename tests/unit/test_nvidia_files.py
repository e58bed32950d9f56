import os
import re
import shutil
import subprocess
from fnmatch import fnmatch

import pytest
import yaml

from quench import Gpus, HostEngine
from quench.settings import EVERY_PLATFORM
from roles import container_toolkit, dcgm, dcgm_exporter, nvidia_driver
from roles.container_toolkit.files import sources as toolkit_sources
from roles.dcgm.files import packages_of
from roles.nvidia_driver.compatibility import driver_set
from roles.nvidia_driver.files import fabric_packages
from roles.nvidia_driver.files import sources as driver_sources
from tests.host.conftest import Packages, pins_of

GPUS = Gpus(count=8, driver="580.95.05", cuda="13.0", dcgm="4.4.1", exporter="4.5.2", toolkit="1.18.0", mig="0.14.2")
APT = [platform for platform in EVERY_PLATFORM if not platform.startswith("rhel")]
RPM = [platform for platform in EVERY_PLATFORM if platform.startswith("rhel")]
# What the repositories have besides what is wanted: NVIDIA's own keep every version.
OTHERS = {
    "580.95.05": ["550.90.07", "580.95.04", "580.95.051", "580.126.20", "595.71.05", "1580.95.05"],
    "4.4.1": ["3.3.9", "4.4.10", "4.6.0", "14.4.1"],
    "4.5.2": ["4.1.3", "4.8.2"],
    "1.18.0": ["1.17.8", "1.20.0"],
    "0.14.2": ["0.12.1", "0.15.0"],
}


def can_judge_offline():
    """Whether systemd-analyze judges the sandbox of a file: from version 250 on."""
    if shutil.which("systemd-analyze") is None:
        return False
    done = subprocess.run(["systemd-analyze", "--help"], capture_output=True, text=True, check=False)
    return "--offline" in done.stdout


@pytest.fixture
def sources(gpu_data):
    """Text of the driver's and the container toolkit's source files on a platform, by their name on the host."""

    def render(platform, **changes):
        key = gpu_data["nvidia_driver_repository_key"]
        fingerprint = gpu_data["nvidia_driver_repository_fingerprint"]
        toolkit = {
            "platform": platform,
            "container_toolkit_engine": "podman",
            "container_toolkit_repository_key": key,
            "container_toolkit_repository_fingerprint": fingerprint,
        }
        driver = nvidia_driver.NvidiaDriverSettings.load("node1", gpu_data | {"platform": platform} | changes)
        settings = container_toolkit.ContainerToolkitSettings.load("node1", toolkit)
        managed = [*driver_sources(driver), *toolkit_sources(settings, GPUS, "/etc/apt/sources.list.d")]
        return {item.dest: item.content for item in managed}

    return render


def wanted_packages(platform):
    """All that a host with eight H100 gets, by the version that it is pinned to."""
    return {
        **driver_set({"h100-sxm": 8}, GPUS.driver, platform).packages,
        **packages_of(GPUS),
        "datacenter-gpu-manager-exporter": GPUS.exporter,
        "nvidia-mig-manager": GPUS.mig,
        "nvidia-container-toolkit-base": GPUS.toolkit,
    }


def offered(platform):
    """Each package in all the versions that a repository has of it; DCGM's have an epoch."""
    for name, version in wanted_packages(platform).items():
        epoch = "1:" if name.startswith("datacenter-gpu-manager-4") else ""
        for number in [version, *OTHERS[version]]:
            yield name, f"{epoch}{number}-1"


@pytest.fixture
def apt(tmp_path):
    """What apt makes of preferences, with a repository of these packages, on a host that has others installed."""
    if shutil.which("apt-get") is None:
        pytest.skip("this machine has no apt")
    for folder in ("repository", "lists/partial", "cache/archives/partial", "etc/preferences.d"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/sources.list").write_text(f"deb [trusted=yes] file:{tmp_path}/repository ./\n")
    options = {
        "Dir::Etc": f"{tmp_path}/etc",
        "Dir::State::lists": f"{tmp_path}/lists",
        "Dir::State::status": f"{tmp_path}/status",
        "Dir::Cache": f"{tmp_path}/cache",
        "Dir::Etc::parts": "/dev/null",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
    }

    def run(*words):
        command = [words[0], *(f"-o{key}={value}" for key, value in options.items()), *words[1:]]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    def candidates(texts, packages, installed=()):
        for path, text in texts.items():
            if path.startswith("/etc/apt/preferences.d/"):
                (tmp_path / "etc/preferences.d" / path.rpartition("/")[2]).write_text(text)
        form = "Package: {}\nVersion: {}\nArchitecture: amd64\nMaintainer: a test\nDescription: a test\n"
        rows = [form.format(name, version) for name, version in packages]
        (tmp_path / "repository/Packages").write_text("\n".join(f"{row}Filename: x\nSize: 1\n" for row in rows))
        rows = [form.format(name, version) for name, version in installed]
        (tmp_path / "status").write_text("\n".join(f"{row}Status: install ok installed\n" for row in rows))
        run("apt-get", "-qq", "update")
        policy = run("apt-cache", "policy", *{name for name, _ in packages})
        return dict(re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)", policy, re.MULTILINE))

    return candidates


@pytest.mark.parametrize("platform", APT)
def test_apt_chooses_exactly_the_set_although_there_is_newer_and_older(sources, apt, platform):
    found = apt(sources(platform), list(offered(platform)))
    assert {name: version.partition(":")[2] or version for name, version in found.items()} == {
        name: f"{version}-1" for name, version in wanted_packages(platform).items()
    }


def test_apt_goes_back_to_an_older_set_that_is_pinned(sources, apt):
    found = apt(sources("debian-12"), list(offered("debian-12")), [("libcuda1", "595.71.05-1")])
    assert found["libcuda1"] == "580.95.05-1"


def test_apt_takes_no_part_of_the_family_that_only_another_version_has(sources, apt):
    others = [("nvidia-settings", "595.71.05-1"), ("linux-modules-nvidia-535-generic", "6.8.0-50"), ("curl", "8.5.0-2")]
    found = apt(sources("ubuntu-24.04"), others)
    assert found == {"nvidia-settings": "(none)", "linux-modules-nvidia-535-generic": "(none)", "curl": "8.5.0-2"}


@pytest.mark.parametrize("platform", APT)
def test_the_checks_of_a_host_read_from_its_pins_what_each_package_must_be(sources, platform):
    preferences = [text for path, text in sources(platform).items() if path.startswith("/etc/apt/preferences.d/")]
    packages = Packages(None, "apt", pins_of("".join(preferences)))
    wanted = wanted_packages(platform)
    assert {name: packages.pinned(name) for name in wanted} == wanted
    assert packages.pinned("curl") is None


def test_parts_of_debians_contrib_are_not_taken_for_parts_of_the_driver(sources):
    packages = Packages(None, "apt", pins_of(sources("debian-12")["/etc/apt/preferences.d/quench-nvidia"]))
    parts = ["nvidia-installer-cleanup", "nvidia-kernel-common", "nvidia-support"]
    assert [packages.pinned(name) for name in parts] == [None] * 3


def repository(text):
    """The settings of a repository's file."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("platform", RPM)
def test_dnf_is_let_in_to_exactly_the_set(sources, platform):
    texts = sources(platform)
    repos = {path: repository(text) for path, text in texts.items() if path.endswith(".repo")}
    assert len(repos) == 2
    patterns = [pattern for values in repos.values() for pattern in values["includepkgs"].split()]
    names = {f"{name}-{version.partition(':')[2] or version}.el9" for name, version in offered(platform)}
    let_in = {name for name in names if any(fnmatch(name, pattern) for pattern in patterns)}
    wanted = {f"{name}-{version}-1.el9" for name, version in wanted_packages(platform).items()}
    assert let_in == wanted


@pytest.mark.parametrize("platform", RPM)
def test_dnf_checks_packages_and_their_list_with_a_key_that_comes_along(sources, platform):
    texts = sources(platform)
    for path, text in texts.items():
        if path.endswith(".repo"):
            values = repository(text)
            assert (values["enabled"], values["gpgcheck"], values["repo_gpgcheck"]) == ("1", "1", "1")
            assert "PUBLIC KEY" in texts[values["gpgkey"].removeprefix("file://")]


@pytest.mark.parametrize("platform", APT)
def test_apt_checks_the_repository_with_a_key_that_comes_along(sources, platform):
    texts = sources(platform)
    found = [text for path, text in texts.items() if path.endswith(".sources")]
    assert len(found) == 2
    for text in found:
        key = re.search(r"^Signed-By: (\S+)$", text, re.MULTILINE)[1]
        assert "PUBLIC KEY" in texts[key]
        assert not re.search("trusted|allow-insecure", text, re.IGNORECASE)


@pytest.mark.parametrize(
    ("platform", "part"),
    [
        ("debian-12", "/debian12/x86_64"),
        ("debian-13", "/debian13/x86_64"),
        ("ubuntu-22.04", "/ubuntu2204/x86_64"),
        ("ubuntu-24.04", "/ubuntu2404/x86_64"),
        # Whoever rebuilt it: there is no rocky9.
        ("rhel-9", "/rhel9/x86_64"),
        ("rhel-10", "/rhel10/x86_64"),
    ],
)
def test_without_a_mirror_the_repository_is_nvidias_own(sources, platform, part):
    texts = sources(platform, nvidia_driver_repository=None)
    text = next(text for path, text in texts.items() if path.endswith(("quench-nvidia.sources", "quench-nvidia.repo")))
    assert f"https://developer.download.nvidia.com/compute/cuda/repos{part}\n" in text


def test_debians_own_driver_comes_from_debians_archive_with_debians_key(sources):
    changes = {"nvidia_driver_version": "550.163.01", "nvidia_driver_gpus": {"l4": 2}}
    text = sources("debian-13", **changes)["/etc/apt/sources.list.d/quench-nvidia.sources"]
    assert "Suites: trixie\n" in text
    assert "non-free" in text
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n" in text


@pytest.fixture
def rendered(gpu_data):
    """The driver's files on the host, by their path."""

    def render(**changes):
        settings = nvidia_driver.NvidiaDriverSettings.load("node1", gpu_data | changes)
        return {item.dest: item.content for item in nvidia_driver.files(settings)}

    return render


def test_nouveau_is_kept_out(rendered):
    lines = rendered()["/etc/modprobe.d/quench-nvidia.conf"].splitlines()
    assert {"blacklist nouveau", "options nouveau modeset=0"} <= set(lines)


def test_options_of_the_module_stand_in_their_file(rendered):
    text = rendered(nvidia_driver_module_options={"NVreg_CoherentGPUMemoryMode": "driver"})
    assert "options nvidia NVreg_CoherentGPUMemoryMode=driver\n" in text["/etc/modprobe.d/quench-nvidia.conf"]


@pytest.mark.parametrize(("gpu", "wanted"), [("b200", True), ("h100-sxm", False)])
def test_the_subnet_manager_gets_its_module_where_there_is_one(rendered, gpu, wanted):
    text = rendered(nvidia_driver_gpus={gpu: 8})["/etc/modules-load.d/quench-nvidia.conf"]
    assert ({"ib_umad", "mlx5_ib"} <= set(text.split())) is wanted


@pytest.mark.parametrize(
    ("platform", "gpu", "wanted"),
    [
        ("debian-12", "b200", ["infiniband-diags", "libibumad3"]),
        ("ubuntu-24.04", "b300", ["infiniband-diags", "libibumad3"]),
        ("rhel-10", "b200", ["infiniband-diags", "libibumad"]),
        ("rhel-10", "h100-sxm", []),
        ("debian-12", "l4", []),
    ],
)
def test_the_fabric_manager_finds_the_program_that_it_asks_for_adapters(gpu_data, platform, gpu, wanted):
    # nvidia-fabricmanager-start.sh of boards with NVLink 5 calls ibstat, and ends where there is none.
    data = gpu_data | {"platform": platform, "nvidia_driver_gpus": {gpu: 8}}
    assert fabric_packages(nvidia_driver.NvidiaDriverSettings.load("node1", data)) == wanted


def test_the_persistence_daemon_is_not_left_with_persistence_off(rendered):
    text = rendered()["/etc/systemd/system/nvidia-persistenced.service"]
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert "--persistence-mode" in command.split()
    # The packaged unit of some systems cannot be enabled.
    assert "WantedBy=multi-user.target" in text


@pytest.fixture
def engine_unit():
    settings = dcgm.DcgmSettings.load("node1", {"platform": "debian-12", "dcgm_port": 5556})
    (file,) = dcgm.files(settings, GPUS)
    return file.content


@pytest.fixture
def exporter_files(exporter_data):
    def render(**changes):
        settings = dcgm_exporter.DcgmExporterSettings.load("node1", exporter_data | changes)
        managed = dcgm_exporter.files(settings, HostEngine("127.0.0.1:5556", "4.5.2"))
        return {item.dest.rpartition("/")[2]: item for item in managed}

    return render


@pytest.fixture
def exporter_unit(exporter_files):
    return exporter_files()["nvidia-dcgm-exporter.service"].content


def options(unit):
    """The options of a unit's command line, each with its value."""
    words = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1].split()[1:]
    return {word: words[number + 1] for number, word in enumerate(words[:-1]) if word.startswith("-")}


def test_the_host_engine_is_bound_to_the_loopback_address(engine_unit):
    given = options(engine_unit)
    assert (given["-b"], given["-p"]) == ("127.0.0.1", "5556")
    assert re.search(r"^IPAddressDeny=any$", engine_unit, re.MULTILINE)
    assert re.search(r"^IPAddressAllow=localhost$", engine_unit, re.MULTILINE)


def test_the_exporter_listens_on_its_one_address(exporter_unit):
    # The packaged unit's is `:9400`, which is all of them.
    assert options(exporter_unit)["--address"] == "10.0.30.14:9400"


def test_an_address_of_ipv6_stands_in_brackets(exporter_files):
    changes = {"dcgm_exporter_address": "fd00::14", "dcgm_exporter_clients": ["fd00::/64"]}
    unit = exporter_files(**changes)["nvidia-dcgm-exporter.service"].content
    assert options(unit)["--address"] == "[fd00::14]:9400"


def test_the_exporter_asks_the_host_engine_and_has_none_of_its_own(exporter_unit):
    assert options(exporter_unit)["--remote-hostengine-info"] == "127.0.0.1:5556"


def test_intervals_are_given_in_milliseconds(exporter_files):
    unit = exporter_files(dcgm_exporter_interval_seconds=15, dcgm_exporter_xid_window_seconds=60)
    given = options(unit["nvidia-dcgm-exporter.service"].content)
    assert (given["--collect-interval"], given["--xid-count-window-size"]) == ("15000", "60000")


@pytest.mark.parametrize("unit", ["engine_unit", "exporter_unit"])
def test_a_service_that_failed_is_started_again(unit, request):
    # The packaged units say on-abort.
    assert re.findall(r"^Restart=(.*)$", request.getfixturevalue(unit), re.MULTILINE) == ["always"]


def test_the_exporter_is_not_root_and_sees_no_device(exporter_unit):
    values = dict(re.findall(r"^(\w+)=(.*)$", exporter_unit, re.MULTILINE))
    assert values["User"] not in ("", "root")
    assert (values["PrivateDevices"], values["CapabilityBoundingSet"]) == ("yes", "")


def test_the_exporter_answers_to_the_monitoring_zone_alone(exporter_files):
    changes = {"dcgm_exporter_clients": ["10.0.30.0/28", "10.0.31.7/32"]}
    unit = exporter_files(**changes)["nvidia-dcgm-exporter.service"].content
    assert re.search(r"^IPAddressDeny=any$", unit, re.MULTILINE)
    assert re.search(r"^IPAddressAllow=localhost 10\.0\.30\.0/28 10\.0\.31\.7/32$", unit, re.MULTILINE)


def test_the_exporter_asks_for_certificates_over_tls_1_3(exporter_files):
    files = exporter_files()
    tls = yaml.safe_load(files["web.yml"].content)["tls_server_config"]
    assert (tls["client_auth_type"], tls["min_version"]) == ("RequireAndVerifyClientCert", "TLS13")
    assert options(files["nvidia-dcgm-exporter.service"].content)["--web-config-file"] == files["web.yml"].dest
    assert {tls["cert_file"], tls["key_file"], tls["client_ca_file"]} <= {file.dest for file in files.values()}


def test_the_exporters_private_key_is_for_root_and_the_exporter(exporter_files):
    key = exporter_files()["tls.key"]
    assert (key.mode, key.owner, key.group) == (0o640, "root", "dcgm-exporter")
    assert "PRIVATE" not in key.content
    assert b"PRIVATE" in key.revealed()


def test_every_file_of_the_exporter_restarts_it(exporter_files):
    files = [file for file in exporter_files().values() if hasattr(file, "restarts")]
    assert {file.restarts for file in files} == {"nvidia-dcgm-exporter.service"}


@pytest.mark.skipif(not can_judge_offline(), reason="systemd-analyze is not there, or older than 250")
@pytest.mark.parametrize(("unit", "most"), [("exporter_unit", 20), ("engine_unit", 55)])
def test_systemd_finds_the_sandbox_tight(unit, most, request, tmp_path):
    path = tmp_path / f"{unit.replace('_', '-')}.service"
    path.write_text(request.getfixturevalue(unit))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.splitlines()[-1:]
    assert "Overall exposure" in done.stdout


@pytest.fixture
def counters(exporter_files):
    lines = exporter_files()["counters.csv"].content.splitlines()
    return [line.split(", ", 2) for line in lines if not line.startswith("#")]


def test_each_counter_has_a_name_a_type_and_a_help_text(counters):
    assert counters != []
    for row in counters:
        assert re.fullmatch(r"DCGM_(FI|EXP)_[A-Z0-9_]+", row[0]), row
        assert row[1] in {"gauge", "counter", "label"}, row
        # encoding/csv of Go: a comma more would be a fourth field.
        assert row[2] and "," not in row[2] and '"' not in row[2], row
    assert len({row[0] for row in counters}) == len(counters)


@pytest.mark.parametrize(
    "name",
    [
        # Off in the exporter's own list, though alerts need them.
        "DCGM_EXP_XID_ERRORS_COUNT",
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "DCGM_FI_DEV_THERMAL_VIOLATION",
        "DCGM_FI_DEV_POWER_VIOLATION",
        "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
        # On there, and needed too.
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_ROW_REMAP_FAILURE",
        "DCGM_FI_DEV_FB_USED",
    ],
)
def test_the_counters_that_alerts_need_are_exported(counters, name):
    assert name in {row[0] for row in counters}


@pytest.mark.parametrize(("cuda", "part"), [("13.0", "cuda13"), ("12.8", "cuda12")])
def test_dcgm_comes_for_the_drivers_cuda_alone_and_with_its_profiling_parts(cuda, part):
    names = packages_of(Gpus(cuda=cuda, dcgm="4.4.1"))
    stem = "datacenter-gpu-manager-4-"
    assert {f"{stem}core", f"{stem}{part}", f"{stem}proprietary", f"{stem}proprietary-{part}"} == set(names)


@pytest.mark.parametrize(
    ("platform", "wanted"),
    [("debian-12", True), ("ubuntu-24.04", True), ("debian-13", False), ("rhel-9", False)],
)
def test_a_podman_that_is_too_old_for_cdi_0_7_gets_what_it_can_read(platform, wanted):
    data = {"platform": platform, "container_toolkit_engine": "podman"}
    (file,) = container_toolkit.files(container_toolkit.ContainerToolkitSettings.load("node1", data))
    assert ("no-additional-gids-for-device-nodes" in file.content) is wanted


@pytest.mark.parametrize(
    ("platform", "engine", "instead"),
    [
        ("debian-12", "docker", "podman"),
        ("rhel-9", "docker", "podman"),
        ("rhel-10", "docker", "podman"),
        ("ubuntu-22.04", "podman", "docker"),
    ],
)
def test_an_engine_that_knows_no_cdi_is_refused_and_the_other_one_is_not(gpu_data, problems, platform, engine, instead):
    data = {
        "platform": platform,
        "container_toolkit_repository_key": gpu_data["nvidia_driver_repository_key"],
        "container_toolkit_repository_fingerprint": gpu_data["nvidia_driver_repository_fingerprint"],
    }
    model = container_toolkit.ContainerToolkitSettings
    (problem,) = problems(model, data | {"container_toolkit_engine": engine})
    assert (problem.key, problem.remedy) == ("container_toolkit_engine", f"set container_toolkit_engine = '{instead}'")
    assert problems(model, data | {"container_toolkit_engine": instead}) == []


def test_docker_gets_cdi_beside_what_else_it_is_told():
    data = {
        "platform": "ubuntu-24.04",
        "container_toolkit_engine": "docker",
        "container_toolkit_docker_settings": {"log-driver": "journald"},
    }
    files = container_toolkit.files(container_toolkit.ContainerToolkitSettings.load("node1", data))
    (daemon,) = [file for file in files if file.dest == "/etc/docker/daemon.json"]
    assert yaml.safe_load(daemon.content) == {"log-driver": "journald", "features": {"cdi": True}}
    # A key that dockerd does not know keeps it from starting.
    assert "dockerd --validate" in daemon.check
