"""Whatever happens in a run, all that speaks of it says the same.

Exit status, terminal, JSON, HTML, Markdown, JUnit and the action's output are compared with one
another and with what is expected, with and without xdist. The gates' verdicts are given.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

# Imported once: pytester forgets what an inner run has imported.
from pytest_quantgate.report.json_report import read_report
from pytest_quantgate.report.model import Report, SuiteReport
from pytest_quantgate.report.parts import STATUSES, class_of
from tests.stub_gates import GATES, run, write_project

ACTION = Path(__file__).parents[2] / "action.yml"

WORDS = {"PASS": "may ship", "FAIL": "do not ship"}


def mark(text: str, *, gate: str = "coverage") -> str:
    """Return a hook of a conftest that puts a mark on a gate."""
    return (
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n"
        f"        if item.name == {gate!r}:\n"
        f"            item.add_marker(pytest.mark.{text})\n"
    )


def around(before: str = "pass", after: str = "pass", *, gate: str = "calibration") -> str:
    """Return a fixture of a conftest that does something before and after a gate."""
    return (
        "@pytest.fixture(autouse=True)\n"
        "def _around(request):\n"
        f"    here = request.node.name == {gate!r}\n"
        "    if here:\n"
        f"        {before}\n"
        "    yield\n"
        "    if here:\n"
        f"        {after}\n"
    )


#: A hook that takes gates out of a run and tells nobody, as some ways of sharding do.
SHARD = (
    "def pytest_collection_modifyitems(items):\n"
    "    items[:] = [item for item in items if item.name == 'coverage']\n"
)

OWN = """\
import pytest
from pytest_quantgate.assertions import assert_accuracy_drop

FP16 = [True] * 990 + [False] * 10

def check(lost):
    quantized = [True] * (990 - lost) + [False] * (10 + lost)
    assert_accuracy_drop(fp16=FP16, quantized=quantized, max_drop="1pp")

