"""A checkpoint that was handed over: what is said of a good one, and which code names a bad one."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_quantgate.inspection.findings import Row
from pytest_quantgate.inspection.inspect import inspect_paths
from pytest_quantgate.report.inspection import render_json, render_markdown, render_text
from tests.unit.inspection.quantized_files import (
    INT8_CONFIG,
    Edit,
    Tensors,
    codes,
    inspect,
    is_linear,
    make_base,
    write_safetensors,
)

FC1 = "vision_model.encoder.layers.1.mlp.fc1"
NORM = "text_model.encoder.layers.0.layer_norm1"
K_PROJ = "text_model.encoder.layers.0.self_attn.k_proj"

Make = Callable[..., Path]


def scale_of(name: str, factor: float) -> Edit:
    def edit(tensors: Tensors) -> None:
        kind, array = tensors[name]
        tensors[name] = (kind, array * np.float32(factor))

    return edit


def drop(*ends: str, where: str = "") -> Edit:
    def edit(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith(ends) and where in n]:
            del tensors[name]

    return edit


def unquantize(where: str) -> Edit:
    """Put the base's weights back, without scales, in all layers whose name holds a text."""

    def edit(tensors: Tensors) -> None:
        for name, (kind, array) in make_base().items():
            if where in name and is_linear(name, array):
                tensors[name] = (kind, array)
                for part in ("weight_scale", "input_scale"):
                    tensors.pop(f"{name.removesuffix('.weight')}.{part}", None)

    return edit


def cut(name: str, size: int) -> Edit:
    def edit(tensors: Tensors) -> None:
        kind, array = tensors[name]
        tensors[name] = (kind, array.reshape(-1)[:size])

    return edit


def copy_codes(tensors: Tensors) -> None:
    tensors[f"{FC1}.weight"] = tensors[f"{FC1}.weight".replace(".1.", ".2.")]


def restore(tensors: Tensors) -> None:
    """Put the base's weights back, beside scales."""
    tensors |= {name: found for name, found in make_base().items() if is_linear(name, found[1])}


# -- files written here ------------------------------------------------------------------------


def test_a_good_checkpoint_has_no_finding(make_checkpoint: Make) -> None:
    found = inspect(make_checkpoint())

    assert found.findings == ()
    assert found.headline == (
        "int8 checkpoint of compressed-tensors 0.20.1: 38 of 38 Linear layers INT8"
    )
    assert found.rows[0] == Row(
        tower="vision",
        what="Linear weight",
        quantized=19,
        total=19,
        format="INT8",
        scales="per-channel",
        stored="I8",
        share=found.rows[0].share,
    )
    share = found.rows[0].share
    values = 3 * (4 * 256 + 2 * 512) + 256
    assert share == pytest.approx(values / (values + 16 * 48))


