import re
import subprocess

import pytest

from quench.files import CHECKOUT, ManagedDirectory, ManagedFile
from roles.hardening import HardeningSettings, files
from roles.hardening.deploy import _other_listener
from roles.hardening.files import TMP_LATER

DATA = {"platform": "debian-12"}


@pytest.fixture
def found(problems):
    return lambda **changes: problems(HardeningSettings, DATA | changes)


def rendered(*roles, **changes):
    settings = HardeningSettings.load("node1", DATA | changes)
    return {file.dest: file.content for file in files(settings, roles) if isinstance(file, ManagedFile)}


def options(text):
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    # sshd_config(5): the first value counts.
    return dict(reversed(lines))


def sshd(**changes):
    return rendered(**changes)["/etc/ssh/sshd_config.d/00-quench.conf"]


def test_the_defaults_have_no_problem(found):
    assert found() == []


def test_nobody_logs_in_by_password_or_as_root():
    wanted = {
        "PermitRootLogin": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitEmptyPasswords": "no",
        "HostbasedAuthentication": "no",
        "PubkeyAuthentication": "yes",
    }
    assert options(sshd()).items() >= wanted.items()


def test_the_host_is_a_way_to_no_other():
    wanted = {"AllowTcpForwarding": "no", "AllowAgentForwarding": "no", "X11Forwarding": "no", "PermitTunnel": "no"}
    assert options(sshd()).items() >= wanted.items()
    # pyinfra brings files by SFTP, which DisableForwarding and a ForceCommand would leave alone or break.
    assert "ForceCommand" not in sshd()


def test_a_relaxation_of_tmp_stands_in_a_file_with_its_reason_too():
    path = "/etc/apt/apt.conf.d/53quench-tmp"
    assert 'TempDir "/var/cache/apt";' in rendered()[path]
    relaxed = {"tmp-exec": "an agent unpacks itself there, change 4711"}
    text = rendered(hardening_relaxations=relaxed)[path]
    assert "# Relaxed by hardening_relaxations, tmp-exec: an agent unpacks itself there, change 4711\n" in text
    assert "TempDir" not in text
    assert HardeningSettings.load("node1", DATA).tmp_options() == "nosuid,nodev,noexec"
    assert HardeningSettings.load("node1", DATA | {"hardening_relaxations": relaxed}).tmp_options() == "nosuid,nodev"


