"""Forwards with one group of quantizers on or off, started in the middle of a tower."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.sensitivity import QuantizerGroup
from pytest_quantgate.measure.groups import group_quantizers
from pytest_quantgate.measure.quantizers import matches
from pytest_quantgate.measure.sensitivity import (
    ResumableTower,
    TowerEmbeddings,
    TowerInputs,
    enabled_only,
    measure_towers,
    noise_ratio,
    sqnr_db,
    weights_bytes,
)
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.quantizers import find_quantizers
from pytest_quantgate.quantization.recipes import Recipe

pytestmark = pytest.mark.slow

MakeQuantized = Callable[..., Encoder]
MakePairs = Callable[..., list[Batch]]


def audit(model: Encoder, batch: Batch) -> Audit:
    from pytest_quantgate.measure.audit import audit_module

    return audit_module(
        model.module,
        runs={
            "vision": lambda: model.encode("vision", batch.inputs["vision"]),
            "text": lambda: model.encode("text", batch.tokens),
        },
    )


def measure(
    fp16: Encoder, model: Encoder, batches: list[Batch], **changes: Any
) -> tuple[tuple[QuantizerGroup, ...], dict[str, TowerEmbeddings]]:
    groups = group_quantizers(audit(model, batches[0]))
    towers = (
        TowerInputs(
            tower="vision",
            fp16=fp16.encode_image,
            quantized=model.encode_image,
            batches=[batch.pixel_values for batch in batches],
        ),
        TowerInputs(
            tower="text",
            fp16=fp16.encode_text,
            quantized=model.encode_text,
            batches=[batch.tokens for batch in batches],
        ),
    )
    return groups, measure_towers(model.module, groups=groups, towers=towers, **changes)


def rank(groups: tuple[QuantizerGroup, ...], towers: dict[str, TowerEmbeddings]) -> list[str]:
    noises = {
        groups[index].label: noise_ratio(found.off, embedded)
        for found in towers.values()
        for (state, index), embedded in found.groups.items()
        if state == "only"
    }
    return sorted(noises, key=lambda label: -noises[label])


@contextmanager
def plainly(model: Encoder, names: set[str]) -> Iterator[None]:
    """Leave only `names` on, without the code under test."""
    off = [q for n, q in find_quantizers(model.module).items() if q.is_enabled and n not in names]
    for quantizer in off:
        quantizer.disable()
    yield
    for quantizer in off:
        quantizer.enable()


@pytest.mark.parametrize(("recipe", "count"), [("fp8-attention", 1), ("int8-smoothquant", 2)])
def test_every_state_is_the_whole_forward_in_that_state(
    recipe: str,
    count: int,
    tiny_fp16: Encoder,
    make_quantized: MakeQuantized,
    make_pairs: MakePairs,
) -> None:
    model, batches = make_quantized(recipe), make_pairs(seed=3, size=2, batches=count)
    groups, towers = measure(tiny_fp16, model, batches)

    enabled = {n for n, q in find_quantizers(model.module).items() if q.is_enabled}
    assert len(towers["vision"].groups) + len(towers["text"].groups) == 2 * len(groups)
    for tower, found in towers.items():

        def encode(tower: str = tower) -> torch.Tensor:
            if tower == "vision":
                return torch.cat([model.encode_image(b.pixel_values) for b in batches])
            return torch.cat([model.encode_text(b.tokens) for b in batches])

        assert torch.equal(found.full, encode())
        with plainly(model, set()):
            assert torch.equal(found.off, encode())
        for (state, index), embedded in found.groups.items():
            names = set(groups[index].quantizers)
            with plainly(model, names if state == "only" else enabled - names):
                assert torch.equal(embedded, encode()), (tower, state, groups[index].label)


def test_a_forward_starts_where_its_group_is(
    tiny_fp16: Encoder, make_quantized: MakeQuantized, make_pairs: MakePairs
) -> None:
    model, (batch, *_) = make_quantized(), make_pairs()
    tower = ResumableTower(
        model.module,
        find_quantizers(model.module),
        model.encode_image,
        batch.pixel_values,
    )
    block = "vision_model.encoder.layers"

    assert tower.first_block[f"{block}.0.mlp.fc1.input_quantizer"] == 0
    assert tower.first_block[f"{block}.1.self_attn.q_bmm_quantizer"] == 1
    assert tower.first_block["visual_projection.input_quantizer"] == 2
    assert not [name for name in tower.first_block if name.startswith("text")]
    assert [tower.cost(start) for start in (0, 1, 2)] == [3, 2, 1]

    ran = 0

    def count(*_: Any) -> None:
        nonlocal ran
        ran += 1

    handle = model.module.get_submodule(f"{block}.0.mlp").register_forward_hook(count)
    recording = tower.record(batch.pixel_values)
    resumed = tower.resume(batch.pixel_values, recording, start=1)
    handle.remove()

    assert ran == 1  # the recording; the resumed forward skipped the block
    assert torch.equal(resumed, recording.embedding)


def test_cost_is_half_of_whole_forwards(
    tiny_fp16: Encoder, make_quantized: MakeQuantized, make_pairs: MakePairs
) -> None:
    told: list[int] = []

    def start(total: int) -> Callable[[int], None]:
        told.append(total)
        return told.append

    _, towers = measure(tiny_fp16, make_quantized(), make_pairs(), start=start)

    assert told[0] == sum(told[1:])
    # Two blocks and what is around them: 4 groups from each block, 2 outside, in both states.
    assert towers["vision"].forwards == pytest.approx((3 * 3 + 2 * (3 + 4 * 3 + 4 * 2 + 1)) / 3)


def test_the_model_is_left_as_it_was(
    tiny_fp16: Encoder, make_quantized: MakeQuantized, make_pairs: MakePairs
) -> None:
    model, batches = make_quantized(), make_pairs()
    before = {n: q.is_enabled for n, q in find_quantizers(model.module).items()}
    reference = model.encode_image(batches[0].pixel_values)
    measure(tiny_fp16, model, batches)

    quantizers = find_quantizers(model.module)
    assert {n: q.is_enabled for n, q in quantizers.items()} == before
    assert torch.equal(model.encode_image(batches[0].pixel_values), reference)
    assert not [n for n, m in model.module.named_modules() if "forward" in vars(m)]
    with pytest.raises(RuntimeError), enabled_only(quantizers, ()):
        raise RuntimeError
    assert {n: q.is_enabled for n, q in quantizers.items()} == before
    assert all("_input_dtype" not in vars(q) for n, q in quantizers.items() if before[n])


def test_a_quantizer_that_is_off_keeps_the_scale_of_smoothquant(
    tiny_fp16: Encoder, make_quantized: MakeQuantized, make_pairs: MakePairs
) -> None:
    model, (batch, *_) = make_quantized("int8-smoothquant"), make_pairs(seed=4)
    quantizers = find_quantizers(model.module)
    scales = [q.pre_quant_scale for q in quantizers.values() if q.pre_quant_scale is not None]
    assert any(not torch.allclose(scale, torch.ones_like(scale), atol=0.05) for scale in scales)

    with enabled_only(quantizers, ()):
        found = model.encode_image(batch.pixel_values)

    # The weights stay divided by the scale, so that without it nothing would fit any more.
    plain = tiny_fp16.encode_image(batch.pixel_values)
    assert sqnr_db(noise_ratio(plain, found)) > 100
    for quantizer in quantizers.values():
        if quantizer.pre_quant_scale is not None:
            quantizer._enable_pre_quant_scale = False
    with enabled_only(quantizers, ()):
        assert sqnr_db(noise_ratio(plain, model.encode_image(batch.pixel_values))) < 40


@pytest.mark.parametrize(
    ("quantizer", "factor", "label"),
    [
        ("vision_model.encoder.layers.1.mlp.fc2.weight_quantizer", 0.02, "vision block 1 mlp"),
        (
            "vision_model.encoder.layers.0.self_attn.v_bmm_quantizer",
            0.01,
            "vision block 0 attention matmuls",
        ),
        (
            "text_model.encoder.layers.0.self_attn.k_proj.input_quantizer",
            0.01,
            "text block 0 attention qkv",
        ),
        ("text_projection.weight_quantizer", 0.02, "text text_projection"),
        ("visual_projection.input_quantizer", math.nan, "vision visual_projection"),
    ],
)
def test_a_spoiled_range_is_ranked_first(
    quantizer: str,
    factor: float,
    label: str,
    tiny_fp16: Encoder,
    make_quantized: MakeQuantized,
    make_pairs: MakePairs,
) -> None:
    model = make_quantized()
    spoiled: Any = model.module.get_submodule(quantizer)
    spoiled._amax = spoiled._amax * factor
    groups, towers = measure(tiny_fp16, model, make_pairs(seed=5), directions=("only",))

    assert rank(groups, towers)[0] == label
    assert {state for found in towers.values() for state, _ in found.groups} == {"only"}


def plant_outliers(model: Encoder, *, block: str, times: float = 64.0) -> Encoder:
    """Return a model that computes the same, with two channels far above the others in a block."""
    changed = replace(model, module=copy.deepcopy(model.module))
    norm: Any = changed.module.get_submodule(f"{block}.layer_norm2")
    layer: Any = changed.module.get_submodule(f"{block}.mlp.fc1")
    with torch.no_grad():
        norm.weight[[3, 20]] *= times
        norm.bias[[3, 20]] *= times
        layer.weight[:, [3, 20]] /= times
    return changed


@pytest.mark.parametrize(("recipe", "found"), [("int8", True), ("int8-smoothquant", False)])
def test_outlier_channels_are_found_and_set_apart(
    recipe: str,
    found: bool,
    tiny_fp16: Encoder,
    make_recipe: Callable[[Any], Recipe],
    make_pairs: MakePairs,
) -> None:
    fp16 = plant_outliers(tiny_fp16, block="vision_model.encoder.layers.1")
    batches = make_pairs(seed=6)
    model = quantize(fp16, recipe=make_recipe(recipe), batches=make_pairs()).model
    told: list[int] = []

    def start(total: int) -> Callable[[int], None]:
        told.append(total)
        return told.append

    groups, towers = measure(fp16, model, batches, start=start)
    vision = towers["vision"]
    labels = [groups[index].label for index in vision.outliers]

    assert told[0] == sum(told[1:])
    assert labels == (["vision block 1 mlp"] if found else [])
    assert vision.apart.keys() == vision.outliers.keys()
    assert not towers["text"].outliers
    for index, (outliers,) in vision.outliers.items():
        assert outliers.place == "mlp.fc1"
        assert set(outliers.channels) == {3, 20}
        assert outliers.smoothable
        assert vision.apart[index].shape == vision.off.shape
        alone = noise_ratio(vision.off, vision.groups["only", index])
        apart = noise_ratio(vision.off, vision.apart[index])
        # As without the planted channels.
        _, plain = measure(tiny_fp16, make_int8(tiny_fp16, make_recipe, make_pairs), batches)
        ordinary = noise_ratio(plain["vision"].off, plain["vision"].groups["only", index])
        assert sqnr_db(alone) < sqnr_db(ordinary) - 15
        assert sqnr_db(apart) == pytest.approx(sqnr_db(ordinary), abs=3)
    assert not [n for n, m in model.module.named_modules() if "forward" in vars(m)]

    told.clear()
    _, towers = measure(fp16, model, batches, start=start, directions=("without",))
    assert told[0] == sum(told[1:])
    assert not towers["vision"].outliers


def make_int8(
    fp16: Encoder, make_recipe: Callable[[Any], Recipe], make_pairs: MakePairs
) -> Encoder:
    return quantize(fp16, recipe=make_recipe("int8"), batches=make_pairs()).model


def test_outliers_of_a_quantizer_that_is_off_are_none(
    tiny_fp16: Encoder, make_recipe: Callable[[Any], Recipe], make_pairs: MakePairs
) -> None:
    fp16 = plant_outliers(tiny_fp16, block="vision_model.encoder.layers.1")
    model = make_int8(fp16, make_recipe, make_pairs)
    quantizers = find_quantizers(model.module)
    quantizers["vision_model.encoder.layers.1.mlp.fc1.input_quantizer"].disable()
    tower = ResumableTower(
        model.module,
        quantizers,
        model.encode_image,
        make_pairs()[0].pixel_values,
    )

    assert tower.outliers == ()


def test_groups_of_a_tower_that_is_off_do_not_run(
    tiny_fp16: Encoder, make_quantized: MakeQuantized, make_pairs: MakePairs
) -> None:
    model = make_quantized(exclude=("*vision_model*", "*visual*"))
    groups, towers = measure(tiny_fp16, model, make_pairs())

    assert {group.tower for group in groups} == {"text"}
    assert not towers["vision"].groups
    assert noise_ratio(towers["vision"].fp16, towers["vision"].full) == 0.0


def test_patterns_switch_off_the_group_in_modelopt(
    make_quantized: MakeQuantized, make_pairs: MakePairs
) -> None:
    import modelopt.torch.quantization as mtq

    model = make_quantized()
    before = {n for n, q in find_quantizers(model.module).items() if q.is_enabled}
    for group in group_quantizers(audit(model, make_pairs()[0])):
        found = {n for n in before if any(matches(n, pattern) for pattern in group.patterns)}
        assert found == set(group.quantizers)
        for pattern in group.patterns:
            mtq.disable_quantizer(model.module, pattern)
        left = {n for n, q in find_quantizers(model.module).items() if q.is_enabled}
        assert before - left == set(group.quantizers), group.label
        for name in group.quantizers:
            mtq.enable_quantizer(model.module, name)


def test_weights_take_what_their_formats_take(
    make_quantized: MakeQuantized, tiny_fp16: Encoder
) -> None:
    model = make_quantized("fp8")
    names = [n for n, q in find_quantizers(model.module).items() if q.is_enabled]
    parameters = sum(p.numel() for p in tiny_fp16.module.parameters())
    projection = model.module.get_submodule("visual_projection").weight.numel()  # type: ignore[operator]

    assert weights_bytes(model.module, names=(), full_bytes=2) == 2 * parameters
    assert (
        weights_bytes(model.module, names=["visual_projection.weight_quantizer"], full_bytes=2)
        == 2 * parameters - projection
    )
    assert (
        weights_bytes(model.module, names=["visual_projection.input_quantizer"], full_bytes=2)
        == 2 * parameters
    )
    assert weights_bytes(model.module, names=names, full_bytes=2) < 1.2 * parameters


# -- towers that are no CLIP ----------------------------------------------------------------------


class Shared(nn.Module):
    """A tower that runs its one block twice: what the first run gave is not what it ends with."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](self.layers[0](x))  # type: ignore[no-any-return]


