"""Which layers of a case cost what, and the smallest exclusion that meets its suite's limits.

The case gives the variants and the data, `measure/sensitivity.py` the forwards,
`measure/exclusion.py` the search; here they meet, and every result is kept in the case's cache.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quantgate.errors import DataError, ModelError
from pytest_quantgate.evidence.audit import Tower
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.outcomes import Outcomes, is_graded
from pytest_quantgate.evidence.sensitivity import (
    Changed,
    Exclusion,
    GateCheck,
    GroupEffect,
    QuantizerGroup,
    Sensitivity,
    Suspect,
    TowerNoise,
)
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate, judge_accuracy
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.gates.fidelity import FidelityGate, judge_fidelity
from pytest_quantgate.store.keys import EXCLUSION, SENSITIVITY, WITHOUT

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.measure.sensitivity import Direction, TowerEmbeddings, TowerInputs
    from pytest_quantgate.run.measured import Measured
    from pytest_quantgate.tasks.samples import Samples

#: Images of a study where nothing else is asked for, and of the suspects of a red gate.
SAMPLES = 256
SUSPECT_SAMPLES = 32

#: How many suspects a red gate is told of.
SUSPECTS = 4

#: Images of a forward: the outputs of all blocks of one batch are held in memory.
BATCH_SIZE = 32

#: Evaluations of a suite's gates that are spent on the search for an exclusion.
MOST_VERIFICATIONS = 6

Item = TypeVar("Item")

#: What a study measures on: the data of a gate, or the calibration set's held-out pairs.
Gate = AccuracyGate | FidelityGate | None
#: Of the embeddings of every tower, images first.
Score = Callable[..., Outcomes]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a study runs on: samples, the texts that belong to them, and how they are scored."""

    samples: Samples
    texts: tuple[str, ...]
    score: Score | None


