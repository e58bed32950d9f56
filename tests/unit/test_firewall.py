import shlex
from ipaddress import ip_network
from xml.etree import ElementTree

import pytest

from quench import Flow
from roles.firewall import FirewallSettings, files
from roles.firewall.deploy import _elsewhere, _locked_out
from roles.firewall.files import impossible, opening, opening_of_another, ssh, ways

DATA = {
    "platform": "debian-12",
    "firewall_zones": {
        "management": ["10.0.9.0/24", "fd00:9::/64"],
        "app": ["10.0.1.0/24"],
        "dmz": [],
        "inference": ["10.0.30.0/24"],
    },
    "firewall_zone": "inference",
}
CLIENTS = Flow("nginx", "in", ("app", "dmz"), 443, "clients")
MIRROR = Flow("base", "out", ("management",), 443, "packages")
WORLD_OUT = Flow("base", "out", ("world",), 123, "time", "udp")
WORLD_IN = Flow("nginx", "in", ("world",), 443, "clients")


@pytest.fixture
def found(problems):
    return lambda **changes: problems(FirewallSettings, DATA | changes)


def settings(**changes):
    return FirewallSettings.load("node1", DATA | changes)


def rendered(*flows, **changes):
    return {file.dest: file.content for file in files(settings(**changes), flows)}


def tree(text):
    return ElementTree.fromstring(text)  # noqa: S314


def ports(texts, zone):
    root = tree(texts[f"/etc/firewalld/zones/{zone}.xml"])
    return [(port.get("port"), port.get("protocol")) for port in root.findall("port")]


def outgoing(texts):
    rules = tree(texts["/etc/firewalld/policies/outgoing.xml"]).findall("rule")
    return {
        (
            rule.find("destination").get("address") if rule.find("destination") is not None else "everyone",
            rule.find("port").get("port"),
            rule.find("port").get("protocol"),
        )
        for rule in rules
        if rule.find("port") is not None and rule.find("port").get("port") not in ("67", "547")
    }


def test_good_settings_have_no_problem(found):
    assert found() == []


@pytest.mark.parametrize(
    ("zones", "what"),
    [
        ({"app": ["0.0.0.0/0"]}, "no part of a house"),
        ({"app": ["::/0"]}, "no part of a house"),
        ({"app": ["128.0.0.0/1"]}, "no part of a house"),
        ({"app": ["10.0.1.1/24"]}, "has host bits set"),
        ({"app": ["app.example.org"]}, "does not appear to be"),
        ({"app": ["10.0.0.0/16"], "dmz": ["10.0.3.0/24"]}, "overlap"),
        ({"app": ["fd00::/48"], "dmz": ["fd00:0:0:7::/64"]}, "overlap"),
        ({"app": ["10.0.1.0/24", "10.0.1.0/25"]}, "overlap"),
        ({"world": ["10.0.0.0/16"]}, "not yours to define"),
        ({"closed": ["10.0.0.0/16"]}, "not yours to define"),
        ({"a zone": []}, "cannot name a zone"),
        ({"APP": []}, "cannot name a zone"),
        ({"a-name-of-18-chars": []}, "cannot name a zone"),
    ],
)
def test_zones_that_are_none_are_refused_with_the_reason(found, zones, what):
    problems = found(firewall_zones=zones, firewall_zone=next(iter(zones)), firewall_ssh_zones=[next(iter(zones))])
    assert [what in problem.what for problem in problems] == [True], [str(problem) for problem in problems]


def test_zones_that_nobody_defined_are_refused(found):
    (problem,) = found(firewall_zone="inferense")
    assert problem.key == "firewall_zone" and "inference" in problem.remedy + problem.what
    (problem,) = found(firewall_ssh_zones=["managment"])
    assert problem.key == "firewall_ssh_zones"


@pytest.mark.parametrize("reason", ["", "yes", "because -- of XML"])
def test_a_relaxation_needs_a_reason(found, reason):
    (problem,) = found(firewall_relaxations={"world-out": reason})
    assert "has no reason" in problem.what


