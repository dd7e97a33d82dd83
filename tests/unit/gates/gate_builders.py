"""Healthy measurements and gates for the tests of gates/, and ways to damage them.

The module is not called `builders`, and no test file here has a plain module's name: without
packages, pytest wants every file name once in the whole of tests/.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from fractions import Fraction
from typing import Any

from hypothesis import settings

from pytest_quantgate.evidence.audit import (
    Audit,
    CalibrationRun,
    Module,
    Operation,
    Quantizer,
    Slot,
    Tower,
)
from pytest_quantgate.evidence.fidelity import Fidelity, TowerFidelity
from pytest_quantgate.evidence.outcomes import Outcomes, Score, StoredPair
from pytest_quantgate.evidence.parity import Roundtrip
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.calibration import CalibrationGate
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.gates.fidelity import FidelityGate
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.gates.roundtrip import RoundtripGate
from pytest_quantgate.gates.scope import Waiver
from pytest_quantgate.store.baselines import store_outcomes
from pytest_quantgate.suite.where import Where

#: The same examples in every run, and no deadline: a busy machine is no failure.
SAME_EXAMPLES = settings(deadline=None, derandomize=True, max_examples=60)

FILE = "suites/clip.quantgate.yaml"
#: Every key on a line of its own, so that a test sees which line a verdict points to.
KEYS = {
    "metric": 11,
    "max_drop": 12,
    "floor": 13,
    "max_flips": 14,
    "max_class_drop": 15,
    "max_fp16_drop": 16,
    "max_drop_since_first": 17,
    "towers": 18,
    "attention": 19,
    "max_clipped": 20,
    "until": 21,
    "min_cosine": 22,
    "min_worst_cosine": 23,
    "min_sqnr": 24,
    "min_worst_sqnr": 25,
    "task": 26,
    "first": 27,
    "max_batch_change": 28,
}
WHERE = Where(file=FILE, line=10, keys=KEYS)
CLASSES = ("cat", "dog", "fox", "owl")
TASK = "scenes/classification"
DATA = "d" * 64


def at(key: str) -> str:
    """Return the place of a key as a verdict shows it."""
    return f"{FILE}:{KEYS[key]}"


def all_text(verdict: Verdict) -> str:
    """Return everything that a reader of a verdict sees."""
    return "\n".join((verdict.headline, *verdict.evidence, verdict.cause, verdict.next_step))


def number_in(pattern: str, lines: Sequence[str]) -> int:
    """Return the number that `pattern` captures in the one line that has it."""
    found = [match for line in lines if (match := re.search(pattern, line))]
    assert len(found) == 1, (pattern, lines)
    return int(found[0].group(1))


# -- outcomes -----------------------------------------------------------------------------------


def make_outcomes(correct: Sequence[Score], **changes: Any) -> Outcomes:
    """Return outcomes whose wrong answers are the next class; labels go round the classes."""
    names = changes.get("class_names", CLASSES)
    wheel = len(names) or 1
    labels = changes.get("labels")
    if labels is None:
        labels = tuple(i % wheel if names else -1 for i in range(len(correct)))
    values: dict[str, Any] = {
        "task": TASK,
        "metric": "acc1",
        "variant": "fp8-attention",
        "ids": tuple(f"image-{i:05d}" for i in range(len(correct))),
        "correct": tuple(correct),
        "answers": tuple(
            label if right else (label + 1) % wheel
            for label, right in zip(labels, correct, strict=True)
        ),
        "class_names": names,
        "value": sum(correct) / len(correct) if correct else 0.0,
        "data_digest": DATA,
        **changes,
        "labels": labels,
    }
    return Outcomes(**values)


def make_pair(
    samples: int,
    *,
    lost: int = 0,
    won: int = 0,
    other_answers: int = 0,
    both_wrong: int | None = None,
    **changes: Any,
) -> tuple[Outcomes, Outcomes]:
    """Return FP16 and quantized outcomes with these flips.

    `other_answers` samples are wrong in both variants, with another answer in each; `both_wrong`
    counts all that are wrong in both.
    """
    wrong = other_answers if both_wrong is None else both_wrong
    assert lost + won + wrong <= samples
    assert other_answers <= wrong
    right = samples - lost - won - wrong
    before = (True,) * lost + (False,) * (won + wrong) + (True,) * right
    after = (False,) * lost + (True,) * won + (False,) * wrong + (True,) * right
    fp16 = make_outcomes(before, **{"variant": "fp16", **changes})
    quantized = make_outcomes(after, **changes)
    moved = range(lost + won, lost + won + other_answers)
    answers = tuple(
        (answer + 1) % len(CLASSES) if i in moved else answer
        for i, answer in enumerate(quantized.answers)
    )
    return fp16, replace(quantized, answers=answers)


def make_class_pair(
    *classes: tuple[str, int, int, int], metric: str = "acc1", both_wrong: int = 0
) -> tuple[Outcomes, Outcomes]:
    """Return outcomes of (name, samples, lost, won) a class; `both_wrong` in each of them."""
    before: list[bool] = []
    after: list[bool] = []
    labels: list[int] = []
    for label, (_, samples, lost, won) in enumerate(classes):
        same = samples - lost - won
        before += [True] * lost + [False] * won
        after += [False] * lost + [True] * won
        before += [False] * both_wrong + [True] * (same - both_wrong)
        after += [False] * both_wrong + [True] * (same - both_wrong)
        labels += [label] * samples
    names = tuple(name for name, *_ in classes)

    def build(correct: list[bool], variant: str) -> Outcomes:
        made = make_outcomes(
            correct, labels=tuple(labels), class_names=names, metric=metric, variant=variant
        )
        if metric == "mean_per_class_recall":
            shares = [
                sum(c for c, at_label in zip(correct, labels, strict=True) if at_label == label)
                / labels.count(label)
                for label in range(len(names))
            ]
            return replace(made, value=sum(shares) / len(shares))
        return made

    return build(before, "fp16"), build(after, "fp8-attention")


def make_hits(correct: Sequence[Score], **changes: Any) -> Outcomes:
    """Return outcomes of retrieval: queries without classes."""
    return make_outcomes(
        correct,
        **{
            "task": "scenes/retrieval",
            "metric": "image_retrieval_recall@1",
            "class_names": (),
            **changes,
        },
    )


def accuracy_gate(**changes: Any) -> AccuracyGate:
    values: dict[str, Any] = {
        "where": WHERE,
        "task": TASK,
        "metric": "acc1",
        "max_drop": Fraction(1, 100),
        **changes,
    }
    return AccuracyGate(**values)


def regression_gate(**changes: Any) -> RegressionGate:
    values: dict[str, Any] = {
        "where": WHERE,
        "task": TASK,
        "metric": "acc1",
        "max_fp16_drop": Fraction(1, 100),
        "max_drop": Fraction(1, 100),
        "max_drop_since_first": Fraction(2, 100),
        **changes,
    }
    return RegressionGate(**values)


def store(
    fp16: Outcomes,
    accepted: Outcomes,
    first: Outcomes | None = None,
    first_fp16: Outcomes | None = None,
) -> StoredPair:
    return StoredPair(
        fp16=store_outcomes(fp16),
        accepted=store_outcomes(accepted),
        first=store_outcomes(first if first is not None else accepted),
        first_fp16=store_outcomes(fp16 if first_fp16 is None else first_fp16),
    )


# -- audits -------------------------------------------------------------------------------------

BLOCKS = 2
ATTENTION_SLOTS: dict[str, Slot] = {
    "q_bmm_quantizer": "q",
    "k_bmm_quantizer": "k",
    "v_bmm_quantizer": "v",
    "bmm2_output_quantizer": "attention_output",
}


def make_quantizer(name: str, **changes: Any) -> Quantizer:
    """Return an enabled FP8 quantizer that ran in the tower that its name says."""
    module, _, own = name.rpartition(".")
    tower: Tower = changes.get("tower", "text" if name.startswith("text") else "vision")
    slots: dict[str, Slot] = {
        "input_quantizer": "input",
        "weight_quantizer": "weight",
        "output_quantizer": "output",
        **ATTENTION_SLOTS,
    }
    values: dict[str, Any] = {
        "name": name,
        "module": module,
        "module_class": "CLIPAttention" if own in ATTENTION_SLOTS else "Linear",
        "slot": slots.get(own, "other"),
        "tower": tower,
        "block": 0,
        "enabled": True,
        "format": "E4M3",
        "granularity": "per-tensor",
        "dynamic": False,
        "amax_min": 1.0,
        "amax_max": 1.0,
        "amax_finite": True,
        "amax_count": 1,
        "tower_calls": {} if tower == "other" else {tower: 1},
        "changed": True,
        "clipped": 0,
        "seen": 10_000,
        **changes,
    }
    return Quantizer(**values)


def make_module(name: str, kind: str, **changes: Any) -> Module:
    classes = {
        "linear": "Linear",
        "norm": "LayerNorm",
        "embedding": "Embedding",
        "attention": "CLIPAttention",
        "mha": "MultiheadAttention",
        "other": "Parameter",
    }
    values: dict[str, Any] = {
        "name": name,
        "class_name": classes[kind],
        "kind": kind,
        "tower": "text" if name.startswith("text") else "vision",
        "block": 0,
        "weights_count": 0 if kind in ("attention", "norm") else 1000,
        **changes,
    }
    return Module(**values)


def make_operation(module: str, function: str = "linear", **changes: Any) -> Operation:
    """Return an operation on quantized operands; `quantized` sets another truth for all."""
    operands = ("q", "k", "v") if function in ("attention", "matmul") else ("input", "weight")
    operands = changes.pop("operands", operands)
    quantized = changes.pop("quantized", True)
    values: dict[str, Any] = {
        "module": module,
        "module_class": "CLIPAttention" if function == "attention" else "Linear",
        "function": function,
        "tower": "text" if module.startswith("text") else "vision",
        "block": 0,
        "operands": operands,
        "operands_quantized": (quantized,) * len(operands),
        "weights_count": 0 if function in ("attention", "matmul") else 1000,
        **changes,
    }
    return Operation(**values)


def make_audit(*, blocks: int = BLOCKS, **changes: Any) -> Audit:
    """Return a CLIP of two towers with so many blocks each, all quantized and seen running."""
    modules: list[Module] = []
    quantizers: list[Quantizer] = []
    operations: list[Operation] = []
    for tower in ("vision", "text"):
        if tower == "text":
            modules.append(make_module("text_model.token_embedding", "embedding"))
        for block in range(blocks):
            prefix = f"{tower}_model.layers.{block}"
            attention, linear = f"{prefix}.self_attn", f"{prefix}.mlp.fc1"
            modules += [
                make_module(f"{prefix}.layer_norm1", "norm"),
                make_module(attention, "attention"),
                make_module(linear, "linear"),
            ]
            names = [f"{attention}.{own}" for own in ATTENTION_SLOTS]
            names += [f"{linear}.input_quantizer", f"{linear}.weight_quantizer"]
            quantizers += [make_quantizer(name, block=block) for name in names]
            operations += [make_operation(attention, "attention"), make_operation(linear)]
    values: dict[str, Any] = {
        "towers": ("vision", "text"),
        "modules": tuple(modules),
        "quantizers": tuple(quantizers),
        "operations": tuple(operations),
        "excludes": (),
        "intended": tuple(q.name for q in quantizers),
        "disabled_by": (),
        "recipe_name": "fp8-attention",
        "formats": ("E4M3",),
        **changes,
    }
    return Audit(**values)


def matching(audit: Audit, pattern: str) -> tuple[str, ...]:
    """Return the quantizers of an audit that a shell pattern names; at least one."""
    names = tuple(q.name for q in audit.quantizers if fnmatch.fnmatchcase(q.name, pattern))
    assert names, pattern
    return names


def change_quantizers(audit: Audit, pattern: str, **changes: Any) -> Audit:
    """Return an audit with changed quantizers where their names match."""
    hit = set(matching(audit, pattern))
    return replace(
        audit,
        quantizers=tuple(replace(q, **changes) if q.name in hit else q for q in audit.quantizers),
    )


def change_operations(audit: Audit, pattern: str, **changes: Any) -> Audit:
    """Return an audit with changed operations where the names of their modules match."""
    assert any(fnmatch.fnmatchcase(op.module, pattern) for op in audit.operations), pattern
    return replace(
        audit,
        operations=tuple(
            replace(op, **changes) if fnmatch.fnmatchcase(op.module, pattern) else op
            for op in audit.operations
        ),
    )


def switch_off(audit: Audit, pattern: str, *, by: str | None = None) -> Audit:
    """Return an audit whose matching quantizers are off and never ran, with bare operands.

    `by` is the pattern of the recipe that did it.
    """
    off = matching(audit, pattern)
    bare = {(q.module, q.slot) for q in audit.quantizers if q.name in off}
    changed = change_quantizers(audit, pattern, enabled=False, tower_calls={})
    operations = tuple(
        replace(
            op,
            operands_quantized=tuple(
                flag and (op.module, name) not in bare
                for name, flag in zip(op.operands, op.operands_quantized, strict=True)
            ),
        )
        for op in changed.operations
    )
    known = changed.disabled_by + tuple((name, by) for name in off if by is not None)
    return replace(changed, operations=operations, disabled_by=known)


def exclude(audit: Audit, pattern: str) -> Audit:
    """Return an audit after `exclude: [pattern]`."""
    found = switch_off(audit, pattern, by=pattern)
    return replace(found, excludes=(*audit.excludes, (pattern, matching(audit, pattern))))


def add(audit: Audit, *parts: Module | Quantizer | Operation) -> Audit:
    """Return an audit with further modules, quantizers and operations."""
    return replace(
        audit,
        modules=audit.modules + tuple(p for p in parts if isinstance(p, Module)),
        quantizers=audit.quantizers + tuple(p for p in parts if isinstance(p, Quantizer)),
        operations=audit.operations + tuple(p for p in parts if isinstance(p, Operation)),
    )


def coverage_gate(**changes: Any) -> CoverageGate:
    return CoverageGate(**{"where": WHERE, **changes})


def make_waiver(*modules: str, **changes: Any) -> Waiver:
    values: dict[str, Any] = {
        "where": WHERE,
        "modules": modules,
        "reason": "no FP8 kernel yet",
        "until": date(2030, 6, 30),
        **changes,
    }
    return Waiver(**values)


# -- the other measurements ---------------------------------------------------------------------


def make_run(**changes: Any) -> CalibrationRun:
    values: dict[str, Any] = {
        "data": "scenes/calibration",
        "samples": 64,
        "batches": 4,
        "tower_batches": {"vision": 4, "text": 4},
        "nonfinite": (),
        "sample_hashes": (("aa", "scene-1"), ("bb", "scene-2")),
        "held_out_samples": 16,
        "held_out_hashes": (("cc", "scene-3"),),
        **changes,
    }
    return CalibrationRun(**values)


def calibration_gate(**changes: Any) -> CalibrationGate:
    return CalibrationGate(**{"where": WHERE, **changes})


def make_tower(tower: Tower, **changes: Any) -> TowerFidelity:
    values: dict[str, Any] = {
        "tower": tower,
        "samples": 512,
        "cosine_mean": 0.9991,
        "cosine_worst": 0.9902,
        "cosine_worst_id": "scene-17",
        "sqnr_mean_db": 27.4,
        "sqnr_worst_db": 17.1,
        "sqnr_worst_id": "scene-42",
        "nonfinite": 0,
        **changes,
    }
    return TowerFidelity(**values)


def make_fidelity(
    *, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **changes: Any
) -> Fidelity:
    """Return the fidelity of both towers; `vision` and `text` change one of them."""
    values: dict[str, Any] = {
        "data": "scenes/test",
        "towers": (make_tower("vision", **(vision or {})), make_tower("text", **(text or {}))),
        **changes,
    }
    return Fidelity(**values)


def fidelity_gate(**changes: Any) -> FidelityGate:
    return FidelityGate(**{"where": WHERE, **changes})


def make_roundtrip(**changes: Any) -> Roundtrip:
    values: dict[str, Any] = {
        "saved_bytes": 4096,
        "equal": {"vision": True, "text": True},
        "max_abs_difference": 0.0,
        "amax_count": 24,
        "amax_different": (),
        "refused": ("state file missing", "one amax changed"),
        "accepted": (),
        **changes,
    }
    return Roundtrip(**values)


def roundtrip_gate() -> RoundtripGate:
    return RoundtripGate(where=WHERE)
