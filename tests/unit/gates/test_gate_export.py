"""The export gate: the files hold every quantizer that was approved, as it was, and no other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Audit, Quantizer
from pytest_quantgate.evidence.onnx import GivenGraph, OnnxAudit, QdqPair
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.export import ExportGate, judge_export
from pytest_quantgate.suite.keys import BadKey
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import (
    BLOCKS,
    FILE,
    SAME_EXAMPLES,
    add,
    all_text,
    change_quantizers,
    exclude,
    make_audit,
    make_quantizer,
    matching,
    switch_off,
)

LINES = {"allow": 11, "max_size_ratio": 12}
WHERE = Where(file=FILE, line=10, keys=LINES)
LARGEST = {"E4M3": 448.0, "INT8": 127.0}
TOWERS = ("vision", "text")
IN_A_TOWER = BLOCKS * 6
FC1 = "vision_model.layers.0.mlp.fc1"
SOFTMAX = "vision_model.layers.{}.self_attn.softmax_quantizer"
PATCHES = "vision_model.embeddings.patch_embedding.weight_quantizer"
FP16_BYTES = 200_000

Change = Callable[[QdqPair], QdqPair]


def export_gate(**changes: Any) -> ExportGate:
    return ExportGate(**{"where": WHERE, **changes})


def ranges(largest: float, low: float, high: float) -> dict[str, Any]:
    """Return what a pair says of its scales where these are the smallest and largest amax."""
    return {
        "scale_min": low / largest,
        "scale_max": high / largest,
        "amax_min": low,
        "amax_max": high,
    }


def make_pair(quantizer: Quantizer, **changes: Any) -> QdqPair:
    """Return the pair that a faithful export makes of a quantizer."""
    low, high = quantizer.amax_min, quantizer.amax_max
    assert low is not None
    assert high is not None
    weight = quantizer.slot == "weight"
    values: dict[str, Any] = {
        "node": f"/{quantizer.name.replace('.', '/')}/DequantizeLinear",
        "quantizer": quantizer.name,
        "slot": quantizer.slot,
        "format": quantizer.format,
        "scale_type": "float32",
        "scale_count": quantizer.amax_count,
        "scale_digest": "e" * 64,
        "symmetric": True,
        "source": "weight, 8 bit" if weight else "activation",
        "complete": True,
        "producer": None if weight else "vision_model.embeddings",
        "consumers": (quantizer.module,),
        "feeds_owner": True,
        **ranges(LARGEST.get(quantizer.format, 1.0), low, high),
        **changes,
    }
    return QdqPair(**values)


def softmax_pair(block: int = 0, **changes: Any) -> QdqPair:
    quantizer = make_quantizer(SOFTMAX.format(block), slot="softmax")
    return make_pair(quantizer, **changes)


def with_softmax(audit: Audit, tower: str) -> OnnxAudit:
    """Return a faithful export of a tower with a softmax pair in every block."""
    found = make_onnx(audit, tower)
    names = [SOFTMAX.format(block).replace("vision", tower) for block in range(BLOCKS)]
    return add_pairs(found, *[make_pair(make_quantizer(name, slot="softmax")) for name in names])


def runs_in(audit: Audit, tower: str) -> list[Quantizer]:
    return [q for q in audit.quantizers if q.enabled and q.tower_calls.get(tower)]


def make_onnx(audit: Audit, tower: str, **changes: Any) -> OnnxAudit:
    """Return what a faithful export of one tower reads back as."""
    pairs = tuple(make_pair(q) for q in runs_in(audit, tower))
    values: dict[str, Any] = {
        "tower": tower,
        "precision": "float16",
        "opset": 20,
        "domains": ("",),
        "file_bytes": 55_000,
        "digest": "f" * 64,
        "dynamic_batch": True,
        "weights_bytes": (("E4M3", 40_000), ("float16", 10_000)),
        "declared": tuple(pair.quantizer for pair in pairs),
        "extra": (),
        "pairs": pairs,
        "operations": (),
        "problems": (),
        **changes,
    }
    return OnnxAudit(**values)


def change_pairs(found: OnnxAudit, part: str, change: Change) -> OnnxAudit:
    """Return a file with changed pairs where a quantizer's name holds `part`."""
    hit = [pair for pair in found.pairs if part in str(pair.quantizer)]
    assert hit, part
    return replace(found, pairs=tuple(change(p) if p in hit else p for p in found.pairs))


def drop_pairs(found: OnnxAudit, part: str) -> OnnxAudit:
    kept = tuple(pair for pair in found.pairs if part not in str(pair.quantizer))
    assert len(kept) < len(found.pairs)
    return replace(found, pairs=kept)


def add_pairs(found: OnnxAudit, *pairs: QdqPair) -> OnnxAudit:
    return replace(found, pairs=found.pairs + pairs)


