"""No limit of any gate is kept by what has lost everything: it fails, or the loader refuses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from pytest_quantgate.evidence.parity import Parity, TowerParity
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import judge_accuracy
from pytest_quantgate.gates.coverage import judge_coverage
from pytest_quantgate.gates.drift import DriftSlicesSpec
from pytest_quantgate.gates.fidelity import judge_fidelity
from pytest_quantgate.gates.parity import ParityGate, judge_parity
from pytest_quantgate.gates.regression import judge_regression
from pytest_quantgate.gates.slices import SlicesSpec
from pytest_quantgate.suite.gates import list_kinds
from pytest_quantgate.suite.keys import Key, keys_of
from pytest_quantgate.suite.quantities import QuantityError
from tests.unit.gates.calibration_builders import AUDIT, judge, with_batch
from tests.unit.gates.coverage_builders import TODAY
from tests.unit.gates.gate_builders import (
    WHERE,
    accuracy_gate,
    change_quantizers,
    coverage_gate,
    exclude,
    fidelity_gate,
    make_audit,
    make_fidelity,
    make_outcomes,
    regression_gate,
    store,
)

#: Quantities that are no limit, or that a check of their own refuses, with a test of it.
OTHERS = {
    "confidence": "how sure a verdict is",
    "published": "what FP16 is held against; its tolerance is the limit",
    "accuracy.max_drop": "100pp leaves it to other limits: tests below",
    "accuracy.tolerance": "depends on published: test below",
    "load.max_late": "refused at 100pp by LoadGate.check: test_gate_load",
}

RIGHT, NONE_RIGHT = (
    make_outcomes([value] * 1000, variant=variant)
    for value, variant in ((True, "fp16"), (False, "fp8"))
)
LIGHTS = {"light": ["day"] * 500 + ["night"] * 500}


def lose_accuracy(limit: Any, **gate: Any) -> Verdict:
    limits = {name: limit for name, value in gate.items() if value is ...}
    return judge_accuracy(
        fp16=RIGHT,
        quantized=NONE_RIGHT,
        gate=accuracy_gate(max_drop=Fraction(1), **{**gate, **limits}),
        columns=LIGHTS,
    )


def lose_against_baseline(limit: Any, key: str, *, slices: bool = False) -> Verdict:
    wide: dict[str, Any] = dict.fromkeys(
        ("max_fp16_drop", "max_drop", "max_drop_since_first"), Fraction(1)
    )
    if slices:
        by: dict[str, Any] = {"max_drop": Fraction(1), key: limit}
        wide["slices"] = DriftSlicesSpec(where=WHERE, by=(("light",),), **by)
    else:
        wide[key] = limit
    good, bad = RIGHT, replace(NONE_RIGHT, variant="fp16")
    return judge_regression(
        fp16=bad if key == "max_fp16_drop" else good,
        quantized=replace(NONE_RIGHT if key != "max_fp16_drop" else RIGHT, variant="fp8"),
        stored=store(good, replace(RIGHT, variant="fp8")),
        differences=(),
        create_command="create",
        update_command="update",
        gate=regression_gate(**wide),
        columns=LIGHTS,
        chance=-1.0,  # another finding, with a test of its own
    )


def lose_fidelity(limit: Any, key: str) -> Verdict:
    zeros = {"cosine_mean": 0.0, "cosine_worst": 0.0, "sqnr_mean_db": 0.0, "sqnr_worst_db": 0.0}
    return judge_fidelity(make_fidelity(vision=zeros), gate=fidelity_gate(**{key: limit}))


def lose_parity(limit: Any, key: str) -> Verdict:
    fine: dict[str, Any] = {
        "error": 1e-4,
        "floor": 3e-5,
        "quantization_error": 0.07,
        "sqnr_onnx_db": 23.0,
    }
    broken = {"error": 1.0} if key == "max_error" else {"sqnr_onnx_db": 0.0}
    towers = tuple(
        TowerParity(
            tower=tower,
            samples=64,
            sqnr_torch_db=23.0,
            nonfinite=0,
            optimization="basic",
            **{**fine, **broken},
        )
        for tower in ("vision", "text")
    )
    gate = ParityGate(where=WHERE, **{key: limit})
    return judge_parity(Parity(towers=towers, runtime="ONNX Runtime"), gate=gate)


def clip_all(limit: Any) -> Verdict:
    seen = 10_000
    audit = change_quantizers(
        AUDIT,
        "*input_quantizer",
        clipped=seen,
        seen=seen,
        clipped_samples=100,
        clipped_squares=100 * (seen // 100) ** 2,
    )
    return judge(audit, max_clipped=limit)


def by_slices(limit: Any) -> SlicesSpec:
    return SlicesSpec(where=WHERE, by=(("light",),), max_drop=limit)


#: What a gate says of the worst that there can be, by the limit that it is held against.
LOST: dict[str, Callable[[Any], Verdict]] = {
    "coverage.min_quantized": lambda limit: judge_coverage(
        exclude(make_audit(), "*"), gate=coverage_gate(min_quantized=limit), today=TODAY
    ),
    "calibration.max_clipped": clip_all,
    "calibration.max_batch_change": lambda limit: judge(
        with_batch(AUDIT, change=1.0), max_batch_change=limit
    ),
    "fidelity.min_cosine": lambda limit: lose_fidelity(limit, "min_cosine"),
    "fidelity.min_worst_cosine": lambda limit: lose_fidelity(limit, "min_worst_cosine"),
    "fidelity.min_sqnr": lambda limit: lose_fidelity(limit, "min_sqnr_db"),
    "fidelity.min_worst_sqnr": lambda limit: lose_fidelity(limit, "min_worst_sqnr_db"),
    "accuracy.floor": lambda limit: lose_accuracy(limit, floor=...),
    "accuracy.max_flips": lambda limit: lose_accuracy(limit, max_flips=...),
    "accuracy.max_class_drop": lambda limit: lose_accuracy(limit, max_class_drop=...),
    "accuracy.slices.max_drop": lambda limit: lose_accuracy(0, slices=by_slices(limit)),
    "regression.max_fp16_drop": lambda limit: lose_against_baseline(limit, "max_fp16_drop"),
    "regression.max_drop": lambda limit: lose_against_baseline(limit, "max_drop"),
    "regression.max_drop_since_first": lambda limit: lose_against_baseline(
        limit, "max_drop_since_first"
    ),
    "regression.slices.max_drop": lambda limit: lose_against_baseline(
        limit, "max_drop", slices=True
    ),
    "regression.slices.max_drop_since_first": lambda limit: lose_against_baseline(
        limit, "max_drop_since_first", slices=True
    ),
    "parity.max_error": lambda limit: lose_parity(limit, "max_error"),
    "parity.max_sqnr_change": lambda limit: lose_parity(limit, "max_sqnr_change_db"),
}


def list_quantities(section: type, name: str) -> Iterator[tuple[str, Key]]:
    for key_name, (_, key) in keys_of(section).items():
        inner = key.schema.get("section")
        if inner is not None:
            yield from list_quantities(inner, f"{name}.{key_name}")
        if key.parse is not None:
            yield f"{name}.{key_name}", key


QUANTITIES = dict(
    found for kind in list_kinds() for found in list_quantities(kind.section, kind.name)
)


def accepts(key: Key, text: object) -> bool:
    assert key.parse is not None
    try:
        key.parse(text)
    except QuantityError:
        return False
    return True


def is_endless(key: Key) -> bool:
    """Return whether some measured value is over every limit: of ratios, sizes and times."""
    return any(accepts(key, text) for text in ("1000x", "1GiB", "3600s"))


def test_every_quantity_of_every_gate_is_looked_at_here() -> None:
    """A new key is a limit with what fails it, one without an end, or something else by name."""
    missing = [
        name
        for name, key in QUANTITIES.items()
        if name not in LOST
        and name not in OTHERS
        and name.rpartition(".")[2] not in OTHERS
        and not is_endless(key)
    ]

    assert not missing
    assert set(LOST) <= set(QUANTITIES)


@pytest.mark.parametrize("name", LOST)
def test_what_has_lost_everything_keeps_no_limit_that_can_be_written(name: str) -> None:
    key = QUANTITIES[name]
    assert key.parse is not None
    assert key.reach is not None
    edge = key.reach.under if key.reach.under != "" else key.reach.over

    assert not accepts(key, edge)
    loosest = key.parse(step_inside(edge, down=key.reach.under != ""))
    assert LOST[name](loosest).status is not Status.PASS


def step_inside(edge: str | float, *, down: bool) -> str | float:
    """Return the last value before an edge that can be written."""
    if not isinstance(edge, str):
        return math.nextafter(edge, -1 if down else 1)
    number = edge.removesuffix("%").removesuffix("pp").removesuffix("dB")
    return f"{float(number) + (-1 if down else 1) * 1e-6:.6f}{edge[len(number) :]}"
