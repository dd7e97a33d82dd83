"""Outlier channels: the same function bit for bit, larger activations, exact in FP16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tools.reference.outliers import (
    OutlierPlan,
    add_outliers,
    find_sites,
    to_half,
)

PLAN = OutlierPlan(channels=2, factor=64)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    built = CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "vocab_size": 20,
                "max_position_embeddings": 8,
                "bos_token_id": 1,
                "eos_token_id": 3,
                "pad_token_id": 0,
            },
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    ).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return built


def outputs(model: Any, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    model.load_state_dict({name: value.float() for name, value in state.items()})
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 16, 16, generator=generator)
    ids = torch.tensor([[1, 5, 9, 3, 0, 0], [1, 7, 7, 8, 11, 3]])
    with torch.no_grad():
        result = model(input_ids=ids, pixel_values=pixels)
    return result.image_embeds, result.text_embeds


def test_the_function_stays_the_same_bit_for_bit(model: Any) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sites = find_sites(state, plan=PLAN)
    half = to_half(state, sites=sites, plan=PLAN)
    changed = add_outliers(half, sites=sites, plan=PLAN)
    before, after = outputs(model, half), outputs(model, changed)
    model.load_state_dict(state)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert any(not torch.equal(half[name], changed[name]) for name in half)


def test_rounding_to_half_moves_no_weight_by_more_than_the_grid(model: Any) -> None:
    state = model.state_dict()
    sites = find_sites(state, plan=PLAN)
    half = to_half(state, sites=sites, plan=PLAN)
    for name, value in state.items():
        if value.is_floating_point():
            assert half[name].dtype == torch.float16
            limit = value.abs().max() * 2**-11 + 2.0**-24 * PLAN.factor
            assert (half[name].float() - value).abs().max() <= limit
        else:
            assert torch.equal(half[name], value)


def test_every_norm_of_every_block_is_a_site(model: Any) -> None:
    sites = find_sites(model.state_dict(), plan=PLAN)
    assert len(sites) == 8
    assert all(len(site.channels) == 2 for site in sites)
    first = next(site for site in sites if site.norm.endswith("layers.0.layer_norm1"))
    assert [reader.split(".")[-2] for reader in first.readers] == ["q_proj", "k_proj", "v_proj"]


def test_norm_outputs_get_the_outliers(model: Any) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sites = find_sites(state, plan=PLAN)
    changed = add_outliers(to_half(state, sites=sites, plan=PLAN), sites=sites, plan=PLAN)
    for site in sites:
        ratio = changed[f"{site.norm}.weight"].float() / state[f"{site.norm}.weight"].half().float()
        others = [channel for channel in range(32) if channel not in site.channels]
        assert torch.equal(ratio[list(site.channels)], torch.full((2,), 64.0))
        assert torch.equal(ratio[others], torch.ones(30))


def test_an_inexact_division_is_refused(model: Any) -> None:
    state = {name: value.half() for name, value in model.state_dict().items()}
    sites = find_sites(state, plan=PLAN)
    state[sites[0].readers[0]][:, sites[0].channels[0]] = 1.0009765625 * 2**-12
    with pytest.raises(
        ValueError, match=r"divided by 64 is not exact in torch.float16; use to_half"
    ):
        add_outliers(state, sites=sites, plan=PLAN)


def test_an_overflowing_gain_is_refused(model: Any) -> None:
    state = {name: value.half() for name, value in model.state_dict().items()}
    sites = find_sites(state, plan=PLAN)
    state[f"{sites[0].norm}.weight"][list(sites[0].channels)] = 2000.0
    with pytest.raises(ValueError, match=r"times 64 is not exact in torch.float16"):
        add_outliers(state, sites=sites, plan=PLAN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 3}, "factor must be a power of two, at least 2, got 3"),
        ({"factor": 1}, "factor must be a power of two, at least 2, got 1"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_a_wrong_plan_is_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutlierPlan(**arguments)


def test_a_state_without_norms_is_named() -> None:
    with pytest.raises(ValueError, match="layer_norm1"):
        find_sites({"weight": torch.ones(3)}, plan=PLAN)


def test_more_channels_than_there_are_is_named(model: Any) -> None:
    with pytest.raises(ValueError, match="has 32 channels, fewer than 33"):
        find_sites(model.state_dict(), plan=OutlierPlan(channels=33))
