"""A block that computes something else is found by itself, in a model that hides it as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.parity import BlockParity
from pytest_quantgate.measure.parity import list_blocks, measure_block_parity
from pytest_quantgate.runtimes.onnx_blocks import cut_blocks, given_name
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

pytestmark = pytest.mark.slow

Tower = Any


@pytest.fixture(scope="module")
def fp8(make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized("fp8-attention")


@pytest.fixture
def compare(fp8: Encoder, tmp_path: Path) -> Callable[..., tuple[BlockParity, ...]]:
    """Export a tower, change the file, and compare it with PyTorch block by block."""

    def run(
        *, tower: Tower, change: Callable[[Any], None] = lambda _graph: None
    ) -> tuple[BlockParity, ...]:
        blocks = list_blocks(fp8, tower=tower)
        source = export_tower(
            fp8, tower=tower, path=tmp_path / "whole.onnx", precision="float32"
        ).path
        model = onnx.load(source)
        change(model.graph)
        onnx.save(model, source)
        outputs = cut_blocks(source, blocks=blocks, path=tmp_path / "cut.onnx")
        session = OnnxRuntimeModel(tmp_path / "cut.onnx")

        def exported(
            batch: Batch, hidden: Mapping[str, torch.Tensor]
        ) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
            feeds = {given_name(outputs[name]): value.numpy() for name, value in hidden.items()}
            if tower == "vision":
                feeds["pixel_values"] = batch.pixel_values.numpy()
            else:
                feeds |= {name: value.numpy() for name, value in batch.tokens.items()}
            found = session.run(feeds)
            embeddings = torch.from_numpy(next(iter(found.values())))
            return {name: torch.from_numpy(found[outputs[name]]) for name in blocks}, embeddings

        return measure_block_parity(
            tower=tower,
            quantized=fp8,
            blocks=blocks,
            exported=exported,
            batches=[make_batch(fp8)],
        )

    return run


def make_batch(model: Encoder) -> Batch:
    rng = np.random.default_rng(0)
    size = model.module.config.vision_config.image_size  # type: ignore[union-attr]
    pixels = torch.from_numpy(rng.normal(size=(8, 3, size, size)).astype(np.float32))  # type: ignore[arg-type]
    tokens = model.tokenize([f"a photo of {number} shapes" for number in range(8)])
    return Batch.of_pairs(
        pixel_values=pixels,
        tokens={name: tokens[name] for name in ("input_ids", "attention_mask")},
        ids=tuple(map(str, range(8))),
    )


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_faithful_export_agrees_in_every_block(
    compare: Callable[..., tuple[BlockParity, ...]], tower: Tower
) -> None:
    found = compare(tower=tower)

    names = [f"{tower}_model.encoder.layers.{i}" for i in range(len(found) - 1)]
    assert [block.module for block in found] == [*names, f"behind {names[-1]}"]
    assert len(names) >= 2
    for block in found:
        assert block.error <= max(1e-3, 2 * block.floor)


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_changed_scale_shows_in_its_block_and_in_no_other(
    compare: Callable[..., tuple[BlockParity, ...]], tower: Tower, layer: int
) -> None:
    """As a whole it would be in every block behind it."""
    name = f"{tower}_model.encoder.layers.{layer}.mlp.fc1.input_quantizer.scale"

    def change(graph: Any) -> None:
        scale = next(tensor for tensor in graph.initializer if tensor.name == name)
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 8, name=name))

    found = compare(tower=tower, change=change)

    wrong = [block.module for block in found if block.error > max(1e-3, 2 * block.floor)]
    assert wrong == [f"{tower}_model.encoder.layers.{layer}"]


def test_what_is_behind_the_blocks_is_compared_too(
    compare: Callable[..., tuple[BlockParity, ...]],
) -> None:
    def change(graph: Any) -> None:
        name = "visual_projection.input_quantizer.scale"
        scale = next(tensor for tensor in graph.initializer if tensor.name == name)
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 8, name=name))

    found = compare(tower="vision", change=change)

    wrong = [block.module for block in found if block.error > max(1e-3, 2 * block.floor)]
    assert wrong == [found[-1].module]


def test_a_block_that_is_not_in_the_graph_is_refused(fp8: Encoder, tmp_path: Path) -> None:
    source = export_tower(
        fp8, tower="vision", path=tmp_path / "whole.onnx", precision="float32"
    ).path

    with pytest.raises(ModelError, match=r"layers\.7 cannot be compared .* not in the graph"):
        cut_blocks(source, blocks=["vision_model.encoder.layers.7"], path=tmp_path / "cut.onnx")


def test_blocks_are_the_members_of_the_outermost_list(fp8: Encoder) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList([torch.nn.Linear(2, 2)])

    module = torch.nn.Module()
    module.vision_model = torch.nn.Module()
    module.vision_model.stages = torch.nn.ModuleList([Block(), Block()])
    module.text_model = torch.nn.ModuleList([Block()])

    model = replace(fp8, module=module)

    assert list_blocks(model, tower="vision") == (
        "vision_model.stages.0",
        "vision_model.stages.1",
    )
