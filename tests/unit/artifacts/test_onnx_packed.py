"""MatMulNBits is decoded as ONNX Runtime computes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pytest_quantgate.artifacts.dequantized import list_onnx_weights
from pytest_quantgate.artifacts.onnx_file import OnnxGraph, read_onnx_graph
from pytest_quantgate.artifacts.onnx_operands import describe_onnx
from pytest_quantgate.errors import ArtifactError

LAYER = "vision_model.encoder.layers.0.mlp.fc1"


def write(
    path: Path, *, inputs: int = 64, outputs: int = 6, size: int = 16, bits: int = 4,
    zeros: str = "", scales: str = "f4", level: int = 0, short: int = 0, order: bool = False,
) -> Path:  # fmt: skip
    """Write a graph of one MatMulNBits with random codes; `zeros` are packed, or floats."""
    random, blocks = np.random.default_rng(0), -(-inputs // size)
    packed = random.integers(256, size=(outputs, blocks, size * bits // 8), dtype="u1")
    stored = {
        "w": packed.reshape(outputs, blocks, -1)[: outputs - short],
        "s": (random.normal(size=outputs * blocks)).astype(scales),
    }
    if zeros == "packed":
        stored["z"] = random.integers(256, size=outputs * -(-blocks * bits // 8), dtype="u1")
    elif zeros:
        stored["z"] = random.integers(3, 12, size=outputs * blocks).astype(scales)
    names = ["x", "w", "s", "z" if zeros else ""]
    if order:
        stored["g"] = (np.arange(inputs) // size)[::-1].astype("i4")
        names.append("g")
    while not names[-1]:
        names.pop()
    node = helper.make_node(
        "MatMulNBits", names, ["y"], f"/{LAYER.replace('.', '/')}/MatMul", domain="com.microsoft",
        K=inputs, N=outputs, bits=bits, block_size=size, accuracy_level=level,
    )  # fmt: skip
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(scales))
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", kind, ["n", inputs])],
        [helper.make_tensor_value_info("y", kind, ["n", outputs])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    onnx.save(model, path)
    return path


def compute(path: Path, *, inputs: int = 64) -> Any:
    """Return what ONNX Runtime makes of the unit matrix: the weight as [out, in]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(inputs, dtype="f4")})[0].T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zeros": "packed"},
        {"zeros": "floats"},
        {"size": 32, "zeros": "packed", "outputs": 5},
        {"size": 64, "zeros": "packed"},
        {"size": 128},
        {"bits": 8},
        {"bits": 8, "zeros": "packed"},
        {"inputs": 40, "zeros": "packed"},
    ],
    ids=str,
)
def test_a_weight_is_what_onnx_runtime_multiplies_by(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "m.onnx", **options)

    (weight,) = list_onnx_weights(read_onnx_graph(path))

    assert weight.layer == LAYER
    wanted = compute(path, inputs=options.get("inputs", 64))
    np.testing.assert_allclose(weight.read(), wanted, rtol=1e-6, atol=1e-6)


def test_the_operand_has_its_blocks_and_a_scale_of_either_sign(tmp_path: Path) -> None:
    """ONNX Runtime gives a block's scale the sign of its largest value."""
    artifact, part = describe_onnx(
        read_onnx_graph(write(tmp_path / "m.onnx", zeros="packed", level=4))
    )

    weight = next(o for o in artifact.operands if o.slot == "weight")

    assert (weight.format, weight.granularity, weight.symmetric) == ("INT4", "block", False)
    assert (weight.stored, weight.values) == ("INT4", 64 * 6)
    assert weight.ranges is not None
    assert len(weight.ranges) == 24
    assert min(weight.ranges) > 0
    assert artifact.facts["operators"] == "MatMulNBits (accuracy_level 4)"
    assert artifact.bytes_by_type["INT4"] == 64 * 6 // 2 + 12
    assert part.operators == ("MatMulNBits",)


@pytest.mark.parametrize(
    "options", [{"bits": 2}, {"short": 1}, {"order": True}, {"inputs": 63, "size": 32}], ids=str
)
def test_what_is_laid_out_otherwise_is_not_guessed(tmp_path: Path, options: dict[str, Any]) -> None:
    graph = read_onnx_graph(write(tmp_path / "m.onnx", **options))

    assert list(list_onnx_weights(graph)) == []
    (weight,) = (o for o in describe_onnx(graph)[0].operands if o.slot == "weight")
    assert weight.is_quantized


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", zeros="packed")
    wanted = next(list_onnx_weights(read_onnx_graph(path))).read()
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)

    graph: OnnxGraph = read_onnx_graph(path)

    assert graph.external == ("m.data",)
    np.testing.assert_array_equal(next(list_onnx_weights(graph)).read(), wanted)


def test_scales_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx")
    model = onnx.load(path)
    words: Any = [b"x"]
    model.graph.initializer[1].CopyFrom(helper.make_tensor("s", TensorProto.STRING, [1], words))
    onnx.save(model, path)

    with pytest.raises(ArtifactError, match="tensor 's' is damaged"):
        list(list_onnx_weights(read_onnx_graph(path)))
