"""What really was changed in every entry of the catalogue, as `quantgate diff` must say it.

One regular expression for each thing that a reviewer has in hand and that holds the change. What
is not named here must show no difference, or only what the change did (`differences.py` says
which). A control that changes nothing must show no difference anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

#: What a reviewer compares: two git revisions of suites and baselines, two checkpoints, two folders
#: of ONNX files, two JSON reports.
Route = Literal["revisions", "checkpoint", "onnx", "report"]
ROUTES: tuple[Route, ...] = get_args(Route)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a diff must say of one entry.

    `said` gives the regular expression by route. `principle` says why the change itself is in none
    of the files, so that what it did and what the gate says of it is the best there can be. Of a
    control `only` is what every single change must match: nothing else may be said.
    """

    said: Mapping[Route, str]
    principle: str = ""
    only: str = ""


def truth(*, principle: str = "", only: str = "", **said: str) -> Truth:
    routes = {route: said.pop(route) for route in ROUTES if route in said}
    if said:
        raise TypeError(f"no routes: {', '.join(said)}")
    return Truth(said=routes, principle=principle, only=only)


LOADED_WRONG = (
    "the run's own loader feeds what is calibrated on: the files on disk are the same, and what "
    "went wrong is seen in the ranges of the tower that was fed, and said by the gate"
)
FED_WRONG = (
    "a loader of the pipeline's own feeds the variant: model, data and FP16 are the same on both "
    "sides, and the answers of one tower alone differ"
)

