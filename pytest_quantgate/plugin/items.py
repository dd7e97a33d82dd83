"""What the plugin keeps on a test that is a gate, and how a suite is told that was collected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.plugin.replay import ReplayClock

if TYPE_CHECKING:
    from pytest_quantgate.suite.gates import GateSection
    from pytest_quantgate.suite.specs import Suite


@dataclass(frozen=True, kw_only=True)
class GateItem:
    """Which gate of which suite a test is."""

    suite: Suite
    gate: GateSection

    @property
    def kind(self) -> str:
        return self.gate.kind

    @property
    def name(self) -> str:
        return self.gate.name


GATE = pytest.StashKey[GateItem]()
#: What a timed gate's benchmark reads its time from.
CLOCK = pytest.StashKey[ReplayClock]()


def describe_gates(suite: Suite, *, file: str) -> dict[str, Any]:
    """Return a suite as it was collected: `conclusion.SuiteGates` as plain data."""
    return {
        "suite": suite.name,
        "file": file,
        "gates": [gate.name for gate in suite.gates],
        "allow_unmeasured": list(suite.allow_unmeasured),
        "digest": suite.digest,
    }
