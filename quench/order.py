"""How pyinfra finds the order of operations, without its detour.

pyinfra orders operations by the lines that lead to them in the deploy file. It asks `inspect.stack`, which looks for
the source of each caller in all modules, though only names and lines are needed: more than half of the time in which a
deploy file is read. A frame has both.
"""

from __future__ import annotations

import importlib
import sys
from types import FrameType

import pyinfra
from pyinfra.api import util
from pyinfra.api.state import State


def operation_order(state: State) -> list[int]:
    """Number of the deploy file, and lines from there on, as pyinfra's `get_operation_order_from_stack` has them."""
    callers = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        callers.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    callers.reverse()
    start = 0
    if state.current_deploy_filename:
        names = [name for name, _ in callers]
        deploy = state.current_deploy_filename
        start = names.index(deploy) if deploy in names else len(names) - 1
    lines = [line for name, line in callers[start:] if not name.startswith(util.PYINFRA_INSTALL_DIR)]
    return [state.current_op_file_number, *lines] if pyinfra.is_cli else lines


# pyinfra.api has a decorator of the module's name.
setattr(importlib.import_module("pyinfra.api.operation"), util.get_operation_order_from_stack.__name__, operation_order)
