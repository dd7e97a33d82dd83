"""Recipes that do something else than their authors think, and attention that is not quantized."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.sabotage.bench import MODEL_GATES, STAGE_GATES, Bench, Entry
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import choose, released
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.run.case import Case

RECIPE = 'quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}'
E4M3 = "{num_bits: [4, 3], axis: null}"
ALL_OFF = '{quantizer_name: "*", enable: false}'
ATTENTION = [
    f'{{quantizer_name: "*{name}_quantizer", cfg: {E4M3}}}'
    for name in ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
]
BLOCK = "vision_model.encoder.layers.2.*"
FULL_GATES = (*MODEL_GATES, *STAGE_GATES)


def layers(*, weight: str = E4M3, activation: str | None = E4M3, only: str = "*") -> list[str]:
    """Return the entries for Linear and Conv2d of those modules that `only` names."""
    found = []
    for parent in ("nn.Linear", "nn.Conv2d"):
        kinds = [("weight", weight)] + ([("input", activation)] if activation else [])
        found += [
            f'{{quantizer_name: "{only}{kind}_quantizer", parent_class: {parent}, cfg: {cfg}}}'
            for kind, cfg in kinds
        ]
    return found


def inline(*entries: str, exclude: str = '["*patch_embedding*"]') -> dict[str, str]:
    """Return the edit that puts an inline list in place of the recipe."""
    return {RECIPE: f"quantize: {{recipe: [{', '.join(entries)}], exclude: {exclude}}}"}


def named(recipe: str, *, exclude: str = '["*patch_embedding*"]') -> dict[str, str]:
    return {RECIPE: f"quantize: {{recipe: {recipe}, exclude: {exclude}}}"}


def waiver(pattern: str, *, days: int) -> dict[str, str]:
    """Return the edit that lets modules stay unquantized for so many days from today."""
    until = (datetime.now(UTC).date() + timedelta(days=days)).isoformat()
    return {
        "attention: [q, k, v, output]": "attention: [q, k, v, output], waive: [{modules: "
        f'"{pattern}", reason: "overflow on the first batch", until: {until}}}]'
    }


def suite(edits: dict[str, str], **more: str) -> Any:
    """Return the maker of a case whose suite is edited: what a person writes into the file."""
    return lambda bench: bench.load(edits={**edits, **more})


def never_quantized(bench: Bench) -> Case:
    def finish(model: Encoder) -> Encoder:
        return replace(model, module=copy.deepcopy(bench.good.fp16.module))

    return released(bench, "never quantized", Pipeline(finish=finish))


def switched_on_again(bench: Bench) -> Case:
    def finish(model: Encoder) -> None:
        for quantizer in choose(model, "*patch_embedding*"):
            quantizer.enable()

    return released(bench, "excluded layer on again", finish=finish)


def other_format(bench: Bench) -> Case:
    def finish(model: Encoder) -> None:
        for quantizer in choose(model, "*mlp*input_quantizer"):
            quantizer.num_bits = 8

    return released(bench, "INT8 activations", finish=finish)


def switch_off(name: str, *patterns: str, edits: dict[str, str] | None = None) -> Any:
    def make(bench: Bench) -> Case:
        def finish(model: Encoder) -> None:
            for pattern in patterns:
                for quantizer in choose(model, pattern):
                    quantizer.disable()

        return released(bench, name, edits=edits, finish=finish)

    return make


RECIPES = (
    Entry(
        name="every entry of the recipe is off",
        theme="recipe",
        make=suite(inline(ALL_OFF, exclude="[]")),
        gates=("coverage",),
        cause="quantizes nothing: every entry switches off",
    ),
    Entry(
        name="the script ships the model that was never quantized",
        theme="recipe",
        make=never_quantized,
        gates=("coverage",),
        cause="no quantizer at all|was never quantized",
    ),
    Entry(
        name="ModelOpt's preset skips the vision tower",
        theme="recipe",
        make=suite(named("FP8_DEFAULT_CFG", exclude="[]"), **{"attention: [q, k, v, output]": ""}),
        gates=("coverage",),
        cause="whole vision tower is unquantized.*of the recipe",
        judged=FULL_GATES,
    ),
    Entry(
        name="text tower switched off after quantization",
        theme="recipe",
        make=switch_off("text off", "text_*"),
        gates=("coverage",),
        cause="(?s)whole text tower is unquantized.*disabled after the quantization",
    ),
    Entry(
        name="text tower switched off, and a waiver that names it",
        theme="recipe",
        make=switch_off("text off", "text_*", edits=waiver("text_*", days=30)),
        gates=("coverage",),
        cause="(?s)whole text tower is unquantized.*waivers name 100.0 % of the text tower",
    ),
    Entry(
        name="one block switched off, and a waiver that names them all",
        theme="recipe",
        make=switch_off("block 2 off", BLOCK, edits=waiver("*layers.[0-9]*", days=30)),
        gates=("coverage",),
        cause="waivers name .* of the .* tower's quantizers .*: at most 25 %",
    ),
    Entry(
        name="one block switched off, and a waiver until 9999",
        theme="recipe",
        make=switch_off("block 2 off", BLOCK, edits=waiver(BLOCK, days=2_900_000)),
        gates=("coverage",),
        cause="holds until 99[0-9-]+, 2900000 days from today: at most 366",
    ),
    Entry(
        name="patterns of another model's names",
        theme="recipe",
        make=suite(inline(ALL_OFF, *layers(only="*transformer.resblocks*"), exclude="[]")),
        gates=("coverage",),
        cause="quantizes nothing|patterns match none|0 of .* quantizers are enabled"
        "|no weight quantizer is enabled",
    ),
    Entry(
        name="only block 0 is quantized",
        theme="recipe",
        make=suite(inline(ALL_OFF, *layers(only="*layers.0.*"), *ATTENTION, exclude="[]")),
        gates=("coverage",),
        cause="block",
        judged=FULL_GATES,
    ),
    Entry(
        name="one block switched off",
        theme="recipe",
        make=switch_off("block 2 off", BLOCK),
        gates=("coverage",),
        cause="(?s)intended layer quantizers are off.*vision_model.encoder.layers.2",
        judged=FULL_GATES,
    ),
    Entry(
        name="activations in INT8 behind FP8 weights",
        theme="recipe",
        make=other_format,
        gates=("coverage",),
        cause="another format than the recipe's E4M3: .* INT8",
    ),
    Entry(
        name="E5M2 typed for E4M3",
        theme="recipe",
        make=suite(
            inline(
                ALL_OFF,
                *layers(
                    weight="{num_bits: [5, 2], axis: null}",
                    activation="{num_bits: [5, 2], axis: null}",
                ),
                *ATTENTION,
            )
        ),
        gates=("coverage", "export"),
        cause=r"E5M2|\(5, 2\)",
        judged=FULL_GATES,
    ),
    Entry(
        name="activations quantized per channel (wrong axis)",
        theme="recipe",
        make=suite(inline(ALL_OFF, *layers(activation="{num_bits: [4, 3], axis: -1}"), *ATTENTION)),
        gates=("coverage", "export", "engine"),
        cause="axis|per-channel|per channel",
        judged=FULL_GATES,
    ),
    Entry(
        name="weights only: activations stay in half precision",
        theme="recipe",
        make=suite(inline(ALL_OFF, *layers(activation=None), *ATTENTION)),
        gates=("coverage", "engine"),
        cause="half precision|activations",
        judged=FULL_GATES,
    ),
    Entry(
        name="ranges taken anew from each batch (dynamic)",
        theme="recipe",
        make=suite(
            inline(
                ALL_OFF,
                *layers(activation="{num_bits: [4, 3], axis: null, type: dynamic}"),
                *ATTENTION,
            )
        ),
        gates=("calibration", "export"),
        cause="its range is taken from each batch|take the range from the whole batch",
        judged=FULL_GATES,
    ),
    Entry(
        name="exclusion as wide as a tower",
        theme="recipe",
        make=suite(named("fp8-attention", exclude='["*vision_model*", "*visual*"]')),
        gates=("coverage",),
        cause="whole vision tower is unquantized.*exclude list",
    ),
    Entry(
        name="exclusion takes all MLPs",
        theme="recipe",
        make=suite(named("fp8-attention", exclude='["*patch_embedding*", "*mlp*"]')),
        gates=("export", "engine"),
        cause="too few weights are quantized|min_fp8_gemms",
        judged=FULL_GATES,
    ),
    Entry(
        name="exclusion misspelt",
        theme="recipe",
        make=suite(named("fp8-attention", exclude='["*patch_embeding*"]')),
        gates=("coverage",),
        cause=r"matches none of .* did you mean '\*patch_embedding\*'",
    ),
    Entry(
        name="exclusion written as a regular expression",
        theme="recipe",
        make=suite(named("fp8-attention", exclude="['.*patch_embedding.*']")),
        gates=("coverage",),
        cause="(?s)matches none of.*regular expression",
    ),
    Entry(
        name="an excluded layer is switched on again",
        theme="recipe",
        make=switched_on_again,
        gates=("coverage",),
        cause="enabled all the same",
    ),
    Entry(
        name="the entry that switches all off stands last",
        theme="recipe",
        make=suite(inline(*layers(), *ATTENTION, ALL_OFF)),
        gates=("coverage",),
        cause="quantizes nothing|no weight quantizer is enabled|switched off by|stands last",
    ),
    Entry(
        name="a bare *input_quantizer takes the LayerNorms along",
        theme="recipe",
        make=suite(
            inline(
                ALL_OFF,
                f'{{quantizer_name: "*weight_quantizer", cfg: {E4M3}}}',
                f'{{quantizer_name: "*input_quantizer", cfg: {E4M3}}}',
                *ATTENTION,
            )
        ),
        gates=("coverage",),
        cause="(?s)nobody asked for.*LayerNorm",
        judged=FULL_GATES,
    ),
    Entry(
        name="INT8 without SmoothQuant on a model with outlier channels",
        theme="recipe",
        make=suite(named("int8"), **{"attention: [q, k, v, output]": "attention: []"}),
        gates=("fidelity", "accuracy"),
        cause=r"outlier channels explain it: \d+ of 160 input channels of (mlp|self_attn)\."
        r".*\(\d+(, \d+)*\).* the 127 levels of INT8",
        judged=tuple(kind for kind in MODEL_GATES if kind != "regression"),
    ),
)

ATTENTIONS = (
    Entry(
        name="attention was never registered",
        theme="attention",
        make=suite(named("fp8")),
        gates=("coverage",),
        cause="(?s)attention is not quantized as expected.*(has no quantizer|is off)",
        judged=("coverage", "fidelity", "accuracy", "engine"),
    ),
    Entry(
        name="attn_implementation eager under sdpa's class",
        theme="attention",
        make=suite({"{source: reference}": "{source: reference, attn_implementation: eager}"}),
        gates=("coverage",),
        cause="(?s)never called.*(eager|attn_implementation: sdpa)",
    ),
    Entry(
        name="calibrated under sdpa, run in eager",
        theme="attention",
        make=lambda bench: released(bench, "run in eager", finish=to_eager),
        gates=("coverage",),
        cause="(?s)enabled with an amax and never called.*eager",
    ),
    Entry(
        name="attention quantized in the text tower only",
        theme="attention",
        make=suite(
            inline(
                ALL_OFF,
                *layers(),
                *[entry.replace('"*', '"*text_model*') for entry in ATTENTION],
            )
        ),
        gates=("coverage",),
        cause="(?s)attention is not quantized as expected.*vision_model",
        judged=("coverage", "fidelity", "accuracy", "engine"),
    ),
    Entry(
        name="q, k, v without the output",
        theme="attention",
        make=suite(inline(ALL_OFF, *layers(), *ATTENTION[:3])),
        gates=("coverage",),
        cause="attention is not quantized as expected: output (is off|has no quantizer)",
    ),
    Entry(
        name="attention of one block switched off",
        theme="attention",
        make=switch_off("attention of block 1", "vision_model.encoder.layers.1.self_attn.*bmm*"),
        gates=("coverage",),
        cause=r"(?s)attention is not quantized as expected.*in 1 of .*layers\.1\.",
        judged=("coverage", "fidelity", "accuracy"),
    ),
    Entry(
        name="softmax wanted, and its quantizer never runs",
        theme="attention",
        make=suite(
            named("huggingface/vit/ptq/fp8", exclude="[]"),
            **{"attention: [q, k, v, output]": "attention: [q, k, v, softmax]"},
        ),
        gates=("coverage",),
        cause="(?s)softmax is enabled .*never called.*are never handed to a quantizer here",
    ),
)


def to_eager(model: Encoder) -> None:
    part: Any
    for part in model.module.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation = "eager"
