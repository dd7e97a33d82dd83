"""The engine gate: precision, fusion and size of the engines, exactly at their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.onnx import EngineOutputs
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.engine import EngineGate, judge_engine
from pytest_quantgate.runtimes.engine_layers import (
    AttentionState,
    EngineAttention,
    EngineReport,
    NodePrecision,
    Precision,
)
from pytest_quantgate.suite.where import Where
from tests.unit.gates.gate_builders import FILE, SAME_EXAMPLES, all_text

LINES = {
    "min_fp8_gemms": 11,
    "attention": 12,
    "max_plan_ratio": 13,
    "max_weights_ratio": 14,
    "max_activation_ratio": 15,
    "max_plan": 16,
    "max_weights": 17,
    "max_activation": 18,
    "target": 19,
    "min_gemms": 20,
}
WHERE = Where(file=FILE, line=10, keys=LINES)
MIB = 2**20
PATCHES = "/vision_model/embeddings/patch_embedding/Conv"
SIZES = ("plan", "weights", "activation")
NAMES = {"plan": "plan", "weights": "weights", "activation": "activation memory"}
KERNEL = "__myl_MulFc_myl0_3"


def digest(tower: str, variant: str = "fp8") -> str:
    return f"{tower}-{variant}".ljust(64, "0")


def make_node(
    node: str, precision: Precision | None = "fp8", *, op: Literal["linear", "conv"] = "linear"
) -> NodePrecision:
    return NodePrecision(
        node=node,
        op=op,
        block=None,
        precision=precision,
        layer=None if precision is None else KERNEL,
    )


def make_attention(index: int, state: AttentionState = "fused-fp8", **changes: Any) -> Any:
    values: dict[str, Any] = {
        "index": index,
        "block": index,
        "softmax": f"/encoder/layers.{index}/self_attn/Softmax",
        "state": state,
        "layers": ("_gemm_mha_v2",),
        "reason": "" if state == "fused-fp8" else "no Q/DQ pair in the ONNX graph on softmax",
        **changes,
    }
    return EngineAttention(**values)


def make_nodes(tower: str, precisions: Sequence[Precision | None]) -> tuple[NodePrecision, ...]:
    return tuple(
        make_node(f"/{tower}_model/layers.{i}/mlp/fc1/MatMul", precision)
        for i, precision in enumerate(precisions)
    )


def make_report(tower: str, **changes: Any) -> EngineReport:
    """Return the engine of a tower of four linear layers and two blocks, all of it in FP8."""
    nodes = changes.pop("nodes", make_nodes(tower, ("fp8",) * 4))
    linear = [node for node in nodes if node.op == "linear"]
    narrow = sum(node.precision == "fp8" for node in linear)
    values: dict[str, Any] = {
        "target": "sm89",
        "library": "tensorrt_rtx",
        "library_version": "1.7.1.116",
        "onnx_sha256": digest(tower),
        "plan_sha256": "b" * 64,
        "plan_bytes": 60 * MIB,
        "weights_bytes": 50 * MIB,
        "activation_bytes": 10 * MIB,
        "scratch_bytes": 0,
        "build_s": 3.0,
        "layers": (),
        "gemms": len(linear),
        "fp8_gemms": narrow,
        "gemm_nodes": len(linear),
        "fp8_gemm_nodes": narrow,
        "fp8_convs": 0,
        "nodes": nodes,
        "attentions": (make_attention(0), make_attention(1)),
        "qdq_layers": (),
        **changes,
    }
    return EngineReport(**values)


def make_fp16(tower: str, **changes: Any) -> EngineReport:
    values: dict[str, Any] = {
        "onnx_sha256": digest(tower, "fp16"),
        "plan_bytes": 100 * MIB,
        "weights_bytes": 100 * MIB,
        "activation_bytes": 10 * MIB,
        "nodes": make_nodes(tower, ("half",) * 4),
        "attentions": (make_attention(0, "fused-half"), make_attention(1, "fused-half")),
        **changes,
    }
    return make_report(tower, **values)


def engine_gate(**changes: Any) -> EngineGate:
    return EngineGate(**{"where": WHERE, "target": "sm89", **changes})


def judge(
    *,
    vision: EngineReport | None = None,
    text: EngineReport | None = None,
    fp16: dict[str, EngineReport] | None = None,
    excluded: dict[str, tuple[str, ...]] | None = None,
    digests: dict[str, str] | None = None,
    **gate: Any,
) -> Verdict:
    """Judge two engines that are all in FP8, or what stands in for one of them."""
    return judge_engine(
        fp16={"vision": make_fp16("vision"), "text": make_fp16("text")} if fp16 is None else fp16,
        quantized={
            "vision": make_report("vision") if vision is None else vision,
            "text": make_report("text") if text is None else text,
        },
        excluded_nodes=excluded or {},
        onnx_digests=(
            {"vision": digest("vision"), "text": digest("text")} if digests is None else digests
        ),
        gate=engine_gate(**gate),
    )


# -- what is as it should be ----------------------------------------------------------------------


def test_engines_within_every_limit_pass_and_say_what_they_are() -> None:
    verdict = judge(
        min_fp8_gemms=8,
        attention="fused-fp8",
        max_plan_ratio=Fraction(7, 10),
        max_weights_ratio=Fraction(6, 10),
        max_activation_ratio=Fraction(1),
        max_plan_bytes=64 * MIB,
        max_weights_bytes=64 * MIB,
        max_activation_bytes=64 * MIB,
    )

    assert verdict.passed
    assert verdict.headline == (
        "engine: tensorrt_rtx 1.7.1.116 for sm89: 8 of 8 linear layers in FP8; attention vision "
        "2/2 fused in FP8, text 2/2 fused in FP8; vision weights 0.50x, plan 0.60x, text weights "
        "0.50x, plan 0.60x"
    )
    assert verdict.brief == (
        "8 of 8 linear in FP8; attention vision 2/2 fused in FP8, text 2/2 fused in FP8"
    )
    assert len(verdict.evidence) == 2 * (1 + 6) + 1
    assert (
        "engine: vision: plan 60.0 MiB vs FP16 100.0 MiB: ratio 0.600, within max_plan_ratio "
        f"0.7 ({FILE}:13)"
    ) in verdict.evidence
    assert (
        f"engine: text: weights 50.000 MiB ({50 * MIB} bytes), within max_weights 64 MiB "
        f"({FILE}:17)"
    ) in verdict.evidence
    assert verdict.evidence[-1] == "outputs were not executed here: no device was asked"
    assert verdict.figures["vision_weights_ratio"] == 0.5
    assert verdict.figures["text_plan_bytes"] == 60 * MIB
    assert verdict.figures["text_activation_ratio"] == 1.0
    assert verdict.figures["vision_fp8_gemm_nodes"] == 4
    assert (verdict.cause, verdict.next_step) == ("", "")


def test_gate_of_one_tower_needs_no_other() -> None:
    verdict = judge_engine(
        fp16={"text": make_fp16("text")},
        quantized={"text": make_report("text")},
        excluded_nodes={},
        onnx_digests={"text": digest("text")},
        gate=engine_gate(towers=("text",), min_fp8_gemms=4),
    )

    assert verdict.passed
    assert verdict.brief == "4 of 4 linear in FP8; attention text 2/2 fused in FP8"
    assert "vision" not in all_text(verdict)


def in_fp4(tower: str, *, layers: int = 4, **changes: Any) -> EngineReport:
    """Return an engine of which the first linear layers run in FP4, and none in FP8."""
    report = make_report(tower, fp8_gemm_nodes=0, **changes)
    linear = [node.node for node in report.nodes if node.op == "linear"][:layers]
    nodes = tuple(
        replace(node, precision="fp4" if node.node in linear else "half") for node in report.nodes
    )
    return replace(report, nodes=nodes)


def test_linear_layers_in_fp4_are_counted_and_said() -> None:
    verdict = judge(vision=in_fp4("vision"), text=in_fp4("text"), min_gemms={"fp4": 8})

    assert verdict.passed
    assert verdict.brief.startswith("8 of 8 linear in FP4; attention ")
    assert ": 8 of 8 linear layers in FP4; attention" in verdict.headline


@pytest.mark.parametrize("min_gemms", [{"fp4": 8}, {"fp4": 7, "int8": 1}, {"fp8": 1}])
def test_an_engine_in_another_format_than_declared_is_red(min_gemms: dict[str, int]) -> None:
    """FP4 declared and FP8 built, and the other way round: none counts as another."""
    if "fp8" in min_gemms:
        verdict = judge(vision=in_fp4("vision"), text=in_fp4("text"), min_gemms=min_gemms)
        assert verdict.code == "engine.too-few-fp8"
        return
    verdict = judge(min_gemms=min_gemms)

    assert verdict.code == "engine.too-few-fp4"
    assert verdict.headline == (
        f"engine: 0 of 8 linear layers multiply FP4 by FP4, min_gemms.fp4 is {min_gemms['fp4']} "
        f"({FILE}:20)"
    )
    assert verdict.cause.startswith("these layers have no kernel that multiplies FP4 by FP4")


def test_one_layer_too_few_is_named() -> None:
    verdict = judge(vision=in_fp4("vision"), text=in_fp4("text", layers=3), min_gemms={"fp4": 8})

    assert verdict.code == "engine.too-few-fp4"
    assert any("half" in line for line in verdict.evidence)
    assert judge(
        vision=in_fp4("vision"), text=in_fp4("text", layers=3), min_gemms={"fp4": 7}
    ).passed


# -- engines that are not what was approved -------------------------------------------------------


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_plan_of_an_older_onnx_file_is_incomparable(tower: str) -> None:
    old = make_report(tower, onnx_sha256=digest("older"), nodes=(), attentions=())

    verdict = judge(**{tower: old}, min_fp8_gemms=8)  # type: ignore[arg-type]

    assert verdict.status is Status.INCOMPARABLE
    assert verdict.headline == (
        f"engine: the plan of the {tower} tower was built from another ONNX file: sha256 "
        f"{digest('older')[:12]}, approved {digest(tower)[:12]} ({FILE}:10)"
    )
    assert verdict.next_step == "build it again from the approved file"


def test_plan_without_an_approved_file_is_incomparable() -> None:
    verdict = judge(digests={"vision": digest("vision")}, min_fp8_gemms=8)

    assert verdict.status is Status.INCOMPARABLE
    assert verdict.headline == (
        "engine: the plan of the text tower was built from another ONNX file: sha256 "
        f"{digest('text')[:12]}, approved  ({FILE}:10)"
    )


@pytest.mark.parametrize(
    ("built", "fp16", "words"),
    [
        (("vision",), ("vision", "text"), "no engine of the text tower"),
        ((), ("vision", "text"), "no engine of the vision and text tower"),
        (("vision", "text"), ("text",), "no FP16 engine of the vision tower"),
        ((), (), "no engine of the vision and text tower"),
    ],
)
def test_tower_without_an_engine_fails(
    built: tuple[str, ...], fp16: tuple[str, ...], words: str
) -> None:
    verdict = judge_engine(
        fp16={tower: make_fp16(tower) for tower in fp16},
        quantized={tower: make_report(tower) for tower in built},
        excluded_nodes={},
        onnx_digests={"vision": digest("vision"), "text": digest("text")},
        gate=engine_gate(min_fp8_gemms=1),
    )

    assert verdict.status is Status.FAIL
    assert verdict.headline == f"engine: {words} ({FILE}:10)"


# -- linear layers --------------------------------------------------------------------------------


def test_too_few_fp8_gemms_name_those_that_are_none() -> None:
    vision = make_report("vision", nodes=make_nodes("vision", ("fp8", "half", None, "int8")))

    verdict = judge(vision=vision, min_fp8_gemms=8)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"engine: 5 of 8 linear layers multiply FP8 by FP8, min_fp8_gemms is 8 ({FILE}:11)"
    )
    assert verdict.brief == "5 of 8 linear layers in FP8, min_fp8_gemms 8"
    assert verdict.evidence == (
        "/vision_model/layers.1/mlp/fc1/MatMul: half",
        "/vision_model/layers.2/mlp/fc1/MatMul: in no kernel of its own",
        "/vision_model/layers.3/mlp/fc1/MatMul: int8",
    )
    assert verdict.cause == "layers without Q/DQ on both operands run in half precision"
    assert verdict.next_step.startswith("look at the export gate")
    assert verdict.figures["vision_fp8_gemm_nodes"] == 1


def test_least_count_is_of_all_towers_together() -> None:
    text = make_report("text", nodes=make_nodes("text", ("half",) * 4))

    assert judge(text=text, min_fp8_gemms=4).passed
    assert not judge(text=text, min_fp8_gemms=5).passed
    assert not judge(text=text, min_fp8_gemms=4, towers=("text",)).passed


def test_convolutions_are_no_linear_layers() -> None:
    vision = make_report(
        "vision", nodes=(*make_nodes("vision", ("fp8",)), make_node(PATCHES, "half", op="conv"))
    )

    verdict = judge(vision=vision, min_fp8_gemms=6)

    assert "5 of 5 linear layers" in verdict.headline
    assert verdict.evidence == ()


def test_without_a_least_count_any_passes() -> None:
    half = make_report("vision", nodes=make_nodes("vision", ("half",) * 4))

    verdict = judge(vision=half, max_plan_ratio=Fraction(1), attention="fused")

    assert verdict.passed
    assert verdict.gate == "engine"


# -- excluded layers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "bits"), [("fp8", 8), ("int8", 8), ("fp4", 4)])
def test_excluded_layer_in_few_bits_fails(precision: Precision, bits: int) -> None:
    conv = make_node(PATCHES, precision, op="conv")
    vision = make_report("vision", nodes=(*make_nodes("vision", ("fp8",) * 4), conv))

    verdict = judge(vision=vision, excluded={"vision": (PATCHES,)}, min_fp8_gemms=8)

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"engine: 1 excluded layer of the vision engine run in {bits} bits: {PATCHES} ({FILE}:10)"
    )
    assert "although the suite excludes them" in verdict.cause
    assert verdict.next_step == "look at the export gate"


@pytest.mark.parametrize("precision", ["half", "bf16", "float", "other", None])
def test_excluded_layer_in_another_precision_passes(precision: Precision | None) -> None:
    conv = make_node(PATCHES, precision, op="conv")
    vision = make_report("vision", nodes=(*make_nodes("vision", ("fp8",) * 4), conv))

    assert judge(vision=vision, excluded={"vision": (PATCHES,)}, min_fp8_gemms=8).passed


def test_layer_that_is_excluded_in_the_other_tower_only_may_be_in_eight_bits() -> None:
    name = make_report("vision").nodes[0].node

    assert judge(excluded={"text": (name,)}).passed
    assert not judge(excluded={"vision": (name,)}).passed


# -- attention ------------------------------------------------------------------------------------


def test_attention_that_fell_apart_in_one_block_is_named_with_its_reason() -> None:
    reason = "no Q/DQ pair in the ONNX graph on softmax"
    vision = make_report(
        "vision", attentions=(make_attention(0), make_attention(1, "not-fused", reason=reason))
    )

    verdict = judge(vision=vision, attention="fused-fp8")

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        "engine: 1 of 2 attention blocks of the vision engine are not fused-fp8: block 1 is "
        f"not-fused, {reason} ({FILE}:12)"
    )
    assert verdict.brief == "1 of 2 vision attention blocks not fused-fp8"
    assert verdict.cause == reason
    assert "allow: [softmax]" in verdict.next_step


@pytest.mark.parametrize(
    ("reason", "mends"),
    [("12 tokens are too few", False), ("a single head", False), ("q is none", True)],
)
def test_only_what_a_recipe_can_change_asks_for_one(reason: str, mends: bool) -> None:
    text = make_report("text", attentions=(make_attention(0, "not-fused", reason=reason),))

    next_step = judge(text=text, attention="fused").next_step

    assert ("use recipe: fp8-attention" in next_step) is mends
    assert next_step.startswith("no recipe changes that") is not mends


def test_sizes_have_their_figures_without_a_limit_too() -> None:
    fp16 = {"vision": make_fp16("vision", activation_bytes=0), "text": make_fp16("text")}

    for verdict in (judge(fp16=fp16), judge(fp16=fp16, min_fp8_gemms=99)):
        assert {
            name: verdict.figures[f"text_{name}"] for name in ("plan_ratio", "weights_ratio")
        } == {
            "plan_ratio": 0.6,
            "weights_ratio": 0.5,
        }
        assert verdict.figures["text_plan_bytes"] == 60 * MIB
        assert verdict.figures["text_weights_bytes"] == 50 * MIB
        assert verdict.figures["text_activation_bytes"] == 10 * MIB
        assert verdict.figures["text_fp8_gemm_nodes"] == 4
        assert verdict.figures["vision_activation_ratio"] == float("inf")


def test_further_blocks_are_listed_each_with_its_own_reason() -> None:
    text = make_report(
        "text",
        attentions=(
            make_attention(0, "not-fused", block=3, reason="12 tokens are too few"),
            make_attention(1, "fused-half", block=4, reason="q is none"),
            make_attention(2, "fused-half", block=None, reason="k is none"),
        ),
    )

    verdict = judge(text=text, attention="fused-fp8")

    assert verdict.cause == "12 tokens are too few"
    assert verdict.next_step.startswith("no recipe changes that: leave attention out")
    assert "block 3 is not-fused, 12 tokens are too few" in verdict.headline
    assert verdict.evidence[:2] == (
        "block 4: fused-half, q is none",
        "block 2: fused-half, k is none",
    )


def test_attention_that_the_suite_leaves_out_may_run_in_half() -> None:
    """The pooling head of SigLIP: no quantizer gets into nn.MultiheadAttention."""
    head = "/vision_model/head/attention/Softmax"
    vision = make_report(
        "vision",
        attentions=(make_attention(0), make_attention(1, "fused-half", block=None, softmax=head)),
    )
    left_out = {"vision": (head,)}

    red = judge(vision=vision, attention="fused-fp8")
    assert red.code == "engine.attention-not-fused"
    assert "as the coverage gate says, belongs into exclude" in red.next_step
    assert judge(vision=vision, attention="fused-fp8", excluded=left_out).passed  # type: ignore[arg-type]
    nothing = make_report("vision", attentions=vision.attentions[1:])
    assert judge(vision=nothing, attention="fused-fp8", excluded=left_out).code == (  # type: ignore[arg-type]
        "engine.no-attention"
    )


def test_half_precision_attention_is_fused_where_only_that_is_asked() -> None:
    vision = make_report("vision", attentions=(make_attention(0, "fused-half"), make_attention(1)))

    assert judge(vision=vision, attention="fused").passed
    assert "engine: vision attention 1/2 fused in FP8" in (
        judge(vision=vision, attention="fused").evidence
    )
    assert not judge(vision=vision, attention="fused-fp8").passed
    assert "vision 1/2 fused in FP8" in judge(vision=vision, attention="fused").headline


def test_attention_is_not_judged_where_nothing_is_asked() -> None:
    apart = make_report("text", attentions=(make_attention(0, "not-fused"),))

    assert judge(text=apart, min_fp8_gemms=8).passed
    assert not judge(text=apart, attention="fused").passed


def test_block_without_a_number_is_counted() -> None:
    apart = make_report("text", attentions=(make_attention(5, "not-fused", block=None),))

    assert "block 5 is not-fused" in judge(text=apart, attention="fused").headline


def test_engine_where_no_attention_was_found_fails() -> None:
    verdict = judge(text=make_report("text", attentions=()), attention="fused")

    assert verdict.status is Status.FAIL
    assert verdict.headline == (
        f"engine: no attention block was found in the text engine ({FILE}:12)"
    )


# -- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("after", "passes"), [(599, True), (600, True), (601, False)])
def test_ratio_at_its_limit_passes_and_one_byte_over_fails(
    tower: str, name: str, after: int, passes: bool
) -> None:
    fp16 = {
        "vision": make_fp16("vision", **{f"{name}_bytes": 1000}),
        "text": make_fp16("text", **{f"{name}_bytes": 1000}),
    }
    small = {f"{name}_bytes": 1}
    reports = {"vision": make_report("vision", **small), "text": make_report("text", **small)}
    reports[tower] = replace(reports[tower], **{f"{name}_bytes": after})  # type: ignore[arg-type]

    verdict = judge(**reports, fp16=fp16, **{f"max_{name}_ratio": Fraction(3, 5)})  # type: ignore[arg-type]

    assert verdict.passed is passes
    if not passes:
        assert verdict.headline == (
            f"engine: {tower}: {NAMES[name]} 0.001 MiB vs FP16 0.001 MiB: ratio 0.601, over "
            f"max_{name}_ratio 0.6 ({FILE}:{LINES[f'max_{name}_ratio']})"
        )
        assert verdict.brief == (f"{tower} {NAMES[name]} 0.001 MiB vs 0.001 MiB, 0.601 over 0.6")
        assert verdict.evidence[0] == f"1 byte less of {NAMES[name]} would be within " + (
            f"max_{name}_ratio"
        )
        assert ("full-precision ones" in verdict.cause) is (name == "activation")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("over", "passes"), [(-1, True), (0, True), (1, False)])
def test_bytes_at_their_limit_pass_and_one_over_fails(name: str, over: int, passes: bool) -> None:
    text = make_report("text", **{f"{name}_bytes": 80 * MIB + over})

    verdict = judge(text=text, **{f"max_{name}_bytes": 80 * MIB})  # type: ignore[arg-type]

    assert verdict.passed is passes
    if not passes:
        assert verdict.headline == (
            f"engine: text: {NAMES[name]} 80.000001 MiB ({80 * MIB + 1} bytes), over "
            f"max_{name} 80 MiB ({FILE}:{LINES[f'max_{name}']})"
        )
        assert verdict.brief == f"text {NAMES[name]} 80.000001 MiB over 80 MiB"


@SAME_EXAMPLES
@given(
    before=st.integers(1000, 10**13),
    limit=st.fractions(Fraction(1, 1000), 1000, max_denominator=10**9),
    name=st.sampled_from(SIZES),
    over=st.sampled_from([0, 1]),
)
def test_ratio_is_compared_exactly(before: int, limit: Fraction, name: str, over: int) -> None:
    after = int(limit * before) + over

    verdict = judge_engine(
        fp16={"vision": make_fp16("vision", **{f"{name}_bytes": before})},
        quantized={"vision": make_report("vision", **{f"{name}_bytes": after})},
        excluded_nodes={},
        onnx_digests={"vision": digest("vision")},
        gate=engine_gate(towers=("vision",), **{f"max_{name}_ratio": limit}),
    )

    assert verdict.passed is (not over)
    assert verdict.figures[f"vision_{name}_bytes"] == after


def test_fp16_engine_of_no_bytes_gives_no_ratio_to_pass() -> None:
    fp16 = {"vision": make_fp16("vision", weights_bytes=0), "text": make_fp16("text")}

    verdict = judge(fp16=fp16, max_weights_ratio=Fraction(1000))

    assert verdict.status is Status.FAIL
    assert "weights of FP16 is 0 bytes, which is no size" in verdict.headline


# -- engines of one make --------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["fp16", "quantized"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "sm120"}, "tensorrt_rtx 1.7.1.116 for sm120"),
        ({"library_version": "1.6.0"}, "tensorrt_rtx 1.6.0 for sm89"),
        ({"library": "tensorrt"}, "tensorrt 1.7.1.116 for sm89"),
    ],
)
def test_engines_of_several_makes_are_incomparable(
    changes: dict[str, Any], words: str, side: str
) -> None:
    other = {"fp16": make_fp16, "quantized": make_report}[side]("text", **changes)
    fp16 = {"vision": make_fp16("vision"), "text": make_fp16("text")}

    verdict = (
        judge(fp16=fp16 | {"text": other}, max_plan_ratio=Fraction(1))
        if side == "fp16"
        else judge(fp16=fp16, text=other, max_plan_ratio=Fraction(1))
    )

    assert verdict.status is Status.INCOMPARABLE
    assert words in verdict.headline
    assert "tensorrt_rtx 1.7.1.116 for sm89 (" in verdict.headline
    assert f"{words} ({'FP16 ' if side == 'fp16' else ''}text)" in verdict.headline
    assert f"({FILE}:10)" in verdict.headline
    assert verdict.next_step == "build them again in one run"


# -- outputs on a device --------------------------------------------------------------------------


def make_outputs(tower: str, **changes: Any) -> EngineOutputs:
    values: dict[str, Any] = {
        "tower": tower,
        "samples": 64,
        "nonfinite": 0,
        "sqnr_engine_db": 20.5,
        "sqnr_torch_db": 20.0,
        "sqnr_onnx_db": 20.2,
        **changes,
    }
    return EngineOutputs(**values)


def judge_executed(**changes: Any) -> Verdict:
    """Judge engines of which the text tower's outputs on a device are as given."""
    return judge_engine(
        fp16={"vision": make_fp16("vision"), "text": make_fp16("text")},
        quantized={"vision": make_report("vision"), "text": make_report("text")},
        excluded_nodes={},
        onnx_digests={"vision": digest("vision"), "text": digest("text")},
        gate=engine_gate(min_fp8_gemms=8),
        outputs={"vision": make_outputs("vision"), "text": make_outputs("text", **changes)},
    )


