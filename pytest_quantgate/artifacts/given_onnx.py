"""An ONNX file that was handed over, made ready for every later stage without changing a value.

Nodes are put in order, weights of other files are taken in, hidden states are pooled as the model's
settings say, and names are made those that the rest of the product reads: of nodes, of the inputs,
of the output. A file that needs none of it stays as it is, byte for byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.artifacts.onnx_completion import complete_graph
from pytest_quantgate.artifacts.onnx_file import OnnxGraph, read_external, read_onnx_graph
from pytest_quantgate.artifacts.onnx_operands import name_tool
from pytest_quantgate.artifacts.onnx_places import (
    Prefix,
    Product,
    TowerModel,
    find_prefix,
    place_products,
)
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.runtimes.onnx_model import parse_model
from pytest_quantgate.runtimes.onnx_nodes import (
    count_bytes,
    is_dequantize,
    is_quantize,
    module_of_node,
)
from pytest_quantgate.runtimes.onnx_surgery import LARGEST_FILE_BYTES, name_in_graph
from pytest_quantgate.text.words import count
from pytest_quantgate.untrusted import hash_file, parse_json

#: What the embeddings are called in every file of a later stage.
OUTPUT = "embeddings"

#: Under this the prepared file keeps what each node that it renames was called.
NAMES = "quantgate.names"

#: Opsets that are read: 10 has no Q/DQ, and nobody has seen one after the last.
OPSETS = (11, 24)

#: Outputs that are the embeddings wherever a graph has several.
_OUTPUTS = (OUTPUT, "image_embeds", "text_embeds", "sentence_embedding")

_FLOATS = ("float32", "float16", "bfloat16")


def digest_files(path: Path) -> dict[str, str]:
    """Return the SHA-256 of an ONNX file by its name, and of each file that its tensors lie in.

    Raises ArtifactError for what is no sound ONNX graph, or lies outside of its folder.
    """
    graph = read_onnx_graph(path)
    places = {
        entry.value
        for tensor in graph.tensors.values()
        for entry in tensor.external_data
        if entry.key == "location"
    }
    # Each was found to lie inside of the folder when the graph was read.
    return hash_files(path.parent, names=(path.name, *(sorted(places) if graph.external else ())))


def hash_files(folder: Path, *, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 (hex) of files of a folder by their names; raises ArtifactError."""
    found = {}
    for name in names:
        try:
            found[name] = hash_file(folder / name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ArtifactError(f"{folder / name} cannot be read: {reason}") from error
    return found


def prepare_graph(
    source: Path, *, path: Path, model: TowerModel, prefix: str | None = None
) -> None:
    """Write what a later stage reads of the graph at `source` to `path`.

    `prefix` is what names of nodes have in front of the model's modules; None: it is found.
    Raises ArtifactError for a graph that cannot be this tower: other inputs, no or several outputs,
    branches, an opset that is not read, weights for which one file has no room.
    """
    read = read_onnx_graph(source)
    _refuse(read)
    graph = complete_graph(read, output=_find_output(read), model=model)
    found = (
        Prefix(strip=prefix.strip("/").replace("/", "."), known=model.known)
        if prefix is not None
        else find_prefix(graph, model=model)
    )
    products = place_products(graph, model=model, prefix=found)
    inputs = _match_inputs(graph, model=model)
    output = _find_output(graph)
    names = dict(_name_nodes(graph, products=products, prefix=found))
    renamed = {**inputs, **({} if output == OUTPUT else {output: OUTPUT})}
    metadata = {
        "quantgate.tower": model.tower,
        "quantgate.precision": find_precision(graph),
        "quantgate.tool": name_tool(graph),
    }
    cast = tuple(_list_cast_scales(graph))
    changed = graph is not read or graph.external or names or renamed or cast
    is_ready = graph.was_sorted and not graph.had_functions and not changed
    if is_ready and all(graph.metadata.get(key) for key in list(metadata)[:2]):
        shutil.copyfile(source, path)
        return
    for node, place in cast:
        _store_cast(graph, node, place=place)
    called = {names[id(node)]: node.name for node in graph.nodes if id(node) in names}
    metadata[NAMES] = json.dumps(called)
    _write(graph, path=path, names=names, renamed=renamed, metadata=metadata)


def read_names(content: bytes, *, path: Path) -> dict[str, str]:
    """Return what nodes of a prepared file were called, by their names now."""
    metadata = {e.key: e.value for e in parse_model(content, path=path).metadata_props}
    names: dict[str, str] = parse_json(metadata.get(NAMES, "{}"))
    return names


def _refuse(graph: OnnxGraph) -> None:
    if graph.nested_nodes:
        raise ArtifactError(
            f"{graph.path} computes {count(graph.nested_nodes, 'node')} in branches or loops, "
            f"which nothing here looks into: export it without (If, Loop and Scan have no place "
            f"in an encoder)"
        )
    first, last = OPSETS
    if not first <= graph.opset <= last:
        raise ArtifactError(
            f"{graph.path} is of opset {graph.opset}: opsets {first} to {last} are read; export it "
            f"for one of those"
        )


def find_precision(graph: OnnxGraph) -> str:
    """Return the type that a graph computes in: that of most stored values beside codes and scales.

    `unknown` where it stores none.
    """
    scales = {
        str(node.input[1])
        for node in graph.nodes
        if is_quantize(node) or is_dequantize(node)
        if len(node.input) > 1
    }
    totals = dict.fromkeys(_FLOATS, 0)
    for name in graph.tensors:
        kind = graph.type_of(name)
        if kind in totals and name not in scales and graph.count(name) > 1:
            totals[kind] += graph.count(name)
    best = max(totals, key=lambda kind: totals[kind])
    return best if totals[best] else "unknown"


def _match_inputs(graph: OnnxGraph, *, model: TowerModel) -> Mapping[str, str]:
    """Return what inputs are to be called, by what they are called; raises ArtifactError."""
    stored = {tensor.name for tensor in graph.model.graph.initializer}  # old exporters list them
    inputs = [name for name in graph.inputs if name not in stored]
    if set(inputs) == set(model.inputs):
        return {}
    if len(inputs) == len(model.inputs) == 1:
        return {inputs[0]: model.inputs[0]}
    raise ArtifactError(
        f"{graph.path} takes {', '.join(inputs) or 'nothing'}, the {model.tower} tower "
        f"{', '.join(model.inputs)}: export it with these inputs by these names"
    )


def _find_output(graph: OnnxGraph) -> str:
    """Return the output that holds the embeddings; raises ArtifactError where that is not one."""
    if len(graph.outputs) == 1:
        return graph.outputs[0]
    named = [name for name in graph.outputs if name in _OUTPUTS]
    if len(named) == 1:
        return named[0]
    raise ArtifactError(
        f"{graph.path} has {len(graph.outputs)} outputs ({', '.join(graph.outputs[:5])}): which "
        f"one is the embedding is not known; export that alone, or call it {OUTPUT!r}"
    )


def _name_nodes(
    graph: OnnxGraph, *, products: Collection[Product], prefix: Prefix
) -> Iterator[tuple[int, str]]:
    """Yield the new name of each node that is called otherwise than its module in the model."""
    placed = {id(product.node): product for product in products}
    taken = {node.name for node in graph.nodes}
    for node in graph.nodes:
        product = placed.get(id(node))
        module = None
        if product is not None and product.module is not None and not product.by_name:
            module = product.module
        elif module_of_node(node.name):
            module = prefix.to_model(module_of_node(node.name))
        if not module or module == module_of_node(node.name):
            continue
        last = node.name.rpartition("/")[2] or node.op_type
        name = f"{name_in_graph(module)}/{last}"
        number = 0
        while name in taken:
            number += 1
            name = f"{name_in_graph(module)}/{last}_{number}"
        taken.add(name)
        yield id(node), name


def _list_cast_scales(graph: OnnxGraph) -> Iterator[tuple[Any, int]]:
    """Yield Q/DQ nodes, and which input of them is a stored scale or zero point that is cast.

    An exporter that folds no constants writes it so; no reader looks for a scale behind a Cast.
    """
    for node in graph.nodes:
        if is_quantize(node) or is_dequantize(node):
            for place in range(1, len(node.input)):
                maker: Any = graph.makers.get(node.input[place])
                is_cast = maker is not None and maker.op_type == "Cast"
                if is_cast and maker.input[0] in graph.tensors:
                    yield node, place


def _store_cast(graph: OnnxGraph, node: Any, *, place: int) -> None:
    import onnx

    name = str(node.input[place])
    maker = graph.makers[name]
    kind = next((int(a.i) for a in maker.attribute if a.name == "to"), 0)
    values = graph.values(maker.input[0])
    stored = f"{name}.stored"
    if values is not None and stored not in {t.name for t in graph.model.graph.initializer}:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        graph.model.graph.initializer.append(
            onnx.numpy_helper.from_array(values.astype(dtype), stored)
        )
    node.input[place] = stored


def _write(
    graph: OnnxGraph,
    *,
    path: Path,
    names: Mapping[int, str],
    renamed: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    import onnx

    total = sum(map(count_bytes, graph.tensors.values()))
    if total > LARGEST_FILE_BYTES:
        raise ArtifactError(
            f"{graph.path} has {total / 1e9:.1f} GB of weights, one file holds "
            f"{LARGEST_FILE_BYTES / 1e9:.1f} GB: export it in float16"
        )
    model: Any = graph.model
    nodes = []
    for node in graph.nodes:
        node.name = names.get(id(node), node.name)
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = renamed.get(name, name)
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _take_in(attribute.t, path=graph.path)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for tensor in model.graph.initializer:
        _take_in(tensor, path=graph.path)
    for value in (*model.graph.input, *model.graph.output):
        value.name = renamed.get(value.name, value.name)
    if len(model.graph.output) > 1:
        kept = next(value for value in model.graph.output if value.name == OUTPUT)
        only = onnx.ValueInfoProto.FromString(kept.SerializeToString())
        del model.graph.output[:]
        model.graph.output.append(only)
    del model.graph.value_info[:]  # what a tool left there is often stale
    onnx.helper.set_model_props(model, {**graph.metadata, **metadata})
    path.write_bytes(model.SerializeToString())


def _take_in(tensor: Any, *, path: Path) -> None:
    """Put the values of a tensor of another file into this one."""
    import onnx

    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.CopyFrom(read_external(tensor, path=path))
