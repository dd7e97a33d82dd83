"""Numbers as a reader wants them: few digits, units, no `-0.00`."""

from __future__ import annotations

import math


def show_percent(share: float, digits: int = 2) -> str:
    """Return `79.36 %`; `NaN` and infinities in words."""
    if not math.isfinite(share):
        return "not finite"
    return f"{share * 100:.{digits}f} %"


def show_points(points: float) -> str:
    """Return a difference that is in percentage points already: `0.46`."""
    if not math.isfinite(points):
        return "not finite"
    return f"{round(points, 2) + 0:.2f}"


def show_bytes(count: int) -> str:
    """Return `12.3 MiB`."""
    size, units = float(count), ("B", "KiB", "MiB", "GiB")
    for unit in units:
        if abs(size) < 1024 or unit == units[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes any size")


def show_ratio(after: float, before: float) -> str:
    """Return `0.53x`; `-` where there is nothing to compare with."""
    return f"{after / before:.2f}x" if before else "-"


def show_value(value: float | None) -> str:
    """Return a number with three significant digits."""
    return "none" if value is None else f"{value:.3g}"