def test_outputs_that_agree_pass_and_are_evidence() -> None:
    verdict = judge_executed()

    assert verdict.passed
    assert (
        "engine: text SQNR against FP16 is 20.5 dB in the engine and 20.2 dB in ONNX Runtime on "
        f"64 samples, within 1 dB apart ({FILE}:19)"
    ) in verdict.evidence
    assert "not executed" not in all_text(verdict)
    assert verdict.figures["text_sqnr_engine_db"] == 20.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonfinite": 3}, "gives NaN or Inf on 3 of 64 samples"),
        ({"samples": 0}, "was run on no samples"),
        ({"sqnr_engine_db": 21.01}, "21.0 dB in the engine and 20.0 dB in PyTorch"),
        ({"sqnr_engine_db": 18.9}, "18.9 dB in the engine and 20.0 dB in PyTorch"),
        ({"sqnr_onnx_db": 30.0}, "20.5 dB in the engine and 30.0 dB in ONNX Runtime"),
        ({"sqnr_engine_db": 70.0}, "70.0 dB in the engine and 20.0 dB in PyTorch"),
        ({"sqnr_engine_db": float("-inf"), "sqnr_torch_db": float("-inf")}, "-inf dB in the eng"),
        ({"sqnr_engine_db": float("nan")}, "nan dB in the engine"),
    ],
)
def test_outputs_that_differ_fail(changes: dict[str, Any], words: str) -> None:
    verdict = judge_executed(**changes)

    assert verdict.status is Status.FAIL
    assert words in verdict.headline
    assert f"({FILE}:19)" in verdict.headline
    assert verdict.gate == "engine"


