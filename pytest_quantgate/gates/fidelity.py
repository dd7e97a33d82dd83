"""The fidelity gate: embeddings of the quantized variant against FP16's, per tower."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.audit import TOWERS
from pytest_quantgate.evidence.verdict import Figure, Status, Verdict, combine
from pytest_quantgate.gates.calibration import NO_RANGE
from pytest_quantgate.gates.deciding import fail
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.samples import judge_copies, judge_few
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import (
    BadKey,
    Reach,
    cosine_key,
    count_key,
    decibels_key,
    named,
    text_key,
)
from pytest_quantgate.suite.specs import FIRST, STAGE, Stage, check_data
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_quantgate.evidence.fidelity import Fidelity, TowerFidelity

GATE = "fidelity"
_fail = partial(fail, GATE)

#: What a PASS on the calibration data says of itself.
FLATTERED = (
    "measured on the data that calibrated the variant, which its ranges fit better than any other: "
    "name other data with fidelity: {data: <data set>/<split>}"
)

RIGHT_ANGLE = Reach(over=0, why="embeddings that have nothing to do with FP16's keep it")
ALL_NOISE = Reach(over="0dB", why="embeddings of nothing but zeros keep it")


@dataclass(frozen=True, kw_only=True)
class FidelityGate(GateSection):
    """Limits on cosine (1) and SQNR (dB) of embeddings, mean and worst sample, per tower.

    `samples`, `first` and `stage` as in an accuracy gate.
    """

    kind = GATE

    data: str | None = field(
        default=None, metadata=text_key(help="<data set>/<split>; default: the first task's")
    )
    samples: int = field(
        default=512, metadata=count_key(help="drawn over the whole by seed; default: 512")
    )
    first: bool = field(default=False, metadata=FIRST)
    stage: Stage = field(default="torch", metadata=STAGE)
    min_cosine: float | None = field(
        default=None, metadata=cosine_key(help="mean cosine to FP16", reach=RIGHT_ANGLE)
    )
    min_worst_cosine: float | None = field(
        default=None, metadata=cosine_key(help="cosine of the worst sample", reach=RIGHT_ANGLE)
    )
    min_sqnr_db: float | None = field(
        default=None, metadata=named("min_sqnr", decibels_key(help="mean SQNR", reach=ALL_NOISE))
    )
    min_worst_sqnr_db: float | None = field(
        default=None,
        metadata=named(
            "min_worst_sqnr", decibels_key(help="SQNR of the worst sample", reach=ALL_NOISE)
        ),
    )

    def check(self) -> None:
        limits = ("min_cosine", "min_worst_cosine", "min_sqnr", "min_worst_sqnr")
        if not self.where.keys.keys() & set(limits):
            raise BadKey("", f"sets no limit: give at least one of {', '.join(limits)}")
        if self.data is not None:
            check_data(self.data)


def judge_fidelity(
    fidelity: Fidelity,
    *,
    gate: FidelityGate,
    towers: Collection[str] = TOWERS,
    rounded: Collection[str] = (),
    is_calibration: bool = False,
) -> Verdict:
    """Return whether cosine and SQNR of all towers are over their limits.

    `is_calibration` says that the data is what calibrated the variant, as the suite names no other:
    a PASS says so, as ranges fit what they were made of. Fewer than `LEAST_SAMPLES` distinct
    samples are INCONCLUSIVE.

    NaN or Inf, a tower that was not measured, no samples, a gate without limits, another scale of
    the logits, and embeddings of a tower of `rounded`, which has quantizers, that are FP16's to the
    last bit are FAIL.
    """
    present = {tower.tower for tower in fidelity.towers if tower.samples > 0}
    missing = [name for name in towers if name not in present]
    if missing:
        return _fail(
            "tower-missing",
            f"no embeddings of the {' and '.join(missing)} tower were compared ({gate.where})",
            next_step="evaluate with pairs: images and texts",
            cause="the data has no text, or no images, to embed",
        )
    parts = [
        part
        for tower in fidelity.towers
        for part in _judge_tower(tower, gate=gate, fidelity=fidelity)
    ]
    if not parts:
        return _without_limits(gate)
    copies = judge_copies(
        samples=fidelity.towers[0].samples,
        copies=fidelity.copies,
        kind=GATE,
        subject=fidelity.data,
        where=str(gate.where),
    )
    few = judge_few(
        samples=fidelity.towers[0].samples - fidelity.copies,
        kind=GATE,
        subject=fidelity.data,
        where=gate.where.of("samples"),
    )
    parts = [*(found for found in (copies, few) if found), *parts]
    parts += _judge_scales(fidelity, gate=gate)
    parts += [
        _fail(
            "identical",
            f"embeddings of the {tower.tower} tower are FP16's to the last bit, though it has "
            f"quantizers that are on ({gate.where})",
            brief=f"{tower.tower} embeddings are FP16's to the last bit",
            cause="FP16 was compared with itself: the variant that was evaluated is not the one "
            "that was quantized",
            next_step="look at what embeds the quantized variant",
        )
        for tower in fidelity.towers
        if tower.tower in rounded and tower.sqnr_mean_db == math.inf
    ]
    verdict = combine(gate=GATE, parts=tuple(parts))
    if verdict.passed:
        return Verdict(
            gate=GATE,
            status=Status.PASS,
            headline=f"fidelity: {'; '.join(_describe(tower) for tower in fidelity.towers)}"
            f"{'' if gate.stage == 'torch' else f' at stage {gate.stage}'} on "
            f"{count(fidelity.towers[0].samples, 'sample')} of {fidelity.data}"
            + (f", {fidelity.copies} of them copies" if fidelity.copies else "")
            + (", the calibration data" if is_calibration else ""),
            brief="; ".join(
                f"{tower.tower} cosine {tower.cosine_mean:.4f}, SQNR {tower.sqnr_mean_db:.1f} dB"
                for tower in fidelity.towers
            ),
            evidence=(
                *(part.headline for part in parts),
                *((FLATTERED,) if is_calibration else ()),
            ),
            figures=verdict.figures,
        )
    return verdict


def _judge_scales(fidelity: Fidelity, *, gate: FidelityGate) -> list[Verdict]:
    if not fidelity.scales:
        return []
    said = ", ".join(
        f"{name} is {after:.6g}, FP16's {before:.6g}" for name, before, after in fidelity.scales
    )
    name, before, after = fidelity.scales[0]
    return [
        _fail(
            "scale-changed",
            f"{said}: probabilities change, though no embedding does ({gate.where})",
            brief=f"{name} is {after:.6g}, FP16's {before:.6g}",
            cause="weights of another checkpoint, or a model that was initialized anew beside its "
            "towers",
            next_step=f"copy {name} from the FP16 model",
        )
    ]


def judge_tower(tower: TowerFidelity, *, gate: FidelityGate) -> Verdict:
    """Return whether one tower alone is over the gate's limits; without limits it is FAIL."""
    from pytest_quantgate.evidence.fidelity import Fidelity

    parts = _judge_tower(
        tower, gate=gate, fidelity=Fidelity(data="", towers=(tower,), worst_layers=())
    )
    return combine(gate=GATE, parts=tuple(parts)) if parts else _without_limits(gate)


