"""JUnit of a joined report: what is red is a failure, what may be missing is skipped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.release.join import join_results
from pytest_quantgate.report.junit import render_junit
from pytest_quantgate.report.model import OwnTestResult, Report
from pytest_quantgate.run.conclusion import Results
from tests.results import GATES, make_result, make_results

PASS, FAIL, UNKNOWN = Status.PASS, Status.FAIL, Status.NOT_MEASURED


def make_report(results: Results) -> Report:
    _, report = join_results([make_result("a.json", results)])
    return report


def read_outcomes(report: Report) -> dict[str, str]:
    root = ElementTree.fromstring(render_junit(report))
    return {
        case.attrib["name"]: next(
            (child.tag for child in case if child.tag != "properties"), "passed"
        )
        for case in root.iter("testcase")
    }


def test_each_gate_is_a_case_with_its_verdict() -> None:
    verdicts = {
        ("clip", "sanity"): PASS,
        ("clip", "coverage"): FAIL,
        ("clip", "accuracy[a]"): UNKNOWN,
    }
    report = make_report(make_results(verdicts))

    assert read_outcomes(report) == dict(
        zip(GATES, ("passed", "failure", "failure", "failure"), strict=True)
    )
    root = ElementTree.fromstring(render_junit(report))
    (suite,) = root
    assert suite.attrib["name"] == "clip.quantgate.yaml"
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("4", "3")
    coverage = suite[1]
    assert coverage.find("failure").attrib["message"] == "FAIL coverage is FAIL"  # type: ignore[union-attr]
    properties = {p.attrib["name"]: p.attrib["value"] for p in coverage.iter("property")}
    assert properties == {"quantgate.status": "FAIL", "quantgate.answered_by": "a.json"}


def test_what_may_be_missing_and_what_is_advisory_is_skipped() -> None:
    results = make_results({("clip", "sanity"): PASS, ("clip", "coverage"): FAIL})
    (collected,) = results.suites
    kinds = ("latency", "accuracy")
    forgiving = replace(results, suites=(replace(collected, allow_unmeasured=kinds),))
    report = make_report(forgiving)
    advisory = replace(report, suites=(replace(report.suites[0], advisory=True),))

    assert list(read_outcomes(report).values()) == ["passed", "failure", "skipped", "skipped"]
    assert list(read_outcomes(advisory).values()) == ["passed"] + ["skipped"] * 3


def test_what_is_of_no_gate_is_a_case_too() -> None:
    verdicts = {("clip", gate): PASS for gate in GATES}
    report = replace(
        make_report(make_results(verdicts, errors=("crash",), stopped="Ctrl-C")),
        incomparable=("the model differs",),
        own_tests=(OwnTestResult(test="tests/t.py::t", status="FAIL", headline="drop"),),
    )

    root = ElementTree.fromstring(render_junit(report))
    messages = [found.attrib["message"] for found in root.iter("failure")]

    assert messages == [
        "a.json: crash",
        "the model differs",
        "stopped early: Ctrl-C in a.json",
        "FAIL drop",
    ]


def test_characters_that_no_xml_holds_are_spelled_out() -> None:
    report = make_report(make_results({("clip", "sanity"): FAIL}, errors=("a\x1b[31m\x00 <&>",)))

    root = ElementTree.fromstring(render_junit(report))

    assert "a.json: a\\x1b[31m\\x00 <&>" in [f.attrib["message"] for f in root.iter("failure")]


def test_a_case_has_its_place_and_what_follows_is_told_in_short() -> None:
    verdicts = {("clip", "sanity"): PASS, ("clip", "coverage"): FAIL, ("clip", "accuracy[a]"): FAIL}
    report = make_report(make_results(verdicts))
    (suite,) = report.suites
    sanity, cause, other, *rest = suite.gates
    cause = replace(cause, where="suites/clip.quantgate.yaml:6")
    other = replace(other, follows="coverage", evidence=("a table",))
    changed = replace(suite, gates=(sanity, cause, other, *rest))

    (found,) = ElementTree.fromstring(render_junit(replace(report, suites=(changed,))))

    assert found[1].attrib["file"] == "suites/clip.quantgate.yaml"
    assert found[1].attrib["line"] == "6"
    failure = found[2].find("failure")
    assert failure is not None
    assert failure.attrib["message"] == "FAIL accuracy: follows from coverage"
    assert "a table" not in (failure.text or "")
