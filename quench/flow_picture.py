"""The matrix of flows as a picture: a lane for each zone, an arrow for all that passes from one to another.

Laid out like a sequence diagram, so that nothing ever overlaps, however many flows there are. SVG without scripts,
style sheets or fonts of its own. What colour tells is told by dashes and a mark as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from quench.flows import WORLD, Matrix, Row, counted, notes

# A4 landscape, and how many units it may be wide: with the most of them, the smallest text is printed with 6 points.
_SHEET_MM, _SHAPE = 297.0, 210 / 297
_WIDTHS = (1120.0, 1260.0, 1400.0)
_MARGIN = 28.0

_TITLE, _NAME, _TEXT, _SMALL = 18.0, 13.0, 12.0, 10.0
_LINE = 1.3  # from one line of text to the next, in its size
_FONT = "Helvetica, Arial, &apos;DejaVu Sans&apos;, sans-serif"
_INK, _PALE, _OURS, _WARNING = "#1a1a1a", "#8a8a8a", "#e6ecf2", "#b00020"
_CHARS, _INDENT = 72, "    "
_DASHES = ' stroke-dasharray="7 4"'

# More networks than this are in the table and in the rules, and would leave no room for arrows.
_MOST_NETWORKS = 12
_ABOUT = "An arrow goes from who opens a connection to who is called. Shaded zones have hosts that Quench manages."


def draw(matrix: Matrix) -> str:
    """The matrix as SVG. The same matrix gives the same bytes."""
    boxes = _boxes(matrix)
    needed = sum(_needed(zone, lines) for zone, lines in boxes.items()) + 2 * _MARGIN
    for width in _WIDTHS:
        parts, height = _page(matrix, boxes, max(width, needed))
        if needed <= width and height <= width * _SHAPE:
            break
    # What fits on no sheet has a larger one; its text does not shrink any further.
    millimetres = _SHEET_MM / width
    width = max(width, needed)
    height = max(height, width * _SHAPE)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title desc" font-family="{_FONT}"'
        f' width="{width * millimetres:.1f}mm" height="{height * millimetres:.1f}mm"'
        f' viewBox="0 0 {width:.1f} {height:.1f}">'
    )
    about = [f'<title id="title">{_title(matrix)}</title>', f'<desc id="desc">{escape(_description(matrix))}</desc>']
    paper = f'<rect width="{width:.1f}" height="{height:.1f}" fill="#ffffff"/>'
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *about, paper, *parts, "</svg>", ""])


def _title(matrix: Matrix) -> str:
    zones = len(set(matrix.hosts.values()))
    return f"Flows between zones: {counted(len(matrix.hosts), 'host')} in {counted(zones, 'zone')}"


def _description(matrix: Matrix) -> str:
    """The picture for those who hear it."""
    rows = [f"{row.source} to {row.target}: {_label(matrix, row)}." for row in matrix.rows]
    return "\n".join([_ABOUT, *rows, *notes(matrix)])


def _label(matrix: Matrix, row: Row) -> str:
    hosts = "" if list(row.hosts) == matrix.neighbours(row) else f"; {matrix.hosts_of(row)}"
    return f"{'! ' if row.world else ''}{row.service} {row.what} ({row.role}{hosts})"


def _boxes(matrix: Matrix) -> dict[str, list[str]]:
    """What stands in the box of each zone. The world first, then those who only call, then those with hosts."""
    ours = set(matrix.hosts.values())
    zones = [zone for zone, networks in matrix.zones.items() if networks or zone in ours]
    zones.sort(key=lambda zone: zone in ours)
    busy = {zone for row in matrix.rows for zone in (row.source, row.target)}
    boxes = {WORLD: ["whatever is in no zone"]} | {zone: _zone_lines(matrix, zone) for zone in zones}
    return {zone: [*lines, *([] if zone in busy else ["no flows"])] for zone, lines in boxes.items()}


def _zone_lines(matrix: Matrix, zone: str) -> list[str]:
    hosts = sum(found == zone for found in matrix.hosts.values())
    networks = matrix.zones[zone]
    more = len(networks) - _MOST_NETWORKS
    rest = [f"and {counted(more, 'network')} more"] if more > 0 else []
    return [counted(hosts, "managed host") if hosts else "no managed hosts", *networks[:_MOST_NETWORKS], *rest]


def _page(matrix: Matrix, boxes: dict[str, list[str]], width: float) -> tuple[list[str], float]:
    """All parts of the picture on paper of this width, and the height that they take."""
    wide = _lane_widths(boxes, width)
    lanes = {zone: _MARGIN + sum(wide[:number]) + wide[number] / 2 for number, zone in enumerate(boxes)}
    y = _MARGIN + _TITLE
    head = [_text(_MARGIN, y, _title(matrix), _TITLE, bold=True), _text(_MARGIN, y + 20, _ABOUT, _TEXT)]
    top = y + 36
    below = top + 14 + _NAME + max(len(lines) for lines in boxes.values()) * _SMALL * _LINE + 6
    for (zone, x), room in zip(lanes.items(), wide, strict=True):
        head += _box(matrix, zone, boxes[zone], (x - room / 2 + 6, top, room - 12, below - top))
    arrows, y = [], below + 12
    for (source, target), rows in groupby(matrix.rows, key=lambda row: (row.source, row.target)):
        parts, y = _arrow(matrix, list(rows), lanes[source], lanes[target], y, width)
        arrows += parts
    end = y + 6
    lines = [_lifeline(zone, x, below, end) for zone, x in lanes.items()]
    names = [_text(x, end + _NAME + 2, zone, _NAME, bold=True, anchor="middle") for zone, x in lanes.items()]
    foot, y = _foot(matrix, end + 3 * _NAME, width)
    return [*head, *lines, *names, *arrows, *foot], y + _MARGIN / 2


def _needed(zone: str, lines: Sequence[str]) -> float:
    return max(_wide(zone, _NAME), *(_wide(line, _SMALL) for line in lines)) + 28


def _lane_widths(boxes: Mapping[str, Sequence[str]], width: float) -> list[float]:
    """What each lane needs, and its share of what is left."""
    wide = [_needed(zone, lines) for zone, lines in boxes.items()]
    spare = (width - 2 * _MARGIN - sum(wide)) / len(wide)
    return [room + spare for room in wide]


def _box(matrix: Matrix, zone: str, lines: Sequence[str], place: tuple[float, float, float, float]) -> list[str]:
    left, top, width, height = place
    hosts = [host for host, found in matrix.hosts.items() if found == zone]
    colour, fill = _WARNING if zone == WORLD else _INK, _OURS if hosts else "#ffffff"
    middle, y = left + width / 2, top + 6 + _NAME
    return [
        f"<g><title>{escape(', '.join([zone, *hosts]))}</title>",
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" rx="4"'
        f' fill="{fill}" stroke="{colour}" stroke-width="1.5"{_DASHES if zone == WORLD else ""}/>',
        _text(middle, y, zone, _NAME, bold=True, colour=colour, anchor="middle"),
        *(
            _text(middle, y + 2 + number * _SMALL * _LINE, escape(line), _SMALL, colour=colour, anchor="middle")
            for number, line in enumerate(lines, start=1)
        ),
        "</g>",
    ]


def _lifeline(zone: str, x: float, top: float, end: float) -> str:
    colour, dashes = (_WARNING, _DASHES) if zone == WORLD else (_PALE, "")
    return f'<path d="M{x:.1f} {top:.1f}V{end:.1f}" fill="none" stroke="{colour}" stroke-width="1"{dashes}/>'


def _arrow(
    matrix: Matrix, rows: Sequence[Row], start: float, stop: float, y: float, width: float
) -> tuple[list[str], float]:
    """An arrow with its list above it, and where the next one may begin."""
    lines = [line for row in rows for line in _label_lines(_label(matrix, row))]
    wide = max(_wide(line, _TEXT) for line in lines)
    left = min(max((start + stop - wide) / 2, _MARGIN), width - _MARGIN - wide)
    colour = _WARNING if rows[0].world else _INK
    tall = len(lines) * _TEXT * _LINE
    texts = [_label_text(left, y + (number + 1) * _TEXT * _LINE, line, colour) for number, line in enumerate(lines)]
    parts = [
        f"<g><title>{escape(f'{rows[0].source} to {rows[0].target}')}</title>",
        # Lanes pass behind the text, and not through it.
        f'<rect x="{left - 4:.1f}" y="{y + 2:.1f}" width="{wide + 8:.1f}" height="{tall + 3:.1f}" fill="#ffffff"/>',
        *texts,
        *_shaft(start, stop, y + tall + 10, colour, _DASHES if rows[0].world else ""),
        "</g>",
    ]
    return parts, y + tall + (32 if start == stop else 20)


def _label_lines(label: str) -> list[str]:
    first, *others = textwrap.wrap(label, _CHARS)
    return [first, *(f"{_INDENT}{line}" for line in others)]


def _label_text(x: float, y: float, line: str, colour: str) -> str:
    """A line of the list. Port and protocol stand out."""
    if line.startswith(_INDENT):
        return _text(x + _wide(_INDENT, _TEXT), y, escape(line.strip()), _TEXT, colour=colour)
    mark = "! " if line.startswith("! ") else ""
    service, _, rest = line.removeprefix(mark).partition(" ")
    return _text(x, y, f'{mark}<tspan font-weight="bold">{service}</tspan> {escape(rest)}', _TEXT, colour=colour)


def _shaft(start: float, stop: float, y: float, colour: str, dashes: str) -> list[str]:
    if start == stop:  # from a zone to itself
        path, tip, back, end = f"M{start:.1f} {y:.1f}h34v12H{start + 8:.1f}", start, 9, y + 12
    else:
        back = 9 if stop < start else -9
        path, tip, end = f"M{start:.1f} {y:.1f}H{stop + back:.1f}", stop, y
    return [
        f'<circle cx="{start:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>',
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>',
        f'<path d="M{tip:.1f} {end:.1f}l{back} -4.5v9z" fill="{colour}"/>',
    ]


def _foot(matrix: Matrix, y: float, width: float) -> tuple[list[str], float]:
    chars = int((width - 2 * _MARGIN) / _wide("x", _TEXT))
    lines = [(line, note) for note in notes(matrix) for line in textwrap.wrap(note, chars)]
    parts = [
        _text(
            _MARGIN, y + number * _TEXT * _LINE, escape(line), _TEXT, colour=_WARNING if note.startswith("!") else _INK
        )
        for number, (line, note) in enumerate(lines)
    ]
    return parts, y + len(lines) * _TEXT * _LINE


def _text(
    x: float, y: float, markup: str, size: float, *, bold: bool = False, colour: str = _INK, anchor: str = "start"
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{markup}</text>"
    )


def _wide(text: str, size: float) -> float:
    """About how wide a text is, and rather too wide: nobody knows the reader's font."""
    return len(text) * size * 0.57
