"""The audit must see what ModelOpt does in silence: each test is one way to go wrong unseen."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.evidence.audit import Audit, Operation, Quantizer
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.formats.table import INT8, read_format
from pytest_quantgate.gates.calibration import CalibrationGate, judge_ranges
from pytest_quantgate.measure import invariance
from pytest_quantgate.measure.audit import audit_module, audit_quantizers
from pytest_quantgate.measure.quantizers import Activity, count_clipped, half_step, watch
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.suite.where import Where

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
MakeRecipe = Callable[[Any], Recipe]
PATCH = ("*patch_embedding*",)

mtq = import_modelopt("modelopt.torch.quantization")
TensorQuantizer = import_modelopt("modelopt.torch.quantization.nn").TensorQuantizer
QuantizerAttributeConfig = import_modelopt(
    "modelopt.torch.quantization.config"
).QuantizerAttributeConfig
E4M3 = {"num_bits": (4, 3), "axis": None}
LAYERS = [
    {"quantizer_name": "*", "enable": False},
    {"quantizer_name": "*weight_quantizer", "cfg": E4M3},
    {"quantizer_name": "*input_quantizer", "cfg": E4M3},
]


@pytest.fixture(scope="module")
def build(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> Callable[..., tuple[Encoder, Audit]]:
    """Quantize and audit; `sabotage` changes the model in between."""

    def make(
        recipe: Any,
        *,
        exclude: tuple[str, ...] = (),
        fp16: Encoder = tiny_fp16,
        sabotage: Callable[[Encoder], None] = lambda _model: None,
    ) -> tuple[Encoder, Audit]:
        resolved = make_recipe(recipe)
        model = quantize(fp16, recipe=resolved, exclude=exclude, batches=make_pairs()).model
        sabotage(model)
        audit = audit_quantizers(
            model, recipe=resolved, exclude=exclude, held_out=make_pairs(seed=9)
        )
        return model, audit

    return make


def enabled(audit: Audit, **wanted: Any) -> list[Quantizer]:
    return [
        q
        for q in audit.quantizers
        if q.enabled and all(getattr(q, key) == value for key, value in wanted.items())
    ]


def by_name(audit: Audit) -> dict[str, Quantizer]:
    return {q.name: q for q in audit.quantizers}


# -- sound models ------------------------------


def test_sound_recipe_leaves_nothing_open(build: Callable[..., Any]) -> None:
    _, audit = build("fp8-attention", exclude=PATCH)
    assert audit.towers == ("vision", "text")
    assert audit.formats == ("E4M3",)
    quantizers = by_name(audit)
    off = dict(audit.disabled_by)
    for name in audit.intended:
        quantizer = quantizers[name]
        assert quantizer.enabled == (name not in off)
        if not quantizer.enabled:
            assert off[name] == "*patch_embedding*"
            continue
        own, other = (quantizer.tower_calls.get(name, 0) for name in ("vision", "text"))
        if quantizer.tower == "text":
            own, other = other, own
        assert (own, other) == (1, 0), name
        # What bmm2_output has rounded is on out_proj's grid already: the same values come out.
        assert quantizer.changed or name.endswith("out_proj.input_quantizer")
        assert quantizer.format == "E4M3"
        assert quantizer.granularity == "per-tensor"
        assert quantizer.amax_finite
        assert quantizer.amax_count == 1
        assert quantizer.amax_min == quantizer.amax_max
        assert quantizer.amax_max is not None
        assert quantizer.amax_max > 0
        assert quantizer.seen > 0
        assert quantizer.clipped <= 0.1 * quantizer.seen
    assert {q.name for q in enabled(audit)} == set(audit.intended) - set(off)
    assert Counter(q.slot for q in enabled(audit, tower="vision")) == {
        "input": 13,
        "weight": 13,  # 2 blocks of 6 layers, and the projection
        "q": 2,
        "k": 2,
        "v": 2,
        "attention_output": 2,
    }
    assert {q.block for q in enabled(audit, slot="q")} == {0, 1}


def test_every_operation_is_seen_with_its_operands(build: Callable[..., Any]) -> None:
    _, audit = build("fp8-attention", exclude=PATCH)
    kinds = Counter((op.function, op.tower, op.operands_quantized) for op in audit.operations)
    assert kinds == {
        ("linear", "vision", (True, True)): 13,
        ("linear", "text", (True, True)): 13,
        ("attention", "vision", (True, True, True)): 2,
        ("attention", "text", (True, True, True)): 2,
        ("conv", "vision", (False, False)): 1,
    }
    linear = next(op for op in audit.operations if op.module.endswith("layers.1.mlp.fc2"))
    assert linear.module == "vision_model.encoder.layers.1.mlp.fc2"
    assert linear.module_class == "Linear"
    assert linear.operands == ("input", "weight")
    assert linear.weights_count == 32 * 64
    assert linear.block == 1


def test_operations_of_the_fp16_model(tiny_fp16: Encoder, make_pairs: MakePairs) -> None:
    batch = make_pairs()[0]
    audit = audit_module(
        tiny_fp16.module,
        runs={
            "vision": lambda: tiny_fp16.encode("vision", batch.inputs["vision"]),
            "text": lambda: tiny_fp16.encode("text", batch.tokens),
        },
    )
    assert audit.quantizers == audit.intended == audit.formats == ()  # type: ignore[comparison-overlap]
    assert len(audit.operations) == 31
    assert not any(any(op.operands_quantized) for op in audit.operations)
    assert Counter(m.kind for m in audit.modules if m.tower == "vision") == {
        "linear": 13,
        "conv": 1,
        "norm": 6,
        "attention": 2,
        "embedding": 1,
        "other": 1,  # the class embedding
    }


def test_audit_changes_nothing(
    build: Callable[..., Any], make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    model, first = build("fp8-attention", exclude=PATCH)
    before = copy.deepcopy(model.module.state_dict())
    recipe = make_recipe("fp8-attention")
    again = audit_quantizers(model, recipe=recipe, exclude=PATCH, held_out=make_pairs(seed=9))
    assert again == first
    assert all(torch.equal(before[k], v) for k, v in model.module.state_dict().items())
    hooks = [m for m in model.module.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []
    assert from_json(Audit, to_json(first)) == first


def test_per_channel_integers(build: Callable[..., Any]) -> None:
    _, audit = build("int8")
    weights = enabled(audit, slot="weight")
    assert {(q.format, q.granularity) for q in weights} == {("INT8", "per-channel")}
    fc1 = by_name(audit)["text_model.encoder.layers.0.mlp.fc1.weight_quantizer"]
    assert fc1.amax_count == 64
    assert fc1.amax_min is not None
    assert fc1.amax_max is not None
    assert fc1.amax_min < fc1.amax_max
    assert enabled(audit, slot="q") == []
    attention = [op for op in audit.operations if op.function == "attention"]
    assert {op.operands_quantized for op in attention} == {(False, False, False)}


def test_two_step_weights_are_intended(build: Callable[..., Any]) -> None:
    """A list of formats makes `weight_quantizer.0` and `.1`, which no pattern names."""
    _, audit = build(
        (
            {"quantizer_name": "*", "enable": False},
            {
                "quantizer_name": "*fc1.weight_quantizer",
                "cfg": [{"num_bits": 4, "block_sizes": {-1: 16}}, {"num_bits": (4, 3)}],
            },
        ),
        exclude=("*layers.1.mlp.fc1.weight_quantizer",),
    )
    assert audit.formats == ("INT4", "E4M3")
    assert {q.name.rpartition("fc1.")[2] for q in enabled(audit)} == {
        "weight_quantizer.0",
        "weight_quantizer.1",
    }
    assert {q.slot for q in enabled(audit)} == {"weight"}
    assert {q.granularity for q in enabled(audit, format="INT4")} == {"block"}
    assert len(audit.intended) == 8
    assert len(audit.disabled_by) == 4
    fc1 = [op for op in audit.operations if op.module.endswith("layers.0.mlp.fc1")]
    assert {op.operands_quantized for op in fc1} == {(False, True)}


# -- recipes that leave something out ------------------------------


def test_stock_preset_leaves_the_vision_tower_out(build: Callable[..., Any]) -> None:
    _, audit = build("FP8_DEFAULT_CFG")
    assert enabled(audit, tower="vision") == []
    assert enabled(audit, tower="text") != []
    off = Counter(pattern for _, pattern in audit.disabled_by)
    assert off == {"*vision_model*": 26, "*visual*": 2}  # 12 layers and the patches; projection
    linear = Counter((op.tower, op.operands_quantized) for op in audit.operations)
    assert linear["vision", (False, False)] == 14
    assert linear["text", (True, True)] == 13


def test_published_dict_form_also_reaches_norms_and_embeddings(
    build: Callable[..., Any],
) -> None:
    published = {
        "*weight_quantizer": {"num_bits": [4, 3], "axis": None},
        "*input_quantizer": {"num_bits": [4, 3], "axis": None},
        "*[qkv]_bmm_quantizer": {"num_bits": [4, 3], "axis": None},
        "*bmm2_output_quantizer": {"num_bits": [4, 3], "axis": None},
        "default": {"enable": False},
    }
    _, audit = build({"quant_cfg": published, "algorithm": "max"})
    kinds = {m.name: m.kind for m in audit.modules}
    on = Counter((kinds[q.module], q.slot) for q in enabled(audit))
    assert on["norm", "input"] == 11
    assert on["embedding", "weight"] == 3
    assert not any(kinds[by_name(audit)[n].module] in ("norm", "embedding") for n in audit.intended)
    assert len(enabled(audit, slot="attention_output")) == 4


def test_exclude_names_what_it_matched(build: Callable[..., Any]) -> None:
    _, audit = build("fp8", exclude=("*patch_embedding*", "*no_such_layer*", "*mlp.fc1.weight*"))
    excludes = dict(audit.excludes)
    assert len(excludes["*patch_embedding*"]) == 3
    assert excludes["*no_such_layer*"] == ()
    assert len(excludes["*mlp.fc1.weight*"]) == 4
    assert Counter(pattern for _, pattern in audit.disabled_by) == {
        "*patch_embedding*": 2,
        "*mlp.fc1.weight*": 4,
    }


# -- attention that does not run ------------------------------


def test_eager_attention_goes_around_the_diffusers_class(
    tiny_fp16: Encoder, build: Callable[..., Any]
) -> None:
    fp16 = replace(tiny_fp16, module=copy.deepcopy(tiny_fp16.module))
    fp16.module.set_attn_implementation("eager")  # type: ignore[operator]
    _, audit = build("fp8-attention", fp16=fp16)
    for slot in ("q", "k", "v", "attention_output"):
        found = enabled(audit, slot=slot)
        assert len(found) == 4
        assert {(q.calls, q.amax_max, q.changed) for q in found} == {(0, None, False)}
    matmuls = [op for op in audit.operations if op.function == "matmul"]
    assert len(matmuls) == 8
    assert {op.operands_quantized for op in matmuls} == {(False, False)}


def test_calibrated_attention_that_then_runs_eager(build: Callable[..., Any]) -> None:
    """An amax does not prove that a quantizer runs."""
    _, audit = build(
        "fp8-attention",
        sabotage=lambda model: model.module.set_attn_implementation("eager"),
    )
    found = enabled(audit, slot="q")
    assert {(q.calls, q.amax_finite) for q in found} == {(0, True)}


def test_softmax_quantizer_never_runs_under_sdpa(build: Callable[..., Any]) -> None:
    _, audit = build("huggingface/vit/ptq/fp8")
    found = enabled(audit, slot="softmax")
    assert len(found) == 4
    assert {q.calls for q in found} == {0}
    assert {q.calls for q in enabled(audit, slot="q")} == {1}


# -- ranges ------------------------------


def test_enabled_after_calibration_has_no_amax(build: Callable[..., Any]) -> None:
    """ModelOpt quantizes it with each batch's own amax, and the result looks normal."""

    def sabotage(model: Encoder) -> None:
        model.module.get_submodule("text_projection.output_quantizer").enable()  # type: ignore[operator]

    _, audit = build("fp8", sabotage=sabotage)
    quantizer = by_name(audit)["text_projection.output_quantizer"]
    assert quantizer.enabled
    assert quantizer.tower_calls["text"] == 1
    assert quantizer.changed
    assert (quantizer.amax_count, quantizer.amax_max, quantizer.amax_finite) == (0, None, False)
    assert (quantizer.clipped, quantizer.seen) == (0, 0)


