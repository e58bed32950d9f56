import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest
from click.testing import CliRunner

from quench import WORLD, Flow, Refused
from quench.cli import main
from quench.flow_picture import draw
from quench.flows import matrix, table, to_json
from quench.plan import HostPlan
from roles.firewall.settings import FirewallSettings

ZONES = {
    "management": ["fd00:9::/64", "10.0.9.0/24"],
    "app": ["10.0.1.0/24"],
    "dmz": [],
    "inference": ["10.0.20.0/24"],
    "storage": ["10.0.40.0/24"],
}
SSH = Flow("firewall", "in", ("management",), 22, "administration by SSH")
CLIENTS = Flow("nginx", "in", ("app", "dmz"), 443, "clients of the models")
NAMES = Flow("base", "out", ("management",), 53, "names", "udp")
PACKAGES = Flow("base", "out", (WORLD,), 443, "packages of the distribution")
REASON = "there is no mirror, change 4711"


def host_plan(name, *flows, zone="inference", zones=ZONES, reason=REASON):
    settings = FirewallSettings(
        platform="debian-12", zones=zones, zone=zone, relaxations={"world-out": reason, "world-in": reason}
    )
    return HostPlan(name, settings=[settings], flows=list(flows))


def plan_of(*plans):
    return {plan.host: plan for plan in plans}


@pytest.fixture
def plan():
    """Two nodes, of which one has its packages from the world, and a host of another zone that calls nobody."""
    return plan_of(
        host_plan("node2", CLIENTS, SSH, NAMES, PACKAGES),
        host_plan("node1", SSH, CLIENTS, NAMES),
        host_plan("store1", SSH, zone="storage"),
    )


TABLE = """\
  FROM        TO          PORT/PROTOCOL  WHY                           ROLE      HOSTS
  app         inference   443/tcp        clients of the models         nginx     node1, node2
  inference   management  53/udp         names                         base      node1, node2
  management  inference   22/tcp         administration by SSH         firewall  node1, node2
  management  storage     22/tcp         administration by SSH         firewall  store1
! inference   world       443/tcp        packages of the distribution  base      node2

! to the world, which is whatever is in no zone: there is no mirror, change 4711
no networks, so nothing comes from there or goes there: dmz
not listed: answers to what is listed, ICMP and DHCP, without which a host would have no address
everything else is dropped, in and out; 3 hosts in 2 zones"""


def test_the_table_has_a_line_for_each_way_through(plan):
    assert "\n".join(table(matrix(plan))) == TABLE


def test_the_order_of_hosts_zones_and_flows_changes_nothing(plan):
    turned = {}
    for name in reversed(list(plan)):
        zones = {zone: ZONES[zone][::-1] for zone in reversed(ZONES)}
        zone = plan[name].settings[0].zone
        turned[name] = host_plan(name, *reversed(plan[name].flows), zone=zone, zones=zones)
    one, other = matrix(plan), matrix(turned)
    assert (table(one), to_json(one), draw(one)) == (table(other), to_json(other), draw(other))


def test_many_hosts_are_counted_within_their_zone():
    nodes = [host_plan(f"node{number}", SSH, *([NAMES] if number else [])) for number in range(5)]
    lines = table(matrix(plan_of(*nodes, host_plan("store1", zone="storage"))))
    assert [line.split("  ")[-1].strip() for line in lines[1:3]] == ["4 of 5", "all 5"]


def test_a_zone_may_call_itself():
    row = matrix(plan_of(host_plan("node1", dataclasses.replace(SSH, zones=("inference",))))).rows[0]
    assert (row.source, row.target) == ("inference", "inference")


def test_hosts_in_a_zone_without_networks_have_their_flows_still():
    found = matrix(plan_of(host_plan("node1", SSH, zone="dmz"), host_plan("node2", CLIENTS)))
    assert [(row.source, row.target) for row in found.rows] == [("app", "inference"), ("management", "dmz")]
    assert "no networks" not in "".join(table(found))
    assert "dmz" in texts(draw(found))


VRRP = Flow("keepalived", "in", (), 0, "who answers at 10.0.20.10", "vrrp", ("10.0.20.12",))


def pair(flow=VRRP):
    """Two hosts that let each other in and call each other."""
    others = {"node1": "10.0.20.12", "node2": "10.0.20.11"}
    return plan_of(
        *(
            host_plan(name, *(dataclasses.replace(flow, direction=way, peers=(peer,)) for way in ("in", "out")))
            for name, peer in others.items()
        )
    )