RECIPES = {
    "every entry of the recipe is off": truth(
        revisions="the recipe switches nothing on any more: every entry is off",
        report="(?s)not ship: coverage.*quantizes nothing: every entry switches off",
    ),
    "the script ships the model that was never quantized": truth(
        checkpoint="(?s)whole vision tower is unquantized now: 66 -> 0.*"
        "whole text tower is unquantized now: 50 -> 0.*116 quantizers removed",
        report="(?s)holds no quantizer at all.*116 quantizers removed that had been on",
    ),
    "ModelOpt's preset skips the vision tower": truth(
        revisions="quantize.recipe: fp8-attention -> FP8_DEFAULT_CFG",
        checkpoint=r"(?s)whole vision tower is unquantized now: 66 -> 0.*"
        r"added: \*vision_model\*: off",
        report="(?s)whole vision tower is unquantized.*pattern '\\*vision_model\\*' of the recipe",
    ),
    "text tower switched off after quantization": truth(
        checkpoint="whole text tower is unquantized now: 50 -> 0",
        report="whole text tower is unquantized now: 50 -> 0",
    ),
    "text tower switched off, and a waiver that names it": truth(
        revisions=r"coverage\.waive: \[\] -> \[{modules: \[text_\*\]",
        checkpoint="whole text tower is unquantized now: 50 -> 0",
        report="whole text tower is unquantized now: 50 -> 0",
    ),
    "one block switched off, and a waiver that names them all": truth(
        revisions=r"coverage\.waive: \[\] -> \[{modules: \[\*layers",
        checkpoint="16 quantizers switched off: vision: input, weight .*in block 2, attention",
        report="16 quantizers switched off: vision: input, weight .*in block 2, attention",
    ),
    "one block switched off, and a waiver until 9999": truth(
        revisions=r"coverage\.waive: \[\] -> .*until: 99\d\d-",
        checkpoint="16 quantizers switched off: vision: input, weight .*in block 2, attention",
        report="16 quantizers switched off: vision: input, weight .*in block 2, attention",
    ),
    "patterns of another model's names": truth(
        revisions=r"(?s)removed: \*weight_quantizer on nn.Linear.*"
        r"added: \*transformer.resblocks\*weight_quantizer on nn.Linear",
        report="no weight quantizer is enabled, so nothing would be quantized.*resblocks",
    ),
    "only block 0 is quantized": truth(
        revisions=r"added: \*layers\.0\.\*weight_quantizer on nn.Linear",
        checkpoint=r"64 quantizers switched off: vision: .* in blocks 1-3; text: .* in blocks 1-2",
        onnx=r"(?s)removed that had been on: text: .* in blocks 1-2.*: vision: .* in blocks 1-3",
        report=r"64 quantizers switched off: vision: .* in blocks 1-3; text: .* in blocks 1-2",
    ),
    "one block switched off": truth(
        checkpoint="16 quantizers switched off: vision: input, weight .*in block 2, attention",
        onnx=r"file removed: vision\.onnx",
        report="16 quantizers switched off: vision: input, weight .*in block 2, attention",
    ),
    "activations in INT8 behind FP8 weights": truth(
        checkpoint=r"format E4M3 -> INT8 in 14 quantizers: vision: input of mlp\.fc1, mlp\.fc2",
        report=r"format E4M3 -> INT8 in 14 quantizers: vision: input of mlp\.fc1, mlp\.fc2",
    ),
    "E5M2 typed for E4M3": truth(
        revisions=r"added: \*weight_quantizer on nn.Linear: E5M2",
        report=r"E5M2|\(5, 2\)",
    ),
    "activations quantized per channel (wrong axis)": truth(
        revisions=r"added: \*input_quantizer on nn.Linear: E4M3 per-channel \(axis -1\)",
        checkpoint=r"granularity per-tensor -> per-channel \(axis -1\) in 44 quantizers",
        onnx=r"granularity 1 scale -> \d+ scales in \d+ quantizers: text: input",
        report="granularity per-tensor -> per-channel in 44 quantizers",
    ),
    "weights only: activations stay in half precision": truth(
        revisions=r"removed: \*input_quantizer on nn.Linear",
        checkpoint="44 quantizers switched off: vision: input .*text: input",
        onnx="(?s)quantizers removed that had been on: text: input.*vision: input",
        report="44 quantizers switched off: vision: input .*text: input",
    ),
    "ranges taken anew from each batch (dynamic)": truth(
        revisions=r"added: \*input_quantizer on nn.Linear: .*type dynamic",
        checkpoint="range static -> dynamic in 44 quantizers: vision: input .*text: input",
        report="range static -> dynamic in 44 quantizers: vision: input .*text: input",
    ),
    "exclusion as wide as a tower": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\*vision_model\*, \*visual\*\]",
        checkpoint="whole vision tower is unquantized now: 66 -> 0",
        report=r"(?s)whole vision tower is unquantized now.*added: exclude \*vision_model\*",
    ),
    "exclusion takes all MLPs": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\*patch_embedding\*, \*mlp\*\]",
        checkpoint=r"28 quantizers switched off: vision: input, weight of mlp\.fc1, mlp\.fc2",
        onnx=r"quantizers removed that had been on: vision: input, weight of mlp\.fc1, mlp\.fc2",
        report=r"(?s)28 quantizers switched off: .*mlp\.fc1, mlp\.fc2.*added: exclude \*mlp\*",
    ),
    "exclusion misspelt": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\*patch_embeding\*\]",
        checkpoint=r"2 quantizers switched on: vision_model\.embeddings\.patch_embedding\.",
        report=r"(?s)switched on: vision_model\.embeddings\.patch_embedding.*"
        r"exclude \*patch_embeding\* \(it matches none\)",
    ),
    "exclusion written as a regular expression": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\.\*patch_embedding\.\*\]",
        checkpoint=r"2 quantizers switched on: vision_model\.embeddings\.patch_embedding\.",
        report=r"(?s)switched on: vision_model\.embeddings\.patch_embedding.*"
        r"exclude \.\*patch_embedding\.\* \(it matches none\)",
    ),
    "an excluded layer is switched on again": truth(
        checkpoint=r"3 quantizers switched on: .* of embeddings\.patch_embedding",
        report=r"(?s)enabled all the same.*3 quantizers switched on: .*embeddings\.patch_embedding",
    ),
    "the entry that switches all off stands last": truth(
        revisions=r"the recipe switches nothing on any more: `\*: off` stands behind the entries",
        report="no weight quantizer is enabled, so nothing would be quantized",
    ),
    "a bare *input_quantizer takes the LayerNorms along": truth(
        revisions=r"added: \*input_quantizer: E4M3 per-tensor",
        checkpoint=r"(?s)20 quantizers switched on.*layer_norm1\.input_quantizer",
        onnx=r"(?s)quantizers added and on.*layer_norm1\.input_quantizer",
        report=r"(?s)17 on norm modules.*20 quantizers switched on.*layer_norm1\.input_quantizer",
    ),
    "INT8 without SmoothQuant on a model with outlier channels": truth(
        revisions=r"(?s)quantize.recipe: fp8-attention -> int8 .*removed: .*E4M3.*added: .*INT8",
        checkpoint="(?s)format E4M3 -> INT8 in 88 quantizers.*per-channel",
        report="(?s)fidelity.*: PASS -> FAIL.*outlier channels explain it.*"
        "format E4M3 -> INT8 in 88 quantizers",
    ),
}