def test_one_tower_never_calibrated(
    tiny_fp16: Encoder, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("fp8")
    model = replace(tiny_fp16, module=copy.deepcopy(tiny_fp16.module))

    def images_only(_module: Any) -> None:
        for batch in make_pairs():
            model.encode_image(batch.pixel_values)

    from pytest_quantgate.quantization.recipes import to_modelopt

    mtq.quantize(model.module, to_modelopt(recipe), forward_loop=images_only)
    audit = audit_quantizers(model, recipe=recipe, held_out=make_pairs())
    for quantizer in enabled(audit, slot="input"):
        assert quantizer.amax_finite == (quantizer.tower == "vision"), quantizer.name
        assert quantizer.calls == 1


@pytest.mark.parametrize(("value", "finite"), [(float("nan"), False), (float("inf"), False)])
def test_amax_that_is_no_number(value: float, finite: bool, build: Callable[..., Any]) -> None:
    def sabotage(model: Encoder) -> None:
        model.module.get_submodule("text_projection.input_quantizer")._amax.fill_(value)  # type: ignore[operator]

    _, audit = build("fp8", sabotage=sabotage)
    assert by_name(audit)["text_projection.input_quantizer"].amax_finite is finite


@pytest.mark.parametrize("recipe", ["fp8", "int8-smoothquant"])
def test_clipping_is_counted_on_data_that_was_not_calibrated_on(
    recipe: str, build: Callable[..., Any], make_pairs: MakePairs
) -> None:
    """SmoothQuant scales a value before it is quantized: the amax is meant for the scaled one."""
    name = "vision_model.encoder.layers.0.mlp.fc2.input_quantizer"

    def sabotage(model: Encoder) -> None:
        model.module.get_submodule(name)._amax.mul_(0.1)  # type: ignore[operator]

    model, audit = build(recipe, sabotage=sabotage)
    found = by_name(audit)[name]
    seen: list[torch.Tensor] = []
    layer = model.module.get_submodule(name.removesuffix(".input_quantizer"))
    handle = layer.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    for batch in make_pairs(seed=9):
        model.encode_image(batch.pixel_values)
    handle.remove()
    scale = layer.input_quantizer.pre_quant_scale
    assert (scale is None) == (recipe == "fp8")
    values = torch.cat([(value * (1 if scale is None else scale)).flatten(1) for value in seen])
    slack = 16 / 448 if recipe == "fp8" else 0.5 / 127
    clipped = (values.abs() > layer.input_quantizer.amax * (1 + slack)).sum(dim=1)
    assert found.seen == values.numel()
    assert found.clipped == int(clipped.sum()) > 0.1 * found.seen
    assert found.clipped_samples == int((clipped > 0).sum())
    assert found.clipped_squares == int((clipped**2).sum())


def test_weights_are_counted_once(build: Callable[..., Any]) -> None:
    """However many held-out batches there are; larger weights loaded later clip."""

    def sabotage(model: Encoder) -> None:
        with torch.no_grad():
            model.module.text_projection.weight.mul_(4)  # type: ignore[union-attr,operator]

    _, audit = build("fp8", sabotage=sabotage)
    weight = by_name(audit)["text_projection.weight_quantizer"]
    assert weight.seen == 16 * 32
    assert weight.clipped > 0
    fine = by_name(audit)["visual_projection.weight_quantizer"]
    assert (fine.clipped, fine.seen) == (0, 16 * 32)


def test_dynamic_and_constant_ranges(build: Callable[..., Any]) -> None:
    def cfg(**more: Any) -> tuple[Any, ...]:
        return (
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*fc1.input_quantizer", "cfg": {**E4M3, **more}},
            {"quantizer_name": "*fc2.weight_quantizer", "cfg": E4M3},
        )

    _, dynamic = build(cfg(type="dynamic"))
    found = enabled(dynamic, slot="input")
    assert {(q.dynamic, q.amax_count, q.seen) for q in found} == {(True, 0, 0)}
    assert {q.dynamic for q in enabled(dynamic, slot="weight")} == {False}
    _, constant = build(cfg(use_constant_amax=True))
    assert {(q.dynamic, q.amax_max) for q in enabled(constant, slot="input")} == {(False, 448.0)}


def test_quantization_switched_off_inside_an_enabled_quantizer(
    build: Callable[..., Any],
) -> None:
    def sabotage(model: Encoder) -> None:
        model.module.get_submodule("text_projection.input_quantizer").disable_quant()  # type: ignore[operator]

    _, audit = build("fp8", sabotage=sabotage)
    quantizer = by_name(audit)["text_projection.input_quantizer"]
    assert quantizer.enabled
    assert not quantizer.changed
    operation = next(op for op in audit.operations if op.module == "text_projection")
    assert operation.operands_quantized == (False, True)


def test_half_afterwards_is_a_model_of_another_arithmetic(
    build: Callable[..., Any], make_recipe: MakeRecipe, make_pairs: MakePairs
) -> None:
    model, before = build("fp8")
    model.module.half()
    half = replace(model, compute_dtype="float16")
    after = audit_quantizers(half, recipe=make_recipe("fp8"), held_out=make_pairs(seed=9))
    name = "text_projection.input_quantizer"
    assert by_name(after)[name].amax_max != by_name(before)[name].amax_max


def test_no_held_out_pairs(tiny_fp16: Encoder, make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=r"at least one batch of held-out pairs"):
        audit_quantizers(tiny_fp16, recipe=make_recipe("fp8"), held_out=[])


# -- models that a caller built ------------------------------


class Towers(nn.Module):
    """A CLIP of another make: `visual`, and the text tower's parts at the top."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.transformer = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.text_projection = nn.Parameter(torch.randn(8, 4))

    def encode_text(self, value: torch.Tensor) -> torch.Tensor:
        return self.transformer(value) @ self.text_projection  # type: ignore[no-any-return]


class Mha(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.fc(self.attn(value, value, value, need_weights=False)[0])  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Its weights are used by functions, not by their modules' forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 8)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        value = self.fc(value) @ self.proj
        value = functional.linear(value, self.head.weight, self.head.bias)
        return torch.einsum("nti,ij->ntj", value, self.proj)


def quantized_towers(visual: nn.Module) -> Towers:
    torch.manual_seed(0)
    model = Towers(visual).eval().requires_grad_(False)
    value = torch.randn(4, 3, 8)

    def calibrate(_module: Any) -> None:
        model.visual(value)
        model.encode_text(value)

    return mtq.quantize(model, {"quant_cfg": LAYERS, "algorithm": "max"}, forward_loop=calibrate)  # type: ignore[no-any-return]


def audit_towers(model: Towers) -> Audit:
    value = torch.randn(2, 3, 8)
    with torch.inference_mode():
        return audit_module(
            model,
            runs={
                "vision": lambda: model.visual(value),
                "text": lambda: model.encode_text(value),
            },
        )


def operation(audit: Audit, *, module: str, function: str) -> Operation:
    return next(op for op in audit.operations if (op.module, op.function) == (module, function))


def test_multihead_attention_escapes() -> None:
    audit = audit_towers(quantized_towers(Mha()))
    escaped = operation(audit, module="visual.attn", function="mha")
    assert escaped.operands_quantized == (False, False, False)
    assert escaped.weights_count == 4 * 8 * 8
    kinds = {m.name: m.kind for m in audit.modules}
    assert kinds["visual.attn"] == "mha"
    out = by_name(audit)["visual.attn.out_proj.weight_quantizer"]
    assert out.enabled
    assert out.amax_finite
    assert out.calls == 0
    assert out.name in audit.intended
    assert operation(audit, module="visual.fc", function="linear").operands_quantized == (
        True,
        True,
    )


def test_functional_calls_escape() -> None:
    audit = audit_towers(quantized_towers(Functional()))
    product = operation(audit, module="visual", function="matmul")
    assert product.operands_quantized == (False, False)
    assert product.weights_count == 64
    head = operation(audit, module="visual", function="linear")
    assert head.operands_quantized == (False, False)
    assert head.weights_count == 64
    assert by_name(audit)["visual.head.weight_quantizer"].calls == 0
    text = operation(audit, module="", function="matmul")
    assert (text.tower, text.weights_count, text.operands_quantized) == ("text", 32, (False, False))


def test_towers_of_other_makes_are_told_apart() -> None:
    audit = audit_towers(quantized_towers(Mha()))
    towers = {m.name: m.tower for m in audit.modules}
    assert towers["visual.fc"] == "vision"
    assert towers["transformer.0"] == "text"
    assert by_name(audit)["transformer.2.input_quantizer"].tower_calls["text"] == 1


def test_fused_encoder_layer_calls_no_quantizer() -> None:
    """nn.TransformerEncoderLayer has a fast path that takes the raw weights of its layers.

    It leaves that path as soon as it sees a hook on a child: an audit that hooks every module
    would report calls that never happen without it.
    """
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = quantized_towers(layer)
    audit = audit_towers(model)
    assert by_name(audit)["visual.linear1.weight_quantizer"].enabled
    assert by_name(audit)["visual.linear1.weight_quantizer"].calls == 0
    assert by_name(audit)["transformer.0.weight_quantizer"].tower_calls["text"] == 1


class Moved(nn.Module):
    """Quantizes its input and does something with it before the product."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.change = change

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        quantizer: Any = getattr(self.fc, "input_quantizer", nn.Identity())
        return torch.matmul(self.change(quantizer(value)), value.transpose(1, 2))


@pytest.mark.parametrize(
    ("change", "still_quantized"),
    [
        (lambda x: x, True),
        (lambda x: x.reshape(-1, 8).view(x.shape), True),
        (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), True),
        (lambda x: x.clone()[:, :3], True),
        (lambda x: torch.cat([x, x], dim=0)[: len(x)], True),
        (lambda x: x.double().float(), True),
        (lambda x: x.requires_grad_(False), True),
        (lambda x: x + 0.001, False),
        (lambda x: x.add_(0.001), False),
        (lambda x: x.__imul__(1.001), False),
        (lambda x: torch.mul(x, 1.001, out=x), False),
        (lambda x: torch.cat([x, x * 1.001], dim=0)[: len(x)], False),
    ],
)
def test_what_still_counts_as_quantized(
    change: Callable[[torch.Tensor], torch.Tensor], still_quantized: bool
) -> None:
    audit = audit_towers(quantized_towers(Moved(change)))
    product = operation(audit, module="visual", function="matmul")
    assert product.operands_quantized == (still_quantized, False)


