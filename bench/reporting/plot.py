"""Curves as SVG that takes its colours from the page: light or dark, any width, no script."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bench.reporting.numbers import short, three_digits
from bench.results import Curves

WIDTH: Final = 640
HEIGHT: Final = 340
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 46
LINE_HEIGHT: Final = 20
COLOURS: Final = 8  # .c0 to .c7 in the page's style; further lines begin again, dashed
MAX_TICKS: Final = 7
HALF_WIDTH_CHARACTERS: Final = 24


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows, `low` to `high`, and where it is labelled."""

    low: float
    high: float
    log: bool
    ticks: Sequence[float]

    def place(self, value: float) -> float:
        """Where the value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis_of(values: Sequence[float], log: bool) -> Axis:
    """An axis that shows all values. A logarithmic one needs values above 0 and is linear when one is not."""
    low, high = min(values), max(values)
    if log and low > 0:
        return _log_axis(low, high)
    return _linear_axis(min(low, 0.0), high)


def _log_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    if last - first <= 2:
        # Few decades: 1, 2, 5 and only as much of them as is used.
        steps = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
        bottom = max(step for step in steps if step <= low * (1 + 1e-9))
        top = min(step for step in [*steps, 10.0 ** (last + 1)] if step >= high * (1 - 1e-9) and step > bottom)
        return Axis(bottom, top, True, [step for step in steps if bottom <= step <= top])
    stride = math.ceil((last - first) / MAX_TICKS)
    return Axis(10.0**first, 10.0**last, True, [10.0**power for power in range(first, last + 1, stride)])


def _linear_axis(low: float, high: float) -> Axis:
    if high <= low:
        high = low + 1.0
    rough = (high - low) / (MAX_TICKS - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, False, [number * step for number in range(first, last + 1)])


def draw(curves: Curves) -> str:
    """One SVG element with axes, lines, their points (the browser shows a point's values) and a legend below."""
    points = [point for line in curves.lines.values() for point in line]
    if not points:
        return ""
    horizontal = axis_of([x for x, _ in points], curves.log_x)
    vertical = axis_of([y for _, y in points], curves.log_y)
    legend = _legend(list(curves.lines))
    height = HEIGHT + LINE_HEIGHT * -(-len(curves.lines) // _legend_columns(curves.lines)) + 8
    body = [*_grid(horizontal, vertical), *_labels(curves), *_lines(curves, horizontal, vertical), legend]
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(curves.title)}">'
        f"<title>{escape(curves.title)}</title>{''.join(body)}</svg>"
    )


def _across(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _up(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _grid(horizontal: Axis, vertical: Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    drawn = []
    for tick in horizontal.ticks:
        x = _across(horizontal, tick)
        drawn.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        drawn.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short(tick)}</text>')
    for tick in vertical.ticks:
        y = _up(vertical, tick)
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        drawn.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    return drawn


def _labels(curves: Curves) -> list[str]:
    x, y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    attributes = 'class="axis" text-anchor="middle"'
    return [
        f'<text {attributes} x="{x:.0f}" y="{HEIGHT - 10}">{escape(curves.x_label)}</text>',
        f'<text {attributes} transform="translate(14 {y:.0f}) rotate(-90)">{escape(curves.y_label)}</text>',
    ]


def _look(number: int) -> str:
    return f"c{number % COLOURS}" + (" dashed" if number >= COLOURS else "")


def _lines(curves: Curves, horizontal: Axis, vertical: Axis) -> list[str]:
    drawn = []
    for number, (label, line) in enumerate(curves.lines.items()):
        places = [(_across(horizontal, x), _up(vertical, y)) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if len(places) > 1:
            drawn.append(f'<path class="line {_look(number)}" d="M{path}"/>')
        drawn.extend(
            f'<circle class="dot {_look(number)}" cx="{across:.1f}" cy="{up:.1f}" r="3.5">'
            f"<title>{escape(label)}: {three_digits(y)} at {short(x)}</title></circle>"
            for (across, up), (x, y) in zip(places, line, strict=True)
        )
    return drawn


def _legend_columns(labels: Collection[str]) -> int:
    """Two when every label fits half the width, at the larger type that narrow screens get."""
    return 2 if all(len(label) <= HALF_WIDTH_CHARACTERS for label in labels) else 1


def _legend(labels: Sequence[str]) -> str:
    drawn = []
    columns = _legend_columns(labels)
    for number, label in enumerate(labels):
        x = LEFT if number % columns == 0 else (LEFT + WIDTH - RIGHT) // 2
        y = HEIGHT + 10 + LINE_HEIGHT * (number // columns)
        drawn.append(f'<path class="line {_look(number)}" d="M{x} {y}h22"/>')
        drawn.append(f'<text class="key" x="{x + 28}" y="{y + 4}">{escape(label)}</text>')
    return "".join(drawn)