ATTENTION = {
    "attention was never registered": truth(
        revisions=r"(?s)fp8-attention -> fp8 .*removed: \*bmm2_output_quantizer",
        checkpoint="(?s)removed that had been on: vision: attention output.*"
        "21 quantizers switched off: vision: attention q, k, v",
        report="(?s)attention is not quantized as expected.*vision: attention output.*"
        "21 quantizers switched off: vision: attention q, k, v",
    ),
    "attn_implementation eager under sdpa's class": truth(
        revisions="model.attn_implementation: sdpa -> eager",
        checkpoint="(?s)28 quantizers still on that never run any more: vision: attention q, k, v, "
        "output.*attn_implementation.*sdpa -> eager",
        report="(?s)28 quantizers still on that never run any more: vision: attention.*"
        "attn_implementation: sdpa -> eager",
    ),
    "calibrated under sdpa, run in eager": truth(
        checkpoint="28 quantizers still on that never run any more: vision: attention q, k, v, "
        "output",
        report="(?s)eager.*28 quantizers still on that never run any more: vision: attention",
    ),
    "attention quantized in the text tower only": truth(
        revisions=r"(?s)removed: \*q_bmm_quantizer.*added: \*text_model\*q_bmm_quantizer",
        checkpoint="12 quantizers switched off: vision: attention q, k, v in blocks 0-3",
        onnx=r"file removed: vision\.onnx",
        report="12 quantizers switched off: vision: attention q, k, v in blocks 0-3",
    ),
    "q, k, v without the output": truth(
        revisions=r"removed: \*bmm2_output_quantizer",
        checkpoint="7 quantizers removed that had been on: vision: attention output in blocks 0-3",
        report="7 quantizers removed that had been on: vision: attention output in blocks 0-3",
    ),
    "attention of one block switched off": truth(
        checkpoint="4 quantizers switched off: vision: attention q, k, v, output in block 1",
        report="4 quantizers switched off: vision: attention q, k, v, output in block 1",
    ),
    "softmax wanted, and its quantizer never runs": truth(
        revisions="(?s)attention: .* -> .*softmax.*"
        "recipe: fp8-attention -> huggingface/vit/ptq/fp8",
        checkpoint=r"7 quantizers added and on \(7 never run\): vision: attention softmax",
        report=r"7 quantizers added and on \(7 never run\): vision: attention softmax",
    ),
}

VISION_MOVED = (
    r"(?s)re-ranged.*no range of the text tower moved.*"
    "no range of a weight moved: other calibration"
)
TEXT_MOVED = (
    r"(?s)re-ranged.*no range of the vision tower moved.*"
    "no range of a weight moved: other calibration"
)