def test_peers_that_let_each_other_in_are_one_row_with_their_addresses():
    found = matrix(pair())
    (row,) = found.rows
    assert (row.source, row.target, row.service, row.hosts) == ("inference", "inference", "vrrp", ("node1", "node2"))
    assert row.what == "who answers at 10.0.20.10; only 10.0.20.11, 10.0.20.12"
    assert row.what in table(found)[1]
    shown = json.loads(to_json(found))["flows"][0]
    assert (shown["peers"], shown["port"], shown["protocol"]) == (["10.0.20.11", "10.0.20.12"], 0, "vrrp")
    assert f"vrrp {row.what} (keepalived)" in texts(draw(found))


def test_peers_with_another_reason_are_another_group():
    four = pair() | {
        f"other-{name}": dataclasses.replace(plan, host=f"other-{name}")
        for name, plan in pair(dataclasses.replace(VRRP, why="who answers at 10.0.20.20")).items()
    }
    assert [row.hosts for row in matrix(four).rows] == [("node1", "node2"), ("other-node1", "other-node2")]


def test_many_peers_are_counted_and_all_in_the_json():
    addresses = tuple(f"10.0.20.{number}" for number in range(9, 17))
    engine = Flow("vllm", "in", (), 0, "parts of one engine", peers=addresses)
    found = matrix(plan_of(host_plan("node1", engine)))
    assert found.rows[0].service == "all/tcp"
    assert found.rows[0].what == "parts of one engine; only 8 peers"
    assert json.loads(to_json(found))["flows"][0]["peers"] == list(addresses)


def test_a_zone_and_a_peer_of_it_are_two_rows():
    flow = Flow("nginx", "in", ("app",), 443, "clients of the models", peers=("10.0.20.9", "10.0.1.9"))
    found = matrix(plan_of(host_plan("node1", flow)))
    assert [(row.source, row.peers) for row in found.rows] == [
        ("app", ()),
        ("app", ("10.0.1.9",)),
        ("inference", ("10.0.20.9",)),
    ]


