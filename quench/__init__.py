"""The kit: what roles, deploys and inventories are written with."""

from quench.contracts import Certificate, Engine, Flow, Gpus, HostEngine, LogFiles, Node, Route, Slices
from quench.files import Managed, ManagedDirectory, ManagedFile, template, to_json, to_yaml
from quench.flows import WORLD, download, zone_of
from quench.guard import prove
from quench.operations import (
    account,
    ask,
    confirm,
    ensure,
    install,
    keep_off,
    model_files,
    packages,
    pinned_packages,
    python_environment,
    require_path,
    service,
    services,
    shell_script,
)
from quench.plan import Peer, allow, allowed, peers
from quench.preflight import planned, preflight
from quench.problems import Problem, Refused
from quench.reboot import reboot
from quench.role import role

__all__ = [
    "WORLD",
    "Certificate",
    "Engine",
    "Flow",
    "Gpus",
    "HostEngine",
    "LogFiles",
    "Managed",
    "ManagedDirectory",
    "ManagedFile",
    "Node",
    "Peer",
    "Problem",
    "Refused",
    "Route",
    "Slices",
    "account",
    "allow",
    "allowed",
    "ask",
    "confirm",
    "download",
    "ensure",
    "install",
    "keep_off",
    "model_files",
    "packages",
    "peers",
    "pinned_packages",
    "planned",
    "preflight",
    "prove",
    "python_environment",
    "reboot",
    "require_path",
    "role",
    "service",
    "services",
    "shell_script",
    "template",
    "to_json",
    "to_yaml",
    "zone_of",
]