class Writing(nn.Module):
    """A tower whose blocks write into what the one before gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = layer(x)
            x = y.add_(1)
        return x


class Leaking(nn.Module):
    """A tower in which a later step needs more of an early block than what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Remembering() for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for layer in self.layers:
            x = layer(x)
            total = total + layer.seen  # type: ignore[operator]
            layer.seen = torch.zeros(())
        return x + total


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.seen = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.sum()
        return self.inner(x)  # type: ignore[no-any-return]


def resume(module: nn.Module) -> tuple[ResumableTower, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    module.requires_grad_(False)
    return ResumableTower(module, {}, module, x), x


def test_a_block_that_runs_twice_is_never_skipped() -> None:
    tower, x = resume(Shared())

    assert tower.cost(0) == 1
    assert torch.equal(tower.resume(x, tower.record(x), start=0), tower.record(x).embedding)


def test_a_recording_outlives_steps_that_write_into_it() -> None:
    tower, x = resume(Writing())
    recording = tower.record(x)

    assert tower.cost(0) == 4
    for start in (1, 2, 3, 1):
        assert torch.equal(tower.resume(x, recording, start=start), recording.embedding)


def test_a_tower_that_does_not_repeat_is_run_whole() -> None:
    assert resume(Leaking())[0].cost(0) == 1


def test_torch_s_own_encoder_is_resumed() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4)
    encoder.requires_grad_(False)
    tower = ResumableTower(encoder, {}, encoder, x)
    recording = tower.record(x)

    assert tower.cost(0) == 4
    assert torch.equal(tower.resume(x, recording, start=2), recording.embedding)


