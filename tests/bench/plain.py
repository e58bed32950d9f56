"""The same host state as deploys/inference.py, written with pyinfra's own operations and nothing of Quench.

A deploy file for the benchmark. What it puts into place it reads from a rendered tree, so it is the same bytes.
"""

import json
import os
import shlex
from io import StringIO
from pathlib import Path

from pyinfra import host
from pyinfra.facts.files import Sha256File
from pyinfra.operations import apt, files, server, systemd

_tree = Path(os.environ["QUENCH_BENCH_TREE"]) / host.name
_state = json.loads(os.environ["QUENCH_BENCH_STATE"])

apt.packages(name="Install packages", packages=_state["packages"])
for _user, _home, _shell in host.loop(_state["users"]):
    server.user(name=f"Have the user {_user}", user=_user, home=_home, shell=_shell, create_home=False)
for _path in host.loop(_state["folders"]):
    files.directory(name=f"Have {_path['path']}", **_path)
for _file in host.loop(_state["files"]):
    files.put(
        name=f"Put {_file['dest']}",
        src=StringIO((_tree / _file["dest"].lstrip("/")).read_text()),
        dest=_file["dest"],
        user=_file["user"],
        group=_file["group"],
        mode=_file["mode"],
    )
for _path, _sha256 in host.loop(_state["verified"]):
    if host.get_fact(Sha256File, path=_path) != _sha256:
        server.shell(name=f"Verify {_path}", commands=[f"test -e {shlex.quote(_path)}"])
for _unit in host.loop(_state["units"]):
    systemd.service(name=f"Keep {_unit} running", service=_unit, running=True, enabled=True)