#: What the headline of each finding says, and whether it has a cause and a next step.
FINDINGS = {
    "excluded-came-back": "came back in the export although",
    "foreign-operators": "which no standard runtime knows",
    "invalid-onnx": "is not valid ONNX",
    "other-precision": "the suite ships",
    "pairs-added": "no quantizer that was approved",
    "pairs-doubled": "more than one pair",
    "quantizers-lost": "tower are not in its graph",
    "softmax-missing": "have no declared softmax pair",
    "too-large": "over max_size_ratio",
    "tower-idle": "no quantizer runs in the",
    "tower-missing": "no ONNX file of the",
    "values-differ": "not what was calibrated",
    "weights-in-full": "not stored in 8 bits",
}


def check_words(verdict: Verdict) -> Verdict:
    """A red verdict says which finding it is, where, why and what to do."""
    if verdict.passed:
        assert (verdict.code, verdict.cause, verdict.next_step) == ("", "", "")
        return verdict
    gate, _, finding = verdict.code.partition(".")
    assert gate == verdict.gate == "export"
    assert FINDINGS[finding] in verdict.headline
    assert f"({FILE}:" in verdict.headline
    assert verdict.cause
    assert verdict.next_step
    return verdict


def judge(
    audit: Audit | None = None,
    *,
    vision: OnnxAudit | None = None,
    text: OnnxAudit | None = None,
    fp16_file_bytes: int = FP16_BYTES,
    **gate: Any,
) -> Verdict:
    """Judge a faithful export of both towers, or what stands in for one of them."""
    audit = make_audit() if audit is None else audit
    verdict = judge_export(
        audit,
        quantized=[
            make_onnx(audit, "vision") if vision is None else vision,
            make_onnx(audit, "text") if text is None else text,
        ],
        fp16_file_bytes=fp16_file_bytes,
        dtype="float16",
        gate=export_gate(**gate),
    )
    return check_words(verdict)


def one_pair(quantizer: Quantizer, **changes: Any) -> Verdict:
    """Judge an export of one quantizer in each tower; `changes` are those of the vision pair."""
    other = replace(
        quantizer,
        name=quantizer.name.replace("vision_model", "text_model"),
        module=quantizer.module.replace("vision_model", "text_model"),
        tower="text",
        tower_calls={"text": 1},
    )
    audit = make_audit(quantizers=(quantizer, other))
    vision = make_onnx(audit, "vision", pairs=(make_pair(quantizer, **changes),))
    return judge(audit, vision=vision, text=make_onnx(audit, "text"))


# -- what is faithful -----------------------------------------------------------------------------


def test_faithful_export_passes_and_says_what_it_holds() -> None:
    verdict = judge(max_size_ratio=Fraction(3, 5))

    assert verdict.passed
    assert verdict.headline == (
        "export: 24 quantizers are 24 Q/DQ pairs at their places, nothing lost, nothing added; "
        "weights in 8 bits, scales are the calibrated amax; 0.55x of FP16's size"
    )
    assert verdict.brief == "24 of 24 quantizers as Q/DQ, none added; 0.55x of FP16's size"
    assert verdict.figures == {
        "onnx_pairs": 24,
        "onnx_file_bytes": 110_000,
        "onnx_size_ratio": 0.55,
    }
    assert (verdict.cause, verdict.next_step) == ("", "")


def test_quantizers_that_are_off_or_never_run_need_no_pair() -> None:
    audit = switch_off(make_audit(), "*bmm2_output_quantizer")
    audit = change_quantizers(audit, "text_model.*k_bmm*", tower_calls={})

    verdict = judge(audit)

    assert verdict.passed
    assert "18 quantizers are 18 Q/DQ pairs" in verdict.headline


def test_quantizer_that_runs_in_both_towers_is_wanted_in_both_files() -> None:
    shared = make_quantizer(
        "logit.input_quantizer", tower="other", tower_calls={"vision": 1, "text": 1}
    )
    audit = add(make_audit(), shared)

    assert "26 quantizers are 26 Q/DQ pairs" in judge(audit).headline
    verdict = judge(audit, text=drop_pairs(make_onnx(audit, "text"), "logit"))

    assert verdict.status is Status.FAIL
    assert "1 of 13 quantizers of the text tower are not in its graph" in verdict.headline


@pytest.mark.parametrize("kind", ["E4M3", "INT8"])
def test_scales_along_a_channel_are_counted_and_compared_at_both_ends(kind: str) -> None:
    quantizer = make_quantizer(
        f"{FC1}.weight_quantizer", format=kind, amax_min=0.25, amax_max=3.5, amax_count=64
    )

    assert one_pair(quantizer).passed
    assert one_pair(quantizer, scale_count=1).status is Status.FAIL
    for low, high in ((0.25, 3.0), (0.5, 3.5)):
        assert one_pair(quantizer, **ranges(LARGEST[kind], low, high)).status is Status.FAIL