CALIBRATION = {
    "no batch was calibrated on": truth(
        checkpoint=r"(?s)72 quantizers on without amax now.*calibration batches: \d+ -> 0",
        report=r"(?s)72 quantizers on without amax now.*calibration batches: \d+ -> 0",
    ),
    "calibrated with images only": truth(
        checkpoint="(?s)31 quantizers on without amax now.*text batches: 4 -> 0",
        report="(?s)31 quantizers on without amax now.*through the text tower: 4 -> 0",
    ),
    "calibrated on random noise": truth(
        checkpoint=VISION_MOVED,
        report=f"(?s)calibration data unlike the real data.*{VISION_MOVED[4:]}",
        principle=LOADED_WRONG,
    ),
    "calibrated on black images": truth(
        checkpoint=VISION_MOVED,
        report=f"(?s)calibration data unlike the real data.*{VISION_MOVED[4:]}",
        principle=LOADED_WRONG,
    ),
    "calibrated on one sample": truth(
        checkpoint="calibration samples: 256 -> 1$",
        report="calibration samples: 256 -> 1$",
    ),
    "calibrated without normalisation": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\]",
        checkpoint=VISION_MOVED,
        report=f"(?s)other preprocessing.*{VISION_MOVED[4:]}",
        principle=LOADED_WRONG,
    ),
    "calibrated on pixels from 0 to 255": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\]",
        checkpoint=VISION_MOVED,
        report=f"(?s)other preprocessing.*{VISION_MOVED[4:]}",
        principle=LOADED_WRONG,
    ),
    "pixels from 0 to 255, with the first layer excluded": truth(
        checkpoint=VISION_MOVED,
        report=VISION_MOVED,
        principle=LOADED_WRONG,
    ),
    "calibrated on texts of padding": truth(
        checkpoint=TEXT_MOVED,
        report=f"(?s)calibration data unlike the real data.*{TEXT_MOVED[4:]}",
        principle=LOADED_WRONG,
    ),
    "NaN in a calibration image": truth(
        checkpoint="not finite in calibration: none -> scenes/calibration/",
        report="not finite in calibration: none -> scenes/calibration/",
    ),
    "calibrated on the test images": truth(
        checkpoint=r"calibration images: others than before \(0 of 256 are the same\): .*"
        r"scenes/calibration/.* -> .*scenes/test/",
        report=r"calibration images: others than before: .*scenes/calibration/.* -> .*scenes/test/",
    ),
    "calibrated on the held-out images": truth(
        checkpoint="calibration images that are also held-out ones: 0 -> 128",
        report="calibration images that are also held-out ones: 0 -> 128",
    ),
    "ranges of another checkpoint": truth(
        checkpoint="44 weights with a range that is not theirs: the ranges moved and the weights "
        "did not: ranges of another checkpoint",
        report="(?s)ranges of 44 of 44 weights are not those of the weights.*"
        "44 ranges of weights moved: those of other weights",
    ),
    "one range missing": truth(
        checkpoint=r"on without amax now .*: vision_model\.encoder\.layers\.1\.mlp\.fc1\.input_q",
        report=r"on without amax now .*: vision_model\.encoder\.layers\.1\.mlp\.fc1\.input_q",
    ),
    "one range NaN": truth(
        checkpoint=r"1 of 116 .* re-ranged, most text_model.*\.0\.mlp\.fc2\.input.* -> nan",
        report=r"1 of 116 .* re-ranged, most text_model.*\.0\.mlp\.fc2\.input.* -> nan",
    ),
    "one range zero": truth(
        checkpoint=r"1 of 116 .* re-ranged, most text_model.*\.0\.mlp\.fc2\.input.* -> 0 \(x0\)",
        report=r"1 of 116 .* re-ranged, most text_model.*\.0\.mlp\.fc2\.input.* -> 0 \(x0\)",
    ),
    "one range a quarter of what it was": truth(
        checkpoint=r"1 of 116 .* re-ranged, most vision.*\.2\.mlp\.fc1\.input.*\(x0\.25\)",
        report=r"1 of 116 .* re-ranged, most vision.*\.2\.mlp\.fc1\.input.*\(x0\.25\)",
    ),
    "one range a million times what it was": truth(
        checkpoint=r"1 of 116 .* re-ranged, most vision.*\.2\.mlp\.fc1\.input.*\(x1e\+06\)",
        report=r"1 of 116 .* re-ranged, most vision.*\.2\.mlp\.fc1\.input.*\(x1e\+06\)",
    ),
    "weight ranges far too wide": truth(
        checkpoint=r"(?s)44 of 116 .* re-ranged, .*weight_quantizer: .*\(x1e\+05\).*"
        "all by the same factor 1e\\+05.*the ranges moved and the weights did not",
        report=r"(?s)44 of 116 .* re-ranged, .*weight_quantizer: .*\(x1e\+05\)",
    ),
    ".half() after the calibration, a range does not fit": truth(
        checkpoint=r"(?s)most vision.*\.1\.mlp\.fc2\.input_quantizer: amax \S+ -> inf.*"
        "71 of 72 are what they were, rounded to half precision.*"
        "compute_dtype: float32 -> float16",
        report=r"(?s)most vision.*\.1\.mlp\.fc2\.input_quantizer: amax \S+ -> inf.*"
        "71 of 72 are what they were, rounded to half precision",
    ),
    ".half() after the calibration, every range fits": truth(
        checkpoint="(?s)72 of 72 are what they were, rounded to half precision.*"
        "compute_dtype: float32 -> float16",
        report="72 of 72 are what they were, rounded to half precision",
    ),
}

WEIGHTS = {
    "two layers swapped after the calibration": truth(
        checkpoint=r"(?s)the weights moved and their ranges did not: changed after the calibr.*"
        r"layers\.0\.mlp\.fc1\.weight: holds what \S+layers\.3\.mlp\.fc1\.weight held",
        report=r"ranges of 2 of 44 weights are not those of the weights: .*layers\.[03]\.mlp\.fc1",
    ),
    "one layer zeroed": truth(
        checkpoint=r"1 of 126 weight tensors changed, most .*layers\.2\.mlp\.fc1\.weight: all zero",
        report=r"noisier by \w+, most \S+layers\.2\.mlp\.fc1",
    ),
    "last LayerNorm at its initial values": truth(
        checkpoint=r"(?s)2 of 126 weight tensors changed.*post_layernorm\.bias .*all zero now.*"
        r"post_layernorm\.weight .*all 1 now",
        report="vision embeddings against FP16's: cosine .*; text as before",
    ),
    "last shard of the checkpoint missing": truth(
        checkpoint=r"(?s)48 of 126 weight tensors changed.*all weights of these blocks, and no "
        r"other: .*text_model\.encoder\.layers\.2.*vision_model\.encoder\.layers",
        report=r"ranges of 18 of 44 weights are not those of the weights: .*layers\.[23]\.",
    ),
    "another revision was quantized": truth(
        checkpoint=r"(?s)44 ranges of weights moved: those of other weights.*"
        r"weight tensors changed",
        report="44 ranges of weights moved: those of other weights",
    ),
    "fine-tuned after the calibration": truth(
        checkpoint=r"(?s)29 weights with a range that is not theirs: the weights moved and their "
        r"ranges did not: changed after the calibration.*44 of 126 weight tensors changed",
        report="(?s)ranges of 29 of 44 weights are not those of the weights.*changed after",
    ),
    "one matrix transposed": truth(
        checkpoint=r"1 of 126 weight tensors changed, most .*layers\.1\.self_attn\.q_proj\.weight: "
        "transposed",
        report=r"noisier by \w+, most \S+layers\.1\.self_attn\.q_proj",
    ),
}

