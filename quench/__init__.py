"""The kit: what roles, deploys and inventories are written with."""

from quench.contracts import Engine, LogFiles, Route
from quench.files import Managed, ManagedDirectory, ManagedFile, template, to_json, to_yaml
from quench.operations import (
    account,
    install,
    model_files,
    packages,
    python_environment,
    require_path,
    service,
)
from quench.preflight import preflight
from quench.problems import Problem, Refused
from quench.role import role

__all__ = [
    "Engine",
    "LogFiles",
    "Managed",
    "ManagedDirectory",
    "ManagedFile",
    "Problem",
    "Refused",
    "Route",
    "account",
    "install",
    "model_files",
    "packages",
    "preflight",
    "python_environment",
    "require_path",
    "role",
    "service",
    "template",
    "to_json",
    "to_yaml",
]
