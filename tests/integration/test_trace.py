"""The trace gate on the tiny CLIP: from the recipe into an engine that is built ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]


@pytest.fixture
def write_trace(write_suite: WriteSuite) -> Callable[..., Path]:
    """Write the tiny suite with one trace gate in the place of its round trip."""

    def write(gate: str, *, recipe: str, softmax: bool = True) -> Path:
        export = "export: {allow: [softmax]}\n  " if softmax else ""
        return write_suite(recipe=recipe, replace={"roundtrip: {}": f"{export}trace: {gate}"})

    return write


def test_every_quantizer_is_followed_into_the_engine_and_the_table_is_shown(
    write_trace: Callable[..., Path], run_gates: Run
) -> None:
    pytest.importorskip("tensorrt_rtx")
    write_trace("{target: sm89}", recipe='fp8-attention, exclude: ["*patch_embedding*"]')

    result = run_gates("-k", "trace", "-rP")

    result.assert_outcomes(passed=1, deselected=7)
    result.stdout.fnmatch_lines(
        [
            "trace: * of * quantizers followed from the recipe into tensorrt_rtx *",
            "quantizers * declared * model * forward * onnx * engine",
            "vision attention *",
            "all *",
            "  PASS  trace[[]sm89[]]*",
        ]
    )


def test_attention_that_falls_back_to_half_for_want_of_softmax_pairs_is_named(
    write_trace: Callable[..., Path], run_gates: Run
) -> None:
    pytest.importorskip("tensorrt_rtx")
    recipe = 'fp8-attention, exclude: ["*patch_embedding*"]'
    write_trace("{target: sm89}", recipe=recipe, softmax=False)

    result = run_gates("-k", "trace")

    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(
        [
            "FAIL trace: 4 of * do not reach the engine: *.self_attn.v_bmm_quantizer: "
            "*/self_attn/MatMul_1 runs in half, in kernel *"
        ]
    )


def test_a_preset_without_the_vision_tower_is_lost_in_the_model(
    write_trace: Callable[..., Path], run_gates: Run
) -> None:
    write_trace("{}", recipe="FP8_DEFAULT_CFG", softmax=False)

    result = run_gates("-k", "trace")

    result.assert_outcomes(failed=1, deselected=6)
    result.stdout.fnmatch_lines(
        [
            "FAIL trace: * are switched off in the model: vision_model.*",
            "    quantizers * declared * model * forward * onnx",
            "    vision layers * 0 * 0 * 0",
            "    vision_model.embeddings.patch_embedding.input_quantizer",
            "*likely cause: pattern '[*]vision_model[*]' switched it off*",
            "*next step: look at the coverage gate; *",
        ]
    )


def test_quantizers_that_an_export_drops_are_lost_in_onnx(
    write_trace: Callable[..., Path],
    run_gates: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pytest_quantgate.runtimes import onnx_graph

    read = onnx_graph.read_graph

    def read_without_one_block(path: Path, **options: Any) -> Any:
        found = read(path, **options)
        kept = tuple(p for p in found.pairs if "layers.1.mlp.fc2" not in str(p.quantizer))
        return replace(found, pairs=kept)

    monkeypatch.setattr(onnx_graph, "read_graph", read_without_one_block)
    write_trace("{}", recipe="fp8-attention")

    result = run_gates("-k", "trace", f"--quantgate-cache-dir={tmp_path}")

    result.assert_outcomes(failed=1, deselected=7)
    result.stdout.fnmatch_lines(
        [
            "FAIL trace: 4 of * quantizers are not in the ONNX graph: "
            "text_model.encoder.layers.1.mlp.fc2.*: no Q/DQ pair in the text graph *",
            "*next step: look at the export gate, *",
        ]
    )
