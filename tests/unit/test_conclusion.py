"""One conclusion of a run, from all that it left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.conclusion import (
    DESELECTED,
    Conclusion,
    OwnTest,
    Results,
    Row,
    SuiteGates,
    conclude,
    join_answers,
    join_attempts,
    label_suites,
)

PASS, FAIL = Status.PASS, Status.FAIL
UNSURE, OTHER, MISSING = Status.INCONCLUSIVE, Status.INCOMPARABLE, Status.NOT_MEASURED


def verdict(gate: str, status: Status) -> Verdict:
    return Verdict(gate=gate.partition("[")[0], status=status, headline=f"{gate}: text")


def results(
    suites: dict[str, dict[str, Status | None]],
    *,
    own: dict[str, Status] | None = None,
    allow: dict[str, tuple[str, ...]] | None = None,
    **changes: Any,
) -> Results:
    """Return the results of suites: by name their gates with a status each (None: did not run)."""
    return Results(
        suites=tuple(
            SuiteGates(
                suite=name,
                file=name,
                gates=tuple(gates),
                allow_unmeasured=(allow or {}).get(name, ()),
            )
            for name, gates in suites.items()
        ),
        rows=tuple(
            Row(suite=name, gate=gate, verdict=verdict(gate, status))
            for name, gates in suites.items()
            for gate, status in gates.items()
            if status
        ),
        own_tests=tuple(
            OwnTest(test=name, verdict=verdict("test", status))
            for name, status in (own or {}).items()
        ),
        **changes,
    )


def said(found: Results) -> tuple[str, str]:
    conclusion = conclude(found)
    return conclusion.status.value, conclusion.sentence


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ({"a": PASS, "b": PASS}, ("PASS", "May ship: 2 gates passed")),
        ({"a": PASS, "b": None, "c": None},
         ("NOT_MEASURED", "Not decided: 1 passed, 2 gates did not run")),
        ({"a": FAIL, "b": PASS, "c[x]": UNSURE}, ("FAIL", "Do not ship: a, c[x]")),
        ({"a": UNSURE, "b": PASS}, ("INCONCLUSIVE", "Not decided: a")),
        ({"a": UNSURE, "b": OTHER}, ("INCOMPARABLE", "Not decided: a, b")),
        ({"a": PASS, "b": MISSING}, ("NOT_MEASURED", "Not decided: b not measured")),
        ({"a": PASS, "b": MISSING, "c": None},
         ("NOT_MEASURED", "Not decided: b not measured, 1 gate did not run")),
        ({"a": MISSING, "b": MISSING},
         ("NOT_MEASURED", "Not decided: none of 2 gates could be measured")),
        ({"a": MISSING, "b": None},
         ("NOT_MEASURED", "Not decided: a not measured, 1 gate did not run")),
        ({"a": None, "b": None},
         ("NOT_MEASURED", "Not decided: none of 2 gates ran (not reached)")),
    ],
)  # fmt: skip
def test_one_suite(gates: dict[str, Status | None], expected: tuple[str, str]) -> None:
    found = results({"clip": gates})

    assert said(found) == expected
    assert conclude(found).suites[0].status.value == expected[0]


@pytest.mark.parametrize(
    ("suites", "changes", "expected"),
    [
        ({}, {}, ("NOT_MEASURED", "Not decided: no gate ran")),
        ({"x": {"a": PASS}, "y": {"a": PASS, "b": PASS}}, {},
         ("PASS", "May ship: all 3 gates of 2 suites passed")),
        ({"x": {"a": PASS}, "y": {"a": FAIL}}, {},
         ("FAIL", "Do not ship: a, in y (1 other of 2 suites may ship)")),
        ({"x": {"a": MISSING}, "y": {"a": FAIL}}, {}, ("FAIL", "Do not ship: a, in y")),
        ({"x": {"a": FAIL}, "y": {"a": FAIL}, "z": {"a": PASS}}, {},
         ("FAIL", "Do not ship: 2 of 3 suites: x, y")),
        ({"x": {"a": None}, "y": {"a": None}}, {},
         ("NOT_MEASURED", "Not decided: 2 of 2 suites: x, y")),
        ({"x": {"a": PASS}}, {"errors": ("y.yaml:3: bad",)},
         ("FAIL", "Do not ship: y.yaml:3: bad")),
        ({"x": {"a": PASS}}, {"errors": ("y.yaml:3: bad", "z")},
         ("FAIL", "Do not ship: y.yaml:3: bad, and 1 more")),
        ({}, {"errors": ("y.yaml:3: bad",)}, ("FAIL", "Do not ship: y.yaml:3: bad")),
        ({"x": {"a": PASS}}, {"stopped": "KeyboardInterrupt"},
         ("NOT_MEASURED", "Not decided: stopped early: KeyboardInterrupt")),
        ({"x": {"a": PASS, "b": None}}, {"stopped": "KeyboardInterrupt"},
         ("NOT_MEASURED",
          "Not decided: 1 passed, 1 gate did not run; stopped early: KeyboardInterrupt")),
        ({"x": {"a": PASS}}, {"orphans": ("old/x.json",)},
         ("NOT_MEASURED", "Not decided: 1 orphaned baseline: old/x.json")),
        ({"x": {"a": PASS}}, {"own": {"t": PASS}},
         ("PASS", "May ship: 1 gate and 1 own test passed")),
        ({"x": {"a": PASS}}, {"own": {"t": FAIL, "u": PASS}}, ("FAIL", "Do not ship: own test t")),
        ({"x": {"a": FAIL}}, {"own": {"t": FAIL, "u": FAIL}},
         ("FAIL", "Do not ship: a; own tests t, u")),
        ({"x": {"a": PASS}}, {"own": {"t": UNSURE}}, ("INCONCLUSIVE", "Not decided: own test t")),
        ({"x": {"a": PASS}}, {"own": {"t": MISSING}},
         ("NOT_MEASURED", "Not decided: own test t not measured")),
        ({"x": {"a": PASS}}, {"own": {"t": MISSING}, "allow_unmeasured": ("tests",)},
         ("PASS", "May ship: 1 gate passed")),
        ({}, {"own": {"t": PASS}}, ("NOT_MEASURED", "Not decided: no gate ran")),
    ],
)  # fmt: skip
def test_a_run_is_its_worst_part(
    suites: dict[str, dict[str, Status | None]], changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert said(results(suites, **changes)) == expected


def test_what_is_allowed_to_be_missing_is_named_and_nothing_else_is() -> None:
    gates = {"a": PASS, "engine[sm89]": MISSING, "engine[sm120]": None, "latency[x]": MISSING}
    by_option = results({"clip": gates}, allow_unmeasured=("engine", "latency"))
    by_suite = results({"clip": gates}, allow={"clip": ("engine", "latency")})
    some = results({"clip": gates}, allow_unmeasured=("engine",))
    two = results(
        {"x": {"a": PASS, "latency[x]": MISSING}, "y": {"b": PASS}}, allow_unmeasured=("latency",)
    )

    allowed = "engine[sm89], latency[x], engine[sm120]"
    for found in (by_option, by_suite):
        assert said(found) == ("PASS", f"May ship: 1 gate passed; allowed to be missing: {allowed}")
    assert said(some) == ("NOT_MEASURED", "Not decided: latency[x] not measured")
    assert said(two) == (
        "PASS",
        "May ship: 2 gates of 2 suites passed; allowed to be missing: latency[x] of x",
    )


def test_waivers_stand_in_the_sentence_with_the_first_day_on_which_one_ends() -> None:
    def waived(found: Results, *, until: dict[str, str]) -> Results:
        rows = [
            replace(row, verdict=replace(row.verdict, figures={"waivers": 2, "waived_until": day}))
            for row in found.rows
            for day in [until[row.suite]]
        ]
        return replace(found, rows=tuple(rows))

    one = waived(results({"x": {"a": PASS}}), until={"x": "2027-03-01"})
    two = waived(
        results({"x": {"a": PASS, "b": None}, "y": {"a": PASS}}, allow_unmeasured=("b",)),
        until={"x": "2027-03-01", "y": "2027-02-01"},
    )

    assert conclude(one).suites[0].sentence == "may ship: 1 gate passed, 2 waivers until 2027-03-01"
    assert said(one) == ("PASS", "May ship: 1 gate passed, 2 waivers until 2027-03-01")
    assert said(two)[1] == (
        "May ship: 2 gates of 2 suites passed, 4 waivers until 2027-02-01; allowed to be missing: "
        "b of x"
    )


def test_a_gate_that_failed_is_not_allowed_to() -> None:
    found = results({"clip": {"a": PASS, "engine[x]": FAIL}}, allow_unmeasured=("engine",))

    assert said(found) == ("FAIL", "Do not ship: engine[x]")


def test_a_run_says_no_more_than_its_only_suite_unless_there_is_more() -> None:
    assert not conclude(results({"x": {"a": PASS}})).says_more
    assert conclude(results({"x": {"a": PASS}, "y": {"a": PASS}})).says_more
    assert conclude(results({"x": {"a": PASS}}, own={"t": PASS})).says_more
    assert conclude(results({"x": {"a": PASS}}, stopped="x")).says_more


def test_different_answers_are_a_failure_with_all_of_them() -> None:
    again = join_attempts((verdict("latency", FAIL), verdict("latency", PASS)))

    assert again.status is FAIL
    assert again.code == "latency.two-answers"
    assert again.headline == "latency: 2 attempts, different answers: FAIL, then PASS"
    assert again.evidence == (
        "attempt 1: FAIL latency: text",
        "attempt 2: PASS latency: text",
    )


def test_different_results_are_a_failure_with_the_names_of_all() -> None:
    found = join_answers(
        [("cpu", verdict("latency", MISSING)), ("a", verdict("latency", UNSURE)),
         ("b", verdict("latency", PASS))]
    )  # fmt: skip

    assert found.status is FAIL
    assert found.code == "latency.two-answers"
    assert found.headline == "latency: 2 results, different answers: INCONCLUSIVE in a, PASS in b"
    assert found.evidence == ("a: INCONCLUSIVE latency: text", "b: PASS latency: text")
    assert join_answers([("a", verdict("x", MISSING)), ("b", verdict("x", PASS))]).passed
    assert join_answers([("a", verdict("x", MISSING))]).status is MISSING


def test_what_results_do_not_have_in_common_decides_a_run_that_is_not_red() -> None:
    green = {"x": {"a": PASS}}

    assert said(results(green, incomparable=("m differs", "n"))) == (  # type: ignore[arg-type]
        "INCOMPARABLE",
        "Not decided: m differs, and 1 more",
    )
    assert said(results(green, unanswered=("no GPU",))) == (  # type: ignore[arg-type]
        "NOT_MEASURED",
        "Not decided: no GPU",
    )
    red = results({"x": {"a": FAIL}}, incomparable=("m differs",))
    assert said(red) == ("FAIL", "Do not ship: a")


def test_an_advisory_suite_decides_nothing_and_is_named() -> None:
    found = results({"x": {"a": PASS}, "y": {"a": FAIL}})
    first, second = found.suites

    advisory = replace(found, suites=(first, replace(second, advisory=True)))
    assert said(advisory) == ("PASS", "May ship: 1 gate passed; advisory and not passed: y")
    neither = tuple(replace(suite, advisory=True) for suite in found.suites)
    assert conclude(replace(found, suites=neither)).status is MISSING


statuses = st.sampled_from(Status)
suites = st.dictionaries(
    st.sampled_from(["x", "y", "z"]),
    st.dictionaries(
        st.sampled_from(["coverage", "engine[a]", "engine[b]", "latency[a]"]),
        st.none() | statuses,
        min_size=1,
    ),
    max_size=3,
)
runs = st.builds(
    results,
    suites,
    own=st.dictionaries(st.sampled_from(["t", "u"]), statuses, max_size=2),
    allow_unmeasured=st.sets(st.sampled_from(["engine", "latency", "tests"])).map(tuple),
    errors=st.sampled_from([(), ("bad",)]),
    stopped=st.sampled_from(["", "Ctrl-C"]),
    orphans=st.sampled_from([(), ("old",)]),
    not_run=st.just({("x", "coverage"): DESELECTED}),
)


@given(st.lists(statuses, min_size=1, max_size=4))
def test_only_attempts_that_all_pass_are_green(found: list[Status]) -> None:
    joined = join_attempts([verdict("a", status) for status in found])

    assert joined.passed == (set(found) == {PASS})
    assert joined.status in {*found, FAIL}


@given(runs)
def test_only_a_run_without_a_fault_may_ship(found: Results) -> None:
    conclusion = conclude(found)
    kinds = set(found.allow_unmeasured)
    judged = {(row.suite, row.gate): row.verdict.status for row in found.rows}

    def is_fine(suite: SuiteGates) -> bool:
        statuses = {gate: judged.get((suite.suite, gate), MISSING) for gate in suite.gates}
        return PASS in statuses.values() and all(
            status is PASS or (status is MISSING and gate.partition("[")[0] in kinds)
            for gate, status in statuses.items()
        )

    own = [test.verdict.status for test in found.own_tests]
    if "tests" in kinds:
        own = [status for status in own if status is not MISSING]
    fine = (
        bool(found.suites)
        and all(map(is_fine, found.suites))
        and all(status is PASS for status in own)
        and not (found.errors or found.stopped or found.orphans)
    )
    assert (conclusion.status is PASS) == fine
    assert conclusion.sentence.startswith("May ship: ") == fine
    assert conclusion.sentence.startswith("Do not ship: ") == (conclusion.status is FAIL)


@given(runs, st.randoms(use_true_random=False))
def test_the_order_of_what_ran_says_nothing(found: Results, draw: Any) -> None:
    def shuffled(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(draw.sample(values, len(values)))

    other = replace(found, rows=shuffled(found.rows))

    def verdicts(conclusion: Conclusion) -> list[tuple[str, Status]]:
        return [(suite.suite, suite.status) for suite in conclusion.suites]

    assert conclude(other).status is conclude(found).status
    assert verdicts(conclude(other)) == verdicts(conclude(found))


@pytest.mark.parametrize(
    ("suites", "labels"),
    [
        (["suites/clip"], ["clip"]),
        (["suites/clip", "suites/clip_int8"], ["clip", "clip_int8"]),
        (["team_a/clip", "team_b/clip"], ["team_a/clip", "team_b/clip"]),
        (["a/x/clip", "b/x/clip", "c/vit"], ["a/x/clip", "b/x/clip", "vit"]),
        (["clip", "suites/clip"], ["clip", "suites/clip"]),
        (["suites/my_clip", "clip"], ["my_clip", "clip"]),
    ],
)
def test_suite_is_called_by_as_little_of_its_path_as_tells_it_apart(
    suites: list[str], labels: list[str]
) -> None:
    found = results({suite: {"a": FAIL} for suite in suites})

    assert label_suites(suites) == dict(zip(suites, labels, strict=True))
    assert [suite.label for suite in conclude(found).suites] == labels
    if len(labels) in (2, 3):
        assert said(found)[1].endswith(f" suites: {', '.join(labels)}")
