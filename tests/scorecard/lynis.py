"""lynis: its hardening index, the warnings and suggestions that remain."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.lab.support import Node
from tests.scorecard.score import Score, install, version

PACKAGES = ("lynis",)
LIMIT = 85.0


@dataclass(frozen=True)
class Audit:
    """What one run of lynis says."""

    index: float
    points: str
    findings: list[str]


def prepare(host: Node) -> None:
    install(host, *PACKAGES)


def judge(host: Node) -> Audit:
    # It exits with another code than 0 if it has warnings.
    host.root("cd /tmp && lynis audit system --quick --no-colors --quiet >/dev/null 2>&1", check=False)
    report = host.root("cat /var/log/lynis-report.dat")
    index = re.search(r"^hardening_index=(\d+)$", report, re.MULTILINE)
    if index is None:
        raise AssertionError(f"lynis gives no index: {report[-500:]}")
    points = re.findall(r"Currently having (\d+) points \(out of (\d+)\)", host.root("cat /var/log/lynis.log"))
    findings = []
    # KIND[]=TEST|TEXT|DETAILS|SOLUTION|
    for line in re.finditer(r"^(warning|suggestion)\[\]=([^|]*)\|([^|]*)\|([^|]*)", report, re.MULTILINE):
        kind, test, text, detail = line.groups()
        findings.append(f"{kind}: {test} {text}{f' ({detail})' if detail not in ('', '-') else ''}")
    return Audit(float(index[1]), " of ".join(points[-1]), findings)


def score(host: Node, before: Audit, after: Audit) -> Score:
    return Score(
        judge="lynis: hardening index",
        before=before.index,
        after=after.index,
        limit=LIMIT,
        findings=after.findings,
        notes=[
            f"{before.points} points before, {after.points} after.",
            "A lab host is a container: auditd, chrony, mounts and the keys of the whole kernel cannot score there.",
            f"lynis {version(host, 'lynis')}.",
        ],
    )