DATA = {
    "samples raised until the gate is green": truth(
        revisions=r"max_drop: 2pp -> 0\.\d+pp, tightened",
        report="look 4 at samples of the same data|not decided against max_drop",
    ),
}

OVERFLOW = {
    "shipped in bfloat16, exported in float16": truth(
        revisions=r"model\.dtype: float16 -> bfloat16",
        report="the vision graph computes in float16, the suite ships bfloat16",
    ),
    "an embedding depends on what else is in its batch": truth(
        report="an embedding depends on what else is in its batch",
        principle=FED_WRONG,
    ),
}

EVALUATION = {
    "tokenizer of another vocabulary": truth(
        report="(?s)likely cause: .*tokenizer.*FP16 79.10 % -> 0.30 %.*quantized .* -> 0.30 %",
        principle="the tokenizer is loaded from the model's own files, whose digest is compared; "
        "one that a script exchanges in memory leaves the same data, model and ranges, and both "
        "variants fall alike",
    ),
    "templates without the class name": truth(
        report="other templates; .*images, labels.*class names are the same",
    ),
    "another template than the baseline's": truth(
        report="other templates; .*images, labels.*class names are the same",
    ),
    "labels shuffled": truth(report="other labels; .*images.*class names.*are the same"),
    "class names in another order": truth(
        report="other class names; .*images, labels.*templates are the same"
    ),
    "BGR images for the quantized variant": truth(
        report="vision embeddings against FP16's: cosine .* -> cosine 0.7.*; text as before",
        principle=FED_WRONG,
    ),
    "images of another size for the quantized variant": truth(
        report="vision embeddings against FP16's: cosine .* -> cosine 0.7.*; text as before",
        principle=FED_WRONG,
    ),
    "quantized evaluated on half of the samples": truth(
        report="the sample ids differ: 500 only in FP16, 0 only in fp8-attention",
    ),
    "samples that failed were skipped": truth(
        report="the sample ids differ: 66 only in FP16, 0 only in fp8-attention",
    ),
    "one sample counted twice": truth(
        report="fp8-attention has the sample 'scenes/test/single/000000' more than once",
    ),
    "forty samples, and a claim of no loss": truth(
        report=r"not paired: the samples differ \(1000 -> 40",
    ),
    "six points lost": truth(
        report=r"(?s)quantized 79.60 % -> 73.60 %, change -6.00 .*a loss.*"
        "60 flips on 1000 samples: 60 right to wrong, 0 wrong to right",
    ),
    "losses hidden by gains": truth(
        report=r"(?s)change 0.00 .*408 flips on 1000 samples: 204 right to wrong, 204 wrong to "
        "right.*answers that differ from FP16's 25 -> 410",
    ),
    "one class lost": truth(
        report="1 class lost at least half of the samples: 'blue circle' . -> 0 right of 6",
    ),
    "NaN embeddings counted as wrong answers": truth(
        report="quantized: samples with NaN or Inf: 0 -> 2",
    ),
    "the reported value is rounded up": truth(
        report="the value reported: what its samples say -> 80.00 %, but 796 of 1000 samples are "
        "right, 79.60 %",
    ),
}

