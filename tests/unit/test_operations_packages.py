import pytest

from quench import facts
from quench.operations import packages as module

WHOLE = ("ii |libcuda1|580.95.05-1", "ii |nvlsm|2025.10.12-1")


@pytest.fixture
def packages(arguments, commands):
    """What the script is told: the units to hold back, and a line for each package."""

    def run(*installed, names=("nginx", "curl"), hold_back=()):
        found = commands(module._packages, installed, names=list(names), hold_back=list(hold_back))
        return [(arguments(command)[-3], arguments(command)[-2].splitlines()) for command in found]

    return run


def test_packages_that_are_there_are_left_as_they_are(packages):
    assert packages("ii |nginx|1.22.1-9", "ii |curl|7.88") == []


def test_only_missing_packages_are_installed_in_whatever_version(packages):
    assert packages("ii |nginx|1.22.1-9") == [("", ["curl *"])]


@pytest.mark.parametrize("status", ["iF ", "iU ", "rc ", "un "])
def test_a_package_that_is_not_whole_counts_as_missing(packages, status):
    assert packages(f"{status}|nginx|1.22.1-9", "ii |curl|7.88") == [("", ["nginx *"])]


def test_a_service_is_held_back(packages):
    assert packages(hold_back=["nginx.service"]) == [("nginx.service", ["nginx *", "curl *"])]


def test_a_package_that_is_held_counts_as_installed():
    rows = ["ii |a|1", "hi |b|2", "iU |c|3", "rc |d|4", "un |e|"]
    assert facts.Packages().process(rows) == {"a": "1", "b": "2"}


@pytest.fixture
def pinned(arguments, commands):
    """What the script is told on a host with these packages, where the check's failure prints `no`."""

    def run(*installed, check_fails=False, platform="debian-12", **more):
        answers = {
            "dpkg-query": list(installed),
            "rpm -q": list(installed),
            "is-well": ["no"] if check_fails else [],
        }
        wanted = {"versions": {"libcuda1": "580.95.05", "nvlsm": "2025.10.12"}, "family": ["nvidia-*"], "former": [],
                  "extra": [], "source": "/etc/x.repo", "check": "is-well", "hold_back": []} | more  # fmt: skip
        found = commands(module._pinned_packages, answers, on={"platform": platform}, **wanted)
        return [arguments(command) for command in found]

    return run


def test_packages_of_the_pinned_versions_are_left_alone(pinned):
    assert pinned(*WHOLE) == []
    assert pinned("hi |libcuda1|3:580.95.05-0ubuntu1", "ii |nvlsm|2025.10.12-1") == []


@pytest.mark.parametrize(
    "row",
    ["ii |libcuda1|580.126.20-1", "ii |libcuda1|595.71.05-1", "iF |libcuda1|580.95.05-1"],
)
def test_one_package_of_another_version_moves_them_all(pinned, row):
    ((_, manager, _, _, _, lines, _),) = pinned(row, WHOLE[1])
    assert manager == "apt"
    assert lines.splitlines() == ["libcuda1 580.95.05", "nvlsm 2025.10.12"]


def test_a_package_that_is_missing_moves_them_all(pinned):
    assert len(pinned(WHOLE[0])) == 1


def test_a_former_name_that_is_still_there_goes(pinned):
    ((*_, lines, _),) = pinned(*WHOLE, "ii |libnvidia-compute-580|580.95.05-1", former=["libnvidia-compute-580"])
    assert "libnvidia-compute-580 -" in lines.splitlines()
    assert pinned(*WHOLE, former=["libnvidia-compute-580"]) == []


def test_what_comes_along_in_any_version_is_no_reason_by_itself(pinned):
    extra = ["linux-headers-$(uname -r)"]
    assert pinned(*WHOLE, extra=extra) == []
    ((*_, lines, _),) = pinned(WHOLE[0], extra=extra)
    # Filled in on the host, and by no shell on the way.
    assert lines.splitlines()[-1] == "linux-headers-$(uname -r) *"


def test_a_check_that_fails_is_a_reason_although_all_packages_are_there(pinned):
    assert len(pinned(*WHOLE, check_fails=True)) == 1


def test_the_check_the_family_and_what_is_held_back_reach_the_script_as_they_are(pinned):
    family, units = ["*nvidia*", "libnvsdm*"], ["nvidia-dcgm.service", "x.service"]
    ((name, _, given, check, held, _, source),) = pinned(family=family, hold_back=units)
    assert (name, given, check, held, source) == (
        "packages.sh",
        "*nvidia* libnvsdm*",
        "is-well",
        "nvidia-dcgm.service x.service",
        "/etc/x.repo",
    )


def test_the_rhel_family_is_asked_through_rpm_and_changed_through_dnf(pinned):
    assert pinned("ii |libcuda1|580.95.05-1.el9", "ii |nvlsm|2025.10.12-1", platform="rhel-9") == []
    assert pinned(platform="rhel-10")[0][1] == "dnf"
