import pytest

from quench import Flow, ManagedFile
from roles.firewall import FirewallSettings
from roles.firewall import files as firewall
from roles.hardening import HardeningSettings
from roles.hardening import files as hardening
from tests.scorecard import relaxations
from tests.scorecard.page import page, table

REASON = "for a migration, change 4711"
FLOWS = [Flow("base", "out", ("world",), 123, "time", "udp"), Flow("nginx", "in", ("world",), 443, "clients")]


def lines(**relaxed):
    """All lines of the files of both roles."""
    data = {"platform": "debian-12", "firewall_zones": {"management": ["10.0.9.0/24"]}, "firewall_zone": "management"}
    data |= {f"{role}_relaxations": value for role, value in relaxed.items()}
    managed = [
        *firewall(FirewallSettings.load("node1", data), FLOWS if "firewall" in relaxed else []),
        *hardening(HardeningSettings.load("node1", data)),
    ]
    return [line for file in managed if isinstance(file, ManagedFile) for line in file.content.splitlines()]


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("hardening", "password-login"),
        ("hardening", "root-login"),
        ("hardening", "tcp-forwarding"),
        ("firewall", "world-in"),
        ("firewall", "world-out"),
    ],
)
def test_each_relaxation_is_on_the_scorecard_with_its_reason(role, name):
    both = {"world-in": REASON, "world-out": REASON} if role == "firewall" else {name: REASON}
    relaxed = relaxations.found(lines(**{role: both}))
    assert f"{role}_relaxations, {name}: {REASON}" in relaxed
    score = relaxations.score(relaxed)
    assert f"{name}: {REASON}" in page([score], {}, [])
    assert score.met and f"{len(both):>7}" in table([score])


def test_a_host_without_relaxations_has_none_on_the_scorecard():
    assert relaxations.found(lines()) == []