class Study:
    """The sensitivity of one case; everything comes from the cache or is measured once.

    With a `part` it looks at every second sample of an accuracy gate: 0 those in even places, 1 the
    others. So what is searched on one part can be judged on samples that the search never saw.
    """

    def __init__(self, case: Measured, *, part: int | None = None) -> None:
        self.case, self.part = case, part

    # -- gates ----------------------------------------------------------------------------------

    def gates(self) -> tuple[AccuracyGate, ...]:
        """Return the accuracy gates to meet, in PyTorch; one judged in ONNX stands for its task."""
        found: dict[str, AccuracyGate] = {}
        for gate in self.case.suite.gates.all(AccuracyGate):
            plain = replace(gate, stage="torch")
            if gate.stage == "torch" or plain.key not in found:
                found[plain.key] = plain
        return tuple(found.values())

    def weakest_gate(self) -> AccuracyGate | None:
        """Return the accuracy gate that is furthest over its limit, or nearest to it."""
        gates = self.gates()

        def severity(gate: AccuracyGate) -> tuple[int, float]:
            verdict = self.judge(self.case, gate)
            high = verdict.figures.get("drop_high_points", math.inf)
            limit = float(gate.max_drop) * 100
            room = limit - high if isinstance(high, (int, float)) else 0.0
            return -verdict.status.severity, room

        return min(gates, key=severity) if gates else None

    def gate_of(self, task: str) -> AccuracyGate:
        """Return the accuracy gate of a task (`scenes/classification`, or with its metric).

        Raises DataError, naming those that there are.
        """
        for gate in self.gates():
            if task in (gate.task, gate.key):
                return gate
        known = ", ".join(gate.key for gate in self.gates()) or "none"
        raise DataError(
            f"{self.case.suite.path.name} has no accuracy gate of {task!r}; it has: {known}"
        )

    # -- measuring ------------------------------------------------------------------------------

    def measure(self, *, gate: AccuracyGate | None, samples: int = SAMPLES) -> Sensitivity:
        """Return what every group of quantizers costs, alone and left out.

        On the samples of an accuracy gate's task and in its metric; without one, on the held-out
        pairs of the calibration set and without a metric. Raises ModelError where no quantizer is
        on, or FP16 gives no finite embedding.
        """
        return self._cached(gate, samples, directions=("only", "without"))

    def suspects(
        self, gate: AccuracyGate | FidelityGate, *, tower: Tower | None = None
    ) -> tuple[Suspect, ...]:
        """Return the groups that alone cost the most, on a few samples: a cheap `measure`."""
        found = self._cached(gate, SUSPECT_SAMPLES, directions=("only",))
        return rank_suspects(found, tower=tower)

    def _cached(
        self, gate: Gate, samples: int, *, directions: tuple[Direction, ...]
    ) -> Sensitivity:
        case = self.case
        key = case.key(
            SENSITIVITY,
            fp16=case.fp16_key,
            variant=case.variant_key,
            data=self._data_key(gate),
            # Without a metric all gates of one task share what is found.
            task=_task_of(gate)[: 2 if "without" in directions else 1],
            samples=samples,
            directions=directions,
        )
        return case.measured(
            SENSITIVITY,
            key,
            measure=lambda: to_json(self._measure(gate, samples, directions=directions)),
            read=functools.partial(from_json, Sensitivity),
            about=(*_task_of(gate), str(samples), *directions),
        )

    def _data_key(self, gate: Gate) -> str:
        if gate is None:
            return "held-out pairs"  # the variant's key holds the calibration set
        return self._samples(gate).digest

    def _samples(self, gate: AccuracyGate | FidelityGate) -> Samples:
        from pytest_quantgate.tasks.registry import evaluation_data

        if isinstance(gate, FidelityGate):
            data = gate.data or self.case.default_data()
            return self.case.samples(data, gate.samples, purpose="pairs", first=gate.first)
        data, purpose = evaluation_data(gate.task)
        found = self.case.samples(data, gate.samples, purpose=purpose, first=gate.first)
        return found if self.part is None else found.select(range(self.part, len(found), 2))

    def _measure(self, gate: Gate, count: int, *, directions: tuple[Direction, ...]) -> Sensitivity:
        from pytest_quantgate.measure.groups import group_quantizers
        from pytest_quantgate.measure.sensitivity import (
            full_bytes_of,
            measure_towers,
            weights_bytes,
        )
        from pytest_quantgate.quantization.quantizers import find_quantizers

        case = self.case
        probe = self.probe(gate, count)
        if "without" not in directions:  # no metric, so no text is needed for its class
            probe = replace(probe, texts=take_evenly(probe.texts, count), score=None)
        module = case.quantized.module
        groups = group_quantizers(case.audit)
        if not groups:
            raise ModelError(
                f"{case.suite.path.name}: no quantizer is on, so none can be left out "
                f"({case.suite.variant.where.of('recipe')})"
            )
        enabled = frozenset(n for n, q in find_quantizers(module).items() if q.is_enabled)
        full_bytes = full_bytes_of(case.quantized)
        whole = weights_bytes(module, names=enabled, full_bytes=full_bytes)
        groups = tuple(
            replace(
                group,
                extra_bytes=weights_bytes(
                    module, names=enabled.difference(group.quantizers), full_bytes=full_bytes
                )
                - whole,
            )
            for group in groups
        )
        label = f"leaving out {len(groups)} groups of quantizers on {len(probe.samples)} samples"
        if "without" not in directions:
            label = f"looking for the layers that cost most on {len(probe.samples)} samples"
        with ExitStack() as stack:
            towers = measure_towers(
                module,
                groups=groups,
                towers=self.towers(probe),
                directions=directions,
                start=lambda total: stack.enter_context(case.progress.stage(label, total=total)),
            )
        task, metric = _task_of(gate)
        return summarize(
            groups,
            towers,
            data=probe.samples.name,
            task=task,
            metric=metric,
            score=probe.score,
            weights_bytes=whole,
        )

    def towers(self, probe: Probe) -> tuple[TowerInputs, ...]:
        """Return every tower with its batches of a probe, preprocessed."""
        from pytest_quantgate.measure.sensitivity import TowerInputs

        fp16, quantized = self.case.fp16, self.case.quantized
        found: dict[str, list[Mapping[str, torch.Tensor]]] = {}
        if "vision" in self.case.towers:
            found["vision"] = [
                {
                    "pixel_values": fp16.preprocess(
                        probe.samples.images[index]
                        for index in range(start, min(start + BATCH_SIZE, len(probe.samples)))
                    )
                }
                for start in range(0, len(probe.samples), BATCH_SIZE)
            ]
        if "text" in self.case.towers:
            found["text"] = [
                fp16.tokenize(probe.texts[start : start + BATCH_SIZE])
                for start in range(0, len(probe.texts), BATCH_SIZE)
            ]
        return tuple(
            TowerInputs(
                tower=tower,
                fp16=functools.partial(fp16.encode, tower),
                quantized=functools.partial(quantized.encode, tower),
                batches=found[tower],
            )
            for tower in self.case.towers
        )

    def probe(self, gate: Gate, count: int) -> Probe:
        """Return at most `count` samples to measure on, spread over all that a gate has."""
        reads = "text" in self.case.towers
        if gate is None:
            return pairs_probe(self.case.held_out(count), reads=reads)
        samples = take_spread(self._samples(gate), count)
        if isinstance(gate, FidelityGate):
            return pairs_probe(samples, reads=reads)
        return task_probe(samples, gate=gate, reads=reads)

    # -- excluding ------------------------------------------------------------------------------

    def propose(self, sensitivity: Sensitivity) -> Exclusion:
        """Return the smallest exclusion found that every gate of the suite passes with.

        The accuracy gates and the fidelity gate are judged on all their samples with the very
        quantizers off that the exclusion would switch off: ModelOpt excludes after calibration,
        so this is the variant that a suite with the new list builds.
        """
        case, fidelity = self.case, self.case.suite.gates.one(FidelityGate)
        key = case.key(
            EXCLUSION,
            fp16=case.fp16_key,
            variant=case.variant_key,
            sensitivity=to_json(sensitivity),
            gates=[repr(gate) for gate in self.gates()] + [self.part],
            fidelity=repr(fidelity),
            coverage=repr(case.suite.gates.one(CoverageGate)),
            data=[self._data_key(gate) for gate in (*self.gates(), fidelity) if gate],
            day=case.today.isoformat(),
        )
        return case.measured(
            EXCLUSION,
            key,
            measure=lambda: to_json(self._propose(sensitivity)),
            read=functools.partial(from_json, Exclusion),
        )

    def _propose(self, sensitivity: Sensitivity) -> Exclusion:
        now = self.verdicts(self.case)
        checks = tuple(check_gate(name, verdict) for name, verdict in now.items())
        red = [name for name, verdict in now.items() if not verdict.passed]
        if not red:
            return Exclusion(outcome="none needed", groups=(), checks=checks, verifications=0)
        for gate in self.gates():
            fp16, _ = self._outcomes(self.case, gate)
            best = judge_accuracy(fp16=fp16, quantized=fp16, gate=gate)
            if not best.passed:
                return Exclusion(
                    outcome="impossible",
                    groups=(),
                    checks=checks,
                    verifications=0,
                    reason=f"not even FP16 passes: {best.headline}",
                )
        order = [effect for effect in sensitivity.effects if effect.noise_only > 0]
        with self.case.progress.stage("verifying exclusions", total=MOST_VERIFICATIONS) as advance:
            verified: dict[tuple[str, ...], dict[str, Verdict]] = {}

            def meets(effects: tuple[GroupEffect, ...]) -> bool:
                names = _names(effects)
                with without(self.case, names) as other:
                    # The red ones first, and no further than the first that stays red.
                    found = self.verdicts(other, first=red, until_red=True)
                verified[tuple(sorted(names))] = found
                advance(1)
                return all(verdict.passed for verdict in found.values())

            from pytest_quantgate.measure.exclusion import Search

            search = Search(meets=meets, budget=MOST_VERIFICATIONS)
            chosen = search.run(
                order,
                first=predict_length(sensitivity, order, verdicts=now),
                drop_order=sorted(order, key=_gain),
            )
        spent = len(search.verified)
        if chosen is None:
            return Exclusion(outcome="not found", groups=(), checks=checks, verifications=spent)
        names = _names(chosen)
        after = verified[tuple(sorted(names))]
        groups = tuple(effect.group for effect in chosen)
        return Exclusion(
            outcome="found",
            groups=groups,
            checks=tuple(
                check_gate(
                    name,
                    verdict,
                    after=after[name],
                    ratio=noise_left(sensitivity, chosen),
                )
                for name, verdict in now.items()
            ),
            verifications=spent,
            extra_bytes=sum(group.extra_bytes for group in groups),
            coverage=self._coverage(names, groups),
        )

    def verdicts(
        self, case: Measured, *, first: Sequence[str] = (), until_red: bool = False
    ) -> dict[str, Verdict]:
        """Return the verdict of every gate that an exclusion must meet, `first` ones first."""
        judges: dict[str, Callable[[], Verdict]] = {
            gate.name: lambda gate=gate: self.judge(case, gate)  # type: ignore[misc]
            for gate in self.gates()
        }
        fidelity = case.suite.gates.one(FidelityGate)
        if fidelity is not None:
            judges[fidelity.name] = lambda: judge_fidelity(case.fidelity(), gate=fidelity)
        found = {}
        for name in sorted(judges, key=lambda name: name not in first):
            found[name] = judges[name]()
            if until_red and not found[name].passed:
                break
        return found

    def judge(self, case: Measured, gate: AccuracyGate) -> Verdict:
        """Return the verdict of one accuracy gate on a case, in PyTorch, on this part of it."""
        fp16, quantized = self._outcomes(case, gate)
        return judge_accuracy(fp16=fp16, quantized=quantized, gate=gate)

    def _outcomes(self, case: Measured, gate: AccuracyGate) -> tuple[Outcomes, Outcomes]:
        fp16, quantized = case.outcomes(**gate.asks)
        if self.part is None:
            return fp16, quantized
        places = range(self.part, len(fp16.ids), 2)
        return fp16.select(places), quantized.select(places)

    def _coverage(self, names: Collection[str], groups: Sequence[QuantizerGroup]) -> str:
        """Return what the coverage gate says with an exclusion, or nothing where it passes."""
        from pytest_quantgate.measure.audit import audit_quantizers
        from pytest_quantgate.measure.embeddings import make_batches

        gate = self.case.suite.gates.one(CoverageGate)
        if gate is None:
            return ""
        exclude = (*self.case.suite.variant.exclude, *list_patterns(groups))
        with without(self.case, names) as other:
            audit = audit_quantizers(
                other.quantized,
                recipe=self.case.recipe,
                exclude=exclude,
                held_out=list(make_batches(other.fp16, other.held_out(2), batch_size=2)),
            )
        verdict = judge_coverage(audit, gate=gate, today=self.case.today)
        return "" if verdict.passed else verdict.headline


