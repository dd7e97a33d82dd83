"""One ONNX file as a graph that can be walked: sorted, with its tensors wherever they lie.

Tensors in a file beside it are read too, never from outside of its folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.onnx_functions import inline_functions, list_graphs
from pytest_quantgate.artifacts.onnx_packed import unpack_weights
from pytest_quantgate.encoders.source import stays_inside
from pytest_quantgate.errors import ArtifactError, ModelError
from pytest_quantgate.formats.table import name_onnx_element
from pytest_quantgate.runtimes.onnx_model import find_disorder, read_model
from pytest_quantgate.runtimes.onnx_nodes import (
    Graph,
    count_bytes,
    label_of,
    module_of_node,
    name_data_type,
)

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

#: What ONNX calls a type, and what is said of it here.
_TYPES = {"FLOAT": "float32", "DOUBLE": "float64"}


@dataclass(frozen=True, kw_only=True)
class OnnxGraph(Graph):
    """A graph of anybody; `nodes` are in an order in which each value is made before it is read,
    `was_sorted` says whether the file has them so. `model` is the file as onnx reads it, with its
    functions in the place of their calls. Of what lies in branches and loops (`nested_nodes`,
    `nested_bytes` of tensors) nothing is read."""

    path: Path
    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    producer: str
    opset: int
    domains: tuple[str, ...]
    metadata: Mapping[str, str]
    was_sorted: bool
    external: tuple[str, ...]
    had_functions: bool
    nested_nodes: int
    nested_bytes: int

    def type_of(self, name: str) -> str:
        """Return the type of a stored tensor, empty for a value that is computed."""
        tensor = self.tensors.get(name)
        return "" if tensor is None else name_type(tensor)

    def is_float(self, name: str) -> bool:
        """Return whether a stored tensor is kept in full precision."""
        return self.type_of(name).startswith(("float", "bfloat"))

    def count(self, name: str) -> int:
        tensor = self.tensors.get(name)
        return 0 if tensor is None else math.prod(tensor.dims)

    def values(self, name: str) -> Array | None:
        """Return a stored tensor as float32, None for a value that is computed.

        Raises ArtifactError for one that is damaged or lies outside of the folder.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        import onnx

        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = read_external(tensor, path=self.path)
        try:
            found = onnx.numpy_helper.to_array(tensor)
            if found.dtype.kind in "OSUc":
                raise ValueError(f"values of type {found.dtype}")
            return found.astype("f4")
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"{self.path}: tensor {name[:80]!r} is damaged ({reason}): export it again"
            ) from error


def read_onnx_graph(path: Path) -> OnnxGraph:
    """Return the graph of a file.

    Raises ArtifactError for what is no sound ONNX graph, MissingPackage without onnx.
    """
    try:
        model = read_model(path).model
        flat = inline_functions(model, path=path)
    except ModelError as error:
        raise ArtifactError(str(error)) from error
    return replace(index_graph(flat, path=path), had_functions=flat is not model)


def index_graph(model: Any, *, path: Path) -> OnnxGraph:
    """Return a model, as onnx reads it, with its lookups; raises as `read_onnx_graph`."""
    if not model.graph.node:
        raise ArtifactError(f"{path} holds no ONNX graph: export the model again")
    problem = find_disorder(model, in_order=False)
    if problem:
        raise ArtifactError(f"{path}: {problem}: export it again")
    plain = Graph.index(model.graph)
    for tensor in plain.tensors.values():
        size = len(tensor.raw_data)  # a copy of it, each time it is asked for
        if size and size != count_bytes(tensor):
            raise _refuse_size(tensor, size, path=path)
    imports = {entry.domain: entry.version for entry in model.opset_import}
    nested = list(list_graphs(plain.nodes))
    nodes, was_sorted = _sort(plain.nodes, makers=plain.makers, path=path)
    return OnnxGraph(
        path=path,
        model=model,
        nodes=nodes,
        makers=plain.makers,
        readers=plain.readers,
        tensors=dict(plain.tensors) | _unpack(plain, path=path),
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        opset=imports.get("", imports.get("ai.onnx", 0)),
        domains=tuple(sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})),
        metadata={entry.key: entry.value for entry in model.metadata_props},
        was_sorted=was_sorted,
        external=tuple(sorted(set(_list_external(plain.tensors.values(), path=path)))),
        had_functions=False,
        nested_nodes=sum(len(graph.node) for graph in nested),
        nested_bytes=sum(map(count_bytes, _list_stored(nested))),
    )


