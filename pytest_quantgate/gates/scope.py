"""What a suite expects to be quantized, and what it takes out of that: by exclusion or waiver."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.suite.keys import BadKey, date_key, list_key, text_key
from pytest_quantgate.suite.where import Where

if TYPE_CHECKING:
    from pytest_quantgate.evidence.audit import Audit, Quantizer, Slot, TowerName

#: The places around attention where a quantizer can be, as a suite names them.
AttentionSlot = Literal["q", "k", "v", "softmax", "output"]

#: Names in a suite -> slots of the audit.
SLOTS: Mapping[AttentionSlot, Slot] = {
    "q": "q",
    "k": "k",
    "v": "v",
    "softmax": "softmax",
    "output": "attention_output",
}
SLOT_NAMES: Mapping[Slot, AttentionSlot] = {slot: name for name, slot in SLOTS.items()}

#: What waits longer than a year does not wait: it is left out for good.
MAX_WAIVER_DAYS = 366


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """Modules (patterns as in `exclude`) that may stay unquantized until a day, and why."""

    where: Where
    modules: tuple[str, ...] = field(
        metadata=list_key(
            text_key(help="pattern"),
            help="module patterns; all waivers together name at most a quarter of a tower",
            single=True,
        )
    )
    reason: str = field(metadata=text_key(help="why they may stay unquantized", lines=True))
    until: date = field(
        metadata=date_key(
            help=f"the last day on which this holds, at most {MAX_WAIVER_DAYS} days from today"
        )
    )

    def check(self) -> None:
        """Refuse a waiver that names nothing. How much of a model one names, the gate counts."""
        if not self.modules:
            raise BadKey("modules", "is empty: name the layers that may wait")
        for pattern in self.modules:
            if not re.search(r"[^\W_]", pattern):
                raise BadKey(
                    "modules",
                    f"{pattern!r} names every module: name the layers that may wait, such as "
                    f"'*visual_projection*'",
                )

    def covers(self, name: str) -> bool:
        """Return whether a pattern names a quantizer or a module, or what it is inside."""
        parts = accumulate(name.split("."), "{}.{}".format)
        return any(fnmatch.fnmatch(part, like) for part in parts for like in self.modules)

    def last_day(self, today: date) -> date:
        """Return the last day until which a waiver may hold, seen from `today`."""
        return today + timedelta(days=MAX_WAIVER_DAYS)

    def lasts_too_long(self, today: date) -> bool:
        return self.until > self.last_day(today)


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a suite expects, and what it takes out of that, by whose word.

    `slots` are wanted in every attention block of the `towers`, by the suite's own word where it
    `asks_attention`; `excluded` are what the exclude list names. `used` numbers the waivers that
    something needed: `takes` adds to it.
    """

    where: Where
    towers: tuple[TowerName, ...]
    slots: tuple[Slot, ...]
    asks_attention: bool
    excluded: frozenset[str]
    waivers: tuple[Waiver, ...]
    used: set[int] = field(default_factory=set)

    def takes(self, name: str) -> bool:
        """Return whether a quantizer or module may be uncovered; remember whose word says so."""
        return name in self.excluded or self.waives(name)

    def waives(self, name: str) -> bool:
        """Return whether a waiver covers a quantizer or module; remember the first that does."""
        waiver = find_waiver(name, self.waivers)
        if waiver is not None:
            self.used.add(self.waivers.index(waiver))
        return waiver is not None


def find_waiver(name: str, waivers: Iterable[Waiver]) -> Waiver | None:
    """Return the first waiver that covers a quantizer or a module."""
    return next((waiver for waiver in waivers if waiver.covers(name)), None)


def list_intended(audit: Audit) -> list[Quantizer]:
    """Return the quantizers that the recipe means, of those that there are."""
    by_name = {quantizer.name: quantizer for quantizer in audit.quantizers}
    return [by_name[name] for name in audit.intended if name in by_name]
