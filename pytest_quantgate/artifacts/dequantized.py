"""Weights as they are computed with: dequantized, layer by layer, one in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.checkpoints import CheckpointFiles
from pytest_quantgate.artifacts.layers import Layer, find_layers, lies_flat
from pytest_quantgate.artifacts.onnx_file import OnnxGraph
from pytest_quantgate.artifacts.onnx_reads import read_weights
from pytest_quantgate.artifacts.operands import Artifact, Operand, largest_of
from pytest_quantgate.artifacts.rounding import round_to
from pytest_quantgate.artifacts.safetensors_file import Tensor, import_numpy
from pytest_quantgate.formats.table import find_format

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]


_STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True, kw_only=True)
class LayerWeight:
    """One layer's weight: `read` gives it dequantized as float32, as [out, in] or a kernel.

    `stored` is its type in the file, in the words of safetensors; `is_embedding` tells a table
    that is looked up in. `block` is how many values that lie side by side share a scale, 0 where
    all of a weight do, or it is not known.
    """

    layer: str
    format: str
    stored: str
    read: Callable[[], Array]
    is_embedding: bool = False
    block: int = 0


def list_checkpoint_weights(files: CheckpointFiles, artifact: Artifact) -> Iterator[LayerWeight]:
    """Yield the weights of a checkpoint; those in an unknown layout of 4-bit codes are left out."""
    operands = {o.layer: o for o in artifact.operands if o.slot == "weight"}
    for layer in find_layers(files.tensors):
        operand = operands.get(layer.name)
        if layer.kind == "norm" or not _is_known(operand, layer):
            continue
        yield LayerWeight(
            layer=layer.name,
            format=operand.format if operand is not None else "",
            stored=layer.tensor.dtype,
            read=_reader(layer, operand, scale=_find_pre_scale(files.tensors, layer.name)),
            is_embedding=layer.kind == "embedding",
            block=_count_sharing(operand, layer),
        )


def _count_sharing(operand: Operand | None, layer: Layer) -> int:
    if layer.packed is not None:
        return layer.packed.block
    if operand is None or not operand.is_quantized or len(operand.ranges or ()) < 2:
        return 0
    return operand.values // len(operand.ranges or ())


def _is_known(operand: Operand | None, layer: Layer) -> bool:
    """Return whether a weight's ranges can be laid over it."""
    if layer.packed is not None:
        return layer.packed.block > 0 and layer.packed.whole is not None
    if layer.is_packed:
        return False
    if operand is None or not operand.is_quantized:
        return True
    ranges = operand.ranges
    if operand.dynamic or not ranges:
        return False
    is_flat = lies_flat(operand.granularity, layer.tensor.shape, scales=len(ranges))
    return is_flat and find_format(operand.format) is not None and operand.values % len(ranges) == 0


def _find_pre_scale(tensors: Mapping[str, Tensor], layer: str) -> Tensor | None:
    for name in (f"{layer}.input_quantizer._pre_quant_scale", f"{layer}.pre_quant_scale"):
        if name in tensors:
            return tensors[name]
    return None


def _reader(layer: Layer, operand: Operand | None, *, scale: Tensor | None) -> Callable[[], Array]:
    def read() -> Array:
        packed = None if layer.packed is None else layer.packed.dequantize()
        values = layer.tensor.singles() if packed is None else packed
        if packed is None and operand is not None and operand.is_quantized and operand.ranges:
            values = apply_ranges(
                values,
                ranges=operand.ranges,
                format=operand.format,
                is_coded=operand.is_packed,
            )
        if packed is None:
            values = values.reshape(layer.tensor.shape)
        if scale is not None and values.ndim == 2 and scale.count == values.shape[1]:
            # SmoothQuant and AWQ divided the weight by what they multiply the input by.
            values = values * scale.singles().reshape(1, -1)
        return values

    return read


def apply_ranges(values: Array, *, ranges: tuple[float, ...], format: str, is_coded: bool) -> Array:
    """Return flat codes times their scales, or flat values rounded as the format rounds them."""
    numpy = import_numpy()
    rows = values.reshape(len(ranges), -1)
    with numpy.errstate(all="ignore"):
        largest = numpy.float32(largest_of(format))
        scales = numpy.asarray(ranges, dtype="f4").reshape(-1, 1) / largest
        if not is_coded:
            rows = round_to(rows / numpy.where(scales == 0, 1, scales), format=format)
        scaled: Array = (rows * scales).reshape(-1)
    return scaled


def list_onnx_weights(graph: OnnxGraph) -> Iterator[LayerWeight]:
    """Yield the weights of an ONNX file by the module that they are of, as [out, in]."""
    for layer, format, stored, block, read in read_weights(graph):
        yield LayerWeight(
            layer=layer, format=format, stored=_STORED.get(stored, stored), read=read, block=block
        )
