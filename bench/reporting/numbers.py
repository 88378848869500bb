"""Numbers as people read them."""

from typing import Final

_LARGE: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def three_digits(value: float) -> str:
    """A figure with about three significant digits: 0.0123, 1.23, 12.3, 1,230."""
    size = abs(value)
    if size == 0 or size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def short(value: float) -> str:
    """A number for an axis: 1k, 250k, 1M, 0.01."""
    for factor, letter in _LARGE:
        if abs(value) >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"