@contextmanager
def without(case: Measured, names: Collection[str]) -> Iterator[Measured]:
    """Give the case of the same suite with some quantizers off, while the block runs.

    It shares model and data with `case`; what it measures is cached under a key of its own. The
    variant itself is the same object with switches off, so `case` must not be used meanwhile.
    """
    from pytest_quantgate.measure.sensitivity import enabled_only
    from pytest_quantgate.quantization.quantizers import find_quantizers

    quantizers = find_quantizers(case.quantized.module)
    enabled = {name for name, quantizer in quantizers.items() if quantizer.is_enabled}
    key = case.key(WITHOUT, variant=case.variant_key, quantizers=sorted(names))
    with enabled_only(quantizers, enabled.difference(names)):
        yield case.with_variant(case.quantized, key=key, image_key=_image_key(case, names))


def _image_key(case: Measured, names: Collection[str]) -> str:
    """Return the key of image embeddings: what no image goes through makes no other ones."""
    seen = [q.name for q in case.audit.quantizers if q.tower_calls.get("vision", 0)]
    off = sorted(set(names).intersection(seen))
    if not off:
        return case.image_key
    return case.key(WITHOUT, variant=case.image_key, quantizers=off)


def summarize(
    groups: Sequence[QuantizerGroup],
    towers: Mapping[str, TowerEmbeddings],
    *,
    data: str,
    task: str,
    metric: str,
    score: Score | None,
    weights_bytes: int,
) -> Sensitivity:
    """Return noise and metric of every group, ranked by the noise of the group alone.

    Raises ModelError where FP16 gives no finite embedding in a tower.
    """
    from pytest_quantgate.measure.sensitivity import noise_ratio

    noises = []
    for name, found in towers.items():
        noise_off = noise_ratio(found.fp16, found.off)
        if math.isnan(noise_off):
            raise ModelError(f"FP16 gives NaN or Inf for every sample in the {name} tower")
        noises.append(
            TowerNoise(
                tower=name,  # type: ignore[arg-type]
                samples=len(found.off),
                noise_all=noise_ratio(found.off, found.full),
                noise_off=noise_off,
            )
        )

    def noise_of(direction: Direction, index: int) -> float:
        values = [
            noise_ratio(found.off, found.groups[direction, index])
            for found in towers.values()
            if (direction, index) in found.groups
        ]
        return max(values, default=0.0 if direction == "only" else math.nan)

    def outcomes_of(direction: Direction, index: int) -> Outcomes | None:
        if score is None:
            return None
        return score(
            *(
                found.groups.get(
                    (direction, index), found.off if direction == "only" else found.full
                )
                for found in towers.values()
            )
        )

    off = score(*(found.off for found in towers.values())) if score else None
    full = score(*(found.full for found in towers.values())) if score else None
    only = [outcomes_of("only", index) for index in range(len(groups))]
    without = [outcomes_of("without", index) for index in range(len(groups))]

    def apart(index: int) -> float | None:
        if not any(index in found.apart for found in towers.values()):
            return None
        return max(
            noise_ratio(found.off, found.apart.get(index, found.groups["only", index]))
            for found in towers.values()
            if ("only", index) in found.groups
        )

    effects = [
        GroupEffect(
            group=group,
            towers=tuple(
                name  # type: ignore[misc]
                for name, found in towers.items()
                if ("only", index) in found.groups
            ),
            noise_only=noise_of("only", index),
            noise_without=noise_of("without", index),
            metric_only=_value_of(only[index]),
            metric_without=_value_of(without[index]),
            changed_only=_count_changed(off, only[index]),
            changed_without=_count_changed(full, without[index]),
            outliers=tuple(
                outliers for found in towers.values() for outliers in found.outliers.get(index, ())
            ),
            noise_apart=apart(index),
        )
        for index, group in enumerate(groups)
    ]
    first = next(iter(towers.values()))
    text = towers.get("text")
    return Sensitivity(
        data=data,
        samples=len(first.off),
        texts=len(text.off) if text else 0,
        task=task,
        metric=metric,
        towers=tuple(noises),
        metric_off=_value_of(off),
        metric_all=_value_of(full),
        effects=tuple(sorted(effects, key=lambda effect: -effect.noise_only)),
        weights_bytes=weights_bytes,
        evaluations=sum(found.forwards for found in towers.values()) / (2 * len(towers)),
    )