# -- what is lost ---------------------------------------------------------------------------------


def test_attention_of_one_block_left_out_of_the_export_is_named() -> None:
    vision = drop_pairs(make_onnx(make_audit(), "vision"), "layers.1.self_attn")

    verdict = judge(vision=vision)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"export: 4 of 12 quantizers of the vision tower are not in its graph ({FILE}:10)"
    )
    assert verdict.brief == "4 of 12 vision quantizers lost in the export"
    assert verdict.evidence == (
        "vision_model.layers.1.self_attn.q_bmm_quantizer",
        "vision_model.layers.1.self_attn.k_bmm_quantizer",
        "vision_model.layers.1.self_attn.v_bmm_quantizer",
        "vision_model.layers.1.self_attn.bmm2_output_quantizer",
    )
    assert verdict.cause == "the exporter does not write these, or a later step took them out"
    assert verdict.figures["vision_quantizers_lost"] == 4
    assert verdict.figures["onnx_pairs"] == 20


def test_the_same_loss_in_every_block_is_one_line() -> None:
    verdict = judge(vision=drop_pairs(make_onnx(make_audit(), "vision"), "bmm2_output"))

    assert verdict.evidence == ("vision_model.layers.{0-1}.self_attn.bmm2_output_quantizer (2)",)


@pytest.mark.parametrize(
    "bypass",
    [
        {"complete": False},
        {"feeds_owner": False, "consumers": ("vision_model.layers.0.mlp.fc2",)},
        {"feeds_owner": False, "consumers": ()},
    ],
    ids=["half", "elsewhere", "nowhere"],
)
def test_bypassed_dequantize_is_no_quantizer(bypass: dict[str, Any]) -> None:
    vision = change_pairs(
        make_onnx(make_audit(), "vision"),
        f"{FC1}.input_quantizer",
        lambda pair: replace(pair, **bypass),
    )

    verdict = judge(vision=vision)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "export: 1 of 12 quantizers of the vision tower are not in its graph, 1 of them as half a "
        f"pair or at another place ({FILE}:10)"
    )
    assert verdict.evidence == (f"{FC1}.input_quantizer",)
    assert "a later step took them out" in verdict.cause


def test_text_tower_exported_from_fp16_is_told_from_a_loss() -> None:
    text = make_onnx(make_audit(), "text", pairs=(), declared=(), file_bytes=100_000)

    verdict = judge(text=text, max_size_ratio=Fraction(3, 5))

    assert verdict.status is Status.FAIL
    assert "12 of 12 quantizers of the text tower are not in its graph (" in verdict.headline
    assert verdict.cause == "the file was exported from another variant (FP16?)"
    assert any("over max_size_ratio" in line for line in verdict.evidence)


def test_whole_tower_of_halves_is_not_taken_for_fp16() -> None:
    text = change_pairs(make_onnx(make_audit(), "text"), "", lambda p: replace(p, complete=False))

    verdict = judge(text=text)

    assert "12 of 12" in verdict.headline
    assert "12 of them as half a pair" in verdict.headline
    assert "FP16" not in verdict.cause


def test_tower_where_nothing_is_quantized_shows_nothing() -> None:
    audit = switch_off(make_audit(), "text_model.*")

    verdict = judge(audit)

    assert verdict.status is Status.FAIL
    assert "no quantizer runs in the text tower: its file shows nothing" in verdict.headline
    assert verdict.next_step == "look at the coverage gate"


@pytest.mark.parametrize(
    ("towers", "words"),
    [
        (("vision",), "no ONNX file of the text tower"),
        (("text",), "no ONNX file of the vision tower"),
        ((), "no ONNX file of the vision and text tower"),
    ],
)
def test_tower_without_a_file_fails(towers: tuple[str, ...], words: str) -> None:
    audit = make_audit()

    verdict = judge_export(
        audit,
        quantized=[make_onnx(audit, tower) for tower in towers],
        fp16_file_bytes=FP16_BYTES,
        dtype="float16",
        gate=export_gate(),
    )

    assert verdict.status is Status.FAIL
    assert verdict.headline == f"export: {words} ({FILE}:10)"


def test_no_files_of_no_tower_fail() -> None:
    verdict = judge_export(
        make_audit(towers=()),
        quantized=[],
        fp16_file_bytes=FP16_BYTES,
        dtype="float16",
        gate=export_gate(),
    )

    assert verdict.headline == f"export: no ONNX file of the model ({FILE}:10)"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "unknown"])
def test_a_file_in_another_number_format_than_ships_is_red(precision: str) -> None:
    """As good as the right one to every other check: on a CPU both give numbers."""
    verdict = judge(text=replace(make_onnx(make_audit(), "text"), precision=precision))

    assert (verdict.status, verdict.code) == (Status.FAIL, "export.other-precision")
    assert verdict.headline == (
        f"export: the text graph computes in {precision}, the suite ships float16 ({FILE}:10)"
    )


