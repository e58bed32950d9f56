"""The order of operations is pyinfra's own, found in another way."""

import sys

from pyinfra.api import util

from quench.order import operation_order
from quench.plan import load_inventory, make_plan


def test_it_is_the_order_that_pyinfra_itself_finds(monkeypatch, example_secrets):
    monkeypatch.setenv("QUENCH_SECRETS", str(example_secrets))
    found = []

    def both(state):
        # On one line, since that is the last of the order.
        theirs, ours = util.get_operation_order_from_stack(state), operation_order(state)
        found.append(([*theirs], ours))  # pyinfra adds to its own where a loop is
        return theirs

    monkeypatch.setattr(sys.modules["pyinfra.api.operation"], "get_operation_order_from_stack", both)
    make_plan(load_inventory("inventories/medium.py"), ["deploys/site.py"])
    assert len(found) > 100
    assert [pair for pair in found if pair[0] != pair[1]] == []


def test_pyinfra_uses_it():
    assert sys.modules["pyinfra.api.operation"].get_operation_order_from_stack is operation_order
