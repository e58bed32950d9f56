"""The base of a host: administrator, sources, clock, locale, updates; and that nothing has drifted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Unit

Manifests = dict[str, dict[str, "Entry"]]


@pytest.fixture(scope="module")
def files(manifests: Manifests) -> dict[str, Entry]:
    """All managed files of all roles."""
    return {path: entry for role in manifests.values() for path, entry in role.items()}


@pytest.fixture(scope="module")
def admin(manifests: Manifests) -> str:
    keys = [entry.owner for path, entry in manifests["base"].items() if path.endswith("/.ssh/authorized_keys")]
    assert len(keys) == 1, keys
    return keys[0]


@pytest.fixture(scope="module")
def apt(host: Host) -> dict[str, list[str]]:
    """apt's configuration as it is in force, whichever file it comes from."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r'^(\S+) "(.*)";$', host.check_output("apt-config dump"), re.MULTILINE):
        found.setdefault(key.removesuffix("::"), []).append(value)
    return found


def test_no_unit_has_failed(host: Host, unit: Callable[[str], Unit]) -> None:
    failed = [line.split()[0] for line in host.check_output("systemctl --failed --plain --no-legend").splitlines()]
    assert failed == [], "\n".join(unit(name).journal() for name in failed)


def test_no_managed_file_has_drifted(host: Host, files: dict[str, Entry]) -> None:
    names = " ".join(f"'{path}'" for path in files)
    lines = host.run(f"sha256sum -- {names}").stdout.splitlines()
    found = {path: sha256 for sha256, path in (line.split("  ", 1) for line in lines)}
    drifted = [path for path, entry in files.items() if found.get(path) != entry.sha256]
    assert drifted == [], "edited or removed since the last run"


def test_managed_files_have_their_modes_and_owners(host: Host, files: dict[str, Entry]) -> None:
    names = " ".join(f"'{path}'" for path in files)
    lines = host.run(f"stat -c '%a %U %G %n' -- {names}").stdout.splitlines()
    found = {path: (int(mode, 8), owner, group) for mode, owner, group, path in (line.split(" ", 3) for line in lines)}
    wanted = {path: (entry.mode, entry.owner, entry.group) for path, entry in files.items()}
    assert found == wanted


def test_no_file_belongs_to_two_roles(manifests: Manifests, files: dict[str, Entry]) -> None:
    assert sum(len(role) for role in manifests.values()) == len(files)


def test_no_install_was_left_half_way(host: Host) -> None:
    found = host.check_output(
        "find /etc /home /var/lib/quench /run -xdev "
        r"\( -name '*.quench-new' -o -path '/var/lib/quench/*/.*.new' -o -path '/run/quench.??????' \) -print"
    )
    assert found == ""


def test_what_quench_knows_of_the_host_is_for_root_alone(host: Host) -> None:
    folder = host.file("/var/lib/quench/manifest")
    assert (folder.mode, folder.user) == (0o700, "root")


def test_the_administrator_has_no_password(host: Host, admin: str) -> None:
    assert host.user(admin).exists
    # shadow(5): a field that begins so matches no password.
    assert host.user(admin).password.startswith(("!", "*"))


def test_the_administrator_has_sudo_without_a_password(host: Host, admin: str) -> None:
    assert "NOPASSWD: ALL" in host.check_output("sudo --list --other-user=%s", admin)


def test_sudoers_is_valid(host: Host) -> None:
    done = host.run("visudo --check --quiet --file=/etc/sudoers")
    assert done.rc == 0, done.stderr
    file = host.file("/etc/sudoers.d/quench-admin")
    assert (file.mode, file.user, file.group) == (0o440, "root", "root")


def test_only_the_administrator_can_touch_the_login_keys(host: Host, admin: str) -> None:
    home = host.user(admin).home
    for path, mode in ((home, 0o700), (f"{home}/.ssh", 0o700), (f"{home}/.ssh/authorized_keys", 0o600)):
        file = host.file(path)
        assert (file.mode, file.user, file.group) == (mode, admin, admin), path


def test_the_login_keys_are_public_keys(host: Host, admin: str) -> None:
    path = f"{host.user(admin).home}/.ssh/authorized_keys"
    done = host.run("ssh-keygen -l -f %s", path)
    assert done.rc == 0, done.stderr
    assert "PRIVATE" not in host.file(path).content_string


def test_the_locale_is_there(host: Host) -> None:
    lang = host.check_output("sed -n 's/^LANG=//p' /etc/default/locale")
    done = host.run("LC_ALL=%s locale charmap", lang)
    assert (done.stdout.strip(), done.stderr) == ("UTF-8", ""), f"{lang} is named, but not generated"


def test_only_the_mirror_is_asked_for_packages(host: Host, manifests: Manifests) -> None:
    if "base-sources" not in manifests:
        pytest.skip("no package mirror: the distribution's own sources are in force")
    wanted = host.check_output("sed -n 's/^URIs: *//p' /etc/apt/quench-sources.d/mirror.sources").split()
    asked = re.findall(r"^'(\S+)'", host.check_output("apt-get --print-uris update"), re.MULTILINE)
    assert asked != []
    assert [uri for uri in asked if not uri.startswith(tuple(f"{mirror}/" for mirror in wanted))] == []


def test_updates_leave_kernel_driver_and_proxy_alone(apt: dict[str, list[str]]) -> None:
    fenced = set(apt["Unattended-Upgrade::Package-Blacklist"])
    assert fenced >= {"nvidia-", "libnvidia-", "cuda-", "linux-image", "linux-headers", "linux-modules", "nginx"}


def test_updates_never_reboot(apt: dict[str, list[str]]) -> None:
    assert apt["Unattended-Upgrade::Automatic-Reboot"] == ["false"]


def test_updates_are_for_security_alone(host: Host, apt: dict[str, list[str]], unit: Callable[[str], Unit]) -> None:
    if apt["APT::Periodic::Unattended-Upgrade"] == ["0"]:
        pytest.skip('relaxed by base_updates = "off"')
    origins = [origin for origin in apt["Unattended-Upgrade::Origins-Pattern"] if origin]
    assert origins != []
    assert [origin for origin in origins if not origin.endswith("-security")] == []
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert host.service(timer).is_enabled, timer
        assert unit(timer).property("ActiveState") == "active", unit(timer).journal()


def test_updates_restart_no_service(host: Host) -> None:
    assert "$nrconf{restart} = 'l';" in host.file("/etc/needrestart/conf.d/quench.conf").content_string


def test_the_clock_is_kept(host: Host, unit: Callable[[str], Unit]) -> None:
    chrony = unit("chrony.service")
    assert host.service("chrony.service").is_enabled
    # A container may not set the clock, and there the unit's own condition keeps it from starting.
    if chrony.property("ConditionResult") == "yes":
        assert chrony.property("ActiveState") == "active", chrony.journal()
