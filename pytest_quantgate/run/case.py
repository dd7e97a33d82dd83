"""A suite with what was measured of it so far, and what its gates say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.run.inputs import computed_once
from pytest_quantgate.run.judging import Judging
from pytest_quantgate.run.measured import Measured

if TYPE_CHECKING:
    from pytest_quantgate.evidence.serving import Loaded
    from pytest_quantgate.gates.run import Judged
    from pytest_quantgate.gates.serves import ServesGate


class Case(Measured):
    """A suite with what was measured of it so far, and its verdicts."""

    def judge(self, *, kind: str, key: str = "") -> Judged:
        """Return the verdict of one gate, judged once; see `Judging.judge`."""
        judged: Judged = self.judging.judge(kind=kind, key=key)
        return judged

    def loaded_by(self, gate: ServesGate) -> Loaded:
        """Return what a serving runtime's own loader makes of what is handed on, never cached.

        Nothing here knows the packages of its interpreter.
        """
        from pytest_quantgate.run.serving import load_export

        return load_export(self, gate)

    @computed_once
    def judging(self) -> Judging:
        """The verdicts of this case."""
        return Judging(self)