def _list_stored(graphs: Sequence[Any]) -> Iterator[Any]:
    for graph in graphs:
        yield from graph.initializer
        for node in graph.node:
            yield from (
                a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")
            )


def _unpack(graph: Graph, *, path: Path) -> dict[str, Any]:
    """Return the packed weights of a graph in ONNX's own types; raises ArtifactError."""

    def load(tensor: Any) -> Any:
        import onnx

        is_inside = tensor.data_location != onnx.TensorProto.EXTERNAL
        return tensor if is_inside else read_external(tensor, path=path)

    try:
        return unpack_weights(graph.nodes, tensors=graph.tensors, load=load)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path}: a packed weight is damaged ({reason}): export it again"
        ) from error


def _sort(nodes: Any, *, makers: Mapping[str, Any], path: Path) -> tuple[tuple[Any, ...], bool]:
    """Return the nodes so that each value is made before it is read, and whether they were so."""
    places = {id(node): place for place, node in enumerate(nodes)}
    kept = list(nodes)
    waiting = [len({id(makers[n]) for n in node.input if n in makers}) for node in kept]
    followers: dict[int, list[int]] = {}
    for place, node in enumerate(kept):
        for other in {places[id(makers[name])] for name in node.input if name in makers}:
            followers.setdefault(other, []).append(place)
    was_sorted = all(other < place for other, found in followers.items() for place in found)
    if was_sorted:
        return tuple(kept), True
    ready = [place for place, number in enumerate(waiting) if not number]
    order = []
    while ready:
        place = ready.pop()
        order.append(kept[place])
        for follower in followers.get(place, ()):
            waiting[follower] -= 1
            if not waiting[follower]:
                ready.append(follower)
    if len(order) != len(kept):
        raise ArtifactError(f"{path}: its nodes wait for each other in a circle: export it again")
    return tuple(order), False


def name_type(tensor: Any) -> str:
    """Return the type of a tensor in the words of this product."""
    name = name_data_type(tensor.data_type)
    return name_onnx_element(name) or _TYPES.get(name, name.lower())


def count_bytes_by_type(graph: OnnxGraph) -> dict[str, int]:
    """Return the bytes of all stored tensors by type, largest first."""
    totals: dict[str, int] = {}
    for tensor in graph.tensors.values():
        name = name_type(tensor)
        totals[name] = totals.get(name, 0) + count_bytes(tensor)
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def layer_of(node: Any) -> str:
    """Return the module that a node is of, or its own label where the name says none."""
    return module_of_node(node.name) or label_of(node)


# -- tensors in another file -----------------------------------------------------------------------


def _list_external(tensors: Any, *, path: Path) -> Iterator[str]:
    import onnx

    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield _locate(tensor, path=path)[0].name


def _locate(tensor: Any, *, path: Path) -> tuple[Path, int]:
    """Return the file and the first byte of an external tensor; raises ArtifactError."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    label = f"{path}: tensor {tensor.name[:80]!r}"
    # In the cache of the hub the files of a snapshot are links to the blobs beside it.
    roots = [path.parent, *(p for p in path.parents if p.parent.name == "snapshots")]
    if (
        not location
        or Path(location).is_absolute()
        or not any(stays_inside(file, directory=root) for root in roots)
    ):
        raise ArtifactError(
            f"{label} lies in {location[:80]!r}, outside of the folder, which is not read: put "
            f"the file beside the model"
        )
    if not file.is_file():
        raise ArtifactError(f"{label} lies in {location[:80]!r}, which is missing: copy it too")
    numbers = [entries.get("offset") or "0", entries.get("length") or "-1"]
    if not all(text.removeprefix("-").isdecimal() and len(text) < 19 for text in numbers):
        raise ArtifactError(f"{label} is damaged: its place is no number: export it again")
    offset, length = map(int, numbers)
    size = file.stat().st_size
    length = size - offset if length < 0 else length
    if offset < 0 or offset + length > size or length > bounds.ONNX_BYTES:
        raise ArtifactError(f"{label} ends beyond {location[:80]!r}: copy it again")
    wanted = count_bytes(tensor)
    if length != wanted if "length" in entries else length < wanted:
        raise _refuse_size(tensor, length, path=path)
    return file, offset


def _refuse_size(tensor: Any, found: int, *, path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path}: tensor {tensor.name[:80]!r} is damaged: {found} bytes, its shape and type take "
        f"{count_bytes(tensor)}: export it again"
    )


def read_external(tensor: Any, *, path: Path) -> Any:
    """Return an external tensor with its data inside."""
    import onnx

    file, offset = _locate(tensor, path=path)
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(count_bytes(tensor))
    return onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data
    )
