"""Plugins that teams have: a red gate is red for each of them, and all say one verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from tests.stub_gates import CONFTEST, write_project

RED = {"coverage": ["FAIL"]}


def run(pytester: pytest.Pytester, modules: Sequence[str], *arguments: str) -> pytest.RunResult:
    """Run pytest in a process of its own with these plugins and ours; its report is out.json."""
    options = [part for name in ("pytest_quantgate.plugin", *modules) for part in ("-p", name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_subprocess(
            *options, "suites", "--quantgate-json=out.json", *arguments
        )


def conclude(pytester: pytest.Pytester) -> str:
    data = json.loads((pytester.path / "out.json").read_text(encoding="utf-8"))
    return str(data["conclusion"]["sentence"])


def test_randomly_shuffles_gates_and_mixes_no_suites(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_randomly")
    write_project(pytester.path, verdicts=RED, suites=("clip", "siglip", "vit"))

    for seed in range(3):
        result = run(pytester, ["pytest_randomly"], "-v", f"--randomly-seed={seed}")

        ran = re.findall(r"suites/(\w+)\.quantgate\.yaml::(\w+) \w+ +\[", result.stdout.str())
        suites = [suite for suite, _ in ran]
        turns = [suite for n, suite in enumerate(suites) if n == 0 or suites[n - 1] != suite]
        assert len(ran) == 12
        assert len(turns) == 3
        assert result.ret == 1
        assert conclude(pytester) == "Do not ship: 3 of 3 suites: clip, siglip, vit"


def test_a_part_of_a_split_is_red_and_no_part_ships_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_split")
    monkeypatch.setenv("CI", "true")
    write_project(pytester.path, verdicts=RED)

    found = {}
    for group in ("1", "2"):
        result = run(pytester, ["pytest_split.plugin"], "--splits=2", f"--group={group}")
        found[conclude(pytester)] = int(result.ret)

    assert found == {"Do not ship: coverage": 1, "Not decided: 2 passed, 2 gates did not run": 1}


def test_a_gate_that_takes_too_long_is_red(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_timeout")
    write_project(pytester.path)
    place = "        tried = Path"
    sleep = "        __import__('time').sleep(9 * (kind == 'coverage'))\n"
    (pytester.path / "conftest.py").write_text(CONFTEST.replace(place, sleep + place), "utf-8")

    result = run(pytester, ["pytest_timeout"], "--timeout=1", "--timeout-method=signal")

    assert result.ret == 1
    assert conclude(pytester) == "Do not ship: coverage"
    result.stdout.fnmatch_lines(["*Timeout*"])


def test_the_page_of_pytest_html_says_the_same(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_html")
    write_project(pytester.path, verdicts={**RED, "roundtrip": ["NOT_MEASURED"]})

    result = run(
        pytester,
        ["pytest_metadata.plugin", "pytest_html.plugin", "pytest_html.fixtures"],
        "--html=page.html",
        "--self-contained-html",
    )

    page = (pytester.path / "page.html").read_text(encoding="utf-8")
    assert result.ret == 1
    assert conclude(pytester) == "Do not ship: coverage"
    outcomes = re.findall(r"&#34;result&#34;: &#34;(\w+)&#34;", page)
    assert sorted(outcomes) == ["Failed", "Passed", "Passed", "Skipped"]
    assert "FAIL coverage: FAIL as given" in page


def test_the_report_of_json_report_says_the_same(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_jsonreport")
    write_project(pytester.path, verdicts=RED)

    result = run(
        pytester,
        ["pytest_metadata.plugin", "pytest_jsonreport.plugin"],
        "--json-report",
        "--json-report-file=theirs.json",
    )

    theirs = json.loads((pytester.path / "theirs.json").read_text(encoding="utf-8"))
    outcomes = {test["nodeid"].rpartition("::")[2]: test["outcome"] for test in theirs["tests"]}
    assert (result.ret, theirs["exitcode"]) == (1, 1)
    assert conclude(pytester) == "Do not ship: coverage"
    assert outcomes.pop("coverage") == "failed"
    assert set(outcomes.values()) == {"passed"}


def test_one_annotation_where_a_plugin_annotates(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_github_actions_annotate_failures")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(pytester.path))
    write_project(pytester.path, verdicts=RED)

    result = run(
        pytester, ["pytest_github_actions_annotate_failures.plugin"], "--quantgate-step-summary=off"
    )

    told = [*result.outlines, *result.errlines]
    (mark,) = [line for line in told if line.startswith("::error")]
    assert mark.startswith("::error file=suites/clip.quantgate.yaml,line=5::coverage")


def test_reruns_and_workers_turn_nothing_green(pytester: pytest.Pytester) -> None:
    for name in ("pytest_rerunfailures", "xdist", "pytest_timeout"):
        pytest.importorskip(name)
    write_project(pytester.path, verdicts={"coverage": ["FAIL", "PASS"]})
    modules = ["xdist.plugin", "pytest_rerunfailures", "pytest_timeout"]

    result = run(pytester, modules, "--reruns=2", "-n2", "--timeout=60")

    assert result.ret == 1
    assert conclude(pytester) == "Do not ship: coverage"