# -- noise ----------------------------------------------------------------------------------------


def test_noise_is_a_ratio_of_powers() -> None:
    x = torch.ones(2, 8)

    assert noise_ratio(x, x * 1.1) == pytest.approx(0.01)
    assert sqnr_db(0.01) == pytest.approx(20.0)
    assert noise_ratio(x, x) == 0.0
    assert sqnr_db(0.0) == math.inf


def test_noise_at_its_ends() -> None:
    x = torch.ones(2, 8)
    broken, hole = x.clone(), x.clone()
    broken[0, 0], hole[0, 0] = torch.nan, torch.inf

    assert noise_ratio(x, broken) == math.inf
    assert sqnr_db(math.inf) == sqnr_db(math.nan) == -math.inf
    assert noise_ratio(hole, hole) == 0.0  # the sample that FP16 gives no number for is left out
    assert math.isnan(noise_ratio(x * torch.nan, x))
    assert noise_ratio(torch.zeros(2, 8), x) == math.inf
    assert noise_ratio(torch.zeros(2, 8), torch.zeros(2, 8)) == 0.0


def test_no_batch_is_refused(tiny_fp16: Encoder) -> None:
    inputs = TowerInputs(
        tower="vision", fp16=tiny_fp16.encode_image, quantized=tiny_fp16.encode_image, batches=()
    )
    with pytest.raises(ValueError, match="no batch"):
        measure_towers(tiny_fp16.module, groups=(), towers=(inputs,))
