"""The scorecard for people: a table for the terminal, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isinf

from tests.scorecard.score import Score

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; border-top: 1px solid #bbb; padding-top: 1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .6rem .3rem 0;
border-bottom: 1px solid #ddd } td.n, th.n { text-align: right } .missed { font-weight: bold; color: #a40000 }
dt { font-family: ui-monospace, monospace; font-size: .9em; margin-top: .4rem } dd { margin: 0 0 0 1.5rem }
li.m { font-family: ui-monospace, monospace; font-size: .9em }
.simulated { border: 1px solid #bbb; padding: .6rem 1rem }
@media print {
  body { margin: 0; max-width: none; font-size: 10pt } h2 { break-after: avoid } li, dd { break-inside: avoid }
}
"""


def table(scores: Sequence[Score]) -> str:
    """Judge, before, after, limit."""
    lines = [f"{'':46} {'before':>7} {'after':>7} {'limit':>8}"]
    for score in scores:
        after, limit = _number(score.after), _limit(score)
        lines.append(f"{score.judge:46} {_number(score.before):>7} {after:>7} {limit:>8}  {_verdict(score)}".rstrip())
    return "\n".join(lines)


def page(scores: Sequence[Score], facts: dict[str, str], simulated: Sequence[str]) -> str:
    """The whole page."""
    rows = "".join(
        f"<tr><td>{escape(score.judge)}</td><td class=n>{_number(score.before)}</td>"
        f"<td class=n>{_number(score.after)}</td><td class=n>{_limit(score)}</td>"
        f'<td class="{"" if score.met else "missed"}">{_verdict(score) or "met"}</td></tr>\n'
        for score in scores
    )
    about = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>\n" for name, value in facts.items())
    return f"""<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width">
<title>Quench scorecard</title>
<style>{_STYLE}</style>
<h1>Scorecard of a Quench inference node</h1>
<p>What independent judges say of the same host, bare and after <code>pyinfra inventories/lab.py
deploys/inference.py</code>.
<div class=simulated><strong>Simulated:</strong><ul>{_items(simulated)}</ul></div>
<table><tr><th>Judge<th class=n>Before<th class=n>After<th class=n>Limit<th></tr>
{rows}</table>
{"".join(_section(score) for score in scores)}
<h2>Where this was measured</h2>
<table>{about}</table>
</html>
"""


def _section(score: Score) -> str:
    text = f"<h2>{escape(score.judge)}</h2>\n<ul>{_items(score.notes)}</ul>\n"
    if score.findings:
        text += f"<p>What remains:</p>\n<ul>{_items(score.findings, 'm')}</ul>\n"
    if score.waived:
        reasons = "".join(f"<dt>{escape(rule)}<dd>{escape(why)}\n" for rule, why in score.waived.items())
        text += f"<p>Not counted, with the reason:</p>\n<dl>{reasons}</dl>\n"
    return text


def _items(texts: Sequence[str], kind: str = "") -> str:
    return "".join(f'<li class="{kind}">{escape(text)}\n' for text in texts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _limit(score: Score) -> str:
    if isinf(score.limit):
        return "-"
    return f"{'at most' if score.at_most else 'from'} {score.limit:g}".replace("at most 0", "none")


def _verdict(score: Score) -> str:
    return "" if score.met else "missed"
