"""A schedule as a picture: a line for each rank that works, a bar for each time it works on a group."""

from __future__ import annotations

from html import escape

from forerun.distributed.layout import ATTENTION, FFN
from forerun.distributed.schedule import Schedule

COLOURS = ("#1f6f8b", "#e07a2f", "#6a994e", "#8e5ea2", "#b8a04a", "#4c4f56", "#c1666b", "#8a8f98")
LEFT, WIDTH, LINE, BAR, TOP = 120, 760, 36, 24, 44
TICKS = 8
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.tick { font-size: 11px; text-anchor: middle; }"""


def svg(schedule: Schedule) -> str:
    """The schedule as an SVG document; time runs to the right, in milliseconds."""
    ranks = sorted({each.rank for each in schedule.spans if each.part == ATTENTION})
    names = [f"{ATTENTION} {rank}" if len(ranks) > 1 else ATTENTION for rank in ranks]
    line_of = {(ATTENTION, rank): number for number, rank in enumerate(ranks)} | {(FFN, 0): len(ranks)}
    lines = [*names, FFN]
    end = max(each.end for each in schedule.spans)
    bottom = TOP + LINE * len(lines)
    rows = ", ".join(str(each.rows) for each in schedule.groups)
    shared = f"both parts work {schedule.overlap:.0%} of it"
    title = f"{schedule.seconds * 1e3:.1f} ms a step, rows of the groups: {rows}; {shared}"

    def x(seconds: float) -> float:
        return LEFT + WIDTH * seconds / end

    shapes = [f'<text x="8" y="22" class="title">{escape(title)}</text>']
    for number, name in enumerate(lines):
        shapes.append(f'<text x="8" y="{TOP + LINE * number + BAR * 0.7:.0f}">{escape(name)}</text>')
    for each in schedule.spans:
        y = TOP + LINE * line_of[each.part, each.rank]
        width = max(0.2, x(each.end) - x(each.begin))
        about = f"group {each.group}: {each.begin * 1e3:.2f} to {each.end * 1e3:.2f} ms"
        shapes.append(
            f'<rect x="{x(each.begin):.2f}" y="{y}" width="{width:.2f}" height="{BAR}" '
            f'fill="{COLOURS[each.group % len(COLOURS)]}"><title>{about}</title></rect>'
        )
    for number in range(TICKS + 1):
        time = end * number / TICKS
        shapes.append(f'<text x="{x(time):.0f}" y="{bottom + 14}" class="tick">{time * 1e3:.1f}</text>')
    size = f'viewBox="0 0 {LEFT + WIDTH + 40} {bottom + 24}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *shapes, "</svg>", ""])
