"""A narrow graph is computed as hardware computes it: every result rounded, nothing kept wide."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.measure.shipped import measure_shipped
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnx_graph import read_graph
from pytest_quantgate.runtimes.onnx_rounding import LARGEST, round_results
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def write_graph(path: Path, kind: int) -> Path:
    """Write x * 1000 * 0.001, which leaves float16 in between."""
    types = helper.tensor_dtype_to_np_dtype(kind)
    factors = [
        onnx.numpy_helper.from_array(np.asarray(value, dtype=types), name)
        for name, value in (("up", 1000.0), ("down", 0.001))
    ]
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["large"], name="/blocks.0/first/Mul"),
        helper.make_node("Mul", ["large", "down"], ["small"], name="/blocks.1/Mul"),
        helper.make_node("Cast", ["small"], ["embeddings"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 2])],
        factors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("dtype", KINDS)
def test_every_result_is_rounded(dtype: str, tmp_path: Path) -> None:
    source = write_graph(tmp_path / "narrow.onnx", KINDS[dtype])
    round_results(source, path=tmp_path / "rounded.onnx")
    values = np.array([[100.0, 1.2345]], dtype=np.float32)

    found = OnnxRuntimeModel(tmp_path / "rounded.onnx", optimization="none").run({"x": values})

    kind = getattr(torch, dtype)
    narrow = torch.from_numpy(values).to(kind)
    expected = narrow * torch.tensor(1000.0, dtype=kind) * torch.tensor(0.001, dtype=kind)
    np.testing.assert_array_equal(found["embeddings"], expected.float().numpy())
    assert np.isinf(found["embeddings"][0, 0]) == (dtype == "float16")


def test_largest_values_are_told_by_module_in_order(tmp_path: Path) -> None:
    source = write_graph(tmp_path / "narrow.onnx", TensorProto.FLOAT16)
    round_results(source, path=tmp_path / "rounded.onnx", look=True)
    session = OnnxRuntimeModel(tmp_path / "rounded.onnx", optimization="none")

    found = session.run({"x": np.array([[100.0, 1.0]], dtype=np.float32)})

    names = [name for name in found if name.startswith(LARGEST)]
    assert names == [f"{LARGEST}0:blocks.0.first", f"{LARGEST}1:blocks.1"]
    assert float(found[names[0]]) == 1e5


def test_optimizer_of_the_runtime_would_hide_it(tmp_path: Path) -> None:
    """Why the graph is rewritten: this version computes float16 in float32 on this CPU.

    Where one day it does not, the rewriting can go.
    """
    source = write_graph(tmp_path / "narrow.onnx", TensorProto.FLOAT16)
    try:
        found = OnnxRuntimeModel(source, optimization="none").run(
            {"x": np.array([[100.0, 1.0]], dtype=np.float32)}
        )
    except Exception as error:  # noqa: BLE001 (a runtime without the kernel is no failure)
        pytest.skip(str(error))
    if np.isinf(found["embeddings"][0, 0]):
        pytest.skip("this CPU has float16 kernels")
    assert found["embeddings"][0, 0] == pytest.approx(100, rel=1e-2)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_exported_towers_give_what_pytorch_gives_in_the_same_format(
    tower: Any,
    dtype: Any,
    make_quantized: Callable[..., Encoder],
    tiny_fp16: Encoder,
    make_pairs: MakePairs,
    tmp_path: Path,
) -> None:
    exported = export_tower(
        make_quantized("fp8"), tower=tower, path=tmp_path / "tower.onnx", precision=dtype
    )
    audit = read_graph(exported.path)

    assert audit.problems == ()
    assert audit.precision == dtype
    assert dict(audit.weights_bytes).keys() >= {dtype, "E4M3"}
    assert audit.lost == ()

    found = measure_shipped(
        exported.path,
        tower=tower,
        fp16=tiny_fp16,
        batches=make_pairs(),
        dtype=dtype,
        workers=1,
    )

    assert (found.samples, found.nonfinite, found.first) == (8, 0, "")
    assert 10 < found.sqnr_db < found.rounding_db
    assert found.rounding_db > (50 if dtype == "float16" else 35)


def test_overflow_names_the_module_of_the_first_value(
    tiny_fp16: Encoder, make_pairs: MakePairs, tmp_path: Path
) -> None:
    module = copy.deepcopy(tiny_fp16.module)
    pairs = make_pairs()
    pairs[1].pixel_values[2] *= 1e3
    with torch.no_grad():
        module.vision_model.embeddings.patch_embedding.weight.mul_(1e3)  # type: ignore[union-attr,operator]
    model = replace(tiny_fp16, module=module)
    path = tmp_path / "tower.onnx"
    export_tower(model, tower="vision", path=path, precision="float16")

    found = measure_shipped(
        path, tower="vision", fp16=model, batches=pairs, dtype="float16", workers=1
    )

    assert found.nonfinite == 1
    assert found.first == "vision_model.embeddings.patch_embedding"
    assert found.largest > 65504
