"""A `Report` -> JUnit XML, one case a gate: for what is concluded where no pytest runs. Pure.

A run of pytest has JUnit from pytest itself (`--junitxml`); the cases are called as there.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from pytest_quantgate.report.model import GateResult, Report, SuiteReport
from pytest_quantgate.text.printable import printable, printable_lines


def render_junit(report: Report) -> str:
    """Return the report as JUnit XML.

    What is not green is a failure, but a gate without a measurement that needs none is skipped, and
    so is whatever an advisory suite finds. What is of no gate is a case of its own.
    """
    root = ElementTree.Element("testsuites", name="pytest-quantgate")
    for suite in report.suites:
        _add_suite(root, suite.file, list(_list_cases(suite)))
    others = [
        _make_case("verdict", "run", failure=line)
        for line in (*report.errors, *report.incomparable, *report.unanswered)
    ]
    if report.stopped:
        others.append(_make_case("verdict", "run", failure=f"stopped early: {report.stopped}"))
    for test in report.own_tests:
        file, _, name = test.test.partition("::")
        red = "" if test.status == "PASS" else f"{test.status} {test.headline}"
        others.append(_make_case(file, name, failure=red, status=test.status))
    if others:
        _add_suite(root, "run", others)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n"


def _list_cases(suite: SuiteReport) -> Iterator[ElementTree.Element]:
    for gate in suite.gates:
        red = "" if gate.status == "PASS" else _explain(gate)
        skipped = suite.advisory or gate.name in suite.allowed_unmeasured
        case = _make_case(
            suite.file, gate.name, failure=red, skipped=skipped, status=gate.status, code=gate.code
        )
        file, _, line = gate.where.rpartition(":")
        if file:
            case.attrib |= {"file": printable(file), "line": line}
            _add_property(case, "quantgate.where", gate.where)
        if gate.follows:
            _add_property(case, "quantgate.follows", gate.follows)
        if gate.answered_by:
            _add_property(case, "quantgate.answered_by", ", ".join(gate.answered_by))
        yield case
    for name in suite.not_run:
        yield _make_case(
            suite.file,
            name,
            failure=f"NOT_MEASURED {name}: did not run: {suite.not_run_because.get(name, '')}",
            skipped=suite.advisory or name in suite.allowed_unmeasured,
            status="NOT_MEASURED",
        )


def _explain(gate: GateResult) -> str:
    if gate.follows:
        return f"{gate.status} {gate.kind}: follows from {gate.follows}\n{gate.headline}"
    lines = [f"{gate.status} {gate.headline}", *gate.evidence]
    lines += [f"likely cause: {gate.cause}"] if gate.cause else []
    lines += [f"next step: {gate.next_step}"] if gate.next_step else []
    return "\n".join(lines)


def _make_case(
    file: str, name: str, *, failure: str, skipped: bool = False, status: str = "", code: str = ""
) -> ElementTree.Element:
    case = ElementTree.Element(
        "testcase", classname=printable(file), name=printable(name), time="0"
    )
    if status:
        _add_property(case, "quantgate.status", status)
    if code:
        _add_property(case, "quantgate.code", code)
    if failure:
        first, *_ = failure.split("\n")
        found = ElementTree.SubElement(
            case, "skipped" if skipped else "failure", message=printable(first)
        )
        found.text = printable_lines(failure)
    return case


def _add_property(case: ElementTree.Element, name: str, value: str) -> None:
    properties = case.find("properties")
    if properties is None:
        properties = ElementTree.SubElement(case, "properties")
    ElementTree.SubElement(properties, "property", name=name, value=printable(value))


def _add_suite(root: ElementTree.Element, name: str, cases: list[ElementTree.Element]) -> None:
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=printable(name),
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors="0",
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
    )
    suite.extend(cases)
