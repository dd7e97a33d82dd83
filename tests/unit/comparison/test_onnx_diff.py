"""Two ONNX files: pairs, operations and weights that differ are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_quantgate.comparison.onnx_files import OnnxFile, compare_onnx, read_onnx
from pytest_quantgate.evidence.onnx import OnnxAudit, OnnxOperation, QdqPair
from tests.unit.comparison.mirrored import mirror

MODULE = "vision_model.encoder.layers.0.mlp.fc1"
LABELS = ("old", "new")
PAIR = QdqPair(
    node="q",
    quantizer=f"{MODULE}.input_quantizer",
    slot="input",
    format="E4M3",
    scale_type="float32",
    scale_min=0.01,
    scale_max=0.01,
    scale_count=1,
    scale_digest="s" * 64,
    amax_min=4.48,
    amax_max=4.48,
    symmetric=True,
    source="activation",
    complete=True,
    producer=None,
    consumers=(MODULE,),
    feeds_owner=True,
)
OPERATION = OnnxOperation(
    node="m",
    module=MODULE,
    operator="MatMul",
    operands_quantized=(True, True),
    quantizers=(PAIR.quantizer, None),
    weights_count=10,
    weight_type="E4M3",
)
AUDIT = OnnxAudit(
    tower="vision",
    precision="float16",
    opset=20,
    domains=("",),
    file_bytes=100,
    digest="d" * 64,
    dynamic_batch=True,
    weights_bytes=(("E4M3", 10),),
    declared=(),
    extra=(),
    pairs=(PAIR,),
    operations=(OPERATION,),
    problems=(),
)
FILE = OnnxFile(audit=AUDIT, weights={"fc1.weight": "w" * 64})


def pair(**changes: Any) -> OnnxFile:
    return replace(FILE, audit=replace(AUDIT, pairs=(replace(PAIR, **changes),)))


def audit(**changes: Any) -> OnnxFile:
    return replace(FILE, audit=replace(AUDIT, **changes))


PLANTS = [
    (audit(pairs=()), f"1 quantizer removed that had been on: {PAIR.quantizer}"),
    (
        pair(complete=False),
        f"1 quantizer left as half a pair: nothing is quantized there: {PAIR.quantizer}",
    ),
    (
        pair(feeds_owner=False),
        f"1 quantizer bypassed: the pair is there and does not feed its layer: {PAIR.quantizer}",
    ),
    (audit(pairs=(PAIR, PAIR)), f"Q/DQ pairs of one name 1 -> 2 in 1 quantizer: {PAIR.quantizer}"),
    (replace(FILE, metadata={"exported": "again"}), "the file: metadata exported: again"),
    (
        replace(FILE, weights={"fc1.weight": "x" * 64}, zero=frozenset({"fc1.weight"})),
        "1 initializer with other values: fc1.weight; all zero now: fc1.weight",
    ),
    (pair(amax_min=8.96, amax_max=8.96), "amax 4.48 -> 8.96 (x2)"),
    (pair(format="INT8"), f"format E4M3 -> INT8 in 1 quantizer: {PAIR.quantizer}"),
    (pair(symmetric=False), "zero point 0 -> not 0"),
    (pair(source="weight, float"), "stored as activation -> weight, float"),
    (
        audit(operations=(replace(OPERATION, operands_quantized=(False, True)),)),
        "1 operation with quantized x quantized, weight E4M3 -> full x quantized, weight E4M3",
    ),
    (audit(operations=()), "the file: 1 operation removed: m"),
    (audit(opset=23), "the file: opset: 20 -> 23"),
    (audit(domains=("", "trt")), "the file: domains: ai.onnx -> ai.onnx, trt"),
    (audit(weights_bytes=(("FLOAT", 40),)), "the file: bytes of E4M3: 10 is gone"),
    (
        replace(FILE, weights={"fc1.weight": "x" * 64}),
        "1 initializer with other values: fc1.weight",
    ),
    (replace(FILE, weights={}), "the file: 1 initializer gone: fc1.weight"),
]


@pytest.mark.parametrize(("planted", "words"), PLANTS, ids=[words for _, words in PLANTS])
def test_planted_change_is_named_and_mirrored(planted: OnnxFile, words: str) -> None:
    there = compare_onnx({"": FILE}, {"": planted}, labels=LABELS).changes
    back = compare_onnx({"": planted}, {"": FILE}, labels=LABELS).changes

    assert any(words in change.text for change in there), [change.text for change in there]
    assert {(c.area, c.kind, c.subjects) for c in there} == {
        (c.area, mirror(c.kind), c.subjects) for c in back
    }


def test_file_is_the_same_as_itself() -> None:
    found = compare_onnx({"": FILE}, {"": replace(FILE)}, labels=LABELS)

    assert found.changes == ()
    assert found.same == ("the file: 1 Q/DQ pair, weights and operations equal",)


def test_files_that_came_or_went_are_named() -> None:
    found = compare_onnx({"vision.onnx": FILE}, {"text.onnx": FILE}, labels=LABELS)

    assert [(c.kind, c.subjects) for c in found.changes] == [
        ("removed", ("vision.onnx",)),
        ("added", ("text.onnx",)),
    ]


def make_model(value: float) -> Any:
    import onnx
    from onnx import TensorProto, helper

    weight = onnx.numpy_helper.from_array(np.asarray([[value, 0], [0, 1]], dtype="f4"), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="/fc/MatMul")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 20)]
    return onnx, helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_files_are_read(tmp_path: Any) -> None:
    sides: list[Callable[[], Any]] = []
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        onnx, model = make_model(value)
        onnx.save(model, tmp_path / name / "m.onnx")
        sides.append(lambda name=name: read_onnx(tmp_path / name))  # type: ignore[misc]

    one, two = (read() for read in sides)
    (change,) = compare_onnx(one, two, labels=LABELS).changes

    assert change.text == "m.onnx: 1 initializer with other values: w"
    assert compare_onnx(one, one, labels=LABELS).changes == ()


def test_zeros_and_metadata_are_read_from_the_file(tmp_path: Any) -> None:
    onnx, model = make_model(0.0)
    helper = onnx.helper
    helper.set_model_props(model, {"quantgate.quantizers": "[]", "quantgate.weights": "abc"})
    lost = helper.make_tensor("lost", onnx.TensorProto.FLOAT, [2], b"\0" * 8, raw=True)
    typed = helper.make_tensor("typed", onnx.TensorProto.FLOAT, [2], [0.0, 0.0])
    model.graph.initializer.extend([lost, typed])
    onnx.save(model, tmp_path / "m.onnx")

    (file,) = read_onnx(tmp_path).values()

    assert file.zero == {"lost", "typed"}
    assert file.metadata == {"quantgate.weights": "abc"}


def make_quantized(*, axis: int = 1, inputs: tuple[str, str] = ("x", "d"), name: str = "/a") -> Any:
    """Return a square weight in INT8 with a scale for each channel, behind an Elu."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Elu", ["p"], ["x"], name=name, alpha=1.0),
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], name="/fc/DQ", axis=axis),
        helper.make_node("MatMul", list(inputs), ["y"], name="/fc/MatMul"),
    ]
    tensors = [
        helper.make_tensor("w", TensorProto.INT8, [2, 2], [127, 1, 2, 127]),
        helper.make_tensor("s", TensorProto.FLOAT, [2], [0.1, 0.2]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 21)]
    return onnx, helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"axis": 0}, "the file: axis 1 -> 0 in 1 node: /fc/DQ"),
        ({"inputs": ("d", "x")}, "the file: 1 node with other inputs, or in another order: "
         "/fc/MatMul"),
        ({"name": "/b"}, "the file: 1 further node removed: /a"),
        ({"name": "/fc/DQ"}, "the file: 1 further node added: /fc/DQ (2)"),
    ],
    ids=["axis", "inputs exchanged", "renamed", "two of a name"],
)  # fmt: skip
def test_what_a_node_computes_with_is_compared(
    tmp_path: Any, changes: dict[str, Any], text: str
) -> None:
    sides = []
    for name, made in (("a", make_quantized()), ("b", make_quantized(**changes))):
        onnx, model = made
        onnx.save(model, tmp_path / f"{name}.onnx")
        sides.append(read_onnx(tmp_path / f"{name}.onnx"))

    found = compare_onnx(*sides, labels=LABELS)

    assert text in [change.text for change in found.changes]


