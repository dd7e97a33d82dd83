"""A model that computes the same with its parts in another order is judged the same."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.parity import list_blocks, relative_error
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.quantizers import plain_class_name
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.dual_models import save_dual
from tests.siglip_models import save_siglip
from tests.text_encoders import save_text_encoder
from tests.vision_encoders import save_vision_encoder

pytestmark = pytest.mark.slow


#: Names of the projections of attention, and of its number of heads.
OPERANDS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"))
HEADS = ("num_heads", "num_attention_heads", "n_heads")


def permute(layer: Any, order: torch.Tensor, *, axis: int) -> None:
    """Put the outputs (axis 0) or the inputs (axis 1) of a layer in another order, in place."""
    layer.weight.data = layer.weight.data.index_select(axis, order)
    if axis == 0 and layer.bias is not None:
        layer.bias.data = layer.bias.data[order]


def rearrange(model: Encoder) -> Encoder:
    """Return the model with its heads and the channels of its MLPs reversed, and with queries of
    twice the size and keys of half of it."""
    found = replace(model, module=copy.deepcopy(model.module))
    table: Any
    for name, table in found.module.named_modules():
        if name.endswith("relative_attention_bias"):  # a column for each head
            table.weight.data = table.weight.data.flip(1)
    for tower in found.towers:
        for name in list_blocks(found, tower=tower.name):
            block = found.module.get_submodule(name)
            attention: Any
            (attention,) = (m for m in block.modules() if plain_class_name(m) in tower.attention)
            linears: list[Any] = [m for m in block.modules() if type(m) is torch.nn.Linear]
            parts = dict(attention.named_children())
            query, key, value = next(
                [parts[part] for part in names] for names in OPERANDS if names[0] in parts
            )
            heads: int = next(getattr(attention, n) for n in HEADS if hasattr(attention, n))
            width: int = query.out_features
            order = torch.arange(width).reshape(heads, -1).flip(0).flatten()
            inner = [m for m in linears if m not in (query, key, value)]
            out = next(m for m in inner if m.in_features == m.out_features == width)
            into, back = (m for m in inner if m is not out)
            for part in (query, key, value):
                permute(part, order, axis=0)
            permute(out, order, axis=1)
            channels = torch.arange(into.out_features).flip(0)
            permute(into, channels, axis=0)
            permute(back, channels, axis=1)
            for part, factor in ((query, 2.0), (key, 0.5)):
                for tensor in part.parameters():
                    tensor.data = tensor.data * factor
    return found


def make_batches(model: Encoder) -> list[Batch]:
    inputs: dict[Any, Any] = {}
    for tower in model.towers:
        if tower.text is None:
            inputs[tower.name] = tower.make_example(8)
        else:
            text = "a red circle above the small blue square near a large green star"
            inputs[tower.name] = model.tokenize([text[8 * i :] for i in range(8)])
    return [Batch(ids=tuple(map(str, range(8))), inputs=inputs)]


PATCHES = "*patch_embed*"

#: How a kind is saved, and what no quantizer gets into.
KINDS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    **{
        kind: (functools.partial(save_vision_encoder, kind), (PATCHES,))
        for kind in ("vit", "dinov2", "dinov3")
    },
    **{kind: (functools.partial(save_text_encoder, kind), ()) for kind in ("bert", "mpnet", "t5")},
    **{
        kind: (functools.partial(save_dual, kind), (PATCHES,))
        for kind in ("chinese_clip", "altclip", "owlvit")
    },
    "siglip": (save_siglip, (PATCHES, "*head.attention*")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_in_another_order_are_judged_the_same(
    tmp_path: Path,
    model_spec: Callable[..., ModelSpec],
    make_recipe: Callable[[Any], Recipe],
    kind: str,
) -> None:
    save, exclude = KINDS[kind]
    save(tmp_path)
    recipe = make_recipe("fp8-attention")
    plain = load_fp16(model_spec(tmp_path), environ={})
    batches = make_batches(plain)

    def judge(model: Encoder) -> tuple[Encoder, Verdict]:
        found = quantize(model, recipe=recipe, exclude=exclude, batches=batches).model
        audit = audit_quantizers(found, recipe=recipe, exclude=exclude, held_out=batches)
        gate = CoverageGate(where=Where(file="s.yaml", line=1), towers=model.tower_names)
        return found, judge_coverage(audit, gate=gate, today=date(2026, 11, 1))

    first, second = judge(plain), judge(rearrange(plain))

    assert first[1].passed
    assert replace(second[1], figures={}) == replace(first[1], figures={})
    for name, inputs in batches[0].inputs.items():
        wanted = plain.encode(name, inputs)
        moved = rearrange(plain).encode(name, inputs)
        errors = [
            relative_error(model.encode(name, inputs), wanted) for model, _ in (first, second)
        ]
        assert relative_error(moved, wanted) < 1e-5
        assert errors[1] == pytest.approx(errors[0], rel=0.1)