def test_vision_only_model(make_pairs: MakePairs, tiny_fp16: Encoder) -> None:
    from transformers import CLIPVisionModelWithProjection

    config = copy.deepcopy(tiny_fp16.module.config.vision_config)  # type: ignore[union-attr]
    config.projection_dim = 16  # type: ignore[union-attr]
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(config).float().eval().requires_grad_(False)
    pixels = make_pairs()[0].pixel_values
    mtq.quantize(model, {"quant_cfg": LAYERS, "algorithm": "max"}, forward_loop=lambda m: m(pixels))
    audit = audit_module(model, runs={"vision": lambda: model(pixels)})
    assert audit.towers == ("vision",)
    assert {q.tower for q in audit.quantizers if q.calls} == {"vision"}
    intended = {by_name(audit)[name].module for name in audit.intended}
    assert "visual_projection" in intended
    assert len(intended) == 14


def test_siglip_pooling_head_escapes() -> None:
    from transformers import SiglipConfig, SiglipModel

    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = SiglipConfig(
        text_config={**common, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**common, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    model = SiglipModel(config).eval().requires_grad_(False)
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(50, (2, 8))

    def calibrate(_module: Any) -> None:
        model.get_image_features(pixel_values=pixels)
        model.get_text_features(input_ids=ids)

    mtq.quantize(model, {"quant_cfg": LAYERS, "algorithm": "max"}, forward_loop=calibrate)
    audit = audit_module(
        model,
        runs={
            "vision": lambda: model.get_image_features(pixel_values=pixels),
            "text": lambda: model.get_text_features(input_ids=ids),
        },
    )
    head = operation(audit, module="vision_model.head.attention", function="mha")
    assert not any(head.operands_quantized)
    assert by_name(audit)["vision_model.head.attention.out_proj.input_quantizer"].calls == 0
    assert by_name(audit)["text_model.head.input_quantizer"].tower_calls["text"] == 1


# -- the batch ------------------------------

GATE = CalibrationGate(where=Where(file="", line=0), max_clipped=Fraction(1, 2))


def input_config(**settings: Any) -> tuple[dict[str, Any], ...]:
    """Return FP8 for every layer, with these ranges on the inputs."""
    entry = {"quantizer_name": "*input_quantizer", "parent_class": "nn.Linear"}
    return (*LAYERS[:2], {**entry, "cfg": {**E4M3, **settings}})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "dependent"),
    [
        ({"type": "static"}, False),
        ({"type": "dynamic"}, True),
        ({"type": "dynamic", "axis": (0, 1)}, False),  # a range for each token
    ],
    ids=["static", "dynamic", "for each token"],
)
def test_range_of_the_batch_is_told_from_one_for_each_token(
    settings: dict[str, Any],
    dependent: bool,
    build: Callable[..., Any],
) -> None:
    _, audit = build(input_config(**settings), exclude=(*PATCH, "*projection*"))
    inputs = enabled(audit, slot="input")

    assert len(inputs) == 24
    assert {q.batch_dependent for q in inputs} == {dependent}
    assert {q.dynamic for q in inputs} == {settings["type"] == "dynamic"}
    assert not any(q.batch_dependent for q in enabled(audit, slot="weight"))
    assert [found.samples for found in audit.invariance] == [4, 4]
    assert judge_ranges(audit, gate=GATE).passed is not dependent


