"""ONNX Runtime must compute what the graph says: the level in use is proven here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.models.clip import ClipModel, PairBatch
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel, Optimization

MakePairs = Callable[..., list[PairBatch]]
PATCH = ("*patch_embedding*",)


@pytest.fixture(scope="module")
def towers(
    tiny_fp16: ClipModel,
    make_quantized: Callable[..., ClipModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[ClipModel, Path]]:
    """Exported text towers by recipe, with the model that each was made from."""
    folder = tmp_path_factory.mktemp("onnx")
    made = {}
    for recipe in ("fp16", "fp8-attention", "int8"):
        model = tiny_fp16 if recipe == "fp16" else make_quantized(recipe, exclude=PATCH)
        path = folder / f"{recipe}.onnx"
        export_tower(model, tower="text", path=path)
        made[recipe] = (model, path)
    return made


@pytest.fixture
def batch(make_pairs: MakePairs) -> PairBatch:
    return make_pairs(batches=1, size=3, seed=5)[0]


def error_of(
    model: ClipModel, path: Path, batch: PairBatch, *, optimization: Optimization | None = None
) -> float:
    """Return the relative error against PyTorch of the middle sample.

    Not of all: where a value lies on the edge between two steps, two runtimes may round it apart.
    """
    tokens = {name: value.numpy() for name, value in batch.tokens.items()}
    found = OnnxRuntimeModel(path, optimization=optimization).run_text(**tokens)
    wanted = model.encode_text(batch.tokens).numpy()
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(np.median(errors))


@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention", "int8"])
def test_chosen_level_computes_what_pytorch_does(
    recipe: str, towers: Any, batch: PairBatch
) -> None:
    model, path = towers[recipe]
    assert OnnxRuntimeModel(path).optimization == ("none" if "fp8" in recipe else "all")
    assert error_of(model, path, batch) < 1e-5


def test_basic_level_falsifies_fp8_without_zero_points(
    towers: Any, batch: PairBatch, tmp_path: Path
) -> None:
    """Why FP8 runs with no optimization at all.

    A DequantizeLinear may leave its zero point out, as ModelOpt's do. ONNX Runtime then copies
    the pair behind the next Transpose with no zero point either, and a QuantizeLinear without
    one gives uint8. Our own graphs have zero points, and are right at this level.
    """
    model, path = towers["fp8-attention"]
    graph = onnx.load(path)
    for node in graph.graph.node:
        if node.op_type == "DequantizeLinear":
            del node.input[2:]
    onnx.checker.check_model(graph, full_check=True)
    bare = tmp_path / "bare.onnx"
    onnx.save(graph, bare)
    assert error_of(model, bare, batch, optimization="basic") > 1e-2
    assert error_of(model, bare, batch) < 1e-5
    assert error_of(model, path, batch, optimization="basic") < 1e-5


@pytest.mark.parametrize("level", ["extended", "all"])
def test_higher_levels_refuse_fp8(level: Optimization, towers: Any) -> None:
    _, path = towers["fp8-attention"]
    with pytest.raises(ModelError, match=rf"does not take it \(optimization {level}\)"):
        OnnxRuntimeModel(path, optimization=level)


def test_int8_runs_on_integer_kernels(towers: Any) -> None:
    def integers(recipe: str, optimization: Optimization | None = None) -> dict[str, int]:
        _, path = towers[recipe]
        session = OnnxRuntimeModel(path, optimization=optimization)
        return {k.operator: k.count for k in session.list_executed_kernels() if k.integer}

    # Two blocks of six layers and the projection; without the optimizer, not one.
    assert integers("int8") == {"MatMulIntegerToFloat": 13}
    assert integers("int8", "none") == {}
    assert integers("fp16") == {}
    assert integers("fp8-attention") == {}


def test_kernels_are_counted_per_forward(towers: Any) -> None:
    _, path = towers["fp16"]
    kernels = OnnxRuntimeModel(path).list_executed_kernels(batch=2)
    assert {k.provider for k in kernels} == {"CPUExecutionProvider"}
    counts = {k.operator: k.count for k in kernels}
    assert counts["Softmax"] == 2
    assert [k.count for k in kernels] == sorted(counts.values(), reverse=True)


def test_wrong_tower_is_named(towers: Any) -> None:
    _, path = towers["fp16"]
    with pytest.raises(ModelError, match=r"takes attention_mask, input_ids, was given pixel_val"):
        OnnxRuntimeModel(path).run_image(np.zeros((1, 3, 48, 48), dtype=np.float32))


def test_half_graph_runs_too(
    make_quantized: Callable[..., ClipModel], batch: PairBatch, tmp_path: Path
) -> None:
    """A half graph is for TensorRT; ONNX Runtime computes it in float between casts."""
    path = tmp_path / "half.onnx"
    model = make_quantized("int8", exclude=PATCH)
    export_tower(model, tower="text", path=path, precision="float16")
    assert error_of(model, path, batch) < 0.1


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        OnnxRuntimeModel(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelError, match="is no ONNX model"):
        OnnxRuntimeModel(tmp_path / "text.onnx")


def test_says_what_to_install(towers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackage, match="onnxruntime"):
        OnnxRuntimeModel(towers["fp16"][1])
