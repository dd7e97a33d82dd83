"""Why a quantizer never ran, and the shortest exclusion that switches it off and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_quantgate.evidence.audit import Quantizer
from pytest_quantgate.gates.idle import advise_idle, exclude_words
from tests.unit.gates.gate_builders import make_audit, make_quantizer, matching

ALL = make_audit().quantizers
SOFTMAX = make_quantizer("vision_model.layers.0.self_attn.softmax_quantizer", slot="softmax")


def pick(pattern: str) -> list[Quantizer]:
    names = matching(make_audit(), pattern)
    return [quantizer for quantizer in ALL if quantizer.name in names]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*q_bmm*", '"*q_bmm_quantizer"'),
        ("*fc1.weight*", '"*weight_quantizer"'),
        ("vision*q_bmm*", '"vision_model.*q_bmm_quantizer"'),
        (
            "*layers.0*q_bmm*",
            '"*0.self_attn.q_bmm_quantizer"',
        ),
        (
            "vision*.0.*q_bmm*",
            '"vision_model.layers.0.self_attn.q_bmm_quantizer"',
        ),
        (
            "vision*.0.*fc1*",
            '"vision_model.layers.0.mlp.fc1.input_quantizer", '
            '"vision_model.layers.0.mlp.fc1.weight_quantizer"',
        ),
    ],
)
def test_exclusion_is_the_shortest_that_matches_nothing_else(pattern: str, words: str) -> None:
    assert exclude_words(pick(pattern), among=ALL) == f"add exclude: [{words}]"


def test_what_is_off_may_match_too() -> None:
    among = [replace(q, enabled=not q.name.startswith("text")) for q in ALL]

    assert exclude_words(pick("vision*q_bmm*"), among=among) == (
        'add exclude: ["*q_bmm_quantizer"]'
    )


@pytest.mark.parametrize(
    ("idle", "attention", "cause", "step"),
    [
        (pick("*q_bmm*"), "eager", "the attention class intercepts another call", "set model.attn"),
        (pick("*q_bmm*"), "sdpa", "the attention class intercepts another call", "run the model"),
        ([SOFTMAX, *pick("*q_bmm*")], "eager", "the attention class intercepts", "set model.attn"),
        ([SOFTMAX], "sdpa", "the probabilities of attention are never handed", "add exclude"),
        ([SOFTMAX], "eager", "the probabilities of attention are never handed", "add exclude"),
        ([SOFTMAX, *pick("*fc1.input*")], "sdpa", "nothing calls these modules", "add exclude"),
        (pick("*fc1.input*"), "eager", "nothing calls these modules", "add exclude"),
        ([], "sdpa", "nothing calls these modules", "add exclude"),
    ],
)
def test_cause_is_that_of_the_quantizers_place(
    idle: list[Quantizer], attention: str, cause: str, step: str
) -> None:
    found, mend = advise_idle(idle, among=[*ALL, SOFTMAX], attention=attention)

    assert found.startswith(cause)
    assert mend.startswith(step)
    if step == "add exclude":
        assert mend == exclude_words(idle, among=[*ALL, SOFTMAX])
    if step == "run the model":
        assert mend.endswith(exclude_words(idle, among=[*ALL, SOFTMAX]))
