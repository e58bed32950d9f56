"""What this machine can do, and the podman flags that follow from it.

On an ordinary machine with podman none of the peculiarities applies and no flag is added. Each that does
apply is said in one line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quench.lab.progress import LabError, say

CGROUPS = Path("/sys/fs/cgroup")
# A namespace of mounts in which /sys/fs/cgroup is a pure cgroup2 tree. podman keeps network namespaces as
# mounts, so all its calls must share one.
NAMESPACE = Path("/run/quench-lab.mnt")
_CAP_SYS_RESOURCE = 24

TOOLS = {
    "podman": "podman",
    "mmdebstrap": "mmdebstrap",
    "nginx": "nginx",
    "ssh": "openssh-client",
    "runc": "runc",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "nsenter": "util-linux",
    "ip": "iproute2",
}
# netavark lives outside PATH.
_LIBEXEC = "/usr/lib/podman:/usr/libexec/podman"


@dataclass(frozen=True)
class Machine:
    """Peculiarities of the machine that the lab has to work around."""

    pure_cgroup2: bool
    may_raise_limits: bool
    pids_controller: bool

    @property
    def prefix(self) -> list[str]:
        """Words before `podman`."""
        return [] if self.pure_cgroup2 else ["nsenter", f"--mount={NAMESPACE}"]

    @property
    def run_flags(self) -> list[str]:
        """Words after `podman run`."""
        flags = []
        if not self.may_raise_limits:
            flags += ["--ulimit=nofile=20000:20000", "--ulimit=nproc=30000:30000", "--runtime=runc"]
        if not self.pids_controller:
            flags += ["--pids-limit=0"]
        return flags

    def notes(self) -> list[str]:
        """One line for each peculiarity."""
        notes = []
        if not self.pure_cgroup2:
            notes.append(f"hybrid cgroup tree: podman runs in a mount namespace of its own, {NAMESPACE}")
        if not self.may_raise_limits:
            notes.append("no CAP_SYS_RESOURCE: fixed limits for the hosts, and runc as their runtime")
        if not self.pids_controller:
            notes.append("no pids controller: no limit on the number of processes")
        return notes


def detect(cgroups: Path = CGROUPS, status: str | None = None) -> Machine:
    """Look at the machine. Changes nothing.

    Args:
        cgroups: where the control groups are mounted.
        status: text of /proc/self/status; None reads it.
    """
    controllers = cgroups / "cgroup.controllers"
    pure = controllers.exists()
    text = Path("/proc/self/status").read_text() if status is None else status
    effective = next(int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff"))
    return Machine(
        pure_cgroup2=pure,
        may_raise_limits=bool(effective >> _CAP_SYS_RESOURCE & 1),
        pids_controller=pure and "pids" in controllers.read_text().split(),
    )


def require_tools() -> None:
    """Raises LabError, naming the packages, if the lab's programs are not all there."""
    if os.geteuid() != 0:
        raise LabError("the lab makes networks and root file systems: run it as root (sudo)")
    path = f"{os.environ.get('PATH', '')}:{_LIBEXEC}:/usr/sbin:/sbin"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})
    if missing:
        raise LabError(
            f"these packages are missing: {' '.join(missing)}; install them: apt-get install {' '.join(missing)}"
        )


def prepare(machine: Machine) -> None:
    """Make the mount namespace, if this machine needs one. Left in place for the next call."""
    if machine.pure_cgroup2 or _is_namespace(NAMESPACE):
        return
    NAMESPACE.touch()
    run(
        "unshare",
        f"--mount={NAMESPACE}",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f"umount -R {CGROUPS}; mount -t cgroup2 cgroup2 {CGROUPS}",
    )


def release(machine: Machine) -> None:
    """Take the mount namespace away again."""
    if not machine.pure_cgroup2 and _is_namespace(NAMESPACE):
        run("umount", str(NAMESPACE))
        NAMESPACE.unlink()


def podman(machine: Machine, *arguments: str, check: bool = True, quiet: bool = True) -> str:
    """Run podman and return what it prints.

    Raises:
        LabError: with podman's own words, if it fails and `check` is set.
    """
    return run(*machine.prefix, "podman", "--log-level=error", *arguments, check=check, quiet=quiet)


def start_time(process: int) -> str:
    """When a process of this machine started, in ticks since this machine did; empty if there is none. proc(5)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def program(process: int) -> str:
    """The program that a process of this machine runs; empty if there is none. proc(5)."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def run(*command: str, check: bool = True, quiet: bool = True) -> str:
    """Run a program and return its standard output. Raises LabError if it fails and `check` is set."""
    done = subprocess.run(command, capture_output=quiet, text=True, check=False, cwd="/")
    if check and done.returncode != 0:
        raise LabError(f"{_shown(command)}: {(done.stderr or done.stdout or '').strip()[-2000:]}")
    return (done.stdout or "").strip()


def describe(machine: Machine) -> None:
    """Say what was detected."""
    for note in machine.notes():
        say(f"this machine: {note}")


def _is_namespace(path: Path) -> bool:
    return (
        path.exists()
        and subprocess.run(["nsenter", f"--mount={path}", "true"], capture_output=True, check=False).returncode == 0
    )


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)[:200]