PLANTED: list[tuple[str, Edit, str]] = [
    ("zero", scale_of(f"{FC1}.input_scale", 0), "check.range-zero"),
    ("zero channel", scale_of(f"{FC1}.weight_scale", 0), "check.range-zero"),
    ("negative", scale_of(f"{FC1}.input_scale", -1), "check.range-negative"),
    ("NaN", scale_of(f"{FC1}.input_scale", float("nan")), "check.range-not-finite"),
    ("infinite", scale_of(f"{FC1}.weight_scale", float("inf")), "check.range-not-finite"),
    ("weight x10", scale_of(f"{FC1}.weight_scale", 10), "check.scale-outlier"),
    ("weight /10", scale_of(f"{FC1}.weight_scale", 0.1), "check.scale-outlier"),
    ("input x10", scale_of(f"{K_PROJ}.input_scale", 10), "check.inputs-disagree"),
    ("no weight scale", drop("fc1.weight_scale"), "check.range-missing"),
    ("no input scale", drop(".input_scale", where="layers.1.mlp.fc1"), "check.range-missing"),
    ("no number in a scale", cut(f"{FC1}.input_scale", 0), "check.range-missing"),
    ("no number in scales", cut(f"{FC1}.weight_scale", 0), "check.range-missing"),
    ("scales of fewer rows", cut(f"{FC1}.weight_scale", 5), "check.scale-shape"),
    ("scales and float weights", restore, "check.format-unknown"),
    ("no weight", drop(f"{FC1}.weight"), "check.weight-missing"),
    ("all codes 0", scale_of(f"{FC1}.weight", 0), "check.weight-zero"),
    ("codes of another layer", copy_codes, "check.weights-equal"),
    ("NaN in a norm", scale_of(f"{NORM}.weight", float("nan")), "check.not-finite"),
    ("infinite bias", scale_of(f"{FC1}.bias", float("inf")), "check.not-finite"),
    ("NaN in what scales the logits", scale_of("logit_scale", float("nan")), "check.not-finite"),
    ("vision off", unquantize("vis"), "check.tower-off"),
    ("text off", unquantize("text"), "check.tower-off"),
    ("a block off", unquantize("vision_model.encoder.layers.1."), "check.layers-off"),
    ("a projection off", unquantize("visual_projection"), "check.projection-off"),
    (  # type: ignore[list-item]
        "scales equal",
        lambda tensors: (
            [
                tensors.update({name: (kind, np.full_like(array, 0.1))})
                for name, (kind, array) in list(tensors.items())
                if name.endswith("fc1.weight_scale")
            ]
            and None
        ),
        "check.scales-equal",
    ),
]


