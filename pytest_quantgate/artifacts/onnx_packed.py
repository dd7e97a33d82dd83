"""The weights of MatMulNBits, ONNX Runtime's product of packed blocks, in ONNX's own types.

Codes lie as [outputs, blocks, bytes], the low half of a byte first, and are unsigned: half of their
range, or the zero point of their block, is taken off (ONNX Runtime, docs/ContribOperators.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: By the bits of a code: ONNX's type for it, and what makes an unsigned code less its half of it.
_TYPES = {4: ("INT4", 0x88), 8: ("INT8", 0x80)}

_ATTRIBUTES = ("K", "N", "bits", "block_size", "accuracy_level")


def read_sizes(node: Any) -> dict[str, int]:
    """Return what a MatMulNBits node says of its weight; `bits` are 4 where it says none."""
    said = {a.name: int(a.i) for a in node.attribute if a.name in _ATTRIBUTES}
    return {"bits": 4, "block_size": 0, "K": 0, "N": 0, "accuracy_level": 0} | said


def unpack_weights(
    nodes: Iterable[Any], *, tensors: Mapping[str, Any], load: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return the weights of all MatMulNBits as tensors by the names that they have in the file.

    Codes are [outputs, inputs], scales and zero points [outputs, blocks]. What does not lie as its
    node says, is of other bits or in another order (`g_idx`) is left out. `load` gives a tensor
    with its data inside.
    """
    found: dict[str, Any] = {}
    for node in nodes:
        if node.op_type != "MatMulNBits" or len(node.input) < 3 or "".join(node.input[4:5]):
            continue
        names = [str(name) for name in node.input[1:4]]
        parts = [load(tensors[name]) if name in tensors else None for name in names]
        if parts[0] is None or parts[1] is None or (names[2:] != [""] and None in parts[2:]):
            continue
        unpacked = _unpack(parts, sizes=read_sizes(node))
        found |= {name: tensor for name, tensor in zip(names, unpacked, strict=False) if tensor}
    return found


def _unpack(parts: list[Any], *, sizes: Mapping[str, int]) -> list[Any]:
    """Return codes, scales and zero points in the layout of DequantizeLinear, or nothing."""
    import numpy
    from onnx import TensorProto, numpy_helper

    bits, size, inputs, outputs = (sizes[key] for key in ("bits", "block_size", "K", "N"))
    if bits not in _TYPES or size < 1 or inputs < 1 or outputs < 1 or inputs * bits % 8:
        return []
    blocks, (kind, middle) = -(-inputs // size), _TYPES[bits]
    codes, scales = (numpy_helper.to_array(part) for part in parts[:2])
    if codes.dtype != numpy.uint8 or codes.size * 8 != outputs * blocks * size * bits:
        return []
    if scales.size != outputs * blocks or scales.dtype.kind not in "fV":
        return []
    rows = numpy.ascontiguousarray(codes.reshape(outputs, -1)[:, : inputs * bits // 8]) ^ middle
    laid = [
        TensorProto(
            name=parts[0].name,
            data_type=TensorProto.DataType.Value(kind),
            dims=[outputs, inputs],
            raw_data=rows.tobytes(),
        ),
        numpy_helper.from_array(scales.reshape(outputs, blocks), parts[1].name),
    ]
    zeros = parts[2] if len(parts) > 2 else None
    if zeros is not None:
        found = _unpack_zeros(zeros, bits=bits, shape=(outputs, blocks))
        return [] if found is None else [*laid, found]
    return laid


def _unpack_zeros(tensor: Any, *, bits: int, shape: tuple[int, int]) -> Any:
    """Return the zero points less half of the range of codes; None where there are not as many.

    They are packed as codes are, a row of blocks at a time, or plain floats.
    """
    import numpy
    from onnx import TensorProto, numpy_helper

    stored, middle = numpy_helper.to_array(tensor), 1 << bits - 1
    if stored.dtype != numpy.uint8:
        fits = stored.size == math.prod(shape)
        plain = stored.astype("f4").reshape(shape) - middle if fits else None
        return plain if plain is None else numpy_helper.from_array(plain, tensor.name)
    if stored.size != shape[0] * -(-shape[1] * bits // 8):
        return None
    rows = stored.reshape(shape[0], -1)
    if bits == 4:
        rows = numpy.stack([rows & 15, rows >> 4], axis=-1).reshape(shape[0], -1)
    codes = (rows[:, : shape[1]] - middle).ravel()
    if bits == 4:
        halves = numpy.append(codes & 15, [0] * (codes.size % 2)).astype("u1")
        codes = halves[::2] | halves[1::2] << 4
    return TensorProto(
        name=tensor.name,
        data_type=TensorProto.DataType.Value(_TYPES[bits][0]),
        dims=shape,
        raw_data=codes.astype("u1").tobytes(),
    )
