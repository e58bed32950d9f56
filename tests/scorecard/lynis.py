"""lynis: its hardening index, the warnings and suggestions that remain."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.lab.support import Node
from tests.scorecard.score import Score, install, version, waivers

PACKAGES = ("lynis",)
LIMIT = 85.0


@dataclass(frozen=True)
class Audit:
    """What lynis says, with the waivers and without."""

    index: float
    unwaived: float
    points: str
    findings: list[str]


def prepare(host: Node) -> None:
    install(host, *PACKAGES)


def judge(host: Node) -> Audit:
    unwaived, _ = _audit(host, {})
    index, findings = _audit(host, waivers("lynis"))
    points = re.findall(r"Currently having (\d+) points \(out of (\d+)\)", host.root("cat /var/log/lynis.log"))
    return Audit(index, unwaived, " of ".join(points[-1]), findings)


def _audit(host: Node, waived: dict[str, str]) -> tuple[float, list[str]]:
    profile = "".join(f"skip-test={test}\n" for test in waived)
    host.root(f"printf %s '{profile}' >/etc/lynis/custom.prf")
    # It exits with another code than 0 if it has warnings.
    host.root("cd /tmp && lynis audit system --quick --no-colors --quiet >/dev/null 2>&1", check=False)
    report = host.root("cat /var/log/lynis-report.dat")
    index = re.search(r"^hardening_index=(\d+)$", report, re.MULTILINE)
    if index is None:
        raise AssertionError(f"lynis gives no index: {report[-500:]}")
    findings = []
    # KIND[]=TEST|TEXT|DETAILS|SOLUTION|
    for line in re.finditer(r"^(warning|suggestion)\[\]=([^|]*)\|([^|]*)\|([^|]*)", report, re.MULTILINE):
        kind, test, text, detail = line.groups()
        findings.append(f"{kind}: {test} {text}{f' ({detail})' if detail not in ('', '-') else ''}")
    return float(index[1]), findings


def score(host: Node, before: Audit, after: Audit) -> Score:
    return Score(
        judge="lynis: hardening index",
        before=before.index,
        after=after.index,
        limit=LIMIT,
        findings=after.findings,
        waived=waivers("lynis"),
        notes=[
            f"{before.unwaived:g} before and {after.unwaived:g} after without the waivers.",
            "After the run, the host's own daily upgrade has brought it up to date once.",
            f"{before.points} points before, {after.points} after.",
            "A lab host is a container: auditd, chrony, mounts and the keys of the whole kernel cannot score there.",
            f"lynis {version(host, 'lynis')}.",
        ],
    )
