"""The table of a suite file: every section and key, what it holds and what it means.

`schema.py` turns the same table into a JSON Schema for editors.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, get_args

import yaml

from pytest_quantgate.gate_kinds import KINDS
from pytest_quantgate.quantities import parse_confidence
from pytest_quantgate.suite import (
    MAX_WAIVER_DAYS,
    AccuracyGate,
    CalibrationGate,
    CalibrationSpec,
    CoverageGate,
    DatasetSpec,
    EngineGate,
    ExportGate,
    FidelityGate,
    Gates,
    LatencyGate,
    LatencyRuntime,
    MemoryGate,
    ModelSpec,
    ParityGate,
    QuantizeSpec,
    RegressionGate,
    RoundtripGate,
    TraceGate,
    Waiver,
)
from pytest_quantgate.suite_file.checks import (
    VERSION,
    check_data,
    check_engine,
    check_fidelity,
    check_gates,
    check_latency,
    check_memory,
    check_model,
    check_parity,
    check_suite,
    check_task,
    check_trace,
    check_waiver,
)
from pytest_quantgate.suite_file.fields import (
    Field,
    Section,
    bytes_field,
    choice_field,
    cosine_field,
    count_field,
    date_field,
    decibel_field,
    flag_field,
    list_field,
    milliseconds_field,
    percent_field,
    points_field,
    ratio_field,
    read_section,
    recipe_field,
    section_field,
    sections_field,
    text_field,
)
from pytest_quantgate.suite_file.nodes import Place, read_pairs


def _keep(**values: Any) -> dict[str, Any]:
    del values["where"]
    return values


def _build_suite(**values: Any) -> dict[str, Any]:
    kept = _keep(**values)
    kept["version"] = kept.pop("quantgate")
    return kept


def _build_parity(**values: Any) -> ParityGate:
    if "max_sqnr_change" in values:
        values["max_sqnr_change_db"] = values.pop("max_sqnr_change")
    return ParityGate(**values)


def _build_engine(**values: Any) -> EngineGate:
    return EngineGate(**_in_bytes(values))


def _build_memory(**values: Any) -> MemoryGate:
    return MemoryGate(**_in_bytes(values))


def _in_bytes(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("max_plan", "max_weights", "max_activation"):
        if name in values:
            values[f"{name}_bytes"] = values.pop(name)
    return values


def _build_latency(**values: Any) -> tuple[LatencyGate, ...]:
    """Return a gate for each batch size."""
    if "max_latency" in values:
        values["max_latency_ms"] = values.pop("max_latency")
    return tuple(LatencyGate(batch=batch, **values) for batch in values.pop("batch", (1,)))


def _build_fidelity(**values: Any) -> FidelityGate:
    for name in ("min_sqnr", "min_worst_sqnr"):
        if name in values:
            values[f"{name}_db"] = values.pop(name)
    return FidelityGate(**values)


MODEL = Section(
    build=ModelSpec,
    check=check_model,
    fields={
        "source": choice_field(
            "reference", "transformers", help="where the FP16 model comes from", required=True
        ),
        "id": text_field(help="hub id or local directory; ${NAME} is expanded", environment=True),
        "revision": text_field(help="commit of the hub id"),
        "dtype": choice_field(
            "float16", "bfloat16", "float32", help="what the weights are rounded to"
        ),
        "attn_implementation": choice_field("sdpa", "eager", help="as in transformers"),
    },
)
DATASET = Section(
    build=DatasetSpec,
    fields={
        "dataset": text_field(help="clip-benchmark name, or wds/NAME for a folder", required=True),
        "root": text_field(help="the folder it is in; ${NAME} is expanded", environment=True),
        "language": text_field(help="of class names and templates"),
    },
)
_FIRST = flag_field(help="take the first samples, as they stand; default: draw them by seed")
CALIBRATION = Section(
    build=CalibrationSpec,
    check=check_data,
    fields={
        "data": text_field(help="<data set>/<split>", required=True),
        "samples": count_field(help="pairs that calibrate", required=True),
        "batch_size": count_field(help="pairs in a batch", required=True),
        "held_out_samples": count_field(help="pairs besides, on which clipping is counted"),
        "first": _FIRST,
    },
)
QUANTIZE = Section(
    build=QuantizeSpec,
    fields={
        "recipe": recipe_field(),
        "exclude": list_field(
            text_field(help="pattern"), help="patterns as in mtq.disable_quantizer", single=True
        ),
    },
)
WAIVER = Section(
    build=Waiver,
    check=check_waiver,
    fields={
        "modules": list_field(
            text_field(help="pattern"),
            help="module patterns; all waivers together name at most a quarter of a tower",
            single=True,
            required=True,
        ),
        "reason": text_field(help="why they may stay unquantized", required=True, lines=True),
        "until": date_field(
            help=f"the last day on which this holds, at most {MAX_WAIVER_DAYS} days from today",
            required=True,
        ),
    },
)
COVERAGE = Section(
    build=CoverageGate,
    fields={
        "attention": list_field(
            choice_field("q", "k", "v", "softmax", "output", help="slot"),
            help="what must be quantized around attention in every block",
        ),
        "towers": list_field(choice_field("vision", "text", help="tower"), help="default: both"),
        "waive": sections_field(WAIVER, help="what may stay unquantized", single=False),
    },
)
CALIBRATION_GATE = Section(
    build=CalibrationGate,
    fields={
        "max_clipped": percent_field(help="share of held-out values that a quantizer may clip"),
        "max_batch_change": percent_field(
            help="of an embedding, with other samples in its batch; default: what rounding explains"
        ),
    },
)
FIDELITY = Section(
    build=_build_fidelity,
    check=check_fidelity,
    fields={
        "data": text_field(help="<data set>/<split>; default: the first task's"),
        "samples": count_field(help="drawn over the whole by seed; default: 512"),
        "first": _FIRST,
        "min_cosine": cosine_field(help="mean cosine to FP16"),
        "min_worst_cosine": cosine_field(help="cosine of the worst sample"),
        "min_sqnr": decibel_field(help="mean SQNR"),
        "min_worst_sqnr": decibel_field(help="SQNR of the worst sample"),
    },
)
_TASK = {
    "task": text_field(help="<data set>/classification or /retrieval", required=True),
    "metric": text_field(help="acc1, acc5, image_retrieval_recall@5, ...", required=True),
    "confidence": percent_field(help="one-sided; default 95%", parse=parse_confidence),
    "samples": count_field(help="drawn over the whole by seed, stratified; default: all"),
    "first": _FIRST,
    "min_classes": count_field(help="classes that must have a sample; default: all"),
}
ACCURACY = Section(
    build=AccuracyGate,
    check=check_task,
    fields={
        **_TASK,
        "max_drop": points_field(help="loss against FP16", required=True),
        "floor": percent_field(help="least absolute value"),
        "max_flips": percent_field(help="share of answers that differ from FP16's"),
        "max_class_drop": points_field(help="loss of the worst class"),
        "stage": choice_field(
            "torch", "onnx", "engine", help="which model is judged; default: torch"
        ),
    },
)
REGRESSION = Section(
    build=RegressionGate,
    check=check_task,
    fields={
        **_TASK,
        "max_fp16_drop": points_field(help="FP16 against the stored FP16", required=True),
        "max_drop": points_field(help="against the variant accepted last", required=True),
        "max_drop_since_first": points_field(help="against the first accepted", required=True),
    },
)
ROUNDTRIP = Section(build=RoundtripGate, fields={})
EXPORT = Section(
    build=ExportGate,
    fields={
        "allow": list_field(
            choice_field("softmax", help="what"),
            help="what the graph may hold although PyTorch does not simulate it",
        ),
        "max_size_ratio": ratio_field(help="both files against FP16's"),
    },
)
PARITY = Section(
    build=_build_parity,
    check=check_parity,
    fields={
        "samples": count_field(help="held-out pairs; default: 64"),
        "max_error": percent_field(help="relative error that counts as none; default: 0.1%"),
        "max_sqnr_change": decibel_field(help="of SQNR against FP16; default: 1dB"),
    },
)
_ENGINE = {
    "target": text_field(help="compute capability, such as sm89", required=True),
    "library": choice_field("tensorrt-rtx", "tensorrt", help="default: tensorrt-rtx"),
    "towers": list_field(choice_field("vision", "text", help="tower"), help="default: both"),
    "batch": count_field(help="images or texts in a batch; default: 1"),
}
_SIZES = {
    "max_plan_ratio": ratio_field(help="plan against FP16's"),
    "max_weights_ratio": ratio_field(help="weights memory against FP16's"),
    "max_activation_ratio": ratio_field(help="activation memory against FP16's"),
    "max_plan": bytes_field(help="plan of one tower"),
    "max_weights": bytes_field(help="weights memory of one tower"),
    "max_activation": bytes_field(help="activation memory of one tower"),
}
ENGINE = Section(
    build=_build_engine,
    check=check_engine,
    fields={
        **_ENGINE,
        "min_fp8_gemms": count_field(help="linear layers in FP8, all towers together"),
        "attention": choice_field("fused-fp8", "fused", help="in every block of every tower"),
        **_SIZES,
    },
)
MEMORY = Section(build=_build_memory, check=check_memory, fields={**_ENGINE, **_SIZES})
TRACE = Section(
    build=TraceGate,
    check=check_trace,
    fields={
        **_ENGINE,
        "target": text_field(help="compute capability, such as sm89; without: ends at ONNX"),
        "allow": list_field(
            text_field(help="pattern"), help="quantizers that may run wider in the engine"
        ),
    },
)
LATENCY = Section(
    build=_build_latency,
    check=check_latency,
    fields={
        "tower": choice_field("vision", "text", help="tower", required=True),
        "max_ratio": ratio_field(help="time against FP16's"),
        "max_latency": milliseconds_field(
            help="time of one batch, on the machine of the baseline alone"
        ),
        "min_ratio": ratio_field(
            help="a smaller ratio is not believed; default: by what 8-bit arithmetic can gain there"
        ),
        "batch": list_field(
            count_field(help="images or texts in a batch"),
            help="images or texts in a batch, or several sizes; default: 1",
            single=True,
        ),
        "runtime": choice_field(*get_args(LatencyRuntime), help="default: onnxruntime"),
        "threads": count_field(help="of a runtime on the CPU; default: 1"),
        "rounds": count_field(help="timed rounds; default: 30"),
        "confidence": percent_field(help="one-sided; default 95%", parse=parse_confidence),
    },
)


def _latency_field() -> Field:
    sections = sections_field(LATENCY, help="time against FP16, interleaved")

    def read(place: Place, node: yaml.Node) -> tuple[LatencyGate, ...]:
        return tuple(itertools.chain.from_iterable(sections.read(place, node)))

    return replace(sections, read=read)


GATES = Section(
    build=lambda **values: Gates(**_keep(**values)),
    check=check_gates,
    fields={
        "coverage": section_field(COVERAGE, help="what is quantized, and really runs"),
        "calibration": section_field(CALIBRATION_GATE, help="ranges, calls, clipping, overlap"),
        "fidelity": section_field(FIDELITY, help="embeddings against FP16"),
        "accuracy": sections_field(ACCURACY, help="loss on tasks, paired with FP16"),
        "regression": sections_field(REGRESSION, help="drift against the stored baseline"),
        "roundtrip": section_field(ROUNDTRIP, help="save and restore, bit for bit"),
        "export": section_field(EXPORT, help="the ONNX files hold what was audited"),
        "parity": section_field(PARITY, help="the ONNX files compute what PyTorch does"),
        "engine": sections_field(ENGINE, help="TensorRT engines: precision, fusion, sizes"),
        "memory": sections_field(MEMORY, help="sizes of the engines against FP16's"),
        "trace": sections_field(TRACE, help="every quantizer, from the recipe to the engine"),
        "latency": _latency_field(),
    },
)


def _datasets_field() -> Field:
    def read(place: Place, node: yaml.Node) -> dict[str, DatasetSpec]:
        return {
            name: read_section(DATASET, place.child(name), value)
            for name, (_, value) in read_pairs(place, node).items()
        }

    return Field(read=read, schema={"mapping": DATASET}, help="data sets by a name of your own")


SUITE = Section(
    build=_build_suite,
    check=check_suite,
    fields={
        "quantgate": Field(
            read=count_field(help="").read,
            schema={"const": VERSION},
            help="version of this format",
            required=True,
        ),
        "model": section_field(MODEL, help="the FP16 model", required=True),
        "datasets": _datasets_field(),
        "calibration": section_field(CALIBRATION, help="what calibrates", required=True),
        "quantize": section_field(QUANTIZE, help="how it is quantized", required=True),
        "family": choice_field(
            "holm", "none", help="control of false FAILs over all limits; default: holm"
        ),
        "allow_unmeasured": list_field(
            choice_field(*KINDS, help="kind of gate"),
            help="kinds of gates that may be missing in CI and in strict runs; default: none",
            single=True,
        ),
        "gates": Field(
            read=lambda place, node: read_section(GATES, Place(file=place.file, key=""), node),
            schema={"section": GATES},
            help="what decides",
            required=True,
        ),
    },
)
