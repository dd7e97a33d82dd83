"""The `quantgate` command: what it prints, what it returns, and that it never shows a traceback."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from pytest_quantgate import __version__
from pytest_quantgate.commands.cli import COMMANDS, main
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.store.baselines import Store, next_record, write_obtained
from pytest_quantgate.store.records import canonical_text, parse_record
from pytest_quantgate.suite.schema import json_schema

SHIPPED = sorted((Path(__file__).parents[2] / "suites").glob("*.quantgate.yaml"))
KEY = "scenes/classification-acc1"

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates: {roundtrip: {}}
"""

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def obtained() -> Path:
    """Write one obtained record and return its file."""
    outcomes = Outcomes(
        task="scenes/classification",
        metric="acc1",
        variant="fp16",
        ids=("a", "b"),
        correct=(True, False),
        answers=(0, 0),
        labels=(0, 1),
        class_names=("x", "y"),
        value=0.5,
        data_digest="d" * 64,
    )
    record = next_record(
        None,
        suite="demo",
        key=KEY,
        task="scenes/classification",
        metric="acc1",
        fp16=outcomes,
        quantized=outcomes,
        fingerprint=Fingerprint(
            model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64
        ),
        versions={},
        today=date(2026, 11, 21),
        reason="measured",
    )
    return write_obtained(Path("obtained"), replace(record, verdicts={"sanity": "PASS"}))


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- validate -------------------------------------------------------------------------------------


def test_valid_suites_are_said_to_be(capsys: Captured) -> None:
    one, two = write("suites/one.quantgate.yaml", SUITE), write("two.quantgate.yaml", SUITE)

    assert main(["validate", str(one), str(two)]) == 0

    out, err = capsys.readouterr()
    assert out == ("suites/one.quantgate.yaml: valid (one)\ntwo.quantgate.yaml: valid (two)\n")
    assert err == ""


def test_shipped_suites_are_valid() -> None:
    assert SHIPPED
    assert main(["validate", *map(str, SHIPPED)]) == 0


def test_every_invalid_suite_is_shown_and_valid_ones_still(capsys: Captured) -> None:
    bad = write("bad.quantgate.yaml", SUITE.replace("samples", "sampels"))
    good = write("good.quantgate.yaml", SUITE)

    assert main(["validate", str(bad), "missing.quantgate.yaml", str(good)]) == 1

    out, err = capsys.readouterr()
    assert out == "good.quantgate.yaml: valid (good)\n"
    assert err == (
        "bad.quantgate.yaml:3: calibration.sampels: unknown key; did you mean samples?\n"
        "missing.quantgate.yaml:1: cannot read the suite: No such file or directory\n"
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff\xfe",
        b"[" * 5000,
        b"a: &a [*a]",
        b'a: "\\UFFFFFFFF"',
        b"%YAML 1." + b"9" * 5000 + b"\n---\na",
        b"!!python/object/apply:os.system [id]",
        "\u202e\U0001f600: \u0301".encode(),
    ],
    ids=lambda data: ascii(data[:12]),
)
def test_any_file_is_refused_in_one_line(capsys: Captured, data: bytes) -> None:
    Path("x.quantgate.yaml").write_bytes(data)

    assert main(["validate", "x.quantgate.yaml"]) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("x.quantgate.yaml:1: ")
    assert err.count("\n") == 1


def test_directory_without_suites_is_refused(capsys: Captured) -> None:
    assert main(["validate", "."]) == 1
    assert capsys.readouterr().err == ".: no *.quantgate.yaml below this folder\n"


# -- schema ---------------------------------------------------------------------------------------


def test_schema_is_printed_as_json(capsys: Captured) -> None:
    assert main(["schema"]) == 0

    out, err = capsys.readouterr()
    assert json.loads(out) == json_schema()
    assert out.startswith('{\n  "$schema": ')
    assert out.endswith("}\n")
    assert err == ""


# -- accept ---------------------------------------------------------------------------------------


def test_obtained_results_become_baselines(capsys: Captured, obtained: Path) -> None:
    assert main(["accept", "obtained", "--reason", "looked at it"], environ={}) == 0

    name = "baselines/demo/regression-scenes--classification-acc1.json"
    history = "history written: baselines/demo/history.jsonl\n"
    attributes = "history written: baselines/.gitattributes\n"
    assert capsys.readouterr() == (f"baseline written: {name}\n{history}{attributes}", "")
    record = Store(Path("baselines")).read("demo", KEY)
    assert record is not None
    assert record.reason == "looked at it"
    assert obtained.exists()


