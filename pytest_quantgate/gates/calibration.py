"""The calibration gate: every range is finite, was used, and fits data that it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Verdict, combine
from pytest_quantgate.formats.table import find_format, keeps_amax
from pytest_quantgate.gates.clipping import judge_clipping, most_clipped, worst_clipped
from pytest_quantgate.gates.coverage import NOT_QUANTIZED
from pytest_quantgate.gates.deciding import fail, leave_open, let_pass
from pytest_quantgate.gates.idle import INTERCEPTED
from pytest_quantgate.gates.ranges import (
    judge_amax,
    judge_calls,
    judge_input_scales,
    judge_weights,
    judge_width,
)
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.samples import judge_copies
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import Reach, percent_key
from pytest_quantgate.text.words import count, list_groups, listed, percent, shorten, towers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.audit import (
        Audit,
        BatchInvariance,
        CalibrationRun,
        NearCopy,
        Quantizer,
    )

GATE = "calibration"
_fail = partial(fail, GATE)
_open = partial(leave_open, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class CalibrationGate(GateSection):
    """`max_clipped` is the largest share of held-out values that a quantizer may clip.

    `max_batch_change` is how far an embedding may move with the rest of its batch, as a share of
    its length; None: no quantizer may take its range from the batch.
    """

    kind = GATE

    max_clipped: Fraction = field(
        default=Fraction(1, 1000),
        metadata=percent_key(
            help="share of held-out values that a quantizer may clip",
            reach=Reach(under="50%", why="a range that cuts off half of the values is none"),
        ),
    )
    max_batch_change: Fraction | None = field(
        default=None,
        metadata=percent_key(
            help="of an embedding, with other samples in its batch; "
            "default: what rounding explains",
            reach=Reach(under="50%", why="of an embedding that is so far off nothing is left"),
        ),
    )


#: How far an embedding may move with its batch by rounding alone; more where the model itself does.
#: That floor comes of a dozen nudges, and a range of the batch is found at its quantizer anyway.
SAME_EMBEDDING = 1e-3
FLOOR_FACTOR = 4.0


def judge_calibration(
    audit: Audit,
    run: CalibrationRun,
    *,
    evaluation_hashes: tuple[tuple[str, str], ...],
    gate: CalibrationGate,
    near_copies: Sequence[NearCopy] = (),
    attention: str = INTERCEPTED,
) -> Verdict:
    """Return whether the ranges can be trusted.

    In this order: something ran through both towers at all, its data was finite, every enabled
    static quantizer has a finite positive amax, every enabled one was called in its tower's
    forward, is not far wider than held-out data, and clips at most `max_clipped` of held-out
    values; no embedding depends on the other samples in its batch; no evaluation sample was
    calibrated on. Near copies of what was calibrated on are evidence, and no more: different
    pictures can look alike.
    A model whose formats take all scales from the values at hand (MXFP8) has no range to trust:
    there calls and the batch are judged.
    `attention` is the model's attention implementation, for advice.
    """
    static, dynamic = _part_quantizers(audit)
    if _is_rangeless(static, dynamic):
        return _judge_rangeless(audit, dynamic, gate=gate, attention=attention)
    parts = (
        _judge_run(run, expected=audit.towers, algorithm=audit.algorithm, gate=gate),
        *_judge_parts(
            audit,
            calibrated_samples=run.samples,
            held_out_samples=run.held_out_samples,
            gate=gate,
            attention=attention,
        ),
        _judge_overlap(
            run, evaluation_hashes=evaluation_hashes, near_copies=near_copies, gate=gate
        ),
    )
    verdict = combine(gate=GATE, parts=parts)
    if not verdict.passed:
        return verdict
    worst = worst_clipped([q for q in static if q.seen])
    share = f"{percent(worst.clipped / worst.seen, 3)}"
    more = f"; {_describe_dynamic(dynamic)}" if dynamic else ""
    return _pass(
        f"{count(len(static), 'static quantizer')} with a finite amax, all "
        f"called{more}; {_describe_run(run)}; worst clipping {share} of {worst.seen} held-out "
        f"values, at most {percent(most_clipped(worst), 3)} ({worst.name}), within max_clipped "
        f"{percent(gate.max_clipped, 3)}",
        brief=f"{count(len(static), 'static quantizer')}"
        f"{f' and {len(dynamic)} dynamic' if dynamic else ''}, worst clipping {share} within "
        f"{percent(gate.max_clipped, 3)}",
        evidence=verdict.evidence,
        figures=verdict.figures,
    )


def _describe_run(run: CalibrationRun) -> str:
    if run.given:
        return f"handed over, calibrated on {run.data} as the suite says"
    return f"{run.samples} pairs in {run.batches} batches through {towers(run.tower_batches)}"


def _judge_rangeless(
    audit: Audit, quantizers: Sequence[Quantizer], *, gate: CalibrationGate, attention: str
) -> Verdict:
    """Return whether all of them ran, and no embedding depends on its batch."""
    parts = (
        judge_calls(quantizers, where=gate.where, attention=attention),
        _judge_batch(audit, gate=gate),
    )
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    if not verdict.passed:
        return verdict
    formats = listed(tuple(dict.fromkeys(q.format for q in quantizers)))
    return _pass(
        f"no range to calibrate: {formats} takes every scale from the values "
        f"at hand; {count(len(quantizers), 'quantizer')}, all called",
        brief=f"{count(len(quantizers), 'quantizer')} without a range ({formats})",
        figures=verdict.figures,
    )


def _has_no_range(quantizer: Quantizer) -> bool:
    found = find_format(quantizer.format)
    return found is not None and found.amax == "none"


def judge_ranges(audit: Audit, *, gate: CalibrationGate) -> Verdict:
    """Return whether the ranges of a model can be trusted, without knowing how it got them.

    As `judge_calibration`, but for what only the calibration itself can tell.
    """
    static, dynamic = _part_quantizers(audit)
    if _is_rangeless(static, dynamic):
        return _judge_rangeless(audit, dynamic, gate=gate, attention=INTERCEPTED)
    return combine(
        gate=GATE,
        parts=_judge_parts(audit, calibrated_samples=None, held_out_samples=None, gate=gate),
    )


def _judge_parts(
    audit: Audit,
    *,
    calibrated_samples: int | None,
    held_out_samples: int | None,
    gate: CalibrationGate,
    attention: str = INTERCEPTED,
) -> tuple[Verdict, ...]:
    """Return what a model tells of its ranges by itself."""
    where, algorithm = gate.where, audit.algorithm
    static, dynamic = _part_quantizers(audit)
    parts = (
        judge_amax(static, algorithm=algorithm, where=where, attention=attention),
        judge_weights(static, algorithm=algorithm, where=where),
        judge_input_scales(audit, where=where),
        judge_calls([*static, *dynamic], where=where, attention=attention),
        # Data in other units make one range far too wide and others clip a little: width leads.
        judge_width(static, where=where),
        judge_clipping(
            static,
            max_clipped=gate.max_clipped,
            calibrated_samples=calibrated_samples,
            held_out_samples=held_out_samples,
            where=where,
        ),
        _judge_batch(audit, gate=gate),
    )
    return tuple(part for part in parts if part is not None)


def _part_quantizers(audit: Audit) -> tuple[list[Quantizer], list[Quantizer]]:
    """Return the enabled quantizers that keep a range, and those that take one each time."""
    static: list[Quantizer] = []
    dynamic: list[Quantizer] = []
    for quantizer in audit.quantizers:
        if quantizer.enabled:
            keeps = keeps_amax(quantizer.format, dynamic=quantizer.dynamic)
            (static if keeps else dynamic).append(quantizer)
    return static, dynamic


def _is_rangeless(static: Sequence[Quantizer], dynamic: Sequence[Quantizer]) -> bool:
    return not static and bool(dynamic) and all(map(_has_no_range, dynamic))


def _judge_run(
    run: CalibrationRun, *, expected: Sequence[str], algorithm: str, gate: CalibrationGate
) -> Verdict:
    where = gate.where
    if run.given:
        return _pass(
            f"handed over: how it was calibrated is not in a checkpoint; as calibration.data says, "
            f"it was on {run.data}, of which the held-out pairs are, too",
        )
    if algorithm == "none":
        return _pass("the recipe calibrates nothing")
    if run.batches == 0 or run.samples == 0:
        return _fail(
            "no-batch",
            f"no batch was ever calibrated on: the ranges are each batch's own ({where})",
            cause="the data is empty, or calibration.samples is 0",
            next_step="give calibration.data and calibration.samples that are there",
        )
    if run.nonfinite:
        return _fail(
            "data-nonfinite",
            f"the calibration data holds NaN or Inf in {count(len(run.nonfinite), 'sample')}: "
            f"{listed(run.nonfinite)} ({where})",
            cause="damaged images, or a wrong mean or std in the preprocessing",
            next_step="repair or remove these samples",
        )
    idle = [tower for tower in expected if not run.tower_batches.get(tower)]
    if idle:
        return _fail(
            "tower-idle",
            f"the {' and '.join(idle)} tower was never calibrated: 0 of {run.batches} batches went "
            f"through it ({where})",
            cause="the forward loop runs one tower only",
            next_step="calibrate with pairs: images and texts",
        )
    copies = judge_copies(
        samples=run.samples,
        copies=run.copies,
        kind=GATE,
        subject=run.data,
        where=str(where),
    )
    if copies is not None:
        return copies
    return _pass(
        f"{run.samples} pairs of {run.data} in {run.batches} batches through "
        f"{towers(run.tower_batches)}",
        figures={
            "calibration_samples": run.samples,
            "calibration_copies": run.copies,
            "calibration_batches": run.batches,
        },
    )


def _describe_dynamic(quantizers: Sequence[Quantizer]) -> str:
    """Return what a reader must know of ranges that nobody calibrated."""
    kinds = Counter(f"{q.granularity} {q.slot}" for q in quantizers)
    listing = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{count(len(quantizers), 'dynamic quantizer')} with ranges of their own ({listing})"


def _judge_batch(audit: Audit, *, gate: CalibrationGate) -> Verdict | None:
    """No embedding depends on what else is in its batch, or only as far as the suite allows."""
    source = gate.where.of("max_batch_change")
    enabled = [q for q in audit.quantizers if q.enabled]
    dependent = [q for q in enabled if q.batch_dependent]
    compared = [found for found in audit.invariance if found.samples]
    unsteady = [found for found in compared if not found.repeat <= SAME_EMBEDDING]
    if unsteady:
        return _judge_unsteady(unsteady, where=source)
    limits = {found.tower: batch_limit(found, allowed=gate.max_batch_change) for found in compared}
    moved = [found for found in compared if not found.change <= limits[found.tower]]
    figures = {f"{found.tower}_batch_change": found.change for found in compared}
    said = ", ".join(
        f"{found.tower} {percent(found.change)} (limit {percent(limits[found.tower])})"
        for found in compared
    )
    said = f": embeddings move by {said} with other samples beside them" if said else ""
    if moved or (dependent and (gate.max_batch_change is None or not compared)):
        what = (
            f"{count(len(dependent), 'quantizer')} take the range from the whole batch"
            if dependent
            else "an embedding depends on what else is in its batch"
        )
        return _fail(
            "batch-dependent",
            f"{what}{said} ({source})",
            brief=f"{len(dependent)} ranges depend on the batch" if dependent else "",
            evidence=list_groups(q.name for q in dependent),
            cause="a dynamic range over all samples of a batch: in production other batch mates, "
            "or a batch of one, give other embeddings"
            if dependent
            else "a part of the model mixes the samples of a batch",
            next_step="calibrate these ranges (type: static), or take them for each token "
            "(axis: [0, 1])"
            if dependent
            else "embed each sample alone, and look for what differs from the batch",
            figures=figures,
        )
    if not compared:
        return None
    return _pass(
        f"no embedding depends on its batch{said} ({source})",
        figures=figures,
    )


def _judge_unsteady(unsteady: Sequence[BatchInvariance], *, where: str) -> Verdict:
    said = ", ".join(f"{found.tower} by {percent(found.repeat)}" for found in unsteady)
    return _fail(
        "two-answers",
        f"the same batch twice gives two answers, embeddings move: {said} ({where})",
        brief=f"the same batch gives two answers: {said}",
        cause="a dropout that is on, or another layer that draws at random: no figure of such a "
        "model can be repeated, and what it moves by itself widens every limit on rounding",
        next_step="put the model into eval(), and look for what draws random numbers",
        figures={f"{found.tower}_repeat_change": found.repeat for found in unsteady},
    )


def batch_limit(found: BatchInvariance, *, allowed: Fraction | None = None) -> float:
    """Return how far an embedding may move with its batch, as a share of its length.

    By `allowed` (None: by rounding alone), and as far as the model moves by itself.
    """
    floor = FLOOR_FACTOR * found.floor if math.isfinite(found.floor) else 0.0
    return max(float(allowed or SAME_EMBEDDING), floor)


def _judge_overlap(
    run: CalibrationRun,
    *,
    evaluation_hashes: tuple[tuple[str, str], ...],
    near_copies: Sequence[NearCopy],
    gate: CalibrationGate,
) -> Verdict:
    used = dict(run.sample_hashes)
    pairs = [(used[content], name) for content, name in evaluation_hashes if content in used]
    inside = [(used[content], name) for content, name in run.held_out_hashes if content in used]
    for found, what in ((pairs, "evaluation"), (inside, "held-out")):
        if found:
            return _fail(
                "overlap",
                f"{count(len(found), f'{what} sample')} by content also calibrated the quantizers: "
                f"the loss on them is not the loss on new data ({gate.where})",
                evidence=shorten(
                    [f"{name} is calibration sample {used_as}" for used_as, name in found], most=4
                ),
                cause="calibration.data and the task share images",
                next_step="calibrate on another split",
                figures={f"{what.replace('-', '_')}_overlap": len(found)},
            )
    return _pass(
        f"none of {len(evaluation_hashes)} evaluation samples was calibrated on",
        evidence=warn_of_near_copies(near_copies),
        figures={"near_copies": len(near_copies)},
    )


def warn_of_near_copies(near: Sequence[NearCopy]) -> tuple[str, ...]:
    """Return the warning of evaluation samples that look like calibrated ones; empty for none."""
    if not near:
        return ()
    pairs = shorten([f"{copy.sample} ~ {copy.like} ({copy.bits} of 256 bits)" for copy in near])
    return (
        f"{count(len(near), 'evaluation sample')} may be near copies of calibration samples, "
        f"resized or compressed again: {', '.join(pairs)}: look at them; where they are, "
        "calibrate on another split [calibration.near-copies]",
    )


def judge(run: GateRun, gate: CalibrationGate) -> Judged:
    """Return whether the ranges are there, and fit data that did not make them."""
    near_copies = run.near_copies()
    verdict = judge_calibration(
        run.audit,
        run.calibration_run,
        evaluation_hashes=run.evaluation_hashes(),
        near_copies=near_copies,
        gate=gate,
        attention=run.suite.model.attn_implementation,
    )
    return Judged(verdict=verdict, notes=warn_of_near_copies(near_copies))


#: Findings that say: a range is none, so what is computed with it means nothing.
NO_RANGE = ("calibration.amax-*", "calibration.no-batch", "calibration.weights-changed")

KIND = GateKind(
    section=CalibrationGate,
    help="ranges, calls, clipping, overlap",
    judge=judge,
    needs_torch=lambda _: True,
    follows={
        "calibration.never-called": ("coverage.attention-bypassed", "coverage.never-ran"),
        "calibration.nothing-static": NOT_QUANTIZED,
    },
)