def test_outputs_that_are_no_numbers_say_what_to_look_at() -> None:
    verdict = judge_executed(nonfinite=3)

    assert verdict.cause.startswith("a value that FP16 cannot hold")
    assert verdict.next_step.startswith("look at the parity gate")


@pytest.mark.parametrize(
    ("engine_db", "cause"),
    [
        (25.0, "the engine is quantized less than the model"),
        (15.0, "the engine adds noise that the model does not have"),
    ],
)
def test_outputs_that_differ_say_on_which_side(engine_db: float, cause: str) -> None:
    verdict = judge_executed(sqnr_engine_db=engine_db)

    assert verdict.headline == (
        f"engine: text SQNR against FP16 is {engine_db} dB in the engine and 20.0 dB in PyTorch on "
        f"64 samples, over 1 dB apart ({FILE}:19)"
    )
    assert verdict.brief == f"text SQNR {engine_db} dB, PyTorch 20.0 dB"
    assert verdict.cause == cause
    assert verdict.next_step == "compare the precision of its layers with the recipe"
    assert verdict.figures["text_sqnr_engine_db"] == engine_db


def test_outputs_that_agree_need_no_next_step_and_infinity_is_no_figure() -> None:
    same = {"sqnr_engine_db": float("inf"), "sqnr_torch_db": 51.0, "sqnr_onnx_db": None}

    verdict = judge_executed(**same)

    assert verdict.passed
    assert (verdict.cause, verdict.next_step) == ("", "")
    assert "text_sqnr_engine_db" not in verdict.figures
    assert "vision_sqnr_engine_db" in verdict.figures


