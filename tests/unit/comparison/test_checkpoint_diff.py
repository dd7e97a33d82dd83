"""Two checkpoints: nothing where they are the same, and every planted change by its name."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pytest_quantgate.artifacts.checkpoints import Checkpoint, read_checkpoint
from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.comparison.calibration import compare_calibration
from pytest_quantgate.comparison.changes import Change, Comparison
from pytest_quantgate.comparison.checkpoints import compare_checkpoints
from pytest_quantgate.comparison.quantizers import compare_quantizers, describe_places
from pytest_quantgate.comparison.recipe_lines import compare_recipe_lines
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.evidence.calibration import Calibrated, describe_images
from pytest_quantgate.quantization.checkpoint import save_checkpoint
from tests.unit.comparison.mirrored import mirror

pytestmark = pytest.mark.slow

FC1 = "vision_model.encoder.layers.1.mlp.fc1"
Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def quantized(make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized("fp8-attention")


@pytest.fixture(scope="module")
def saved(quantized: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(quantized, folder)
    return folder


@pytest.fixture
def planted(saved: Path, tmp_path: Path) -> Callable[[Edit], Comparison]:
    """Compare the saved checkpoint with a copy whose tensors were edited."""

    def plant(edit: Edit) -> Comparison:
        folder = tmp_path / "planted"
        shutil.copytree(saved, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")
        return compare_checkpoints(read_checkpoint(saved), read_checkpoint(folder))

    return plant


def save_changed(model: Encoder, folder: Path, change: Callable[[Any], None]) -> Checkpoint:
    module = copy.deepcopy(model.module)
    change(module)
    save_checkpoint(replace(model, module=module), folder)
    return read_checkpoint(folder)


def only(comparison: Comparison, *areas: str) -> list[Change]:
    return [change for change in comparison.changes if change.area in areas]


# -- the same -------------------------------------------------------------------------------------


def test_checkpoint_is_the_same_as_itself_and_as_its_copy(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")

    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "copy"))

    assert found.changes == ()
    assert "70 quantizers on both sides, bit for bit the same" in found.same
    assert any(line.endswith("weight tensors equal") for line in found.same)


def test_cache_entry_is_read_as_the_checkpoint_in_it(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "entry" / "checkpoint")

    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "entry"))

    assert not found.is_different


def test_precision_of_storage_is_no_change_of_values(
    planted: Callable[[Edit], Comparison],
) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{FC1}.weight"] = tensors[f"{FC1}.weight"].float()

    found = planted(widen)

    assert [c.kind for c in only(found, "weights")] == ["stored as"]
    assert "F16 -> F32" in only(found, "weights")[0].text


# -- planted: ranges and weights ------------------------------------------------------------------


def test_moved_range_is_named_with_its_factor(planted: Callable[[Edit], Comparison]) -> None:
    found = planted(lambda t: t[f"{FC1}.input_quantizer._amax"].mul_(4))  # type: ignore[arg-type]

    (change,) = only(found, "ranges")
    assert change.kind == "re-ranged"
    assert change.subjects == (f"{FC1}.input_quantizer",)
    assert "(x4)" in change.text
    assert only(found, "weights", "quantizers", "recipe") == []


def test_drifts_are_sorted_by_size_up_and_down(planted: Callable[[Edit], Comparison]) -> None:
    factors = {"q_proj": 1.5, "k_proj": 0.125, "v_proj": 3.0, "out_proj": 0.9}

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name, factor in factors.items():
            key = f"text_model.encoder.layers.0.self_attn.{name}.weight_quantizer._amax"
            tensors[key] *= factor

    change, misfit = only(planted(spoil), "ranges")

    assert misfit.text == (
        "4 weights with a range that is not theirs: the ranges moved and the weights did not: "
        "ranges of another checkpoint, or edited: text: weight of self_attn.k_proj, "
        "self_attn.v_proj, self_attn.q_proj, self_attn.out_proj (4) in block 0"
    )
    assert [name.split(".")[-2] for name in change.subjects] == [
        "k_proj",
        "v_proj",
        "q_proj",
        "out_proj",
    ]
    assert change.table is not None
    assert [row[3] for row in change.table.rows] == ["x0.125", "x3", "x1.5", "x0.9"]
    assert change.lines[0] == "2 by more than 2x, 2 by 10 % to 2x, 0 by less"
    assert change.lines[1] == "2 wider (coarser steps), 2 narrower (more is clipped)"
    assert change.lines[2].startswith("text: weight of self_attn.k_proj, self_attn.v_proj, ")
    assert change.lines[2].endswith(" (4) in block 0")


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_range_that_is_none_comes_first(
    value: float, planted: Callable[[Edit], Comparison]
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{FC1}.input_quantizer._amax"] *= 100
        tensors[f"{FC1}.weight_quantizer._amax"].fill_(value)

    change, misfit = only(planted(spoil), "ranges")

    assert misfit.kind == "ranges no longer fit"
    assert change.subjects[0] == f"{FC1}.weight_quantizer"
    assert f"not finite or not positive now: {FC1}.weight_quantizer" in change.lines


def test_lost_range_is_named(planted: Callable[[Edit], Comparison]) -> None:
    (change,) = only(planted(lambda t: t.pop(f"{FC1}.input_quantizer._amax") and None), "ranges")  # type: ignore[arg-type]

    assert change.kind == "range lost"
    assert change.subjects == (f"{FC1}.input_quantizer",)
    assert "takes each batch's own" in change.text


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda w: w.mul_(8), "scaled by 8"),
        (lambda w: w.mul_(-0.5), "scaled by -0.5"),
        (lambda w: w.zero_(), "all zero now"),
        (lambda w: w.view(-1)[3:5].fill_(math.nan), "2 values NaN or Inf"),
        (lambda w: w.view(-1)[0].add_(1.0), "relative change"),
    ],
)
def test_changed_weight_is_named_with_what_was_done(
    edit: Callable[[torch.Tensor], Any], words: str, planted: Callable[[Edit], Comparison]
) -> None:
    (change,) = only(planted(lambda t: edit(t[f"{FC1}.weight"])), "weights")

    assert change.kind == "weights changed"
    assert change.subjects == (f"{FC1}.weight",)
    assert words in change.text


def test_swapped_and_transposed_weights_are_recognised(
    planted: Callable[[Edit], Comparison],
) -> None:
    layers = "vision_model.encoder.layers"
    one, two, square = (
        f"{layers}.0.mlp.fc1.weight",
        f"{layers}.1.mlp.fc1.weight",
        f"{layers}.0.self_attn.q_proj.weight",
    )

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[one], tensors[two] = tensors[two].clone(), tensors[one].clone()
        tensors[square] = tensors[square].T.contiguous()

    (change,) = only(planted(edit), "weights")

    assert change.table is not None
    assert {row[0]: row[3] for row in change.table.rows} == {
        one: f"holds what {two} held",
        two: f"holds what {one} held",
        square: "transposed",
    }


def test_calibration_is_compared_where_the_cache_keeps_it(saved: Path, tmp_path: Path) -> None:
    for name, nonfinite in (("a", []), ("b", ["image 7"])):
        shutil.copytree(saved, tmp_path / name / "checkpoint")
        run = {
            "data": "x/train",
            "samples": 8,
            "nonfinite": nonfinite,
            "sample_hashes": [["1" * 64, "x/train/1"], [name * 64, f"x/{name}/2"]],
            "held_out_hashes": [["b" * 64, "x/train/9"]],
        }
        (tmp_path / name / "calibration.json").write_text(json.dumps(run))

    found = compare_checkpoints(read_checkpoint(tmp_path / "a"), read_checkpoint(tmp_path / "b"))

    assert [c.text for c in found.changes] == [
        "not finite in calibration: none -> image 7",
        "calibration images: others than before (1 of 2 are the same): 1 of x/a, 1 of x/train -> "
        "1 of x/b, 1 of x/train",
        "calibration images that are also held-out ones: 0 -> 1",
    ]


def test_order_of_calibration_alone_is_said_so() -> None:
    samples = [("1", "x/1"), ("2", "x/2")]
    sides = [
        Calibrated(images=describe_images(found, held_out=())) for found in (samples, samples[::-1])
    ]

    (change,) = compare_calibration(sides[0], sides[1])

    assert change.text == "calibration images: the same ones in another order"
    assert compare_calibration(sides[0], sides[0]) == []


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ("weight", "the weights moved and their ranges did not: changed after the calibration"),
        ("amax", "the ranges moved and the weights did not: ranges of another checkpoint"),
        ("both", ""),
        ("other", "both moved: ranges of other weights than these"),
    ],
)
def test_weight_and_its_range_that_part_are_named(
    moved: str, words: str, planted: Callable[[Edit], Comparison]
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        if moved != "amax":
            tensors[f"{FC1}.weight"] *= 2
        if moved != "weight":
            tensors[f"{FC1}.weight_quantizer._amax"] *= 3 if moved == "other" else 2

    comparison = planted(spoil)
    found = [c for c in only(comparison, "ranges") if c.kind == "ranges no longer fit"]

    assert [words in change.text for change in found] == ([True] if words else [])
    assert all(change.lines == () for change in only(comparison, "weights"))


def test_weights_of_whole_blocks_and_constants_are_named(
    planted: Callable[[Edit], Comparison],
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if ".layers.1." in name and "vision" in name and "_quantizer" not in name:
                tensor.fill_(2.0) if "norm1.weight" in name else tensor.add_(0.5)

    (change,) = only(planted(spoil), "weights")

    assert change.lines == (
        "all weights of these blocks, and no other: vision_model.encoder.layers.1",
    )


def test_weight_that_is_constant_now_is_named(planted: Callable[[Edit], Comparison]) -> None:
    found = planted(lambda t: t["text_model.final_layer_norm.bias"].fill_(0.25))  # type: ignore[arg-type]

    (change,) = only(found, "weights")
    assert "all 0.25 now" in change.text
    assert change.lines == ()


def test_weight_that_is_gone_new_or_of_another_shape(
    planted: Callable[[Edit], Comparison],
) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["logit_scale"]
        tensors["extra"] = torch.ones(2)
        tensors[f"{FC1}.bias"] = torch.ones(3)

    found = {change.kind: change.subjects for change in only(planted(edit), "weights")}

    assert found == {
        "removed": ("logit_scale",),
        "added": ("extra",),
        "reshaped": (f"{FC1}.bias",),
    }


# -- planted: quantizers --------------------------------------------------------------------------


def test_switched_off_quantizers_are_named_by_place(
    quantized: Encoder, saved: Path, tmp_path: Path
) -> None:
    def switch_off(module: Any) -> None:
        for layer in module.vision_model.encoder.layers:
            layer.self_attn.q_bmm_quantizer.disable()
            layer.self_attn.k_bmm_quantizer.disable()

    after = save_changed(quantized, tmp_path / "b", switch_off)
    (change,) = only(compare_checkpoints(read_checkpoint(saved), after), "quantizers")

    assert change.kind == "switched off"
    assert change.text == ("4 quantizers switched off: vision: attention q, k in blocks 0-1")
    assert change.lines[0] == "vision_model.encoder.layers.{0-1}.self_attn.q_bmm_quantizer (2)"


def test_format_of_one_layer_is_named(quantized: Encoder, saved: Path, tmp_path: Path) -> None:
    def retype(module: Any) -> None:
        module.text_model.encoder.layers[0].mlp.fc1.input_quantizer.num_bits = 8

    after = save_changed(quantized, tmp_path / "b", retype)
    (change,) = only(compare_checkpoints(read_checkpoint(saved), after), "quantizers")

    assert change.text == (
        "format E4M3 -> INT8 in 1 quantizer: text_model.encoder.layers.0.mlp.fc1.input_quantizer"
    )


def test_preset_that_skips_the_vision_tower_is_seen(
    saved: Path, tmp_path: Path, make_quantized: Callable[..., Encoder]
) -> None:
    save_checkpoint(make_quantized("FP8_DEFAULT_CFG"), tmp_path / "b")

    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "b"))

    assert only(found, "quantizers")[0].text == (
        "the whole vision tower is unquantized now: 36 -> 0 quantizers on"
    )
    assert any(c.text.startswith("recipe entry added: *vision_model*: off") for c in found.changes)


def test_other_recipe_is_named_entry_by_entry(
    saved: Path, tmp_path: Path, make_quantized: Callable[..., Encoder]
) -> None:
    save_checkpoint(make_quantized("fp8"), tmp_path / "b")

    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "b"))

    removed = [c.subjects[0] for c in only(found, "recipe") if c.kind == "removed"]
    assert "*q_bmm_quantizer: E4M3 per-tensor" in removed
    assert "*bmm2_output_quantizer: E4M3 per-tensor" in removed
    assert {c.text for c in only(found, "recipe") if c.kind == "changed"} == {
        "attention: diffusers -> automatic"
    }


def test_quantizer_that_never_ran_is_seen_where_an_audit_lies_beside(
    saved: Path, tmp_path: Path
) -> None:
    for name, calls in (("a", 1), ("b", 0)):
        shutil.copytree(saved, tmp_path / name / "checkpoint")
        entry = {"name": f"{FC1}.input_quantizer", "tower_calls": {"vision": calls}}
        (tmp_path / name / "audit.json").write_text(json.dumps({"quantizers": [entry]}))

    found = compare_checkpoints(read_checkpoint(tmp_path / "a"), read_checkpoint(tmp_path / "b"))

    (change,) = found.changes
    assert (change.kind, change.subjects) == ("no longer runs", (f"{FC1}.input_quantizer",))


# -- planted: files -------------------------------------------------------------------------------


def test_missing_state_is_damage_and_takes_all_quantizers(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "b")
    (tmp_path / "b" / "modelopt_state.pth").unlink()

    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "b"))

    assert only(found, "damage")[0].subjects == ("modelopt_state.pth",)
    *towers, change = only(found, "quantizers")
    assert [c.subjects for c in towers] == [("vision",), ("text",)]
    assert change.kind == "removed"
    assert "the whole vision tower" in change.text
    assert "the whole text tower" in change.text


def test_file_that_was_changed_after_saving_is_named(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["_attn_implementation"] = "eager"
    (tmp_path / "b" / "config.json").write_text(json.dumps(config))

    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "b"))

    assert [c.text for c in found.changes] == [
        f"after, {(tmp_path / 'b').as_posix()}: config.json was changed after it was saved "
        f"(another SHA-256)",
        "config.json _attn_implementation: sdpa -> eager",
    ]


def test_folder_without_a_manifest_is_read_as_modelopt_and_transformers_save_it(
    saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").unlink()
    found = compare_checkpoints(read_checkpoint(saved), read_checkpoint(tmp_path / "b"))

    assert read_checkpoint(tmp_path / "b").quantizers == read_checkpoint(saved).quantizers
    assert found.changes == ()


def test_unified_export_is_read(tmp_path: Path) -> None:
    save_file(
        {
            "a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn),
            "a.weight_scale": torch.tensor(0.5),
            "a.input_scale": torch.tensor(0.25),
            "b.weight": torch.ones(2, 2),
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')

    found = read_checkpoint(tmp_path)

    assert {name: (q.format, q.amax) for name, q in found.quantizers.items()} == {
        "a.weight_quantizer": ("E4M3", (224.0,)),
        "a.input_quantizer": ("E4M3", (112.0,)),
    }
    assert set(found.weights) == {"a.weight", "b.weight"}
    assert found.settings == {"export.quant_algo": "FP8"}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (
            lambda f: shutil.copy(f / "model.safetensors", f / "decoy.safetensors"),
            r"model\.safetensors: tensor '.*' stands in decoy\.safetensors too",
        ),
        (
            lambda f: (f / "more.safetensors").symlink_to("/etc/passwd"),
            r"more\.safetensors is a link that leads out of its folder",
        ),
        (
            lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("/x.json")),
            r"config\.json is a link that leads out of its folder",
        ),
    ],
)
def test_decoys_and_links_are_trouble(
    saved: Path, tmp_path: Path, plant: Callable[[Path], Any], words: str
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "planted"))
    plant(folder)

    with pytest.raises(ArtifactError, match=words):
        read_checkpoint(folder)


def test_damaged_manifest_is_trouble(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_text("{")

    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged: not JSON"):
        read_checkpoint(tmp_path / "b")


# -- properties -----------------------------------------------------------------------------------

NAMES = [
    f"{tower}_model.encoder.layers.{block}.{place}_quantizer"
    for tower in ("vision", "text")
    for block in (0, 1)
    for place in ("mlp.fc1.input", "mlp.fc1.weight", "self_attn.q_bmm")
]
AMAX = st.one_of(
    st.none(),
    st.lists(st.floats(0, 1000, width=32) | st.just(math.nan), min_size=1, max_size=2).map(tuple),
)
QUANTIZER = st.builds(
    lambda **values: values,
    enabled=st.booleans(),
    format=st.sampled_from(["E4M3", "INT8"]),
    granularity=st.sampled_from(["per-tensor", "per-channel (axis 0)"]),
    dynamic=st.booleans(),
    amax=AMAX,
    calls=st.sampled_from([None, 0, 1]),
)
CHECKPOINT = st.builds(
    lambda quantizers, recipe, config, damage: Checkpoint(
        label="x",
        quantizers={n: StoredQuantizer(name=n, **values) for n, values in quantizers.items()},
        weights={},
        recipe=tuple(recipe),
        config=config,
        damage=tuple(damage),
    ),
    st.dictionaries(st.sampled_from(NAMES), QUANTIZER),
    st.lists(st.sampled_from(["*: off", "a: E4M3", "b: E4M3", "c: INT8"]), max_size=5),
    st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"])),
    st.sets(st.sampled_from(["m.json is missing", "w.bin was changed"])),
)


def signature(change: Change) -> tuple[str, str, frozenset[str]]:
    return change.area, change.kind, frozenset(change.subjects)


@settings(max_examples=60, deadline=None)
@given(CHECKPOINT)
def test_nothing_differs_from_itself(one: Checkpoint) -> None:
    assert compare_checkpoints(one, copy.deepcopy(one)).changes == ()


@settings(max_examples=80, deadline=None)
@given(CHECKPOINT, CHECKPOINT)
def test_swapped_sides_mirror_each_other(one: Checkpoint, two: Checkpoint) -> None:
    there = compare_checkpoints(one, two).changes
    back = compare_checkpoints(two, one).changes

    def sides(change: Change) -> tuple[str, str]:
        return ("", "") if change.area == "ranges" else (change.before, change.after)

    assert {(*signature(c), *sides(c)) for c in there} == {
        (c.area, mirror(c.kind), frozenset(c.subjects), *reversed(sides(c))) for c in back
    }


@settings(max_examples=60, deadline=None)
@given(CHECKPOINT, st.data())
def test_every_planted_change_of_a_quantizer_is_named(one: Checkpoint, data: st.DataObject) -> None:
    on = {
        name: replace(quantizer, enabled=True, amax=(1.0,), calls=1, dynamic=False)
        for name, quantizer in one.quantizers.items()
    }
    before = replace(one, quantizers=on)
    if not on:
        return
    name = data.draw(st.sampled_from(sorted(on)))
    changed, kind = data.draw(
        st.sampled_from(
            [
                (replace(on[name], enabled=False), "switched off"),
                (replace(on[name], amax=None), "range lost"),
                (replace(on[name], amax=(1.0000001,)), "re-ranged"),
                (replace(on[name], amax=(math.nan,)), "re-ranged"),
                (replace(on[name], calls=0), "no longer runs"),
                (replace(on[name], format="E5M2"), "format changed"),
                (replace(on[name], dynamic=not on[name].dynamic), "range kind changed"),
                (replace(on[name], settings={"unsigned": "yes"}), "setting changed"),
                (replace(on[name], pre_scale=(1.0,)), "SmoothQuant changed"),
                (None, "removed"),
            ]
        )
    )
    after = dict(on)
    if changed is None:
        del after[name]
    else:
        after[name] = changed

    found = compare_checkpoints(before, replace(before, quantizers=after)).changes

    assert [(c.kind, c.subjects) for c in found] == [(kind, (name,))]


@given(st.permutations(["a: 1", "b: 2", "c: 3", "a: 1"]))
def test_reordered_recipe_is_one_change(lines: list[str]) -> None:
    found = compare_recipe_lines(["a: 1", "b: 2", "c: 3", "a: 1"], lines)

    same = lines == ["a: 1", "b: 2", "c: 3", "a: 1"]
    assert [c.kind for c in found] == ([] if same else ["reordered"])


def test_places_name_towers_slots_and_blocks() -> None:
    inputs = [name for name in NAMES if "fc1" in name and name.startswith("vision")]

    assert describe_places(NAMES[:6], all_of=NAMES) == "the whole vision tower (6)"
    assert describe_places(inputs, all_of=NAMES) == "vision: input, weight of mlp.fc1 in blocks 0-1"
    assert describe_places(NAMES[:1], all_of=NAMES) == NAMES[0]
    assert describe_places([*NAMES[:6], NAMES[6]], all_of=NAMES) == (
        "the whole vision tower (6); text: input of mlp.fc1 in block 0"
    )
    outside = [
        f"vision_model.embeddings.patch_embedding.{s}_quantizer" for s in ("a", "b", "input")
    ]
    assert describe_places(outside, all_of=[*outside, NAMES[0]]) == (
        "vision: other of embeddings.patch_embedding (2), input of embeddings.patch_embedding"
    )


MANY = {
    f"{tower}_model.encoder.layers.{block}.mlp.fc1.{slot}_quantizer": StoredQuantizer(
        name=f"{tower} {block} {slot}",
        enabled=True,
        format="E4M3",
        granularity="per-tensor",
        dynamic=False,
        amax=(4.1,),
    )
    for tower in ("vision", "text")
    for block in range(6)
    for slot in ("input", "weight")
}


@pytest.mark.parametrize(
    ("concerned", "factor", "words"),
    [
        (("vision", "input"), 1.5, "no range of the text tower moved (12 are the same)"),
        (("vision", "input"), 1.5, "no range of a weight moved: other calibration data"),
        (("text", "weight"), 1.5, "6 ranges of weights moved: those of other weights"),
        (("vision", ""), 1 + 1e-7, "rounding alone"),
    ],
)
def test_what_moved_together_is_said(concerned: tuple[str, str], factor: float, words: str) -> None:
    after = {
        name: replace(q, amax=(4.1 * factor,)) if all(w in name for w in concerned) else q
        for name, q in MANY.items()
    }

    (change,) = compare_quantizers(MANY, after)

    assert any(words in line for line in change.lines), change.lines


def test_ranges_rounded_to_half_are_named() -> None:
    after = {name: replace(q, amax=(4.1015625,)) for name, q in MANY.items()}  # 4.1 as float16

    (change,) = compare_quantizers(MANY, after)

    assert change.lines[-1] == "24 of 24 are what they were, rounded to half precision"


def test_range_of_another_algorithm_is_no_misfit(saved: Path) -> None:
    one = read_checkpoint(saved)
    name = f"{FC1}.weight_quantizer"
    moved = {**one.quantizers, name: replace(one.quantizers[name], amax=(100.0,))}
    two = replace(one, quantizers=moved)
    other = replace(two, settings={**one.settings, "calibration algorithm": "mse"})

    kinds, others = (
        [change.kind for change in compare_checkpoints(one, side).changes] for side in (two, other)
    )

    assert "ranges no longer fit" in kinds
    assert "ranges no longer fit" not in others


def test_dynamic_quantizer_has_no_range_to_lose() -> None:
    name = next(iter(MANY))
    after = {name: replace(MANY[name], dynamic=True, amax=None)}

    (there,) = compare_quantizers({name: MANY[name]}, after)
    (back,) = compare_quantizers(after, {name: MANY[name]})

    assert there.text == f"range static -> dynamic in 1 quantizer: {name}"
    assert back.kind == "range kind changed"


def test_another_granularity_is_no_other_range_where_the_widest_stays() -> None:
    name = next(iter(MANY))
    after = {name: replace(MANY[name], granularity="per-channel (axis 0)", amax=(1.0, 4.1))}

    found = compare_quantizers({name: MANY[name]}, after)

    assert [change.kind for change in found] == ["granularity changed"]


def test_ranges_between_the_same_ends_are_compared_by_their_digest() -> None:
    name = next(iter(MANY))
    one, two = ({name: replace(MANY[name], ranges_digest=digest)} for digest in ("1", "2"))

    (change,) = compare_quantizers(one, two)

    assert change.kind == "re-ranged inside"
    assert compare_quantizers(one, one) == []


def test_added_quantizer_that_never_runs_is_said_so() -> None:
    name, *others = MANY
    after = {n: replace(MANY[n], calls=0 if n == name else 1) for n in (name, *others[:2])}

    (change,) = [c for c in compare_quantizers({}, after) if c.kind == "added"]

    assert "3 quantizers added and on (1 never run): " in change.text
    (single,) = compare_quantizers({}, {name: after[name]})
    assert "1 quantizer added and on (it never runs): " in single.text


@pytest.mark.parametrize(("name", "kinds"), [("NVFP4", ["range lost"]), ("MXFP8", [])])
def test_a_lost_range_below_dynamic_blocks_is_named_where_the_format_has_one(
    name: str, kinds: list[str]
) -> None:
    quantizer = replace(MANY[next(iter(MANY))], name=NAMES[0], format=name, dynamic=True)
    sides = [
        Checkpoint(label="x", quantizers={NAMES[0]: found}, weights={})
        for found in (quantizer, replace(quantizer, amax=None))
    ]

    assert [change.kind for change in compare_checkpoints(*sides).changes] == kinds