BASELINES = {
    "there is no baseline": truth(
        revisions="baseline removed: reference scenes/classification-acc1",
        report="no baseline of scenes/classification acc1",
    ),
    "baseline of another data set": truth(
        revisions="evaluation data: [0-9a-f]{12} -> 1{12}",
        report="evaluation data differ: baseline 1{12}",
    ),
    "baseline of another model": truth(
        revisions="model weights or files: [0-9a-f]{12} -> 2{12}",
        report="model weights or files differ: baseline 2{12}",
    ),
    "baseline of other recipe content under its name": truth(
        revisions=r"recipe entry added: \*qkv_quantizer",
        report=r"recipe content differs: now without \*qkv_quantizer",
    ),
    "baseline made with bfloat16 and eager attention": truth(
        revisions="(?s)dtype: float16 -> bfloat16.*attention: sdpa -> eager",
        report="dtype bfloat16 -> float16",
    ),
    "baseline made on a GPU": truth(
        revisions="device: cpu -> cuda",
        report="device cuda -> cpu",
    ),
    "baseline of another suite of the same name": truth(
        revisions="baseline added: other/reference scenes/classification-acc1",
        report="holds other/reference .*, expected reference",
    ),
    "the result of a red run, put there by hand": truth(
        revisions="coverage of its run: FAIL",
        report="calibration is FAIL, coverage is FAIL",
    ),
    "verdicts edited by hand": truth(
        revisions="other: .*it was changed by hand",
        report="it was changed by hand",
    ),
    "value edited by hand": truth(
        revisions="other: .*accepted.value is 0.746, but 796 of 1000 outcomes are right: it was "
        "changed by hand",
        report="accepted.value is 0.746, but 796 of 1000 outcomes are right: it was changed by",
    ),
    "older schema": truth(
        revisions="other: .*schema 0 is not supported",
        report="schema 0 is not supported",
    ),
    "a field is missing": truth(
        revisions="(?i)other: .*(first.*missing|missing.*first)",
        report="(?i)first.*missing|missing.*first",
    ),
    "file cut short": truth(
        revisions="other: .*damaged baseline: not JSON",
        report="damaged baseline: not JSON",
    ),
    "the FP16 slot holds the FP8 results": truth(
        revisions="the FP16 slot now holds what the quantized slot holds",
        report="slot of FP16 holds the outcomes of fp8-attention",
    ),
    "the variant's slot holds the FP16 results": truth(
        revisions="the quantized slot now holds what the FP16 slot holds",
        report="slot of fp8-attention holds the outcomes of FP16",
    ),
    "small accepted drops have added up": truth(
        revisions="first accepted 79.60 % -> 84.10 %, change .*a gain",
        report="against the first variant accepted 84.10 %.*over max_drop_since_first",
    ),
    "small accepted drifts of FP16 have added up": truth(
        revisions="FP16 of the first accepted 79.10 % -> 84.10 %, change .*a gain",
        report="against FP16 when the first variant was accepted 84.10 %",
    ),
    "a library moved FP16": truth(
        revisions="FP16 79.10 % -> 82.10 %, change .*a gain",
        report="(?s)over max_fp16_drop.*(library|the baseline moved)",
    ),
}

EXPORTS = {
    "attention of one block left out": truth(
        onnx="5 quantizers removed that had been on: vision: attention q, k, v, softmax, output in "
        "block 1",
        report="vision: attention q, k, v, output in block 1",
    ),
    "one scale times 4": truth(
        onnx=r"re-ranged, most \S+layers\.0\.mlp\.fc1\.input_quantizer: amax .*\(x4\)",
        report=r"layers\.0\.mlp\.fc1\.input_quantizer: .*amax 540.543 in the graph .*, 135.136",
    ),
    "full-precision weights behind Q/DQ": truth(
        onnx="stored as weight, 8 bit -> weight, float in 25 quantizers: vision: weight",
        report="(?s)25 quantized weights .* not stored in 8 bits.*"
        "float32 weight bytes: 280 -> 4178200",
    ),
    "one DequantizeLinear bypassed": truth(
        onnx=r"1 quantizer bypassed: .*: \S+layers\.0\.mlp\.fc1\.input_quantizer",
        report=r"lost in the export now: \S+layers\.0\.mlp\.fc1\.input_quantizer",
    ),
    "text tower exported from FP16": truth(
        onnx="whole text tower is unquantized now: 53 -> 0",
        report="(?s)exported from another variant.*text: Q/DQ pairs: 53 -> 0",
    ),
    "vision file in the place of the text file": truth(
        onnx=r"text\.onnx: tower: text -> vision",
        report="no ONNX file of the text tower",
    ),
    "file cut short": truth(
        onnx=r"(?i)vision\.onnx.*(no ONNX model|damaged|cannot be read|holds no ONNX graph)",
        report=r"(?i)(is no ONNX model|damaged|cannot be read|holds no ONNX graph)",
    ),
    "exported from another calibration": truth(
        onnx="(?s)re-ranged, most vision.*no range of a weight moved: other calibration",
        report="(?s)not what was calibrated.*another calibration",
    ),
    "an excluded convolution comes back in FP8": truth(
        onnx=r"1 quantizer added and on: vision_model\.embeddings\.patch_embedding\.weight_quant",
        report="(?s)came back in the export.*patch_embedding",
    ),
    "softmax pairs that nobody declared": truth(
        revisions=r"export\.allow: \[softmax\] -> \[\]",
        report="(?s)belong to no quantizer.*Softmax",
    ),
    "one pair put in twice": truth(
        onnx=r"Q/DQ pairs of one name 1 -> 2 in 1 quantizer: \S+layers\.0\.mlp\.fc1\.input_quant",
        report="more than one pair",
    ),
    "operators of the domain trt are left": truth(
        onnx=r"vision\.onnx: domains: ai\.onnx -> ai\.onnx, trt",
        report="operators of 'trt'",
    ),
    "a zero point that is not zero": truth(
        onnx=r"zero point 0 -> not 0 in 1 quantizer: \S+layers\.0\.mlp\.fc1\.input_quantizer",
        report="zero point that is not 0",
    ),
    "one stored weight lost (all zeros)": truth(
        onnx=r"1 initializer with other values: .*; all zero now: \S+layers\.0\.mlp\.fc1\.weight",
        report=r"vision_model\.encoder\.layers\.0 in ONNX Runtime .*: error .* -> ",
    ),
}