"""


@dataclass(frozen=True, kw_only=True)
class Happening:
    """What happens in a run, and what everyone has to say of it.

    `status` and `sentence` are the conclusion, `exit` the status of pytest. `junit` gives the gates
    (or own tests) of the JUnit file by what became of them: `failed`, `skipped`; the other cases
    passed. `absent` are gates of which JUnit has no case.
    """

    status: str
    exit: int
    sentence: str = ""
    verdicts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    conftest: str = ""
    arguments: Sequence[str] = ()
    own: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    suites: Sequence[str] = ("clip",)
    ci: bool = False
    failed: Sequence[str] = ()
    skipped: Sequence[str] = ()
    absent: Sequence[str] = ()


STRICT = ("--quantgate-strict",)
REST = ("sanity", "calibration", "roundtrip")
LATER = ("calibration", "roundtrip")
MISSING = {"coverage": ["NOT_MEASURED"]}
ALL_MISSING = {gate: ["NOT_MEASURED"] for gate in GATES}
HAPPENINGS = {
    "pass": Happening(status="PASS", exit=0, sentence="May ship: 4 gates passed"),
    "fail": Happening(status="FAIL", exit=1, verdicts={"coverage": ["FAIL"]},
                      sentence="Do not ship: coverage", failed=["coverage"]),
    "inconclusive": Happening(
        status="INCONCLUSIVE", exit=1, verdicts={"coverage": ["INCONCLUSIVE"]}, failed=["coverage"],
        sentence="Not decided: coverage"),
    "incomparable": Happening(
        status="INCOMPARABLE", exit=1, verdicts={"coverage": ["INCOMPARABLE"]}, failed=["coverage"],
        sentence="Not decided: coverage"),
    "not measured": Happening(status="NOT_MEASURED", exit=0, verdicts=MISSING, skipped=["coverage"],
                              sentence="Not decided: coverage not measured"),
    "not measured, CI": Happening(status="NOT_MEASURED", exit=1, ci=True, failed=["coverage"],
                                  verdicts=MISSING,
                                  sentence="Not decided: coverage not measured"),
    "not measured, strict": Happening(status="NOT_MEASURED", exit=1, arguments=STRICT,
                                      verdicts=MISSING, failed=["coverage"],
                                      sentence="Not decided: coverage not measured"),
    "not measured, allowed": Happening(
        status="PASS", exit=0, ci=True, verdicts=MISSING, skipped=["coverage"],
        arguments=["--quantgate-allow-unmeasured=coverage,latency"],
        sentence="May ship: 3 gates passed; allowed to be missing: coverage"),
    "not measured, another allowed": Happening(
        status="NOT_MEASURED", exit=1, ci=True, verdicts=MISSING, failed=["coverage"],
        arguments=["--quantgate-allow-unmeasured=latency"],
        sentence="Not decided: coverage not measured"),
    "nothing measured": Happening(status="NOT_MEASURED", exit=0, skipped=GATES,
                                  verdicts=ALL_MISSING,
                                  sentence="Not decided: none of 4 gates could be measured"),
    "nothing measured, all allowed": Happening(
        status="NOT_MEASURED", exit=1, ci=True, verdicts=ALL_MISSING, skipped=GATES,
        arguments=["--quantgate-allow-unmeasured=coverage,calibration,roundtrip,sanity"],
        sentence="Not decided: none of 4 gates could be measured"),
    "xfail of a red gate": Happening(status="FAIL", exit=1, verdicts={"coverage": ["FAIL"]},
                                     conftest=mark("xfail(reason='wip')"), failed=["coverage"],
                                     sentence="Do not ship: coverage"),
    "xfail of a green gate": Happening(status="PASS", exit=0, conftest=mark("xfail(strict=True)"),
                                       sentence="May ship: 4 gates passed"),
    "xfail of a gate whose fixture fails": Happening(
        status="FAIL", exit=1, conftest=mark("xfail") + around("raise OSError", gate="coverage"),
        sentence="Do not ship: coverage", failed=["coverage"]),
    "xfail that does not run": Happening(status="NOT_MEASURED", exit=0, skipped=["coverage"],
                                         conftest=mark("xfail(run=False, reason='wip')"),
                                         sentence="Not decided: 3 passed, 1 gate did not run"),
    "xfail that does not run, CI": Happening(
        status="NOT_MEASURED", exit=1, ci=True, conftest=mark("xfail(run=False, reason='wip')"),
        failed=["coverage"], sentence="Not decided: 3 passed, 1 gate did not run"),
    "skip": Happening(status="NOT_MEASURED", exit=0, conftest=mark("skip(reason='wip')"),
                      skipped=["coverage"], sentence="Not decided: 3 passed, 1 gate did not run"),
    "skip, strict": Happening(status="NOT_MEASURED", exit=1, conftest=mark("skip(reason='wip')"),
                              arguments=STRICT, failed=["coverage"],
                              sentence="Not decided: 3 passed, 1 gate did not run"),
    "skip, allowed": Happening(
        status="PASS", exit=0, ci=True, conftest=mark("skipif(True, reason='wip')"),
        arguments=["--quantgate-allow-unmeasured=coverage"], skipped=["coverage"],
        sentence="May ship: 3 gates passed; allowed to be missing: coverage"),
    "skip by a fixture, CI": Happening(
        status="NOT_MEASURED", exit=1, ci=True, conftest=around("pytest.skip('no time')"),
        failed=["calibration"], sentence="Not decided: 3 passed, 1 gate did not run"),
    "deselect": Happening(status="NOT_MEASURED", exit=0, arguments=["-k", "coverage"], absent=REST,
                          sentence="Not decided: 1 passed, 3 gates did not run"),
    "deselect, strict": Happening(status="NOT_MEASURED", exit=1, failed=REST,
                                  arguments=["-k", "coverage", *STRICT],
                                  sentence="Not decided: 1 passed, 3 gates did not run"),
    "deselect, CI": Happening(
        status="NOT_MEASURED", exit=1, ci=True, failed=["roundtrip"],
        arguments=["--deselect", "suites/clip.quantgate.yaml::roundtrip"],
        sentence="Not decided: 3 passed, 1 gate did not run"),
    "deselect, allowed": Happening(
        status="PASS", exit=0, absent=["roundtrip"],
        arguments=["-k", "not roundtrip", *STRICT, "--quantgate-allow-unmeasured=roundtrip"],
        sentence="May ship: 3 gates passed; allowed to be missing: roundtrip"),
    "node id, CI": Happening(
        status="NOT_MEASURED", exit=1, ci=True, failed=REST,
        arguments=["suites/clip.quantgate.yaml::coverage"],
        sentence="Not decided: 1 passed, 3 gates did not run"),
    "shard, strict": Happening(status="NOT_MEASURED", exit=1, conftest=SHARD, arguments=STRICT,
                               failed=REST, sentence="Not decided: 1 passed, 3 gates did not run"),
    "rerun, two answers": Happening(
        status="FAIL", exit=1, verdicts={"coverage": ["FAIL", "PASS"]}, arguments=["--reruns", "1"],
        sentence="Do not ship: coverage", failed=["coverage"]),
    "rerun, forced": Happening(
        status="FAIL", exit=1, verdicts={"coverage": ["INCONCLUSIVE", "PASS"]}, failed=["coverage"],
        arguments=["--force-reruns", "2"], sentence="Do not ship: coverage"),
    "rerun, one answer": Happening(
        status="INCONCLUSIVE", exit=1, verdicts={"coverage": ["INCONCLUSIVE"]}, failed=["coverage"],
        arguments=["--reruns", "1"], sentence="Not decided: coverage"),
    "rerun after an error": Happening(
        status="FAIL", exit=1, arguments=["--reruns", "1"], failed=["calibration"],
        conftest=around("f = Path('once'); n = f.exists(); f.touch(); assert n, 'out of memory'"),
        sentence="Do not ship: calibration"),
    "setup error": Happening(status="FAIL", exit=1, conftest=around("raise OSError('no disk')"),
                             sentence="Do not ship: calibration", failed=["calibration"]),
    "teardown error": Happening(
        status="FAIL", exit=1, conftest=around(after="raise OSError('no disk')"),
        sentence="Do not ship: calibration", failed=["calibration"]),
    "two suites": Happening(status="FAIL", exit=1, suites=["clip", "siglip"],
                            verdicts={"coverage": ["FAIL"]}, failed=["coverage"],
                            sentence="Do not ship: 2 of 2 suites: clip, siglip"),
    "one suite of two, CI": Happening(
        status="NOT_MEASURED", exit=1, ci=True, suites=["clip", "siglip"], failed=GATES,
        arguments=["-k", "siglip"],
        sentence="Not decided: none of 4 gates ran (deselected), in clip (1 other of 2 suites may "
                 "ship)"),
    "other tests alone, CI": Happening(
        status="NOT_MEASURED", exit=0, ci=True, own="def test_it(): pass", absent=GATES,
        arguments=["-m", "not quantgate"],
        sentence="Not decided: none of 4 gates ran (deselected)"),
    "own test passes": Happening(status="PASS", exit=0, own=f"{OWN}def test_it(): check(1)",
                                 sentence="May ship: 4 gates and 1 own test passed"),
    "own assertion fails": Happening(
        status="FAIL", exit=1, own=f"{OWN}def test_it(): check(200)", failed=["test_it"],
        sentence="Do not ship: own test test_own.py::test_it"),
    "own assertion is undecided": Happening(
        status="INCONCLUSIVE", exit=1, own=f"{OWN}def test_it(): check(8)", failed=["test_it"],
        sentence="Not decided: own test test_own.py::test_it"),
    "own xfail": Happening(
        status="FAIL", exit=1, own=f"{OWN}@pytest.mark.xfail\ndef test_it(): check(200)",
        failed=["test_it"], sentence="Do not ship: own test test_own.py::test_it"),
    "own test fails after its assertion": Happening(
        status="FAIL", exit=1, own=f"{OWN}def test_it(): check(1); raise OSError",
        failed=["test_it"], sentence="Do not ship: own test test_own.py::test_it"),
    "own assertion cannot be judged": Happening(
        status="FAIL", exit=1, own=f"{OWN}def test_it(): check(2000)", failed=["test_it"],
        sentence="Do not ship: own test test_own.py::test_it"),
    "own fixture fails": Happening(
        status="FAIL", exit=1, own=f"{OWN}@pytest.fixture\ndef broken(): check(200)\n"
                                   "def test_it(broken): pass",
        failed=["test_it"], sentence="Do not ship: own test test_own.py::test_it"),
    "own rerun": Happening(
        status="FAIL", exit=1, arguments=["--reruns", "1"], failed=["test_it"],
        own=f"{OWN}calls = [200, 1]\ndef test_it(): check(calls.pop(0))",
        sentence="Do not ship: own test test_own.py::test_it"),
    "own fixture without a suite": Happening(
        status="FAIL", exit=1, own="def test_it(quantgate_fp16): pass", failed=["test_it"],
        sentence="Do not ship: own test test_own.py::test_it"),
    "a red assertion that is expected": Happening(
        status="PASS", exit=0,
        own=f"{OWN}def test_it():\n    with pytest.raises(AssertionError): check(200)",
        sentence="May ship: 4 gates and 1 own test passed"),
    "an unrelated test fails": Happening(
        status="PASS", exit=1, own="def test_it(): raise OSError", failed=["test_it"],
        sentence="May ship: 4 gates passed"),
    "a suite that cannot be read": Happening(
        status="FAIL", exit=1, arguments=["--continue-on-collection-errors"],
        files={"suites/bad.quantgate.yaml": "quantgate: 1\nmodle: {}\n"},
        failed=["suites.bad.quantgate.yaml"],
        sentence="Do not ship: suites/bad.quantgate.yaml:2: modle: unknown key; did you mean "
                 "model?"),
    "a test module that cannot be read": Happening(
        status="NOT_MEASURED", exit=2, own="import no_such_module", failed=["test_own"],
        absent=GATES,
        sentence="Not decided: none of 4 gates ran (not reached); stopped early: 1 error during "
                 "collection"),
}  # fmt: skip

#: Workers start slowly: these show each way in which word gets from a worker to the controller.
WITH_WORKERS = (
    "pass",
    "fail",
    "not measured, CI",
    "xfail of a red gate",
    "skip, strict",
    "deselect, strict",
    "shard, strict",
    "rerun, two answers",
    "rerun after an error",
    "two suites",
    "other tests alone, CI",
    "own xfail",
    "own rerun",
    "a suite that cannot be read",
)

#: What xdist does in its own way: it stops later, and a worker ends as a whole.
ALONE = {
    "exitfirst": Happening(status="FAIL", exit=1, verdicts={"coverage": ["FAIL"]}, arguments=["-x"],
                           sentence="Do not ship: coverage", failed=["coverage"], absent=LATER),
    "Ctrl-C": Happening(
        status="NOT_MEASURED", exit=2, conftest=around("raise KeyboardInterrupt"), absent=LATER,
        sentence="Not decided: 2 passed, 2 gates did not run; stopped early: KeyboardInterrupt"),
    "Ctrl-C, CI": Happening(
        status="NOT_MEASURED", exit=2, ci=True, conftest=around("raise KeyboardInterrupt"),
        failed=LATER,
        sentence="Not decided: 2 passed, 2 gates did not run; stopped early: KeyboardInterrupt"),
    "pytest.exit with status 0, strict": Happening(
        status="NOT_MEASURED", exit=1, conftest=around("pytest.exit('enough', returncode=0)"),
        arguments=STRICT, failed=LATER,
        sentence="Not decided: 2 passed, 2 gates did not run; stopped early: enough"),
    "pytest.exit with status 0 after a failure": Happening(
        status="FAIL", exit=1, conftest=around("pytest.exit('enough', returncode=0)"),
        verdicts={"coverage": ["FAIL"]}, failed=["coverage"], absent=LATER,
        sentence="Do not ship: coverage"),
    "an internal error": Happening(
        status="FAIL", exit=3, failed=["internal"], absent=["coverage", *LATER],
        conftest="def pytest_runtest_logfinish(nodeid):\n    raise OSError('no disk')\n",
        sentence="Do not ship: pytest itself: OSError: no disk"),
    "one suite of two fails": Happening(
        status="FAIL", exit=1, suites=["clip", "siglip"], conftest=around("raise OSError"),
        arguments=["--deselect", "suites/clip.quantgate.yaml::calibration"], failed=["calibration"],
        sentence="Do not ship: calibration, in siglip"),
}  # fmt: skip
CROWD = {
    "a worker crashes": Happening(
        status="FAIL", exit=1, conftest=around("os._exit(3)"), failed=["calibration"],
        sentence="Do not ship: calibration"),
}  # fmt: skip


@pytest.mark.parametrize("happening", [*HAPPENINGS, *ALONE])
def test_all_say_the_same(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, happening: str
) -> None:
    check(pytester, monkeypatch, {**HAPPENINGS, **ALONE}[happening])


@pytest.mark.parametrize("happening", [*WITH_WORKERS, *CROWD])
def test_all_say_the_same_with_workers(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, happening: str
) -> None:
    workers = "2" if happening in ("fail", "two suites", *CROWD) else "1"
    check(pytester, monkeypatch, {**HAPPENINGS, **CROWD}[happening], "-n", workers)


def check(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    happening: Happening,
    *options: str,
) -> None:
    write_project(
        pytester.path,
        verdicts=happening.verdicts,
        conftest=happening.conftest,
        suites=happening.suites,
    )
    for name, text in happening.files.items():
        (pytester.path / name).write_text(text, encoding="utf-8")
    if happening.own:
        (pytester.path / "test_own.py").write_text(happening.own, encoding="utf-8")
    if happening.ci:
        monkeypatch.setenv("CI", "true")
    paths = [] if any("::" in text for text in happening.arguments) else ["."]
    if "--deselect" in happening.arguments:
        paths = ["."]

    result = run(
        pytester, *paths, *happening.arguments, *options,
        "--quantgate-report=out", "--quantgate-markdown=out/summary.md", "--junitxml=out/junit.xml",
    )  # fmt: skip

    told = Told.read(pytester.path / "out", result)
    assert result.ret == happening.exit, told
    assert told.report.conclusion.status == happening.status, told
    assert told.report.conclusion.sentence == happening.sentence
    told.check_agreement()
    cases = {case.name: case.became for case in told.cases}
    assert {n for n, became in cases.items() if became == "failed"} == set(happening.failed)
    assert {n for n, became in cases.items() if became == "skipped"} == set(happening.skipped)
    assert set(GATES) - set(cases) == set(happening.absent)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of a JUnit file: `status` is the verdict in its properties, empty without."""

    suite: str
    name: str
    became: str
    status: str
    attempts: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """What everyone says of a run."""

    exit: int
    terminal: str
    report: Report
    page: str
    markdown: str
    cases: Sequence[Case]
    action: str

    @classmethod
    def read(cls, folder: Path, result: pytest.RunResult) -> Told:
        root = ElementTree.parse(folder / "junit.xml").getroot()
        return cls(
            exit=int(result.ret),
            terminal=result.stdout.str(),
            report=read_report((folder / "report.json").read_bytes(), name="report.json"),
            page=(folder / "index.html").read_text(encoding="utf-8"),
            markdown=(folder / "summary.md").read_text(encoding="utf-8"),
            cases=[read_case(element) for element in root.iter("testcase")],
            action=run_action_reader(folder / "report.json"),
        )

    def check_agreement(self) -> None:
        """Compare all of them with the JSON report."""
        conclusion = self.report.conclusion
        sign, _ = STATUSES[conclusion.status]
        assert self.action == conclusion.status
        assert f'class="verdict v-{class_of(conclusion.status)}"' in self.page
        assert f"<span>{html.escape(conclusion.sentence, quote=False)}</span>" in self.page
        assert self.markdown.splitlines()[1].startswith(f"## {sign} {conclusion.sentence[:12]}")
        word = WORDS.get(conclusion.status, "not decided")
        assert conclusion.sentence.lower().startswith(f"{word}: ")
        self.check_terminal()
        self.check_junit()
        if conclusion.status != "PASS" and self.exit == 0:
            assert conclusion.status == "NOT_MEASURED"
            assert not any(case.became == "failed" for case in self.cases)

    def check_terminal(self) -> None:
        if self.exit == 3:
            return  # pytest prints no summary of anybody after an error of its own
        suites = self.report.suites
        for suite in suites:
            assert f"\n{suite.name}: {suite.conclusion.sentence}\n" in self.terminal
        sentence = self.report.conclusion.sentence
        run_line = f"\nrun: {sentence[:1].lower()}{sentence[1:]}\n"
        if len(suites) == 1 and suites[0].conclusion.status == self.report.conclusion.status:
            assert run_line in self.terminal or "\nrun: " not in self.terminal
        else:
            assert run_line in self.terminal

    def check_junit(self) -> None:
        """Each gate has one case at most, whose result is that of the report."""
        for suite in self.report.suites:
            cases = [case for case in self.cases if case.suite == suite.name]
            assert len({case.name for case in cases}) == len(cases)
            check_gates(suite, {case.name: case for case in cases})
        own = {test.test.rpartition("::")[2]: test for test in self.report.own_tests}
        for case in self.cases:
            if case.name in own and not case.suite:
                assert (case.became == "passed") == (own[case.name].status == "PASS")
                assert case.status in ("", own[case.name].status)