@pytest.fixture
def mounts(tmp_path):
    """host.sh's part on mounts, with an fstab and a findmnt of our own.

    What it says, what it remounts, and the fstab after it.
    """
    script = (CHECKOUT / "roles" / "hardening" / "host.sh").read_text()
    functions = re.findall(r"^\w+\(\) \{.*?^\}\n|^in_fstab.*\n", script, re.MULTILINE | re.DOTALL)
    calls = [line for line in script.splitlines() if line.startswith("mounted /")]
    assert len(calls) == 7
    fstab = tmp_path / "fstab"
    for name, body in {
        "findmnt": f'while [ "$1" != --mountpoint ]; do shift; done; sed -n "s,^$2 ,,p" {tmp_path}/mounted',
        "mount": f'echo "$*" >>{tmp_path}/said',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(mode, before, mounted="", tmp="nosuid,nodev,noexec"):
        if before is not None:
            fstab.write_text(before)
        (tmp_path / "mounted").write_text(mounted)
        (tmp_path / "said").write_text("")
        arguments = f"mode={mode} tmp_options={tmp} tmp_later={tmp_path}/later"
        text = "\n".join([arguments, *functions, *calls]).replace("/etc/fstab", str(fstab))
        done = subprocess.run(
            ["sh", "-c", text], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.splitlines(), (tmp_path / "said").read_text().splitlines(), fstab.read_text()

    return run


OURS = "tmpfs /tmp tmpfs nosuid,nodev,noexec 0 0\ntmpfs /dev/shm tmpfs nosuid,nodev,noexec 0 0\n"


# Also where the last line has no end, and where there is no file yet.
@pytest.mark.parametrize("before", ["", "# nothing yet", "UUID=1 / ext4 errors=remount-ro 0 1", None])
def test_tmp_and_shared_memory_get_a_line_in_fstab_once(mounts, before):
    if before is not None:
        said, _, after = mounts("ask", before)
        assert len(said) == 2 and after == before
    _, remounted, after = mounts("mend", before)
    assert after == (f"{before}\n" if before else "") + OURS
    assert remounted == []
    assert mounts("ask", after)[0] == []


def test_a_tmp_that_is_a_folder_waits_for_the_next_boot(mounts, tmp_path):
    mounts("ask", "")
    assert not (tmp_path / "later").exists()
    mounts("mend", "")
    assert (tmp_path / "later").exists()
    condition = f"ConditionPathExists=!{TMP_LATER}\n"
    assert condition in rendered()["/etc/systemd/system/tmp.mount.d/quench.conf"]


def test_a_tmp_that_is_mounted_waits_for_nothing(mounts, tmp_path):
    mounts("mend", "", "/tmp rw,nosuid,nodev\n")
    assert not (tmp_path / "later").exists()


def test_what_is_a_file_system_of_its_own_gets_the_options_that_it_lacks(mounts):
    before = (
        "# /tmp is the operator's\n/dev/sda3 /tmp ext4 defaults,nodev 0 2\n/dev/sda4\t/home\txfs\tnosuid,nodev 0 2\n"
        "LABEL=log /var/log ext4 rw,noexec 0 2\n/dev/sda5 /data ext4 defaults 0 2\n" + OURS.splitlines()[1] + "\n"
    )
    mounted = "/tmp rw,nodev,relatime\n/var/log rw,noexec\n/dev/shm rw,nosuid,nodev,noexec\n"
    said, remounted, after = mounts("mend", before, mounted)
    assert said == []
    assert remounted == ["-o remount,nosuid,nodev,noexec /tmp", "-o remount,nosuid,nodev,noexec /var/log"]
    assert after.splitlines() == [
        "# /tmp is the operator's",
        "/dev/sda3 /tmp ext4 defaults,nodev,nosuid,noexec 0 2",
        "/dev/sda4\t/home\txfs\tnosuid,nodev 0 2",
        "LABEL=log /var/log ext4 rw,noexec,nosuid,nodev 0 2",
        "/dev/sda5 /data ext4 defaults 0 2",
        OURS.splitlines()[1],
    ]
    healed = "/tmp rw,nosuid,nodev,noexec\n/var/log rw,nosuid,nodev,noexec\n"
    assert mounts("ask", after, healed)[0] == []


def test_the_relaxation_undoes_what_a_run_without_it_has_done_and_nothing_else(mounts):
    _, remounted, after = mounts("mend", f"# mine\n{OURS}", "/tmp rw,nosuid,nodev,noexec\n", "nosuid,nodev")
    assert after == f"# mine\n{OURS.splitlines()[1]}\ntmpfs /tmp tmpfs nosuid,nodev 0 0\n"
    assert remounted == ["-o remount,nosuid,nodev,exec /tmp"]
    assert mounts("ask", after, "/tmp rw,nosuid,nodev\n", "nosuid,nodev")[0] == []
    # And back.
    assert "tmpfs /tmp tmpfs nosuid,nodev,noexec 0 0\n" in mounts("mend", after)[2]
    theirs = f"/dev/sda3 /tmp ext4 nosuid,nodev,noexec 0 2\n{OURS.splitlines()[1]}\n"
    assert mounts("mend", theirs, tmp="nosuid,nodev")[2] == theirs


def test_with_the_relaxation_programs_run_from_tmp(mounts):
    assert "tmpfs /tmp tmpfs nosuid,nodev 0 0\n" in mounts("mend", "", tmp="nosuid,nodev")[2]


@pytest.mark.parametrize("refuses", [True, False])
def test_profiles_that_pam_does_not_take_up_end_the_run_with_the_reason(tmp_path, refuses):
    """pam-auth-update(8) leaves a file alone in which somebody has changed its part, and ends with 0."""
    script = (CHECKOUT / "roles" / "hardening" / "host.sh").read_text()
    parts = re.findall(r"^item\(\) \{.*?^\}\n|^profiles=.*?\n\n", script, re.M | re.S)
    assert len(parts) == 2
    for place, name in (("/usr/share/pam-configs", "configs"), ("/var/lib/quench/converged", "."), ("/etc/pam.d", ".")):
        parts = [part.replace(place, str(tmp_path / name)) for part in parts]
    (tmp_path / "configs").mkdir()
    for name in ("quench-faillock", "quench-faillock-notify", "quench-pwhistory"):
        (tmp_path / "configs" / name).touch()
    (tmp_path / "common-auth").touch()
    program = tmp_path / "pam-auth-update"
    program.write_text("#!/bin/sh\n" + ("" if refuses else f"echo pam_faillock.so >{tmp_path}/common-auth\n"))
    program.chmod(0o755)
    text = "\n".join(["mode=mend failed=", *parts, '[ -z "$failed" ]'])
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", text], env=environment, capture_output=True, text=True, check=False)
    said = "quench: PAM: is not as it should be, and could not be made so\n" if refuses else ""
    assert (done.returncode != 0, done.stderr, (tmp_path / "pam").exists()) == (refuses, said, not refuses)


def test_whoever_may_log_in_keeps_the_shell_and_a_service_does_not(tmp_path):
    script = (CHECKOUT / "roles" / "hardening" / "host.sh").read_text()
    parts = re.findall(r"^(?:item|logs_in)\(\) \{.*?^\}\n|^getent -s files passwd.*?^done\n", script, re.M | re.S)
    assert len(parts) == 3
    keys = tmp_path / "keyed" / ".ssh" / "authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text("ssh-ed25519 x")
    names = ["root", "service", "keyed", "runner", "operator", "wheeler", "locked"]
    rows = [f"{name}:x:{uid}:0::{tmp_path}/{name}:/bin/sh" for uid, name in enumerate(names)]
    rows[-1] = rows[-1].replace("/bin/sh", "/usr/sbin/nologin")
    programs = {
        # The accounts of a directory are asked for by no other name.
        "getent": f"[ \"$*\" = '-s files passwd' ] && cat {tmp_path}/passwd",
        "id": 'case $2 in operator) echo users sudo ;; wheeler) echo wheel ;; *) echo "$2 sudo-log wheels" ;; esac',
        "usermod": f'echo "$*" >>{tmp_path}/said',
    }
    (tmp_path / "passwd").write_text("".join(f"{row}\n" for row in rows))
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SUDO_USER": "runner"}
    for mode, printed in (("ask", "service: shell\n"), ("mend", "")):
        text = "\n".join([f"mode={mode}", *parts])
        done = subprocess.run(["sh", "-c", text], env=environment, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (printed, "")
    assert (tmp_path / "said").read_text() == "--shell /usr/sbin/nologin service\n"


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("password-login", "PasswordAuthentication", "yes"),
        ("root-login", "PermitRootLogin", "prohibit-password"),
        ("tcp-forwarding", "AllowTcpForwarding", "yes"),
    ],
)
def test_a_relaxation_stands_in_the_file_with_its_reason(name, option, value):
    text = sshd(hardening_relaxations={name: "for a migration, change 4711"})
    assert options(text)[option] == value
    assert f"# Relaxed by hardening_relaxations, {name}: for a migration, change 4711\n{option} {value}\n" in text
    assert options(sshd())[option] != value


@pytest.mark.parametrize("reason", ["", "yes", "two\nlines"])
def test_a_relaxation_needs_a_reason(found, reason):
    (problem,) = found(hardening_relaxations={"password-login": reason})
    assert "has no reason" in problem.what


def test_a_relaxation_that_nobody_knows_is_refused(found):
    (problem,) = found(hardening_relaxations={"telnet": "old habits, change 1"})
    assert problem.key.startswith("hardening_relaxations")


def test_only_the_users_named_log_in():
    assert options(sshd(hardening_ssh_users=["ops", "deploy"]))["AllowUsers"] == "ops deploy"
    assert "AllowUsers" not in options(sshd())


@pytest.mark.parametrize(
    ("password", "root", "relaxed", "missing"),
    [
        ("no", "no", (), ""),
        ("yes", "no", (), "passwordauthentication no"),
        ("no", "yes", (), "permitrootlogin no"),
        ("yes", "without-password", (), "passwordauthentication no permitrootlogin no"),
        ("yes", "without-password", ("password-login", "root-login"), ""),
        ("no", "without-password", ("password-login", "root-login"), "passwordauthentication yes"),
    ],
)
def test_what_sshd_makes_of_all_its_files_is_what_ours_say_of_logins(tmp_path, password, root, relaxed, missing):
    (tmp_path / "sshd").write_text(
        "#!/bin/sh\n[ $1 = -t ] || "
        f"printf '%s\\n' 'port 22' 'passwordauthentication {password}' 'permitrootlogin {root}' 'usepam yes'\n"
    )
    (tmp_path / "sshd").chmod(0o755)
    settings = HardeningSettings.load("node1", DATA | {"hardening_relaxations": dict.fromkeys(relaxed, "for change 1")})
    check = next(file.check for file in files(settings) if file.dest.endswith("/00-quench.conf"))
    assert check.startswith("sshd -t && ") and "\n" not in check
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1 if missing else 0, "")
    assert done.stderr.endswith(f"not in force: {missing}\n" if missing else "")


