"""Run pyinfra's command line and count the remote commands. The count goes to the file in $QUENCH_BENCH_COUNT."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

from pyinfra.connectors.ssh import SSHConnector
from pyinfra_cli.main import main

_count = 0


def _counted(name: str) -> None:
    original = getattr(SSHConnector, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        global _count
        _count += 1
        return original(*args, **kwargs)

    setattr(SSHConnector, name, wrapper)


for _name in ("run_shell_command", "put_file", "get_file"):
    _counted(_name)
atexit.register(lambda: Path(os.environ["QUENCH_BENCH_COUNT"]).write_text(str(_count)))

if __name__ == "__main__":
    main()