def _without_limits(gate: FidelityGate) -> Verdict:
    return _fail(
        "without-limits",
        f"the gate sets no limit, so it decides nothing ({gate.where})",
        next_step="set min_cosine, min_worst_cosine, min_sqnr or min_worst_sqnr",
        cause="the gate was written without a number",
    )


def _describe(tower: TowerFidelity) -> str:
    return (
        f"{tower.tower} cosine {tower.cosine_mean:.4f} (worst {tower.cosine_worst:.4f}), "
        f"SQNR {tower.sqnr_mean_db:.1f} dB (worst {tower.sqnr_worst_db:.1f})"
    )


def _judge_tower(tower: TowerFidelity, *, gate: FidelityGate, fidelity: Fidelity) -> list[Verdict]:
    if tower.nonfinite:
        return [
            _fail(
                "nonfinite",
                f"{tower.tower} embeddings of {tower.nonfinite} of "
                f"{count(tower.samples, 'sample')} hold NaN or Inf, first "
                f"{tower.sqnr_worst_id!r} ({gate.where})",
                cause="an overflow in FP16, or a scale that is not finite",
                next_step="look at the calibration gate",
            )
        ]
    checks = (
        ("min_cosine", "min_cosine", tower.cosine_mean, gate.min_cosine, "mean cosine", "", ""),
        (
            "min_worst_cosine",
            "min_worst_cosine",
            tower.cosine_worst,
            gate.min_worst_cosine,
            "worst cosine",
            "",
            tower.cosine_worst_id,
        ),
        ("min_sqnr", "min_sqnr_db", tower.sqnr_mean_db, gate.min_sqnr_db, "mean SQNR", " dB", ""),
        (
            "min_worst_sqnr",
            "min_worst_sqnr_db",
            tower.sqnr_worst_db,
            gate.min_worst_sqnr_db,
            "worst SQNR",
            " dB",
            tower.sqnr_worst_id,
        ),
    )
    parts = []
    for key, figure, value, limit, name, unit, sample in checks:
        if limit is None:
            continue
        good = value >= limit  # NaN is never good
        digits = 1 if unit else 4
        at = f" (sample {sample!r})" if sample else ""
        figures: dict[str, Figure] = {}
        if math.isfinite(value):
            figures[f"{tower.tower}_{figure.removeprefix('min_')}"] = value
        parts.append(
            Verdict(
                gate=GATE,
                status=Status.PASS if good else Status.FAIL,
                headline=f"fidelity: {tower.tower} {name} {value:.{digits}f}{unit}{at}, "
                f"{'over' if good else 'under'} {key} {limit:g}{unit} ({gate.where.of(key)})",
                evidence=() if good else _name_layers(tower, fidelity),
                cause="" if good else _blame(tower, fidelity),
                next_step="" if good else _advise(tower, fidelity),
                code="" if good else f"fidelity.{key.removeprefix('min_').replace('_', '-')}",
                figures=figures,
            )
        )
    return parts