# -- what is added --------------------------------------------------------------------------------


def test_excluded_patch_embedding_that_comes_back_is_named_with_its_pattern() -> None:
    audit = exclude(add(make_audit(), make_quantizer(PATCHES)), "*patch_embedding*")
    back = make_pair(make_quantizer(PATCHES))

    assert judge(audit).passed
    verdict = judge(audit, vision=add_pairs(make_onnx(audit, "vision"), back))

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "export: 1 quantizer of the vision tower came back in the export although "
        f"'*patch_embedding*' excludes {PATCHES} ({FILE}:10)"
    )
    assert verdict.brief == "1 excluded quantizer came back in the vision graph"
    assert verdict.evidence == (PATCHES,)
    assert "excluded or not" in verdict.cause
    assert "export_tower" in verdict.next_step


def test_allowed_softmax_does_not_hide_an_excluded_layer() -> None:
    audit = exclude(add(make_audit(), make_quantizer(PATCHES)), "*patch_embedding*")
    vision = add_pairs(with_softmax(audit, "vision"), make_pair(make_quantizer(PATCHES)))

    verdict = judge(audit, vision=vision, text=with_softmax(audit, "text"), allow=("softmax",))

    assert "excludes" in verdict.headline
    assert "softmax" not in all_text(verdict)


def test_undeclared_softmax_pairs_fail_and_say_how_to_declare_them() -> None:
    vision = add_pairs(make_onnx(make_audit(), "vision"), softmax_pair(0), softmax_pair(1))

    verdict = judge(vision=vision)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "export: 2 Q/DQ pairs of the vision graph belong to no quantizer that was approved "
        f"({FILE}:10)"
    )
    assert verdict.evidence == ("vision_model.layers.{0-1}.self_attn.softmax_quantizer (2)",)
    assert "the PyTorch model did not simulate them" in verdict.cause
    assert "export: {allow: [softmax]}" in verdict.next_step


def test_declared_softmax_pairs_pass_and_are_counted_in_the_graph() -> None:
    audit = make_audit()

    verdict = judge(
        vision=with_softmax(audit, "vision"), text=with_softmax(audit, "text"), allow=("softmax",)
    )

    assert verdict.passed
    assert "24 quantizers are 24 Q/DQ pairs at their places and 4 declared softmax pairs" in (
        verdict.headline
    )
    assert (
        verdict.brief == "24 of 24 quantizers as Q/DQ + softmax, none added; 0.55x of FP16's size"
    )
    assert verdict.figures["onnx_pairs"] == 28


def test_softmax_pairs_that_only_the_metadata_names_are_missing() -> None:
    audit = make_audit()
    vision = make_onnx(audit, "vision", extra=(SOFTMAX.format(0), SOFTMAX.format(1)))

    verdict = judge(vision=vision, text=with_softmax(audit, "text"), allow=("softmax",))

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "export: 2 of 2 attention blocks of the vision graph have no declared softmax pair "
        f"({FILE}:11)"
    )


def test_one_block_without_the_declared_softmax_pair_is_named() -> None:
    audit = make_audit()
    vision = drop_pairs(with_softmax(audit, "vision"), SOFTMAX.format(1))

    verdict = judge(vision=vision, text=with_softmax(audit, "text"), allow=("softmax",))

    assert verdict.status is Status.FAIL
    assert "1 of 2 attention blocks of the vision graph" in verdict.headline
    assert verdict.evidence[0] == "vision_model.layers.1.self_attn"
    assert "softmax=True" in verdict.next_step


def test_declared_softmax_is_not_wanted_where_attention_is_not_quantized() -> None:
    audit = switch_off(make_audit(), "*bmm*")

    assert judge(audit, allow=("softmax",)).passed


def test_a_tower_that_the_suite_leaves_in_fp16_holds_nothing() -> None:
    audit = switch_off(make_audit(), "text_model*")
    onnx = [make_onnx(audit, "vision"), make_onnx(audit, "text")]

    def judge_with(*towers: str, text: OnnxAudit) -> Verdict:
        return judge_export(
            audit,
            quantized=[onnx[0], text],
            fp16_file_bytes=FP16_BYTES,
            dtype="float16",
            gate=export_gate(),
            left_out=towers,
        )

    stray = make_onnx(make_audit(), "text").pairs[:1]
    assert judge_with("text", text=onnx[1]).passed
    assert judge_with(text=onnx[1]).status is Status.FAIL
    assert judge_with("text", text=add_pairs(onnx[1], *stray)).status is Status.FAIL