def test_each_zone_gets_the_ports_of_the_flows_that_name_it():
    texts = rendered(CLIENTS, MIRROR, ssh(settings()))
    assert ports(texts, "app") == [("443", "tcp")]
    assert ports(texts, "management") == [("22", "tcp")]
    assert ports(texts, "inference") == []
    assert ports(texts, "closed") == []
    # An empty zone has nothing that firewalld could bind.
    assert "/etc/firewalld/zones/dmz.xml" not in texts


def test_containers_may_ask_their_host_for_names_and_nothing_else():
    assert ports(rendered(CLIENTS, ssh(settings())), "trusted") == [("53", "tcp"), ("53", "udp")]


@pytest.mark.parametrize("platform", ["debian-12", "rhel-9"])
def test_no_packet_goes_from_one_bridge_to_another(platform):
    text = rendered(platform=platform)["/etc/nftables/quench-forward.nft"]
    accepting = [line.split() for line in text.splitlines() if line.endswith(" accept") and "established" not in line]
    assert accepting
    for words in accepting:
        # Either by the route, which is asked for where the packet came in, or by names, which are the same twice.
        assert "fib daddr . iif oif exists" in " ".join(words) or words[1] == words[3], words


def test_every_zone_drops_what_it_does_not_name():
    texts = rendered(CLIENTS)
    targets = {tree(text).get("target") for path, text in texts.items() if "/zones/" in path}
    assert targets == {"DROP"}
    assert tree(texts["/etc/firewalld/policies/outgoing.xml"]).get("target") == "REJECT"
    assert "\nDefaultZone=closed\n" in texts["/etc/firewalld/firewalld.conf"]


def test_the_host_calls_the_networks_of_the_zones_that_it_names_and_no_other():
    assert outgoing(rendered(CLIENTS, MIRROR)) == {("10.0.9.0/24", "443", "tcp"), ("fd00:9::/64", "443", "tcp")}


PEERS = ("10.0.1.12", "fd00:9::12")
VRRP_IN = Flow("keepalived", "in", (), 0, "who answers at 10.0.1.10", "vrrp", PEERS)


def rules(texts, path):
    """Family, address, port or nothing, and protocol of each rule that accepts."""
    return [
        (
            rule.get("family"),
            next(part.get("address") for part in rule if part.tag in ("source", "destination")),
            next((part.get("port") for part in rule if part.tag == "port"), ""),
            next(part.get("protocol") or part.get("value") for part in rule if part.tag in ("port", "protocol")),
        )
        for rule in tree(texts[path]).findall("rule")
        if rule.find("accept") is not None and (rule.find("source") is not None or rule.find("destination") is not None)
    ]


def test_peers_get_in_by_their_addresses_in_the_zone_that_each_is_in_and_nobody_else_does():
    texts = rendered(CLIENTS, VRRP_IN)
    assert rules(texts, "/etc/firewalld/zones/app.xml") == [("ipv4", "10.0.1.12/32", "", "vrrp")]
    assert rules(texts, "/etc/firewalld/zones/management.xml") == [("ipv6", "fd00:9::12/128", "", "vrrp")]
    assert rules(texts, "/etc/firewalld/zones/inference.xml") == []
    assert ports(texts, "app") == [("443", "tcp")]
    assert not any("vrrp" in text for path, text in texts.items() if path.endswith(("closed.xml", "outgoing.xml")))


def test_a_host_calls_its_peers_by_their_addresses():
    out = Flow("keepalived", "out", (), 0, "who answers at 10.0.1.10", "vrrp", PEERS)
    texts = rendered(out)
    assert rules(texts, "/etc/firewalld/policies/outgoing.xml") == [
        ("ipv4", "10.0.1.12/32", "", "vrrp"),
        ("ipv6", "fd00:9::12/128", "", "vrrp"),
    ]
    assert rules(texts, "/etc/firewalld/zones/app.xml") == []