def test_tensors_in_another_file_are_compared_by_their_values(tmp_path: Any) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        onnx, model = make_model(1.0)
        more = {} if name == "c" else {"save_as_external_data": True, "size_threshold": 0}
        onnx.save_model(model, tmp_path / name / "m.onnx", location="m.data", **more)
    data = tmp_path / "b" / "m.data"
    data.write_bytes(bytes(data.stat().st_size))
    one, other, inside = (read_onnx(tmp_path / name / "m.onnx") for name in ("a", "b", "c"))

    (change,) = compare_onnx(one, other, labels=LABELS).changes
    assert change.text == "the file: 1 initializer with other values: w; all zero now: w"
    found = compare_onnx(one, inside, labels=LABELS)
    assert found.changes == ()
    assert found.same[0].endswith("equal; the files differ in bytes alone")


def test_what_a_function_computes_is_compared(tmp_path: Any) -> None:
    files = []
    for operator in ("Relu", "Sigmoid"):
        onnx, model = make_model(1.0)
        helper = onnx.helper
        body = [helper.make_node(operator, ["in"], ["out"], name="curve")]
        imports = list(model.opset_import)
        model.functions.append(helper.make_function("team", "Act", ["in"], ["out"], body, imports))
        model.opset_import.append(helper.make_opsetid("team", 1))
        model.graph.node[-1].output[0] = "before"
        model.graph.node.append(helper.make_node("Act", ["before"], ["y"], domain="team"))
        files.append(tmp_path / f"{operator}.onnx")
        onnx.save(model, files[-1])

    found = compare_onnx(*map(read_onnx, files), labels=LABELS)

    assert any("Sigmoid" in change.text for change in found.changes)
