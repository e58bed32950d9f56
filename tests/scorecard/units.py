"""systemd-analyze security, for each unit that Quench wrote. Drop-ins for other units are not among them."""

from __future__ import annotations

import re

from tests.lab.support import Node
from tests.scorecard.score import Score, version, waivers

LIMIT = 2.0


def exposures(host: Node) -> dict[str, float]:
    """The exposure of each service whose unit file stands in a manifest of Quench."""
    paths = host.root("cat /var/lib/quench/manifest/* | cut -d' ' -f5-").splitlines()
    units = [match[1] for path in paths if (match := re.fullmatch(r"/etc/systemd/system/([^/]+\.service)", path))]
    found = {}
    for unit in sorted(units):
        text = host.root(f"systemd-analyze security --no-pager '{unit}'")
        level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
        if level is None:
            raise AssertionError(f"systemd-analyze gives no exposure for {unit}: {text[-500:]}")
        found[unit] = float(level[1])
    if not found:
        raise AssertionError("no manifest on the host names a unit")
    return found


def score(host: Node) -> Score:
    found = exposures(host)
    waived = waivers("units")
    return Score(
        judge="systemd-analyze security: worst unit",
        before=None,
        after=max(level for unit, level in found.items() if unit not in waived),
        limit=LIMIT,
        at_most=True,
        waived=waived,
        notes=[*[f"{unit}: {level}" for unit, level in found.items()], f"systemd {version(host, 'systemd')}."],
    )
