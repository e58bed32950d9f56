import subprocess

import pytest

from quench.files import CHECKOUT
from roles.nvidia_driver import NvidiaDriverSettings
from roles.nvidia_driver.host import PROBE, parse, problems

H100, B200, L4, NVSWITCH = "0x2330", "0x2901", "0x27b8", "0x22a3"
# As a host with room and nothing amiss answers.
ROOM = ["space /usr 90000000", "space /var/lib 90000000", "space /boot 400000"]


def pci(*devices, kind="0x030200"):
    return [f"pci 0000:{number:02x}:00.0 {kind} {device}" for number, device in enumerate(devices)]


EIGHT = [*pci(*[H100] * 8), *ROOM]


@pytest.fixture
def found(gpu_data):
    """Problems of the host with eight H100 that answers this."""

    def ask(lines, **changes):
        settings = NvidiaDriverSettings.load("node1", gpu_data | changes)
        return list(problems("node1", settings, parse(lines)))

    return ask


def only(found):
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_gpus_are_counted_by_model():
    assert parse(pci(H100, H100, L4)).gpus == {"h100-sxm": 2, "l4": 1}


@pytest.mark.parametrize("kind", ["0x030000", "0x030200"])
def test_display_and_compute_controllers_are_gpus(kind):
    assert parse(pci(L4, kind=kind)).gpus == {"l4": 1}


@pytest.mark.parametrize("kind", ["0x068000", "0x040300"])
def test_switches_and_sound_are_no_gpus(kind):
    host = parse(pci(NVSWITCH, kind=kind))
    assert (host.gpus, host.unknown) == ({}, [])


def test_a_gpu_that_the_table_does_not_have_is_named_by_its_id():
    assert parse(pci("0xffff", H100, "0xffff")).unknown == ["ffff"]


def test_what_the_host_says_is_understood():
    lines = [
        "loaded 580.95.05",
        "nouveau",
        "runfile",
        "secure-boot",
        "foreign /etc/apt/sources.list.d/cuda.list",
        "package nvidia-headless-535",
        "space /usr 1000",
    ]
    host = parse(lines)
    assert (host.loaded, host.nouveau, host.runfile, host.unknown_key) == ("580.95.05", True, True, True)
    assert host.foreign == ["/etc/apt/sources.list.d/cuda.list"]
    assert host.packages == ["nvidia-headless-535"]
    assert host.space == {"/usr": 1000}


def test_a_host_without_a_driver_says_so_with_an_empty_value():
    host = parse(["loaded "])
    assert (host.loaded, host.nouveau, host.runfile, host.unknown_key) == ("", False, False, False)


def test_the_probe_of_this_machine_is_understood():
    done = subprocess.run(PROBE, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.stderr == ""
    host = parse(done.stdout.splitlines())
    assert host.space["/usr"] > 0
    assert {word.split()[0] for word in done.stdout.splitlines()} >= {"loaded", "space"}


NVIDIA = "https://developer.download.nvidia.com/compute/cuda/repos"


@pytest.fixture
def foreign(tmp_path):
    """Whether the probe takes a file of this name and content for another source of the same packages."""

    def ask(name, text):
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        probe = PROBE.replace("/etc/", f"{tmp_path}/etc/")
        done = subprocess.run(probe, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
        assert done.stderr == ""
        files = parse(done.stdout.splitlines()).foreign
        assert files in ([], [str(path)])
        return bool(files)

    return ask


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"[cuda]\nbaseurl={NVIDIA}\n", True),
        (f"[cuda]\nenabled=0\nbaseurl={NVIDIA}\n", False),
        (f"[cuda]\nbaseurl={NVIDIA}\nenabled = False\n", False),
        # A section that is off says nothing of the others.
        (f"[cuda]\nbaseurl={NVIDIA}\nenabled=1\n\n[cuda-source]\nbaseurl={NVIDIA}/src\nenabled=0\n", True),
        (f"[other]\nbaseurl=https://example.org\nenabled=0\n[cuda]\nbaseurl={NVIDIA}\n", True),
        (f"[other]\nbaseurl=https://example.org\nenabled=1\n[cuda]\nbaseurl={NVIDIA}\nenabled=0\n", False),
        # A line that is empty ends no section.
        (f"[cuda]\nbaseurl={NVIDIA}\n\nenabled=0\n", False),
        (f"[cuda]\n# baseurl={NVIDIA}\n", False),
        ("[local]\nbaseurl=file:///var/nvidia-driver-local-repo-rhel9-580.95.05\n", True),
    ],
)
def test_a_section_of_dnf_is_another_source_if_it_is_on(foreign, text, wanted):
    assert foreign("yum.repos.d/some.repo", text) is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"Types: deb\nURIs: {NVIDIA}\nSuites: /\n", True),
        (f"Enabled: no\nTypes: deb\nURIs: {NVIDIA}\nSuites: /\n", False),
        # A stanza that is off says nothing of the others.
        (f"Types: deb\nURIs: https://example.org\nEnabled: no\n\nTypes: deb\nURIs: {NVIDIA}\nSuites: /\n", True),
        (f"Types: deb\nURIs: {NVIDIA}\nenabled: no\n \nTypes: deb\nURIs: https://example.org\n", False),
        (f"# URIs: {NVIDIA}\nTypes: deb\nURIs: https://example.org\n", False),
        ("Types: deb\nURIs: file:/var/nvidia-driver-local-repo-debian12-580.95.05\nSuites: /\n", True),
    ],
)
def test_a_stanza_of_apt_is_another_source_if_it_is_on(foreign, text, wanted):
    assert foreign("apt/sources.list.d/some.sources", text) is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"deb https://example.org a b\ndeb [signed-by=/k] {NVIDIA} /\n", True),
        (f"deb https://example.org a b\n# deb {NVIDIA} /\n", False),
        ("deb [signed-by=/k] file:///var/nvidia-driver-local-repo-ubuntu2404-580.95.05 /\n", True),
    ],
)
@pytest.mark.parametrize("name", ["apt/sources.list", "apt/sources.list.d/some.list"])
def test_a_line_of_apt_is_another_source_unless_it_is_a_comment(foreign, name, text, wanted):
    assert foreign(name, text) is wanted


