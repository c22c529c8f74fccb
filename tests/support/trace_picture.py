"""Draws a trace as an SVG: a row a span, those that come of it below it, each from when it began until it was done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from tracing import Hop

ROW, LEFT, WIDTH, RIGHT, TOP = 26, 330, 560, 90, 44
COLOURS = {"POST": "#7a5195", "join": "#bc5090", "learn": "#ef5675"}
STYLE = "text{font:13px system-ui,sans-serif;fill:#666}.n{fill:#888}line{stroke:#8884}"


def depth_first(hops: Iterable[Hop]) -> list[tuple[int, Hop]]:
    """Return spans with how deep they are, each followed by those that come of it, in the order in which they began."""
    hops = sorted(hops, key=lambda hop: hop.begin_ns)
    known = {hop.id for hop in hops}

    def below(parent: str, depth: int) -> list[tuple[int, Hop]]:
        mine = [hop for hop in hops if (hop.parent if hop.parent in known else "") == parent]
        return [row for hop in mine for row in [(depth, hop), *below(hop.id, depth + 1)]]

    return below("", 0)


def svg(hops: Sequence[Hop], title: str) -> str:
    """Return the picture of one trace."""
    rows, begin = depth_first(hops), min(hop.begin_ns for hop in hops)
    total = max(hop.end_ns for hop in hops) - begin
    height, width = TOP + ROW * len(rows) + 30, LEFT + WIDTH + RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text x="8" y="20" style="font-weight:600">{escape(title)}</text>',
    ]
    step = next(ms for ms in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if total / 1e6 / ms <= 8)
    for tick in range(int(total / 1e6 / step) + 1):
        x = LEFT + WIDTH * tick * step * 1e6 / total
        lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - 24}"/>')
        lines.append(f'<text class="n" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tick * step:,} ms</text>')
    for number, (depth, hop) in enumerate(rows):
        y, x = TOP + ROW * number, LEFT + WIDTH * (hop.begin_ns - begin) / total
        bar = max(2.0, WIDTH * (hop.end_ns - hop.begin_ns) / total)
        name = f"{hop.name} ({hop.model})" if hop.model else hop.name
        colour = COLOURS.get(hop.name.partition(" ")[0], "#2f7ed8")
        lines.append(f'<text x="{8 + 14 * depth}" y="{y + 13}">{escape(name)}</text>')
        lines.append(f'<rect x="{x:.1f}" y="{y}" width="{bar:.1f}" height="{ROW - 9}" rx="3" fill="{colour}"/>')
        lines.append(
            f'<text class="n" x="{x + bar + 6:.1f}" y="{y + 13}">{(hop.end_ns - hop.begin_ns) / 1e6:,.1f} ms</text>'
        )
    return "\n".join([*lines, "</svg>", ""])
