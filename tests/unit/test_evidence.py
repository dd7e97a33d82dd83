"""Measurements: what is written is read back whole, and what is damaged is refused."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate import evidence
from pytest_quantgate.evidence.audit import Quantizer
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fidelity import Fidelity
from pytest_quantgate.evidence.outcomes import Outcomes, StoredOutcomes
from pytest_quantgate.evidence.sensitivity import Repair

KINDS = [
    value
    for module in pkgutil.iter_modules(evidence.__path__, f"{evidence.__name__}.")
    for value in vars(importlib.import_module(module.name)).values()
    if isinstance(value, type)
    and dataclasses.is_dataclass(value)
    and value.__module__ == module.name
]

OUTCOMES = Outcomes(
    task="scenes/classification",
    metric="acc1",
    variant="fp16",
    ids=("a", "b"),
    correct=(True, False),
    answers=(3, 1),
    labels=(3, 2),
    class_names=("cat", "dog"),
    value=0.5,
    data_digest="d" * 64,
)

QUANTIZER = Quantizer(
    name="vision.q_proj.input_quantizer",
    module="vision.q_proj",
    module_class="QuantLinear",
    slot="input",
    tower="vision",
    block=0,
    enabled=True,
    format="E4M3",
    granularity="per-tensor",
    dynamic=False,
    amax_min=1.5,
    amax_max=None,
    amax_finite=True,
    amax_count=1,
    tower_calls={"vision": 2, "text": 3},
    changed=True,
)

#: A recipe is whatever ModelOpt's configuration holds.
PLAIN = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    max_size=3,
)

Change = Callable[[dict[str, Any]], object]


def same(one: Any, other: Any) -> bool:
    """Equality in which NaN equals NaN."""
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, tuple):
        return (
            isinstance(other, tuple)
            and len(one) == len(other)
            and all(same(a, b) for a, b in zip(one, other, strict=True))
        )
    if isinstance(one, Mapping):  # hypothesis gives them in several types
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_comes_back_as_it_was(kind: type) -> None:
    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(value=st.builds(Repair, recipe=PLAIN) if kind is Repair else st.from_type(kind))
    def check(value: Any) -> None:
        text = json.dumps(to_json(value), allow_nan=False)
        assert same(value, from_json(kind, json.loads(text)))

    check()


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (0.25, 0.25)],
)
def test_value_that_json_cannot_hold_becomes_a_word(value: float, text: object) -> None:
    written = to_json(dataclasses.replace(OUTCOMES, value=value))

    assert written["value"] == text
    assert same(from_json(Outcomes, written).value, value)


def test_whole_number_is_read_as_a_float() -> None:
    read = from_json(Outcomes, {**to_json(OUTCOMES), "value": 1})

    assert type(read.value) is float


def test_field_with_a_default_may_be_absent() -> None:
    """A cache that an older release wrote is still read."""
    written = to_json(OUTCOMES)
    del written["nonfinite"]

    assert from_json(Outcomes, written).nonfinite == 0


def test_calls_are_those_of_both_towers() -> None:
    assert QUANTIZER.calls == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("ids"), "Outcomes: field 'ids' is missing"),
        (lambda d: d.update(more=1, extra=2), "Outcomes: unknown fields ['extra', 'more']"),
        (lambda d: d.update(ids="ab"), "Outcomes.ids: expected a list, found str"),
        (lambda d: d.update(ids=None), "Outcomes.ids: expected a list, found NoneType"),
        (lambda d: d.update(ids=[1]), "Outcomes.ids: expected str, found 1"),
        (lambda d: d.update(correct=[1]), "Outcomes.correct: expected bool, found 1"),
        (lambda d: d.update(answers=[True]), "Outcomes.answers: expected int, found True"),
        (lambda d: d.update(answers=[1.0]), "Outcomes.answers: expected int, found 1.0"),
        (lambda d: d.update(value="high"), "Outcomes.value: expected float, found 'high'"),
        (lambda d: d.update(value="0.5"), "Outcomes.value: expected float, found '0.5'"),
        (lambda d: d.update(value=True), "Outcomes.value: expected float, found True"),
        (lambda d: d.update(value=None), "Outcomes.value: expected float, found None"),
        (lambda d: d.update(value=[]), "Outcomes.value: expected float, found []"),
        (lambda d: d.update(task=None), "Outcomes.task: expected str, found None"),
    ],
)
def test_damaged_outcomes_are_refused(change: Change, words: str) -> None:
    written = to_json(OUTCOMES)
    change(written)

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        from_json(Outcomes, written)

    assert str(caught.value) == words


def test_number_beyond_all_floats_is_refused() -> None:
    written = {**to_json(OUTCOMES), "value": 10**400}

    with pytest.raises(ValueError, match="expected float, found an integer out of range"):
        from_json(Outcomes, written)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: d.update(tower="audio"),
            "Quantizer.tower: 'audio' is none of ('vision', 'text', 'other')",
        ),
        (lambda d: d.update(tower=["vision"]), "Quantizer.tower: ['vision'] is none of "),
        (lambda d: d.update(slot=None), "Quantizer.slot: None is none of "),
        (lambda d: d.update(block="0"), "Quantizer.block: expected int, found '0'"),
        (lambda d: d.update(amax_min="huge"), "Quantizer.amax_min: expected float, found 'huge'"),
    ],
)
def test_damaged_quantizer_is_refused(change: Change, words: str) -> None:
    written = to_json(QUANTIZER)
    change(written)

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        from_json(Quantizer, written)

    assert str(caught.value).startswith(words)


def test_pair_of_another_length_is_refused() -> None:
    written = to_json(Fidelity(data="scenes/test", towers=(), worst_layers=(("a", 1.0),)))
    written["worst_layers"][0].append(2.0)

    with pytest.raises(ValueError, match="expected 2 items, found 3"):
        from_json(Fidelity, written)


@pytest.mark.parametrize("data", [None, [], "x", 1, True])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="StoredOutcomes: expected a mapping, found "):
        from_json(StoredOutcomes, data)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from([field.name for field in dataclasses.fields(Outcomes)]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
        ),
        max_leaves=5,
    ),
)
def test_any_damage_to_a_field_is_read_or_refused_with_value_error(name: str, value: Any) -> None:
    try:
        read = from_json(Outcomes, {**to_json(OUTCOMES), name: value})
    except ValueError:
        return
    again = from_json(Outcomes, to_json(read))
    assert same(read, again)