def test_peers_may_have_all_of_tcp_or_one_port():
    engine = Flow("vllm", "in", (), 0, "parts of one engine", peers=("10.0.30.12",))
    port = Flow("haproxy", "in", (), 10000, "tables of the other balancer", peers=("10.0.30.12",))
    assert rules(rendered(engine, port), "/etc/firewalld/zones/inference.xml") == [
        ("ipv4", "10.0.30.12/32", "", "tcp"),
        ("ipv4", "10.0.30.12/32", "10000", "tcp"),
    ]


def test_two_flows_of_one_peer_are_one_rule_with_both_reasons():
    other = Flow("keepalived", "in", (), 0, "who answers at 10.0.1.20", "vrrp", ("10.0.1.12",))
    text = rendered(VRRP_IN, other)["/etc/firewalld/zones/app.xml"]
    assert text.count('<protocol value="vrrp"/>') == 1
    assert "keepalived: who answers at 10.0.1.10; keepalived: who answers at 10.0.1.20" in text


@pytest.mark.parametrize(("direction", "way"), [("in", "from"), ("out", "to")])
def test_a_peer_in_no_zone_is_refused_with_role_and_reason(direction, way):
    flow = Flow("keepalived", direction, (), 0, "who answers at 10.0.1.10", "vrrp", ("192.0.2.1",))
    (problem,) = impossible("node1", settings(), [flow])
    assert (problem.host, problem.key) == ("node1", "firewall_zones")
    assert problem.what == f"keepalived has a flow {way} 192.0.2.1, which is in no zone: who answers at 10.0.1.10"
    assert problem.remedy == "put the network of 192.0.2.1 into one of the zones"


def test_flows_that_say_the_same_are_one_rule_with_both_reasons():
    # firewalld 1.3.3 warns of a rule that is there twice, and a warning may as well be a rule that it leaves out.
    other = Flow("vllm", "out", ("management",), 443, "models")
    text = rendered(MIRROR, other)["/etc/firewalld/policies/outgoing.xml"]
    assert text.count('<destination address="10.0.9.0/24"/>') == 1
    assert "base: packages; vllm: models" in text
    twice = Flow("haproxy", "in", ("app",), 443, "checks")
    assert ports(rendered(CLIENTS, twice), "app") == [("443", "tcp")]


def test_the_world_is_refused_unless_that_is_said():
    problems = list(impossible("node1", settings(), [WORLD_OUT, WORLD_IN, MIRROR]))
    assert [problem.key for problem in problems] == ["firewall_relaxations"] * 2
    assert "opens port 123 of the whole world: time" in problems[0].what
    assert "world-out" in problems[0].remedy
    assert "world-in" in problems[1].remedy


def test_a_relaxation_stands_in_the_files_with_its_reason():
    relaxed = {"world-out": "no time server yet, change 4711", "world-in": "a public demo, change 4712"}
    assert list(impossible("node1", settings(firewall_relaxations=relaxed), [WORLD_OUT, WORLD_IN])) == []
    texts = rendered(WORLD_OUT, WORLD_IN, firewall_relaxations=relaxed)
    assert ("everyone", "123", "udp") in outgoing(texts)
    assert (
        "Relaxed by firewall_relaxations, world-out: no time server yet, change 4711"
        in texts["/etc/firewalld/policies/outgoing.xml"]
    )
    assert ports(texts, "closed") == [("443", "tcp")]
    assert (
        "Relaxed by firewall_relaxations, world-in: a public demo, change 4712"
        in texts["/etc/firewalld/zones/closed.xml"]
    )


def test_without_flows_of_the_world_nothing_is_called_relaxed():
    relaxed = {"world-out": "left over from before"}
    assert not any("Relaxed by" in text for text in rendered(MIRROR, firewall_relaxations=relaxed).values())


def test_a_flow_to_a_zone_that_nobody_defined_is_refused_with_role_and_reason():
    (problem,) = impossible("node1", settings(), [Flow("dcgm_exporter", "in", ("monitoring",), 9400, "GPU counters")])
    assert problem.what == "dcgm_exporter has a flow from 'monitoring': GPU counters"
    assert problem.remedy == "define monitoring, if only as an empty list"