def check_gates(suite: SuiteReport, cases: Mapping[str, Case]) -> None:
    for gate in suite.gates:
        case = cases[gate.name]
        crashed = "crashed while running" in gate.headline  # by then nobody writes properties
        assert case.status == ("" if crashed else gate.status)
        assert case.attempts == (str(len(gate.attempts)) if gate.attempts else "")
        unmeasured = gate.status == "NOT_MEASURED"
        assert (case.became == "passed") == (gate.status == "PASS")
        assert case.became != "skipped" or unmeasured
    for name in suite.not_run:
        case = cases.get(name)  # type: ignore[assignment]
        assert case is None or (case.became != "passed" and case.status in ("", "NOT_MEASURED"))


def read_case(element: ElementTree.Element) -> Case:
    found = {child.tag for child in element}
    properties = {p.get("name"): p.get("value", "") for p in element.iter("property")}
    suite = re.search(r"([^.]+)\.quantgate\.yaml$", element.get("classname", ""))
    return Case(
        suite=suite[1] if suite else "",
        name=element.get("name", ""),
        became="failed" if found & {"failure", "error"}
        else "skipped" if "skipped" in found else "passed",
        status=properties.get("quantgate.status", ""),
        attempts=properties.get("quantgate.attempts", ""),
    )  # fmt: skip


