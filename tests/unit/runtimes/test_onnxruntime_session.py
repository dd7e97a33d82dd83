"""ONNX Runtime must compute what the graph says: the level in use is proven here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import (
    LEVELS,
    SLICE_SAMPLES,
    OnnxRuntimeModel,
    Optimization,
    list_providers,
    require_provider,
)

MakePairs = Callable[..., list[Batch]]
PATCH = ("*patch_embedding*",)


@pytest.fixture(scope="module")
def towers(
    tiny_fp16: Encoder,
    make_quantized: Callable[..., Encoder],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Encoder, Path]]:
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
def batch(make_pairs: MakePairs) -> Batch:
    return make_pairs(batches=1, size=3, seed=5)[0]


def error_of(
    model: Encoder, path: Path, batch: Batch, *, optimization: Optimization | None = None
) -> float:
    """Return the relative error against PyTorch of the middle sample.

    Not of all: where a value lies on the edge between two steps, two runtimes may round it apart.
    """
    tokens = {name: value.numpy() for name, value in batch.tokens.items()}
    found = OnnxRuntimeModel(path, optimization=optimization).embed(tokens)
    wanted = model.encode_text(batch.tokens).numpy()
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(np.median(errors))


@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention", "int8"])
def test_chosen_level_computes_what_pytorch_does(recipe: str, towers: Any, batch: Batch) -> None:
    model, path = towers[recipe]
    assert OnnxRuntimeModel(path).optimization == ("none" if "fp8" in recipe else "all")
    assert error_of(model, path, batch) < 1e-5


def test_weights_in_int4_run_as_they_are_written(tmp_path: Path) -> None:
    """Optimized, ONNX Runtime computes the product itself in fewer bits: an error of 0.5 %."""
    helper, kinds = onnx.helper, onnx.TensorProto
    generator = np.random.default_rng(0)
    codes = generator.integers(-7, 8, (64, 64))
    scales = generator.uniform(0.01, 0.02, (2, 64)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0, block_size=32),
        helper.make_node("MatMul", ["pixel_values", "wf"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, kinds.FLOAT, [3, 64]) for name in ("pixel_values", "y")
    ]
    weight = helper.make_tensor("w", kinds.INT4, [64, 64], codes.ravel().tolist())
    scale = onnx.numpy_helper.from_array(scales, "s")
    graph = helper.make_graph(nodes, "int4", values[:1], values[1:], [weight, scale])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "w.onnx")
    pixels = generator.standard_normal((3, 64)).astype(np.float32)

    session = OnnxRuntimeModel(tmp_path / "w.onnx")

    assert session.optimization == "none"
    wanted = pixels @ (codes * scales.repeat(32, axis=0))
    assert np.allclose(session.embed({"pixel_values": pixels}), wanted, atol=1e-5)


def test_basic_level_falsifies_fp8_without_zero_points(
    towers: Any, batch: Batch, tmp_path: Path
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
def test_higher_levels_take_fp8_where_onnx_runtime_does(level: Optimization, towers: Any) -> None:
    """Releases differ (1.24 builds a Transpose on float8 and fails), so this one is asked."""
    _, path = towers["fp8-attention"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    options.log_severity_level = 4
    refusal = ""
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - what it raises has no other base
        refusal = str(error)
    if refusal:
        with pytest.raises(ModelError, match=rf"does not take it \(optimization {level}\)"):
            OnnxRuntimeModel(path, optimization=level)
    else:
        assert OnnxRuntimeModel(path, optimization=level).optimization == level
    # What ships runs as it is written, whatever the levels would do.
    assert OnnxRuntimeModel(path).optimization == "none"


@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention", "int8"])
def test_digits_do_not_depend_on_the_number_of_workers(
    recipe: str, towers: Any, make_pairs: MakePairs
) -> None:
    model, path = towers[recipe]
    (large,) = make_pairs(batches=1, size=2 * SLICE_SAMPLES + 3, seed=6)
    tokens = {name: value.numpy() for name, value in large.tokens.items()}

    found = {
        workers: OnnxRuntimeModel(path, workers=workers).embed(tokens) for workers in (1, 2, 3)
    }

    assert len(found[1]) == 2 * SLICE_SAMPLES + 3
    assert found[1].tobytes() == found[2].tobytes() == found[3].tobytes()
    # In their order: each sample is the one that it was given as.
    wanted = model.encode_text(large.tokens).numpy()
    errors = np.linalg.norm(found[2] - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert np.median(errors) < 1e-5
    assert errors.max() < 0.2


def test_int8_runs_on_integer_kernels(towers: Any, tmp_path: Path) -> None:
    def count_integers(recipe: str, level: Optimization) -> int:
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = getattr(levels, LEVELS[level])
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(towers[recipe][1], options)
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        return sum(node.op_type == "MatMulIntegerToFloat" for node in nodes)

    # Two blocks of six layers and the projection; without the optimizer, not one.
    assert count_integers("int8", OnnxRuntimeModel(towers["int8"][1]).optimization) == 13
    assert count_integers("int8", "none") == 0
    assert count_integers("fp16", "all") == 0


def test_wrong_tower_is_named(towers: Any) -> None:
    _, path = towers["fp16"]
    with pytest.raises(ModelError, match=r"takes attention_mask, input_ids, was given pixel_val"):
        OnnxRuntimeModel(path).embed({"pixel_values": np.zeros((1, 3, 48, 48), dtype=np.float32)})


def test_half_graph_runs_too(
    make_quantized: Callable[..., Encoder], batch: Batch, tmp_path: Path
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


# -- providers, and tensors that are bound -------------------------------------------------------


def test_a_bound_run_gives_what_a_fed_one_does(towers: Any, batch: Batch) -> None:
    _, path = towers["fp16"]
    model = OnnxRuntimeModel(path)
    run, result = model.bind(dict(batch.tokens), device="cpu")
    result.zero_()
    run()
    wanted = model.embed({name: value.numpy() for name, value in batch.tokens.items()})
    np.testing.assert_array_equal(result.numpy(), wanted)
    result.zero_()
    run()
    np.testing.assert_array_equal(result.numpy(), wanted)


def test_a_half_graph_is_bound_in_half(
    make_quantized: Callable[..., Encoder], batch: Batch, tmp_path: Path
) -> None:
    path = tmp_path / "half.onnx"
    export_tower(
        make_quantized("int8", exclude=PATCH), tower="vision", path=path, precision="float16"
    )
    run, result = OnnxRuntimeModel(path).bind(dict(batch.inputs["vision"]), device="cpu")
    run()
    wanted = OnnxRuntimeModel(path).embed({"pixel_values": batch.pixel_values.numpy()})
    np.testing.assert_allclose(result.float().numpy(), wanted, atol=1e-3)


def test_the_other_tower_is_not_bound(towers: Any, batch: Batch) -> None:
    _, path = towers["fp16"]
    with pytest.raises(ModelError, match="it is the other tower"):
        OnnxRuntimeModel(path).bind(dict(batch.inputs["vision"]), device="cpu")


def test_a_bound_run_that_stops_says_so(towers: Any, batch: Batch) -> None:
    _, path = towers["fp16"]
    wrong = {name: value[:, :3] for name, value in batch.tokens.items()}
    run, _ = OnnxRuntimeModel(path).bind(wrong, device="cpu")
    with pytest.raises(ModelError, match="ONNX Runtime stopped: "):
        run()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.mark.skipif(_has_gpu(), reason="there is a GPU: its providers may really load")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_cannot_be_loaded_is_not_measured(provider: Any, towers: Any) -> None:
    """ONNX Runtime itself would run on the CPU and say so on standard error alone."""
    names = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    if names[provider] not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime is built without {names[provider]}")
    _, path = towers["fp16"]
    with pytest.raises(NotMeasured, match=r"could not load \w+ExecutionProvider, which needs"):
        OnnxRuntimeModel(path, provider=provider, stream=77)


def test_a_provider_must_be_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert require_provider("cpu") == onnxruntime.__version__
    with pytest.raises(NotMeasured, match=r"has no CUDAExecutionProvider .* onnxruntime-gpu"):
        require_provider("cuda")


def test_a_provider_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotMeasured, match="CUDAExecutionProvider runs on an NVIDIA GPU, and torch"):
        require_provider("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert require_provider("cuda")


def test_both_providers_of_a_gpu_get_the_stream() -> None:
    found = dict(list_providers("tensorrt", stream=77))
    assert list(found) == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    for name in ("TensorrtExecutionProvider", "CUDAExecutionProvider"):
        assert found[name]["user_compute_stream"] == "77"
        assert found[name]["has_user_compute_stream"] == "1"
    assert found["CPUExecutionProvider"] == {}
    assert list_providers("cpu", stream=0) == [("CPUExecutionProvider", {})]
