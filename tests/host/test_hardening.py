"""The hardening: what sshd, PAM and sudo make of the files, and not what stands in them."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from testinfra.host import Host

if TYPE_CHECKING:
    from tests.host.conftest import Entry, Unit

EXPOSURE = 2.0


@pytest.fixture(scope="module")
def sshd(host: Host) -> dict[str, str]:
    """sshd's settings as they are in force, whichever file they come from."""
    lines = host.check_output("sshd -T").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


@pytest.fixture(scope="module")
def relaxed(host: Host) -> set[str]:
    """What is relaxed on this host, by the comments that say so."""
    paths = ("/etc/ssh/sshd_config.d/00-quench.conf", "/etc/apt/apt.conf.d/53quench-tmp")
    text = "".join(host.file(path).content_string for path in paths)
    return {line.split()[4].rstrip(":") for line in text.splitlines() if line.startswith("# Relaxed by ")}


def test_sshd_lets_nobody_in_by_password(sshd: dict[str, str], relaxed: set[str]) -> None:
    if "password-login" not in relaxed:
        assert sshd["passwordauthentication"] == "no"
    assert sshd["kbdinteractiveauthentication"] == "no"
    assert sshd["permitemptypasswords"] == "no"


def test_root_does_not_log_in(sshd: dict[str, str], relaxed: set[str]) -> None:
    assert sshd["permitrootlogin"] == ("without-password" if "root-login" in relaxed else "no")


def test_the_host_forwards_for_nobody(sshd: dict[str, str], relaxed: set[str]) -> None:
    if "tcp-forwarding" not in relaxed:
        assert sshd["allowtcpforwarding"] == "no"
    for key in ("x11forwarding", "allowagentforwarding", "permittunnel", "gatewayports"):
        assert sshd[key] == "no", key


def test_sshd_has_no_weak_cipher(sshd: dict[str, str]) -> None:
    assert not [name for name in sshd["ciphers"].split(",") if "cbc" in name or "3des" in name or "ctr" in name]
    assert all(name.endswith("-etm@openssh.com") for name in sshd["macs"].split(","))


@pytest.mark.parametrize("point", ["/tmp", "/dev/shm"])
def test_no_program_runs_from_where_everybody_writes(host: Host, relaxed: set[str], point: str) -> None:
    wanted = {"nosuid", "nodev", "noexec"} - ({"noexec"} if point == "/tmp" and "tmp-exec" in relaxed else set())
    rows = [line.split() for line in host.file("/etc/fstab").content_string.splitlines() if line.strip()]
    (options,) = [row[3] for row in rows if not row[0].startswith("#") and row[1] == point]
    assert wanted <= set(options.split(","))
    # A /tmp that is a folder of the root's becomes a file system of its own with the next boot.
    now = host.run("findmnt --noheadings --output OPTIONS --mountpoint %s", point).stdout.strip()
    assert not now or wanted <= set(now.split(","))


def test_sshd_runs_with_the_files_that_are_there(unit: Callable[[str], Unit]) -> None:
    assert unit("ssh.service").property("ActiveState") == "active", unit("ssh.service").journal()


def test_too_many_failures_lock_an_account(host: Host) -> None:
    lines = [line.split() for line in host.file("/etc/pam.d/common-auth").content_string.splitlines()]
    modules = [next((word for word in line if word.endswith(".so")), "") for line in lines if "#" not in line[:1]]
    faillock = [number for number, name in enumerate(modules) if name == "pam_faillock.so"]
    # Asked before the password, and told of a wrong one after it.
    assert len(faillock) == 2
    assert faillock[0] < modules.index("pam_unix.so") < faillock[1]


def test_new_passwords_have_to_be_good_and_new(host: Host) -> None:
    text = host.file("/etc/pam.d/common-password").content_string
    assert text.index("pam_pwquality.so") < text.index("pam_pwhistory.so") < text.index("pam_unix.so")


def test_a_password_that_is_bad_is_refused(host: Host) -> None:
    if not host.exists("pwscore"):
        pytest.skip("no pwscore on this host")
    assert host.run("echo Summer2026 | pwscore").rc != 0


def test_what_sudo_did_is_written_down(host: Host) -> None:
    # This check itself comes by sudo.
    assert host.file("/var/log/sudo.log").size > 0


