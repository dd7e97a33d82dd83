"""Vision towers of Qwen2.5-VL, Qwen3-VL and InternVL, through every gate of a suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.test_llava_gates import ENGINE, GATES, SUITE
from tests.tower_models import KINDS, Kind, save_tower_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("timed_once")]

Run = Callable[..., pytest.RunResult]

#: Linear layers of each tower: qkv is one of them, the merger or projector are two.
LINEARS = {"qwen2_5_vl": 17, "qwen3_vl": 16, "internvl": 14}


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_every_gate_that_needs_no_text(
    pytester: pytest.Pytester, tmp_path: Path, run_gates: Run, kind: Kind, recipe: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    save_tower_model(kind, tmp_path / kind)
    fp8 = recipe == "fp8-attention"
    more = ENGINE.replace("min_fp8_gemms: 14", f"min_fp8_gemms: {LINEARS[kind]}")
    gates = GATES + more if fp8 else GATES.replace("allow: [softmax]", "") + "  trace: {}\n"
    path = pytester.path / "suites" / f"{kind}.quantgate.yaml"
    path.parent.mkdir()
    text = SUITE.format(model=tmp_path / kind, gates=gates, recipe=recipe)
    if kind != "internvl":  # a Conv3d, which no recipe of ours quantizes
        text = text.replace(', exclude: ["*patch_embed*"]', "")
    path.write_text(text, encoding="utf-8")

    result = run_gates()

    result.assert_outcomes(passed=11 if fp8 else 9)
    result.stdout.fnmatch_lines(["*an image runs*", "*% of matrix weights*"])
