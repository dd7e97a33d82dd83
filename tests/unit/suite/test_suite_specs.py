"""Suites as values: where a key stands, what a gate is called, what `${NAME}` becomes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import NotMeasured, SuiteError
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.calibration import CalibrationGate
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.suite.gates import Gates
from pytest_quantgate.suite.where import Where, expand_environment

WHERE = Where(file="suites/demo.quantgate.yaml", line=3, keys={"root": 5})


def test_place_is_file_and_line() -> None:
    assert str(WHERE) == "suites/demo.quantgate.yaml:3"


def test_key_that_was_written_has_its_own_line() -> None:
    assert WHERE.of("root") == "suites/demo.quantgate.yaml:5"


def test_key_that_was_left_out_has_the_line_of_its_mapping() -> None:
    assert WHERE.of("language") == "suites/demo.quantgate.yaml:3"


def test_key_of_a_gate_is_task_and_metric() -> None:
    limit = Fraction(1, 100)
    accuracy = AccuracyGate(
        where=WHERE, task="scenes/classification", metric="acc1", max_drop=limit
    )
    regression = RegressionGate(
        where=WHERE,
        task="wds/photos/retrieval",
        metric="text_retrieval_recall@5",
        max_fp16_drop=limit,
        max_drop=limit,
        max_drop_since_first=limit,
    )

    assert accuracy.key == "scenes/classification-acc1"
    assert regression.key == "wds/photos/retrieval-text_retrieval_recall@5"


def test_default_limits_are_exact() -> None:
    assert CalibrationGate(where=WHERE).max_clipped == Fraction(1, 1000)
    gate = AccuracyGate(where=WHERE, task="a/classification", metric="acc1", max_drop=Fraction(0))
    assert gate.confidence == Fraction(95, 100)


def test_suite_cannot_be_changed_after_it_is_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Gates().sections = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain/path", "plain/path"),
        ("${DATA}", "/data"),
        ("${DATA}/a/${NAME_2}", "/data/a/two"),
        ("{DATA}", "{DATA}"),
        ("${ODD}/x", "$ {DATA} \\1/x"),
    ],
)
def test_variables_are_replaced_once(text: str, expanded: str) -> None:
    environ = {"DATA": "/data", "NAME_2": "two", "ODD": "$ {DATA} \\1"}

    assert expand_environment(text, where="f:1", environ=environ) == expanded


@pytest.mark.parametrize("environ", [{}, {"DATA": ""}])
def test_unset_variable_is_not_measured_and_named(environ: dict[str, str]) -> None:
    with pytest.raises(NotMeasured) as caught:
        expand_environment("${DATA}/cifar10", where=WHERE.of("root"), environ=environ)

    assert str(caught.value) == (
        "suites/demo.quantgate.yaml:5: environment variable DATA is not set: export DATA=PATH"
    )


@pytest.mark.parametrize("text", ["$DATA", "${DATA", "${}", "${1A}", "${A-B}", "a$", "${A}$", "$$"])
def test_stray_dollar_is_refused_before_any_variable_is_asked_for(text: str) -> None:
    with pytest.raises(SuiteError) as caught:
        expand_environment(text, where="f:1", environ={})

    assert str(caught.value) == (
        f"f:1: {text!r}: '$' must start ${{NAME}} (an environment variable)"
    )


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(before=st.text(), value=st.text(min_size=1), after=st.text())
def test_value_arrives_as_it_is(before: str, value: str, after: str) -> None:
    before, after = before.replace("$", ""), after.replace("$", "")

    text = expand_environment(f"{before}${{A}}{after}", where="f:1", environ={"A": value})

    assert text == before + value + after