@pytest.mark.parametrize(("other_db", "green"), [(50.0, False), (50.1, True)])
def test_above_fifty_db_nothing_is_quantized(other_db: float, green: bool) -> None:
    changes = {"sqnr_engine_db": 80.0, "sqnr_torch_db": other_db, "sqnr_onnx_db": None}

    assert judge_executed(**changes).passed is green


@pytest.mark.parametrize(
    "changes",
    [
        {"sqnr_engine_db": 21.0, "sqnr_onnx_db": 20.0},
        {"sqnr_onnx_db": None},
        {"sqnr_engine_db": 55.0, "sqnr_torch_db": float("inf"), "sqnr_onnx_db": 130.0},
    ],
)
def test_noise_within_the_limit_or_of_nothing_quantized_passes(changes: dict[str, Any]) -> None:
    assert judge_executed(**changes).passed


def test_a_tower_that_was_not_executed_among_others_fails() -> None:
    verdict = judge_engine(
        fp16={"vision": make_fp16("vision"), "text": make_fp16("text")},
        quantized={"vision": make_report("vision"), "text": make_report("text")},
        excluded_nodes={},
        onnx_digests={"vision": digest("vision"), "text": digest("text")},
        gate=engine_gate(min_fp8_gemms=8),
        outputs={"vision": make_outputs("vision")},
    )

    assert verdict.status is Status.FAIL
    assert "the text engine was run on no samples" in verdict.headline


