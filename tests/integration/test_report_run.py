"""Reports of whole runs: where they are written, what is in them, with workers and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.report.json_report import read_report
from pytest_quantgate.store.cache import Cache

UNMEASURED = """\
quantgate: 1
model: {source: transformers, id: "${QUANTGATE_NOT_SET_ANYWHERE}"}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8}
gates:
  coverage: {}
  roundtrip: {}
"""


WriteSuite = Callable[..., Path]
RunGates = Callable[..., pytest.RunResult]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Path:
    """A suite whose model is not there: its gates are judged in no time."""
    path = pytester.path / "suites" / "absent.quantgate.yaml"
    path.parent.mkdir()
    path.write_text(UNMEASURED)
    return path


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.usefixtures("suite")
def test_every_report_is_written_and_named(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(
        "suites", "--quantgate-report=out", "--quantgate-markdown=r.md", "--quantgate-json=r.json"
    )

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"report written: {name}" for name in
         ("out/index.html", "out/report.json", "r.md", "r.json")]
    )  # fmt: skip
    page = (pytester.path / "out/index.html").read_text()
    assert "environment variable QUANTGATE_NOT_SET_ANYWHERE is not set" in page
    assert "What was not measured" in page
    report = read_report((pytester.path / "r.json").read_bytes(), name="r.json")
    assert report.conclusion.status == "NOT_MEASURED"
    assert [gate.name for gate in report.suites[0].gates] == ["sanity", "coverage", "roundtrip"]
    assert load(pytester.path / "r.json") == load(pytester.path / "out/report.json")


@pytest.mark.usefixtures("suite")
def test_ini_file_is_asked_and_the_command_line_wins(pytester: pytest.Pytester) -> None:
    pytester.makeini(
        "[pytest]\nquantgate_report = a\nquantgate_markdown = a.md\nquantgate_json = a.json\n"
    )

    pytester.runpytest_inprocess("suites")
    assert {p.name for p in pytester.path.iterdir()} >= {"a", "a.md", "a.json"}

    pytester.runpytest_inprocess(
        "suites", "--quantgate-report=b", "--quantgate-markdown=b.md", "--quantgate-json="
    )
    assert {p.name for p in pytester.path.iterdir()} >= {"b", "b.md"}


@pytest.mark.usefixtures("suite")
def test_nothing_is_written_unasked_or_when_only_collecting(pytester: pytest.Pytester) -> None:
    before = {path.name for path in pytester.path.iterdir()}
    pytester.runpytest_inprocess("suites")
    pytester.runpytest_inprocess("suites", "--collect-only", "--quantgate-report=out")

    after = {path.name for path in pytester.path.iterdir()}
    assert after - before <= {".pytest_cache", ".benchmarks", "__pycache__"}


@pytest.mark.usefixtures("suite")
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--quantgate-report=suites/absent.quantgate.yaml", "*: this is a file: name a folder*"),
        ("--quantgate-markdown=suites", "--quantgate-markdown: *suites is a folder: name a file"),
        ("--quantgate-json=suites/absent.quantgate.yaml",
         "--quantgate-json: * was not written by pytest-quantgate and is left as it is: *"),
        ("--quantgate-report-images=many",
         "--quantgate-report-images=many: expected a number from 0 to 200"),
        ("--quantgate-report-images=201",
         "--quantgate-report-images=201: expected a number from 0 to 200"),
        ("--quantgate-step-summary=on",
         "'on' is not a valid quantgate step summary. Valid modes: auto, off."),
    ],
)  # fmt: skip
def test_wrong_places_are_usage_errors_at_the_start(
    pytester: pytest.Pytester, suite: Path, argument: str, words: str
) -> None:
    result = pytester.runpytest_inprocess("suites", argument)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {words}"])
    assert suite.read_text() == UNMEASURED


def test_report_and_selftest_exclude_each_other(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--quantgate-selftest", "--quantgate-report=out")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quantgate-report shows what is true of a model, *"])


@pytest.mark.usefixtures("suite")
def test_second_run_replaces_its_own_report(pytester: pytest.Pytester) -> None:
    for _ in range(2):
        assert pytester.runpytest_inprocess("suites", "--quantgate-report=out").ret == 0

    assert sorted(p.name for p in (pytester.path / "out").iterdir()) == [
        "index.html",
        "report.json",
    ]


def test_run_without_gates_does_not_leave_yesterdays_report(
    pytester: pytest.Pytester, suite: Path
) -> None:
    pytester.runpytest_inprocess("suites", "--quantgate-json=r.json")
    suite.unlink()
    pytester.makepyfile("def test_other(): pass")

    pytester.runpytest_inprocess("--quantgate-json=r.json")

    assert load(pytester.path / "r.json")["conclusion"] == {
        "status": "NOT_MEASURED",
        "sentence": "Not decided: no gate ran",
    }


@pytest.mark.usefixtures("suite")
def test_suite_that_cannot_be_read_makes_the_report_red(pytester: pytest.Pytester) -> None:
    (pytester.path / "suites/bad.quantgate.yaml").write_text("quantgate: 1\nmodle: {}\n")

    pytester.runpytest_inprocess(
        "suites", "--quantgate-json=r.json", "--continue-on-collection-errors"
    )

    report = load(pytester.path / "r.json")
    assert report["conclusion"]["status"] == "FAIL"
    assert len(report["errors"]) == 1
    assert "suites/bad.quantgate.yaml:2: modle: unknown key" in report["errors"][0]


@pytest.mark.usefixtures("suite")
def test_gate_that_crashes_makes_the_report_red(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(autouse=True)
        def crash(request):
            if request.node.name == "roundtrip":
                raise RuntimeError("out of memory")
        """
    )

    pytester.runpytest_inprocess("suites", "--quantgate-json=r.json")

    report = load(pytester.path / "r.json")
    assert report["conclusion"] == {"status": "FAIL", "sentence": "Do not ship: roundtrip"}
    gate = next(g for g in report["suites"][0]["gates"] if g["name"] == "roundtrip")
    assert (gate["status"], gate["code"]) == ("FAIL", "roundtrip.no-verdict")
    assert gate["headline"] == ("roundtrip: ended without a verdict: RuntimeError: out of memory")
    assert report["suites"][0]["not_run"] == []


