"""The parity gate: what the exported graphs compute is what the PyTorch model computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.audit import TOWERS
from pytest_quantgate.evidence.verdict import Figure, Status, Verdict, combine
from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.samples import judge_few
from pytest_quantgate.gates.shipped import judge_shipped
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import (
    BadKey,
    Reach,
    count_key,
    decibels_key,
    named,
    percent_key,
)
from pytest_quantgate.text.words import count, shorten

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pytest_quantgate.evidence.parity import BlockParity, Parity, ShippedTower, TowerParity

GATE = "parity"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class ParityGate(GateSection):
    """The exported graph against the PyTorch model, on `samples` held-out pairs, in ONNX Runtime.

    `max_error` is the relative error up to which both count as the same; a model that moves
    further than that by itself is judged by how far it moves.
    """

    kind = GATE

    samples: int = field(default=64, metadata=count_key(help="held-out pairs; default: 64"))
    max_error: Fraction = field(
        default=Fraction(1, 1000),
        metadata=percent_key(
            help="relative error that counts as none; default: 0.1%",
            reach=Reach(under="50%", why="of an embedding that is so far off nothing is left"),
        ),
    )
    max_sqnr_change_db: float = field(
        default=1.0,
        metadata=named(
            "max_sqnr_change",
            decibels_key(
                help="of SQNR against FP16; default: 1dB",
                reach=Reach(under="10dB", why="ten times the noise is another model"),
            ),
        ),
    )

    def check(self) -> None:
        if self.max_sqnr_change_db < 0:
            raise BadKey("max_sqnr_change", "is negative: no change is less than 0dB")


EXPORT_AGAIN = (
    "export the approved variant again; if it stays, this version of ONNX Runtime computes an "
    "operator of the graph otherwise than PyTorch: try another one"
)

#: Two faithful runs of a model that amplifies rounding differ by as much as it moves by itself,
#: which a few draws tell only about.
FLOOR_FACTOR = 2.0


def judge_parity(
    parity: Parity,
    *,
    gate: ParityGate,
    shipped: Sequence[ShippedTower] = (),
    towers: Collection[str] = TOWERS,
) -> Verdict:
    """Return whether the exported towers agree with PyTorch as far as the model itself is stable.

    A deep quantized model is chaotic: a change of 1e-6 moves its output by as much as quantization
    does. So what decides is each block by itself, given PyTorch's own hidden state, where nothing
    adds up: its error may be `max_error`, or twice what the block moves by itself. Of the whole,
    the noise against FP16 must be the same on both sides, within `max_sqnr_change`: a lost
    quantizer or a wrong scale changes it, chaos does not; and its error may be no larger than
    `max_error`, twice what the model moves by itself, or, where the blocks were compared, what
    quantization itself costs. An error is that of half of the samples, and of 90 % of them: a few
    that a tie threw far off say nothing. In blocks whose quantizers gave what PyTorch's did
    there are none, and `max_error` finds a scale that is off by as little. `shipped` are the towers
    in the format that ships.
    What agrees in ONNX's reference evaluator alone is NOT_MEASURED: no runtime computed it.
    """
    present = {tower.tower for tower in parity.towers if tower.samples > 0}
    missing = [name for name in towers if name not in present]
    if missing:
        return _fail(
            "tower-missing",
            f"the {' and '.join(missing)} tower was not compared ({gate.where})",
            cause="that tower was not exported, or could not be run",
            next_step="export every tower, or name those that there are: towers: [...]",
        )
    parts = tuple(
        part for tower in parity.towers for part in _judge_tower(tower, parity=parity, gate=gate)
    )
    few = judge_few(
        samples=min(tower.samples for tower in parity.towers),
        kind=GATE,
        subject="the held-out pairs",
        where=gate.where.of("samples"),
    )
    parts += (few,) if few else ()
    parts += judge_shipped(
        shipped,
        gate=GATE,
        where=gate.where,
        torch_db={tower.tower: tower.sqnr_torch_db for tower in parity.towers},
        max_change_db=gate.max_sqnr_change_db,
    )
    verdict = combine(gate=GATE, parts=parts)
    if not verdict.passed:
        return verdict
    found = (
        f"{'; '.join(_describe(tower) for tower in parity.towers)} on "
        f"{count(parity.towers[0].samples, 'sample')} in {parity.runtime}"
    )
    passed = _pass(
        f"{found}",
        brief="; ".join(
            f"{tower.tower} error {tower.error:.1e}, SQNR {tower.sqnr_onnx_db:.1f} dB"
            for tower in parity.towers
        ),
        evidence=(*(part.headline for part in parts), *_list_uncut(parity)),
        figures=verdict.figures,
    )
    if not parity.by_reference:
        return passed
    return replace(
        passed,
        status=Status.NOT_MEASURED,
        headline=f"parity: {parity.by_reference}; by the standard it computes what PyTorch does: "
        f"{found}",
        next_step="install an ONNX Runtime that has it; until then the graph's meaning is measured "
        "and no runtime",
    )


def _list_uncut(parity: Parity) -> Iterator[str]:
    """Yield what was looked at as a whole alone: errors of several blocks may cancel out there."""
    for tower in parity.towers:
        if not tower.blocks:
            yield (
                f"the {tower.tower} tower was compared as a whole alone: its graph could not be "
                f"cut between blocks"
            )


def point_to_export(verdict: Verdict, *, export: Verdict) -> Verdict:
    """Return a red verdict whose next step is what the export gate found, if it found anything."""
    if export.status is not Status.FAIL:
        return verdict
    found = export.headline.removeprefix("export: ")
    step = export.next_step or "mend that first"
    return replace(verdict, next_step=f"the export gate names what differs: {found}; {step}")


def _describe(tower: TowerParity) -> str:
    return (
        f"{tower.tower} error {tower.error:.2e} (the model moves {tower.floor:.2e} by itself), "
        f"SQNR against FP16 {tower.sqnr_onnx_db:.1f} dB, PyTorch {tower.sqnr_torch_db:.1f} dB"
    )


def _judge_tower(tower: TowerParity, *, parity: Parity, gate: ParityGate) -> list[Verdict]:
    if not tower.nonfinite and not math.isfinite(tower.error):
        return [
            _fail(
                "nothing-to-compare",
                f"the {tower.tower} tower of the PyTorch model gives NaN, Inf or "
                f"nothing but zeros: there is nothing to compare with ({gate.where})",
                next_step="look at the fidelity gate",
                cause="the quantized PyTorch model itself is broken in this tower",
            )
        ]
    if tower.nonfinite:
        return [
            _fail(
                "nonfinite",
                f"the exported {tower.tower} tower gives NaN or Inf on "
                f"{tower.nonfinite} of {count(tower.samples, 'sample')} ({gate.where})",
                cause="a scale or a weight of the graph is not finite, or a value overflows in it",
                next_step=EXPORT_AGAIN,
            )
        ]
    return [
        _judge_error(tower, parity=parity, gate=gate),
        _judge_noise(tower, gate=gate),
        *_judge_blocks(tower, gate=gate),
    ]


def _judge_blocks(tower: TowerParity, *, gate: ParityGate) -> list[Verdict]:
    """Each block by itself, as nothing adds up there: the one that differs has a name."""
    if not tower.blocks:
        return []
    compared = [(block, *_excess(block, gate=gate)) for block in tower.blocks]
    wrong = [found for found in compared if not found[1] <= found[2]]
    worst = max(tower.blocks, key=lambda block: block.error)
    figures: dict[str, Figure] = {f"{tower.tower}_worst_block_error": worst.error}
    if not wrong:
        return [
            _pass(
                f"each of {len(tower.blocks)} {tower.tower} blocks, given "
                f"PyTorch's hidden state, agrees within its own limit, worst {worst.module} "
                f"{worst.error:.2e} ({gate.where.of('max_error')})",
                figures=figures,
            )
        ]
    first, error, limit = wrong[0]
    return [
        _fail(
            "block-differs",
            f"{len(wrong)} of {count(len(tower.blocks), f'{tower.tower} block')} "
            f"compute something else than PyTorch's from the same hidden state: {first.module} "
            f"differs by {error:.2e} of what it adds, over {limit:.2e} "
            f"({gate.where.of('max_error')})",
            brief=f"{tower.tower} blocks that differ: {len(wrong)} of {len(tower.blocks)}",
            evidence=shorten(
                [f"{b.module}: {error:.2e}, limit {limit:.2e}" for b, error, limit in wrong[1:]]
            ),
            cause="a quantizer, a scale, a weight or an operator of these blocks is another one in "
            "the graph",
            next_step=f"compare the nodes of {first.module} with the module; {EXPORT_AGAIN}",
            figures=figures,
        )
    ]


def _excess(found: BlockParity | TowerParity, *, gate: ParityGate) -> tuple[float, float]:
    """Return the error and the limit of half of the samples, or of 90 % where those are over.

    NaN is over.
    """
    half = (found.error, _limit(found.floor, gate=gate))
    high = (found.high_error, _limit(found.high_floor, gate=gate))
    return half if not half[0] <= half[1] or high[0] <= high[1] else high


def _limit(floor: float, *, gate: ParityGate) -> float:
    """Return how far two faithful runs may differ.

    A model that overflows when it is nudged says nothing of how far it moves.
    """
    return max(float(gate.max_error), FLOOR_FACTOR * floor if math.isfinite(floor) else 0.0)


def _judge_error(tower: TowerParity, *, parity: Parity, gate: ParityGate) -> Verdict:
    error, limit = _excess(tower, gate=gate)
    why = (
        f"{FLOOR_FACTOR:g} times the {limit / FLOOR_FACTOR:.2e} that the model moves by itself"
        if limit > float(gate.max_error)
        else "max_error"
    )
    # Where each block agrees, ties are what is left: no draw of nudges meets all those that lie in
    # what all samples have in common. Two runs may be as far apart as each is from FP16.
    if tower.blocks and tower.quantization_error > limit:
        limit, why = tower.quantization_error, "PyTorch's own error against FP16"
    good = error <= limit
    return Verdict(
        gate=GATE,
        status=Status.PASS if good else Status.FAIL,
        headline=f"parity: {tower.tower} embeddings in {parity.runtime} (optimization "
        f"{tower.optimization}) differ from PyTorch's by {error:.2e}, "
        f"{'within' if good else 'over'} {limit:.2e}, {why} ({gate.where.of('max_error')})",
        brief=f"{tower.tower} differs by {error:.1e}, over {limit:.1e}",
        cause="" if good else "the graph computes something else than the model that was approved",
        next_step="" if good else EXPORT_AGAIN,
        code="" if good else "parity.embeddings-differ",
        figures={
            f"{tower.tower}_parity_error": tower.error,
            f"{tower.tower}_parity_floor": tower.floor,
        },
    )


def _judge_noise(tower: TowerParity, *, gate: ParityGate) -> Verdict:
    onnx, torch = tower.sqnr_onnx_db, tower.sqnr_torch_db
    # Where nothing is quantized both are infinite, and rounding alone is left.
    change = 0.0 if onnx == torch or (onnx > 80 and torch > 80) else abs(onnx - torch)
    good = change <= gate.max_sqnr_change_db
    return Verdict(
        gate=GATE,
        status=Status.PASS if good else Status.FAIL,
        headline=f"parity: {tower.tower} SQNR against FP16 is {onnx:.1f} dB exported and "
        f"{torch:.1f} dB in PyTorch, {'within' if good else 'over'} max_sqnr_change "
        f"{gate.max_sqnr_change_db:g} dB ({gate.where.of('max_sqnr_change')})",
        brief=f"{tower.tower} SQNR {onnx:.1f} dB exported, {torch:.1f} dB in PyTorch",
        cause=""
        if good
        else "the graph is quantized less than the model"
        if onnx > torch
        else "the graph adds noise that the model does not have",
        next_step="" if good else EXPORT_AGAIN,
        code="" if good else "parity.noise-changed",
        figures={f"{tower.tower}_sqnr_onnx_db": onnx} if math.isfinite(onnx) else {},
    )


def judge(run: GateRun, gate: ParityGate) -> Judged:
    """Return whether the ONNX files compute what the PyTorch model does."""
    verdict = judge_parity(
        run.stages.parity(samples=gate.samples),
        gate=gate,
        shipped=run.stages.shipped_towers(samples=gate.samples),
        towers=run.towers,
    )
    if verdict.status is Status.FAIL and any(other.kind == "export" for other in run.suite.gates):
        export = run.judging.judge(kind="export").verdict
        verdict = point_to_export(verdict, export=export)
    return Judged(verdict=verdict)


KIND = GateKind(
    section=ParityGate,
    help="the ONNX files compute what PyTorch does",
    judge=judge,
    needs_torch=lambda _: True,
    needs=("onnxruntime",),
)