@pytest.mark.parametrize(("deviation", "good"), [(1e-7, True), (0.01, False), (math.nan, False)])
def test_every_channel_is_compared_with_its_own_amax(deviation: float, good: bool) -> None:
    """The smallest and the largest are right, and yet the channels are mixed up."""
    quantizer = make_quantizer(f"{FC1}.weight_quantizer", amax_count=64, amax_max=2.0)

    verdict = one_pair(quantizer, amax_deviation=deviation)

    assert verdict.passed == good
    if not good:
        assert "the 64 scales differ from the calibrated amax of their channels" in all_text(
            verdict
        )


def test_softmax_that_pytorch_simulates_needs_no_declaration() -> None:
    audit = add(make_audit(), make_quantizer(SOFTMAX.format(0), slot="softmax"))

    verdict = judge(audit)

    assert verdict.passed
    assert "25 quantizers are 25 Q/DQ pairs at their places, " in verdict.headline


def test_nameless_pair_is_shown_by_its_node() -> None:
    pair = replace(make_pair(make_quantizer("a.b")), node="/visual/MatMul_3_dq", quantizer=None)

    verdict = judge(vision=add_pairs(make_onnx(make_audit(), "vision"), pair))

    assert verdict.status is Status.FAIL
    assert "1 Q/DQ pair of the vision graph belong to no quantizer" in verdict.headline
    assert verdict.evidence == ("/visual/MatMul_3_dq",)
    assert verdict.cause == "the exporter adds pairs of its own"
    assert verdict.next_step == "export again without them"


def test_nameless_pair_beside_softmax_is_not_taken_for_one() -> None:
    pair = replace(make_pair(make_quantizer("a.b")), quantizer=None)
    vision = add_pairs(with_softmax(make_audit(), "vision"), pair)

    assert judge(vision=vision).cause == "the exporter adds pairs of its own"
    verdict = judge(vision=vision, allow=("softmax",))

    assert verdict.status is Status.FAIL
    assert "1 Q/DQ pair of the vision graph" in verdict.headline


def test_quantizer_of_the_other_tower_has_no_place_here() -> None:
    audit = make_audit()
    stray = make_onnx(audit, "text").pairs[0]

    verdict = judge(audit, vision=add_pairs(make_onnx(audit, "vision"), stray))

    assert verdict.status is Status.FAIL
    assert verdict.evidence == (stray.quantizer,)


@pytest.mark.parametrize("at_its_place", [True, False])
def test_second_pair_under_one_name_is_an_added_one(at_its_place: bool) -> None:
    vision = make_onnx(make_audit(), "vision")
    again = replace(vision.pairs[0], node="/again", feeds_owner=at_its_place)

    verdict = judge(vision=add_pairs(vision, again))

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"export: 1 quantizer of the vision graph has more than one pair ({FILE}:10)"
    )
    assert verdict.evidence == (vision.pairs[0].quantizer,)


def test_all_pairs_twice_are_told_in_the_plural() -> None:
    vision = make_onnx(make_audit(), "vision")

    verdict = judge(vision=add_pairs(vision, *vision.pairs))

    assert "12 quantizers of the vision graph have more than one pair" in verdict.headline


# -- what is not what was calibrated --------------------------------------------------------------


def test_one_scale_times_four_is_named_with_both_values() -> None:
    vision = change_pairs(
        make_onnx(make_audit(), "vision"),
        f"{FC1}.input_quantizer",
        lambda pair: replace(pair, **ranges(448.0, 4.0, 4.0)),
    )

    verdict = judge(vision=vision)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"export: 1 pair of the vision graph is not what was calibrated: {FC1}.input_quantizer: "
        f"smallest amax 4 in the graph (float32), 1 in the model ({FILE}:10)"
    )
    assert verdict.brief == "1 scales or formats differ from the calibration"
    assert verdict.cause == "the file was exported from another calibration, or changed afterwards"


def test_several_other_scales_are_counted_and_listed() -> None:
    text = change_pairs(
        make_onnx(make_audit(), "text"), "mlp", lambda p: replace(p, **ranges(448.0, 1.0, 1.25))
    )

    verdict = judge(text=text)

    assert "4 pairs of the text graph are not what was calibrated" in verdict.headline
    assert len(verdict.evidence) == 3
    assert all("largest amax 1.25 in the graph" in line for line in verdict.evidence)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "INT8"}, "INT8 in the graph, E4M3 in the model"),
        ({"format": "uint8"}, "uint8 in the graph, E4M3 in the model"),
        ({"symmetric": False}, "a zero point that is not 0"),
        ({"scale_count": 768}, "768 scales in the graph, 1 amax in the model"),
        ({"scale_min": 0.0, "amax_min": 0.0}, "a scale of 0"),
        (ranges(448.0, -1.0, 1.0), f"a scale of {-1 / 448:g}"),
        (ranges(448.0, math.nan, math.nan), "smallest amax nan in the graph, 1.0 in the model"),
        (ranges(448.0, 1.0, math.inf), "largest amax inf in the graph, 1.0 in the model"),
        (
            {"scale_type": "computed", **ranges(448.0, math.nan, math.nan)},
            "its scale is computed in every run, the model's was calibrated",
        ),
    ],
)
def test_each_way_to_differ_has_its_words(changes: dict[str, Any], words: str) -> None:
    verdict = one_pair(make_quantizer(f"{FC1}.input_quantizer"), **changes)

    assert verdict.status is Status.FAIL
    assert verdict.headline.endswith(f": {FC1}.input_quantizer: {words} ({FILE}:10)")


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_model_without_a_range_can_have_no_pair_of_it(bad: float | None) -> None:
    good = make_quantizer(f"{FC1}.input_quantizer")
    audit = change_quantizers(make_audit(), good.name, amax_min=bad, amax_max=bad)

    verdict = judge(audit, vision=make_onnx(make_audit(), "vision"), text=make_onnx(audit, "text"))

    assert verdict.status is Status.FAIL
    assert f"smallest amax 1.0 in the graph, {bad} in the model" in verdict.headline


