"""Results of many runs become one verdict, whatever their order, number and repetition."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.errors import ReportError
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.release.join import Result, join_results, read_result, sort_results
from pytest_quantgate.release.spec import Machine, Release, ReleasedSuite
from pytest_quantgate.report.manifest import list_subjects, may_have_manifest
from pytest_quantgate.report.model import JudgedFile, Report
from pytest_quantgate.run.conclusion import OwnTest, Results, conclude
from pytest_quantgate.suite.where import Where
from tests.results import CPU, GATES, GPU, make_result, make_results, make_verdict, write_result

PASS, FAIL, UNKNOWN = Status.PASS, Status.FAIL, Status.NOT_MEASURED
ALL = {("clip", gate): PASS for gate in GATES}
RED = (Status.FAIL, Status.INCONCLUSIVE, Status.INCOMPARABLE)
WHERE = Where(file="release.quantgate.yaml", line=3)


def join(*results: Result, **more: object) -> tuple[Results, Report]:
    return join_results(results, **more)  # type: ignore[arg-type]


def verdict_of(*results: Result, **more: object) -> Status:
    joined, report = join(*results, **more)
    assert report.conclusion.status == conclude(joined).status.value
    return conclude(joined).status


def test_shards_together_are_the_run() -> None:
    one = make_result("one", make_results({("clip", g): PASS for g in GATES[:2]}))
    two = make_result("two", make_results({("clip", g): PASS for g in GATES[2:]}))

    joined, report = join(one, two)

    assert report.conclusion.sentence == "May ship: 4 gates passed"
    assert [row.gate for row in joined.rows] == list(GATES)
    assert [row.answered_by for row in joined.rows] == [("one",)] * 2 + [("two",)] * 2
    assert verdict_of(one) is verdict_of(two) is UNKNOWN


def test_a_gate_that_no_result_answers_is_named_with_its_reason() -> None:
    results = make_results(
        {("clip", "sanity"): PASS},
        not_run={("clip", "coverage"): "deselected", ("clip", "latency[b]"): "skipped: no GPU"},
    )

    joined, report = join(make_result("one", results))

    assert report.conclusion.status == "NOT_MEASURED"
    assert joined.not_run == {
        ("clip", "coverage"): "deselected",
        ("clip", "accuracy[a]"): "not reached",
        ("clip", "latency[b]"): "skipped: no GPU in one",
    }


def test_what_could_not_be_measured_in_one_is_answered_by_another() -> None:
    cpu = make_result("cpu", make_results({**ALL, ("clip", "latency[b]"): UNKNOWN}))
    gpu = make_result("gpu", make_results(ALL), environment=GPU)

    joined, report = join(cpu, gpu)

    assert report.conclusion.status == "PASS"
    assert joined.rows[-1].answered_by == ("gpu",)


@pytest.mark.parametrize("status", RED)
def test_two_different_answers_are_fail_with_both(status: Status) -> None:
    cpu = make_result("cpu", make_results(ALL))
    gpu = make_result("gpu", make_results({**ALL, ("clip", "coverage"): status}))

    _, report = join(cpu, gpu)

    (gate,) = (g for g in report.suites[0].gates if g.name == "coverage")
    assert report.conclusion.status == gate.status == "FAIL"
    assert gate.code == "coverage.two-answers"
    assert sorted(gate.evidence) == [
        "cpu: PASS coverage is PASS",
        f"gpu: {status.value} coverage is {status.value}",
    ]
    assert {attempt.status for attempt in gate.attempts} == {"PASS", status.value}


def test_own_tests_errors_stops_and_orphans_count() -> None:
    test = OwnTest(test="tests/t.py::t", verdict=make_verdict("test", FAIL))
    rest = make_result("rest", make_results(ALL))

    assert verdict_of(rest, make_result("x", make_results(ALL, own_tests=(test,)))) is FAIL
    assert verdict_of(rest, make_result("x", make_results(ALL, errors=("crash",)))) is FAIL
    assert verdict_of(rest, make_result("x", make_results(ALL, stopped="Ctrl-C"))) is UNKNOWN
    assert verdict_of(rest, make_result("x", make_results(ALL, orphans=("a.json",)))) is UNKNOWN
    assert verdict_of(rest, make_result("x", make_results(ALL), orphans=("a.json",))) is PASS
    assert verdict_of(rest, errors=("y.json: truncated",)) is FAIL
    assert verdict_of() is UNKNOWN
    assert verdict_of(errors=("y.json: truncated",)) is FAIL


# -- what must be the same -------------------------------------------------------------------------


def given_file(artifact: str, sha256: str, *, name: str = "f", built: bool = False) -> JudgedFile:
    return JudgedFile(artifact=artifact, name=name, sha256=sha256 * 64, built=built)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": (given_file("model", "b"),)},
         f"clip: model f differs: {'a' * 12} in cpu, {'b' * 12} in x"),
        ({"files": (given_file("model", "a"), given_file("model", "b", name="g"))},
         f"clip: model g differs: none in cpu, {'b' * 12} in x"),
        ({"product_version": "9.9"},
         "the release of pytest-quantgate differs: 0.1.0 in cpu, 9.9 in x"),
    ],
)  # fmt: skip
def test_other_inputs_are_incomparable_with_what_differs(
    changes: dict[str, object], words: str
) -> None:
    model = (given_file("model", "a"),)
    cpu = make_result("cpu", make_results(ALL), files=model)
    other = make_result("x", make_results(ALL), created="z", **{"files": model, **changes})  # type: ignore[arg-type]

    joined, report = join(cpu, other)

    assert joined.incomparable == (words,)
    assert report.conclusion.status == "INCOMPARABLE"
    assert report.conclusion.sentence == f"Not decided: {words}"


def test_another_suite_of_the_same_name_is_incomparable() -> None:
    old = make_result("old", make_results(ALL, digest="0" * 64), created="a")
    new = make_result("new", make_results(ALL, digest="1" * 64), created="b")

    joined, _ = join(old, new)

    assert joined.incomparable == (
        "clip.quantgate.yaml: the suite itself differs: 000000000000 in old, 111111111111 in new",
    )
    assert verdict_of(old, digests={"clip": "0" * 64}) is PASS
    assert verdict_of(old, digests={"clip": "1" * 64}) is Status.INCOMPARABLE
    red = make_result("red", make_results({**ALL, ("clip", "sanity"): FAIL}, digest="1" * 64))
    assert verdict_of(old, red) is FAIL


def test_a_result_that_never_read_a_model_says_nothing_of_it() -> None:
    nothing = make_result("cpu", make_results({("clip", "sanity"): UNKNOWN}))
    all_of_it = make_result("gpu", make_results(ALL), files=(given_file("model", "a"),))

    assert verdict_of(nothing, all_of_it) is PASS


def test_baselines_are_compared_file_by_file() -> None:
    """Each gate reads its own, and a machine may have a folder of its own."""
    one = given_file("baselines", "a", name="baselines/x.json")
    two = given_file("baselines", "b", name="gpu-baselines/x.json")
    cpu = make_result("cpu", make_results(ALL), files=(one,))

    assert verdict_of(cpu, make_result("gpu", make_results(ALL), files=(two,))) is PASS
    changed = replace(one, sha256="c" * 64)
    gpu = make_result("gpu", make_results(ALL), files=(changed,))
    assert verdict_of(cpu, gpu) is Status.INCOMPARABLE


def test_what_each_built_for_itself_is_in_no_manifest() -> None:
    checkpoint = given_file("checkpoint", "a", built=True)
    onnx = given_file("onnx-quantized-vision-float16", "c", built=True)
    model = given_file("model", "d")
    cpu = make_result("cpu", make_results(ALL), files=(model, checkpoint))
    gpu = make_result(
        "gpu", make_results(ALL), files=(model, replace(checkpoint, sha256="b" * 64), onnx)
    )

    _, apart = join(cpu, gpu)
    _, same = join(cpu, make_result("gpu", make_results(ALL), files=(model, checkpoint, onnx)))

    assert may_have_manifest(apart)
    assert set(list_subjects(apart)) == {"clip/model/f", "clip/suite/clip.quantgate.yaml"}
    assert "each result is of its own checkpoint, onnx-quantized-" in apart.suites[0].notes[0]
    assert len(list_subjects(same)) == 4
    assert same.suites[0].notes == ()


# -- a release -------------------------------------------------------------------------------------


def make_release(
    *suites: ReleasedSuite, machines: tuple[Machine, ...] = (), allow: tuple[str, ...] = ()
) -> Release:
    return Release(
        path=Path("release.quantgate.yaml"),
        version=1,
        suites=suites,
        machines=machines,
        allow_unmeasured=allow,
    )


def suite(name: str, **more: object) -> ReleasedSuite:
    return ReleasedSuite(where=WHERE, suite=f"{name}.quantgate.yaml", **more)  # type: ignore[arg-type]


TWO = {(name, gate): PASS for name in ("clip", "siglip") for gate in GATES}


def test_an_advisory_suite_is_shown_and_decides_nothing() -> None:
    verdicts = {**TWO, ("siglip", "coverage"): FAIL}
    result = make_result("all", make_results(verdicts, suites=("clip", "siglip")))
    advisory = make_release(suite("clip"), suite("siglip", tier="advisory"))

    joined, report = join(result, release=advisory)

    assert report.conclusion.status == "PASS"
    assert report.conclusion.sentence == (
        "May ship: 4 gates passed; advisory and not passed: siglip"
    )
    assert [s.conclusion.status for s in report.suites] == ["PASS", "FAIL"]
    assert verdict_of(result, release=make_release(suite("clip"), suite("siglip"))) is FAIL
    assert verdict_of(result, release=make_release(suite("clip"))) is PASS
    assert [s.advisory for s in joined.suites] == [False, True]


def test_a_suite_without_a_result_is_not_decided() -> None:
    release = make_release(suite("clip"), suite("siglip"))

    joined, report = join(make_result("one", make_results(ALL)), release=release)

    assert report.conclusion.status == "NOT_MEASURED"
    assert joined.unanswered == ("release.quantgate.yaml:3: no result is of siglip.quantgate.yaml",)
    advisory = make_release(suite("clip"), suite("siglip", tier="advisory"))
    assert verdict_of(make_result("one", make_results(ALL)), release=advisory) is PASS


def test_only_the_release_says_what_may_be_unmeasured() -> None:
    verdicts = {**ALL, ("clip", "latency[b]"): UNKNOWN}
    results = make_results(verdicts)
    forgiving = replace(results.suites[0], allow_unmeasured=("latency",))
    result = make_result("one", replace(results, suites=(forgiving,)))

    assert verdict_of(result) is PASS
    assert verdict_of(result, release=make_release(suite("clip"))) is UNKNOWN
    own = make_release(suite("clip", allow_unmeasured=("latency",)))
    assert verdict_of(result, release=own) is PASS
    assert verdict_of(result, release=make_release(suite("clip"), allow=("latency",))) is PASS


@pytest.mark.parametrize(
    ("machine", "answers"),
    [
        (Machine(where=WHERE, name="m", device="cuda"), True),
        (Machine(where=WHERE, name="m", gpu="NVIDIA H200*"), True),
        (Machine(where=WHERE, name="m", gpu="NVIDIA T4"), False),
        (Machine(where=WHERE, name="m", system="Linux*", processor="another"), True),
        (Machine(where=WHERE, name="m", device="cpu", gpu="NVIDIA*"), False),
        (Machine(where=WHERE, name="m", device="cuda", gates=("latency",)), True),
        (Machine(where=WHERE, name="m", device="cpu", gates=("latency",)), False),
        (Machine(where=WHERE, name="m", device="cuda", gates=("engine",)), True),
        (Machine(where=WHERE, name="m", gpu="none", gates=("engine",)), False),
    ],
)
def test_a_machine_must_have_answered(machine: Machine, answers: bool) -> None:
    cpu = make_result("cpu", make_results({("clip", g): PASS for g in GATES[:3]}))
    gpu = make_result("gpu", make_results(ALL), environment=GPU, device="cuda")
    release = make_release(suite("clip"), machines=(machine,))

    assert (verdict_of(cpu, gpu, release=release) is PASS) == answers


def test_a_machine_that_only_failed_to_measure_has_not_answered() -> None:
    gpu = make_result("gpu", make_results({("clip", "latency[b]"): UNKNOWN}), device="cuda")
    machine = Machine(where=WHERE, name="h200", device="cuda")
    release = make_release(suite("clip"), machines=(machine,))

    joined, _ = join(gpu, make_result("cpu", make_results(ALL)), release=release)

    assert joined.unanswered == (
        "release.quantgate.yaml:3: machine h200 has answered no gate of clip.quantgate.yaml",
    )


# -- files -----------------------------------------------------------------------------------------


def test_a_written_result_is_read_back(tmp_path: Path) -> None:
    result = make_result("x", make_results(ALL))
    path = write_result(tmp_path / "report.json", result)

    assert read_result(path).report == result.report
    assert read_result(tmp_path).sha256 == read_result(path).sha256


@pytest.mark.parametrize("status", list(Status))
def test_a_red_verdict_without_a_reason_is_refused(tmp_path: Path, status: Status) -> None:
    """Whatever made it red is not among what is joined: it must not get lost."""
    result = make_result("x", make_results(ALL))
    conclusion = replace(result.report.conclusion, status=status.value)
    odd = replace(result, report=replace(result.report, conclusion=conclusion))
    path = write_result(tmp_path / "r.json", odd)

    if status in RED:
        with pytest.raises(ReportError, match="and nothing in it says why: run again"):
            read_result(path)
    else:
        assert read_result(path).report == odd.report


@pytest.mark.parametrize("name", ["", "coverage", "sanity[x]"])
def test_a_gate_that_is_called_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    result = make_result("x", make_results(ALL))
    (only,) = result.report.suites
    gates = (replace(only.gates[0], name=name), *only.gates[1:])
    odd = replace(result.report, suites=(replace(only, gates=gates),))
    path = write_result(tmp_path / "r.json", replace(result, report=odd))

    with pytest.raises(ReportError, match="a gate of kind 'sanity' is called"):
        read_result(path)
    test = OwnTest(test="", verdict=make_verdict("test", FAIL))
    nameless = make_result("x", make_results(ALL, own_tests=(test,)))
    with pytest.raises(ReportError, match="an own test has no name"):
        read_result(write_result(path, nameless))


def test_a_joined_report_is_not_joined_again(tmp_path: Path) -> None:
    one = make_result("one", make_results(ALL))
    _, report = join(one)
    path = write_result(tmp_path / "r.json", Result(name="", sha256="", report=report))

    with pytest.raises(ReportError, match="this was joined from 1 result already"):
        read_result(path)


# -- whatever happens ------------------------------------------------------------------------------

STATUSES = st.sampled_from(list(Status))
SUITES = ("clip", "siglip")
PLACES = [(name, gate) for name in SUITES for gate in GATES]


@st.composite
def runs(draw: st.DrawFn) -> Results:
    """A whole run: each gate judged, or left out by a mark."""
    judged = {place: draw(STATUSES) for place in PLACES if draw(st.integers(0, 9))}
    marked = {place: "skipped: by a mark" for place in PLACES if place not in judged}
    return make_results(judged, suites=SUITES, not_run=marked)


def cut(run: Results, shards: list[int], *, count: int) -> list[Result]:
    """Return the run as its shards would have left it: each gate in one of them."""
    own = {place: shards[i] for i, place in enumerate(PLACES)}
    found = []
    for shard in range(count):
        verdicts = {
            (row.suite, row.gate): row.verdict.status
            for row in run.rows
            if own[row.suite, row.gate] == shard
        }
        reasons = {place: run.not_run.get(place, "deselected") if own[place] == shard
                   else "deselected" for place in PLACES if place not in verdicts}  # fmt: skip
        left = make_results(verdicts, suites=SUITES, not_run=reasons)
        found.append(make_result(f"shard{shard}", left, created=f"2026-11-3{shard}"))
    return found


@given(
    run=runs(),
    shards=st.lists(st.integers(0, 2), min_size=len(PLACES), max_size=len(PLACES)),
    seed=st.integers(),
)
def test_splitting_repeating_and_reordering_change_no_verdict(
    run: Results, shards: list[int], seed: int
) -> None:
    whole = make_result("whole", run)
    parts = cut(run, shards, count=3)
    mixed = [*parts, *random.Random(seed).sample(parts, 2)]
    random.Random(seed).shuffle(mixed)

    joined, report = join(*parts)

    assert verdict_of(whole) is conclude(run).status
    assert conclude(joined).status is conclude(run).status
    assert join(*mixed) == (joined, report)
    assert verdict_of(*mixed, whole) is conclude(run).status
    later = replace(whole, name="again", report=replace(whole.report, created="2027"), sha256="f")
    assert verdict_of(whole, later) is conclude(run).status


@given(first=runs(), second=runs())
def test_a_red_in_any_is_red_and_green_needs_every_gate(first: Results, second: Results) -> None:
    status = verdict_of(make_result("1", first), make_result("2", second, created="z"))
    rows = (*first.rows, *second.rows)

    if any(row.verdict.status in RED for row in rows):
        assert status in RED
    if status is PASS:
        green = {(row.suite, row.gate) for row in rows if row.verdict.passed}
        assert green == set(PLACES)


@given(statuses=st.lists(STATUSES, min_size=1, max_size=5))
def test_a_gate_passes_only_where_everyone_who_answers_says_so(statuses: list[Status]) -> None:
    results = [
        make_result(str(i), make_results({("clip", "sanity"): status}, gates=("sanity",)),
                    created=str(i))
        for i, status in enumerate(statuses)
    ]  # fmt: skip

    found = verdict_of(*results)
    answers = {status for status in statuses if status is not UNKNOWN}

    assert found is (UNKNOWN if not answers else answers.pop() if len(answers) == 1 else FAIL)


def test_a_result_that_names_a_suite_twice_hides_nothing() -> None:
    """No run writes one; whoever makes one up must not get rid of a red gate by it."""
    result = make_result("x", make_results(ALL))
    red = make_result("y", make_results({**ALL, ("clip", "sanity"): FAIL}))
    both = replace(result.report, suites=(*result.report.suites, *red.report.suites))

    assert verdict_of(replace(result, report=both)) is FAIL
    (only,) = red.report.suites
    unlisted = replace(red.report, suites=(replace(only, all_gates=("coverage",)),))
    assert verdict_of(replace(red, report=unlisted)) is FAIL


def test_what_follows_from_a_gate_stands_alone_where_that_one_is_green() -> None:
    def of(cause: Status) -> Results:
        results = make_results({("clip", "sanity"): cause, ("clip", "coverage"): FAIL})
        first, second = results.rows
        follows = replace(second.verdict, follows="sanity", where="clip.quantgate.yaml:7")
        return replace(results, rows=(first, replace(second, verdict=follows)))

    together, _ = join(make_result("1", of(FAIL)))
    alone, _ = join(make_result("1", of(PASS)))

    assert [row.verdict.follows for row in together.rows] == ["", "sanity"]
    assert [row.verdict.follows for row in alone.rows] == ["", ""]
    assert alone.rows[1].verdict.where == "clip.quantgate.yaml:7"


def test_order_of_results_is_that_of_their_days() -> None:
    results = [
        make_result(name, make_results(ALL), created=created, environment=CPU)
        for name, created in (("b", "2026-02"), ("a", "2026-03"), ("c", "2026-01"))
    ]

    assert [r.name for r in sort_results(results)] == ["c", "b", "a"]


def test_numbers_of_the_worst_are_kept() -> None:
    def of(value: float, status: Status) -> Results:
        verdict = Verdict(gate="coverage", status=status, headline="x", figures={"n": value})
        (row,) = make_results({("clip", "coverage"): status}).rows
        return replace(make_results({}), rows=(replace(row, verdict=verdict),))

    joined, _ = join(make_result("1", of(1, PASS)), make_result("2", of(2, FAIL)))

    assert joined.rows[0].verdict.figures == {"n": 2}
