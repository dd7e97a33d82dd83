"""The roundtrip gate: bit for bit the same after a restore, and damage refused."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.roundtrip import judge_roundtrip
from tests.unit.gates.gate_builders import FILE, make_roundtrip, roundtrip_gate


def judge(**changes: Any) -> Verdict:
    return judge_roundtrip(make_roundtrip(**changes), gate=roundtrip_gate())


def test_identical_restore_that_refuses_damage_passes() -> None:
    verdict = judge()

    assert verdict.passed
    assert verdict.headline == (
        "roundtrip: both towers and 24 amax bit-identical in a new process; "
        "refused: state file missing, one amax changed"
    )
    assert verdict.brief == "24 amax and both towers bit-identical, 2 planted damages refused"
    assert verdict.gate == "roundtrip"
    assert verdict.figures["checkpoint_bytes"] == 4096
    assert verdict.figures["amax_count"] == 24
    assert verdict.figures["max_abs_difference"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"equal": {"vision": False, "text": True}, "max_abs_difference": 0.00125},
            "vision embeddings differ after the restore, by up to 0.00125",
        ),
        (
            {"equal": {"vision": True, "text": False}, "max_abs_difference": 2.0},
            "text embeddings differ after the restore, by up to 2",
        ),
        (
            {"amax_different": ("layers.0.fc1", "layers.1.fc1")},
            "2 of 24 amax differ: layers.{0-1}.fc1 (2)",
        ),
        ({"amax_count": 0}, "the checkpoint holds no amax: nothing static was quantized"),
        ({"accepted": ("state file missing",)}, "damage was accepted: state file missing"),
        (
            {"refused": (), "accepted": ()},
            "no damage was planted, so nothing shows that it would be refused",
        ),
    ],
)
def test_each_loss_fails(changes: dict[str, Any], words: str) -> None:
    verdict = judge(**changes)

    assert verdict.status is Status.FAIL
    assert verdict.headline == f"roundtrip: {words} ({FILE}:10)"
    assert verdict.evidence == ()
    assert verdict.cause
    assert "save_checkpoint" in verdict.next_step
    assert verdict.gate == "roundtrip"
    assert set(verdict.figures) == {"checkpoint_bytes", "amax_count", "max_abs_difference"}


def test_accepted_damage_fails_although_other_damage_was_refused() -> None:
    verdict = judge(refused=("one amax changed",), accepted=("state file missing",))

    assert verdict.status is Status.FAIL


def test_everything_that_is_wrong_is_listed() -> None:
    verdict = judge(
        equal={"vision": False, "text": False},
        amax_different=("fc1",),
        refused=(),
        accepted=("state file missing",),
    )

    assert "vision embeddings differ" in verdict.headline
    assert [line.split(" ")[0] for line in verdict.evidence] == ["text", "1", "damage"]


@pytest.mark.parametrize("equal", [{}, {"vision": True}])
def test_a_tower_that_was_not_compared_is_red(equal: dict[str, bool]) -> None:
    verdict = judge(equal=equal)

    assert verdict.status is Status.FAIL
    assert "the text tower was not compared" in "\n".join((verdict.headline, *verdict.evidence))


def test_a_model_of_one_tower_has_no_other() -> None:
    roundtrip = make_roundtrip(equal={"vision": True})

    assert judge_roundtrip(roundtrip, gate=roundtrip_gate(), expected=("vision",)).passed