def test_files_that_sshd_does_not_take_are_refused_by_its_own_words(tmp_path):
    (tmp_path / "sshd").write_text("#!/bin/sh\necho 'line 3: Bad configuration option' >&2; exit 255\n")
    (tmp_path / "sshd").chmod(0o755)
    check = next(file.check for file in files(HardeningSettings.load("node1", DATA)) if "sshd_config.d" in file.dest)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", check], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and done.stderr == "line 3: Bad configuration option\n"


def test_another_port_is_refused_where_systemd_listens_for_sshd():
    assert _other_listener("node1", 22, ["ssh.socket"]) == _other_listener("node1", 2222, []) == []
    (problem,) = _other_listener("node1", 2222, ["ssh.socket"])
    assert (problem.host, problem.key) == ("node1", "hardening_ssh_port")
    assert "ssh.socket decides on the port" in problem.what and "disable --now ssh.socket" in problem.remedy


def test_forwarding_is_left_to_a_container_engine_where_there_is_one():
    assert "\nnet.ipv4.ip_forward = 0\n" in rendered()["/etc/sysctl.d/99-zz-quench.conf"]
    assert "ip_forward" not in rendered("container_toolkit")["/etc/sysctl.d/99-zz-quench.conf"]


def test_workers_of_one_engine_may_still_share_memory():
    # 2 and 3 forbid pidfd_getfd among a user's own processes.
    assert "\nkernel.yama.ptrace_scope = 1\n" in rendered()["/etc/sysctl.d/99-zz-quench.conf"]


