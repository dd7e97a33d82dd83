"""The parser of what the builder prints: recorded texts (TensorRT for RTX 1.7.1) and damage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.formats.table import narrow_precisions
from pytest_quantgate.runtimes.engine_layers import (
    EngineAttention,
    EngineError,
    EngineLayer,
    EngineReport,
    OnnxAttention,
    OnnxGraph,
    classify_layers,
    find_attentions,
    find_node_precisions,
    parse_layers,
    parse_memory,
    read_block,
    summarize_engine,
)

DATA = Path(__file__).parent / "data"
ATTENTION = "/encoder/layers.0/self_attn"
LINEAR = tuple(f"{ATTENTION}/{name}_proj/MatMul" for name in ("q", "k", "v", "out"))
RECORDED = (
    "engine_fp8_sm89",
    "engine_fp8_sm120",
    "engine_fp16_sm89",
    "engine_fp8_weights_sm89",
    "engine_fp8_short_sm89",
)


def read(name: str) -> str:
    return (DATA / f"{name}.txt").read_bytes().decode()


def make_graph(*, q: str = "fp8", softmax: str = "fp8") -> OnnxGraph:
    places = [f"{ATTENTION}/{place}" for place in ("q_bmm", "k_bmm", "v_bmm", "softmax")]
    places += [f"{ATTENTION}/{place}_proj/input" for place in ("q", "k", "v", "out")]
    weights = [f"{ATTENTION}/{name}_proj.weight" for name in ("q", "k", "v", "out")]
    pairs = [f"{place}/{op}" for place in places for op in ("QuantizeLinear", "DequantizeLinear")]
    return OnnxGraph(
        linear=LINEAR,
        conv=(),
        qdq=(*pairs, *(f"{weight}/DequantizeLinear" for weight in weights)),
        attentions=(
            OnnxAttention(
                index=0,
                block=0,
                scores=f"{ATTENTION}/MatMul",
                softmax=f"{ATTENTION}/Softmax",
                values=f"{ATTENTION}/MatMul_1",
                q=q,
                k="fp8",
                v="fp8",
                probabilities=softmax,
            ),
        ),
    )


def summarize(name: str, *, graph: OnnxGraph | None = None) -> EngineReport:
    return summarize_engine(
        target="sm89",
        library="tensorrt_rtx",
        library_version="1.7.1.116",
        onnx_sha256="a",
        plan_sha256="b",
        plan_bytes=3,
        build_s=0.1,
        listing=read(name),
        log=read("engine_fp8_sm89_log").splitlines(),
        graph=graph or make_graph(),
    )


def make_layer(
    name: str = "kernel",
    type: str = "kgen",
    *,
    inputs: tuple[str, ...] = (),
    constants: tuple[str, ...] = (),
    outputs: tuple[str, ...] = ("Half",),
    nodes: tuple[str, ...] = (),
    shape: tuple[int, ...] = (1, 2, 40, 40),
    tactic: str = "",
) -> EngineLayer:
    return EngineLayer(
        name=name,
        type=type,
        tactic=tactic,
        input_dtypes=inputs,
        input_shapes=(shape,) * len(inputs),
        constant_dtypes=constants,
        output_dtypes=outputs,
        output_shapes=(shape,) * len(outputs),
        onnx_nodes=nodes,
    )


def test_a_recorded_fp8_engine() -> None:
    report = summarize("engine_fp8_sm89")
    assert (report.gemms, report.fp8_gemms) == (2, 2)
    assert (report.gemm_nodes, report.fp8_gemm_nodes) == (4, 4)
    assert report.attentions == (
        EngineAttention(
            index=0,
            block=0,
            softmax=f"{ATTENTION}/Softmax",
            state="fused-fp8",
            layers=report.attentions[0].layers,
            reason="",
        ),
    )
    assert report.attentions[0].layers[0].startswith("_gemm_mha_v2")
    assert report.weights_bytes == 17286
    assert report.activation_bytes == 8202240
    assert report.scratch_bytes == 8202240
    merged = next(layer for layer in report.layers if layer.type == "gemm")
    assert set(LINEAR[:3]) <= set(merged.onnx_nodes), "the names are parted by an invisible 1F"
    assert merged.input_dtypes == ("FP8",)
    assert merged.input_shapes == ((1, 40, 64),)
    assert merged.constant_dtypes == ("FP8", "Float", "Float")
    assert merged.output_dtypes == ("FP8",)
    assert merged.tactic == "__myelin_CASK_STUB"
    assert merged.precision == "fp8"


def test_a_recorded_nvfp4_engine_is_not_taken_for_fp8() -> None:
    """The scales of its blocks are FP8 tensors, on either side of the product."""
    graph = OnnxGraph(
        linear=("node_of_y",),
        conv=(),
        qdq=("node_of_sf", "node_of_wf", "node_of_xsf", "node_of_xf"),
        attentions=(),
    )
    report = summarize("engine_nvfp4_sm120", graph=graph)

    assert (report.gemms, report.fp8_gemms, report.fp8_gemm_nodes) == (1, 0, 0)
    assert [(node.node, node.precision) for node in report.nodes] == [("node_of_y", "fp4")]
    gemm = next(layer for layer in report.layers if layer.kind == "gemm")
    assert gemm.input_dtypes == ("FP4E2M1", "FP8")
    assert from_json(EngineReport, to_json(report)) == report


@pytest.mark.parametrize("name", ["int4", "mxfp8"])
def test_recorded_engines_that_compute_in_half_are_not_taken_for_narrow_ones(name: str) -> None:
    """INT4 weights, and MXFP8 on both sides: TensorRT for RTX 1.7 builds it, in half precision."""
    graph = OnnxGraph(linear=("node_of_y",), conv=(), qdq=("dq", "xq", "xd", "wd"), attentions=())
    report = summarize(f"engine_{name}_sm120", graph=graph)

    assert [(node.node, node.precision) for node in report.nodes] == [("node_of_y", "half")]
    assert {p: report.count_gemm_nodes(p) for p in narrow_precisions()} == dict.fromkeys(
        narrow_precisions(), 0
    )


@pytest.mark.parametrize(
    ("inputs", "constants", "precision"),
    [
        (("FP8",), ("FP8", "Float"), "fp8"),
        (("FP4E2M1", "FP8"), ("FP4E2M1", "FP8"), "fp4"),
        (("Int8",), ("Int8", "Float"), "int8"),
        (("FP8", "FP8UE8M0"), ("FP8", "FP8UE8M0"), "mixed"),  # MXFP8
        (("FP4E2M1", "FP8UE8M0"), ("FP4E2M1", "FP8UE8M0"), "mixed"),  # MXFP4
        (("FP8", "FP8"), ("Int4", "Half"), "mixed"),  # W4A8
        (("FP8",), ("FP4E2M1", "FP8"), "mixed"),
        (("Half",), ("FP4E2M1", "FP8"), "half"),
        (("Half",), ("Int4", "Half"), "half"),
    ],
)
def test_no_narrow_type_is_counted_as_another(
    inputs: tuple[str, ...], constants: tuple[str, ...], precision: str
) -> None:
    layer = make_layer("fc", "gemm", inputs=inputs, constants=constants, nodes=LINEAR[:1])
    (found,) = classify_layers([layer], graph=make_graph())

    assert (found.kind, found.precision) == ("gemm", precision)


def test_weights_in_int4_are_computed_in_half() -> None:
    layer = make_layer("fc", "gemm", inputs=("Half",), constants=("Int4", "Half"), nodes=LINEAR[:1])
    (found,) = classify_layers([layer], graph=make_graph())

    assert (found.kind, found.precision) == ("gemm", "half")


def test_another_target_does_not_merge_q_k_and_v() -> None:
    report = summarize("engine_fp8_sm120")
    assert (report.gemms, report.fp8_gemms, report.fp8_gemm_nodes) == (4, 4, 4)


def test_a_recorded_fp16_engine() -> None:
    report = summarize("engine_fp16_sm89", graph=make_graph(q="none"))
    assert (report.fp8_gemms, report.fp8_gemm_nodes, report.gemm_nodes) == (0, 0, 4)
    assert {node.precision for node in report.nodes} == {"half"}
    assert report.attentions[0].state == "fused-half"
    assert report.attentions[0].reason == "no Q/DQ pair in the ONNX graph on q"
    assert report.qdq_layers == ()
    assert any(layer.type == "runtime_fusion" and layer.tactic == "" for layer in report.layers)


def test_a_recorded_engine_with_fp8_weights_alone() -> None:
    report = summarize("engine_fp8_weights_sm89")
    assert report.gemms > 0
    assert (report.fp8_gemms, report.fp8_gemm_nodes) == (0, 0)
    assert report.qdq_layers
    assert any(layer.input_dtypes == () for layer in report.layers), "it reads weights only"


def test_a_recorded_engine_whose_attention_fell_apart() -> None:
    report = summarize("engine_fp8_short_sm89")
    attention = report.attentions[0]
    assert attention.state == "not-fused"
    assert "17 tokens are too few" in attention.reason
    assert len(attention.layers) == 7, "it pads the odd sequence besides"
    assert report.fp8_gemm_nodes == 4
    kinds = [layer.kind for layer in report.layers if layer.precision == "fp8"]
    assert kinds.count("matmul") == 2, "the matmuls of attention are not counted as GEMMs"


@pytest.mark.parametrize("name", RECORDED)
def test_a_report_survives_json(name: str) -> None:
    report = summarize(name)
    assert from_json(EngineReport, to_json(report)) == report


def test_the_other_spelling_of_types_and_an_absent_constants_part_are_read() -> None:
    line = (
        "Name: reformat, LayerType: Reformat, Inputs: [ { Name: x, Location: Device, "
        "Dimensions: [n,3], Format/Datatype: Float }], Outputs: [], Metadata: "
        "[ONNX Layer: a]\x1e[ONNX Layer: b]"
    )
    (layer,) = parse_layers(f"Layers:\n{line}")
    assert layer.input_dtypes == ("Float",)
    assert layer.input_shapes == ((-1, 3),)
    assert layer.output_dtypes == ()
    assert layer.onnx_nodes == ("a", "b")
    assert layer.tactic == ""


def test_a_name_that_looks_like_the_listing_is_still_a_name() -> None:
    name = "we]ird, LayerType: x [ { Name: q}, Metadata: "
    line = (
        f"Name: {name}, LayerType: gemm, Inputs: [], Outputs: [ {{ Name: y, Dimensions: [1], "
        f"Strides: [1], Datatype: Half, Format: f }}], TacticName: t, StreamId: 0, "
        f"Metadata: [ONNX Layer: we]ird]"
    )
    (layer,) = parse_layers(f"Layers:\n{line}")
    assert (layer.name, layer.type, layer.tactic) == (name, "gemm", "t")
    assert layer.onnx_nodes == ("we]ird",)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("", "does not start with 'Layers:'"),
        ("Something else\n", "does not start with 'Layers:'"),
        ("Layers:\n\nI/O Tensors:\n", "names no layer"),
        ("Layers:", "names no layer"),
        ("Layers:\nLayer(CASK): a, Tactic: 0x1, x -> y\n", "line 2 .* not in a known form"),
        (
            "Layers:\nName: a, LayerType: gemm, Inputs: [ { x: FP8 } ], Outputs: []\n",
            "line 2 .* its inputs are not in a known form",
        ),
    ],
)
def test_an_unknown_listing_is_refused(listing: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parse_layers(listing)


def test_the_last_of_repeated_memory_lines_counts_and_scratch_may_be_absent() -> None:
    log = ["Total Weights Memory: 1 bytes", "Total Activation Memory: 2", "noise"]
    memory = parse_memory([*log, "Total Weights Memory: 3 bytes"])
    assert (memory.weights_bytes, memory.activation_bytes, memory.scratch_bytes) == (3, 2, 0)
    assert parse_memory([*log, "Total Scratch Memory: 7 bytes"]).scratch_bytes == 7


@pytest.mark.parametrize("what", ["Weights", "Activation"])
def test_missing_memory_lines_are_named(what: str) -> None:
    log = [f"Total {other} Memory: 1 bytes" for other in ("Weights", "Activation") if other != what]
    with pytest.raises(EngineError, match=f"no line 'Total {what} Memory'"):
        parse_memory(log)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("/vision_model/encoder/layers.11/self_attn/Softmax", 11),
        ("/transformer/resblocks.3/attn/MatMul_1", 3),
        ("visual.transformer.resblocks.7.attn", 7),
        ("/visual_projection/MatMul", None),
        ("Softmax_12", None),
        ("/layers.0x/MatMul", None),
    ],
)
def test_block_numbers_are_read_from_names(name: str, block: int | None) -> None:
    assert read_block(name) == block


@pytest.mark.parametrize(
    ("layer", "kind", "precision"),
    [
        (make_layer("g", "gemm", inputs=("FP8",), constants=("FP8", "Float")), "matmul", "fp8"),
        (
            make_layer("g", "gemm", inputs=("FP8",), constants=("FP8",), nodes=(LINEAR[0],)),
            "gemm",
            "fp8",
        ),
        (
            make_layer("g", "gemm", inputs=("Int8",), constants=("Int8",), nodes=(LINEAR[0],)),
            "gemm",
            "int8",
        ),
        (
            make_layer("c", "correlation", inputs=("FP8",), constants=("FP8",), nodes=("conv",)),
            "conv",
            "fp8",
        ),
        (
            make_layer(
                "__myl_CastMulFc_myl0_1", "x", inputs=("FP8",), constants=("Half",), nodes=LINEAR
            ),
            "gemm",
            "half",
        ),
        (
            make_layer("__myl_CastMulFc_myl0_1", "x", inputs=("FP8",) * 2, nodes=LINEAR),
            "gemm",
            "half",
        ),
        (
            make_layer("__myl_ReshMulSum_myl0_1", inputs=("Float",), outputs=(), nodes=LINEAR),
            "gemm",
            "float",
        ),
        (make_layer("__myl_ReshMulSum_myl0_1", inputs=("BFloat16",), outputs=()), "other", "bf16"),
        (make_layer("__myl_MulConv_myl0_1", inputs=("Half",), nodes=("conv",)), "conv", "half"),
        (make_layer("__myl_Conc_myl0_1", inputs=("Int32",), outputs=()), "other", "other"),
        (make_layer("__myl_Conv_myl0_1", inputs=("FP4",), outputs=()), "matmul", "other"),
        (make_layer("__myl_Cast_myl0_1", inputs=("FP8",), nodes=("q",)), "qdq", "fp8"),
        (make_layer("__myl_Mul_myl0_1", inputs=("Half",), nodes=("q", LINEAR[0])), "qdq", "half"),
        (make_layer("__myl_Mul_myl0_1", inputs=("Half",), nodes=("q", "gelu")), "other", "half"),
        (make_layer(tactic="_gemm_mha_v2_0x1", inputs=("Half",)), "attention", "half"),
        (make_layer(tactic="fmha_v2", inputs=("Half",)), "attention", "half"),
        (make_layer(tactic="alphamhalf", inputs=("Half",)), "other", "half"),
    ],
)
def test_layers_are_classified(layer: EngineLayer, kind: str, precision: str) -> None:
    graph = OnnxGraph(linear=LINEAR, conv=("conv",), qdq=("q",), attentions=())
    (found,) = classify_layers([layer], graph=graph)
    assert (found.kind, found.precision) == (kind, precision)


def test_a_kernel_that_computes_all_of_attention_is_attention_whatever_its_name() -> None:
    graph = make_graph()
    nodes = tuple(f"{ATTENTION}/{name}" for name in ("MatMul", "Softmax", "MatMul_1", "Add"))
    layer = make_layer("fused", "fusion", inputs=("FP8",) * 3 + ("Half",), nodes=nodes)
    layers = classify_layers([layer], graph=graph)
    assert layers[0].kind == "attention"
    assert find_attentions(layers, graph=graph)[0].state == "fused-fp8"


@pytest.mark.parametrize(
    ("inputs", "state"),
    [
        (("FP8",), "fused-fp8"),
        (("FP8", "FP8", "FP8"), "fused-fp8"),
        (("FP8", "FP8", "FP8", "Bool"), "fused-fp8"),
        (("FP8", "FP8", "FP8", "Half"), "fused-fp8"),
        (("FP8", "Half", "Half"), "fused-half"),
        (("FP8", "FP8", "Half"), "fused-half"),
        (("Half", "Half", "Half"), "fused-half"),
        ((), "fused-half"),
    ],
)
def test_fused_attention_is_judged_by_its_inputs(inputs: tuple[str, ...], state: str) -> None:
    graph = make_graph()
    layer = make_layer(tactic="_gemm_mha_v2", inputs=inputs, nodes=(f"{ATTENTION}/Softmax",))
    (found,) = find_attentions(classify_layers([layer], graph=graph), graph=graph)
    assert found.state == state
    assert bool(found.reason) == (state != "fused-fp8")


def explain(*layers: EngineLayer, graph: OnnxGraph | None = None) -> str:
    graph = graph or make_graph()
    return find_attentions(classify_layers(layers, graph=graph), graph=graph)[0].reason


def test_why_attention_is_not_fused() -> None:
    softmax = make_layer("softmax", inputs=("Half",), nodes=(f"{ATTENTION}/Softmax",))
    assert explain() == f"no kernel of the engine names '{ATTENTION}/Softmax'"
    assert explain(softmax, graph=make_graph(q="none", softmax="none")).endswith("on q, softmax")
    assert explain(softmax, graph=make_graph(q="int8")) == "in the ONNX graph q is int8, not fp8"
    assert "31 tokens are too few" in explain(
        replace(softmax, input_shapes=((1, 2, 31, 31),), output_shapes=())
    )
    assert "single head" in explain(
        replace(softmax, input_shapes=((1, 1, 40, 40),), output_shapes=((9,),))
    )
    assert explain(softmax).endswith("but the library chose: softmax (half)")
    assert "chose: softmax" in explain(replace(softmax, input_shapes=((-1, 2, -1, -1),)))
    scores = make_layer("scores", "gemm", inputs=("FP8",) * 2, nodes=(f"{ATTENTION}/MatMul",))
    assert explain(scores).endswith("chose: scores (fp8)")


def test_a_node_that_no_kernel_computes_has_no_precision() -> None:
    graph = OnnxGraph(linear=("gone",), conv=("conv",), qdq=(), attentions=())
    layers = classify_layers(
        [
            make_layer("c", "correlation", inputs=("Half",), nodes=("conv",)),
            make_layer("later", "correlation", inputs=("Float",), nodes=("conv",)),
            make_layer("other", nodes=("gone",)),
        ],
        graph=graph,
    )
    gone, conv = find_node_precisions(layers, graph=graph)
    assert (gone.op, gone.precision, gone.layer) == ("linear", None, None)
    assert (conv.op, conv.precision, conv.layer) == ("conv", "half", "c")


PIECES = st.sampled_from(
    [
        "Name: ",
        "Layers:\n",
        ", LayerType: ",
        ", Inputs: [",
        ", Constants: [",
        ", Outputs: [",
        " { Name: x, Dimensions: [1,2]",
        ", Datatype: FP8",
        "}]",
        "]",
        ", TacticName: ",
        ", Metadata: [ONNX Layer: a]",
        "\x1f",
        "\n",
        "Total Weights Memory: ",
        "9" * 30,
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join)))
def test_any_text_is_read_or_refused(text: str) -> None:
    for listing in (text, "Layers:\n" + text):
        try:
            layers = parse_layers(listing)
        except EngineError:
            continue
        classify_layers(layers, graph=make_graph())
    try:
        parse_memory(text.splitlines())
    except EngineError:
        return


@given(
    st.sampled_from(RECORDED),
    st.integers(min_value=0),
    st.integers(min_value=0, max_value=200),
    st.text(max_size=5),
)
def test_damage_to_a_recorded_listing_is_read_or_refused(
    name: str, start: int, length: int, put: str
) -> None:
    text = read(name)
    at = start % len(text)
    damaged = text[:at] + put + text[at + length :]
    graph = make_graph()
    try:
        layers = classify_layers(parse_layers(damaged), graph=graph)
    except EngineError:
        return
    find_attentions(layers, graph=graph)
    find_node_precisions(layers, graph=graph)