def _value_of(outcomes: Outcomes | None) -> float | None:
    return outcomes.value if outcomes else None


def _count_changed(before: Outcomes | None, after: Outcomes | None) -> Changed | None:
    """Return how many samples a change of state lost and won; None where they are not the metric.

    A mean over classes is no share of samples, nor is one of grades.
    """
    if before is None or after is None:
        return None
    for found in (before, after):
        mean = sum(found.correct) / len(found.correct)
        if is_graded(found.correct) or not math.isclose(found.value, mean, abs_tol=1e-9):
            return None
    pairs = list(zip(before.correct, after.correct, strict=True))
    return Changed(
        lost=pairs.count((True, False)), won=pairs.count((False, True)), samples=len(pairs)
    )


def rank_suspects(
    sensitivity: Sensitivity, *, tower: Tower | None = None, most: int = SUSPECTS
) -> tuple[Suspect, ...]:
    """Return the groups with the most noise alone, worst first, of one tower or of both.

    Groups without noise are none. Outlier channels are told of only in towers whose error is that
    of quantizers: not where the model is further from FP16 than that with every one of them off.
    """
    from pytest_quantgate.measure.sensitivity import sqnr_db

    quantized = {t.tower for t in sensitivity.towers if not t.noise_off >= t.noise_all}

    def apart(effect: GroupEffect) -> dict[str, Any]:
        if effect.noise_apart is None or not quantized.issuperset(effect.towers):
            return {}
        return {"outliers": effect.outliers, "sqnr_apart_db": sqnr_db(effect.noise_apart)}

    return tuple(
        Suspect(
            label=effect.group.label,
            towers=effect.towers,
            sqnr_db=sqnr_db(effect.noise_only),
            patterns=effect.group.patterns,
            **apart(effect),
        )
        for effect in sensitivity.effects
        if effect.noise_only > 0 and (tower is None or tower in effect.towers)
    )[:most]


