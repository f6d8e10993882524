"""Draws docs/figures/rooms.svg, the rooms of the code and who imports whom, from the import map and the code itself.

python docs/architecture.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "figures" / "rooms.svg"
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 118, 40, 22, 46, 16


def edges(root: Path = ROOT) -> dict[str, set[str]]:
    """Room -> the rooms that its modules import; the modules of the ground floor, which all know, are one."""
    sys.path.insert(0, str(root))
    from tests.contract.test_import_graph import GROUND, imports_of, modules_of, room_of

    modules = modules_of(root)
    found: dict[str, set[str]] = {room_of(name): set() for name in modules if room_of(name) not in {"", *GROUND}}
    for each in imports_of(modules):
        source, target = room_of(each.source), room_of(each.target) if each.target in modules else ""
        if source in found and target in found and source != target:
            found[source].add(target)
    return found


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that follow from others."""

    def reached(room: str) -> set[str]:
        return {each for next_ in graph[room] for each in {next_, *reached(next_)}}

    return {
        room: {each for each in below if not any(each in reached(other) for other in below)}
        for room, below in graph.items()
    }


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, the lowest first: each stands above all that it imports."""

    def floor(room: str) -> int:
        return 1 + max((floor(each) for each in graph[room]), default=-1)

    count = 1 + max(map(floor, graph))
    return [sorted(room for room in graph if floor(room) == level) for level in range(count)]


def svg(graph: Mapping[str, set[str]]) -> str:
    """The figure: a box for each room, an arrow from each to the rooms that it imports."""
    rows = list(reversed(floors(graph)))
    wide = max(len(row) for row in rows)
    total = (wide * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN, len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN)
    place = {}
    for level, row in enumerate(rows):
        left = MARGIN + (wide - len(row)) * (WIDTH + GAP_X) / 2
        for index, room in enumerate(row):
            place[room] = (left + index * (WIDTH + GAP_X), MARGIN + level * (HEIGHT + GAP_Y))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}"'
        ' font-family="sans-serif" font-size="15">',
        "<title>Rooms of slime-bench: an arrow goes to the room that is imported</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{total[0]}" height="{total[1]}" fill="#fff"/>',
    ]
    for room, below in sorted(reduced(graph).items()):
        x, y = place[room]
        for each in sorted(below):
            to_x, to_y = place[each]
            lines.append(
                f'<path d="M{x + WIDTH / 2:g} {y + HEIGHT}L{to_x + WIDTH / 2:g} {to_y:g}" stroke="#667" fill="none" '
                'marker-end="url(#tip)"/>'
            )
    for room, (x, y) in sorted(place.items()):
        lines.append(f'<rect x="{x:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#e8eef7" stroke="#345"/>')
        lines.append(
            f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle" fill="#123">{room}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(svg(edges()), encoding="utf-8")
    print(f"wrote {FIGURE.relative_to(ROOT)}")
