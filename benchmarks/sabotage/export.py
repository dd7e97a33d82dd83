"""Damage to the exported files and the engines: real ONNX files, edited; real engines, built."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy
import onnx
from onnx import numpy_helper

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import released
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.run.case import Case
from pytest_quantgate.runtimes.onnx_nodes import module_of_node
from pytest_quantgate.selftest.sabotage import exchange, exchange_stages
from pytest_quantgate.tasks.samples import Samples

Tower = Literal["vision", "text"]
Edit = Callable[[Any], None]

FC1 = "vision_model.encoder.layers.0.mlp.fc1"
ATTENTION = "vision_model.encoder.layers.1.self_attn"
PATCH = "vision_model.embeddings.patch_embedding"
EXPORT = ("export", "parity", "accuracy-onnx")
ALL = (*EXPORT, "engine", "memory")


def with_files(
    case: Case,
    name: str,
    choose: Callable[[Case, Tower, str], Path],
    **stages: Any,
) -> Case:
    """Return a copy of a case whose quantized files lie elsewhere: `choose` names the folder."""
    spoiled = exchange(case)
    original = case.stages._onnx_folder

    def folder(variant: str, tower: Tower, precision: str) -> Path:
        if variant == "fp16":
            return Path(original("fp16", tower, precision))
        return choose(case, tower, precision)

    spoiled = exchange_stages(spoiled, _onnx_folder=folder, _open={}, **stages)
    # Parity and answers of the exported model are cached under this.
    vars(spoiled)["variant_key"] = digest_of(["files", name, case.variant_key])
    vars(spoiled)["_values"] = {}
    return spoiled


def edited(name: str, edit: Edit, *, tower: Tower = "vision") -> Callable[[Bench], Case]:
    """Return the maker of the good case whose files of one tower are edited."""

    def make(bench: Bench) -> Case:
        def choose(case: Case, wanted: Tower, precision: str) -> Path:
            source = Path(case.stages._onnx_folder("quantized", wanted, precision))
            if wanted != tower:
                return source
            target = bench.root / "edited" / f"{name}-{wanted}-{precision}"
            if not target.exists():
                model = onnx.load(source / "model.onnx")
                edit(model)
                target.mkdir(parents=True)
                onnx.save(model, target / "model.onnx")
            return target

        return with_files(bench.good, name, choose)

    return make


def mixed_up(
    name: str, choose: Callable[[Bench, Tower, str], Path], **options: Any
) -> Callable[[Bench], Case]:
    def make(bench: Bench) -> Case:
        return with_files(
            bench.good, name, lambda _case, tower, precision: choose(bench, tower, precision)
        )

    return make


def folder_of(bench: Bench, variant: str, tower: Tower, precision: str) -> Path:
    return Path(bench.good.stages._onnx_folder(variant, tower, precision))


# -- edits of a graph -----------------------------------------------------------------------------


def node_of(model: Any, quantizer: str, operator: str) -> Any:
    return next(
        node
        for node in model.graph.node
        if module_of_node(node.name) == quantizer and node.op_type == operator
    )


def tensor_of(model: Any, name: str) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def bypass(model: Any, quantizer: str) -> None:
    """Take the pair of an activation out of the graph."""
    first = node_of(model, quantizer, "QuantizeLinear")
    last = node_of(model, quantizer, "DequantizeLinear")
    reconnect(model, last.output[0], first.input[0])
    model.graph.node.remove(first)
    model.graph.node.remove(last)


def bypass_dequantize(model: Any) -> None:
    """The readers of one activation get its value before it was quantized; Q and DQ stay."""
    first = node_of(model, f"{FC1}.input_quantizer", "QuantizeLinear")
    last = node_of(model, f"{FC1}.input_quantizer", "DequantizeLinear")
    reconnect(model, last.output[0], first.input[0])


def reconnect(model: Any, old: str, new: str) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def leave_attention_out(model: Any) -> None:
    names = {module_of_node(node.name) for node in model.graph.node}
    for quantizer in sorted(name for name in names if name.startswith(f"{ATTENTION}.")):
        slot = quantizer.rpartition(".")[2]
        if slot in (
            "q_bmm_quantizer",
            "k_bmm_quantizer",
            "v_bmm_quantizer",
            "bmm2_output_quantizer",
            "softmax_quantizer",
        ):
            bypass(model, quantizer)


def scale_by_four(model: Any) -> None:
    pair = node_of(model, f"{FC1}.input_quantizer", "QuantizeLinear")
    tensor = tensor_of(model, pair.input[1])
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(4), name=tensor.name))


def store_in_full(model: Any) -> None:
    """Put full-precision weights behind QuantizeLinear: it computes the same and saves nothing."""
    for last in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        quantizer = module_of_node(last.name)
        if not quantizer.endswith(".weight_quantizer"):
            continue
        stored, scale = tensor_of(model, last.input[0]), tensor_of(model, last.input[1])
        factor = numpy_helper.to_array(scale)
        values = numpy_helper.to_array(stored).astype(numpy.float32) * factor.astype(numpy.float32)
        name = stored.name
        model.graph.initializer.remove(stored)
        model.graph.initializer.append(
            numpy_helper.from_array(values.astype(factor.dtype), name=name)
        )
        place = list(model.graph.node).index(last)
        model.graph.node.insert(
            place,
            onnx.helper.make_node(
                "QuantizeLinear",
                [name, *last.input[1:]],
                [f"{name}_8bit"],
                name=last.name.replace("DequantizeLinear", "QuantizeLinear"),
            ),
        )
        last.input[0] = f"{name}_8bit"


def use_trt_domain(model: Any) -> None:
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "trt"
    model.opset_import.append(onnx.helper.make_opsetid("trt", 1))


def shift_zero_point(model: Any) -> None:
    pair = node_of(model, f"{FC1}.input_quantizer", "QuantizeLinear")
    zero = tensor_of(model, pair.input[2])
    changed = copy.deepcopy(zero)
    changed.name = f"{zero.name}.shifted"
    changed.raw_data = b"\x38"  # 1.0 in E4M3
    model.graph.initializer.append(changed)
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        node_of(model, f"{FC1}.input_quantizer", operator).input[2] = changed.name


def zero_weight(model: Any) -> None:
    """A weight is lost on the way, its pair and its scale are as they should be."""
    pair = node_of(model, f"{FC1}.weight_quantizer", "DequantizeLinear")
    tensor = tensor_of(model, pair.input[0])
    tensor.raw_data = b"\0" * len(tensor.raw_data)


def quantize_excluded(model: Any) -> None:
    """ModelOpt's exporter: the convolution that the suite excludes comes back in FP8."""
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    stored = tensor_of(model, node.input[1])
    values = numpy_helper.to_array(stored)
    scale = values.dtype.type(abs(values).max() / 448)
    name = f"{PATCH}.weight_quantizer"
    model.graph.initializer.append(numpy_helper.from_array(scale, name=f"{name}.scale"))
    model.graph.initializer.append(
        onnx.TensorProto(
            name=f"{name}.zero",
            data_type=onnx.TensorProto.FLOAT8E4M3FN,
            dims=[],
            raw_data=b"\0",
        )
    )
    path = name.replace(".", "/")
    steps = (
        ("QuantizeLinear", node.input[1], f"{name}.8bit"),
        ("DequantizeLinear", f"{name}.8bit", f"{name}.out"),
    )
    place = list(model.graph.node).index(node)
    for offset, (operator, source, result) in enumerate(steps):
        model.graph.node.insert(
            place + offset,
            onnx.helper.make_node(
                operator,
                [source, f"{name}.scale", f"{name}.zero"],
                [result],
                name=f"/{path}/{operator}",
            ),
        )
    reader = next(node for node in model.graph.node if node.op_type == "Conv")
    reader.input[1] = f"{name}.out"


