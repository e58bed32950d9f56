"""Print an OpenSSH configuration for the hosts of the lab $QUENCH_LAB."""

from quench.lab.fleet import LOGIN
from quench.lab.state import load

lab = load()
for host in lab.hosts:
    print(f"""\
Host {host.name}
    HostName {host.address}
    HostKeyAlias {host.address}
    User {LOGIN}
    IdentityFile {lab.folder / "login.key"}
    IdentitiesOnly yes
    UserKnownHostsFile {lab.folder / "known_hosts"}
    StrictHostKeyChecking yes
    LogLevel ERROR
    # One login for all checks.
    ControlPath {lab.folder}/%h.ssh
""")
