"""Files of the hardening role."""

from __future__ import annotations

from collections.abc import Sequence

from quench import LogFiles, Managed, ManagedDirectory, ManagedFile, template
from roles.hardening.settings import HardeningSettings

SSHD = "ssh.service"
AUDITD = "auditd.service"
AUDIT_RULES = "audit-rules.service"
JOURNALD = "systemd-journald.service"
TIMERS = ("aide-baseline", "certificate-expiry", "dailyaidecheck")
_UNITS = tuple(f"{name}.{kind}" for name in TIMERS for kind in ("service", "timer"))
EXPIRY = "/usr/local/lib/quench/certificate-expiry"
# libpam-pwquality: the strength of passwords. needrestart: what still runs with a library of before an update; it only
# lists. debsums: whether the files of packages are those that were delivered. libpam-tmpdir: a /tmp for each user.
# openssl: until when certificates are valid.
PACKAGES = ["aide", "auditd", "debsums", "libpam-pwquality", "libpam-tmpdir", "needrestart", "openssl"]
LOGS = LogFiles(service="sudo", paths=("/var/log/sudo.log",), owner="root", reopen=":")

# Is there until the next boot, if /tmp is to be mounted then.
TMP_LATER = "/run/quench-tmp-later"
# For which profiles of PAM host.sh has called pam-auth-update.
PAM_STAMP = "/var/lib/quench/converged/pam"
# What host.sh changes in files that belong to the distribution: they go back together with the role's own. So does the
# stamp, or the next run would take PAM's files for those that it wants.
EDITED = (
    "/etc/bash.bashrc",
    "/etc/fstab",
    "/etc/login.defs",
    "/etc/pam.d/common-account",
    "/etc/pam.d/common-auth",
    "/etc/pam.d/common-password",
    "/etc/pam.d/common-session",
    "/etc/pam.d/su",
    "/etc/profile",
    PAM_STAMP,
)

# What Quench and the package manager have brought: a change of it is theirs.
_KNOWN = "/var/lib/quench/manifest/* /var/lib/dpkg/status"

# The certificate of the role acme: no run brings it, so no manifest names it.
_ISSUED = "/var/lib/quench-acme/tls/tls.crt"

_PLAIN = (
    "/etc/apt/apt.conf.d/53quench-tmp",
    "/etc/default/debsums",
    "/etc/modprobe.d/quench-hardening.conf",
    "/etc/profile.d/quench.sh",
    "/etc/security/faillock.conf",
    "/etc/security/limits.d/quench.conf",
    "/etc/security/pwhistory.conf",
    "/etc/security/pwquality.conf",
    "/etc/sysctl.d/99-zz-quench.conf",
    "/etc/systemd/coredump.conf.d/quench.conf",
    "/etc/systemd/system/apt-daily-upgrade.service.d/quench.conf",
    "/etc/systemd/system/tmp.mount.d/quench.conf",
)
_PAM = (
    "/usr/share/pam-configs/quench-faillock",
    "/usr/share/pam-configs/quench-faillock-notify",
    "/usr/share/pam-configs/quench-pwhistory",
)


def audit_units(settings: HardeningSettings) -> list[str]:
    """The units of auditd. Since audit 4, one of its own loads the rules, and comes first."""
    return [AUDIT_RULES, AUDITD] if settings.platform == "debian-13" else [AUDITD]


def _sshd_check(settings: HardeningSettings) -> str:
    """Whether sshd takes the files, and whether what they say of logins is what it makes of all its files."""
    password = "yes" if "password-login" in settings.relaxations else "no"
    root = "without-password" if "root-login" in settings.relaxations else "no"
    # All that a Match block may ask for, or sshd says nothing: sshd(8), -C.
    connection = f"user=root,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport={settings.ssh_port}"
    return (
        f"sshd -t && said=$(sshd -T -C {connection}) && if missing=$(printf '%s\\n' "
        f"'passwordauthentication {password}' 'permitrootlogin {root}' | grep -vxF -e \"$said\"); then "
        'echo "sshd_config does not include sshd_config.d, or has other values before it; not in force:" $missing >&2; '
        "exit 1; fi"
    )


def files(settings: HardeningSettings, roles: Sequence[str] = ()) -> list[Managed]:
    """All files of the role, for a host that has these roles beside it."""
    values = {
        "settings": settings,
        "roles": roles,
        "known": _KNOWN,
        "expiry": EXPIRY,
        "issued": _ISSUED,
        "tmp_later": TMP_LATER,
    }
    return [
        *(ManagedFile(dest, template("hardening", dest, values)) for dest in _PLAIN),
        *(ManagedFile(dest, template("hardening", dest, values, comment="X-Quench:")) for dest in _PAM),
        ManagedFile(
            "/etc/ssh/sshd_config.d/00-quench.conf",
            template("hardening", "/etc/ssh/sshd_config.d/00-quench.conf", values),
            mode=0o600,
            check=_sshd_check(settings),
            reloads=SSHD,
        ),
        ManagedFile(
            "/etc/systemd/journald.conf.d/quench.conf",
            template("hardening", "/etc/systemd/journald.conf.d/quench.conf", values),
            restarts=JOURNALD,
        ),
        ManagedFile(
            "/etc/sudoers.d/quench-hardening",
            template("hardening", "/etc/sudoers.d/quench-hardening", values),
            mode=0o440,
            check="visudo -c -q -f /etc/sudoers",
        ),
        # The firewall comes after this, and a rule for a folder that is not there yet would see nothing of what is in
        # it: auditctl(8), -w. The mode is that of the package.
        ManagedDirectory("/etc/firewalld", mode=0o750),
        ManagedFile(
            "/etc/audit/rules.d/50-quench.rules",
            template("hardening", "/etc/audit/rules.d/50-quench.rules", values),
            mode=0o640,
            restarts=audit_units(settings)[0],
        ),
        ManagedFile(
            f"/etc/systemd/system/{AUDITD}.d/quench.conf",
            template("hardening", f"/etc/systemd/system/{AUDITD}.d/quench.conf", values),
            restarts=AUDITD,
        ),
        *(
            [
                ManagedFile(
                    f"/etc/systemd/system/{AUDIT_RULES}.d/quench.conf",
                    template("hardening", f"/etc/systemd/system/{AUDIT_RULES}.d/quench.conf", values),
                    restarts=AUDIT_RULES,
                )
            ]
            if AUDIT_RULES in audit_units(settings)
            else []
        ),
        ManagedFile(
            "/etc/aide/aide.conf",
            template("hardening", "/etc/aide/aide.conf", values),
            mode=0o600,
            check="aide --config=/etc/aide/aide.conf --config-check",
        ),
        ManagedFile(EXPIRY, "#!/bin/sh\n" + template("hardening", EXPIRY, values), mode=0o755),
        *(
            ManagedFile(
                f"/etc/systemd/system/{unit}",
                template("hardening", f"/etc/systemd/system/{unit}", values),
                # All in one: it loads whatever a unit needs, which takes the time.
                check=f"systemd-analyze verify --man=no {' '.join(_UNITS)}",
                restarts=f"{unit.partition('.')[0]}.timer",
            )
            for unit in _UNITS
        ),
        ManagedFile("/etc/issue", f"{settings.banner}\n"),
        ManagedFile("/etc/issue.net", f"{settings.banner}\n"),
    ]
