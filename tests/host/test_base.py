"""The base of a host: administrator, sources, clock, locale, updates."""

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
    # There, and not of the connection, which may have a banner to say.
    said = host.check_output("LC_ALL=%s locale charmap 2>&1", lang)
    assert said == "UTF-8", f"{lang} is named, but not generated"


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
