"""Real builds of tiny graphs with TensorRT for RTX: no GPU is needed for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_quantgate.errors import MissingPackage, QuantGateError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.runtimes import engine
from pytest_quantgate.runtimes.engine import InputShapes, build_engine
from pytest_quantgate.runtimes.engine_graph import describe_graph, read_onnx
from pytest_quantgate.runtimes.engine_layers import EngineError, EngineReport
from pytest_quantgate.runtimes.tensorrt_library import Library, load_library, make_logger

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

pytestmark = pytest.mark.slow

HIDDEN = 64
TOKENS = 40


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx")
    return load_library(name="tensorrt_rtx")


class GraphBuilder:
    """Writes a half-precision ONNX graph node by node; each node's output is `<name>_out`."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}
        self.random = np.random.default_rng(7)

    def half(self, name: str, values: Any) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(values, np.float16), name)
        return name

    def whole(self, name: str, values: Any) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(values, np.int64), name)
        return name

    def fp8(self, name: str, shape: tuple[int, ...]) -> str:
        count = int(np.prod(shape))
        raw = self.random.integers(0x10, 0x40, count, dtype=np.uint8) if shape else np.zeros(1)
        self.tensors[name] = helper.make_tensor(
            name, TensorProto.FLOAT8E4M3FN, shape, raw.astype(np.uint8).tobytes(), raw=True
        )
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantize(self, name_of_input: str, name: str) -> str:
        scale, zero = self.half(f"{name}.scale", 0.01), self.fp8("zero", ())
        stored = self.add("QuantizeLinear", [name_of_input, scale, zero], f"{name}/QuantizeLinear")
        return self.add("DequantizeLinear", [stored, scale, zero], f"{name}/DequantizeLinear")

    def linear(
        self, x: str, name: str, *, size: tuple[int, int], inputs: bool, weights: bool
    ) -> str:
        if inputs:
            x = self.quantize(x, f"{name}/input")
        if weights:
            stored, scale = self.fp8(f"{name}.weight", size), self.half(f"{name}.scale", 0.01)
            weight = self.add(
                "DequantizeLinear",
                [stored, scale, self.fp8("zero", ())],
                f"{name}.weight/Dequantize",
            )
            self.nodes[-1].name = f"{name}.weight/DequantizeLinear"
        else:
            weight = self.half(f"{name}.weight", self.random.standard_normal(size) * 0.05)
        return self.add("MatMul", [x, weight], f"{name}/MatMul")

    def model(self, *, output: str, shape: list[Any]) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT16, None)],
            list(self.tensors.values()),
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_transformer(
    *,
    inputs: bool = False,
    weights: bool = False,
    attention: bool = False,
    softmax: bool | None = None,
    blocks: int = 2,
    tokens: int = TOKENS,
    heads: int = 2,
    bare_block: int | None = None,
) -> Any:
    """A few layers of attention and one MLP matrix each; says what carries Q/DQ pairs."""
    g = GraphBuilder()
    split = g.whole("split", [1, tokens, heads, HIDDEN // heads])
    merge = g.whole("merge", [1, tokens, HIDDEN])
    x = "x"
    size = (HIDDEN, HIDDEN)
    for block in range(blocks):
        name = f"/encoder/layers.{block}/self_attn"
        quantized = attention and block != bare_block
        operands = {}
        for letter in "qkv":
            y = g.linear(x, f"{name}/{letter}_proj", size=size, inputs=inputs, weights=weights)
            y = g.add("Reshape", [y, split], f"{name}/{letter}/Reshape")
            order = [0, 2, 3, 1] if letter == "k" else [0, 2, 1, 3]
            y = g.add("Transpose", [y], f"{name}/{letter}/Transpose", perm=order)
            operands[letter] = g.quantize(y, f"{name}/{letter}_bmm") if quantized else y
        y = g.add("MatMul", [operands["q"], operands["k"]], f"{name}/MatMul")
        y = g.add("Softmax", [y], f"{name}/Softmax", axis=-1)
        if quantized and softmax is not False:
            y = g.quantize(y, f"{name}/softmax")
        y = g.add("MatMul", [y, operands["v"]], f"{name}/MatMul_1")
        y = g.add("Transpose", [y], f"{name}/Transpose", perm=[0, 2, 1, 3])
        y = g.add("Reshape", [y, merge], f"{name}/Reshape")
        y = g.linear(y, f"{name}/out_proj", size=size, inputs=inputs, weights=weights)
        x = g.add("Add", [x, y], f"/encoder/layers.{block}/Add")
    return g.model(output=x, shape=[1, tokens, HIDDEN])


def make_linear(
    *, inputs: bool = True, weights: bool = True, rows: Any = 8, name: str = "fc"
) -> Any:
    g = GraphBuilder()
    y = g.linear("x", name, size=(HIDDEN, HIDDEN), inputs=inputs, weights=weights)
    return g.model(output=y, shape=[rows, HIDDEN])


FP8 = {"inputs": True, "weights": True, "attention": True}


def build(model: Any, folder: Path, library: Library, **options: Any) -> EngineReport:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return build_engine(
        onnx_path=path,
        plan_path=folder / "model.plan",
        library=library,
        **({"target": "sm89"} | options),
    )


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_an_fp8_transformer_runs_in_fp8_throughout(
    target: str, rtx: Library, tmp_path: Path
) -> None:
    report = build(make_transformer(**FP8), tmp_path, rtx, target=target)
    assert report.target == target
    assert (report.gemm_nodes, report.fp8_gemm_nodes) == (8, 8)
    assert report.fp8_gemms == report.gemms
    assert report.gemms == (4 if target == "sm89" else 8)  # sm89 merges q, k and v
    assert [(a.block, a.state, a.reason) for a in report.attentions] == [
        (0, "fused-fp8", ""),
        (1, "fused-fp8", ""),
    ]
    assert report.plan_bytes == (tmp_path / "model.plan").stat().st_size
    assert 0 < report.weights_bytes < report.plan_bytes
    assert report.activation_bytes > 0
    assert report.build_s > 0
    assert report.library == "tensorrt_rtx"
    assert from_json(EngineReport, to_json(report)) == report


@pytest.mark.parametrize("target", ["sm80", "sm89", "sm120"])
def test_an_fp16_transformer_has_no_fp8_gemm_and_attention_is_fused_in_half(
    target: str, rtx: Library, tmp_path: Path
) -> None:
    report = build(make_transformer(), tmp_path, rtx, target=target)
    assert (report.fp8_gemms, report.fp8_gemm_nodes) == (0, 0)
    assert report.gemm_nodes == 8
    assert report.gemms > 0
    assert {node.precision for node in report.nodes} == {"half"}
    assert {a.state for a in report.attentions} == {"fused-half"}
    assert "no Q/DQ pair in the ONNX graph on q, k, v, softmax" in report.attentions[0].reason
    assert report.qdq_layers == ()


def test_fp8_needs_less_memory_for_weights_than_fp16(rtx: Library, tmp_path: Path) -> None:
    fp8 = build(make_transformer(**FP8), tmp_path, rtx)
    fp16 = build(make_transformer(), tmp_path, rtx)
    assert fp8.weights_bytes < 0.6 * fp16.weights_bytes
    assert fp8.onnx_sha256 != fp16.onnx_sha256
    assert fp8.plan_sha256 != fp16.plan_sha256


@pytest.mark.parametrize("rows", [1, 8])
def test_weights_alone_in_fp8_do_not_count_as_fp8(rows: int, rtx: Library, tmp_path: Path) -> None:
    report = build(make_linear(inputs=False, rows=rows), tmp_path, rtx)
    assert (report.gemms, report.fp8_gemms, report.fp8_gemm_nodes) == (1, 0, 0)
    assert [node.precision for node in report.nodes] == ["half"]


def test_a_transformer_with_fp8_weights_alone_has_dequantize_kernels(
    rtx: Library, tmp_path: Path
) -> None:
    report = build(make_transformer(weights=True), tmp_path, rtx)
    assert report.fp8_gemms == 0
    assert report.qdq_layers


def test_inputs_alone_in_fp8_do_not_count_as_fp8(rtx: Library, tmp_path: Path) -> None:
    report = build(make_linear(weights=False), tmp_path, rtx)
    assert (report.gemms, report.fp8_gemms) == (1, 0)


@pytest.mark.parametrize("rows", [1, 8])
def test_inputs_and_weights_in_fp8_count(rows: int, rtx: Library, tmp_path: Path) -> None:
    report = build(make_linear(rows=rows), tmp_path, rtx)
    assert (report.gemms, report.fp8_gemms) == (1, 1)
    assert report.qdq_layers, "quantizing the input is a kernel of its own here"


def test_nodes_without_a_name_are_found_by_their_output(rtx: Library, tmp_path: Path) -> None:
    model = make_linear()
    for node in model.graph.node:
        node.name = ""
    report = build(model, tmp_path, rtx)
    assert [(node.node, node.precision) for node in report.nodes] == [
        ("node_of_fc/MatMul_out", "fp8")
    ]


@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_attention_without_softmax_pairs_is_not_fused_and_says_why(
    target: str, rtx: Library, tmp_path: Path
) -> None:
    model = make_transformer(**FP8, softmax=False)
    report = build(model, tmp_path, rtx, target=target)
    assert {a.state for a in report.attentions} == {"not-fused"}
    assert {a.reason for a in report.attentions} == {"no Q/DQ pair in the ONNX graph on softmax"}
    assert report.fp8_gemm_nodes == 8, "the matmuls of attention are no GEMMs with weights"


def test_one_block_without_attention_quantizers_is_named(rtx: Library, tmp_path: Path) -> None:
    report = build(make_transformer(**FP8, bare_block=1), tmp_path, rtx)
    assert [a.state for a in report.attentions] == ["fused-fp8", "fused-half"]
    assert report.attentions[1].block == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tokens": 31}, "31 tokens are too few"),
        ({"heads": 1}, "batch 1 with a single head"),
    ],
)
def test_a_shape_that_does_not_fuse_is_explained(
    options: dict[str, int], reason: str, rtx: Library, tmp_path: Path
) -> None:
    report = build(make_transformer(**FP8, blocks=1, **options), tmp_path, rtx)  # type: ignore[arg-type]
    assert report.attentions[0].state == "not-fused"
    assert reason in report.attentions[0].reason