def test_nobody_dumps_core(host: Host) -> None:
    assert host.check_output("su -s /bin/sh nobody -c 'ulimit -H -c'") == "0"


def test_accounts_of_services_have_no_shell(host: Host) -> None:
    rows = [line.split(":") for line in host.check_output("getent -s files passwd").splitlines()]
    shells = {row[0]: row[6] for row in rows if int(row[2]) < 1000 and row[0] not in ("root", "sync")}
    paths = " ".join(f"{row[5]}/.ssh/authorized_keys" for row in rows)
    keys = set(host.run(f"ls {paths} 2>/dev/null").stdout.split())
    keyed = {row[0] for row in rows if f"{row[5]}/.ssh/authorized_keys" in keys}
    bad = {name for name, shell in shells.items() if not shell.endswith(("/nologin", "/false"))}
    sudoers = {name for name in bad if {"sudo", "wheel"} & set(host.check_output(f"id -nG {name}").split())}
    assert bad <= keyed | sudoers | {host.check_output("echo ${SUDO_USER:-}")}


def test_compilers_are_for_the_engine_alone(host: Host, manifests: dict[str, dict[str, Entry]]) -> None:
    if "vllm" not in manifests:
        pytest.skip("no engine on this host")
    mode = host.file(host.check_output("readlink -f /usr/bin/gcc")).mode
    assert not mode & (stat.S_IRWXO)
    assert host.run("su -s /bin/sh vllm -c 'gcc --version'").rc == 0
    assert host.run("su -s /bin/sh nobody -c 'gcc --version'").rc != 0


def test_the_journal_is_kept_over_a_reboot(host: Host) -> None:
    assert host.file("/var/log/journal").is_directory


def test_the_rules_of_the_audit_are_loaded(host: Host, unit: Callable[[str], Unit]) -> None:
    if host.run("systemd-detect-virt --container --quiet").rc == 0:
        pytest.skip("the kernel's audit belongs to the machine that this container is on")
    assert unit("auditd.service").property("ActiveState") == "active"
    assert "-k units" in host.check_output("auditctl -l").replace("-F key=", "-k ")


def test_settings_of_the_kernel_are_in_force(host: Host) -> None:
    text = host.file("/etc/sysctl.d/99-zz-quench.conf").content_string
    wanted = dict(line.split(" = ") for line in text.splitlines() if " = " in line)
    if host.run("systemd-detect-virt --container --quiet").rc == 0:
        # The others belong to the machine that this container is on.
        wanted = {key: value for key, value in wanted.items() if key.startswith(("net.ipv4.", "net.ipv6."))}
    found = host.check_output(f"sysctl {' '.join(wanted)}").splitlines()
    assert dict(line.split(" = ") for line in found) == wanted


def test_no_change_waits_to_be_proved(host: Host) -> None:
    assert host.run("ls /var/lib/quench/guard").stdout == ""


def test_files_are_compared_each_day_with_a_baseline(host: Host, unit: Callable[[str], Unit]) -> None:
    for timer in ("aide-baseline.timer", "dailyaidecheck.timer"):
        assert host.service(timer).is_enabled, timer
        assert unit(timer).property("ActiveState") == "active", timer
    host.run_expect([0], "aide --config=/etc/aide/aide.conf --config-check")
    # The baseline is there from the first minute on.
    # The second: nothing has changed since the baseline was taken.
    assert unit("aide-baseline.service").property("Result") in ("success", "exec-condition")


def test_no_file_differs_from_its_baseline(unit: Callable[[str], Unit]) -> None:
    check = unit("dailyaidecheck.service")
    assert check.property("ActiveState") != "failed", check.journal()


def test_certificates_that_end_soon_are_looked_for_each_day(host: Host, unit: Callable[[str], Unit]) -> None:
    timer, service = unit("certificate-expiry.timer"), unit("certificate-expiry.service")
    assert host.service(timer.name).is_enabled
    assert timer.property("ActiveState") == "active", timer.journal()
    assert service.exposure() <= EXPOSURE
    assert service.property("ActiveState") != "failed", service.journal()


def test_no_certificate_ends_soon(host: Host) -> None:
    # What the unit has found may be a day old.
    found = host.run("/usr/local/lib/quench/certificate-expiry")
    assert found.rc == 0, found.stdout + found.stderr
