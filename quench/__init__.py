"""The kit: what roles, deploys and inventories are written with."""

from quench.contracts import Certificate, Engine, Flow, Gpus, HostEngine, LogFiles, Node, Route, Slices
from quench.files import Managed, ManagedDirectory, ManagedFile, template, to_json, to_yaml
from quench.flows import WORLD, download, zone_of
from quench.guard import prove
from quench.operations.accounts import account
from quench.operations.commands import shell_script
from quench.operations.downloads import model_files, python_environment
from quench.operations.files import install
from quench.operations.packages import packages, pinned_packages
from quench.operations.questions import ask, confirm, ensure, require_path
from quench.operations.services import keep_off, service, services
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
