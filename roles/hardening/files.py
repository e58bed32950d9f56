"""Files of the hardening role."""

from __future__ import annotations

from collections.abc import Sequence

from quench import LogFiles, Managed, ManagedFile, template
from roles.hardening.settings import HardeningSettings

SSHD = "ssh.service"
AUDITD = "auditd.service"
AUDIT_RULES = "audit-rules.service"
JOURNALD = "systemd-journald.service"
# libpam-pwquality: the strength of passwords. needrestart: what still runs with a library of before an update; it only
# lists. debsums: whether the files of packages are those that were delivered. libpam-tmpdir: a /tmp for each user.
PACKAGES = ["auditd", "debsums", "libpam-pwquality", "libpam-tmpdir", "needrestart"]
LOGS = LogFiles(service="sudo", paths=("/var/log/sudo.log",), owner="root", reopen=":")

# What host.sh changes in files that belong to the distribution: they go back together with the role's own.
EDITED = (
    "/etc/bash.bashrc",
    "/etc/login.defs",
    "/etc/pam.d/common-account",
    "/etc/pam.d/common-auth",
    "/etc/pam.d/common-password",
    "/etc/pam.d/common-session",
    "/etc/pam.d/su",
    "/etc/profile",
)


def audit_units(settings: HardeningSettings) -> list[str]:
    """The units of auditd. Since audit 4, one of its own loads the rules, and comes first."""
    return [AUDIT_RULES, AUDITD] if settings.platform == "debian-13" else [AUDITD]


def files(settings: HardeningSettings, roles: Sequence[str] = ()) -> list[Managed]:
    """All files of the role, for a host that has these roles beside it."""
    values = {"settings": settings, "roles": roles}
    return [
        ManagedFile(
            "/etc/ssh/sshd_config.d/00-quench.conf",
            template("hardening", "/etc/ssh/sshd_config.d/00-quench.conf", values),
            mode=0o600,
            check="sshd -t",
            reloads=SSHD,
        ),
        ManagedFile(
            "/etc/sysctl.d/99-zz-quench.conf",
            template("hardening", "/etc/sysctl.d/99-zz-quench.conf", values),
        ),
        ManagedFile(
            "/etc/modprobe.d/quench-hardening.conf",
            template("hardening", "/etc/modprobe.d/quench-hardening.conf", values),
        ),
        ManagedFile(
            "/etc/security/limits.d/quench.conf",
            template("hardening", "/etc/security/limits.d/quench.conf", values),
        ),
        ManagedFile(
            "/etc/security/faillock.conf",
            template("hardening", "/etc/security/faillock.conf", values),
        ),
        ManagedFile(
            "/etc/security/pwhistory.conf",
            template("hardening", "/etc/security/pwhistory.conf", values),
        ),
        ManagedFile(
            "/etc/security/pwquality.conf",
            template("hardening", "/etc/security/pwquality.conf", values),
        ),
        ManagedFile(
            "/etc/systemd/coredump.conf.d/quench.conf",
            template("hardening", "/etc/systemd/coredump.conf.d/quench.conf", values),
        ),
        ManagedFile(
            "/etc/profile.d/quench.sh",
            template("hardening", "/etc/profile.d/quench.sh", values),
        ),
        ManagedFile(
            "/usr/share/pam-configs/quench-faillock",
            template("hardening", "/usr/share/pam-configs/quench-faillock", values, comment="X-Quench:"),
        ),
        ManagedFile(
            "/usr/share/pam-configs/quench-faillock-notify",
            template("hardening", "/usr/share/pam-configs/quench-faillock-notify", values, comment="X-Quench:"),
        ),
        ManagedFile(
            "/usr/share/pam-configs/quench-pwhistory",
            template("hardening", "/usr/share/pam-configs/quench-pwhistory", values, comment="X-Quench:"),
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
        ManagedFile(
            "/etc/audit/rules.d/50-quench.rules",
            template("hardening", "/etc/audit/rules.d/50-quench.rules", values),
            mode=0o640,
            restarts=audit_units(settings)[0],
        ),
        ManagedFile(
            "/etc/systemd/system/auditd.service.d/quench.conf",
            template("hardening", "/etc/systemd/system/auditd.service.d/quench.conf", values),
            restarts=AUDITD,
        ),
        *(
            [
                ManagedFile(
                    "/etc/systemd/system/audit-rules.service.d/quench.conf",
                    template("hardening", "/etc/systemd/system/audit-rules.service.d/quench.conf", values),
                    restarts=AUDIT_RULES,
                )
            ]
            if AUDIT_RULES in audit_units(settings)
            else []
        ),
        ManagedFile("/etc/default/debsums", template("hardening", "/etc/default/debsums", values)),
        ManagedFile("/etc/issue", f"{settings.banner}\n"),
        ManagedFile("/etc/issue.net", f"{settings.banner}\n"),
    ]