@pytest.mark.parametrize(("edit", "code"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_each_spoiled_twin_is_caught_by_its_code(
    make_checkpoint: Make, edit: Edit, code: str
) -> None:
    assert code in codes(inspect(make_checkpoint(edit)))


@pytest.mark.parametrize(("size", "expected"), [(1.0, set()), (127.0, {"check.scales-equal"})])
def test_inputs_of_range_1_are_those_of_smoothquant(
    make_checkpoint: Make, size: float, expected: set[str]
) -> None:
    def level(tensors: Tensors) -> None:
        for name, (kind, array) in list(tensors.items()):
            if name.endswith("input_scale"):
                tensors[name] = (kind, np.full_like(array, size / 127))

    assert codes(inspect(make_checkpoint(level))) == expected


def test_codes_under_scales_of_blocks_are_read_through(tmp_path: Path) -> None:
    """As in FP8 with one scale for 8 x 8 values: they do not lie beside each other."""
    tensors: Tensors = {}
    random = np.random.default_rng(0)
    for block in range(3):
        name = f"model.layers.{block}.mlp.up_proj"
        tensors[f"{name}.weight"] = ("F8_E4M3", random.integers(0x7E, size=(16, 16)))
        tensors[f"{name}.weight_scale_inv"] = ("F32", np.array([[0.1, 0.2], [0.3, 0.4 + block]]))
    tensors["model.layers.1.mlp.up_proj.weight"][1][3, 4] = 0x7F
    write_safetensors(tmp_path / "model.safetensors", tensors)

    found = inspect(tmp_path)

    assert codes(found) == {"check.weight-not-finite"}
    assert found.findings[0].subjects == ("model.layers.1.mlp.up_proj",)


def with_config(**changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(INT8_CONFIG)
    settings = config["quantization_config"]
    for key, value in changes.items():
        group = settings["config_groups"]["group_0"]
        part = group["weights"] if key in ("num_bits", "type", "strategy", "symmetric") else None
        (part or (group if key == "targets" else settings))[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_bits": 4, "type": "float"},
            r"says 4 bit float weights \(NVFP4\); 38 weights are INT8",
        ),
        ({"type": "float"}, r"says 8 bit float weights \(E4M3\); 38 weights are INT8"),
        ({"strategy": "tensor"}, "says strategy tensor; 38 weights have per-channel scales"),
        ({"ignore": ["visual_projection"]}, "said to be left out, and quantized: visual_projec"),
        ({"ignore": ["re:.*mlp.fc1"]}, "said to be left out, and quantized"),
        ({"targets": ["Conv2d"]}, "quantized, and in no group: text_model.encoder.layers"),
        ({"symmetric": False}, "group_0 says asymmetric weights, and no zero point is there"),
    ],
)
def test_labels_that_the_tensors_contradict(
    make_checkpoint: Make, changes: dict[str, Any], words: str
) -> None:
    found = inspect(make_checkpoint(config=with_config(**changes)))

    assert codes(found) == {"check.labels-disagree"}
    assert re.search(words, found.findings[0].headline)


def test_an_empty_list_of_what_is_left_out_is_a_list(make_checkpoint: Make) -> None:
    found = inspect(make_checkpoint(unquantize("_projection")))

    assert [f.headline.partition(": ")[2] for f in found.findings] == [
        "not said to be left out, and not quantized: text_projection, visual_projection"
    ]


def test_each_layer_is_held_against_its_own_group(make_checkpoint: Make) -> None:
    """Layers by name come before a class: a file of two formats is no contradiction."""
    config = with_config(ignore=["re:.*_projection"], num_bits=8, type="float")
    groups = config["quantization_config"]["config_groups"]
    named = copy.deepcopy(INT8_CONFIG["quantization_config"]["config_groups"]["group_0"])
    groups["group_1"] = {**named, "targets": ["re:.*layers.*"]}
    edit = unquantize("_projection")

    assert codes(inspect(make_checkpoint(edit, config=config))) == set()

    groups["group_1"]["targets"] = ["re:.*layers.*fc1"]
    (finding,) = inspect(make_checkpoint(edit, config=config, name="other")).findings
    assert "group_0 says 8 bit float weights (E4M3); 30 weights are INT8" in finding.headline


def test_codes_that_their_label_does_not_have(make_checkpoint: Make) -> None:
    found = inspect(make_checkpoint(config=with_config(num_bits=4)))

    assert codes(found) == {"check.codes-overflow"}
    assert len(found.findings[0].subjects) == 38


def test_4_bit_codes_in_whole_bytes_are_good(make_checkpoint: Make) -> None:
    def shrink(tensors: Tensors) -> None:
        for name, (kind, array) in list(tensors.items()):
            if kind == "I8":
                tensors[name] = (kind, np.rint(array / 127 * 7))

    found = inspect(make_checkpoint(shrink, config=with_config(num_bits=4)))

    assert codes(found) == set()
    assert "38 of 38 Linear layers INT4" in found.headline


def test_what_is_left_out_by_name_is_no_finding(make_checkpoint: Make) -> None:
    config = with_config(ignore=["re:vision_model.encoder.layers.1.*"])

    found = inspect(make_checkpoint(unquantize("vision_model.encoder.layers.1."), config=config))

    assert codes(found) == set()
    assert any(note.startswith("left out by name") for note in found.notes)


def test_a_plain_model_says_that_nothing_is_quantized(plain: Path) -> None:
    found = inspect(plain)

    assert codes(found) == {"check.not-quantized"}
    assert found.headline == ("plain checkpoint: nothing is quantized (38 Linear layers, F32)")


def test_a_missing_shard_is_named(make_checkpoint: Make) -> None:
    folder = make_checkpoint()
    index = {
        "weight_map": {"logit_scale": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    found = inspect(folder)

    assert codes(found) == {"check.shard-missing"}
    assert found.findings[0].subjects == ("model-00002-of-00002.safetensors",)


def test_a_tensor_that_the_index_alone_names_is_missing(make_checkpoint: Make) -> None:
    folder = make_checkpoint()
    index = {"weight_map": {"a": "model.safetensors", "logit_scale": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    found = inspect(folder)

    assert codes(found) == {"check.weight-missing"}
    assert found.findings[0].subjects == ("a",)


def test_a_mask_may_be_infinite(make_checkpoint: Make) -> None:
    def mask(tensors: Tensors) -> None:
        tensors["text_model.attn_mask"] = ("F32", np.triu(np.full((4, 4), -np.inf), 1))

    assert codes(inspect(make_checkpoint(mask))) == set()


def test_one_file_is_checked_as_its_folder(make_checkpoint: Make) -> None:
    folder = make_checkpoint()

    assert inspect(folder / "model.safetensors").rows == inspect(folder).rows


# -- against the base --------------------------------------------------------------------------


def test_against_the_base_a_good_one_is_close(make_checkpoint: Make, plain: Path) -> None:
    found = inspect(make_checkpoint(), base=plain)

    assert found.findings == ()
    assert found.against is not None
    assert len(found.against.layers) == 38
    assert min(layer.sqnr_db for layer in found.against.layers) > 35
    assert found.against.same == found.against.compared == 2 + 36 + 6 + 1
    assert found.against.bytes < found.against.base_bytes / 2


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (scale_of(f"{FC1}.weight_scale", 2), "check.sqnr-low"),
        (scale_of(f"{FC1}.bias", 1.5), "check.base-changed"),
        (scale_of("text_model.embeddings.token_embedding.weight", 1.5), "check.base-changed"),
        (scale_of("vision_model.encoder.layers.0.layer_norm1.weight", 2), "check.base-changed"),
    ],
)
def test_against_the_base_a_change_is_caught(
    make_checkpoint: Make, plain: Path, edit: Edit, code: str
) -> None:
    found = inspect(make_checkpoint(edit), base=plain)

    assert codes(found) == {code}


def test_the_base_in_half_precision_is_the_same_base(make_checkpoint: Make, tmp_path: Path) -> None:
    half = {n: ("F16" if k == "F32" else k, a) for n, (k, a) in make_base().items()}
    write_safetensors(tmp_path / "half" / "model.safetensors", half)

    found = inspect(make_checkpoint(), base=tmp_path / "half")

    assert found.findings == ()


def test_a_base_without_a_layer_in_common_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    others = {f"other_{n}": (kind, -values) for n, (kind, values) in make_base().items()}
    write_safetensors(tmp_path / "other" / "model.safetensors", others)
    folder = make_checkpoint()

    report = inspect_paths([folder], base=tmp_path / "other")

    assert [r.path for r in report.refusals] == [folder.as_posix()]
    assert (
        "has no layer of this file, neither by name nor by its values" in report.refusals[0].reason
    )


def rename(before: str, after: str) -> Edit:
    def edit(tensors: Tensors) -> None:
        for name in [n for n in tensors if before in n]:
            tensors[name.replace(before, after)] = tensors.pop(name)

    return edit


def write_base(folder: Path, edit: Edit) -> Path:
    tensors = make_base()
    edit(tensors)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def test_layers_that_the_base_has_not_are_a_finding(make_checkpoint: Make, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", drop("", where="layers.2."))

    report = inspect_paths([make_checkpoint()], base=base)

    (found,) = report.inspections
    assert codes(found) == {"check.base-unmatched"}
    assert len(found.findings[0].subjects) == 12
    assert found.against is not None
    assert (found.against.found, found.against.sought) == (28, 40)
    assert set(found.against.unfound) == set(found.findings[0].subjects)
    for text in (render_text(report, columns=120), render_markdown(report)):
        assert "28 of 40 layers found in it" in text
    assert json.loads(render_json(report))["files"][0]["against"]["found"] == 28


@pytest.mark.parametrize(
    ("edit", "subjects"),
    [
        (drop(f"{FC1}.weight"), (FC1,)),
        (drop("", where=FC1), (FC1, f"{FC1}.bias")),
        (drop(f"{FC1}.bias"), (f"{FC1}.bias",)),
        (drop("text_model.encoder.layers.0.layer_norm1.weight"),
         ("text_model.encoder.layers.0.layer_norm1.weight",)),
        (drop("token_embedding.weight"), ("text_model.embeddings.token_embedding",)),
    ],
)  # fmt: skip
def test_what_of_the_base_is_lost_is_a_finding(
    make_checkpoint: Make, plain: Path, edit: Edit, subjects: tuple[str, ...]
) -> None:
    found = inspect(make_checkpoint(edit), base=plain)

    lost = next(f for f in found.findings if f.code == "check.base-missing")
    assert lost.subjects == subjects


def test_layers_of_other_names_are_found_beside_those_of_the_same(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base", rename("vision_model.encoder.layers.2", "vision_model.x"))

    against = inspect(make_checkpoint(), base=base).against

    assert against is not None
    assert (against.found, against.sought, against.by_values) == (40, 40, 6)
    assert min(layer.sqnr_db for layer in against.layers) > 35


def test_two_layers_have_two_partners(make_checkpoint: Make, tmp_path: Path) -> None:
    def copy_layer(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(FC1)]:
            tensors[name] = tensors[name.replace(".1.", ".2.")]

    base = write_base(tmp_path / "base", rename("layers", "h"))

    found = inspect(make_checkpoint(copy_layer), base=base)

    assert found.against is not None
    assert (found.against.found, found.against.by_values) == (39, 35)
    assert codes(found) == {"check.base-unmatched", "check.base-missing", "check.weights-equal"}


def test_a_name_that_fits_two_layers_of_the_base_is_that_of_neither(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """As an export of one tower cuts its name off: both towers have such a layer."""

    def cut(tensors: Tensors) -> None:
        drop("", where="text")(tensors)
        rename("vision_model.", "")(tensors)

    base = write_base(tmp_path / "base", lambda tensors: None)

    against = inspect(make_checkpoint(cut), base=base).against

    assert against is not None
    assert (against.found, against.sought, against.by_values) == (20, 20, 18)
    assert min(layer.sqnr_db for layer in against.layers) > 35


def test_a_layer_of_the_base_that_is_nan_hides_no_other(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    def spoil(tensors: Tensors) -> None:
        rename("layers", "h")(tensors)
        tensors["text_model.encoder.h.0.mlp.fc1.weight"][1][0] = np.nan

    against = inspect(make_checkpoint(), base=write_base(tmp_path / "base", spoil)).against

    assert against is not None
    assert against.unfound == ("text_model.encoder.layers.0.mlp.fc1",)


def test_a_tower_of_the_base_that_is_not_in_the_file_is_said(
    make_checkpoint: Make, plain: Path
) -> None:
    found = inspect(make_checkpoint(drop("", where="text")), base=plain)

    assert found.findings == ()
    assert "the base has another tower too: text" in found.notes


# -- files of other tools ----------------------------------------------------------------------

GOOD = {
    "modelopt-save-fp8-attention": (
        "fp8-attention checkpoint of ModelOpt 0.47.0 (save_pretrained): 38 of 38 Linear layers "
        "FP8 (E4M3), attention q k v output in 4+2 blocks"
    ),
    "modelopt-mto-save.pth": (
        "fp8-attention checkpoint of ModelOpt 0.47.0 (mto.save): 38 of 38 Linear layers FP8 "
        "(E4M3), attention q k v in 4+2 blocks"
    ),
    "compressed-tensors-fp8-dynamic": (
        "fp8-dynamic checkpoint of compressed-tensors 0.20.1: 36 of 38 Linear layers FP8 (E4M3)"
    ),
    "torchao-vision-int8": ("int8 weight-only checkpoint of torchao: 24 of 25 Linear layers INT8"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_of_another_tool(handed_over: Path, base_folder: Path, name: str) -> None:
    found = inspect(handed_over / name, base=base_folder)

    assert found.findings == ()
    assert found.headline == GOOD[name]
    assert found.against is not None
    assert found.against.same == found.against.compared
    assert all(layer.sqnr_db > 30 for layer in found.against.layers)


EXPORTED = {
    "modelopt-unified-fp8": {"check.loads-as-plain", "check.projection-off"},
    "modelopt-unified-fp8-attention": {
        "check.loads-as-plain", "check.projection-off", "check.q-range-lost"
    },
    "modelopt-unified-int8": {
        "check.loads-as-plain", "check.projection-off", "check.qkv-merged", "check.labels-disagree"
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTED)
def test_what_a_unified_export_loses(handed_over: Path, base_folder: Path, name: str) -> None:
    found = inspect(handed_over / name, base=base_folder)

    assert codes(found) == EXPORTED[name]
    assert found.headline.startswith(name.removeprefix("modelopt-unified-"))
    assert found.against is not None
    assert all(layer.sqnr_db > 30 for layer in found.against.layers)


def test_codes_of_the_fp8_export_equal_those_of_the_saved_model(
    handed_over: Path, base_folder: Path
) -> None:
    """The same weights in both files: rounding here is what ModelOpt's export did."""
    layers = []
    for name in ("modelopt-save-fp8-attention", "modelopt-unified-fp8-attention"):
        against = inspect(handed_over / name, base=base_folder).against
        assert against is not None
        layers.append({e.layer: e.sqnr_db for e in against.layers})

    for layer, noise in layers[1].items():
        assert noise == pytest.approx(layers[0][layer], abs=0.01)


SAVED = "modelopt-save-fp8-attention"
SPOILED: list[tuple[str, str, Edit, str]] = [
    ("amax 0", SAVED, scale_of(f"{FC1}.input_quantizer._amax", 0), "check.range-zero"),
    ("amax NaN", SAVED, scale_of(f"{FC1}.input_quantizer._amax", float("nan")),
     "check.range-not-finite"),
    ("weight amax x10", SAVED, scale_of(f"{FC1}.weight_quantizer._amax", 10),
     "check.range-stale"),
    ("input amax x10", SAVED, scale_of(f"{K_PROJ}.input_quantizer._amax", 10),
     "check.inputs-disagree"),
    ("amax gone", SAVED, drop(f"{FC1}.input_quantizer._amax"), "check.range-missing"),
    ("weights trained on", SAVED, scale_of(f"{FC1}.weight", 1.5), "check.range-stale"),
    ("scale x10", "modelopt-unified-fp8", scale_of(f"{FC1}.weight_scale", 10),
     "check.scale-outlier"),
    ("codes NaN", "modelopt-unified-fp8",
     lambda t: t[f"{FC1}.weight"][1].__setitem__((0, 0), 0x7F), "check.weight-not-finite"),
    ("no scales of k and v", "modelopt-unified-fp8-attention", drop("k_scale", "v_scale"),
     "check.labels-disagree"),
    ("scale 0", "torchao-vision-int8", scale_of(f"{FC1}._weight_scale", 0),
     "check.range-zero"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "edit", "code"), [p[1:] for p in SPOILED], ids=[p[0] for p in SPOILED]
)
def test_each_spoiled_twin_of_a_real_file_is_caught(
    copy_of: Callable[..., Path], name: str, edit: Edit, code: str
) -> None:
    before = EXPORTED.get(name, set())

    assert code in codes(inspect(copy_of(name, edit))) - before


def test_spoiled_labels_of_a_real_file(copy_of: Callable[..., Path]) -> None:
    def relabel(data: Any) -> None:
        data["quantization"]["quant_algo"] = "NVFP4"

    found = inspect(copy_of("modelopt-unified-fp8", hf_quant_config=relabel))

    assert codes(found) == {*EXPORTED["modelopt-unified-fp8"], "check.labels-disagree"}
    text = next(f.headline for f in found.findings if f.code == "check.labels-disagree")
    assert "name two algorithms: FP8 and NVFP4" in text
    assert "labelled NVFP4, which is NVFP4; 37 weights are E4M3" in text


def test_without_its_state_a_saved_model_loads_unquantized(copy_of: Callable[..., Path]) -> None:
    folder = copy_of(SAVED)
    (folder / "modelopt_state.pth").unlink()

    found = inspect(folder)

    assert codes(found) == {"check.state-missing", "check.not-quantized"}


def test_json_of_every_inspection_is_strict(make_checkpoint: Make) -> None:
    report = inspect_paths([make_checkpoint(scale_of(f"{FC1}.weight_scale", float("nan")))])

    def refuse(text: str) -> Any:
        raise AssertionError(text)

    assert json.loads(render_json(report), parse_constant=refuse)["findings"] == 1