def test_baselines_may_be_elsewhere(obtained: Path) -> None:
    arguments = ["accept", "obtained", "--baselines", "kept/here", "--reason", "r"]

    assert main(arguments, environ={}) == 0
    assert Store(Path("kept/here")).read("demo", KEY) is not None
    assert not Path("baselines").exists()


@pytest.mark.parametrize("variable", ["CI", "BUILD_NUMBER"])
def test_accepting_under_ci_is_refused(capsys: Captured, obtained: Path, variable: str) -> None:
    arguments = ["accept", "obtained", "--reason", "r"]

    assert main(arguments, environ={variable: "1"}) == 1
    assert capsys.readouterr().err == (
        f"quantgate: quantgate accept would write baselines under CI ({variable} is set): "
        f"run it where somebody reviews the change, or add --allow-ci-write\n"
    )
    assert not Path("baselines").exists()

    assert main([*arguments, "--allow-ci-write"], environ={variable: "1"}) == 0
    assert Path("baselines").exists()


def test_real_environment_is_asked_by_default(
    capsys: Captured, obtained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")

    assert main(["accept", "obtained", "--reason", "r"]) == 1
    assert "(CI is set)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "reason", "words"),
    [
        ("nowhere", "r", "nowhere is no directory: nothing to accept"),
        (".", " ", "accepting needs a reason: it is kept in the baseline"),
        ("empty", "r", "empty holds no obtained results: nothing to accept"),
    ],
)
def test_accept_without_anything_to_take_is_refused(
    capsys: Captured, folder: str, reason: str, words: str
) -> None:
    Path("empty").mkdir()

    assert main(["accept", folder, "--reason", reason], environ={}) == 1
    assert capsys.readouterr() == ("", f"quantgate: {words}\n")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "NaN", "[" * 100_000])
def test_file_of_another_kind_is_refused_in_one_line(
    capsys: Captured, obtained: Path, text: str
) -> None:
    obtained.write_text(text)

    assert main(["accept", "obtained", "--reason", "r"], environ={}) == 1

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"quantgate: {obtained}: damaged baseline: ")
    assert err.count("\n") == 1
    assert not Path("baselines").exists()


def test_record_that_climbs_out_is_refused(capsys: Captured, obtained: Path) -> None:
    record = replace(parse_record(obtained.read_text()), suite="../../demo")
    obtained.write_text(canonical_text(record))

    assert main(["accept", "obtained", "--reason", "r"], environ={}) == 1
    assert capsys.readouterr().err == (
        "quantgate: suite '../../demo' is not below the root of this run, so its baselines have no "
        "place: run pytest with --rootdir=FOLDER, a folder above the suite\n"
    )


def test_baselines_that_are_a_file_cannot_be_written(capsys: Captured, obtained: Path) -> None:
    write("baselines", "")

    assert main(["accept", "obtained", "--reason", "r"], environ={}) == 1
    assert capsys.readouterr().err == (
        "quantgate: cannot write baselines/demo/regression-scenes--classification-acc1.json: "
        "Not a directory; what was there is unchanged\n"
    )


# -- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["polish"], "invalid choice: 'polish'"),
        (["validate"], "the following arguments are required: SUITE"),
        (["schema", "x"], "invalid choice: 'x'"),
        (["accept", "obtained"], "the following arguments are required: --reason"),
        (["accept", "--reason", "r"], "the following arguments are required: OBTAINED"),
    ],
)
def test_wrong_usage_is_status_two(capsys: Captured, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: quantgate ")
    assert words in err


def test_without_a_command_all_of_them_are_shown(capsys: Captured) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: quantgate " in err
    assert all(f"\n    {name}" in err for name in COMMANDS)


def test_version_is_printed(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"quantgate {__version__}\n"


@pytest.mark.parametrize(("text", "status"), [(SUITE, 0), ("x", 1)])
def test_status_of_the_program_is_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch, text: str, status: int
) -> None:
    write("x.quantgate.yaml", text)
    monkeypatch.setattr(sys, "argv", ["quantgate", "validate", "x.quantgate.yaml"])

    with pytest.raises(SystemExit) as caught:
        runpy.run_path(
            str(Path(__file__).parents[2] / "pytest_quantgate" / "__main__.py"), run_name="__main__"
        )

    assert caught.value.code == status


def test_an_error_of_a_file_is_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def fail(*_arguments: object, **_options: object) -> int:
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setattr("pytest_quantgate.commands.schema.run", fail)

    assert main(["schema"]) == 1
    assert capsys.readouterr().err == "quantgate: some/file: No space left on device\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_sentences_of_help_fit_a_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([name, "--help"])

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("  ")] == []
