from pathlib import Path

import pytest

from quench import haproxy
from quench.haproxy import Server

# Answers of HAProxy 2.6.12 of Debian 12: node1 drained with two requests in flight, node3 without a process behind it,
# node4 disabled; then node1 dead. pool_mistral/node1 has no health check.
DRAINED = (Path(__file__).parent / "data" / "show-stat-haproxy-2.6.csv").read_text().splitlines()
DOWN = (Path(__file__).parent / "data" / "show-stat-haproxy-2.6-down.csv").read_text().splitlines()


def by_name(lines):
    return {f"{server.pool}/{server.name}": server for server in haproxy.servers(lines)}


def test_servers_are_read_and_frontends_and_backends_are_not():
    assert list(by_name(DRAINED)) == [
        "pool_llama/node1", "pool_llama/node2", "pool_llama/node3", "pool_llama/node4",
        "pool_mistral/node1", "pool_mistral/node2",
    ]  # fmt: skip


def test_a_drained_server_has_its_requests_in_flight_its_health_and_its_address():
    assert by_name(DRAINED)["pool_llama/node1"] == Server(
        "pool_llama", "node1", "DRAIN", check="L7OK", in_flight=2, waiting=0, weight=1, address="127.0.0.1:18901"
    )


@pytest.mark.parametrize(
    ("lines", "name", "up", "away", "healthy"),
    [
        (DRAINED, "pool_llama/node1", False, True, True),
        (DRAINED, "pool_llama/node2", True, False, True),
        (DRAINED, "pool_llama/node3", False, False, False),
        (DRAINED, "pool_llama/node4", False, True, False),
        (DRAINED, "pool_mistral/node1", False, True, False),
        (DRAINED, "pool_mistral/node2", True, False, True),
        (DOWN, "pool_llama/node1", False, False, False),
    ],
)
def test_what_a_server_is(lines, name, up, away, healthy):
    server = by_name(lines)[name]
    assert (server.up, server.away, server.healthy) == (up, away, healthy)


@pytest.mark.parametrize(
    ("status", "check", "up", "healthy"),
    [("UP 2/3", "L7STS", False, False), ("DOWN 1/2", "L7OK", False, False), ("no check", "", False, False)],
)
def test_a_server_between_two_states_is_in_neither_of_the_good_ones(status, check, up, healthy):
    server = Server("p", "n", status, check)
    assert (server.up, server.healthy) == (up, healthy)


def test_a_node_of_weight_0_is_up_and_covers_for_nobody():
    # As HAProxy 2.6 has it: no other column says so.
    lines = [line.replace(",UP,1,1,", ",UP,0,1,") for line in DRAINED]
    assert by_name(DRAINED)["pool_llama/node2"].covers
    node = by_name(lines)["pool_llama/node2"]
    assert (node.up, node.covers) == (True, False)
    assert not by_name(DRAINED)["pool_llama/node1"].covers


def test_the_last_result_counts_while_the_next_check_is_under_way():
    lines = [line.replace(",L7OK,", ",* L7OK,") for line in DRAINED]
    assert by_name(lines)["pool_llama/node2"].healthy


@pytest.mark.parametrize("lines", [[], ["Permission denied"], ["Unknown command: 'show stat'."]])
def test_another_answer_is_an_error(lines):
    with pytest.raises(ValueError, match=lines[0][:8] if lines else "no answer"):
        haproxy.servers(lines)


def test_several_servers_are_set_in_one_command():
    found = [server for server in haproxy.servers(DRAINED) if server.name == "node1"]
    assert haproxy.set_state(found, "drain") == (
        "set server pool_llama/node1 state drain; set server pool_mistral/node1 state drain"
    )