def test_the_controller_has_to_be_in_a_zone_that_may_log_in():
    assert _locked_out("node1", settings(), ["10.0.9.7 50000 10.0.30.11 22"]) == []
    assert _locked_out("node1", settings(), ["fd00:9::7 50000 fd00:30::b 22"]) == []
    (problem,) = _locked_out("node1", settings(), ["10.0.1.7 50000 10.0.30.11 22"])
    assert problem.key == "firewall_ssh_zones" and "10.0.1.7" in problem.what


def test_the_port_that_is_logged_in_to_has_to_stay_open():
    (problem,) = _locked_out("node1", settings(firewall_ssh_port=2222), ["10.0.9.7 50000 10.0.30.11 22"])
    assert (problem.key, problem.remedy) == ("firewall_ssh_port", "set firewall_ssh_port = 22")


def test_with_everyone_let_in_the_controller_is_so_too():
    everyone = settings(firewall_ssh_zones=["world"], firewall_relaxations={"world-in": "bastion is elsewhere"})
    assert _locked_out("node1", everyone, ["203.0.113.9 50000 10.0.30.11 22"]) == []


def test_a_console_is_no_connection_that_could_be_cut():
    assert _locked_out("node1", settings(), []) == []


QUERIES = {"direction": "in", "zones": ["app"], "port": 5432, "why": "queries of the applications"}
COPIES = {"direction": "out", "peers": ["10.0.9.9"], "port": 5432, "why": "copies for the second database"}


def test_flows_of_the_inventory_are_rendered_as_those_of_roles():
    given = settings(firewall_flows=[QUERIES, COPIES])
    texts = rendered(CLIENTS, *(flow.flow() for flow in given.flows))
    assert ports(texts, "app") == [("443", "tcp"), ("5432", "tcp")]
    assert "<!-- site: queries of the applications -->" in texts["/etc/firewalld/zones/app.xml"]
    assert outgoing(texts) == {("10.0.9.9/32", "5432", "tcp")}


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        ({"zones": ["ap"]}, "no zone 'ap' in firewall_zones", "there are management, app, dmz, inference"),
        ({"zones": []}, "has neither zones nor peers", "name whom it is with"),
        ({"port": 0}, "is all of a protocol, which only peers may have", "set the port, or name peers, no zones"),
        ({"protocol": "vrrp"}, "vrrp has no ports, and this flow has 5432", "set port to 0"),
        ({"peers": ["db1"]}, "'db1' is no address", "names and networks are none, write 10.0.1.12"),
        ({"peers": ["10.0.1.0/24"]}, "'10.0.1.0/24' is no address", "names and networks are none, write 10.0.1.12"),
        ({"peers": ["FD00:9::1"]}, "'FD00:9::1' is not how fd00:9::1 is written", "write fd00:9::1"),
        ({"why": "database"}, "'database' is no reason", "say why, in a few words, for the auditor"),
        ({"why": "a -- b"}, "'a -- b' is no reason", "say why, in a few words, for the auditor"),
        ({"why": "a b\n-->"}, "is no reason", "say why, in a few words, for the auditor"),
        ({"direction": "both"}, "input should be 'in' or 'out'", ""),
        ({"port": 65536}, "less than or equal to 65535", ""),
        ({"hosts": []}, "unknown key", ""),
    ],
)
def test_a_flow_that_is_none_is_refused_with_what_to_do(found, changes, what, remedy):
    (problem,) = found(firewall_flows=[QUERIES | changes])
    assert problem.key.startswith("firewall_flows")
    assert what in problem.what and remedy in problem.remedy, str(problem)


def test_all_of_a_protocol_is_for_single_peers():
    (flow,) = settings(firewall_flows=[{**COPIES, "port": 0}]).flows
    assert flow.flow() == Flow("site", "out", (), 0, COPIES["why"], "tcp", ("10.0.9.9",))


def test_a_flow_of_the_inventory_with_the_world_needs_a_relaxation_too():
    (flow,) = settings(firewall_flows=[QUERIES | {"zones": ["world"]}]).flows
    (problem,) = impossible("node1", settings(), [flow.flow()])
    assert (problem.key, "site opens port 5432 to the whole world" in problem.what) == ("firewall_relaxations", True)


