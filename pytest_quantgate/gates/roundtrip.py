"""The roundtrip gate: what is restored in a new process is bit for bit what was saved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.audit import TOWERS
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.text.words import group, listed, shorten, towers

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_quantgate.evidence.parity import Roundtrip

GATE = "roundtrip"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class RoundtripGate(GateSection):
    """Save, restore in a new process, compare bit for bit; no limits to set."""

    kind = GATE


def judge_roundtrip(
    roundtrip: Roundtrip, *, gate: RoundtripGate, expected: Collection[str] = TOWERS
) -> Verdict:
    """Return whether a checkpoint keeps every output and amax, and refuses planted damage.

    FAIL too where a tower that is `expected` was not compared.
    """
    figures = {
        "checkpoint_bytes": roundtrip.saved_bytes,
        "amax_count": roundtrip.amax_count,
        "max_abs_difference": roundtrip.max_abs_difference,
    }
    missing = [tower for tower in expected if tower not in roundtrip.equal]
    wrong = [f"the {tower} tower was not compared" for tower in missing]
    for tower, equal in roundtrip.equal.items():
        if not equal:
            wrong.append(
                f"{tower} embeddings differ after the restore, by up to "
                f"{roundtrip.max_abs_difference:.3g}"
            )
    if roundtrip.amax_different:
        wrong.append(
            f"{len(roundtrip.amax_different)} of {roundtrip.amax_count} amax differ: "
            f"{listed(group(roundtrip.amax_different))}"
        )
    if roundtrip.amax_count == 0:
        wrong.append("the checkpoint holds no amax: nothing static was quantized")
    wrong += [f"damage was accepted: {name}" for name in roundtrip.accepted]
    if not (roundtrip.refused or roundtrip.accepted):
        wrong.append("no damage was planted, so nothing shows that it would be refused")
    if not wrong:
        return _pass(
            f"{towers(roundtrip.equal)} and {roundtrip.amax_count} amax "
            f"bit-identical in a new process; refused: {', '.join(roundtrip.refused)}",
            brief=f"{roundtrip.amax_count} amax and {towers(roundtrip.equal)} bit-identical, "
            f"{len(roundtrip.refused)} planted damages refused",
            figures=figures,
        )
    return _fail(
        "not-restored",
        f"{wrong[0]} ({gate.where})",
        evidence=shorten(wrong[1:]),
        cause="the checkpoint does not hold all of what was approved",
        next_step="save with pytest_quantgate.quantization.checkpoint.save_checkpoint, "
        "and ship that",
        figures=figures,
    )


def judge(run: GateRun, gate: RoundtripGate) -> Judged:
    """Return whether what is saved comes back."""
    return Judged(verdict=judge_roundtrip(run.roundtrip(), gate=gate, expected=run.towers))


KIND = GateKind(
    section=RoundtripGate,
    help="save and restore, bit for bit",
    judge=judge,
    needs_torch=lambda _: True,
)
