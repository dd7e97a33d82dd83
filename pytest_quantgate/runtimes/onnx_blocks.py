"""An exported tower cut between its transformer blocks, so that each can be compared by itself.

In a deep quantized model a last-bit difference in one block is a large one some blocks later. Cut,
every block is a graph of its own, which gets the hidden state in front of it from outside. And
where a value lies on the edge between two steps of a quantizer, a last bit is a whole step: so a
block's graph gives what its quantizers gave as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.quantization.quantizers import slot_of
from pytest_quantgate.runtimes.onnx_model import parse_model
from pytest_quantgate.runtimes.onnx_nodes import module_of_node


@dataclass(frozen=True, kw_only=True)
class GraphPart:
    """A block as a graph at `path`, or what is behind the last one.

    `inputs` are those of the tower that it reads, `given` the names of graph inputs that stand in
    for the hidden states of other blocks, by block. `output` is the name of its result, `pairs`
    are those of what DequantizeLinear gives, by the quantizer.
    """

    path: Path
    inputs: tuple[str, ...]
    given: Mapping[str, str]
    output: str
    pairs: Mapping[str, str]


def cut_blocks(source: Path, *, blocks: Sequence[str], folder: Path) -> dict[str, GraphPart]:
    """Write each of `blocks` of the graph of `source`, and what is behind the last one, to
    `folder`, one file each.

    Returns them by block; what is behind stands under "". The first has what is in front of it.
    They run as they are written: pairs that are outputs are not fused with what reads them.
    Raises ModelError where a block is not in the graph, or where more than one value leaves it.
    """
    model = parse_model(source.read_bytes(), path=source)
    outputs = {block: _find_output(model.graph, block, path=source) for block in blocks}
    results = {**outputs, "": model.graph.output[0].name}
    return {
        block: _write_part(
            model,
            output,
            hidden={name: other for other, name in outputs.items() if other != block},
            path=folder / f"{number}.onnx",
        )
        for number, (block, output) in enumerate(results.items())
    }


def _write_part(model: Any, output: str, *, hidden: Mapping[str, str], path: Path) -> GraphPart:
    """Write all that makes `output`, from the values `hidden` on, which are of those blocks."""
    import onnx

    makers = {name: number for number, n in enumerate(model.graph.node) for name in n.output}
    needed, read, wanted = set(), set(), [output]
    while wanted:
        name = wanted.pop()
        if name in read:
            continue
        read.add(name)
        if name not in hidden and name in makers:
            needed.add(makers[name])
            wanted += model.graph.node[makers[name]].input
    nodes = [model.graph.node[number] for number in sorted(needed)]
    pairs = {
        module_of_node(node.name): node.output[0]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in makers
    }
    pairs = {
        name: value
        for name, value in pairs.items()
        if name.endswith("_quantizer") and slot_of(name) != "weight"
    }
    inputs = [value for value in model.graph.input if value.name in read]
    given = {block: name for name, block in hidden.items() if name in read}

    def declare(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)

    graph = onnx.helper.make_graph(
        nodes,
        model.graph.name,
        [*inputs, *map(declare, given.values())],
        [declare(name) for name in dict.fromkeys((output, *pairs.values()))],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    part = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    onnx.save(part, path)
    return GraphPart(
        path=path,
        inputs=tuple(value.name for value in inputs),
        given=given,
        output=output,
        pairs=pairs,
    )


def _find_output(graph: Any, block: str, *, path: Path) -> str:
    """Return the one value that is made in a block and read behind it.

    A constant is nobody's: PyTorch lets blocks share them.
    """
    made, read = set[str](), set[str]()
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        if f"{module_of_node(node.name)}.".startswith(f"{block}."):
            made.update(node.output)
        else:
            read.update(node.input)
    leaving = sorted(made & read)
    if len(leaving) != 1:
        what = f"{len(leaving)} values leave it" if made else "it is not in the graph"
        raise ModelError(f"{path}: {block} cannot be compared by itself: {what}")
    return leaving[0]
