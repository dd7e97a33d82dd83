"""The code of the verdict that names each sabotage. Those in files carry theirs themselves."""

from __future__ import annotations

from collections.abc import Mapping

TITLES: Mapping[str, tuple[str, ...]] = {
    "accuracy.class-drop-open": ("evaluation: one class lost",),
    "accuracy.classes-unseen": ("evaluation: forty samples, and a claim of no loss",),
    "accuracy.drop": ("evaluation: six points lost",),
    "accuracy.flips": ("evaluation: losses hidden by gains",),
    "accuracy.nonfinite": ("evaluation: NaN embeddings counted as wrong answers",),
    "accuracy.unpaired": (
        "evaluation: quantized evaluated on half of the samples",
        "evaluation: samples that failed were skipped",
        "evaluation: one sample counted twice",
    ),
    "accuracy.value-denied": ("evaluation: the reported value is rounded up",),
    "calibration.batch-dependent": ("recipe: ranges taken anew from each batch (dynamic)",),
    "calibration.clipped": (
        "calibration: calibrated on random noise",
        "calibration: calibrated on black images",
        "calibration: calibrated on one sample",
        "calibration: calibrated without normalisation",
    ),
    "calibration.no-batch": ("calibration: no batch was calibrated on",),
    "calibration.range-too-wide": ("calibration: calibrated on pixels from 0 to 255",),
    "calibration.tower-idle": ("calibration: calibrated with images only",),
    "coverage.blocks-left-out": ("recipe: only block 0 is quantized",),
    "coverage.layers-off": ("recipe: one block switched off",),
    "coverage.model-unusable": (
        "recipe: every entry of the recipe is off",
        "recipe: patterns of another model's names",
        "recipe: E5M2 typed for E4M3",
    ),
    "coverage.no-quantizers": ("recipe: the script ships the model that was never quantized",),
    "coverage.other-format": ("recipe: activations in INT8 behind FP8 weights",),
    "coverage.tower-off": (
        "recipe: ModelOpt's preset skips the vision tower",
        "recipe: text tower switched off after quantization",
        "recipe: text tower switched off, and a waiver that names it",
    ),
    "coverage.waiver-too-long": ("recipe: one block switched off, and a waiver until 9999",),
    "coverage.waivers-too-wide": (
        "recipe: one block switched off, and a waiver that names them all",
    ),
    "engine.attention-not-fused": (
        "engine: softmax left unquantized: attention falls back to half",
    ),
    "engine.input-unusable": ("engine: target without FP8 units",),
    "engine.of-another-file": ("engine: plan built from an older file",),
    "export.excluded-came-back": ("export: an excluded convolution comes back in FP8",),
    "export.foreign-operators": ("export: operators of the domain trt are left",),
    "export.model-unusable": ("export: file cut short",),
    "export.pairs-added": ("export: softmax pairs that nobody declared",),
    "export.pairs-doubled": ("export: one pair put in twice",),
    "export.quantizers-lost": (
        "export: attention of one block left out",
        "export: one DequantizeLinear bypassed",
        "export: text tower exported from FP16",
    ),
    "export.tower-missing": ("export: vision file in the place of the text file",),
    "export.values-differ": (
        "export: one scale times 4",
        "export: exported from another calibration",
        "export: a zero point that is not zero",
    ),
    "export.weights-in-full": ("export: full-precision weights behind Q/DQ",),
    "fidelity.cosine": (
        "evaluation: BGR images for the quantized variant",
        "evaluation: images of another size for the quantized variant",
    ),
    "latency.implausible": (
        "speed: quantized timed at batch 1, FP16 at batch 8",
        "speed: a timer that does not wait for the device",
    ),
    "latency.no-baseline": ("speed: an absolute limit without a baseline",),
    "latency.no-time": ("speed: a timer that stands still",),
    "latency.other-machine": ("speed: an absolute limit on another machine",),
    "latency.other-work": (
        "speed: quantized exported with a fixed batch of 4, FP16 timed at batch 8",
    ),
    "latency.ratio": ("speed: quantized slower than FP16",),
    "latency.ratio-open": (
        "speed: no warm-up: FP16 is timed cold",
        "speed: a machine too noisy to tell",
    ),
    "latency.rounds-unpaired": ("speed: rounds of one variant are missing",),
    "latency.too-few-rounds": ("speed: three rounds",),
    "memory.plan-bytes": ("engine: engine larger than the device has room for",),
    "parity.embeddings-differ": ("export: one stored weight lost (all zeros)",),
    "regression.baseline-of-other-things": (
        "evaluation: another template than the baseline's",
        "baseline: baseline of another data set",
        "baseline: baseline of another model",
        "baseline: baseline of other recipe content under its name",
        "baseline: baseline made with bfloat16 and eager attention",
        "baseline: baseline made on a GPU",
    ),
    "regression.baseline-of-red-run": ("baseline: the result of a red run, put there by hand",),
    "regression.baseline-unusable": (
        "baseline: baseline of another suite of the same name",
        "baseline: verdicts edited by hand",
        "baseline: value edited by hand",
        "baseline: older schema",
        "baseline: a field is missing",
        "baseline: file cut short",
    ),
    "regression.first-drop": ("baseline: small accepted drops have added up",),
    "regression.first-fp16-drop": ("baseline: small accepted drifts of FP16 have added up",),
    "regression.fp16-drop": ("baseline: a library moved FP16",),
    "regression.no-baseline": ("baseline: there is no baseline",),
    "regression.slot-of-other-model": (
        "baseline: the FP16 slot holds the FP8 results",
        "baseline: the variant's slot holds the FP16 results",
    ),
}

#: By the title of an entry, `<theme>: <name>`.
CODES = {title: code for code, titles in TITLES.items() for title in titles}
