"""testssl.sh, from a host in a client's zone."""

from __future__ import annotations

import json

from quench.lab import fleet
from tests.lab.support import Node
from tests.scorecard.score import Score, install, version, waivers

PACKAGES = ("testssl.sh",)
_COUNTED = ("MEDIUM", "HIGH", "CRITICAL", "FATAL")
# Protocols, ciphers, forward secrecy, the server's preference, certificate, headers, vulnerabilities. Left out: the
# simulation of browsers and the tests of each single cipher, which take longer and find nothing else.
_TESTS = "-p -s -f -P -S -h -U"


def prepare(client: Node) -> None:
    install(client, *PACKAGES)


def findings(client: Node, server: Node) -> list[tuple[str, str]]:
    """What is graver than LOW: the id of the test, and a line about it."""
    authority = (server.lab.folder / "ca" / "ca.crt").read_text()
    fleet.execute(client.lab, client.name, "cat >/run/scorecard.crt", stdin=authority)
    client.root("rm -f /run/scorecard.json")
    # Its exit code counts findings of all kinds.
    client.root(
        f"cd /run && timeout 900 testssl {_TESTS} --quiet --color 0 --warnings off --nodns none "
        f"--add-ca /run/scorecard.crt --jsonfile /run/scorecard.json {server.address}:443",
        check=False,
    )
    items = json.loads(client.root("cat /run/scorecard.json"))
    if not any(item["id"] == "TLS1_3" for item in items):
        raise AssertionError(f"testssl.sh did not get as far as TLS 1.3: {items[-3:]}")
    return [
        (item["id"], f"{item['severity']}: {item['id']}: {item['finding']}")
        for item in items
        if item["severity"] in _COUNTED
    ]


def score(client: Node, server: Node) -> Score:
    found = findings(client, server)
    waived = {rule: reason for rule, reason in waivers("tls").items() if rule in dict(found)}
    left = [text for rule, text in found if rule not in waived]
    return Score(
        judge="testssl.sh: findings above LOW",
        before=None,
        after=len(left),
        limit=0,
        at_most=True,
        findings=left,
        waived=waived,
        notes=[
            f"Without the waivers: {len(found)}.",
            f"testssl.sh {version(client, 'testssl.sh')}, with {_TESTS}, the lab's CA trusted.",
        ],
    )
