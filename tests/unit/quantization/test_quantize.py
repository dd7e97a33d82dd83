"""Quantization: both attention classes in one process, calibration data, and sabotage."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers.models.clip.modeling_clip import CLIPAttention

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.measure.embeddings import Batches
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.tasks.registry import load_samples

pytestmark = pytest.mark.slow

QuantModuleRegistry = import_modelopt("modelopt.torch.quantization.nn").QuantModuleRegistry
TensorQuantizer = import_modelopt("modelopt.torch.quantization.nn").TensorQuantizer

MakePairs = Callable[..., list[Batch]]
MakeRecipe = Callable[[Any], Recipe]

PUBLISHED = {
    "*weight_quantizer": {"num_bits": [4, 3], "axis": None},
    "*input_quantizer": {"num_bits": [4, 3], "axis": None},
    "*[qkv]_bmm_quantizer": {"num_bits": [4, 3], "axis": None},
    "*bmm2_output_quantizer": {"num_bits": [4, 3], "axis": None},
    "default": {"enable": False},
}


def enabled(model: Encoder) -> set[str]:
    return {
        name
        for name, module in model.module.named_modules()
        if isinstance(module, TensorQuantizer) and module.is_enabled
    }


def attention_plugin(model: Encoder) -> str:
    """Return the name of the plugin that gave the model its attention."""
    attention = model.module.vision_model.encoder.layers[0].self_attn  # type: ignore[index, union-attr]
    return next(c for c in type(attention).__mro__ if c.__name__ == "_QuantAttention").__module__


@pytest.mark.parametrize("order", [("fp8", "fp8-attention"), ("fp8-attention", "fp8")])
def test_both_attention_classes_in_one_process(
    order: tuple[str, str], make_quantized: Callable[..., Encoder]
) -> None:
    models = {name: make_quantized(name) for name in (*order, *order)}
    assert attention_plugin(models["fp8"]).endswith("plugins.huggingface")
    assert attention_plugin(models["fp8-attention"]).endswith("diffusion.diffusers")
    assert not any("bmm" in name for name in enabled(models["fp8"]))
    slots = ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
    assert {
        f"{tower}.encoder.layers.{block}.self_attn.{slot}_quantizer"
        for tower in ("vision_model", "text_model")
        for block in range(2)
        for slot in slots
    } == {name for name in enabled(models["fp8-attention"]) if "bmm" in name}


@pytest.fixture(autouse=True)
def _plain_registry() -> Iterator[None]:
    """Whatever ran before in this process (ModelOpt registers CLIPAttention by itself)."""
    if QuantModuleRegistry.get(CLIPAttention) is not None:
        QuantModuleRegistry.unregister(CLIPAttention)
    yield
    if QuantModuleRegistry.get(CLIPAttention) is not None:
        QuantModuleRegistry.unregister(CLIPAttention)


def test_registry_is_left_as_it_was(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    """Someone else's registration in the same process is theirs."""
    from modelopt.torch.quantization.plugins.huggingface import _QuantAttention

    assert QuantModuleRegistry.get(CLIPAttention) is None
    QuantModuleRegistry.register({CLIPAttention: "CLIPAttention"})(_QuantAttention)
    try:
        quantize(tiny_fp16, recipe=make_recipe("fp8-attention"), batches=make_pairs())
        found = QuantModuleRegistry.get(CLIPAttention)
        assert found is not None
        assert issubclass(found, _QuantAttention)
    finally:
        QuantModuleRegistry.unregister(CLIPAttention)