ENGINES = {
    "plan built from an older file": truth(
        onnx=r"vision\.onnx: metadata exported: again",
        report="built from: the exported ONNX file -> another ONNX file than the one exported",
    ),
    "target without FP8 units": truth(
        revisions=r"(?s)gate engine\[sm89-vision\] is gone.*gate engine\[sm86-vision\] added",
        report=r"(?s)gate engine\[sm86-vision\] added: FAIL.*(?i:sm86.*fp8)",
    ),
    "softmax left unquantized: attention falls back to half": truth(
        revisions=r"export\.allow: \[softmax\] -> \[\]",
        onnx="4 quantizers removed that had been on: vision: attention softmax in blocks 0-3",
        report="(?s)not fused-fp8.*softmax.*attention fused in FP8: 4 -> 0",
    ),
    "engine larger than the device has room for": truth(
        revisions=r"memory\[sm89\]\.max_plan: none -> 1048576 bytes, tightened",
        report="over max_plan",
    ),
}

SPEEDS = {
    "quantized slower than FP16": truth(
        report=r"quantized 60\.\d ms \(0\.6.* -> FP16 .*, quantized 130 ms \(1\.3.*: slower",
    ),
    "quantized timed at batch 1, FP16 at batch 8": truth(
        report=r"(?s)implausible.*not the same work.*smaller batch.*"
        r"quantized 60\.\d ms \(0\.6.* -> FP16 .*, quantized 7\.\d+ ms \(0\.07.*: faster",
    ),
    "quantized exported with a fixed batch of 4, FP16 timed at batch 8": truth(
        report=r"(?s)not the same work.*quantized 4.*batch size that is fixed",
    ),
    "a timer that does not wait for the device": truth(
        report="(?s)implausible.*timer that does not wait.*runtime: onnxruntime -> tensorrt-rtx",
    ),
    "no warm-up: FP16 is timed cold": truth(report="not warmed up: none -> fp16, fp16 again"),
    "a machine too noisy to tell": truth(
        report=r"noise of the machine \(FP16 against itself\): under 5 % -> over 5 %",
    ),
    "an absolute limit on another machine": truth(
        revisions="(?s)baseline added: reference latency .* on b.*max_latency: none -> 70 ms",
        report="(?s)another machine.*processor",
    ),
    "an absolute limit without a baseline": truth(
        revisions="max_latency: none -> 70 ms",
        report="there is no baseline",
    ),
    "rounds of one variant are missing": truth(
        report="rounds: 30 -> fp16 30, quantized 27, fp16 again 30",
    ),
    "a timer that stands still": truth(report="rounds without a valid time: 0 -> 30"),
    "three rounds": truth(report="rounds: 30 -> 3"),
}

_MEASURED = (
    r"acc1: quantized .*, change [+-]?[01]\.\d\d \[|answers that differ from FP16"
    r"|embeddings against FP16's|layers? (noisier|quieter) by"
)
_RANGES = rf"re-ranged|{_MEASURED}"
_NO_ATTENTION = (
    r"coverage\.attention: .* -> \[\]|bmm|vision: attention|attention: diffusers -> automatic"
    r"|all tensors"
)
_RECIPE_NAME = r"recipe: fp8-attention -> "

