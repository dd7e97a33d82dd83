"""What a change is called when the two sides are swapped."""

from __future__ import annotations

#: Kinds that turn into each other when the two sides are swapped; every other kind stays.
_PAIRS = {
    "added": "removed",
    "switched on": "switched off",
    "runs now": "no longer runs",
    "range added": "range lost",
    "loosened": "tightened",
    "class lost": "class won",
    "noisier": "quieter",
    "slots alike": "slots apart",
    "ranges no longer fit": "ranges fit again",
    "switches nothing on": "switches on again",
    "damaged": "repaired",
    "tower quantized": "tower unquantized",
}
_MIRROR = {**_PAIRS, **{new: old for old, new in _PAIRS.items()}}


def mirror(kind: str) -> str:
    return _MIRROR.get(kind, kind)