def test_fp16_stays_as_it_was(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    before = copy.deepcopy(tiny_fp16.module.state_dict())
    classes = [type(module) for module in tiny_fp16.module.modules()]
    pixels = make_pairs()[0].pixel_values
    embedded = tiny_fp16.encode_image(pixels)
    found = quantize(tiny_fp16, recipe=make_recipe("int8-smoothquant"), batches=make_pairs())
    assert [type(module) for module in tiny_fp16.module.modules()] == classes
    after = tiny_fp16.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(tiny_fp16.encode_image(pixels), embedded)
    assert not torch.equal(found.model.encode_image(pixels), embedded)


def test_published_dict_form_quantizes_both_towers(
    make_quantized: Callable[..., Encoder],
) -> None:
    names = enabled(make_quantized({"quant_cfg": PUBLISHED, "algorithm": "max"}))
    for tower in ("vision_model", "text_model"):
        for slot in ("self_attn.q_bmm", "self_attn.bmm2_output", "mlp.fc1.weight"):
            assert f"{tower}.encoder.layers.1.{slot}_quantizer" in names


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_weight_only_integers(
    bits: int, make_quantized: Callable[..., Encoder], tiny_fp16: Encoder
) -> None:
    model = make_quantized(
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {
                    "quantizer_name": "*weight_quantizer",
                    "parent_class": "nn.Linear",
                    "cfg": {"num_bits": bits, "axis": 0},
                },
            ],
            "algorithm": "max",
        }
    )
    layer = model.module.text_projection
    values = layer.weight_quantizer(layer.weight)  # type: ignore[operator, union-attr]
    assert max(len(row.unique()) for row in values) <= 2**bits
    assert layer.weight_quantizer.amax.numel() == layer.weight.shape[0]  # type: ignore[index, operator, union-attr]
    assert all(name.endswith("weight_quantizer") for name in enabled(model))


def test_exclude_switches_off_what_it_matches(
    make_quantized: Callable[..., Encoder],
) -> None:
    everything = enabled(make_quantized("fp8"))
    rest = enabled(make_quantized("fp8", exclude=("*patch_embedding*", "*.mlp.fc1.*")))
    assert {name for name in everything if "patch_embedding" in name or ".mlp.fc1." in name} == (
        everything - rest
    )


def test_nothing_left_to_quantize(make_quantized: Callable[..., Encoder]) -> None:
    with pytest.raises(ModelError) as caught:
        make_quantized("fp8", exclude=("*",))
    assert "recipe 'fp8' quantizes nothing: 0 of " in str(caught.value)
    assert "it switches on '*weight_quantizer'" in str(caught.value)
    assert "exclude: ['*']" in str(caught.value)


def test_recipe_that_matches_nothing(make_quantized: Callable[..., Encoder]) -> None:
    with pytest.raises(ModelError, match=r"recipe 'inline quant_cfg'"):
        make_quantized(
            (
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*no_such_quantizer", "cfg": {"num_bits": 8}},
            )
        )


def test_parent_class_that_modelopt_does_not_know(
    make_quantized: Callable[..., Encoder],
) -> None:
    with pytest.raises(ModelError, match=r"ModelOpt cannot apply .*'nn\.Nonsense' not found"):
        make_quantized(
            (
                {
                    "quantizer_name": "*weight_quantizer",
                    "parent_class": "nn.Nonsense",
                    "cfg": {"num_bits": 8},
                },
            )
        )