def repeat_pair(model: Any) -> None:
    """A second pass of an optimizer quantizes an activation once more under the same name."""
    first = node_of(model, f"{FC1}.input_quantizer", "QuantizeLinear")
    last = node_of(model, f"{FC1}.input_quantizer", "DequantizeLinear")
    source = last.output[0]
    again, result = f"{source}.again", f"{source}.twice"
    reconnect(model, source, result)
    place = list(model.graph.node).index(last) + 1
    path = last.name.rpartition("/")[0]
    for offset, (operator, given, made) in enumerate(
        (("QuantizeLinear", source, again), ("DequantizeLinear", again, result))
    ):
        model.graph.node.insert(
            place + offset,
            onnx.helper.make_node(
                operator, [given, *first.input[1:]], [made], name=f"{path}/{operator}"
            ),
        )


def other_calibration(bench: Bench, tower: Tower, precision: str) -> Path:
    def source(samples: Samples) -> Samples:
        return samples.take(0, 64)

    def darker(batches: Any) -> Any:

        return [
            batch.with_inputs("vision", {"pixel_values": batch.pixel_values * 0.9})
            for batch in batches
        ]

    case = released(bench, "exported calibration", Pipeline(source=source, pairs=darker))
    return Path(case.stages._onnx_folder("quantized", tower, precision))


def of_fp16_text(bench: Bench, tower: Tower, precision: str) -> Path:
    return folder_of(bench, "fp16" if tower == "text" else "quantized", tower, precision)


def swapped_towers(bench: Bench, _tower: Tower, precision: str) -> Path:
    return folder_of(bench, "quantized", "vision", precision)


