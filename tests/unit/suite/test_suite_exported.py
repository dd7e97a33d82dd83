"""Gates of what was exported: engines, memory, trace, latency."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.export import ExportGate
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.gates.memory import MemoryGate
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.trace import TraceGate
from tests.suite_texts import EXPORTED, FILE, SMALL, Load, Refusal, line_of, section_of, swap


def test_limits_of_what_was_exported_arrive_exact(load: Load) -> None:
    gates = load(EXPORTED).gates

    assert gates.one(ExportGate) is not None
    assert section_of(gates, ExportGate).allow == ("softmax",)
    assert section_of(gates, ExportGate).max_size_ratio == Fraction(3, 5)
    assert section_of(gates, ExportGate).where.of("max_size_ratio") == (
        f"{FILE}:{line_of('max_size_ratio', text=EXPORTED)}"
    )
    assert gates.one(ParityGate) is not None
    assert (section_of(gates, ParityGate).samples, section_of(gates, ParityGate).max_error) == (
        32,
        Fraction(1, 500),
    )
    assert section_of(gates, ParityGate).max_sqnr_change_db == 1.5
    assert section_of(gates, ParityGate).where.of("max_sqnr_change") == (
        f"{FILE}:{line_of('max_sqnr_change', text=EXPORTED)}"
    )
    first, second = gates.all(EngineGate)
    assert (first.target, first.library, first.towers) == ("sm89", "tensorrt", ("vision",))
    assert (first.batch, first.min_fp8_gemms, first.attention) == (8, 25, "fused-fp8")
    assert first.max_plan_ratio == Fraction(7, 10)
    assert first.max_weights_ratio == Fraction(13, 20)
    assert first.max_activation_ratio == Fraction(1)
    assert first.max_plan_bytes == first.max_weights_bytes == 512 * 2**20
    assert first.max_activation_bytes == 100_000_000
    assert first.where.of("max_plan") == f"{FILE}:{line_of('max_plan: ', text=EXPORTED)}"
    assert str(second.where) == f"{FILE}:{line_of('target: sm120', text=EXPORTED)}"


def test_gates_of_what_was_exported_take_their_defaults(load: Load) -> None:
    written = "{export: , parity: {}, engine: {target: sm89, min_fp8_gemms: 1}}"

    gates = load(swap("{roundtrip: {}}", written, text=SMALL)).gates

    export, parity = section_of(gates, ExportGate), section_of(gates, ParityGate)
    assert (export.allow, export.max_size_ratio) == ((), None)
    assert (parity.samples, parity.max_error) == (64, Fraction(1, 1000))
    assert parity.max_sqnr_change_db == 1.0
    (engine,) = gates.all(EngineGate)
    assert (engine.library, engine.towers, engine.batch) == (
        "tensorrt-rtx",
        ("vision", "text"),
        1,
    )
    assert (engine.attention, engine.max_plan_ratio, engine.max_plan_bytes) == (None, None, None)


def test_task_may_be_judged_in_pytorch_and_as_exported(load: Load) -> None:
    gates = load(EXPORTED).gates

    assert [gate.stage for gate in gates.all(AccuracyGate)] == ["torch", "onnx"]
    assert [gate.key for gate in gates.all(AccuracyGate)] == [
        "scenes/classification-acc1",
        "scenes/classification-acc1-onnx",
    ]


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("target: sm89", "sm89"),
        ("target: sm89, towers: [vision]", "sm89-vision"),
        ("target: sm89, towers: [text]", "sm89-text"),
        ("target: sm89, towers: [text, vision]", "sm89"),
        ("target: sm120, batch: 8", "sm120-batch8"),
        ("target: sm89, towers: [text], batch: 2", "sm89-text-batch2"),
        ("target: sm89, batch: 1, library: tensorrt", "sm89-tensorrt"),
    ],
)
def test_engine_is_named_by_what_makes_it_another(load: Load, written: str, key: str) -> None:
    text = f"{{engine: {{{written}, attention: fused}}}}"

    (engine,) = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(EngineGate)

    assert engine.key == key


def test_memory_is_named_as_an_engine_is_and_needs_a_limit(load: Load) -> None:
    text = "{memory: [{target: sm89, towers: [text], batch: 2, max_plan: 64MiB}]}"

    (gate,) = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(MemoryGate)

    assert (gate.key, gate.max_plan_bytes) == ("sm89-text-batch2", 64 * 2**20)
    with pytest.raises(SuiteError, match="sets no limit, so it decides nothing: set a max_"):
        load(swap("{roundtrip: {}}", "{memory: {target: sm89}}", text=SMALL))


def test_a_trace_is_named_by_where_it_ends(load: Load) -> None:
    text = "{trace: [{}, {target: sm89, allow: ['*patch*']}, {target: sm120, towers: [text]}]}"

    found = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(TraceGate)

    assert [gate.key for gate in found] == ["onnx", "sm89", "sm120-text"]
    assert found[1].allow == ("*patch*",)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{allow: ['*']}", "trace.allow: is about an engine: set target as well"),
        ("{batch: 8}", "trace.batch: is about an engine"),
        ("{towers: []}", "trace.towers: is empty"),
        ("{towers: [text, text]}", "trace.towers: names a tower twice"),
        ("[{target: sm89}, {target: sm89}]", "trace: sm89 stands twice"),
    ],
)
def test_a_trace_that_cannot_be_meant_is_refused(load: Load, written: str, words: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(words)):
        load(swap("{roundtrip: {}}", f"{{trace: {written}}}", text=SMALL))


@pytest.mark.parametrize(("written", "change_db"), [("0dB", 0.0), ("0.5dB", 0.5)])
def test_any_change_of_noise_from_none_on_can_be_allowed(
    load: Load, written: str, change_db: float
) -> None:
    text = f"{{parity: {{max_sqnr_change: {written}}}}}"

    gate = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.one(ParityGate)

    assert gate is not None
    assert gate.max_sqnr_change_db == change_db


def test_latency_is_named_by_runtime_tower_and_batch(load: Load) -> None:
    text = "{latency: [{tower: vision, max_ratio: 0.9x}, {tower: text, batch: 8, max_ratio: 1x}]}"

    first, second = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(LatencyGate)

    assert (first.key, second.key) == ("onnxruntime-vision-batch1", "onnxruntime-text-batch8")
    assert (first.max_ratio, first.confidence) == (Fraction(9, 10), Fraction(19, 20))


def test_the_smallest_ratio_that_is_believed_can_be_set(load: Load) -> None:
    text = """{latency: [{tower: vision, max_ratio: 0.9x, min_ratio: 0.05x},
      {tower: text, max_ratio: 1x}]}"""

    first, second = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(LatencyGate)

    assert (first.min_ratio, second.min_ratio) == (Fraction(1, 20), None)


def test_a_list_of_batch_sizes_is_a_gate_for_each(load: Load) -> None:
    text = """{latency: [{tower: vision, batch: [1, 8], max_ratio: 0.9x, max_latency: 2.5ms},
      {tower: text, batch: [4], runtime: tensorrt-rtx, max_latency: 250us}]}"""

    gates = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(LatencyGate)

    assert [gate.key for gate in gates] == [
        "onnxruntime-vision-batch1",
        "onnxruntime-vision-batch8",
        "tensorrt-rtx-text-batch4",
    ]
    assert [gate.max_latency_ms for gate in gates] == [2.5, 2.5, 0.25]
    assert gates[2].max_ratio is None
    assert gates[0].where == gates[1].where


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tower: vision", "latency: sets no limit, so it decides nothing: set max_ratio, max_lat"),
        ("tower: vision, max_latency: 3", "latency.max_latency: 3 needs a unit: 3ms or 3s"),
        ("tower: vision, max_latency: 3h", "latency.max_latency: 3h has the unit 'h', wants one o"),
        ("tower: vision, max_latency: 0ms", "latency.max_latency: 0ms is out of range: above 0ms"),
        ("tower: text, max_ratio: 1x, batch: []", "latency.batch: is empty: name at least one"),
        ("tower: text, max_ratio: 1x, batch: [1, 0]", "latency.batch[1]: 0 is out of range: 1 to"),
        ("tower: text, max_ratio: 1x, batch: {a: 1}", "latency.batch: expected a list [a, b], fo"),
        (
            "tower: text, max_ratio: 1x, batch: [1, 8, 1]",
            "latency: onnxruntime-text-batch1 stands twice",
        ),
        (
            "tower: text, max_ratio: 1x, runtime: tensorrt, threads: 2",
            "latency.threads: tensorrt runs on the GPU: leave it out",
        ),
        ("tower: vision, max_ratio: 90%", "latency.max_ratio: 90% has the unit '%'; write it as"),
        (
            "tower: text, max_ratio: 0.5x, min_ratio: 0.5x",
            "latency.min_ratio: is not below max_ratio, so nothing could pass",
        ),
        ("tower: text, min_ratio: 0.1x", "latency: sets no limit, so it decides nothing"),
        ("tower: image, max_ratio: 1x", "latency.tower: 'image' is none of vision, text"),
        ("tower: text, max_ratio: 1x, runtime: cuda", "latency.runtime: 'cuda' is none of onnx"),
    ],
)
def test_latency_is_refused_with_its_key(load: Load, written: str, words: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(words)):
        load(swap("{roundtrip: {}}", f"{{latency: {{{written}}}}}", text=SMALL))


@pytest.mark.parametrize(
    "limit",
    [
        "min_fp8_gemms: 1",
        "min_gemms: {fp4: 48}",
        "attention: fused",
        "max_plan_ratio: 1x",
        "max_weights_ratio: 1x",
        "max_activation_ratio: 1x",
        "max_plan: 1GB",
        "max_weights: 1GB",
        "max_activation: 1GB",
    ],
)
def test_each_limit_of_an_engine_is_enough_alone(load: Load, limit: str) -> None:
    text = f"{{engine: {{target: sm89, {limit}}}}}"

    assert load(swap("{roundtrip: {}}", text, text=SMALL)).gates.all(EngineGate)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "stage: onnx",
            "stage: plan",
            "accuracy.stage: 'plan' is none of torch, onnx, engine",
        ),
        (
            "stage: onnx",
            "stage: onxn",
            "accuracy.stage: 'onxn' is none of torch, onnx, engine; did you mean onnx?",
        ),
        ("stage: onnx", "stage:", "accuracy.stage: has no value"),
        # export
        (
            "allow: [softmax]",
            "allow: softmax",
            "export.allow: expected a list [a, b], found 'softmax'",
        ),
        (
            "allow: [softmax]",
            "allow: [softmax, layernorm]",
            "export.allow[1]: 'layernorm' is none of softmax, float-weights",
        ),
        (
            "allow: [softmax]",
            "alow: [softmax]",
            "export.alow: unknown key; did you mean allow?",
        ),
        (
            "max_size_ratio: 0.6x",
            "max_size_ratio: 0.6",
            "export.max_size_ratio: 0.6 needs a unit: 0.6x (times FP16)",
        ),
        (
            "max_size_ratio: 0.6x",
            "max_size_ratio: 60%",
            "export.max_size_ratio: 60% has the unit '%'; write it as 0.6x",
        ),
        (
            "max_size_ratio: 0.6x",
            "max_size_ratio: 0x",
            "export.max_size_ratio: 0x is out of range: above 0x, at most 1000x",
        ),
        # parity
        ("samples: 32", "samples: 0", "parity.samples: 0 is out of range: 1 to 1000000000"),
        (
            "max_error: 0.2%",
            "max_error: 0.002",
            "parity.max_error: 0.002 needs a unit: 0.002% or 0.2% (the share 0.002)",
        ),
        (
            "max_error: 0.2%",
            "max_error: 101%",
            "parity.max_error: 101% is out of range: 0% to 100%",
        ),
        (
            "max_sqnr_change: 1.5dB",
            "max_sqnr_change: 1.5",
            "parity.max_sqnr_change: 1.5 needs a unit: 1.5dB",
        ),
        (
            "max_sqnr_change: 1.5dB",
            "max_sqnr_change: -1.5dB",
            "parity.max_sqnr_change: is negative: no change is less than 0dB",
        ),
        (
            "max_sqnr_change: 1.5dB",
            "max_sqnr_change_db: 1.5",
            "parity.max_sqnr_change_db: unknown key; did you mean max_sqnr_change?",
        ),
        # engine
        (
            "target: sm120",
            "target: 120",
            "engine.target: expected a text, found 120: put it in quotes",
        ),
        ("target: sm120", 'target: ""', "engine.target: is empty"),
        (
            "target: sm120",
            'target: "${TARGET}"',
            "engine.target: ${NAME} is expanded only in paths: model.id, root, recipe",
        ),
        (
            "library: tensorrt\n",
            "library: tensorrt_rtx\n",
            "engine.library: 'tensorrt_rtx' is none of tensorrt-rtx, tensorrt; did you mean "
            "tensorrt-rtx?",
        ),
        ("towers: [vision]", "towers: []", "engine.towers: is empty: name vision, text or both"),
        (
            "towers: [vision]",
            "towers: [vision, vision]",
            "engine.towers: names a tower twice, which would count it twice",
        ),
        (
            "towers: [vision]",
            "towers: vision",
            "engine.towers: expected a list [a, b], found 'vision'",
        ),
        (
            "towers: [vision]",
            "towers: [visoin]",
            "engine.towers[0]: 'visoin' is none of vision, text; did you mean vision?",
        ),
        ("batch: 8", "batch: 0", "engine.batch: 0 is out of range: 1 to 1000000000"),
        (
            "min_fp8_gemms: 25",
            "min_fp8_gemms: all",
            "engine.min_fp8_gemms: expected a whole number, found 'all'",
        ),
        (
            "min_fp8_gemms: 25",
            "min_gemms: 25",
            "engine.min_gemms: expected a mapping {fp4: 48}, found '25'",
        ),
        (
            "min_fp8_gemms: 25",
            "min_gemms: {fp5: 25}",
            "engine.min_gemms.fp5: unknown key; did you mean fp8?",
        ),
        (
            "min_fp8_gemms: 25",
            "min_gemms: {fp4: 0}",
            "engine.min_gemms.fp4: 0 is out of range: 1 to 1000000000",
        ),
        (
            "min_fp8_gemms: 25",
            "min_gemms: {}",
            "engine.min_gemms: is empty: name one of fp4, fp8, int8",
        ),
        (
            "attention: fused-fp8",
            "attention: fused-fp9",
            "engine.attention: 'fused-fp9' is none of fused-fp8, fused; did you mean fused-fp8?",
        ),
        (
            "max_plan_ratio: 0.7x",
            "max_plan_ratio: 0.7",
            "engine.max_plan_ratio: 0.7 needs a unit: 0.7x (times FP16)",
        ),
        (
            "max_weights_ratio: 0.65 x",
            "max_weights_ratio: 0.65 y",
            "engine.max_weights_ratio: 0.65 y has the unit 'y', wants x, such as 0.6x",
        ),
        (
            "max_activation_ratio: 1X",
            "max_activation_ratio: 1001x",
            "engine.max_activation_ratio: 1001x is out of range: above 0x, at most 1000x",
        ),
        (
            "max_plan: 512MiB",
            "max_plan: 512",
            "engine.max_plan: 512 needs a unit: 512MiB or 512MB",
        ),
        (
            "max_plan: 512MiB",
            "max_plan: 512 mb",
            "engine.max_plan: 512 mb has the unit 'mb', wants one of KiB, MiB, GiB, KB, MB, GB",
        ),
        (
            "max_weights: 0.5 GiB",
            "max_weights: 0GiB",
            "engine.max_weights: 0GiB is out of range: at least one byte",
        ),
        (
            "max_activation: 100MB",
            "max_activation: lots",
            "engine.max_activation: 'lots' is no quantity: write a number with MiB, such as 512MiB",
        ),
        (
            "max_plan: 512MiB",
            "max_plan_bytes: 512",
            "engine.max_plan_bytes: unknown key; did you mean max_plan?",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_refused_in_what_was_exported(refusal: Refusal, old: str, new: str, words: str) -> None:
    line = line_of(old, text=EXPORTED)

    assert refusal(swap(old, new, text=EXPORTED)) == f"{FILE}:{line}: {words}"


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (
            "{engine: {target: sm89}}",
            "5: engine: sets no limit, so it decides nothing: set attention, min_gemms or a "
            "max_...",
        ),
        (
            "{engine: {target: sm89, library: tensorrt, towers: [text], batch: 8}}",
            "5: engine: sets no limit, so it decides nothing: set attention, min_gemms or a "
            "max_...",
        ),
        (
            "{engine: {target: sm89, min_fp8_gemms: 1, min_gemms: {fp8: 1}}}",
            "5: engine.min_fp8_gemms: is set twice: write min_gemms: {fp8: ...} alone",
        ),
        ("{engine: {attention: fused}}", "5: engine.target: is missing"),
        ("{engine: []}", "5: engine: is empty: leave it out or name at least one"),
        ("{engine: sm89}", "5: engine: expected a list of mappings, found 'sm89'"),
        ("{export: [softmax]}", "5: export: expected a mapping (key: value), found a list"),
        ("{parity: 1%}", "5: parity: expected a mapping (key: value), found '1%'"),
        (
            "\n  engine:"
            "\n    - {target: sm89, attention: fused}"
            "\n    - {target: sm120, attention: fused}"
            "\n    - {target: sm89, towers: [text, vision], min_fp8_gemms: 3}",
            "9: engine: sm89 stands twice",
        ),
        (
            "\n  engine:"
            "\n    - {target: sm89, towers: [text], batch: 2, attention: fused}"
            "\n    - {target: sm89, towers: [text], batch: 2, max_plan: 1GB}",
            "8: engine: sm89-text-batch2 stands twice",
        ),
        (
            "\n  accuracy:"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp, stage: onnx}"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp, stage: torch}"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp}",
            "9: accuracy: a/classification acc1 stands twice",
        ),
        (
            "{regression: {task: a/classification, metric: acc1, max_fp16_drop: 1pp, "
            "max_drop: 1pp, max_drop_since_first: 1pp, stage: onnx}}",
            "5: regression.stage: unknown key; known: task, metric, confidence, samples, "
            "first, bank, bank_samples, positive, min_classes, max_fp16_drop, max_drop, "
            "max_drop_since_first, slices",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_gates_of_what_was_exported_are_refused_as_a_whole(
    refusal: Refusal, gates: str, words: str
) -> None:
    assert refusal(swap("{roundtrip: {}}", gates, text=SMALL)) == f"{FILE}:{words}"