def test_the_files_of_quench_are_no_other_source(foreign):
    assert not foreign("yum.repos.d/quench-nvidia.repo", f"[quench-nvidia]\nbaseurl={NVIDIA}\n")


def test_a_host_as_the_data_says_has_no_problem(found):
    assert found(EIGHT) == []


@pytest.mark.parametrize("devices", [[], [H100] * 7, [L4] * 8, [*[H100] * 8, L4]])
def test_other_gpus_than_the_data_says_are_refused_with_what_to_set(found, devices):
    problem = only(found([*pci(*devices), *ROOM]))
    assert problem.key == "nvidia_driver_gpus"
    assert problem.remedy.startswith("set nvidia_driver_gpus = {")


def test_what_to_set_is_what_the_host_has(found):
    assert "{'h100-sxm': 7}" in only(found([*pci(*[H100] * 7), *ROOM])).remedy


def test_a_gpu_that_is_not_in_the_table_is_refused_with_its_id(found):
    problem = only(found([*EIGHT, "pci 0000:99:00.0 0x030200 0xabcd"]))
    assert "abcd" in problem.what
    assert "compatibility.yaml" in problem.remedy


def test_a_driver_that_no_package_manager_knows_is_refused(found):
    problem = only(found([*EIGHT, "runfile"]))
    assert "nvidia-uninstall" in problem.remedy


def test_a_driver_that_secure_boot_would_not_load_is_refused_with_the_way_to_enroll_its_key(found):
    problem = only(found([*EIGHT, "secure-boot"]))
    assert "mokutil --import" in problem.remedy
    assert "console" in problem.remedy


def test_every_other_source_of_the_packages_is_refused_with_its_file(found):
    lines = [*EIGHT, "foreign /etc/apt/sources.list.d/cuda.list", "foreign /etc/yum.repos.d/cuda.repo"]
    assert sorted(problem.what.split()[0] for problem in found(lines)) == [
        "/etc/apt/sources.list.d/cuda.list",
        "/etc/yum.repos.d/cuda.repo",
    ]


def test_packages_of_another_source_are_refused_by_name(found):
    assert "nvidia-headless-535" in only(found([*EIGHT, "package nvidia-headless-535"])).what


def test_nouveau_is_no_problem_since_a_reboot_ends_it(found):
    assert found([*EIGHT, "nouveau"]) == []


@pytest.mark.parametrize("folder", ["/usr", "/var/lib", "/boot"])
def test_a_full_folder_is_refused_by_name(found, folder):
    lines = [line if f" {folder} " not in line else f"space {folder} 1024" for line in EIGHT]
    problem = only(found(lines))
    assert f"{folder} has 1 MiB free" in problem.what


def test_room_is_not_asked_for_again_once_the_driver_is_loaded(found):
    full = [*pci(*[H100] * 8), "space /usr 1024", "loaded 580.95.05"]
    assert found(full) == []
    assert found([line.replace("580.95.05", "580.126.20") for line in full]) != []


def test_all_that_is_amiss_comes_together(found):
    lines = [*pci(L4), "runfile", "secure-boot", "foreign /etc/yum.repos.d/cuda.repo", "space /usr 1"]
    keys = sorted(problem.key for problem in found(lines))
    assert keys == ["nvidia_driver_gpus", "nvidia_driver_repository", *["nvidia_driver_version"] * 3]


# As the kernel module shows what it was loaded with.
PARAMS = """\
EnableMSI: 1
DynamicPowerManagement: 2
RmProfilingAdminOnly: 1
RegistryDwords: ""
CoherentGPUMemoryMode: "driver"
"""


@pytest.fixture
def reasons(tmp_path):
    """Why a host whose module was loaded like this would be rebooted for these options."""

    def ask(*options):
        (tmp_path / "params").write_text(PARAMS)
        script = (CHECKOUT / "roles" / "nvidia_driver" / "reboot.sh").read_text()
        for path in ("/proc/driver/nvidia", "/sys/module"):
            assert path in script
            script = script.replace(path, str(tmp_path))
        command = ["sh", "-c", script, "reboot.sh", "580.95.05", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.stdout.splitlines()

    return ask


@pytest.mark.parametrize(
    "option",
    [
        "NVreg_DynamicPowerManagement=2",
        "NVreg_DynamicPowerManagement=0x02",
        "NVreg_EnableMSI=0X1",
        "NVreg_CoherentGPUMemoryMode=driver",
        "NVreg_RestrictProfilingToAdminUsers=1",
        # The module does not show it.
        "NVreg_Unknown=1",
    ],
)
def test_an_option_that_is_in_force_needs_no_reboot_however_it_is_written(reasons, option):
    assert reasons(option) == []


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("NVreg_DynamicPowerManagement=0x03", "DynamicPowerManagement is 2, and should be 0x03"),
        ("NVreg_CoherentGPUMemoryMode=numa", "CoherentGPUMemoryMode is driver, and should be numa"),
        ("NVreg_RestrictProfilingToAdminUsers=0", "RestrictProfilingToAdminUsers is 1, and should be 0"),
    ],
)
def test_an_option_that_is_not_in_force_needs_a_reboot(reasons, option, why):
    assert reasons(option) == [f"the module's option {why}"]
