"""One reader that is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.fuzz.spoiling import Form


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader: `seeds` are good inputs, `read` is given the bytes of a spoiled one.

    `share` is how many of all cases are its own in a seeded run, `guided_share` in a guided one.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], Any]
    share: float
    guided_share: float
    form: Form = "bytes"