def noise_left(sensitivity: Sensitivity, excluded: Sequence[GroupEffect]) -> float:
    """Return the share of all noise that stays without some groups, taking noise to add up.

    1 with none excluded, 0 with all; where noise is not finite, the groups that are finite count.
    """

    def total(effects: Sequence[GroupEffect]) -> float:
        return sum(effect.noise_only for effect in effects if math.isfinite(effect.noise_only))

    kept = [effect for effect in sensitivity.effects if effect not in excluded]
    if not all(math.isfinite(effect.noise_only) for effect in kept):
        return 1.0
    infinite = any(not math.isfinite(effect.noise_only) for effect in excluded)
    whole = max(1.0, total(sensitivity.effects)) if infinite else total(sensitivity.effects)
    return total(kept) / whole if whole else 0.0


def predict_length(
    sensitivity: Sensitivity, order: Sequence[GroupEffect], *, verdicts: Mapping[str, Verdict]
) -> int:
    """Return how many of the first groups must go, if a drop shrinks as the noise does."""
    highs = [
        (high, limit)
        for verdict in verdicts.values()
        if isinstance(high := verdict.figures.get("drop_high_points"), float)
        and isinstance(limit := verdict.figures.get("max_drop_points"), float)
    ]
    for length in range(1, len(order)):
        ratio = noise_left(sensitivity, order[:length])
        if all(high <= limit or high * ratio <= limit for high, limit in highs):
            return length
    return max(1, len(order) - 1)


