"""Suites as values: where a key stands, what a gate is called, what `${NAME}` becomes."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_quantgate.errors import NotMeasured, SuiteError
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.calibration import CalibrationGate
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.suite.gates import Gates
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.names import list_suites, name_suite
from pytest_quantgate.suite.specs import DatasetSpec
from pytest_quantgate.suite.where import Where, expand_path
from tests.suite_texts import SMALL

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


def test_variables_are_replaced_once(tmp_path: Path) -> None:
    odd = tmp_path / "$ {QUANTGATE_DATA} \\1"
    (odd / "a" / "two").mkdir(parents=True)
    environ = {"QUANTGATE_DATA": str(odd), "QUANTGATE_2": "two"}

    for text, path in (
        ("plain/path", Path("plain/path")),
        ("{QUANTGATE_DATA}", Path("{QUANTGATE_DATA}")),
        ("${QUANTGATE_DATA}", odd),
        ("${QUANTGATE_DATA}/a/${QUANTGATE_2}", odd / "a" / "two"),
    ):
        assert expand_path(text, where="f:1", environ=environ) == path


@pytest.mark.parametrize("environ", [{}, {"QUANTGATE_DATA": ""}])
def test_unset_variable_is_not_measured_and_named(environ: dict[str, str]) -> None:
    with pytest.raises(NotMeasured) as caught:
        expand_path("${QUANTGATE_DATA}/cifar10", where=WHERE.of("root"), environ=environ)

    assert str(caught.value) == (
        "suites/demo.quantgate.yaml:5: environment variable QUANTGATE_DATA is not set: "
        "export QUANTGATE_DATA=PATH"
    )


@pytest.mark.parametrize("text", ["$DATA", "${DATA", "${}", "${1A}", "${A-B}", "a$", "${A}$", "$$"])
def test_stray_dollar_is_refused_before_any_variable_is_asked_for(text: str) -> None:
    with pytest.raises(SuiteError) as caught:
        expand_path(text, where="f:1", environ={})

    assert str(caught.value) == (
        f"f:1: {text!r}: '$' must start ${{NAME}} (an environment variable)"
    )


SECRET = "hunter2-the-value"


@pytest.mark.parametrize("name", ["MY_SECRET", "quantgate_x", "QUANTGATE", "XQUANTGATE_A", "HOME"])
@pytest.mark.parametrize("allowed", ["", "OTHER", "MY_SECRE,Y_SECRET,OM"])
def test_a_variable_that_the_run_does_not_allow_is_refused(name: str, allowed: str) -> None:
    environ = {name: SECRET, "QUANTGATE_ENV": allowed}
    with pytest.raises(SuiteError) as caught:
        expand_path(f"a/${{{name}}}/b", where="f:1", environ=environ)

    assert str(caught.value) == (
        f"f:1: ${{{name}}}: a suite uses the variables QUANTGATE_... alone: call it "
        f"QUANTGATE_{name}, or allow it with pytest --quantgate-env={name} (other commands: "
        f"QUANTGATE_ENV={name})"
    )


def test_a_variable_that_the_run_allows_is_used(tmp_path: Path) -> None:
    environ = {"MODELS": str(tmp_path), "QUANTGATE_ENV": "DATA,MODELS"}

    assert expand_path("${MODELS}", where="f:1", environ=environ) == tmp_path


@pytest.mark.parametrize("value", [SECRET, f"/{SECRET}", SECRET * 30, f"~{SECRET}", f"{SECRET}\0"])
def test_no_message_shows_the_value_of_a_variable(value: str) -> None:
    for text in ("${QUANTGATE_X}", "/${QUANTGATE_X}/y", "${QUANTGATE_X}.yaml"):
        with pytest.raises((NotMeasured, SuiteError)) as caught:
            expand_path(text, where="f:1", environ={"QUANTGATE_X": value})
        assert SECRET not in str(caught.value)
        assert text in str(caught.value)


def test_every_path_of_a_suite_is_looked_at_before_it_is_run(tmp_path: Path) -> None:
    path = tmp_path / "x.quantgate.yaml"
    path.write_text(SMALL, encoding="utf-8")
    suite = load_suite(path)
    for changes in (
        {"model": dataclasses.replace(suite.model, source="transformers", id="${MY_SECRET}")},
        {"quantize": dataclasses.replace(suite.quantize, recipe="${MY_SECRET}")},  # type: ignore[type-var]
        {"datasets": {"x": DatasetSpec(where=WHERE, dataset="wds/x", root="/${MY_SECRET}")}},
    ):
        with pytest.raises(SuiteError, match="MY_SECRET"):
            dataclasses.replace(suite, **changes).check_variables(environ={})
    suite.check_variables(environ={})


@pytest.mark.parametrize(
    ("path", "root", "name"),
    [
        ("/work/team/clip.quantgate.yaml", "/work", "team/clip"),
        ("/work/team/clip.quantgate.yaml", None, "clip"),
        ("./team/../clip.quantgate.yaml", None, "clip"),
    ],
)
def test_a_suite_is_called_by_its_path_below_the_root(
    path: str, root: str | None, name: str
) -> None:
    assert name_suite(Path(path), relative_to=Path(root) if root else None) == name


@pytest.mark.parametrize("name", ["::error::x", "a\x1b[31m", "##[group]x"])
def test_a_name_that_would_act_where_it_is_shown_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.quantgate.yaml"
    path.write_text(SMALL, encoding="utf-8")

    with pytest.raises(SuiteError, match="holds visible characters alone and no command of a CI"):
        load_suite(path)


def test_a_release_is_no_suite(tmp_path: Path) -> None:
    for name in ("b.quantgate.yaml", "a/c.quantgate.yaml", "release.quantgate.yaml", "d.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert [path.name for path in list_suites(tmp_path)] == ["c.quantgate.yaml", "b.quantgate.yaml"]


def test_code_that_a_suite_names_takes_its_trust(tmp_path: Path) -> None:
    path = tmp_path / "x.quantgate.yaml"
    gate = "accuracy: {task: 'digits/ours:task', metric: acc1, max_drop: 1pp}"
    text = SMALL.replace("roundtrip: {}", gate)
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SuiteError, match="yaml:5: accuracy: ours:task is code, which"):
        load_suite(path)
    path.write_text(f"{text}trust: true\nallow_unmeasured: accuracy\n", encoding="utf-8")
    assert load_suite(path).allow_unmeasured == ("accuracy",)


def test_a_hub_id_takes_no_variable(tmp_path: Path) -> None:
    path = tmp_path / "x.quantgate.yaml"
    model = "source: transformers, id: 'org/${QUANTGATE_X}', revision: abc"
    path.write_text(SMALL.replace("source: reference", model), encoding="utf-8")

    with pytest.raises(SuiteError, match="write it out, or begin a path"):
        load_suite(path)
