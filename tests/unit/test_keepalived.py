import re

import pytest

from roles.keepalived import KeepalivedSettings, files
from roles.keepalived.files import flows

DATA = {
    "platform": "debian-12",
    "keepalived_addresses": ["10.0.2.10/24", "fd00:2::10/64"],
    "keepalived_interface": "eth0",
    "keepalived_router_id": 51,
    "keepalived_balancers": ["10.0.2.11", "10.0.2.12", "10.0.2.13"],
    "keepalived_address": "10.0.2.12",
    "keepalived_check_server_name": "llm.example.org",
}
CONFIG = "/etc/keepalived/keepalived.conf"
UNIT = "/etc/systemd/system/keepalived.service"


@pytest.fixture
def found(problems):
    return lambda **changes: problems(KeepalivedSettings, DATA | changes)


def settings(**changes):
    return KeepalivedSettings.load("lb2", DATA | changes)


def rendered(**changes):
    return {file.dest: file for file in files(settings(**changes))}


def block(text, name):
    """The lines of a block, without comments."""
    body = re.search(rf"^( *){name} \{{\n(.*?)^\1\}}", text, re.MULTILINE | re.DOTALL).group(2)
    return [line.strip() for line in body.splitlines() if not line.strip().startswith("#")]


def test_good_settings_have_no_problem(found):
    assert found() == []


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("addresses", [], "at least 1"),
        ("addresses", ["10.0.2.10"], "10.0.2.10 has no prefix length"),
        ("addresses", ["lb.example.org"], "'lb.example.org' is no address with prefix length"),
        ("addresses", ["10.0.2.0/24"], "no address that clients could call"),
        ("addresses", ["10.0.2.255/24"], "no address that clients could call"),
        ("addresses", ["127.0.0.1/8"], "no address that clients could call"),
        ("addresses", ["10.0.2.10/24", "10.0.2.10/32"], "names an address twice"),
        ("interface", "eth0; reboot", "string should match pattern"),
        ("interface", "an-interface-name", "string should match pattern"),
        ("router_id", 0, "greater than or equal to 1"),
        ("router_id", 256, "less than or equal to 255"),
        ("router_id", "51", "valid integer"),
        ("balancers", ["10.0.2.12"], "at least 2"),
        ("balancers", ["10.0.2.12", "10.0.2.12"], "names a balancer twice"),
        ("balancers", ["10.0.2.12", "fd00:2::12"], "mixes IPv4 and IPv6"),
        ("balancers", ["10.0.2.12", "10.0.2.11/24"], "'10.0.2.11/24' is no address"),
        ("balancers", ["10.0.2.12", "127.0.0.1"], "127.0.0.1 is no address of a balancer"),
        ("balancers", ["10.0.2.12", "10.0.2.10"], "10.0.2.10 is a virtual address"),
        ("address", "10.0.2.14", "10.0.2.14 is not among keepalived_balancers"),
        ("check_port", 0, "greater than or equal to 1"),
        ("check_path", "health", "string should match pattern"),
        ("check_path", '/" notify "/bin/sh', "string should match pattern"),
        ("check_server_name", "llm.example.org/", "string should match pattern"),
    ],
)
def test_bad_settings_are_one_problem_in_one_line(found, key, value, what):
    (problem,) = found(**{f"keepalived_{key}": value})
    assert problem.key == f"keepalived_{key}"
    assert what in problem.what
    assert problem.remedy and "\n" not in str(problem)


def test_addresses_of_another_kind_than_the_balancers_alone_are_refused(found):
    (problem,) = found(keepalived_addresses=["fd00:2::10/64"])
    assert (problem.key, problem.what) == ("keepalived_balancers", "are not of the kind of fd00:2::10")


def test_an_address_is_written_in_its_shortest_form(found):
    (problem,) = found(keepalived_balancers=["fd00:2:0::11", "fd00:2::12"], keepalived_address="fd00:2::12")
    assert problem.remedy == "write it as fd00:2::11"


