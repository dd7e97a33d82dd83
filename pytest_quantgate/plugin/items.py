"""What the plugin keeps on a test that is a gate, and how a suite is told that was collected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.plugin.replay import ReplayClock
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.wrapping import terminal_width, wrap

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

    @property
    def place(self) -> str:
        """Where the suite names the gate: `suites/clip.quantgate.yaml:12`."""
        return str(self.gate.where)


class GateTest(pytest.Function):
    """The test of a gate: for pytest and for its other plugins it stands on a line of the suite."""

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return the suite, the gate's line in it counted from 0, and the gate's name."""
        gate = self.stash[GATE]
        path = Path(printable(str(self.path)))
        return path, max(0, gate.gate.where.line - 1), gate.name

    def repr_failure(self, excinfo: Any, *arguments: Any, **options: Any) -> Any:
        """Return a verdict as its text: the place where the plugin raises it helps nobody."""
        error = excinfo.value
        if isinstance(error, pytest.fail.Exception) and not error.pytrace:
            return str(error)
        return super().repr_failure(excinfo, *arguments, **options)


class FailureText(str):
    """The text of a red gate: whole where it is kept, in lines of whole words on a terminal."""

    __slots__ = ()

    def toterminal(self, writer: Any) -> None:
        """Write it, as pytest asks of what a test failed with; `writer` is pytest's own."""
        first, *rest = self.splitlines() or [""]
        width = terminal_width()
        for line in wrap(first, width=width, hang=4):
            writer.line(line, red=True)
        for line in rest:
            for part in wrap(line, width=width):
                writer.line(part)


GATE = pytest.StashKey[GateItem]()
#: What a timed gate's benchmark reads its time from.
CLOCK = pytest.StashKey[ReplayClock]()


def keep_together(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Return tests with the gates of a suite beside each other, where its first one stands.

    One model is held at a time: gates of two suites in turn would build both again and again.
    """
    groups: dict[object, list[pytest.Item]] = {}
    for number, item in enumerate(items):
        gate = item.stash.get(GATE, None)
        groups.setdefault(gate.suite.path if gate else number, []).append(item)
    return [item for group in groups.values() for item in group]


def describe_gates(suite: Suite, *, file: str) -> dict[str, Any]:
    """Return a suite as it was collected: `conclusion.SuiteGates` as plain data."""
    return {
        "suite": suite.name,
        "file": file,
        "gates": [gate.name for gate in suite.gates],
        "lines": {gate.name: gate.where.line for gate in suite.gates},
        "allow_unmeasured": list(suite.allow_unmeasured),
        "digest": suite.digest,
    }
