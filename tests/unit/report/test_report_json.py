"""The JSON report: its schema, reading it back, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.errors import ReportError
from pytest_quantgate.report import VERSION
from pytest_quantgate.report.json_report import json_schema, read_report, render_json
from tests.report_builder import make_run


@pytest.fixture
def text(tmp_path: Path) -> str:
    return render_json(make_run(tmp_path).collect())


def test_report_is_valid_by_its_own_schema_and_reads_back(text: str, tmp_path: Path) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(text), schema)

    assert read_report(text, name="r.json") == make_run(tmp_path).collect()


def test_schema_is_closed_and_describes_itself() -> None:
    schema = json_schema()

    assert all(found["additionalProperties"] is False for found in schema["$defs"].values())
    assert all(found["description"] for found in schema["$defs"].values())
    assert schema["$defs"]["Report"]["properties"]["version"] == {"const": VERSION}


def test_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "report"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(version=99),
         "r.json: a report of version 99, here versions 1, 2, 3 and 4 are known: write it again "
         "with this release (--quantgate-json=r.json)"),
        (lambda d: d.update(format="x"),
         "r.json: this is no report: its `format` is not 'pytest-quantgate report'"),
        (lambda d: d["suites"][0].pop("gates"),
         "r.json: damaged report: Report.suites: field 'gates' is missing"),
        (lambda d: d["suites"][0]["tasks"][0].update(samples="many"),
         "r.json: damaged report: Report.suites.tasks.samples: expected int, found 'many'"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str, change: object, words: str) -> None:
    data = json.loads(text)
    change(data)  # type: ignore[operator]

    with pytest.raises(ReportError) as caught:
        read_report(json.dumps(data), name="r.json")

    assert str(caught.value) == words


def test_no_json_is_refused() -> None:
    with pytest.raises(ReportError, match=r"^r\.json: this is no JSON: "):
        read_report("{", name="r.json")


def test_a_report_of_version_1_is_read(text: str) -> None:
    data = json.loads(text)
    data["version"] = 1
    for name in ("own_tests", "stopped"):
        del data[name]
    for suite in data["suites"]:
        del suite["not_run_because"], suite["allowed_unmeasured"]
        for gate in suite["gates"]:
            del gate["attempts"]

    assert read_report(json.dumps(data), name="r.json").own_tests == ()


def test_a_report_of_version_2_has_its_towers_side_by_side(text: str) -> None:
    data = json.loads(text)
    data["version"] = 2
    for suite in data["suites"]:
        for part, name, old in (
            ("calibration", "tower_batches", "batches"),
            ("roundtrip", "equal", "equal"),
        ):
            if suite[part] is not None:
                by_tower = suite[part].pop(name)
                suite[part] |= {f"{tower}_{old}": by_tower[tower] for tower in ("vision", "text")}

    read = read_report(json.dumps(data), name="r.json")

    assert replace(read, version=VERSION) == read_report(text, name="r.json")
    assert any(suite.calibration and suite.calibration.tower_batches for suite in read.suites)