def cut_short(bench: Bench, tower: Tower, precision: str) -> Path:
    source = folder_of(bench, "quantized", tower, precision)
    if tower == "text":
        return source
    target = bench.root / "edited" / f"cut-{precision}"
    target.mkdir(parents=True, exist_ok=True)
    content = (source / "model.onnx").read_bytes()
    (target / "model.onnx").write_bytes(content[: len(content) // 2])
    return target


def undeclared_softmax(bench: Bench) -> Case:
    """The files hold softmax pairs, and the suite says nothing of them."""
    case = bench.load(edits={"{allow: [softmax], max_size_ratio": "{max_size_ratio"})
    return with_files(
        case,
        "undeclared",
        lambda _case, tower, precision: folder_of(bench, "quantized", tower, precision),
    )


def older_plan(bench: Bench) -> Case:
    """The engines were built before the last export."""

    def touch(model: Any) -> None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "exported", "again"

    case, good = edited("touched", touch)(bench), bench.good

    def engine(**request: Any) -> Any:
        report = good.stages.engine(**request)
        case.used.update({about: key for about, key in good.used.items() if about[0] == "engine"})
        return report

    vars(case.stages)["engine"] = engine
    return case


def engine_of(edits: dict[str, str]) -> Callable[[Bench], Case]:
    return lambda bench: bench.load(edits=edits)


def entry(
    name: str,
    make: Callable[[Bench], Case],
    cause: str,
    *,
    gates: tuple[str, ...] = ("export",),
    judged: tuple[str, ...] = EXPORT,
    theme: str = "export",
) -> Entry:
    return Entry(
        name=name, theme=theme, make=make, gates=gates, cause=cause, judged=judged, shipped="onnx"
    )


EXPORTS = (
    entry(
        "attention of one block left out",
        edited("no-attention", leave_attention_out),
        r"(?s)are not in its graph.*layers\.1\.self_attn",
        judged=ALL,
    ),
    entry(
        "one scale times 4",
        edited("scale", scale_by_four),
        r"layers\.0\.mlp\.fc1\.input_quantizer: .*amax .* in the graph",
    ),
    entry(
        "full-precision weights behind Q/DQ",
        edited("wide", store_in_full),
        "not stored in 8 bits",
        judged=ALL,
    ),
    entry(
        "one DequantizeLinear bypassed",
        edited("bypassed", bypass_dequantize),
        r"(?s)half a pair or at another place.*layers\.0\.mlp\.fc1\.input_quantizer",
    ),
    entry(
        "text tower exported from FP16",
        mixed_up("fp16-text", of_fp16_text),
        "(?s)text tower are not in its graph.*exported from another variant",
        judged=ALL,
    ),
    entry(
        "vision file in the place of the text file",
        mixed_up("swapped", swapped_towers),
        "no ONNX file of the text tower",
        judged=("export",),
    ),
    entry(
        "file cut short",
        mixed_up("cut", cut_short),
        "(?i)is no ONNX model|cannot be read|damaged|holds no ONNX graph",
    ),
    entry(
        "exported from another calibration",
        mixed_up("calibration", other_calibration),
        "(?s)not what was calibrated.*another calibration",
    ),
    entry(
        "an excluded convolution comes back in FP8",
        edited("excluded", quantize_excluded),
        "(?s)came back in the export.*patch_embedding",
        judged=ALL,
    ),
    entry(
        "softmax pairs that nobody declared",
        undeclared_softmax,
        "(?s)belong to no quantizer.*Softmax",
        judged=("export",),
    ),
    entry(
        "one pair put in twice",
        edited("twice", repeat_pair),
        "more than one pair",
    ),
    entry(
        "operators of the domain trt are left",
        edited("trt", use_trt_domain),
        "operators of 'trt'",
    ),
    entry(
        "a zero point that is not zero",
        edited("zero-point", shift_zero_point),
        "zero point that is not 0",
    ),
    entry(
        "one stored weight lost (all zeros)",
        edited("zeros", zero_weight),
        "computes something else|stored weight",
        gates=("export", "parity"),
    ),
)

ENGINES = (
    entry(
        "plan built from an older file",
        older_plan,
        "built from another ONNX file",
        gates=("engine",),
        judged=("export", "engine"),
        theme="engine",
    ),
    entry(
        "target without FP8 units",
        engine_of({"{target: sm89, towers: [vision]": "{target: sm86, towers: [vision]"}),
        "(?i)sm86.*fp8",
        gates=("engine",),
        judged=("engine",),
        theme="engine",
    ),
    entry(
        "softmax left unquantized: attention falls back to half",
        engine_of({"{allow: [softmax], max_size_ratio": "{max_size_ratio"}),
        "(?s)not fused-fp8.*softmax",
        gates=("engine",),
        judged=("export", "parity", "engine"),
        theme="engine",
    ),
    entry(
        "engine larger than the device has room for",
        engine_of({"max_weights_ratio: 0.6x": "max_weights_ratio: 0.6x, max_plan: 1MiB"}),
        "over max_plan",
        gates=("memory",),
        judged=("memory",),
        theme="engine",
    ),
)
