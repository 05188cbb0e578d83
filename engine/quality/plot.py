"""The plot of the experiment, as SVG: perplexity against the ratio, and by the number of variants.

Perplexity is of a byte, 2 to the power of its bits; bars are a standard deviation over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

Cells = Sequence[Mapping[str, Any]]
Point = tuple[float, Mapping[str, Any]]
"""A place on the horizontal axis, and what was measured there."""

COLOURS = {
    "layout": "#0b62a4",
    "layout, half shared": "#6baed6",
    "random": "#7b8794",
    "mean experts": "#2a9d5c",
    "average": "#d1495b",
    "task arithmetic": "#e08e0b",
    "ties": "#7a4fa3",
    "base": "#9a7b5f",
    "alone": "#111111",
}
"""By method; those of one hue are one method."""
TITLES = {
    "layout": "our layout",
    "layout, half shared": "our layout, half shared",
    "random": "random order",
    "mean experts": "mean of experts",
    "average": "weight averaging",
    "ties": "TIES",
    "base": "the base, for all",
    "alone": "each served alone",
}
"""What methods are called in the plot where it is not their name."""

WIDTH, HEIGHT = 960, 430
INNER_WIDTH, INNER_HEIGHT = 250, 310
TOP = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One pair of axes: lines by method, from `left` pixels on, with what is beneath it."""

    left: int
    title: str
    axis: str
    ticks: Mapping[float, str]
    lines: Mapping[str, Sequence[Point]]

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest perplexity, with a margin."""
        ends = [end for line in self.lines.values() for _, cell in line for end in _ends(cell)]
        margin = 0.05 * (max(ends) - min(ends)) or 1.0
        return min(ends) - margin, max(ends) + margin

    def x(self, at: float) -> float:
        """Return the pixel of a place."""
        first, last = min(self.ticks), max(self.ticks)
        return self.left + INNER_WIDTH * (0.04 + 0.92 * (at - first) / (last - first))

    def y(self, perplexity: float) -> float:
        """Return the pixel of a perplexity."""
        low, high = self.bounds
        return TOP + INNER_HEIGHT * (high - perplexity) / (high - low)


def plot(by_ratio: Cells, by_number: Cells) -> str:
    """Return the plot of both studies' means."""
    panels = [_ratio_panel(by_ratio), _number_panel(by_number)]
    drawn = "\n".join(element for panel in panels for element in _drawn(panel))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{drawn}\n</svg>\n'
    )


def _ratio_panel(cells: Cells) -> Panel:
    flat = ("average", "task arithmetic", "ties", "base", "alone")
    over = ("layout", "random", "mean experts")
    lines: dict[str, Sequence[Point]] = {
        name: [(cell["ratio"], cell) for cell in _of(cells, name)] for name in over
    }
    lines |= {name: [(at, cell) for cell in _of(cells, name) for at in (0, 1)] for name in flat}
    ticks = {quarter / 4: f"{quarter / 4:g}" for quarter in range(5)}
    return Panel(
        left=60, title="Mixtral's shape, four variants", axis="consolidation ratio",
        ticks=ticks, lines=_filled(lines),
    )  # fmt: skip


def _number_panel(cells: Cells) -> Panel:
    counts = sorted({cell["variants"] for cell in cells if cell["method"] == "layout"})
    whole = [cell for cell in cells if cell["ratio"] in (None, 1)]
    half = [cell for cell in _of(cells, "layout") if cell["ratio"] == 0.5]
    over = ("layout", "mean experts", "average", "task arithmetic", "ties")
    lines: dict[str, Sequence[Point]] = {
        name: [(cell["variants"], cell) for cell in _of(whole, name)] for name in over
    }
    lines["layout, half shared"] = [(cell["variants"], cell) for cell in half]
    for name in ("base", "alone"):
        lines[name] = [(at, cell) for cell in _of(cells, name) for at in (counts[0], counts[-1])]
    return Panel(
        left=530, title="Switch Transformer, all shared", axis="variants",
        ticks={count: str(count) for count in counts}, lines=_filled(lines),
    )  # fmt: skip


def _of(cells: Cells, method: str) -> Cells:
    return [cell for cell in cells if cell["method"] == method]


def _filled(lines: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    """Return the lines that have points, in the order of their colours."""
    return {name: lines[name] for name in COLOURS if lines.get(name)}


def _ends(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Return the perplexities a standard deviation below and above the mean."""
    spread = cell["spread"] or 0.0
    return 2 ** (cell["bits"] - spread), 2 ** (cell["bits"] + spread)


def _drawn(panel: Panel) -> list[str]:
    middle = panel.left + INNER_WIDTH / 2
    return [
        _text(middle, 24, panel.title, 'text-anchor="middle" font-weight="bold"'),
        f'<rect x="{panel.left}" y="{TOP}" width="{INNER_WIDTH}" height="{INNER_HEIGHT}" '
        'fill="none" stroke="#bbb"/>',
        *_vertical_ticks(panel),
        *(
            _text(panel.x(at), TOP + INNER_HEIGHT + 18, label, 'text-anchor="middle"')
            for at, label in panel.ticks.items()
        ),
        _text(middle, TOP + INNER_HEIGHT + 38, panel.axis, 'text-anchor="middle"'),
        _text(panel.left, 42, "perplexity of a byte"),
        *(element for name in panel.lines for element in _line(panel, name)),
        *_legend(panel),
    ]


def _vertical_ticks(panel: Panel) -> list[str]:
    """Draw about six round perplexities, each with a thin line."""
    low, high = panel.bounds
    step = next(
        step for step in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 1e9) if (high - low) / step <= 7
    )
    marks = [number * step for number in range(int(low / step) + 1, int(high / step) + 1)]
    right = panel.left + INNER_WIDTH
    return [
        element
        for mark in marks
        for element in (
            f'<path d="M{panel.left} {panel.y(mark):.1f}H{right}" stroke="#eee"/>',
            _text(panel.left - 6, panel.y(mark) + 4, f"{mark:g}", 'text-anchor="end"'),
        )
    ]


def _line(panel: Panel, name: str) -> list[str]:
    """Draw a method's means and spreads; what does not depend on the axis is dashed."""
    points = panel.lines[name]
    colour, level = COLOURS[name], len({id(cell) for _, cell in points}) == 1
    places = [(panel.x(at), panel.y(2 ** cell["bits"]), cell) for at, cell in points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    dash = ' stroke-dasharray="5 3"' if level else ""
    drawn = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']
    for x, y, cell in () if level else places:
        low, high = (panel.y(end) for end in _ends(cell))
        drawn.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    return drawn


def _legend(panel: Panel) -> list[str]:
    """Name the methods to the right of a panel, in the order in which their lines end there."""
    order = sorted(panel.lines, key=lambda name: -panel.lines[name][-1][1]["bits"])
    left = panel.left + INNER_WIDTH + 12
    drawn = []
    for row, name in enumerate(order):
        y = TOP + 10 + 20 * row
        drawn.append(f'<path d="M{left} {y}h18" stroke="{COLOURS[name]}" stroke-width="3"/>')
        drawn.append(_text(left + 24, y + 4, TITLES.get(name, name)))
    return drawn


def _text(x: float, y: float, text: str, how: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {how}>{escape(text)}</text>'