CONTROLS = {
    "the good release itself": truth(),
    **{
        f"calibration order {seed}": truth(
            checkpoint="calibration images: the same ones in another order",
            report="calibration images: the same ones in another order",
            only="another order",
        )
        for seed in range(4)
    },
    **{
        f"calibration sample {seed}": truth(
            checkpoint=r"calibration images: others than before \(0 of 256 are the same\)",
            report="calibration images: others than before",
            only=f"calibration images: others|{_RANGES}",
        )
        for seed in range(6)
    },
    **{
        f"calibration in batches of {size}": truth(
            checkpoint=f"calibration batches: 4 -> {256 // size}$",
            report=f"calibration batches: 4 -> {256 // size}$",
            only="calibration .*batches",
        )
        for size in (8, 32, 256)
    },
    **{
        f"weights that differ in the last bit, {seed}": truth(
            checkpoint=r"(?s)rounding alone.*weight tensors changed.*relative change \d\S*e-0[78]",
            report="rounding alone",
            only=rf"{_RANGES}|weight tensors changed|stored as F16 -> F32|all tensors",
        )
        for seed in range(3)
    },
    "pixels that differ in the last bit": truth(only=_MEASURED),
    **{f"evaluated with {count} threads": truth() for count in (1, 2)},
    **{f"evaluated in batches of {size}": truth() for size in (1, 48)},
    "built twice from one suite": truth(),
    "recipe fp8": truth(
        revisions=f"{_RECIPE_NAME}fp8 ",
        checkpoint="removed that had been on: vision: attention output",
        report=f"{_RECIPE_NAME}fp8$",
        only=f"{_RECIPE_NAME}|{_NO_ATTENTION}|{_MEASURED}",
    ),
    "recipe int8-smoothquant": truth(
        revisions=f"(?s){_RECIPE_NAME}int8-smoothquant.*algorithm: smoothquant",
        checkpoint="(?s)format E4M3 -> INT8.*SmoothQuant scale none -> there in 44 quantizers",
        report=f"(?s)format E4M3 -> INT8.*{_RECIPE_NAME}int8-smoothquant",
        only=f"{_RECIPE_NAME}|{_NO_ATTENTION}|{_RANGES}|recipe entry|max_clipped|E4M3 -> INT8"
        "|granularity per-tensor|SmoothQuant|calibration algorithm|weight tensors|stored as F16",
    ),
    "the same recipe written out": truth(
        revisions=f"{_RECIPE_NAME}inline quant_cfg",
        report=f"{_RECIPE_NAME}inline quant_cfg",
        only=f"{_RECIPE_NAME}inline quant_cfg",
    ),
    "the published dict form, whose default stands last": truth(
        revisions=f"{_RECIPE_NAME}inline quant_cfg",
        checkpoint="removed that had been on: vision: attention output",
        report=f"{_RECIPE_NAME}inline quant_cfg",
        only=rf"{_RECIPE_NAME}|{_NO_ATTENTION}|{_MEASURED}|nn\.Conv2d|exclude",
    ),
    "patch_embedding quantized too": truth(
        revisions=r"exclude: \[\*patch_embedding\*\] -> \[\]",
        checkpoint=r"2 quantizers switched on: vision_model\.embeddings\.patch_embedding\.",
        report=r"(?s)2 quantizers switched on: .*patch_embedding.*removed: exclude \*patch_emb",
        only=f"patch_embedding|{_MEASURED}|all tensors",
    ),
    "the projections excluded": truth(
        revisions=r"exclude: .* -> \[\*patch_embedding\*, \*visual_projection\*\]",
        checkpoint=r"2 quantizers switched off: visual_projection\.",
        report=r"(?s)2 quantizers switched off: visual_projection.*added: exclude \*visual_proj",
        only=f"visual_projection|{_MEASURED}|all tensors",
    ),
    "one layer waived until a day": truth(
        revisions=r"(?s)coverage\.waive: \[\] -> .*visual_projection.*until: \d{4}-\d\d-\d\d",
        checkpoint=r"2 quantizers switched off: visual_projection\.",
        report=r"2 quantizers switched off: visual_projection\.",
        only=f"visual_projection|{_RECIPE_NAME}inline quant_cfg|{_MEASURED}|all tensors",
    ),
    "a small advisory suite": truth(
        revisions=r"max_drop: 2pp -> 15pp, loosened",
        report="not paired: the data differs",
        only="loosened|not paired: the data differs|FP16's .* of 60|other ids and images",
    ),
    "calibrated on 512 pairs": truth(
        revisions="calibration.samples: 256 -> 512",
        checkpoint="calibration samples: 256 -> 512",
        report="calibration samples: 256 -> 512",
        only=f"calibration|{_RANGES}",
    ),
    "samples in another order": truth(),
    "a variant that answers as FP16": truth(
        report="answers that differ from FP16's 25 -> 0 of 1000", only=_MEASURED
    ),
    "a baseline that was accepted again": truth(
        revisions="reason: first baseline -> again", only="reason: |updated: "
    ),
    **{f"latency on a machine with 1 % noise, {seed}": truth() for seed in range(1, 4)},
}

#: By the title of an entry, `<theme>: <name>`.
TRUTHS: Mapping[str, Truth] = {
    f"{theme}: {name}": found
    for theme, table in (
        ("recipe", RECIPES),
        ("attention", ATTENTION),
        ("calibration", CALIBRATION),
        ("weights", WEIGHTS),
        ("data", DATA),
        ("overflow", OVERFLOW),
        ("evaluation", EVALUATION),
        ("baseline", BASELINES),
        ("export", EXPORTS),
        ("engine", ENGINES),
        ("speed", SPEEDS),
        ("control", CONTROLS),
    )
    for name, found in table.items()
}