def test_a_peer_in_no_zone_is_a_problem():
    with pytest.raises(Refused, match=r"node1: firewall_zones: .* with 192\.0\.2\.1, which is in no zone"):
        matrix(plan_of(host_plan("node1", dataclasses.replace(VRRP, peers=("192.0.2.1",)))))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"port": 112}, "vrrp has no ports"),
        ({"protocol": "tcp", "zones": ("app",)}, "for single peers"),
        ({"zones": ("app",)}, "for single peers"),
        ({"peers": ("FD00::1",)}, "write the peer FD00::1 as fd00::1"),
        ({"peers": ("10.0.0.0/24",)}, "does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_a_flow_that_would_let_through_something_else_than_it_says_is_refused(changes, what):
    with pytest.raises(ValueError, match=what):
        dataclasses.replace(VRRP, **changes)


def test_two_ports_of_one_number_are_two_rows():
    tcp = dataclasses.replace(NAMES, protocol="tcp")
    assert [row.service for row in matrix(plan_of(host_plan("node1", NAMES, tcp))).rows] == ["53/tcp", "53/udp"]


@pytest.mark.parametrize(("direction", "word"), [("in", "from"), ("out", "to")])
def test_the_world_is_marked_and_has_all_reasons(direction, word):
    flow = dataclasses.replace(PACKAGES, direction=direction)
    found = matrix(plan_of(host_plan("node1", flow), host_plan("node2", flow, reason="change\n 12")))
    assert found.rows[0].reasons == ("change 12", REASON)
    marked = [line for line in table(found) if line.startswith("!")]
    assert len(marked) == 2
    assert marked[1].startswith(f"! {word} the world") and marked[1].endswith(f": change 12; {REASON}")


def test_without_the_world_nothing_is_marked():
    found = matrix(plan_of(host_plan("node1", SSH, CLIENTS)))
    assert "!" not in "".join(table(found))
    assert "! " not in draw(found)


def test_json_has_zones_hosts_and_flows(plan):
    found = json.loads(to_json(matrix(plan)))
    assert list(found) == ["zones", "hosts", "flows"]
    assert found["zones"]["management"] == ["10.0.9.0/24", "fd00:9::/64"]
    assert found["hosts"] == {"node1": "inference", "node2": "inference", "store1": "storage"}
    assert len(found["flows"]) == 5
    assert found["flows"][-1] == {
        "from": "inference",
        "to": "world",
        "port": 443,
        "protocol": "tcp",
        "why": "packages of the distribution",
        "role": "base",
        "hosts": ["node2"],
        "peers": [],
        "world": True,
        "reasons": [REASON],
    }


def test_each_host_without_a_firewall_is_a_problem(plan):
    plan["node1"].settings.clear()
    plan["store1"].settings.clear()
    with pytest.raises(Refused, match="put firewall") as refused:
        matrix(plan)
    assert [problem.host for problem in refused.value.problems] == ["node1", "store1"]


def test_a_zone_that_is_not_the_same_on_all_hosts_is_a_problem():
    other = host_plan("node2", zones=ZONES | {"app": ["10.0.2.0/24"]})
    with pytest.raises(Refused, match="node2: firewall_zones: the networks of app are not those that it has on node1"):
        matrix(plan_of(host_plan("node1"), other))


def test_a_flow_with_a_zone_that_nobody_defined_is_a_problem():
    with pytest.raises(Refused, match="nginx has a flow with 'ap', which is no zone"):
        matrix(plan_of(host_plan("node1", dataclasses.replace(CLIENTS, zones=("ap",)))))


SVG = "{http://www.w3.org/2000/svg}"


def parsed(picture):
    return ElementTree.fromstring(picture)  # noqa: S314 - what this test has drawn itself


def texts(picture):
    return ["".join(text.itertext()) for text in parsed(picture).iter(f"{SVG}text")]


def test_the_picture_has_all_zones_with_networks_and_hosts_and_all_rows(plan):
    found = matrix(plan)
    shown = texts(draw(found))
    for row in found.rows:
        label = f"{'! ' if row.world else ''}{row.service} {row.why} ({row.role}"
        assert [text for text in shown if text.startswith(label)], label
    networks = [network for zone in ZONES.values() for network in zone]
    for text in [*(set(ZONES) - {"dmz"}), WORLD, *networks, "2 managed hosts", "1 managed host", "no managed hosts"]:
        assert text in shown
    assert "dmz" not in shown
    assert "! 443/tcp packages of the distribution (base; node2)" in shown
    assert "22/tcp administration by SSH (firewall)" in shown


def test_the_picture_says_in_words_what_it_shows(plan):
    root = parsed(draw(matrix(plan)))
    assert root.findtext(f"{SVG}title") == "Flows between zones: 3 hosts in 2 zones"
    description = root.findtext(f"{SVG}desc")
    assert "app to inference: 443/tcp clients of the models (nginx)." in description
    assert REASON in description


def test_arrows_of_the_world_are_dashed_and_no_others(plan):
    groups = parsed(draw(matrix(plan))).findall(f"{SVG}g")
    arrows = {group.findtext(f"{SVG}title"): group for group in groups if group.find(f"{SVG}path") is not None}
    dashed = [title for title, group in arrows.items() if "stroke-dasharray" in group.find(f"{SVG}path").attrib]
    assert len(arrows) == 5
    assert dashed == ["inference to world"]


def test_an_arrow_starts_in_the_lane_of_who_calls(plan):
    root = parsed(draw(matrix(plan)))
    lanes = {text.text: float(text.get("x")) for text in root.findall(f"{SVG}text") if text.text in (*ZONES, WORLD)}
    arrows = [group for group in root.findall(f"{SVG}g") if group.find(f"{SVG}circle") is not None]
    for group in arrows:
        source, _, target = group.findtext(f"{SVG}title").partition(" to ")
        tip = group.findall(f"{SVG}path")[1].get("d")
        assert float(group.find(f"{SVG}circle").get("cx")) == lanes[source]
        assert tip.startswith(f"M{lanes[target]:.1f} ")
    assert len(arrows) == 5


def test_a_picture_needs_nothing_from_elsewhere(plan):
    picture = draw(matrix(plan))
    for word in ("<script", "<style", "<image", "href", "url(", "@font-face"):
        assert word not in picture


def test_what_the_picture_quotes_cannot_break_it():
    flow = dataclasses.replace(PACKAGES, why='<b>&amp; "quotes"')
    found = matrix(plan_of(host_plan("node1", flow, reason="less < more & 'so'")))
    assert '! 443/tcp <b>&amp; "quotes" (base)' in texts(draw(found))


def test_a_long_reason_is_wrapped_and_loses_no_word():
    why = " ".join(f"word{number}" for number in range(60))
    shown = texts(draw(matrix(plan_of(host_plan("node1", dataclasses.replace(CLIENTS, why=why))))))
    assert why in " ".join(shown)
    assert max(len(text) for text in shown) < 120


def size(picture):
    root = parsed(picture)
    width, height = (float(root.get(name).removesuffix("mm")) for name in ("width", "height"))
    _, _, units, _ = map(float, root.get("viewBox").split())
    return width, height, units / width


def test_a_picture_is_an_a4_page_in_landscape(plan):
    assert size(draw(matrix(plan)))[:2] == (297, 210)


@pytest.mark.parametrize("number", [2, 12, 40])
def test_the_smallest_text_is_never_printed_with_less_than_6_points(number):
    zones = {f"zone-{index}": [f"10.{index}.0.0/16"] for index in range(number)}
    flows = [Flow("nginx", "in", (zone,), port, "clients") for zone in zones for port in range(80, 90)]
    picture = draw(matrix(plan_of(host_plan("node1", *flows, zone="zone-0", zones=zones))))
    sizes = [float(text.get("font-size")) for text in parsed(picture).iter(f"{SVG}text")]
    point = 25.4 / 72
    assert min(sizes) / size(picture)[2] / point >= 6


def test_a_zone_of_many_networks_says_how_many_more_there_are():
    zones = ZONES | {"app": [f"10.1.{number}.0/24" for number in range(30)]}
    assert "and 18 networks more" in texts(draw(matrix(plan_of(host_plan("node1", zones=zones)))))


DEPLOY = """
from quench import WORLD, Flow, allow
from roles.firewall import firewall
allow(Flow("nginx", "in", ("app", "dmz"), 443, "clients of the models"))
allow(Flow("base", "out", (WORLD,), 443, "packages of the distribution"))
firewall()
"""


@pytest.fixture
def run(tmp_path):
    """`quench flows`, for one host with this data."""

    def flows(*options, deploy=DEPLOY, color=False, **data):
        data = {
            "platform": "debian-12",
            "firewall_zones": ZONES,
            "firewall_zone": "inference",
            "firewall_relaxations": {"world-out": REASON},
        } | data
        (tmp_path / "deploy.py").write_text(deploy)
        (tmp_path / "inventory.py").write_text(f"hosts = [('node1', {data!r})]\n")
        words = ["flows", str(tmp_path / "inventory.py"), str(tmp_path / "deploy.py"), *options]
        return CliRunner().invoke(main, words, color=color)

    return flows


def test_the_command_prints_what_roles_declare_and_the_firewall_itself(run):
    result = run()
    assert result.exit_code == 0, result.output
    assert result.output == (
        "  FROM        TO         PORT/PROTOCOL  WHY                           ROLE      HOSTS\n"
        "  app         inference  443/tcp        clients of the models         nginx     node1\n"
        "  management  inference  22/tcp         administration by SSH         firewall  node1\n"
        "! inference   world      443/tcp        packages of the distribution  base      node1\n"
        "\n"
        f"! to the world, which is whatever is in no zone: {REASON}\n"
        "no networks, so nothing comes from there or goes there: dmz\n"
        "not listed: answers to what is listed, ICMP and DHCP, without which a host would have no address\n"
        "everything else is dropped, in and out; 1 host in 1 zone\n"
    )


def test_a_terminal_gets_relaxations_in_colour_and_nothing_else(run):
    lines = run(color=True).output.splitlines()
    assert [line.startswith("\x1b") for line in lines] == [False] * 3 + [True, False, True] + [False] * 3


def test_the_command_prints_json(run):
    assert json.loads(run("--json").output)["hosts"] == {"node1": "inference"}


def test_the_command_draws_into_a_file(run, tmp_path):
    target = tmp_path / "new" / "flows.svg"
    assert run("--svg", str(target)).output == f"3 flows of 1 host in {target}\n"
    assert "443/tcp clients of the models (nginx)" in texts(target.read_text())


def test_two_outputs_at_once_are_refused(run, tmp_path):
    result = run("--json", "--svg", str(tmp_path / "flows.svg"))
    assert result.exit_code == 2
    assert "choose one" in result.output


def test_a_deploy_without_a_firewall_is_refused(run):
    result = run(deploy="", firewall_relaxations={})
    assert result.exit_code == 1
    assert "node1: deploy: the deploy has no firewall role" in result.output


def test_problems_of_the_plan_are_refused_as_by_check(run):
    result = run(firewall_zone="nowhere", ngnix_port=1)
    assert result.exit_code == 1
    assert "node1: firewall_zone: " in result.output
    assert "node1: ngnix_port: " in result.output


def test_no_host_is_no_matrix(run):
    result = run("--limit", "nosuchhost")
    assert result.exit_code == 1
    assert "no host is chosen" in result.output