def addresses(*found):
    return [f"2: eth0    {'inet6' if ':' in text else 'inet'} {text} scope global eth0" for text in found]


def test_a_host_is_in_its_zone_with_one_of_its_addresses():
    assert _elsewhere("node1", settings(), addresses("172.17.0.1/16", "10.0.30.11/24")) == []
    assert _elsewhere("node1", settings(firewall_zone="management"), addresses("fd00:9::7/64")) == []


@pytest.mark.parametrize(
    ("zone", "found", "what", "remedy"),
    [
        ("app", ["10.0.30.11/24", "fd00:30::b/64"], "there: 10.0.30.11, fd00:30::b", "set firewall_zone = 'inference'"),
        ("inference", ["192.0.2.7/24"], "there: 192.0.2.7", "put its network into inference of firewall_zones"),
        # A zone without networks has no host.
        ("dmz", ["192.0.2.7/24"], "there: 192.0.2.7", "put its network into dmz of firewall_zones"),
        ("dmz", [], "there: it has none", "put its network into dmz of firewall_zones"),
    ],
)
def test_a_host_in_another_zone_than_it_says_is_refused(zone, found, what, remedy):
    (problem,) = _elsewhere("node1", settings(firewall_zone=zone), addresses(*found))
    assert (problem.host, problem.key, problem.remedy) == ("node1", "firewall_zone", remedy)
    assert problem.what == f"is {zone!r}, but none of the host's addresses is {what}"


def test_networks_of_several_zones_come_sorted():
    networks = settings().networks(["management", "app"])
    assert networks == [ip_network("10.0.1.0/24"), ip_network("10.0.9.0/24"), ip_network("fd00:9::/64")]


def test_what_a_run_needs_is_let_through_beside_what_passes():
    vrrp = Flow("keepalived", "out", (), 0, "peers", "vrrp", ("10.0.30.9",))
    commands = opening(settings(), [CLIENTS, MIRROR, WORLD_OUT, WORLD_IN, vrrp]).split("; ")
    # A zone that the host does not have yet is no reason to end the run.
    assert all(command.startswith("firewall-cmd --quiet ") and command.endswith(" || true") for command in commands)
    words = {shlex.split(command)[2]: shlex.split(command)[3:-2] for command in commands}
    to = 'rule family="ipv{}" destination address="{}" port port="443" protocol="tcp" accept'
    assert words == {
        "--policy=outgoing": [
            f"--add-rich-rule={to.format(4, '10.0.9.0/24')}",
            f"--add-rich-rule={to.format(6, 'fd00:9::/64')}",
            '--add-rich-rule=rule port port="123" protocol="udp" accept',
        ],
        "--zone=app": ["--add-port=443/tcp"],
        "--zone=dmz": ["--add-port=443/tcp"],
        "--zone=closed": ["--add-port=443/tcp"],
    }
    assert not any(word in command for command in commands for word in ("--permanent", "--remove", "--reload"))


def test_a_firewalld_of_somebody_else_is_told_networks_and_no_zones():
    command = opening_of_another(settings(), [CLIENTS, MIRROR, WORLD_IN])
    assert shlex.split(command) == [
        "firewall-cmd",
        "--quiet",
        '--add-rich-rule=rule family="ipv4" source address="10.0.1.0/24" port port="443" protocol="tcp" accept',
        '--add-rich-rule=rule port port="443" protocol="tcp" accept',
    ]


def test_nothing_is_opened_where_there_is_nothing_to_open():
    assert opening(settings(), []) == opening_of_another(settings(), [MIRROR]) == ":"
    # What the host is asked for: the files that decide on what passes, and no others.
    names = {file.dest.rpartition("/")[2] for file in ways(files(settings(), [CLIENTS]))}
    zones = {"management.xml", "app.xml", "inference.xml", "closed.xml", "trusted.xml", "docker.xml"}
    assert names == {*zones, "outgoing.xml"}
