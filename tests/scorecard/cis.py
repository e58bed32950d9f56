"""OpenSCAP with the content of ComplianceAsCode: CIS for Ubuntu 24.04, level 1, server. SIMULATED in one point.

There is no such content for Debian 13. The host is Debian 13 and plays Ubuntu 24.04 for the scanner alone: its
os-release is bound over in a mount namespace of the scanner's own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

from tests.lab.support import Node
from tests.scorecard.score import Score, install, version, waivers

SIMULATED = "CIS: the host is Debian 13 and plays Ubuntu 24.04 for OpenSCAP, whose content has no Debian 13"
PACKAGES = ("openscap-scanner", "ssg-debderived")
LIMIT = 98.0

_CONTENT = "/usr/share/xml/scap/ssg/content/ssg-ubuntu2404-ds.xml"
_PROFILE = "xccdf_org.ssgproject.content_profile_cis_level1_server"
_TAILORED = "xccdf_org.quench_profile_scorecard"
_RULE = "xccdf_org.ssgproject.content_rule_"
# Results of OpenSCAP that say nothing about the host.
_NOT_SCORED = ("notapplicable", "notchecked", "informational")
_TAILORING = """\
<?xml version="1.0" encoding="UTF-8"?>
<Tailoring xmlns="http://checklists.nist.gov/xccdf/1.2" id="xccdf_org.quench_tailoring_scorecard">
  <version time="2026-01-01T00:00:00">1</version>
  <Profile id="{tailored}" extends="{profile}">
    <title>CIS level 1 server, without the rules of waivers.yaml</title>
{rules}
  </Profile>
</Tailoring>
"""
# Arguments: options of oscap. The last line of the output is the score.
_SCAN = """
set -eu
cat >/run/scorecard.os-release <<'END'
PRETTY_NAME="Ubuntu 24.04 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
UBUNTU_CODENAME=noble
END
printf 'DISTRIB_ID=Ubuntu\\nDISTRIB_RELEASE=24.04\\nDISTRIB_CODENAME=noble\\n' >/run/scorecard.lsb-release
made=
[ -e /etc/lsb-release ] || { touch /etc/lsb-release; made=1; }
code=0
unshare --mount --propagation private sh -c '
    mount --bind /run/scorecard.os-release /etc/os-release
    mount --bind /run/scorecard.os-release /usr/lib/os-release
    mount --bind /run/scorecard.lsb-release /etc/lsb-release
    exec oscap xccdf eval --progress "$@"' sh OPTIONS \
    --results /run/scorecard.xml CONTENT || code=$?
[ -z "$made" ] || rm -f /etc/lsb-release
# 2: there are rules that fail.
[ $code = 0 ] || [ $code = 2 ]
sed -n 's/.*<score [^>]*maximum="100[.0]*">\\([0-9.]*\\)<.*/\\1/p' /run/scorecard.xml
"""


@dataclass(frozen=True)
class Scan:
    """A score and the result of each rule."""

    score: float
    results: dict[str, str]

    def rules(self, *results: str) -> list[str]:
        return sorted(rule for rule, result in self.results.items() if result in results)


@dataclass(frozen=True)
class State:
    """The host with the waivers and without."""

    tailored: Scan
    whole: Scan


def tailoring(rules: dict[str, str]) -> str:
    """The tailoring file of waivers: XCCDF 1.2, with each reason beside its rule."""
    lines = []
    for rule, reason in sorted(rules.items()):
        # XML has no way to write two hyphens in a comment.
        lines.append(f"    <!-- {escape(reason).replace('--', '- -')} -->")
        lines.append(f'    <select idref="{_RULE}{rule}" selected="false"/>')
    return _TAILORING.format(tailored=_TAILORED, profile=_PROFILE, rules="\n".join(lines))


def prepare(host: Node) -> None:
    install(host, *PACKAGES)
    host.root(f"cat >/run/scorecard.tailoring.xml <<'END'\n{tailoring(waivers('cis'))}END")
    known = host.root(f"grep -o 'Rule [^>]*id=\"{_RULE}[a-z0-9_]*\"' {_CONTENT}")
    unknown = [rule for rule in waivers("cis") if f'{_RULE}{rule}"' not in known]
    if unknown:
        raise AssertionError(f"waivers.yaml names rules that the content does not have: {', '.join(unknown)}")


def judge(host: Node) -> State:
    return State(
        _scan(host, f"--tailoring-file /run/scorecard.tailoring.xml --profile {_TAILORED}"),
        _scan(host, f"--profile {_PROFILE}"),
    )


def _scan(host: Node, options: str) -> Scan:
    lines = host.root(_SCAN.replace("OPTIONS", options).replace("CONTENT", _CONTENT)).splitlines()
    results = dict(re.findall(rf"^{_RULE}(\w+):(\w+)$", "\n".join(lines), re.MULTILINE))
    if not results:
        raise AssertionError(f"oscap told of no rule: {lines[-5:]}")
    return Scan(round(float(lines[-1]), 1), results)


def score(host: Node, before: State, after: State) -> Score:
    counted = after.tailored.rules("pass", "fail", "error", "unknown")
    needless = [rule for rule in waivers("cis") if after.whole.results.get(rule) == "pass"]
    return Score(
        judge="OpenSCAP: CIS level 1 server",
        before=before.tailored.score,
        after=after.tailored.score,
        limit=LIMIT,
        findings=[
            f"{after.tailored.results[rule]}: {rule}" for rule in after.tailored.rules("fail", "error", "unknown")
        ],
        waived=waivers("cis"),
        notes=[
            f"SIMULATED. {SIMULATED}.",
            f"Without the waivers: {before.whole.score} before, {after.whole.score} after.",
            f"{len(counted)} rules scored. Not scored: {not_scored(after)}, not applicable to a container or to what "
            "is installed, or checked by people:",
            *[f"{result}: {', '.join(after.tailored.rules(result))}" for result in _NOT_SCORED],
            f"OpenSCAP {version(host, 'openscap-scanner')}, content {version(host, 'ssg-debderived')}.",
            *[f"This waiver is needless, the rule passes: {rule}" for rule in needless],
        ],
    )


def not_scored(state: State) -> int:
    return len(state.tailored.rules(*_NOT_SCORED))
