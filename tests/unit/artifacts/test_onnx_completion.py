"""Graphs that end at hidden states: pooled as the model's settings say, in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pytest_quantgate.artifacts.given_onnx import prepare_graph
from pytest_quantgate.artifacts.onnx_places import TowerModel
from pytest_quantgate.errors import ArtifactError

TABLE = np.random.default_rng(0).standard_normal((7, 4)).astype("f4")

TEXT = TowerModel(
    tower="text",
    inputs=("input_ids", "attention_mask"),
    modules=frozenset(),
    quantizers=(),
    amax={},
    tensors={},
    dtype="float32",
    no_module=True,
    pooling="mean",
)

SIZES: list[str | int | None] = ["n", "t", 4, 1]

IDS = np.array([[1, 2, 3], [4, 5, 0]])
MASK = np.array([[1, 1, 1], [1, 1, 0]])


def save_graph(path: Path, *, opset: int = 17, kinds: bool = True, axes: int = 3) -> Path:
    """Save a table of embeddings as a text encoder: ids, mask and kinds of tokens to [N, T, 4]."""
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if kinds else [])]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["found"], name="/embeddings")]
    if kinds:
        nodes += [
            helper.make_node("Gather", ["table", "token_type_ids"], ["kind"], name="/kinds"),
            helper.make_node("Add", ["found", "kind"], ["hidden"], name="/sum"),
        ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in inputs],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, SIZES[:axes])],
        [numpy_helper.from_array(TABLE, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def run(path: Path) -> np.ndarray:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"input_ids", "attention_mask"}
    (found,) = session.run(["embeddings"], {"input_ids": IDS, "attention_mask": MASK})
    return np.asarray(found)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_hidden_states_are_pooled_as_in_pytorch(
    tmp_path: Path, opset: int, pooling: str, normalize: bool
) -> None:
    source = save_graph(tmp_path / "text.onnx", opset=opset)
    model = replace(TEXT, pooling=pooling, normalize=normalize)

    prepare_graph(source, path=tmp_path / "ready.onnx", model=model)

    hidden = torch.from_numpy(TABLE)[IDS] + torch.from_numpy(TABLE)[0]
    mask = torch.from_numpy(MASK).unsqueeze(-1)
    wanted = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    if normalize:
        wanted = torch.nn.functional.normalize(wanted, dim=-1)
    onnx.checker.check_model(onnx.load(tmp_path / "ready.onnx"), full_check=True)
    np.testing.assert_allclose(run(tmp_path / "ready.onnx"), wanted.numpy(), rtol=1e-6)


def test_a_graph_that_lacks_nothing_keeps_its_nodes(tmp_path: Path) -> None:
    source = save_graph(tmp_path / "text.onnx", kinds=False, axes=2)

    prepare_graph(source, path=tmp_path / "ready.onnx", model=TEXT)

    nodes = onnx.load(tmp_path / "ready.onnx").graph.node
    assert [node.op_type for node in nodes] == ["Gather"]


@pytest.mark.parametrize(("pooling", "axes"), [("", 3), ("mean", 4)])
def test_hidden_states_of_which_nothing_says_the_pooling_are_refused(
    tmp_path: Path, pooling: str, axes: int
) -> None:
    source = save_graph(tmp_path / "text.onnx", axes=axes)

    with pytest.raises(ArtifactError, match=f"with {axes} axes, which are hidden states"):
        prepare_graph(source, path=tmp_path / "out.onnx", model=replace(TEXT, pooling=pooling))