def test_calibration_counts_what_it_saw(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    told: list[int] = []
    found = quantize(
        tiny_fp16,
        recipe=make_recipe("fp8"),
        batches=make_pairs(batches=3, size=2),
        progress=told.append,
    )
    assert (found.batches, found.tower_batches) == (3, {"vision": 3, "text": 3})
    assert told == [2, 2, 2]
    assert found.nonfinite == ()


def poison(batch: Batch, *rows: int, value: float) -> Batch:
    pixels = batch.pixel_values.clone()
    for row in rows:
        pixels[row, 0, 0, 0] = value
    return batch.with_inputs("vision", {"pixel_values": pixels})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_samples_that_are_not_finite_are_named_and_left_out(
    value: float, tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    first, second = make_pairs()
    batches = [poison(first, 1, value=value), poison(second, 0, 1, 2, 3, value=value)]
    found = quantize(tiny_fp16, recipe=make_recipe("fp8"), batches=batches)
    assert found.nonfinite == ("pair 0.1", "pair 1.0", "pair 1.1", "pair 1.2", "pair 1.3")
    assert (found.batches, found.tower_batches) == (2, {"vision": 1, "text": 1})
    keep = torch.tensor([True, False, True, True])
    clean = [
        Batch.of_pairs(
            pixel_values=first.pixel_values[keep],
            tokens={name: tokens[keep] for name, tokens in first.tokens.items()},
            ids=("a", "b", "c"),
        )
    ]
    expected = quantize(tiny_fp16, recipe=make_recipe("fp8"), batches=clean)
    for name, tensor in expected.model.module.state_dict().items():
        assert torch.equal(found.model.module.state_dict()[name], tensor), name


def test_zero_batches_are_counted_as_such(tiny_fp16: Encoder, make_recipe: MakeRecipe) -> None:
    """ModelOpt says nothing; the calibration gate must be able to."""
    found = quantize(tiny_fp16, recipe=make_recipe("fp8"), batches=[])
    assert (found.batches, found.tower_batches) == (0, {"vision": 0, "text": 0})


AWQ = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {
            "quantizer_name": "*mlp*weight_quantizer",
            "cfg": {"num_bits": 4, "block_sizes": {-1: 16, "type": "static"}},
        },
    ],
    "algorithm": {"method": "awq_lite", "alpha_step": 0.5},
}


def test_algorithm_that_reads_the_data_twice(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    told: list[int] = []
    found = quantize(tiny_fp16, recipe=make_recipe(AWQ), batches=make_pairs(), progress=told.append)
    assert found.batches == 2
    assert told == [4, 4]
    with pytest.raises(ModelError, match=r"reads the calibration data more than once.*pass a list"):
        quantize(tiny_fp16, recipe=make_recipe(AWQ), batches=iter(make_pairs()))


@pytest.mark.slow
def test_batches_of_a_suite_can_be_read_again(tiny_fp16: Encoder, make_recipe: MakeRecipe) -> None:
    samples = load_samples(
        "scenes/calibration", datasets={}, samples=8, environ={}, purpose="pairs"
    )
    batches = Batches(model=tiny_fp16, samples=samples, batch_size=4)

    assert [batch.ids for batch in batches] == [batch.ids for batch in batches]
    assert quantize(tiny_fp16, recipe=make_recipe("int4-awq"), batches=batches).batches == 2


def test_interrupt_during_calibration_leaves_nothing_behind(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    def interrupted() -> Iterator[Batch]:
        yield make_pairs()[0]
        raise KeyboardInterrupt

    before = copy.deepcopy(tiny_fp16.module.state_dict())
    with pytest.raises(KeyboardInterrupt):
        quantize(tiny_fp16, recipe=make_recipe("fp8-attention"), batches=interrupted())
    assert QuantModuleRegistry.get(CLIPAttention) is None
    assert all(
        torch.equal(before[name], tensor) for name, tensor in tiny_fp16.module.state_dict().items()
    )
    again = quantize(tiny_fp16, recipe=make_recipe("fp8"), batches=make_pairs())
    assert attention_plugin(again.model).endswith("plugins.huggingface")


def test_without_the_diffusers_plugin(
    tiny_fp16: Encoder,
    make_pairs: MakePairs,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "modelopt.torch.quantization.plugins.diffusion.diffusers"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match=r"attention output quantizers.*\[clip\]'$"):
        quantize(tiny_fp16, recipe=make_recipe("fp8-attention"), batches=make_pairs())
    assert QuantModuleRegistry.get(CLIPAttention) is None


def test_without_modelopt(
    tiny_fp16: Encoder,
    make_pairs: MakePairs,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe("fp8")
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    with pytest.raises(MissingPackage, match=r"pytest-quantgate\[clip\]"):
        quantize(tiny_fp16, recipe=recipe, batches=make_pairs())
