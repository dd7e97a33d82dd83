"""Engines of TensorRT and the reports that trtexec writes of their layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.recipe_lines import as_mapping
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.runtimes.engine_layers import (
    EngineError,
    EngineLayer,
    Kind,
    OnnxGraph,
    classify_layers,
    parse_layers,
    read_block,
)
from pytest_quantgate.untrusted import parse_json, read_regular

#: How a plan begins: TensorRT for RTX, and TensorRT.
_MAGIC = {b"vtrt": "TensorRT for RTX", b"ftrt": "TensorRT", b"ptrt": "TensorRT"}

#: Where the library's version stands, a byte a part (NVIDIA/TensorRT issue 3073, a maintainer).
_VERSION = slice(24, 28)

#: So much of a plan is searched for the GPU that it was built for.
_HEAD_BYTES = 1 << 20

_TARGET = re.compile(rb"(?<![A-Za-z0-9])sm_?(\d{2,3})(?!\d)")

#: What a report calls a type, in any release: a word, or a sentence around it.
_TYPE = re.compile(
    r"\b(FP8\w*|FP4\w*|Int4|INT4|Int8|INT8|Half|FP16|BFloat16|BF16|Float|FP32|Int32|Int64|Bool)\b"
)

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\[\x1e\x1f]|$)")


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The kernels of an engine; `names` alone where the report holds no more."""

    names: tuple[str, ...]
    layers: tuple[EngineLayer, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the bytes of a plan tell without its library; `version` and `target` may be empty."""

    library: str
    version: str
    target: str
    bytes: int

    @property
    def description(self) -> str:
        """The library with its version, and the GPU where it says one."""
        version = f" {self.version}" if self.version else ""
        return f"{self.library}{version}" + (f", built for {self.target}" if self.target else "")


def read_plan(path: Path) -> Plan:
    """Return what a plan tells; raises ArtifactError for what is none."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    library = _MAGIC.get(head[:4])
    if library is None:
        raise ArtifactError(f"{path} is no engine plan of TensorRT: it begins otherwise")
    found, parts = _TARGET.search(head), head[_VERSION]
    return Plan(
        library=library,
        version=".".join(map(str, parts)) if any(parts[:1]) else "",
        target=f"sm{found[1].decode()}" if found else "",
        bytes=size,
    )


def is_plan(path: Path) -> bool:
    """Return whether a file begins as a plan does."""
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


def read_layer_report(path: Path) -> LayerReport:
    """Return the layers of `trtexec --exportLayerInfo`, or of a listing of the builder.

    Raises ArtifactError for a file that is neither.
    """
    try:
        content = read_regular(path, max_bytes=bounds.JSON_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if content.startswith(b"Layers:"):
        return _read_listing(content, path=path)
    try:
        data = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: not JSON: {error}") from error
    rows = data.get("Layers") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        hint = _describe_other(data)
        raise ArtifactError(f"{path} is no layer report (trtexec --exportLayerInfo=FILE){hint}")
    if not rows:
        raise ArtifactError(f"{path} names no layer: export it again")
    if all(isinstance(row, str) for row in rows):
        return LayerReport(names=tuple(rows), layers=())
    if not all(isinstance(row, dict) for row in rows):
        raise ArtifactError(f"{path} is damaged: a layer of it is no mapping: export it again")
    layers = tuple(_read_row(row) for row in rows)
    return LayerReport(names=tuple(layer.name for layer in layers), layers=classify(layers))


def _read_listing(content: bytes, *, path: Path) -> LayerReport:
    try:
        layers = parse_layers(content.decode("utf-8"))
    except (EngineError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    return LayerReport(names=tuple(layer.name for layer in layers), layers=classify(layers))


def _describe_other(data: Any) -> str:
    if isinstance(data, list) and data and "count" in as_mapping(data[0]):
        return ": it is a profile, the times of layers; export the layers too"
    return ""


def is_layer_report(data: Any) -> bool:
    """Return whether parsed JSON has the form of a layer report."""
    return isinstance(data, dict) and isinstance(data.get("Layers"), list)


def _read_row(row: Mapping[str, Any]) -> EngineLayer:
    inputs, outputs = (tuple(_list_types(row.get(key))) for key in ("Inputs", "Outputs"))
    weights = as_mapping(row.get("Weights")).get("Type")
    constants = tuple(_list_types(row.get("Constants")))
    if isinstance(weights, str):
        constants = (*constants, _find_type(weights))
    metadata = row.get("Metadata")
    return EngineLayer(
        name=str(row.get("Name", "")),
        type=str(row.get("LayerType", "")),
        tactic=str(row.get("TacticName", "")),
        input_dtypes=inputs,
        input_shapes=(),
        constant_dtypes=constants,
        output_dtypes=outputs,
        output_shapes=(),
        onnx_nodes=tuple(_NODE.findall(metadata)) if isinstance(metadata, str) else (),
    )


def _list_types(tensors: Any) -> Iterator[str]:
    for tensor in tensors if isinstance(tensors, list) else ():
        entry = as_mapping(tensor)
        keys = ("Datatype", "DataType", "Format/Datatype", "Format/DataType", "Format")
        said = next((entry[key] for key in keys if isinstance(entry.get(key), str)), "")
        yield _find_type(said)


def _find_type(said: str) -> str:
    found = _TYPE.search(said)
    return found[1] if found else said[:40]


def classify(layers: tuple[EngineLayer, ...]) -> tuple[EngineLayer, ...]:
    """Return the layers with kind and precision; without the graph, names and weights tell."""
    nodes = {node for layer in layers for node in layer.onnx_nodes}
    graph = OnnxGraph(
        linear=(),
        conv=(),
        qdq=tuple(node for node in nodes if re.search(r"(Q|Deq)uantizeLinear", node)),
        attentions=(),
    )
    return tuple(_correct(layer) for layer in classify_layers(layers, graph=graph))


def _correct(layer: EngineLayer) -> EngineLayer:
    kind: Kind = layer.kind
    if kind == "matmul" and re.search(r"conv", layer.type, re.IGNORECASE):
        kind = "conv"
    elif kind == "matmul" and layer.constant_dtypes:
        kind = "gemm"
    return replace(layer, kind=kind)


def block_of_layer(layer: EngineLayer) -> int | None:
    """Return the transformer block that a kernel computes in, from the nodes or its name."""
    for name in (*layer.onnx_nodes, layer.name):
        block = read_block(name)
        if block is not None:
            return block
    return None
