"""Suites of what is handed over: a checkpoint, ONNX files, reports of engines."""

from __future__ import annotations

import pytest

from tests.suite_texts import SMALL, Load, Refusal, swap

QUANTIZE = "quantize: {recipe: fp8}\n"
FP16 = ", fp16: {onnx: {vision: f.onnx}}"
ONNX = f"artifacts: {{onnx: {{vision: v.onnx}}{FP16}}}\n"
ALONE = swap(QUANTIZE, ONNX, text=SMALL).replace("{roundtrip: {}}", "{export: {}}")
MODEL = "source: onnx, id: ./clip"
REPORT = (
    "artifacts: {engine_report: {vision: {layers: l.json, engine: e.plan, log: log.txt, %s}}}\n"
)


def test_every_file_has_the_line_of_its_key(load: Load) -> None:
    given = (
        "quantized: {checkpoint: out}\n"
        "artifacts:\n"
        "  engine_report:\n"
        "    text:\n"
        "      layers: l.json\n"
        "      engine: e.plan\n"
        "  fp16:\n"
        "    onnx: {vision: f.onnx}\n"
    )

    suite = load(swap(QUANTIZE, given, text=SMALL))

    place = "suites/demo.quantgate.yaml"
    assert suite.given_paths == (
        ("out", f"{place}:4"),
        ("l.json", f"{place}:8"),
        ("e.plan", f"{place}:9"),
        ("f.onnx", f"{place}:11"),
    )
    assert suite.variant == suite.quantized
    assert suite.label == "demo"


def test_onnx_files_alone_are_a_suite_that_declares_no_recipe(load: Load) -> None:
    suite = load(ALONE)

    assert suite.is_onnx_alone
    assert (suite.variant.recipe, suite.variant.where.line) == ("", 4)
    assert suite.given_paths == (
        ("v.onnx", "suites/demo.quantgate.yaml:4"),
        ("f.onnx", "suites/demo.quantgate.yaml:4"),
    )


def test_a_model_may_be_onnx_files_of_both_variants(load: Load) -> None:
    suite = load(swap("source: reference", MODEL, text=ALONE))

    assert suite.model.source == "onnx"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            swap(QUANTIZE, f"{QUANTIZE}quantized: {{checkpoint: out}}\n", text=SMALL),
            ":5: quantized: write one of quantize (a recipe",
        ),
        (swap(QUANTIZE, "", text=SMALL), ":1: write one of quantize"),
        (
            swap("{export: {}}", "{roundtrip: {}}", text=ALONE),
            ":5: roundtrip looks at the quantized model in PyTorch, and this suite has its ONNX "
            "files alone: leave it out, or name the checkpoint",
        ),
        (
            swap(
                "{export: {}}",
                "{accuracy: {task: scenes/classification, metric: acc1, max_drop: 1pp}}",
                text=ALONE,
            ),
            "files alone: write stage: onnx",
        ),
        (
            swap("source: reference", MODEL, text=SMALL),
            ":2: model: source: onnx is no PyTorch model to quantize: give artifacts.onnx alone",
        ),
        (
            swap("source: reference", MODEL, text=swap("vision: f", "text: f", text=ALONE)),
            ":4: artifacts: onnx names vision, fp16.onnx text: model.source onnx takes both",
        ),
        (
            swap("source: reference", MODEL, text=swap(FP16, "", text=ALONE)),
            "onnx names vision, fp16.onnx nothing: model.source onnx takes both of every tower",
        ),
        (
            f"{SMALL}artifacts: {{prefix: clip}}\n",
            ":6: artifacts: names no file: set onnx, engine or",
        ),
        (
            f"{SMALL}artifacts: {{fp16: {{}}}}\n",
            ":6: artifacts: names no file: set onnx, engine or",
        ),
        (
            f"{SMALL}{REPORT % ''}".replace("{engine_r", "{engine: {vision: f.plan}, engine_r"),
            ":6: artifacts.engine: names vision, and its engine_report names a plan: leave out one",
        ),
        (f"{SMALL}artifacts: {{onnx: {{visoin: v.onnx}}}}\n", "did you mean vision?"),
        (
            SMALL + REPORT.replace("log: log.txt, %s", "times: t.json"),
            ":6: artifacts.engine_report.vision.times: names no device: give the log of the same",
        ),
        (
            SMALL + REPORT % "profile: p.json",
            ":6: artifacts.engine_report.vision.profile: is shown beside times: give them too",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(refusal: Refusal, text: str, words: str) -> None:
    assert words in refusal(text)


FACTORY = 'source: factory, factory: "ours.models:make", towers: [vision, text]'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("source: factory", "source: factory, id: x", "model.id: belongs to a model of files"),
        ("ours.models:make", "ours.models", "model.factory: is no function: write package.module"),
        ("[vision, text]", "[text, vision]", "model.towers: says what the factory returns"),
        ("source: factory", "source: reference", "model.factory: belongs to source: factory"),
    ],
)
def test_a_model_that_a_function_makes_has_keys_of_its_own(
    refusal: Refusal, load: Load, old: str, new: str, words: str
) -> None:
    text = swap("source: reference", FACTORY, text=f"{SMALL}trust: true\n")

    assert load(text).model.towers == ("vision", "text")
    assert words in refusal(swap(old, new, text=text))