# -- several at once ------------------------------------------------------------------------------


def test_all_that_is_wrong_is_shown() -> None:
    vision = make_report("vision", nodes=make_nodes("vision", ("half",) * 4))
    text = make_report("text", attentions=(make_attention(0, "not-fused"),), plan_bytes=99 * MIB)

    verdict = judge(
        vision=vision,
        text=text,
        min_fp8_gemms=8,
        attention="fused",
        max_plan_ratio=Fraction(7, 10),
    )

    assert "4 of 8 linear layers" in verdict.headline
    assert len(verdict.evidence) == 4 + 3, "the size says how many bytes it is over"
    assert any(
        "text attention" in line or "of the text engine" in line for line in verdict.evidence
    )
    assert any("text: plan 99.0 MiB vs FP16 100.0 MiB" in line for line in verdict.evidence)


@SAME_EXAMPLES
@given(
    precisions=st.lists(
        st.sampled_from(["fp8", "int8", "half", "float", None]), min_size=1, max_size=30
    ),
    least=st.integers(1, 40),
)
def test_count_of_fp8_decides_and_every_other_layer_is_accounted_for(
    precisions: list[Precision | None], least: int
) -> None:
    vision = make_report("vision", nodes=make_nodes("vision", precisions))
    narrow = precisions.count("fp8")

    verdict = judge(vision=vision, towers=("vision",), min_fp8_gemms=least)

    assert verdict.passed is (narrow >= least)
    assert f"{narrow} of {len(precisions)} linear layers" in verdict.headline
    if not verdict.passed:
        others = len(precisions) - narrow
        assert len(verdict.evidence) == (others if others <= 8 else 9)


