"""A line chart as SVG by hand, for pages that can't run a script: log x axis, a legend beside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 180, 34, 48
COLOURS = ("#1c1e21", "#bc4c00", "#0550ae", "#116329", "#8250df", "#b42318", "#0a7ea4", "#9a6700",
           "#bf3989", "#57606a", "#2da44e", "#d4a72c", "#54aeff", "#ff8182")  # fmt: skip
DASHES = ("", "6 3", "2 3")
INK, GRID = "#3d444d", "#d8dee4"

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Scale:
    """Where a value lies on the page."""

    low_x: float
    high_x: float
    ticks: tuple[float, ...]

    def x(self, value: float) -> float:
        low, high = math.log10(self.low_x), math.log10(self.high_x)
        share = (math.log10(value) - low) / ((high - low) or 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        share = (value - low) / ((high - low) or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def line_chart(lines: Mapping[str, Line], *, title: str, x: str, y: str) -> str:
    """The whole file. Points at no cost have no place on a log axis and are left out."""
    drawn = {name: [(a, b) for a, b in line if a > 0] for name, line in lines.items()}
    points = [point for line in drawn.values() for point in line]
    if not points:
        raise ValueError(f"{title}: no line has a point above 0 to draw")
    xs, ys = [a for a, _ in points], [b for _, b in points]
    scale = _Scale(min(xs), max(xs), _ticks(min(ys), max(ys)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 20, title, weight="bold"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, f"{x} (log scale)", "middle"),
        f'<g transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">',
        _text(0, 0, y, "middle"),
        "</g>",
        *_grid(scale),
    ]
    for number, (name, line) in enumerate(drawn.items()):
        parts += _curve(number, name, line, scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(scale: _Scale) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in scale.ticks:
        at = scale.y(tick)
        yield f'<path d="M{LEFT} {at:.1f}H{right}" stroke="{GRID}"/>'
        yield _text(LEFT - 6, at + 4, f"{tick:g}", "end")
    for tick in _decades(scale.low_x, scale.high_x):
        at = scale.x(tick)
        yield f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="{GRID}"/>'
        yield _text(at, bottom + 16, f"{tick:,g}", "middle")


def _curve(number: int, name: str, line: Line, scale: _Scale) -> Iterator[str]:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // 5 % len(DASHES)]
    look = f'stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"'
    points = [(scale.x(a), scale.y(b)) for a, b in line]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    yield f'<polyline points="{path}" fill="none" {look}/>'
    for a, b in points:
        yield f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>'
    at, beside = TOP + 8 + 20 * number, WIDTH - RIGHT + 12
    yield f'<path d="M{beside} {at}h22" {look}/>'
    yield _text(beside + 28, at + 4, name)


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values around the range, about six."""
    rough = (high - low) / 5 or abs(high) / 5 or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return tuple(round(number * step, 10) for number in range(first, max(last, first + 1) + 1))


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in the range; only the powers where it is wide."""
    factors = (1,) if high / low > 300 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = (factor * 10.0**power for power in powers for factor in factors)
    return [value for value in values if low <= value <= high]


def _text(x: float, y: float, said: str, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{escape(said)}</text>"