def test_32_tokens_are_enough(rtx: Library, tmp_path: Path) -> None:
    report = build(make_transformer(**FP8, blocks=1, tokens=32), tmp_path, rtx)
    assert report.attentions[0].state == "fused-fp8"


@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86"])
def test_fp8_is_refused_on_a_target_without_fp8_units(
    target: str, rtx: Library, tmp_path: Path
) -> None:
    with pytest.raises(EngineError) as caught:
        build(make_transformer(**FP8), tmp_path, rtx, target=target)
    message = str(caught.value)
    assert (
        f"Cannot compile for target(s) {target}, because the model contains HW-specific "
        f"datatypes: fp8_e4m3" in message
    )
    assert "model.onnx" in message
    assert "one that has (FP8: sm89, sm120, sm121), or ship" in message
    assert not (tmp_path / "model.plan").exists()


def make_nvfp4_linear(size: int = 64) -> Any:
    """Return a product of two NVFP4 operands: scales of blocks in FP8 under one of the tensor."""
    weight = np.tile([0.5, -1, 2, 6], size * size // 4)
    blocks = [size, size // 16]
    fp8 = TensorProto.FLOAT8E4M3FN
    nodes = [
        helper.make_node("DequantizeLinear", ["s", "g"], ["sf"]),
        helper.make_node("DequantizeLinear", ["w", "sf"], ["wf"], axis=1, block_size=16),
        helper.make_node("Transpose", ["wf"], ["wt"], perm=[1, 0]),
        helper.make_node(
            *("TRT_FP4DynamicQuantize", ["x", "g"], ["xq", "xs"]),
            domain="trt",
            axis=1,
            block_size=16,
            scale_type=fp8,
        ),
        helper.make_node("DequantizeLinear", ["xs", "g"], ["xsf"]),
        helper.make_node("DequantizeLinear", ["xq", "xsf"], ["xf"], axis=1, block_size=16),
        helper.make_node("MatMul", ["xf", "wt"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "nvfp4",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, size])],
        [
            helper.make_tensor("w", TensorProto.FLOAT4E2M1, [size, size], weight.tolist()),
            helper.make_tensor("s", fp8, blocks, np.ones(blocks).ravel().tolist()),
            numpy_helper.from_array(np.array(0.01, np.float32), "g"),
        ],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("trt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


@pytest.mark.parametrize("target", ["sm120", "sm121"])
def test_nvfp4_is_built_where_there_are_units_for_it(
    target: str, rtx: Library, tmp_path: Path
) -> None:
    report = build(make_nvfp4_linear(), tmp_path, rtx, target=target)
    assert [node.precision for node in report.nodes] == ["fp4"]
    assert report.fp8_gemms == 0


def test_nvfp4_is_refused_where_there_are_none(rtx: Library, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError,
        match=r"cannot build for sm89, which has no units for fp4_e2m1: .*; set `target:` to one "
        r"that has \(FP4: sm120, sm121\), or ship the FP16 variant on sm89$",
    ):
        build(make_nvfp4_linear(), tmp_path, rtx, target="sm89")


def test_an_unknown_target_names_the_known_ones(rtx: Library, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"unknown target 'sm90'.*sm89, sm120"):
        build(make_linear(), tmp_path, rtx, target="sm90")


def test_builds_in_one_process_are_byte_identical(rtx: Library, tmp_path: Path) -> None:
    plans = []
    for _ in range(2):
        build(make_transformer(**FP8, blocks=1), tmp_path, rtx)
        plans.append((tmp_path / "model.plan").read_bytes())
    assert plans[0] == plans[1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_what_is_raised_in_a_build_cancels_it_and_is_raised(
    kind: type[BaseException], rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: Any, _severity: str, _text: str) -> None:
        raise kind("stop")

    with monkeypatch.context() as patch:
        patch.setattr(engine._Outcome, "take", interrupt)
        with pytest.raises(kind, match="stop"):
            build(make_transformer(), tmp_path, rtx)
    assert not (tmp_path / "model.plan").exists()
    assert build(make_linear(), tmp_path, rtx).fp8_gemms == 1, "the next build is not disturbed"


def test_parser_errors_name_the_node(rtx: Library, tmp_path: Path) -> None:
    model = make_transformer()
    next(n for n in model.graph.node if n.name.endswith("/Softmax")).op_type = "Softermax"
    with pytest.raises(EngineError) as caught:
        build(model, tmp_path, rtx)
    message = str(caught.value)
    assert "model.onnx" in message
    assert "node '/encoder/layers.0/self_attn/Softmax' (Softermax)" in message
    assert "knows no operator 'Softermax'" in message


def test_parser_errors_about_types_keep_the_reason_and_drop_the_driver(
    rtx: Library, tmp_path: Path
) -> None:
    model = make_linear(inputs=False, weights=False)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(np.zeros((HIDDEN, HIDDEN), np.float32), tensor.name)
        )
    with pytest.raises(EngineError) as caught:
        build(model, tmp_path, rtx)
    assert "fc/MatMul" in str(caught.value)
    assert "cudaError" not in str(caught.value)


def test_dynamic_inputs_need_shapes(rtx: Library, tmp_path: Path) -> None:
    model = make_linear(rows="batch")
    with pytest.raises(EngineError, match=r"inputs \['x'\] have a dynamic size"):
        build(model, tmp_path, rtx)
    report = build(model, tmp_path, rtx, shapes=(shapes_of("x", 1, 4, 8),))
    assert report.fp8_gemms == 1


def shapes_of(name: str, *rows: int) -> InputShapes:
    smallest, usual, largest = [(count, HIDDEN) for count in rows]
    return InputShapes(name=name, smallest=smallest, usual=usual, largest=largest)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (shapes_of("y", 1, 4, 8), r"shapes are given for \['y'\], but the inputs are 'x'"),
        (shapes_of("x", 4, 1, 8), "do not hold together"),
        (
            InputShapes(name="x", smallest=(1,), usual=(4, 64), largest=(8, 64)),
            "'x' has 2 dimensions",
        ),
    ],
)
def test_wrong_shapes_are_refused(
    shapes: InputShapes, message: str, rtx: Library, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        build(make_linear(rows="batch"), tmp_path, rtx, shapes=(shapes,))


def test_another_living_builder_does_no_harm(rtx: Library, tmp_path: Path) -> None:
    told: list[str] = []
    logger = make_logger(rtx, take=lambda _severity, text: told.append(text))
    other = rtx.module.Builder(logger)
    report = build(make_linear(), tmp_path, rtx)
    assert (report.fp8_gemms, report.warnings) == (1, ())
    assert not any(text.startswith("Layers:") for text in told)
    del other


@pytest.mark.parametrize(
    ("warning", "why"),
    [
        ("The logger differs from one already registered for an existing builder", "took the"),
        ("something else", "it printed none"),
    ],
)
def test_an_engine_without_a_listing_is_refused(
    warning: str, why: str, rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = engine._Outcome(plan=b"plan")
    outcome.take("WARNING", warning)
    monkeypatch.setattr(engine, "_build", lambda **_: outcome)
    monkeypatch.setattr(engine, "inspect_engine", lambda **_: "")
    with pytest.raises(EngineError, match=why):
        build(make_linear(), tmp_path, rtx)


def test_a_listing_may_come_from_the_inspector(
    rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = (Path(__file__).parent / "data" / "engine_fp16_sm89.txt").read_bytes().decode()
    outcome = engine._Outcome(
        plan=b"plan", log=["Total Weights Memory: 1", "Total Activation Memory: 2"]
    )
    monkeypatch.setattr(engine, "_build", lambda **_: outcome)
    monkeypatch.setattr(engine, "inspect_engine", lambda **_: listing)
    assert build(make_transformer(blocks=1), tmp_path, rtx).gemms == 2


def test_a_target_that_the_library_does_not_take_is_an_error(
    rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "set_target", lambda *_: "did not accept the target")
    with pytest.raises(EngineError, match="did not accept the target"):
        build(make_linear(), tmp_path, rtx)


@pytest.mark.parametrize("errors", [[], ["no device"]])
def test_a_library_that_cannot_start_a_builder_says_why(
    errors: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        pass

    class Builder:
        def __init__(self, logger: Any) -> None:
            for error in errors:
                logger.log("Severity.ERROR", error)
            raise TypeError("factory function returned nullptr")

    module = SimpleNamespace(
        ILogger=Plain,
        IErrorRecorder=Plain,
        IProgressMonitor=Plain,
        Builder=Builder,
        IBuilderConfig=Plain,
    )
    library = Library(module=module, name="tensorrt", version="10.16")
    monkeypatch.setattr(engine, "normalize_target", lambda _library, target: target)
    with pytest.raises(EngineError, match=r"cannot start a builder here: (factory|no device)"):
        build(make_linear(), tmp_path, library)


def test_the_error_recorder_keeps_what_it_is_told(rtx: Library) -> None:
    outcome = engine._Outcome()
    recorder = engine._make_error_recorder(rtx.module, outcome)
    code = rtx.module.ErrorCodeTRT.INTERNAL_ERROR
    assert recorder.report_error(code, "it broke") is False
    assert recorder.report_error(code, "cudaError 35: no driver") is False
    assert (recorder.num_errors(), recorder.has_overflowed()) == (2, False)
    assert (recorder.get_error_code(0), recorder.get_error_desc(0)) == (code, "it broke")
    assert outcome.errors == ["it broke"], "that there is no driver is no error of the model"
    recorder.clear()
    assert recorder.num_errors() == 0


def test_a_library_that_gives_no_reason_is_quoted_so(
    rtx: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_build", lambda **_: engine._Outcome())
    with pytest.raises(EngineError, match="could not build for sm89: the library gave no reason"):
        build(make_linear(), tmp_path, rtx)


def test_a_failed_build_does_not_disturb_the_next_while_its_error_is_held(
    rtx: Library, tmp_path: Path
) -> None:
    with pytest.raises(EngineError) as held:
        build(make_linear(), tmp_path, rtx, target="sm80")
    assert build(make_linear(), tmp_path, rtx).fp8_gemms == 1
    assert "sm80" in str(held.value)


@pytest.mark.parametrize("data", [b"", b"\x00garbage" * 30, None])
def test_a_damaged_file_is_refused(data: bytes | None, rtx: Library, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = make_linear().SerializeToString()
    path.write_bytes(whole[: len(whole) // 2] if data is None else data)
    with pytest.raises(EngineError, match=r"model\.onnx: .*export the model again"):
        build_engine(onnx_path=path, plan_path=tmp_path / "p", library=rtx, target="sm89")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="No such file"):
        read_onnx(tmp_path / "absent.onnx")


def test_without_onnx_the_install_line_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingPackage, match=r"pytest-quantgate\[clip\]"):
        read_onnx(tmp_path / "model.onnx")


def store_outside(model: Any, folder: Path, location: str) -> Path:
    """Write a model whose first weight is said to lie at `location`."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".weight"))
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(len(data)))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    if "/" not in location and location:
        (folder / location).write_bytes(data)
    return path


def test_external_data_in_the_folder_is_read_and_is_part_of_the_digest(
    rtx: Library, tmp_path: Path
) -> None:
    path = store_outside(make_linear(), tmp_path, "weights.bin")
    first = read_onnx(path)[1]
    report = build_engine(
        onnx_path=path, plan_path=tmp_path / "model.plan", library=rtx, target="sm89"
    )
    assert report.fp8_gemms == 1
    assert report.onnx_sha256 == first
    weights = bytearray((tmp_path / "weights.bin").read_bytes())
    weights[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(weights)
    assert read_onnx(path)[1] != first


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "", "a/../../b", "..\\secret", "C:secret", "link/file"]
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path / "secret")
    path = store_outside(make_linear(), folder, location)
    with pytest.raises(EngineError, match="outside the folder of the ONNX file"):
        read_onnx(path)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = store_outside(make_linear(), tmp_path, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EngineError, match=r"'weights\.bin', which is missing"):
        read_onnx(path)


def test_external_data_is_found_in_attributes_subgraphs_and_functions(tmp_path: Path) -> None:
    def external() -> Any:
        tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], name="hidden")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")
        return tensor

    constant = helper.make_node("Constant", [], ["c"], value=external())
    inner = helper.make_graph([constant], "inner", [], [])
    places = []
    for place in ("attribute", "subgraph", "function", "sparse"):
        model = make_linear()
        if place == "attribute":
            model.graph.node.append(constant)
        elif place == "subgraph":
            model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner))
        elif place == "function":
            model.functions.add(name="f", domain="d").node.append(constant)
        else:
            model.graph.sparse_initializer.add().values.CopyFrom(external())
        path = tmp_path / f"{place}.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(EngineError, match="outside the folder"):
            read_onnx(path)
        places.append(place)
    assert len(places) == 4


def test_the_graph_is_described() -> None:
    graph = describe_graph(make_transformer(**FP8, softmax=False, blocks=1))
    assert graph.linear == tuple(
        f"/encoder/layers.0/self_attn/{name}_proj/MatMul" for name in ("q", "k", "v", "out")
    )
    assert graph.conv == ()
    (attention,) = graph.attentions
    assert attention.scores == "/encoder/layers.0/self_attn/MatMul"
    assert attention.values == "/encoder/layers.0/self_attn/MatMul_1"
    assert (attention.q, attention.k, attention.v) == ("fp8", "fp8", "fp8")
    assert attention.probabilities == "none"


def test_a_mask_and_a_scale_do_not_hide_attention() -> None:
    model = make_transformer(**FP8, blocks=1)
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    at = list(model.graph.node).index(softmax)
    scores = softmax.input[0]
    softmax.input[0] = "masked"
    model.graph.node.insert(at, helper.make_node("Add", ["scaled", "mask"], ["masked"], name="m"))
    model.graph.node.insert(at, helper.make_node("Mul", [scores, "half"], ["scaled"], name="s"))
    (attention,) = describe_graph(model).attentions
    assert attention.scores == "/encoder/layers.0/self_attn/MatMul"
    assert attention.probabilities == "fp8"


def test_int8_pairs_and_modelopt_operators_are_told_apart() -> None:
    model = make_transformer(**FP8, blocks=1)
    for node in model.graph.node:
        if node.name.endswith("q_bmm/DequantizeLinear"):
            node.input.pop()  # no zero point: UINT8 by default
        if node.name.endswith("k_bmm/DequantizeLinear"):
            node.op_type = "TRT_FP8DequantizeLinear"
            node.input.pop()
        if node.name.endswith("v_bmm/DequantizeLinear"):
            node.input[2] = "zero_of_v"
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, (), b"\0", raw=True)
    model.graph.node.insert(
        0, helper.make_node("Constant", [], ["zero_of_v"], name="zero_of_v", value=zero)
    )
    (attention,) = describe_graph(model).attentions
    assert (attention.q, attention.k, attention.v) == ("int8", "fp8", "fp8")


def test_a_softmax_without_matmuls_is_no_attention() -> None:
    g = GraphBuilder()
    model = g.model(output=g.add("Softmax", ["x"], "probabilities", axis=-1), shape=[1, 8])
    assert describe_graph(model).attentions == ()
    g = GraphBuilder()
    y = g.linear("x", "fc", size=(HIDDEN, 8), inputs=False, weights=False)
    model = g.model(output=g.add("Softmax", [y], "probabilities", axis=-1), shape=[1, HIDDEN])
    assert describe_graph(model).attentions == ()


def test_a_graph_that_runs_in_circles_ends() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["b", "s"], ["a"], name="a"),
        helper.make_node("QuantizeLinear", ["a", "s"], ["b"], name="b"),
        helper.make_node("MatMul", ["x", "a"], ["y"], name="matmul"),
        helper.make_node("Add", ["d", "d"], ["c"], name="c"),
        helper.make_node("Add", ["c", "c"], ["d"], name="d"),
        helper.make_node("Softmax", ["c"], ["e"], name="softmax"),
        helper.make_node("Add", ["e", "f"], ["f"], name="f"),
        helper.make_node("MatMul", ["c", "d"], ["g"], name="circle"),
        helper.make_node("Softmax", ["g"], ["h"], name="softmax2"),
        helper.make_node("MatMul", ["h", "x"], ["i"], name="values"),
        helper.make_node("MatMul", ["x", "nowhere"], ["j"], name="unknown"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("MatMul", ["x", "r"], ["k"], name="activation"),
        helper.make_node("Cast", [], ["l"], name="no_input"),
        helper.make_node("MatMul", ["x", "l"], ["m"], name="bare"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    graph = describe_graph(model)
    assert graph.linear == ()
    assert [a.softmax for a in graph.attentions] == ["softmax2"]
    assert (graph.attentions[0].q, graph.attentions[0].v) == ("none", "none")


def test_constants_made_by_nodes_and_convolutions_are_weights() -> None:
    value = numpy_helper.from_array(np.zeros((4, 4), np.float16))
    nodes = [
        helper.make_node("Constant", [], ["w"], name="w", value=value),
        helper.make_node("Transpose", ["w"], ["wt"], name="wt"),
        helper.make_node("Gemm", ["x", "wt"], ["y"], name="gemm"),
        helper.make_node("Conv", ["y", "wt"], ["z"], name="conv"),
    ]
    graph = describe_graph(helper.make_model(helper.make_graph(nodes, "g", [], [])))
    assert (graph.linear, graph.conv) == (("gemm",), ("conv",))


def test_engine_errors_are_plain_errors_of_the_user() -> None:
    assert issubclass(EngineError, QuantGateError)
    assert engine.EngineError is EngineError  # type: ignore[attr-defined]