@SAME_EXAMPLES
@given(
    states=st.lists(
        st.sampled_from(["fused-fp8", "fused-half", "not-fused"]), min_size=1, max_size=12
    ),
    asked=st.sampled_from(["fused-fp8", "fused"]),
)
def test_every_block_must_be_fused(
    states: list[AttentionState], asked: Literal["fused-fp8", "fused"]
) -> None:
    report = make_report("text", attentions=tuple(map(make_attention, range(len(states)), states)))
    bad = [s for s in states if s != "fused-fp8" and (asked == "fused-fp8" or s == "not-fused")]

    verdict = judge(text=report, attention=asked)

    assert verdict.passed is (not bad)
    if bad:
        assert f"{len(bad)} of {len(states)} attention blocks of the text engine" in (
            verdict.headline
        )


def test_an_engine_without_fp16s_or_without_memory_says_what_is_known() -> None:
    alone = judge(vision=make_report("vision", given="v.json"), fp16={"text": make_fp16("text")})
    untold = judge(vision=make_report("vision", has_memory=False))

    assert alone.passed
    assert f"vision plan {60 * MIB} bytes, no FP16 engine beside it" in all_text(alone)
    assert "vision_plan_ratio" not in alone.figures
    assert untold.passed
    assert "vision plan 0.60x" in all_text(untold)
    assert untold.figures["vision_plan_ratio"] == 0.6
    assert "vision_weights_bytes" not in untold.figures
    assert "text_weights_bytes" in untold.figures
