"""Files of the base role."""

from __future__ import annotations

from quench import WORLD, Flow, Managed, ManagedDirectory, ManagedFile, download, template
from roles.base.settings import BaseSettings

# Release name and package components, as sources.list(5) wants them.
_RELEASES = {
    # contrib: NVIDIA's packages for Debian ask for parts of it. Driver Installation Guide, chapter Debian.
    "debian-12": ("bookworm", "main contrib"),
    "debian-13": ("trixie", "main contrib"),
    "ubuntu-24.04": ("noble", "main universe"),
}
# The time servers that each distribution's own package is set up with.
_POOLS = {
    "debian-12": "2.debian.pool.ntp.org",
    "debian-13": "2.debian.pool.ntp.org",
    "ubuntu-24.04": "ntp.ubuntu.com",
}
# Debian's systemd has the second since 254, and makes the first a link to it at each boot.
_LOCALE = {
    "debian-12": "/etc/default/locale",
    "debian-13": "/etc/locale.conf",
    "ubuntu-24.04": "/etc/locale.conf",
}

CHRONY = "chrony.service"


def files(settings: BaseSettings) -> list[Managed]:
    """All files of the role."""
    admin, home = settings.admin_user, f"/home/{settings.admin_user}"
    values = {"settings": settings}
    return [
        ManagedDirectory(home, owner=admin, group=admin, mode=0o700),
        ManagedDirectory(f"{home}/.ssh", owner=admin, group=admin, mode=0o700),
        ManagedFile(
            f"{home}/.ssh/authorized_keys",
            template("base", "/home/admin/.ssh/authorized_keys", values),
            owner=admin,
            group=admin,
            mode=0o600,
        ),
        ManagedFile(
            "/etc/sudoers.d/quench-admin",
            template("base", "/etc/sudoers.d/quench-admin", values),
            mode=0o440,
            check="visudo -c -q -f /etc/sudoers",
        ),
        ManagedFile(_LOCALE[settings.platform], template("base", "/etc/default/locale", values)),
        ManagedFile(
            "/etc/apt/apt.conf.d/52quench-updates",
            template("base", "/etc/apt/apt.conf.d/52quench-updates", values, comment="//"),
            check="apt-config dump >/dev/null",
        ),
        ManagedFile(
            "/etc/needrestart/conf.d/quench.conf",
            template("base", "/etc/needrestart/conf.d/quench.conf", values),
        ),
        ManagedFile(
            "/etc/chrony/chrony.conf",
            template("base", "/etc/chrony/chrony.conf", {"settings": settings, "pool": _POOLS[settings.platform]}),
            check="chronyd -p -f /etc/chrony/chrony.conf >/dev/null",
            restarts=CHRONY,
        ),
    ]


def flows(settings: BaseSettings) -> list[Flow]:
    """What the host calls: names, time and packages."""
    zones = tuple(settings.service_zones)
    time = zones if settings.ntp_servers else (WORLD,)
    found = [
        Flow("base", "out", zones, 53, "names", "udp"),
        Flow("base", "out", zones, 53, "names", "tcp"),
        Flow("base", "out", time, 123, "time", "udp"),
    ]
    if settings.apt_mirror is None:
        # The distributions' own archives are reached by http, and vouched for by signatures.
        return [*found, Flow("base", "out", (WORLD,), 80, "packages of the distribution")]
    mirrors = {settings.apt_mirror, settings.apt_security_mirror}
    return found + [download("base", url, zones, "packages of the distribution") for url in mirrors]


def sources(settings: BaseSettings) -> list[Managed]:
    """The package sources, which must be in place before any package is installed."""
    if settings.apt_mirror is None:
        return []
    release, components = _RELEASES[settings.platform]
    distribution = settings.platform.partition("-")[0]
    values = {
        "settings": settings,
        "release": release,
        "components": components,
        "keyring": f"/usr/share/keyrings/{distribution}-archive-keyring.gpg",
    }
    return [
        ManagedFile(
            "/etc/apt/apt.conf.d/10quench-sources",
            template("base", "/etc/apt/apt.conf.d/10quench-sources", values, comment="//"),
        ),
        ManagedFile(
            f"{sources_folder(settings)}/mirror.sources",
            template("base", "/etc/apt/quench-sources.d/mirror.sources", values),
        ),
    ]


def sources_folder(settings: BaseSettings) -> str:
    """Where apt reads its sources: with a mirror, a folder of which the distribution knows nothing."""
    return "/etc/apt/sources.list.d" if settings.apt_mirror is None else "/etc/apt/quench-sources.d"