def list_patterns(groups: Sequence[QuantizerGroup]) -> tuple[str, ...]:
    """Return the exclude patterns of some groups, each once, in their order."""
    return tuple(dict.fromkeys(pattern for group in groups for pattern in group.patterns))


def take_spread(samples: Samples, count: int) -> Samples:
    """Return at most `count` samples, spread evenly: data sets are often sorted by class."""
    return samples.select(take_evenly(range(len(samples)), count))


def take_evenly(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Return at most `count` items, spread evenly over all."""
    count = min(count, len(items))
    return tuple(items[index * len(items) // count] for index in range(count))


def pairs_probe(samples: Samples, *, reads: bool) -> Probe:
    """Return the probe of pairs without a metric; a model that `reads` gets their texts."""
    texts = tuple(samples.text(index) for index in range(len(samples) if reads else 0))
    return Probe(samples=samples, texts=texts, score=None)


def task_probe(samples: Samples, *, gate: AccuracyGate, reads: bool) -> Probe:
    """Return the probe of a task, made cheaper as its kind says, without the bank of the gate.

    `reads` is whether the model has a text tower, which is given texts whether or not the task
    looks at them. Where right is what FP16 answers there is no metric: noise says it.
    """
    from pytest_quantgate.tasks.kind import find_task
    from pytest_quantgate.tasks.scoring import TaskInputs, build_outcomes

    kind = find_task(gate.task)
    probe = kind.simplify(samples)
    asked = "text" in kind.towers
    texts = tuple(kind.list_texts(probe)) if asked else ()

    def score(*embedded: torch.Tensor) -> Outcomes:
        inputs = TaskInputs(
            samples=probe,
            pixels=probe.hashes,
            task=gate.task,
            metric=gate.metric,
            images=embedded[0],
            texts=embedded[1] if asked else None,
        )
        return build_outcomes(kind.score(inputs), inputs=inputs, variant="")

    if reads and not asked:
        texts = tuple(probe.text(index) for index in range(len(probe)))
    return Probe(samples=probe, texts=texts, score=None if kind.needs_fp16 else score)


def _task_of(gate: Gate) -> tuple[str, str]:
    return (gate.task, gate.metric) if isinstance(gate, AccuracyGate) else ("", "")


def _names(effects: Sequence[GroupEffect]) -> frozenset[str]:
    return frozenset(name for effect in effects for name in effect.group.quantizers)


def _gain(effect: GroupEffect) -> tuple[float, float]:
    """Return what leaving a group out wins, to drop from a list first what wins least."""
    without = effect.metric_without
    return (without if without is not None else 0.0, effect.noise_only)


def check_gate(
    gate: str, verdict: Verdict, *, after: Verdict | None = None, ratio: float = 1.0
) -> GateCheck:
    fp16, before = _value(verdict, "fp16_value"), _value(verdict, "quantized_value")
    return GateCheck(
        gate=gate,
        before=verdict.status.value,
        brief_before=_brief(verdict),
        fp16_value=fp16,
        value_before=before,
        predicted=(
            fp16 - (fp16 - before) * ratio
            if after is not None and fp16 is not None and before is not None
            else None
        ),
        after=after.status.value if after else "",
        brief_after=_brief(after) if after else "",
        value_after=_value(after, "quantized_value") if after else None,
    )


def _brief(verdict: Verdict) -> str:
    """Return a verdict's figures in a phrase, without the gate's name and its place."""
    text = verdict.headline.removeprefix(f"{verdict.gate}: ")
    return verdict.brief or re.sub(r" \([^()]*:\d+\)$", "", text)


def _value(verdict: Verdict, name: str) -> float | None:
    value = verdict.figures.get(name)
    return float(value) if isinstance(value, (int, float)) else None