def test_scale_of_an_unknown_type_must_be_exact() -> None:
    quantizer = make_quantizer(f"{FC1}.input_quantizer")

    assert one_pair(quantizer, scale_type="float64").passed
    near = ranges(448.0, 1.0 + 1e-9, 1.0 + 1e-9)
    assert not one_pair(quantizer, scale_type="float64", **near).passed
    assert one_pair(quantizer, **near).passed


def round_scale(amax: float, largest: float, kind: str) -> dict[str, Any]:
    """Return the scale of an amax as a float or a half holds it."""
    scale = np.float32(amax) / np.float32(largest)
    stored = float(np.float16(scale)) if kind == "float16" else float(scale)
    return {
        "scale_type": kind,
        "scale_min": stored,
        "scale_max": stored,
        "amax_min": stored * largest,
        "amax_max": stored * largest,
    }


@SAME_EXAMPLES
@given(
    amax=st.floats(2.0**-13, 1e4, width=32),
    kind=st.sampled_from(["E4M3", "INT8"]),
    stored=st.sampled_from(["float32", "float16"]),
)
@example(amax=448 * 2.0**-14, kind="E4M3", stored="float16")
@example(amax=448 * 1.5 * 2.0**-24, kind="E4M3", stored="float16")
@example(amax=float(np.float32(0.001)), kind="E4M3", stored="float16")
@example(amax=float(np.float32(1e-5)), kind="INT8", stored="float16")
def test_scale_is_the_same_after_its_own_rounding(amax: float, kind: str, stored: str) -> None:
    quantizer = make_quantizer(f"{FC1}.input_quantizer", format=kind, amax_min=amax, amax_max=amax)

    assert one_pair(quantizer, **round_scale(amax, LARGEST[kind], stored)).passed


@SAME_EXAMPLES
@given(
    amax=st.floats(0.03125, 1e4, width=32),
    factor=st.sampled_from([0.25, 0.5, 0.997, 1.003, 2.0, 4.0]),
    stored=st.sampled_from(["float32", "float16"]),
)
def test_scale_beyond_its_rounding_is_another_one(amax: float, factor: float, stored: str) -> None:
    quantizer = make_quantizer(f"{FC1}.input_quantizer", amax_min=amax, amax_max=amax)

    verdict = one_pair(quantizer, **round_scale(amax * factor, 448.0, stored))

    assert verdict.status is Status.FAIL
    assert f"in the graph ({stored})" in verdict.headline


@pytest.mark.parametrize("steps", [-2, -1, 1, 2])
def test_subnormal_half_one_step_away_is_another_scale(steps: int) -> None:
    step = 448 * 2.0**-24
    amax = 20 * step
    quantizer = make_quantizer(f"{FC1}.input_quantizer", amax_min=amax, amax_max=amax)
    other = ranges(448.0, amax + steps * step, amax + steps * step)

    assert one_pair(quantizer, scale_type="float16").passed
    assert not one_pair(quantizer, scale_type="float16", **other).passed


def test_half_that_became_zero_is_no_scale() -> None:
    amax = 448 * 2.0**-26
    quantizer = make_quantizer(f"{FC1}.input_quantizer", amax_min=amax, amax_max=amax)

    verdict = one_pair(quantizer, **round_scale(amax, 448.0, "float16"))

    assert verdict.status is Status.FAIL
    assert "a scale of 0" in verdict.headline


@pytest.mark.parametrize(
    ("stored", "within", "beyond"),
    [
        ("float32", 0.9e-6, 1.5e-6),
        ("float16", 2.0**-11, 1.5 * 2.0**-11),
        ("bfloat16", 2.0**-8, 1.5 * 2.0**-8),
    ],
)
def test_each_type_has_its_own_rounding(stored: str, within: float, beyond: float) -> None:
    quantizer = make_quantizer(f"{FC1}.input_quantizer")

    for change, good in ((within, True), (-within, True), (beyond, False), (-beyond, False)):
        near = ranges(448.0, 1.0 + change, 1.0 + change)
        assert one_pair(quantizer, scale_type=stored, **near).passed is good


