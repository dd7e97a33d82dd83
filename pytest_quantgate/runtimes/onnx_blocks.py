"""An exported tower cut between its transformer blocks, so that each can be compared by itself.

In a deep quantized model a last-bit difference in one block is a large one some blocks later. Cut,
every block gets the hidden state that it is given from outside, in one run of the whole graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.runtimes.onnx_graph import module_of_node, parse_model


def cut_blocks(source: Path, *, blocks: Sequence[str], path: Path) -> dict[str, str]:
    """Write the graph of `source`, cut behind each of `blocks`, to `path`.

    Returns by block the name of the graph output that holds its hidden state; what follows the
    block reads the input `given_name(output)` instead. Raises ModelError where a block is not in
    the graph, or where more than one value leaves it.
    """
    import onnx

    model = parse_model(source.read_bytes(), path=source)
    outputs = {block: _find_output(model.graph, block, path=source) for block in blocks}
    owners = {name: block for block, name in outputs.items()}
    for node in model.graph.node:
        module = module_of_node(node.name)
        for place, name in enumerate(node.input):
            if name in owners and not _belongs(module, owners[name]):
                node.input[place] = given_name(name)
    for name in outputs.values():
        kind = onnx.TensorProto.FLOAT
        model.graph.input.append(onnx.helper.make_tensor_value_info(given_name(name), kind, None))
        if name not in {value.name for value in model.graph.output}:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    onnx.save(model, path)
    return outputs


def given_name(output: str) -> str:
    """Return the name of the graph input that stands in for the hidden state `output`."""
    return f"{output}.given"


def _belongs(module: str, block: str) -> bool:
    return module == block or module.startswith(f"{block}.")


def _find_output(graph: Any, block: str, *, path: Path) -> str:
    """Return the one value that is made in a block and read behind it."""
    made = {
        name
        for node in graph.node
        if _belongs(module_of_node(node.name), block)
        for name in node.output
    }
    read = {
        name
        for node in graph.node
        if not _belongs(module_of_node(node.name), block)
        for name in node.input
    }
    leaving = sorted(made & read)
    if len(leaving) != 1:
        what = f"{len(leaving)} values leave it" if made else "it is not in the graph"
        raise ModelError(f"{path}: {block} cannot be compared by itself: {what}")
    return str(leaving[0])
