"""What a sabotage is, and how one measurement of a case is exchanged for another."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.verdict import Verdict

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case

#: Spoils a copy of a good case for the gate with this key; None where the case has nothing that
#: could be spoiled this way (no attention, no limit on flips).
Spoil = Callable[["Case", str], "Case | None"]

#: Gives another measurement for one, a dataclass of any kind.
Change = Callable[[Any], Any]

OTHER_DIGEST = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """One way in which a release goes wrong.

    `gate` is the kind that must turn red on it; `cause` is a regular expression that the text of
    the verdict must match: red for a wrong reason sends people to the wrong place.
    """

    name: str
    gate: str
    cause: str
    spoil: Spoil

    def is_named_by(self, verdict: Verdict) -> bool:
        """Return whether a verdict says what is really wrong."""
        return bool(re.search(self.cause, whole_text(verdict)))


def whole_text(verdict: Verdict) -> str:
    """Return all that a reader of a verdict sees."""
    parts = (verdict.headline, *verdict.evidence, verdict.cause, verdict.next_step)
    return "\n".join(part for part in parts if part)


def altered(**changes: object) -> Change:
    """Return what makes these changes to a measurement."""
    return lambda found: dataclasses.replace(found, **changes)


def alter_each(part: str, **changes: object) -> Change:
    """Return what makes these changes to each item of one part of a measurement."""
    change = altered(**changes)
    return lambda found: altered(**{part: tuple(map(change, getattr(found, part)))})(found)


def exchange(case: Case, **values: object) -> Case:
    """Return a copy of a case on which these attributes are others; the case stays as it is.

    What is expensive is shared; verdicts are not, and the later stages follow the copy.
    """
    spoiled = copy.copy(case)
    kept = vars(spoiled)
    for name in ("judging", "stages"):
        kept.pop(name, None)
    # What a run leaves in the case: what is measured of the copy stays with the copy.
    kept.update(latency_runs=dict(case.latency_runs), load_runs=dict(case.load_runs))
    kept.update(used=dict(case.used), ledger=None)
    kept.update(values)
    return spoiled


def exchange_stages(case: Case, **values: object) -> Case:
    """Return a copy of a case whose exported files and engines are measured otherwise."""
    spoiled = exchange(case)
    stages = copy.copy(case.stages)
    stages.case = spoiled
    vars(stages).update(values)
    vars(spoiled)["stages"] = stages
    return spoiled
