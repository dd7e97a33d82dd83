"""Functions of a file are read as runtimes run them, and cannot make a bomb of it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pytest_quantgate.artifacts.onnx_file import read_onnx_graph
from pytest_quantgate.artifacts.onnx_functions import inline_functions, list_graphs
from pytest_quantgate.errors import ArtifactError

DOMAIN = "team"


def make_function(name: str, *nodes: Any) -> Any:
    return helper.make_function(
        DOMAIN, name, ["x"], ["y"], list(nodes), [helper.make_opsetid("", 17)]
    )


def make_model(*nodes: Any, functions: list[Any]) -> Any:
    value = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in ("x", "y")}
    weight = numpy_helper.from_array(np.eye(2, dtype="f4"), "w")
    graph = helper.make_graph(list(nodes), "g", [value["x"]], [value["y"]], [weight])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=10)


def call(name: str, source: str, target: str) -> Any:
    return helper.make_node(name, [source], [target], domain=DOMAIN)


def chain(*names: str) -> list[Any]:
    """Return calls in a row, from x to y."""
    values = ["x", *(f"v{i}" for i in range(1, len(names))), "y"]
    return [call(n, values[i], values[i + 1]) for i, n in enumerate(names)]


def test_nested_calls_are_replaced_and_weights_kept() -> None:
    inner = make_function("inner", helper.make_node("Relu", ["x"], ["y"]))
    outer = make_function("outer", *chain("inner", "inner"))
    model = make_model(*chain("outer", "inner"), functions=[outer, inner])

    found = inline_functions(model, path=Path("m.onnx"))

    assert [node.op_type for node in found.graph.node] == ["Relu"] * 3
    assert not found.functions
    assert numpy_helper.to_array(found.graph.initializer[0]).tolist() == np.eye(2).tolist()
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    onnx.checker.check_model(found)


def test_a_model_without_functions_is_itself() -> None:
    model = make_model(helper.make_node("Relu", ["x"], ["y"]), functions=[])

    assert inline_functions(model, path=Path("m.onnx")) is model


@pytest.mark.parametrize("names", [("one",), ("one", "two"), ("one", "two", "three")])
def test_functions_that_call_each_other_are_refused(names: tuple[str, ...]) -> None:
    followers = (*names[1:], names[0])
    functions = [
        make_function(name, call(other, "x", "y"))
        for name, other in zip(names, followers, strict=True)
    ]

    with pytest.raises(ArtifactError, match=r"m\.onnx: its functions call each other in a circle"):
        inline_functions(
            make_model(call("one", "x", "y"), functions=functions), path=Path("m.onnx")
        )


def test_a_bomb_of_functions_is_refused_before_it_grows() -> None:
    names = [f"f{i}" for i in range(40)]
    functions = [make_function("f0", helper.make_node("Relu", ["x"], ["y"]))]
    functions += [make_function(n, *chain(before, before)) for before, n in pairwise(names)]

    with pytest.raises(ArtifactError, match=r"a graph of 549,755,813,888 nodes, at most"):
        inline_functions(make_model(call("f39", "x", "y"), functions=functions), path=Path("m"))


def test_a_long_chain_of_functions_is_read() -> None:
    functions = [make_function("f0", helper.make_node("Relu", ["x"], ["y"]))]
    functions += [make_function(f"f{i}", call(f"f{i - 1}", "x", "y")) for i in range(1, 60)]

    found = inline_functions(
        make_model(call("f59", "x", "y"), functions=functions), path=Path("m.onnx")
    )

    assert [node.op_type for node in found.graph.node] == ["Relu"]


def test_calls_in_branches_count_and_are_replaced() -> None:
    function = make_function("f", helper.make_node("Relu", ["x"], ["y"]))
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
    branch = helper.make_graph([call("f", "x", "made")], "b", [], [made])
    choice = helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=branch)
    model = make_model(choice, functions=[function])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))

    found = inline_functions(model, path=Path("m.onnx"))

    inside = [node.op_type for graph in list_graphs(found.graph.node) for node in graph.node]
    assert inside == ["Relu", "Relu"]


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=6))
def test_what_is_counted_is_what_comes_out(bodies: list[list[int]]) -> None:
    """A function calls those before it alone, so that there is no circle."""
    functions = [make_function("f0", helper.make_node("Relu", ["x"], ["y"]))]
    for number, body in enumerate(bodies, 1):
        functions.append(make_function(f"f{number}", *chain(*(f"f{c % number}" for c in body))))
    sizes = [1]
    for number, body in enumerate(bodies, 1):
        sizes.append(sum(sizes[c % number] for c in body))

    found = inline_functions(
        make_model(call(f"f{len(bodies)}", "x", "y"), functions=functions), path=Path("m.onnx")
    )

    assert len(found.graph.node) == sizes[-1]


def test_a_function_without_its_input_is_refused_in_a_line(tmp_path: Path) -> None:
    function = make_function("f", helper.make_node("Relu", ["gone"], ["y"]))
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model(call("f", "x", "y"), functions=[function]).SerializeToString())

    graph = read_onnx_graph(path)

    assert [node.op_type for node in graph.nodes] == ["Relu"]
    assert graph.had_functions


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    function = make_function("f", helper.make_node("Relu", ["x"], ["y"], name="plain_name"))
    data = make_model(call("f", "x", "y"), functions=[function]).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data.replace(b"plain_name", b"plain_\xff\xfe\xffe"))

    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        read_onnx_graph(path)