@pytest.mark.usefixtures("suite")
def test_step_summary_is_appended_to_where_gates_ran(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = pytester.path / "summary.md"
    summary.write_text("# Build\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    pytester.makepyfile("def test_other(): pass")

    pytester.runpytest_inprocess("test_step_summary_is_appended_to_where_gates_ran.py")
    assert summary.read_text() == "# Build\n"

    pytester.runpytest_inprocess("suites", "--quantgate-step-summary=off")
    assert summary.read_text() == "# Build\n"

    pytester.runpytest_inprocess("suites")
    assert summary.read_text().startswith("# Build\n\n<!-- pytest-quantgate report version 4 -->\n")


@pytest.mark.usefixtures("suite")
def test_report_that_cannot_be_written_fails_the_run_and_says_why(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path))

    result = pytester.runpytest_inprocess("suites")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["warning: cannot write the step summary *: Is a directory"])


def test_report_of_a_measured_run(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: RunGates
) -> None:
    write_suite(replace={"  regression:\n    - {task: scenes/classification, metric: acc1, "
                         "samples: 64,\n       max_fp16_drop: 20pp, max_drop: 12pp, "
                         "max_drop_since_first: 20pp}\n": ""})  # fmt: skip
    run_gates("--quantgate-report=out", "--quantgate-report-images=1")

    report = read_report((pytester.path / "out/report.json").read_bytes(), name="report.json")
    (suite,) = report.suites
    (task,) = suite.tasks
    assert task.gates == ("accuracy[scenes/classification-acc1]",)
    assert task.samples == 64
    assert sum(bool(flip.image) for flip in task.flips) == min(1, len(task.flips))
    assert suite.audit is not None
    assert {facts.state for facts in suite.audit.quantizers} <= {"on", "off"}
    assert suite.fidelity is not None
    assert len(suite.fidelity.worst_layers) == 27  # every Linear and Conv of two small towers
    assert suite.roundtrip is not None
    assert suite.model is not None
    assert suite.recipe is not None
    assert (suite.recipe.name, suite.recipe.lines) == ("fp8-attention", ("fp8-attention",))