def test_the_same_batch_twice_gives_one_answer(build: Callable[..., Any]) -> None:
    """A dropout that is on moves the model by itself, too: it raised the floor that excused it."""

    def sabotage(model: Encoder) -> None:
        mlp = model.module.get_submodule("vision_model.encoder.layers.0.mlp")
        mlp.register_forward_hook(
            lambda _module, _inputs, output: torch.nn.functional.dropout(output, 0.02)
        )

    _, steady = build("fp8")
    _, audit = build("fp8", sabotage=sabotage)

    assert [found.repeat for found in steady.invariance] == [0, 0]
    assert judge_ranges(steady, gate=GATE).passed
    vision, text = audit.invariance
    assert vision.repeat > 1e-3
    assert text.repeat == 0
    verdict = judge_ranges(audit, gate=GATE)
    assert verdict.code == "calibration.two-answers"
    assert "the same batch twice gives two answers, embeddings move: vision by" in verdict.headline


def test_a_batch_that_moves_every_sample_is_no_tie_that_moves_one(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value at a tie moves one sample in one draw far: that floor, four times, hid a mean over
    the batch that moved each sample by 12 %."""
    one_moved = torch.tensor([0.0, 0.0, 0.04, 0.0])

    def distances(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        found = measured(value, reference)
        return found if found.median() > 1e-3 else one_moved

    def sabotage(model: Encoder) -> None:
        model.module.get_submodule("vision_model").register_forward_pre_hook(
            lambda _module, inputs, given: (
                inputs,
                {**given, "pixel_values": centre(given["pixel_values"])},
            ),
            with_kwargs=True,
        )

    def centre(pixels: torch.Tensor) -> torch.Tensor:
        return pixels - 0.2 * pixels.mean(dim=0, keepdim=True)

    measured = invariance._distances
    monkeypatch.setattr(invariance, "_distances", distances)
    _, audit = build("fp8", sabotage=sabotage)

    vision, _ = audit.invariance
    assert vision.floor == 0
    assert 1e-3 < vision.change < 4 * 0.04
    assert judge_ranges(audit, gate=GATE).code == "calibration.batch-dependent"


def test_range_for_each_token_is_one_of_the_batch_where_there_are_no_tokens(
    build: Callable[..., Any],
) -> None:
    """ModelOpt takes (0, 1) of [N, D] for all of it: the pooled outputs in front of projections."""
    _, audit = build(input_config(type="dynamic", axis=(0, 1)), exclude=PATCH)
    (text,) = (found for found in audit.invariance if found.tower == "text")

    assert {q.name for q in audit.quantizers if q.batch_dependent} == {
        "text_projection.input_quantizer",
        "visual_projection.input_quantizer",
    }
    assert text.change > 1e-3 > text.floor
    assert judge_ranges(audit, gate=GATE).code == "calibration.batch-dependent"


def test_quantizer_without_a_range_depends_on_the_batch(build: Callable[..., Any]) -> None:
    def sabotage(model: Encoder) -> None:
        del model.module.get_submodule("text_projection.input_quantizer")._amax

    _, audit = build("fp8", sabotage=sabotage)

    assert [q.name for q in audit.quantizers if q.batch_dependent] == [
        "text_projection.input_quantizer"
    ]


# -- clipping ------------------------------


@pytest.mark.parametrize(
    ("num_bits", "top", "following"),
    [(8, 127, 128), (4, 7, 8), ((4, 3), 448, 480), ((5, 2), 57344, 65536), ((2, 1), 6, 8)],
)
def test_values_that_round_to_the_largest_level_are_not_clipped(
    num_bits: Any, top: float, following: float
) -> None:
    """The grid, if it went on: half-way to the next level is where clipping begins."""
    kind = read_format(num_bits)
    assert kind is not None
    assert half_step(kind, dtype=torch.float32) == pytest.approx(
        (following - top) / 2 / top, rel=1e-12
    )


def test_slack_is_never_less_than_the_rounding_of_the_arithmetic() -> None:
    int24 = read_format(24)
    assert int24 is not None
    assert half_step(INT8, dtype=torch.bfloat16) == 8 * torch.finfo(torch.bfloat16).eps
    assert half_step(int24, dtype=torch.float32) == 8 * torch.finfo(torch.float32).eps


def test_clipped_values_are_counted_sample_by_sample() -> None:
    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=(4, 3)))
    quantizer.amax = torch.tensor(1.0)
    inside = 1 + 15.9 / 448
    values = torch.tensor([[0.5, inside, -1.0], [1.1, -2.0, 0.0], [-inside, 0.1, 3.0]])

    assert count_clipped(quantizer, values) == ([0, 2, 1], 9)
    assert count_clipped(quantizer, values[:1]) == ([], 3)
    assert float(quantizer(torch.tensor([inside]))) == 1.0


def test_quantizer_that_is_called_twice_clips_in_the_same_samples() -> None:
    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=8))
    quantizer.amax = torch.tensor(1.0)
    activity = {"layers.0.input_quantizer": Activity()}
    clips, other = torch.tensor([[2.0, 2.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    for first, second in ((clips, other), (other, clips), (other, other), (0 * other, clips)):
        with watch(
            {"layers.0.input_quantizer": quantizer},
            activity=activity,
            tower="vision",
            count_clipping=True,
        ):
            quantizer(first)
            quantizer(second)

    assert activity["layers.0.input_quantizer"].clipped_values == [2, 2, 2, 2, 0, 2, 2, 1]
    assert activity["layers.0.input_quantizer"].seen == 32