# -- how weights are stored -----------------------------------------------------------------------


def test_weights_in_full_precision_behind_a_pair_save_nothing() -> None:
    vision = change_pairs(
        make_onnx(make_audit(), "vision", file_bytes=100_000),
        "weight_quantizer",
        lambda pair: replace(pair, source="weight, float"),
    )

    verdict = judge(vision=vision, max_size_ratio=Fraction(3, 5))

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"export: 2 quantized weights of the vision graph are not stored in 8 bits ({FILE}:10)"
    )
    assert verdict.brief == "2 weights behind Q/DQ are stored in full precision"
    assert verdict.evidence[0] == "vision_model.layers.{0-1}.mlp.fc1.weight_quantizer (2)"
    assert "quantizes them at load" in verdict.cause
    assert any("over max_size_ratio" in line for line in verdict.evidence)


def test_one_weight_that_is_computed_is_told_in_the_singular() -> None:
    vision = change_pairs(
        make_onnx(make_audit(), "vision"),
        f"{FC1}.weight_quantizer",
        lambda pair: replace(pair, source="activation"),
    )

    verdict = judge(vision=vision)

    assert "1 quantized weight of the vision graph is not stored in 8 bits" in verdict.headline


# -- the file itself ------------------------------------------------------------------------------


def test_foreign_operators_are_named_before_the_checker_speaks() -> None:
    vision = make_onnx(
        make_audit(),
        "vision",
        domains=("", "com.microsoft", "trt"),
        problems=("No opset import for domain 'trt'",),
    )

    verdict = judge(vision=vision)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "export: the vision graph uses operators of 'com.microsoft', 'trt', which no standard "
        f"runtime knows ({FILE}:10)"
    )
    assert verdict.cause == "the exporter left its own Q/DQ operators in the graph"


def test_invalid_onnx_is_shown_with_the_checkers_words() -> None:
    text = make_onnx(make_audit(), "text", problems=("Nodes are not sorted", "second", "third"))

    verdict = judge(text=text)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"export: the text graph is not valid ONNX: Nodes are not sorted ({FILE}:10)"
    )
    assert verdict.evidence == ("second", "third")


@pytest.mark.parametrize(
    ("file_bytes", "passes"), [(119_999, True), (120_000, True), (120_001, False)]
)
def test_size_at_its_limit_passes_and_one_byte_over_fails(file_bytes: int, passes: bool) -> None:
    audit = make_audit()
    vision = make_onnx(audit, "vision", file_bytes=file_bytes - 50_000)
    text = make_onnx(audit, "text", file_bytes=50_000)

    verdict = judge(audit, vision=vision, text=text, max_size_ratio=Fraction(3, 5))

    assert verdict.passed is passes
    if not passes:
        assert verdict.headline == (
            "export: 120001 bytes against FP16's 200000, 0.600x, over max_size_ratio 0.600x "
            f"({FILE}:12)"
        )
        assert verdict.brief == "0.60x of FP16's size, over 0.60x"
        assert "not stored in 8 bits" in verdict.cause


@SAME_EXAMPLES
@given(
    fp16=st.integers(1, 10**12),
    limit=st.fractions(Fraction(1, 1000), 4, max_denominator=10**9),
    over=st.sampled_from([0, 1]),
)
def test_size_is_compared_exactly(fp16: int, limit: Fraction, over: int) -> None:
    audit = make_audit()
    vision = make_onnx(audit, "vision", file_bytes=int(limit * fp16) + over)

    verdict = judge(
        audit,
        vision=vision,
        text=make_onnx(audit, "text", file_bytes=0),
        fp16_file_bytes=fp16,
        max_size_ratio=limit,
    )

    assert verdict.passed is (not over)


def test_without_fp16_files_no_ratio_is_kept() -> None:
    assert judge(fp16_file_bytes=0).figures["onnx_size_ratio"] == 0.0
    verdict = judge(fp16_file_bytes=0, max_size_ratio=Fraction(3, 5))

    assert verdict.status is Status.FAIL
    assert "against FP16's 0, infx, over max_size_ratio" in verdict.headline


# -- several at once ------------------------------------------------------------------------------


def test_faults_of_both_towers_are_all_shown() -> None:
    audit = make_audit()
    vision = drop_pairs(make_onnx(audit, "vision"), "q_bmm")
    text = make_onnx(audit, "text", domains=("", "trt"))

    verdict = judge(audit, vision=vision, text=text)

    assert "2 of 12 quantizers of the vision tower" in verdict.headline
    assert any("uses operators of 'trt'" in line for line in verdict.evidence)


