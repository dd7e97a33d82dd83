"""A gate of your own: how near the activations of FP16 come to what float16 can hold.

gates:
  headroom: {max_share: 50%}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import BadKey, percent_key

LARGEST_FLOAT16 = 65504


@dataclass(frozen=True, kw_only=True)
class HeadroomGate(GateSection):
    """The section of a suite: each key once, with its unit and its help."""

    kind = "headroom"

    max_share: Fraction = field(
        metadata=percent_key(help="of the largest float16 that an activation may reach")
    )

    def check(self) -> None:
        if self.max_share == 0:
            raise BadKey("max_share", "is 0%: every activation is over it")


def judge(run: GateRun, gate: HeadroomGate) -> Judged:
    """Return the verdict: measurements come from `run`, made once and kept for all gates."""
    layers = run.activations()
    if not layers:
        return Judged(
            verdict=Verdict(
                gate=gate.kind,
                status=Status.NOT_MEASURED,
                headline=f"headroom: activations of a {run.suite.model.dtype} model are not kept",
            )
        )
    worst = max(layers, key=lambda layer: layer.largest)
    share = Fraction(worst.largest) / LARGEST_FLOAT16
    passed = share <= gate.max_share
    told = f"{worst.module} reaches {float(share):.1%} of the largest float16"
    limit = f"{float(gate.max_share) * 100:g}% ({gate.where.of('max_share')})"
    return Judged(
        verdict=Verdict(
            gate=gate.kind,
            status=Status.PASS if passed else Status.FAIL,
            headline=f"headroom: {told}, {'within' if passed else 'over'} {limit}",
            brief=told,
            next_step="" if passed else f"leave {worst.module} unquantized, or train it smaller",
            figures={"largest_activation": worst.largest},
            code="" if passed else "headroom.little",
        )
    )


KIND = GateKind(section=HeadroomGate, help="how near activations come to overflow", judge=judge)