def run_action_reader(path: Path) -> str:
    """Return what the action's own line reads out of a report."""
    steps: Any = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"]
    script = next(step["run"] for step in steps if step.get("name") == "Gates")
    code = re.search(r"python (?:-\w+ )*-c '([^']+)'", script)
    assert code
    done = subprocess.run(
        [sys.executable, "-S", "-c", code[1], str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_both_answers_stand_in_every_report(pytester: pytest.Pytester) -> None:
    write_project(pytester.path, verdicts={"coverage": ["FAIL", "PASS"]})

    run(pytester, "suites", "--reruns=1", "--quantgate-report=out", "--quantgate-markdown=out/s.md")

    report = json.loads((pytester.path / "out/report.json").read_text())
    gate = next(gate for gate in report["suites"][0]["gates"] if gate["attempts"])
    assert gate["code"] == "coverage.two-answers"
    assert gate["attempts"] == [
        {"status": "FAIL", "headline": "coverage: FAIL as given"},
        {"status": "PASS", "headline": "coverage: PASS as given"},
    ]
    for name in ("index.html", "s.md"):
        text = (pytester.path / "out" / name).read_text()
        assert "attempt 1: FAIL coverage: FAIL as given" in text
        assert "attempt 2: PASS coverage: PASS as given" in text


def test_a_red_test_of_the_project_stands_in_every_report(pytester: pytest.Pytester) -> None:
    write_project(pytester.path)
    (pytester.path / "test_own.py").write_text(f"{OWN}def test_it(): check(200)")

    run(pytester, ".", "--quantgate-report=out", "--quantgate-markdown=out/s.md")

    report = json.loads((pytester.path / "out/report.json").read_text())
    (test,) = report["own_tests"]
    assert (test["test"], test["status"]) == ("test_own.py::test_it", "FAIL")
    assert test["headline"].startswith("accuracy: outcomes: quantized accuracy 79.00 % vs FP16 ")
    for name in ("index.html", "s.md"):
        text = (pytester.path / "out" / name).read_text()
        assert "test_own.py::test_it" in text
        assert "drop 20.00 pp" in text


def test_no_terminal_is_needed(pytester: pytest.Pytester) -> None:
    write_project(pytester.path, verdicts={"coverage": ["FAIL"]})

    result = run(pytester, "suites", "-p", "no:terminal", "--quantgate-json=r.json")

    report = json.loads((pytester.path / "r.json").read_text())
    assert (result.ret, report["conclusion"]["sentence"]) == (1, "Do not ship: coverage")


def test_collecting_concludes_nothing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    write_project(pytester.path)

    result = run(pytester, "suites", "--collect-only", "--quantgate-strict")

    assert result.ret == 0
    result.stdout.no_fnmatch_line("*= quantgate =*")


def test_a_suite_says_what_may_be_missing(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    write_project(pytester.path, verdicts=MISSING)
    suite = pytester.path / "suites" / "clip.quantgate.yaml"
    text = suite.read_text(encoding="utf-8")

    suite.write_text(f"{text}allow_unmeasured: [coverage, latency]\n", encoding="utf-8")
    allowed = run(pytester, "suites")
    suite.write_text(f"{text}allow_unmeasured: covrage\n", encoding="utf-8")
    wrong = run(pytester, "suites")

    assert allowed.ret == 0
    allowed.stdout.fnmatch_lines(
        ["clip: may ship: 3 gates passed; allowed to be missing: coverage"]
    )
    assert wrong.ret == pytest.ExitCode.INTERRUPTED
    wrong.stdout.fnmatch_lines(["suites/clip.quantgate.yaml:6: allow_unmeasured: *covrage*"])