def test_modules_may_still_be_loaded():
    # Else the driver could not be, after the next update.
    assert "modules_disabled" not in rendered()["/etc/sysctl.d/99-zz-quench.conf"]


def test_what_containers_and_clouds_need_is_not_blacklisted():
    text = rendered()["/etc/modprobe.d/quench-hardening.conf"]
    assert "install usb-storage /bin/false\n" in text
    for module in ("overlay", "squashfs", "udf", "nvidia", "nouveau"):
        assert f"install {module} " not in text


def test_the_rules_of_the_audit_know_the_roles_of_the_host():
    bare, full = (rendered(*roles)["/etc/audit/rules.d/50-quench.rules"] for roles in ((), ("nginx", "vllm")))
    assert "-w /etc/nginx/quench -p rwa -k keys\n" in full and "/etc/nginx" not in bare
    assert "-w /srv/models -p wa -k models\n" in full and "/srv/models" not in bare


@pytest.mark.parametrize(
    ("role", "folders"),
    [
        ("haproxy", ["/etc/haproxy/quench"]),
        ("acme", ["/var/lib/quench-acme", "/etc/quench-acme"]),
        ("dcgm_exporter", ["/etc/dcgm-exporter/quench"]),
    ],
)
def test_the_audit_sees_who_reads_the_keys_of_a_role_that_the_host_has(role, folders):
    bare, full = (rendered(*roles)["/etc/audit/rules.d/50-quench.rules"] for roles in ((), (role,)))
    for folder in folders:
        assert f"-w {folder} -p rwa -k keys\n" in full and folder not in bare


def test_one_bad_rule_of_the_audit_takes_no_other_with_it():
    lines = rendered()["/etc/audit/rules.d/50-quench.rules"].splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith(("-w ", "-a "))]
    assert lines.index("-c") < rules[0]


def test_the_folder_of_a_role_that_comes_later_is_there_when_its_rule_is_loaded():
    made = [item.dest for item in files(HardeningSettings.load("node1", DATA)) if isinstance(item, ManagedDirectory)]
    assert made == ["/etc/firewalld"]


def test_the_audit_can_be_changed_without_a_reboot():
    # audit.rules(7): after `-e 2` the second run of anything fails until the next boot.
    assert "-e 2" not in rendered()["/etc/audit/rules.d/50-quench.rules"]


@pytest.mark.parametrize("paths", [{"company": "x"}, {"/etc/a b": "x"}, {"/etc/company": ""}, {"/etc/company": "a b"}])
def test_what_is_no_rule_for_the_audit_is_refused(found, paths):
    (problem,) = found(hardening_audit_paths=paths)
    assert "is no rule" in problem.what


@pytest.mark.parametrize("banner", ["Welcome to \\n", "Zutritt für Befugte"])
def test_a_banner_that_agetty_would_take_for_something_else_is_refused(found, banner):
    assert [problem.key for problem in found(hardening_banner=banner)] == ["hardening_banner"]


def test_aide_compares_what_the_inventory_names_and_no_model_store():
    lines = rendered(hardening_integrity_excluded=["/etc/adjtime$"])["/etc/aide/aide.conf"].splitlines()
    assert {"/etc Content", "/usr Content", "/opt Content", "!/etc/adjtime$"} <= set(lines)
    assert not [line for line in lines if line.startswith(("/srv", "/var", "/ "))]


def test_a_path_for_aide_is_absolute_and_one_word(found):
    assert "is no path" in found(hardening_integrity_paths=["etc"])[0].what
    assert "is no path" in found(hardening_integrity_excluded=["/a b"])[0].what


def test_the_comparison_waits_for_a_baseline_with_what_a_run_has_brought():
    lines = rendered()["/etc/systemd/system/dailyaidecheck.service"].splitlines()
    # Not by a condition of its own: a comparison that is left out is none that failed, and the baseline would be taken
    # anew over what the one before had found.
    assert {"Wants=aide-baseline.service", "After=aide-baseline.service"} <= set(lines)
    assert not [line for line in lines if line.startswith("ExecCondition=")]