def _layers_of(tower: TowerFidelity, fidelity: Fidelity) -> list[tuple[str, float]]:
    """Return the worst layers of a tower by name; where none is, those of no tower's name."""
    vision = [item for item in fidelity.worst_layers if "vis" in item[0] or "image" in item[0]]
    text = [item for item in fidelity.worst_layers if "text" in item[0]]
    mine = vision if tower.tower == "vision" else text
    return mine or [item for item in fidelity.worst_layers if item not in (*vision, *text)]


def _name_layers(tower: TowerFidelity, fidelity: Fidelity) -> tuple[str, ...]:
    return tuple(f"{name}: SQNR {db:.1f} dB" for name, db in _layers_of(tower, fidelity)[:4])


def _blame(tower: TowerFidelity, fidelity: Fidelity) -> str:
    layers = _layers_of(tower, fidelity)
    if not layers:
        return "noise that no single layer explains"
    (name, db), *rest = layers
    after = f" (next {rest[0][1]:.1f} dB)" if rest else ""
    return f"the largest error enters at {name}, SQNR {db:.1f} dB{after}"


def _advise(tower: TowerFidelity, fidelity: Fidelity) -> str:
    layers = _layers_of(tower, fidelity)
    if not layers:
        return "choose a gentler recipe"
    return f'try exclude: ["*{layers[0][0]}*"], or a gentler recipe'


def judge(run: GateRun, gate: FidelityGate) -> Judged:
    """Return whether the embeddings of both towers stay near FP16's."""
    fidelity = run.fidelity()
    equal = any(tower.sqnr_mean_db == math.inf for tower in fidelity.towers)
    # Only then the audit is asked, which a suite may do without; ONNX files alone have none.
    has_audit = equal and not run.suite.is_onnx_alone
    rounded = {q.tower for q in run.audit.quantizers if q.enabled} if has_audit else ()
    verdict = judge_fidelity(
        fidelity,
        gate=gate,
        towers=run.towers,
        rounded=rounded,
        is_calibration=fidelity.data == run.suite.calibration.data,
    )
    red = [tower for tower in fidelity.towers if not judge_tower(tower, gate=gate).passed]
    if verdict.status is not Status.FAIL or not red:
        return Judged(verdict=verdict)
    # What a layer adds by itself stays as evidence; what it does to the embeddings leads.
    plain = verdict if red[0].nonfinite else replace(verdict, cause="")
    suspected = run.judging.name_suspects(plain, gate, tower=red[0].tower)
    return Judged(verdict=replace(suspected, cause=suspected.cause or verdict.cause))


KIND = GateKind(
    section=FidelityGate,
    help="embeddings against FP16",
    judge=judge,
    needs_torch=lambda gate: gate.stage == "torch",
    follows={
        f"{GATE}.{finding}": NO_RANGE
        for finding in ("nonfinite", "cosine", "worst-cosine", "sqnr", "worst-sqnr")
    },
)