def test_manifest_names_what_was_given_built_and_compared_with(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: RunGates
) -> None:
    write_suite()
    run_gates("--quantgate-baselines=create", "--quantgate-manifest=created.json")
    result = run_gates("--quantgate-manifest=m.json")

    result.stdout.fnmatch_lines(["report written: m.json"])
    names = [subject["name"] for subject in load(pytester.path / "m.json")["subject"]]
    (baseline,) = (pytester.path / "baselines").rglob("*.json")
    shown = baseline.relative_to(pytester.path).as_posix()
    assert {name.split("/")[1] for name in names} >= {"suite", "model", "checkpoint", "baselines"}
    assert [name for name in names if "/baselines/" in name] == [f"tiny/baselines/{shown}"]
    created = [subject["name"] for subject in load(pytester.path / "created.json")["subject"]]
    assert created == [name for name in names if "/baselines/" not in name]


def test_workers_report_the_same_and_a_warm_run_imports_no_torch(
    pytester: pytest.Pytester,
    write_suite: WriteSuite,
    run_gates: RunGates,
    shared_cache: Path,
) -> None:
    write_suite()
    run_gates("--quantgate-json=one.json")
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            print("torch is imported:", "torch" in sys.modules)
        """
    )
    warm = pytester.runpytest_subprocess(
        "suites", f"--quantgate-cache-dir={shared_cache}", "--quantgate-json=two.json"
    )
    pytester.runpytest_subprocess(
        "suites", "-n2", f"--quantgate-cache-dir={shared_cache}", "--quantgate-json=three.json"
    )

    warm.stdout.fnmatch_lines(["torch is imported: False"])
    one, two, three = (load(pytester.path / f"{name}.json") for name in ("one", "two", "three"))
    assert one["suites"] == two["suites"] == three["suites"]
    assert one["suites"][0]["tasks"]


def test_suite_that_is_edited_while_it_runs_is_reported_as_it_was_judged(
    pytester: pytest.Pytester, write_suite: WriteSuite, run_gates: RunGates
) -> None:
    path = write_suite()
    some = ("-k", "coverage or calibration")
    run_gates(*some, "--quantgate-json=one.json")
    edits = {"coverage: {}": "coverage: {attention: [softmax]}", "max_clipped": "max"}
    pytester.makeconftest(
        f"""
        from pathlib import Path

        def pytest_runtest_teardown():
            path = Path({str(path)!r})
            for old, new in {edits!r}.items():
                path.write_text(path.read_text().replace(old, new))
        """
    )

    run_gates(*some, "--quantgate-json=two.json")

    assert "attention: [softmax]" in path.read_text()
    one, two = (load(pytester.path / f"{name}.json") for name in ("one", "two"))
    assert one["suites"] == two["suites"]
    assert one["suites"][0]["audit"]["quantizers"]


def test_without_a_cache_nothing_is_read_written_or_left(
    pytester: pytest.Pytester,
    write_suite: WriteSuite,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What a worker measured is in the controller's report all the same."""
    write_suite()
    temporary, cache = tmp_path / "temporary", tmp_path / "cache"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    Cache(root=cache).get_or_measure(kind="fidelity", key="a" * 64, measure=lambda: 1)
    before = sorted(cache.rglob("*"))
    options = ["--quantgate-cache=off", f"--quantgate-cache-dir={cache}", "-k", "coverage"]

    result = pytester.runpytest_subprocess("suites", "-n1", "--quantgate-json=r.json", *options)

    result.assert_outcomes(passed=1)
    assert load(pytester.path / "r.json")["suites"][0]["audit"]
    assert sorted(cache.rglob("*")) == before
    assert list(temporary.glob("quantgate-*")) == []
