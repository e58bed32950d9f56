"""What independent judges say of one host, bare and after a real run of deploys/inference.py.

  node1   the host that is judged: Debian 13, in the zone inference
  client  where testssl.sh and nmap run: in the zone app, so that they see what a client sees
Everything is installed on lab hosts, but gixy, which has an environment in the cache. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from quench.lab import fleet
from quench.lab.progress import LabError, say, step
from quench.lab.state import HostSpec, Lab
from tests.lab.support import CHECKOUT, DEPLOY, Node, run_pyinfra
from tests.scorecard import cis, flows, gixy, lockouts, lynis, relaxations, tls, units
from tests.scorecard.page import page, table
from tests.scorecard.score import version

LAB, SYSTEM = "score", "debian-13"
_SPECS = [HostSpec("node1", SYSTEM), HostSpec("client", SYSTEM, zone="app")]
SIMULATED = [
    cis.SIMULATED,
    "host: a container with systemd, on the kernel of this machine",
    "engine: a stand-in for vLLM, without a GPU",
]


def bare_lab() -> Lab:
    """A lab with hosts that nobody has touched."""
    fleet.down(LAB, missing_ok=True)
    return fleet.up_hosts(LAB, _SPECS, engine="stand-in")


def provision(node: Node) -> None:
    """The operator's own run."""
    done = run_pyinfra(node, "-y", "--limit", node.name)
    if done.code != 0:
        raise LabError(f"the run of {DEPLOY} failed: {done.text[-3000:]}")


def facts(node: Node) -> dict[str, str]:
    """The machine, and the versions of the judges."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, kernel {platform.release()}",
        "host": node.root('. /etc/os-release; echo "$PRETTY_NAME"'),
        "nginx": node.root("nginx -v 2>&1"),
    }


def versions(node: Node, client: Node, program: Path) -> dict[str, str]:
    found = {name: version(node, name) for name in (*cis.PACKAGES, *lynis.PACKAGES, "systemd")}
    found |= {name: version(client, name) for name in (*tls.PACKAGES, *flows.PACKAGES)}
    return {**found, "gixy-ng": gixy.version(program)}


def measure(path: Path) -> int:
    """Judge, provision, judge again; 1 if a limit is missed."""
    lab = bare_lab()
    node, client = Node(lab, "node1"), Node(lab, "client")
    program = gixy.prepare()
    with step("installing the judges on the hosts"):
        cis.prepare(node)
        lynis.prepare(node)
        tls.prepare(client)
        flows.prepare(client)
    with step("judging the bare host"):
        cis_before, lynis_before = cis.judge(node), lynis.judge(node)
    with step(f"pyinfra inventories/lab.py {DEPLOY}"):
        provision(node)
    with step("the host's own daily upgrade"):
        node.root("systemctl start apt-daily.service apt-daily-upgrade.service")
    with step("judging the node: OpenSCAP, lynis"):
        cis_after, lynis_after = cis.judge(node), lynis.judge(node)
    with step("judging the node: units, nginx, ports"):
        exposure, configuration, probed = units.score(node), gixy.score(node, program), flows.probe(client, node)
    with step("judging the node: TLS"):
        transport = tls.score(client, node)
        relaxed = relaxations.of(node)
    with step("calling from each zone into every other"):
        matrix = flows.matrix()
    with step("locking oneself out"):
        locked = lockouts.attempt()
    scores = [
        cis.score(node, cis_before, cis_after),
        lynis.score(node, lynis_before, lynis_after),
        exposure,
        transport,
        configuration,
        flows.score_matrix(matrix),
        flows.score_nmap(client, probed),
        lockouts.score(locked),
        relaxations.score(relaxed),
    ]
    about, judges = facts(node), versions(node, client, program)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(scores, {**about, **judges}, SIMULATED))
    print(table(scores))
    for score in scores:
        if not score.met:
            say(f"{score.judge}: {score.after:g}, the limit is {score.limit:g}")
            for finding in score.findings:
                say(f"  {finding}")
    say(f"Simulated: {'; '.join(SIMULATED)}.")
    say(f"The page: {path}")
    print(
        json.dumps(
            {
                "cis_l1": cis_after.tailored.score,
                "cis_l1_before": cis_before.tailored.score,
                "cis_l1_unwaived": cis_after.whole.score,
                "cis_l1_unwaived_before": cis_before.whole.score,
                "cis_l1_not_scored": cis.not_scored(cis_after),
                "lynis": lynis_after.index,
                "lynis_before": lynis_before.index,
                "lynis_unwaived": lynis_after.unwaived,
                "unit_exposure_max": exposure.after,
                "tls_findings": transport.after,
                "tls_findings_unwaived": transport.after + len(transport.waived),
                "gixy_findings": configuration.after,
                "flows_tried": matrix.tried + probed.tried,
                "flows_wrong": len(matrix.wrong) + len(probed.wrong),
                "lockouts_tried": locked.tried,
                "lockouts_recovered": locked.tried - len(locked.lost),
                "relaxations": relaxed,
                "simulated": SIMULATED,
                **about,
                "versions": judges,
            }
        )
    )
    return 0 if all(score.met for score in scores) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.scorecard", description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=CHECKOUT / "build" / "scorecard.html", help="where the page goes")
    path = parser.parse_args().page.absolute()
    os.environ["QUENCH_LAB"] = LAB
    os.chdir(CHECKOUT)
    try:
        return measure(path)
    finally:
        if not os.environ.get("QUENCH_KEEP_LABS"):
            fleet.down(LAB, missing_ok=True)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (AssertionError, LabError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
