"""Where a red gate stands: on its line of the suite, for pytest, its reports and its plugins."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from tests.stub_gates import run, write_project

RED = {"coverage": ["FAIL"]}

#: The suite of `write_project` names all of its gates on this line.
LINE = 5


def test_a_failure_is_titled_by_its_node_and_ends_with_its_line(pytester: pytest.Pytester) -> None:
    write_project(pytester.path, verdicts=RED)

    result = run(pytester, "suites")

    result.stdout.re_match_lines(
        [
            r"_+ suites/clip\.quantgate\.yaml::coverage _+$",
            r"FAIL coverage: FAIL as given$",
            rf"suites/clip\.quantgate\.yaml:{LINE}: FAIL$",
            r"FAILED suites/clip\.quantgate\.yaml::coverage - FAIL coverage: FAIL as given$",
        ]
    )
    assert "plugin/" not in result.stdout.str()


def test_verbose_lines_name_node_and_nothing_of_the_plugin(pytester: pytest.Pytester) -> None:
    write_project(pytester.path, verdicts=RED)

    result = run(pytester, "suites", "-vv")

    result.stdout.re_match_lines([r"suites/clip\.quantgate\.yaml::coverage FAILED +\[ *50%\]$"])
    assert "<-" not in result.stdout.str()


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_junit_has_file_and_line(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    write_project(pytester.path, verdicts=RED)

    run(pytester, "suites", "--junitxml=j.xml", "-o", "junit_family=xunit1", *workers)

    cases = ElementTree.parse(pytester.path / "j.xml").getroot().iter("testcase")
    found = {case.get("name"): case for case in cases}
    case = found["coverage"]
    # pytest counts lines from 0 here, for every test.
    assert (case.get("file"), case.get("line")) == ("suites/clip.quantgate.yaml", str(LINE - 1))
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties["quantgate.where"] == f"suites/clip.quantgate.yaml:{LINE}"
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("message", "").startswith("FAIL coverage: FAIL as given")


def test_a_skip_stands_on_its_line(pytester: pytest.Pytester) -> None:
    write_project(pytester.path, verdicts={"coverage": ["NOT_MEASURED"]})

    result = run(pytester, "suites", "-rs")

    result.stdout.re_match_lines(
        [rf"SKIPPED \[1\] suites/clip\.quantgate\.yaml:{LINE}: not measured: coverage: "]
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_whole_words(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    write_project(pytester.path, verdicts=RED)
    stub = pytester.path / "conftest.py"
    text = stub.read_text(encoding="utf-8")
    stub.write_text(text.replace("as given", "with words " * 40), encoding="utf-8")

    result = run(pytester, "suites", "--junitxml=j.xml")

    told = [line for line in result.outlines if "with words" in line and "FAILED" not in line]
    assert len(told) >= 5
    assert all(len(line) <= columns for line in told)
    assert max(map(len, told)) > columns - 12
    assert not any(line.endswith(("wit", "wor", "-")) for line in told)
    assert "with words " * 40 in (pytester.path / "j.xml").read_text(encoding="utf-8")


def test_an_error_of_the_plugin_keeps_its_traceback(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    stub = pytester.path / "conftest.py"
    text = stub.read_text(encoding="utf-8")
    broken = text.replace("        tried = Path", "        assert 0, 'a bug'\n        tried = Path")
    stub.write_text(broken, encoding="utf-8")

    result = run(pytester, "suites")

    assert result.ret == 1
    result.stdout.re_match_lines(
        [r"_+ suites/clip\.quantgate\.yaml::sanity _+$", r"E +AssertionError: a bug"]
    )


def test_a_job_of_github_is_told_the_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path))
    write_project(pytester.path, verdicts=RED)

    result = run(pytester, "suites", "--quantgate-step-summary=off")

    result.stdout.re_match_lines(
        [rf"::error file=suites/clip\.quantgate\.yaml,line={LINE},title=FAIL coverage::FAIL"]
    )
