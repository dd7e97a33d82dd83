"""The kinds of gates in the order they run; by itself, so that starting pytest is cheap."""

from __future__ import annotations

import re

from pytest_quantgate.errors import QuantGateError

KINDS = (
    "sanity",
    "coverage",
    "calibration",
    "fidelity",
    "accuracy",
    "regression",
    "roundtrip",
    "export",
    "parity",
    "engine",
    "memory",
    "trace",
    "latency",
)

#: What stands for hand-written tests where kinds are named.
OWN_TESTS = "tests"


def parse_kinds(text: str, *, option: str) -> tuple[str, ...]:
    """Return the kinds in a list with commas or spaces; raises QuantGateError for another name."""
    names = tuple(name for name in re.split(r"[,\s]+", text) if name)
    for name in names:
        if name not in (*KINDS, OWN_TESTS):
            raise QuantGateError(
                f"{option}: {name!r} is not a kind of gate. "
                f"Valid kinds: {', '.join((*KINDS, OWN_TESTS))}."
            )
    return tuple(dict.fromkeys(names))
