"""Which red gates follow from another: by their codes, or by the same sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.run.consequences import fold, list_followers
from pytest_quantgate.suite.gates import list_kinds

OFF = "coverage.attention-missing"


def red(code: str, *, says: str = "", others: tuple[str, ...] = ()) -> Verdict:
    gate = code.partition(".")[0]
    return Verdict(
        gate=gate,
        status=Status.FAIL,
        headline=f"{gate}: {says or code}",
        code=code,
        other_codes=others,
    )


def follows(*verdicts: Verdict) -> dict[str, str]:
    folded = fold({verdict.gate: verdict for verdict in verdicts})
    return {gate: verdict.follows for gate, verdict in folded.items() if verdict.follows}


def test_what_was_never_quantized_explains_every_stage_after_it() -> None:
    found = follows(
        red(OFF),
        red("export.softmax-impossible"),
        red("engine.attention-not-fused"),
        red("trace.lost-at-model"),
    )

    assert found == dict.fromkeys(("export", "engine", "trace"), "coverage")


def test_the_cause_is_the_first_of_a_chain() -> None:
    chain = (red("export.quantizers-lost"), red("engine.too-few-fp8"), red("trace.lost-at-engine"))

    assert follows(*chain) == {"engine": "export", "trace": "export"}


@pytest.mark.parametrize("status", [Status.PASS, Status.NOT_MEASURED])
def test_nothing_follows_from_what_is_not_red(status: Status) -> None:
    assert follows(replace(red(OFF), status=status), red("export.tower-idle")) == {}


def test_nothing_green_and_nothing_unmeasured_follows() -> None:
    for status in (Status.PASS, Status.NOT_MEASURED):
        assert follows(red(OFF), replace(red("export.tower-idle"), status=status)) == {}


def test_a_finding_of_its_own_keeps_a_gate_from_following() -> None:
    mixed = red("export.tower-idle", others=("export.values-differ",))

    assert follows(red(OFF), mixed) == {}
    assert follows(red(OFF), replace(mixed, other_codes=("export.too-large",))) == {
        "export": "coverage"
    }


def test_a_further_finding_explains_too() -> None:
    both = red("coverage.waiver-expired", others=(OFF,))

    assert follows(both, red("trace.lost-at-model")) == {"trace": "coverage"}
    assert follows(red("coverage.waiver-expired"), red("trace.lost-at-model")) == {}


def test_one_sentence_is_one_cause() -> None:
    says = "the recipe is not there"
    gates = ("coverage.model-unusable", "export.model-unusable", "parity.model-unusable")

    assert follows(*(red(code, says=says) for code in gates)) == dict.fromkeys(
        ("export", "parity"), "coverage"
    )
    assert follows(red(gates[0], says=says), red(gates[1], says="another")) == {}


def test_several_gates_of_a_kind_are_told_apart() -> None:
    verdicts = {
        "accuracy[a]": red("accuracy.data-unusable", says="no file"),
        "accuracy[b]": red("accuracy.data-unusable", says="no file"),
        "accuracy[c]": red("accuracy.data-unusable", says="no folder"),
    }

    folded = fold(verdicts)

    assert list_followers(folded, cause="accuracy[a]") == ["accuracy[b]"]


def test_combining_keeps_the_codes_of_all_findings() -> None:
    found = combine(gate="export", parts=(red("export.too-large"), red("export.tower-idle"),
                                          red("export.tower-idle")))  # fmt: skip

    assert (found.code, found.other_codes) == ("export.too-large", ("export.tower-idle",))


RELATED = [pair for kind in list_kinds() for pair in kind.follows.items()]
NAMED = {code.replace("*", "x") for mine, theirs in RELATED for code in (mine, *theirs)}
CODES = sorted(NAMED | {OFF, "accuracy.chance", "parity.nonfinite"})


@given(st.lists(st.tuples(st.sampled_from(CODES), st.sampled_from(Status)), max_size=8))
def test_folding_changes_no_verdict_and_ends_at_a_cause_of_its_own(
    found: list[tuple[str, Status]],
) -> None:
    verdicts = {
        f"{code.partition('.')[0]}[{number}]": replace(red(code), status=status)
        for number, (code, status) in enumerate(found)
    }

    folded = fold(verdicts)

    assert {gate: replace(v, follows="") for gate, v in folded.items()} == verdicts
    order = list(folded)
    for gate, verdict in folded.items():
        if verdict.follows:
            cause = folded[verdict.follows]
            assert order.index(verdict.follows) < order.index(gate)
            assert cause.follows == ""
            assert cause.status.severity > Status.NOT_MEASURED.severity
    assert fold(folded) == folded