def test_the_others_are_the_peers_and_the_first_in_the_list_is_preferred():
    assert settings().peers == ("10.0.2.11", "10.0.2.13")
    priorities = [settings(keepalived_address=address).priority for address in DATA["keepalived_balancers"]]
    assert priorities == [254, 253, 252]


def test_the_flows_are_vrrp_from_and_to_the_peers_alone():
    into, out = flows(settings())
    assert (into.direction, out.direction) == ("in", "out")
    for flow in (into, out):
        assert (flow.protocol, flow.port, flow.zones, flow.peers) == ("vrrp", 0, (), ("10.0.2.11", "10.0.2.13"))
        # The same on all balancers, and another one for each group.
        assert flow.why == "which balancer has 10.0.2.10, fd00:2::10"


def test_the_announcement_goes_to_the_peers_and_from_no_other_network():
    text = rendered()[CONFIG].content
    assert block(text, "unicast_peer") == ["10.0.2.11 min_ttl 255 max_ttl 255", "10.0.2.13 min_ttl 255 max_ttl 255"]
    instance = block(text, "vrrp_instance frontend")
    assert {"unicast_src_ip 10.0.2.12", "unicast_ttl 255", "virtual_router_id 51", "interface eth0"} <= set(instance)


def test_nobody_takes_the_addresses_back():
    instance = block(rendered()[CONFIG].content, "vrrp_instance frontend")
    assert {"state BACKUP", "nopreempt"} <= set(instance)


def test_an_announcement_has_addresses_of_the_balancers_kind_and_the_others_move_with_them():
    text = rendered()[CONFIG].content
    assert block(text, "virtual_ipaddress") == ["10.0.2.10/24"]
    assert block(text, "virtual_ipaddress_excluded") == ["fd00:2::10/64 preferred_lft 0"]
    six = {"keepalived_balancers": ["fd00:2::11", "fd00:2::12"], "keepalived_address": "fd00:2::12"}
    text = rendered(**six)[CONFIG].content
    assert block(text, "virtual_ipaddress") == ["fd00:2::10/64 preferred_lft 0"]
    assert block(text, "virtual_ipaddress_excluded") == ["10.0.2.10/24"]
    assert "excluded" not in rendered(keepalived_addresses=["10.0.2.10/24"])[CONFIG].content


def test_the_check_asks_the_frontend_by_the_name_of_the_clients():
    text = rendered(keepalived_check_port=8443, keepalived_check_path="/health")[CONFIG].content
    (script,) = [line for line in block(text, "vrrp_script frontend") if line.startswith("script ")]
    assert "--resolve llm.example.org:8443:127.0.0.1 https://llm.example.org:8443/health" in script
    assert "--max-time 1 " in script


def test_a_dead_balancer_is_found_out_within_three_seconds():
    text = rendered()[CONFIG].content
    words = dict(line.split(maxsplit=1) for line in block(text, "vrrp_script frontend") if " " in line)
    # A frontend that is gone refuses at once.
    assert int(words["interval"]) * int(words["fall"]) < 3
    # The others are told at once that the addresses are free. A host that says nothing has three announcements' time.
    advert = float(re.search(r"advert_int (\S+)", text).group(1))
    last = 254 - 15  # priority of the last of 16 balancers
    assert 3 * advert + (256 - last) / 256 * advert < 3


def test_a_failed_check_takes_the_addresses_away_and_not_some_points():
    text = rendered()[CONFIG].content
    assert not any(line.startswith("weight") for line in block(text, "vrrp_script frontend"))
    assert block(text, "track_script") == ["frontend"]


def test_keepalived_does_not_run_as_root_and_its_script_has_none_of_its_power():
    files = rendered()
    assert "\nUser=keepalived\n" in files[UNIT].content
    assert "\nCapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW\n" in files[UNIT].content
    assert 'script "/usr/bin/setpriv --ambient-caps=-all ' in files[CONFIG].content


def test_a_configuration_is_tried_as_the_user_that_reads_it():
    file = rendered()[CONFIG]
    assert file.check.startswith("setpriv --reuid=keepalived ") and "--config-test" in file.check
    assert file.reloads == "keepalived.service"
