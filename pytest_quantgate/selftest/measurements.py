"""Sabotages of what was measured of a model, its data and its checkpoint.

Here the decision is on trial, not the measurement: would this gate, with the limits that the suite
sets and the samples that it has, say no? A limit that nothing can exceed shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.faults import image_size
from pytest_quantgate.evidence.sanity import Answers, Sanity, Twins
from pytest_quantgate.gates.serves import ServesGate
from pytest_quantgate.selftest.sabotage import (
    Change,
    Sabotage,
    Spoil,
    alter_each,
    altered,
    exchange,
)

if TYPE_CHECKING:
    from pytest_quantgate.evidence.audit import Audit, CalibrationRun
    from pytest_quantgate.evidence.parity import Roundtrip
    from pytest_quantgate.run.case import Case


def list_measurement_sabotages() -> tuple[Sabotage, ...]:
    return (*_sanity(), *_coverage(), *_calibration(), *_fidelity(), *_roundtrip(), *_serves())


def _sanity() -> tuple[Sabotage, ...]:
    def on_sanity(change: Callable[[Sanity], Sanity | None]) -> Spoil:
        def spoil(case: Case, _key: str) -> Case | None:
            changed = change(case.sanity)
            return None if changed is None else exchange(case, sanity=changed)

        return spoil

    def on_classes(**changes: object) -> Spoil:
        def change(sanity: Sanity) -> Sanity | None:
            if not any(task.classes > 1 for task in sanity.tasks):
                return None
            alter = altered(**changes)
            tasks = tuple(alter(task) if task.classes > 1 else task for task in sanity.tasks)
            return replace(sanity, tasks=tasks)

        return on_sanity(change)

    def on_reading(**changes: object) -> Spoil:
        def change(sanity: Sanity) -> Sanity | None:
            if not (sanity.reading.count and sanity.reading.pools_end):
                return None  # no end token to lose
            return replace(sanity, reading=altered(**changes)(sanity.reading))

        return on_sanity(change)

    def guess(sanity: Sanity) -> Sanity | None:
        tasks = tuple(
            replace(task, answers=guessed(task.answers))
            for task in sanity.tasks
            if task.answers is not None
        )
        return replace(sanity, tasks=tasks) if tasks else None

    def guessed(answers: Answers) -> Answers:
        return replace(answers, right=int(answers.samples * answers.chance), whole=True)

    twins = Twins(first=0, second=1, names=("one", "one"), pairs=1)
    of_another_model = image_size(made=(3, 225, 225), taken=(3, 224, 224))
    of = partial(Sabotage, gate="sanity")
    return (
        of(
            name="a template that names no class",
            cause=r"has no \{c\}",
            spoil=on_classes(without_class=((0, "a photo of a {}"),)),
        ),
        of(
            name="a class name that stands twice",
            cause="stands twice",
            spoil=on_classes(same_name=twins),
        ),
        of(
            name="two classes with one prompt",
            cause="read alike",
            spoil=on_classes(same_prompt=twins),
        ),
        of(
            name="a tokenizer without end token",
            cause="no end token",
            spoil=on_reading(without_end=1, example="a photo", pooled="a"),
        ),
        of(
            name="another token pooled",
            cause="not the end token",
            spoil=on_reading(pooled_elsewhere=1, example="a photo", pooled="photo"),
        ),
        of(name="FP16 that guesses", cause="no better than chance", spoil=on_sanity(guess)),
        of(
            name="the image processor of another model",
            cause="the vision tower takes",
            spoil=on_sanity(altered(faults=(of_another_model,))),
        ),
        of(
            name="FP16 that gives NaN",
            cause="NaN or Inf",
            spoil=on_sanity(altered(nonfinite_images=1)),
        ),
    )


def on_audit(change: Change) -> Spoil:
    return lambda case, _key: exchange(case, audit=change(case.audit))


def never_called(audit: Audit) -> Audit:
    """Return an audit in which no enabled quantizer ran."""
    idle = altered(tower_calls={})
    return replace(audit, quantizers=tuple(idle(q) if q.enabled else q for q in audit.quantizers))


def _coverage() -> tuple[Sabotage, ...]:
    def misspelt(audit: Audit) -> Audit:
        return replace(audit, excludes=(*audit.excludes, ("*no_such_layer*", ())))

    of = partial(Sabotage, gate="coverage")
    return (
        of(
            name="quantizers that never ran",
            cause="never (ran|called)",
            spoil=on_audit(never_called),
        ),
        of(
            name="an exclude pattern that matches nothing",
            cause="matches none of",
            spoil=on_audit(misspelt),
        ),
    )


def _calibration() -> tuple[Sabotage, ...]:
    def on_run(change: Change) -> Spoil:
        def spoil(case: Case, _key: str) -> Case | None:
            run = case.calibration_run
            if run.given:
                return None  # a checkpoint does not tell how it was calibrated
            return exchange(case, calibration_run=change(run))

        return spoil

    def no_batch(run: CalibrationRun) -> CalibrationRun:
        return replace(run, batches=0, tower_batches=dict.fromkeys(run.tower_batches, 0))

    def idle_tower(run: CalibrationRun) -> CalibrationRun:
        *_, last = run.tower_batches
        return replace(run, tower_batches={**run.tower_batches, last: 0})

    def overlap(run: CalibrationRun) -> CalibrationRun:
        ((content, _), *_rest) = run.sample_hashes
        return replace(run, held_out_hashes=(*run.held_out_hashes, (content, "a copy")))

    of = partial(Sabotage, gate="calibration")
    return (
        of(
            name="no calibration batch",
            cause="no batch was ever calibrated on",
            spoil=on_run(no_batch),
        ),
        of(
            name="one tower never calibrated",
            cause=r"the \w+ tower was never calibrated",
            spoil=on_run(idle_tower),
        ),
        of(
            name="NaN in the calibration data",
            cause="calibration data holds NaN or Inf",
            spoil=on_run(altered(nonfinite=("image 0",))),
        ),
        of(
            name="calibrated on what is judged",
            cause="also calibrated the quantizers",
            spoil=on_run(overlap),
        ),
    )


def _fidelity() -> tuple[Sabotage, ...]:
    def on_fidelity(change: Change) -> Spoil:
        def spoil(case: Case, _key: str) -> Case:
            changed = change(case.fidelity())
            return exchange(case, fidelity=lambda: changed)

        return spoil

    apart = {
        "cosine_mean": 0.0,
        "cosine_worst": -1.0,
        "sqnr_mean_db": -3.0,
        "sqnr_worst_db": -6.0,
    }
    of = partial(Sabotage, gate="fidelity")
    return (
        of(
            name="embeddings of another model",
            cause="under min_",
            spoil=on_fidelity(alter_each("towers", **apart)),
        ),
        of(
            name="NaN in the embeddings",
            cause="NaN",
            spoil=on_fidelity(alter_each("towers", nonfinite=1)),
        ),
        of(
            name="one tower never compared",
            cause="no embeddings of the",
            spoil=on_fidelity(lambda found: replace(found, towers=found.towers[:-1])),
        ),
    )


def _roundtrip() -> tuple[Sabotage, ...]:
    def on_roundtrip(change: Change) -> Spoil:
        def spoil(case: Case, _key: str) -> Case:
            changed = change(case.roundtrip())
            return exchange(case, roundtrip=lambda: changed)

        return spoil

    def unequal(found: Roundtrip) -> Roundtrip:
        return replace(found, equal=dict.fromkeys(found.equal, False), max_abs_difference=1.0)

    of = partial(Sabotage, gate="roundtrip")
    return (
        of(
            name="restored to other outputs",
            cause="embeddings differ after the restore",
            spoil=on_roundtrip(unequal),
        ),
        of(
            name="one range lost in the checkpoint",
            cause="amax differ",
            spoil=on_roundtrip(altered(amax_different=("some.input_quantizer",))),
        ),
        of(
            name="a damaged checkpoint that loads",
            cause="damage was accepted",
            spoil=on_roundtrip(altered(accepted=("state file missing",))),
        ),
    )


def _serves() -> tuple[Sabotage, ...]:
    def on_load(**changes: Any) -> Spoil:
        def spoil(case: Case, key: str) -> Case:
            changed = replace(case.loaded_by(case.suite.gates.get(ServesGate, key=key)), **changes)
            return exchange(case, loaded_by=lambda _gate: changed)

        return spoil

    of = partial(Sabotage, gate="serves")
    return (
        of(
            name="a loader that takes codes for weights",
            cause="not as codes",
            spoil=on_load(changed=("fc1.weight",)),
        ),
        of(
            name="a loader that passes over a scale",
            cause="nowhere in the model",
            spoil=on_load(lost=("fc1.weight_scale",)),
        ),
        of(
            name="a loader that refuses the folder",
            cause="does not load",
            spoil=on_load(error="ValueError: no such parameter", refused_at="load"),
        ),
    )