@SAME_EXAMPLES
@given(data=st.data())
def test_any_quantizer_that_is_missing_half_or_elsewhere_is_found(data: st.DataObject) -> None:
    audit = make_audit()
    tower = data.draw(st.sampled_from(TOWERS))
    names = [q.name for q in runs_in(audit, tower)]
    hit = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=len(names)))
    how = data.draw(st.sampled_from(["missing", "complete", "feeds_owner"]))
    found = make_onnx(audit, tower)
    pairs = tuple(
        replace(pair, **{how: False}) if how != "missing" and pair.quantizer in hit else pair  # type: ignore[arg-type]
        for pair in found.pairs
        if how != "missing" or pair.quantizer not in hit
    )
    damaged = replace(found, pairs=pairs)

    verdict = judge(audit, **{tower: damaged})  # type: ignore[arg-type]

    assert verdict.status is Status.FAIL
    assert f"{len(hit)} of {IN_A_TOWER} quantizers of the {tower} tower" in verdict.headline
    assert verdict.figures[f"{tower}_quantizers_lost"] == len(hit)


@SAME_EXAMPLES
@given(order=st.permutations(range(IN_A_TOWER)))
def test_order_of_the_pairs_does_not_matter(order: list[int]) -> None:
    audit = make_audit()
    found = make_onnx(audit, "vision")
    mixed = replace(found, pairs=tuple(found.pairs[i] for i in order))

    assert judge(audit, vision=mixed).headline == judge(audit).headline


def test_sabotage_of_a_test_really_hits() -> None:
    """The patterns of this file name what they mean: two blocks of six quantizers a tower."""
    audit = make_audit()

    assert len(matching(audit, "vision_model.*")) == IN_A_TOWER
    assert len(make_onnx(audit, "vision").pairs) == IN_A_TOWER


# -- formats whose scales are of blocks or of each token -------------------------------------------

FC1 = "vision_model.layers.0.mlp.fc1"


def judge_pair(slot: str, pair: dict[str, Any], **changes: Any) -> Verdict:
    """Return what is said of one pair of a quantizer in another format."""
    audit = change_quantizers(make_audit(), f"{FC1}.{slot}_quantizer", **changes)
    found = change_pairs(
        make_onnx(audit, "vision"), f"{FC1}.{slot}", lambda one: replace(one, **pair)
    )
    return judge(audit, vision=found)


@pytest.mark.parametrize(
    ("deviation", "words"),
    [
        (None, "the scales of its blocks are not as many as those of the model"),
        (1e-6, ""),
        (0.5, "differ from those of the model, by up to 0.5 of one"),
        (math.nan, "differ from those of the model, by up to nan of one"),
    ],
)
def test_the_scales_of_a_weights_blocks_are_those_of_the_model(
    deviation: float | None, words: str
) -> None:
    verdict = judge_pair("weight", {"amax_deviation": deviation}, format="NVFP4", dynamic=True)

    assert verdict.passed is (not words)
    if words:
        assert verdict.code == "export.values-differ"
        assert words in all_text(verdict)


@pytest.mark.parametrize(
    ("format_", "fixed", "of"), [("MXFP8", 448.0, "block"), ("E4M3", 1.0, "token")]
)
@pytest.mark.parametrize(
    ("low", "high", "good"),
    [(1, 1, True), (1, 2, False), (2, 1, False), (1, math.nan, False), (math.nan, 1, False)],
)
def test_what_is_divided_before_it_comes_to_a_pair_has_a_fixed_range(
    format_: str, fixed: float, of: str, low: float, high: float, good: bool
) -> None:
    """A range that is no number is none, on either side."""
    ends = {"amax_min": low * fixed, "amax_max": high * fixed}
    verdict = judge_pair("input", ends, format=format_, dynamic=True)

    assert verdict.passed is good
    if not good:
        assert f"behind a range of each {of}, not {fixed:g}" in all_text(verdict)


def test_only_findings_of_the_check_are_ignored() -> None:
    export_gate(ignore=("check.half-pair",)).check()
    with pytest.raises(
        BadKey, match=r"'export\.too-large' is no code of quantgate check"
    ) as caught:
        export_gate(ignore=("export.too-large",)).check()
    assert caught.value.key == "ignore"


def test_weights_in_full_precision_are_allowed_of_files_that_were_handed_over() -> None:
    audit = make_audit()
    wide = change_pairs(
        make_onnx(audit, "vision"), "weight", lambda pair: replace(pair, source="weight, float")
    )
    graph = GivenGraph(name="v.onnx", digest="a" * 64, tool="ModelOpt", tensors=4, same=4)
    allowed = judge(audit, vision=replace(wide, given=graph), allow=("float-weights",))

    assert allowed.passed
    assert f"{BLOCKS} weights in full precision as allowed" in all_text(allowed)
    for other in (judge(audit, vision=wide), judge(audit, vision=wide, allow=("float-weights",))):
        assert other.code == "export.weights-in-full"
