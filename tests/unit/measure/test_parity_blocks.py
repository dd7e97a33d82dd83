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
from pytest_quantgate.measure.parity import EDGE, ExportedPart, list_blocks, measure_block_parity
from pytest_quantgate.quantization.quantizers import is_dynamic
from pytest_quantgate.runtimes.onnx_blocks import cut_blocks
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

pytestmark = pytest.mark.slow

Tower = Any


@pytest.fixture(scope="module")
def fp8(make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized("fp8-attention")


@pytest.fixture(scope="module")
def per_token(make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized("fp8-per-token")


@pytest.fixture
def compare(fp8: Encoder, tmp_path: Path) -> Callable[..., tuple[BlockParity, ...]]:
    """Export a tower, change the file, and compare it with PyTorch block by block."""

    def run(
        *,
        tower: Tower,
        model: Encoder = fp8,
        change: Callable[[Any], None] = lambda _graph: None,
    ) -> tuple[BlockParity, ...]:
        blocks = list_blocks(model, tower=tower)
        source = export_tower(
            model, tower=tower, path=tmp_path / "whole.onnx", precision="float32"
        ).path
        stored = onnx.load(source)
        change(stored.graph)
        onnx.save(stored, source)
        parts = cut_blocks(source, blocks=blocks, folder=tmp_path)
        sessions = {
            block: OnnxRuntimeModel(part.path, optimization="none") for block, part in parts.items()
        }

        def exported(block: str, batch: Batch, hidden: Mapping[str, torch.Tensor]) -> ExportedPart:
            part = parts[block]
            feeds = {name: batch.inputs[tower][name] for name in part.inputs}
            feeds |= {name: hidden[other] for other, name in part.given.items()}
            found = sessions[block].run({name: value.numpy() for name, value in feeds.items()})
            return ExportedPart(
                result=torch.from_numpy(found[part.output]),
                rounded={name: torch.from_numpy(found[at]) for name, at in part.pairs.items()},
            )

        return measure_block_parity(
            tower=tower,
            quantized=model,
            blocks=blocks,
            exported=exported,
            batches=[make_batch(model)],
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
    for block in found:  # no sample in which a tie was rounded apart is left
        assert block.high_error <= 2e-6


def test_ranges_of_each_token_are_compared_as_well(
    compare: Callable[..., tuple[BlockParity, ...]], per_token: Encoder
) -> None:
    """Their pairs have the range 1: the token's scale comes behind the product."""
    name = "text_model.encoder.layers.0.mlp.fc1.input_quantizer"
    assert is_dynamic(per_token.module.get_submodule(name))

    good = compare(tower="text", model=per_token)
    wrong = compare(tower="text", model=per_token, change=change_scale(name, by=1.02))

    assert all(block.high_error <= 2 * EDGE for block in good)
    assert find_wrong(wrong) == ["text_model.encoder.layers.0"]


@pytest.mark.parametrize(
    ("tower", "changed", "place"),
    [
        ("vision", "encoder.layers.0.mlp.fc1.input_quantizer", 0),
        ("vision", "encoder.layers.1.mlp.fc2.weight_quantizer", 1),
        ("vision", "encoder.layers.1.self_attn.q_bmm_quantizer", 1),
        ("text", "encoder.layers.0.self_attn.v_proj.input_quantizer", 0),
        ("text", "encoder.layers.1.self_attn.out_proj.weight_quantizer", 1),
    ],
)
def test_a_scale_off_by_little_shows_in_its_block_and_in_no_other(
    compare: Callable[..., tuple[BlockParity, ...]], tower: Tower, changed: str, place: int
) -> None:
    """As a whole it would be in every block behind it."""
    found = compare(tower=tower, change=change_scale(f"{tower}_model.{changed}", by=1.002))

    assert find_wrong(found) == [f"{tower}_model.encoder.layers.{place}"]


def test_what_is_behind_the_blocks_is_compared_too(
    compare: Callable[..., tuple[BlockParity, ...]],
) -> None:
    change = change_scale("visual_projection.input_quantizer", by=1.02)

    found = compare(tower="vision", change=change)

    assert find_wrong(found) == [found[-1].module]


@pytest.mark.parametrize("one", ["mlp.fc1", "self_attn.k_proj"])
def test_layers_in_the_place_of_each_other_show_in_both(
    compare: Callable[..., tuple[BlockParity, ...]], one: str
) -> None:
    def swap(graph: Any) -> None:
        places = [f"vision_model.encoder.layers.{layer}.{one}" for layer in (0, 1)]
        for part in ("weight", "bias", "weight_quantizer.scale"):
            first, second = (
                next(t for t in graph.initializer if t.name == f"{place}.{part}")
                for place in places
            )
            first.name, second.name = second.name, first.name

    found = compare(tower="vision", change=swap)

    assert find_wrong(found) == [block.module for block in found[:2]]


def test_a_residual_from_another_block_shows(
    compare: Callable[..., tuple[BlockParity, ...]],
) -> None:
    """What a block is given is PyTorch's: which block's it reads is the graph's."""

    def skip(graph: Any) -> None:
        blocks = [f"/vision_model/encoder/layers.{number}/" for number in (0, 1)]
        last = [next(n for n in reversed(graph.node) if n.name.startswith(b)) for b in blocks]
        first = next(n for n in graph.node if n.name.startswith(blocks[0]))
        behind = [n for n in graph.node if last[0].output[0] in n.input]
        for node in behind:
            if node.name.startswith(blocks[1]) and node.op_type == "Add":
                node.input[list(node.input).index(last[0].output[0])] = first.input[0]

    found = compare(tower="vision", change=skip)

    assert find_wrong(found) == ["vision_model.encoder.layers.1"]


def change_scale(quantizer: str, *, by: float) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        name = f"{quantizer}.scale"
        scale = next(tensor for tensor in graph.initializer if tensor.name == name)
        changed = (numpy_helper.to_array(scale) * by).astype(np.float32)
        scale.CopyFrom(numpy_helper.from_array(changed, name=name))

    return change


def find_wrong(found: tuple[BlockParity, ...]) -> list[str]:
    """Return the blocks that the gate's default calls wrong."""
    return [block.module for block in found if block.error > max(1e-3, 2 * block.floor)]


def test_a_block_that_is_not_in_the_graph_is_refused(fp8: Encoder, tmp_path: Path) -> None:
    source = export_tower(
        fp8, tower="vision", path=tmp_path / "whole.onnx", precision="float32"
    ).path

    with pytest.raises(ModelError, match=r"layers\.7 cannot be compared .* not in the graph"):
        cut_blocks(
            source,
            blocks=["vision_model.encoder.layers.7"],
            folder=tmp_path,
        )


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
