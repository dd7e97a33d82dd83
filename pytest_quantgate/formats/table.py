"""The table of number formats, and how a format is found in it. A new one is one row.

Sources: OCP 8-bit Floating Point 1.0 (E4M3, E5M2), OCP Microscaling Formats 1.0 (MX: blocks of 32,
a power of two as scale), ModelOpt 0.47's `configs/numerics` (spelling, block sizes, NVFP4's two
levels of scales), ONNX's `TensorProto.DataType`, and what TensorRT for RTX 1.7 printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pytest_quantgate.formats.number_format import NumberFormat

#: What TensorRT for RTX 1.7 builds for ahead of time.
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")

#: FP8 attention was seen to fuse from this many tokens on (TensorRT for RTX 1.7, sm89 and sm120);
#: shorter sequences fall apart, in half precision they do not.
FP8_ATTENTION_MIN_TOKENS = 32

E4M3 = NumberFormat(
    name="E4M3",
    exponent_bits=4,
    mantissa_bits=3,
    reserved_codes=1,
    onnx_type="FLOAT8E4M3FN",
    torch_dtype="float8_e4m3fn",
    safetensors_dtype="F8_E4M3",
    precision="fp8",
    engine_dtypes=("FP8", "FP8E4M3", "FP8E4M3FN"),
    hardware_type="fp8_e4m3",
    first_target="sm89",
)

#: As in IEEE 754 its last exponent is Inf and NaN. ModelOpt has it in dynamic blocks alone.
E5M2 = NumberFormat(
    name="E5M2",
    exponent_bits=5,
    mantissa_bits=2,
    reserved_codes=4,
    needs_gpu=True,
    onnx_type="FLOAT8E5M2",
    safetensors_dtype="F8_E5M2",
    precision="fp8",
    engine_dtypes=("FP8",),
    hardware_type="fp8_e5m2",
    first_target="sm89",
)

INT8 = NumberFormat(
    name="INT8",
    exponent_bits=0,
    mantissa_bits=7,
    onnx_type="INT8",
    torch_dtype="int8",
    safetensors_dtype="I8",
    precision="int8",
    engine_dtypes=("Int8", "INT8"),
    hardware_type="int8",
    first_target="sm75",
)

#: Weights in blocks; a kernel reads them and computes in half precision.
INT4 = NumberFormat(
    name="INT4",
    exponent_bits=0,
    mantissa_bits=3,
    onnx_type="INT4",
    engine_dtypes=("Int4", "INT4"),
    hardware_type="int4",
    first_target="sm80",
)

#: FP4 in blocks with E4M3 scales, under one scale of the tensor.
NVFP4 = NumberFormat(
    name="NVFP4",
    exponent_bits=2,
    mantissa_bits=1,
    block_size=16,
    scale_bits=(4, 3),
    amax="tensor",
    needs_gpu=True,
    onnx_type="FLOAT4E2M1",
    precision="fp4",
    engine_dtypes=("FP4E2M1", "FP4"),
    hardware_type="fp4_e2m1",
    first_target="sm100",
)

#: Formats that weights and activations are computed in, and not quantized to.
FLOAT16 = NumberFormat(name="float16", exponent_bits=5, mantissa_bits=10, reserved_codes=1 << 10)
BFLOAT16 = NumberFormat(name="bfloat16", exponent_bits=8, mantissa_bits=7, reserved_codes=1 << 7)

#: What all formats of OCP's Microscaling have in common.
_MX = NumberFormat(
    name="MX",
    exponent_bits=0,
    mantissa_bits=0,
    block_size=32,
    scale_bits=(8, 0),
    amax="none",
    needs_gpu=True,
)

#: TensorRT for RTX takes it and computes in half precision.
MXFP8 = replace(
    _MX,
    name="MXFP8",
    exponent_bits=4,
    mantissa_bits=3,
    reserved_codes=1,
    onnx_type="FLOAT8E4M3FN",
    first_target="sm100",
)

TABLE: tuple[NumberFormat, ...] = (
    E4M3,
    E5M2,
    INT8,
    INT4,
    NVFP4,
    MXFP8,
    replace(_MX, name="MXFP8 E5M2", exponent_bits=5, mantissa_bits=2, reserved_codes=4),
    replace(_MX, name="MXFP6", exponent_bits=3, mantissa_bits=2),
    replace(_MX, name="MXFP6 E2M3", exponent_bits=2, mantissa_bits=3),
    replace(_MX, name="MXFP4", exponent_bits=2, mantissa_bits=1, onnx_type="FLOAT4E2M1"),
    replace(_MX, name="MXINT8", mantissa_bits=7, onnx_type="INT8"),
)

#: What a type in a safetensors file holds.
BY_SAFETENSORS: Mapping[str, NumberFormat] = {
    row.safetensors_dtype: row for row in TABLE if row.safetensors_dtype
}

#: The words of TensorRT for a tensor of scales that are no values of a row: exponents alone.
SCALE_ENGINE_DTYPES = {"FP8UE8M0": (8, 0)}

#: ONNX's type of scales that are powers of two.
POWERS_OF_TWO = "FLOAT8E8M0"

_SCALE_TYPES = {POWERS_OF_TWO: (8, 0), "FLOAT8E4M3FN": (4, 3)}

_EXPONENT_MANTISSA = re.compile(r"[Ee]([0-9])[Mm]([0-9]{1,2})")
_INTEGER = re.compile(r"(U?)INT([0-9]{1,2})")
_OTHER_BLOCK = re.compile(r"(?P<name>[^(]+) \(block (?P<size>[1-9][0-9]{0,8})\)")


def read_num_bits(value: Any) -> Any:
    """Return ModelOpt's `num_bits` or `scale_bits` as ModelOpt takes it.

    An int, or (exponent, mantissa), written as a list or as `e4m3` too; all else as it is.
    """
    if isinstance(value, str):
        found = _EXPONENT_MANTISSA.fullmatch(value)
        return (int(found[1]), int(found[2])) if found else value
    return tuple(value) if isinstance(value, list) else value


def read_blocks(block_sizes: Any) -> dict[int, int]:
    """Return the sizes of blocks by axis out of ModelOpt's `block_sizes`, which says more."""
    found = block_sizes if isinstance(block_sizes, Mapping) else {}
    return {
        axis: size
        for axis, size in found.items()
        if type(axis) is int and type(size) is int and size > 0
    }


def read_format(
    num_bits: Any, *, block_sizes: Any = None, table: tuple[NumberFormat, ...] = TABLE
) -> NumberFormat | None:
    """Return the format that ModelOpt's `num_bits` and `block_sizes` mean, None for what is none.

    A format of the table in other blocks than its own has another name (`NVFP4 (block 32)`); one
    that is not in the table is known by its bits alone (`INT6`, `E3M2`).
    """
    bits = read_num_bits(num_bits)
    unlisted = _read_bits(bits)
    if unlisted is None:
        return None
    rows = [row for row in table if row.num_bits == bits]
    declared = block_sizes if isinstance(block_sizes, Mapping) else {}
    scale_bits = read_num_bits(declared.get("scale_bits"))
    blocks = list(read_blocks(block_sizes).values())
    for row in rows:
        # ModelOpt passes over `scale_bits` in silence where it has no such format.
        acts = row.amax == "tensor" or declared.get("type") == "dynamic"
        if row.scale_bits and row.scale_bits == scale_bits and acts and len(blocks) == 1:
            return _in_blocks(row, blocks[0])
    return next((row for row in rows if row.scale_bits is None), unlisted)


def ignores_scales(num_bits: Any, *, block_sizes: Any) -> bool:
    """Return whether a format is declared for the scales of blocks that ModelOpt passes over.

    `scale_bits` and `scale_block_sizes` act in the formats of the table that have scales of their
    own; beside INT4 blocks they do nothing, and nothing says so.
    """
    declared = block_sizes if isinstance(block_sizes, Mapping) else {}
    if not any(declared.get(key) for key in ("scale_bits", "scale_block_sizes")):
        return False
    found = read_format(num_bits, block_sizes=block_sizes)
    return found is None or found.scale_bits is None


def name_format(num_bits: Any, *, block_sizes: Any = None) -> str:
    """Return the name of a format (`E4M3`, `NVFP4`, `INT6`), or `unknown(...)` with `num_bits`."""
    found = read_format(num_bits, block_sizes=block_sizes)
    return f"unknown({num_bits!r})" if found is None else found.name


def find_format(name: str, *, table: tuple[NumberFormat, ...] = TABLE) -> NumberFormat | None:
    """Return the format of a name that `name_format` gives; None for `unknown(...)`."""
    other = _OTHER_BLOCK.fullmatch(name)
    base = other["name"] if other else name
    found = next((row for row in table if row.name == base), None) or _read_element(base)
    if found is None or other is None:
        return found
    return _in_blocks(found, int(other["size"]))


def keeps_amax(name: str, *, dynamic: bool) -> bool:
    """Return whether a quantizer of a format has a calibrated amax; `dynamic` as it is declared.

    A dynamic one has none, but in NVFP4, whose dynamic blocks stand under a range of the tensor.
    """
    found = find_format(name)
    return not dynamic if found is None else found.keeps_amax(dynamic=dynamic)


def find_onnx_format(
    onnx_type: str, *, block_size: int | None = None, scale_type: str = ""
) -> NumberFormat | None:
    """Return the format of a tensor in ONNX, by its type, its blocks and the type of its scales."""
    rows = [row for row in TABLE if row.onnx_type == onnx_type]
    plain = next((row for row in rows if row.scale_bits is None), None)
    scaled = [row for row in rows if row.scale_bits is not None]
    for row in scaled:
        if block_size and _SCALE_TYPES.get(scale_type) == row.scale_bits:
            return _in_blocks(row, block_size)
    # The scales of NVFP4 are computed from two: its blocks tell it from MXFP4.
    return plain or next((row for row in scaled if row.block_size == block_size), None)


def name_onnx_element(onnx_type: str) -> str:
    """Return the name of a value of a type of ONNX (`E2M1`, `UINT8`), '' for no row's."""
    signed = onnx_type.removeprefix("U")
    found = next((row for row in TABLE if row.onnx_type == signed), None)
    return onnx_type[: len(onnx_type) - len(signed)] + found.element if found else ""


def narrow_precisions() -> dict[str, int]:
    """Return what kernels multiply in below 16 bits, with its bits, the narrowest first."""
    rows = sorted((row for row in TABLE if row.precision), key=lambda row: row.bits)
    return {row.precision: row.bits for row in rows}


def find_precision(engine_dtype: str) -> str:
    """Return the precision of a kernel for a tensor type in TensorRT's words, '' for no row's."""
    return next((row.precision for row in TABLE if engine_dtype in row.engine_dtypes), "")


def computes_alone(precision: str, engine_dtypes: Iterable[str]) -> bool:
    """Return whether narrow tensors are all of one precision, or scales of its own formats.

    A kernel with FP8 inputs and Int4 weights, or with FP8 values under scales of E8M0, multiplies
    in something else than FP8; the E4M3 scales of NVFP4 belong to it.
    """
    rows = [row for row in TABLE if row.precision == precision]
    own = {dtype for row in rows for dtype in row.engine_dtypes}
    own |= {
        dtype
        for row in rows
        for other in TABLE
        if row.scale_bits == other.num_bits and other.scale_bits is None
        for dtype in other.engine_dtypes
    }
    narrow = {dtype for row in TABLE for dtype in row.engine_dtypes} | SCALE_ENGINE_DTYPES.keys()
    return narrow.intersection(engine_dtypes) <= own


def explain_target(row: NumberFormat, *, target: str) -> str:
    """Return why a format cannot be built for a target, with the targets that have it."""
    return f"{row.name} is not supported on {target}, but on {list_targets(row)}"


def list_targets(row: NumberFormat) -> str:
    """Return in words which targets of TensorRT for RTX have units for a format."""
    return ", ".join(target for target in TARGETS if row.is_supported_on(target)) or "none"


def _read_bits(bits: Any) -> NumberFormat | None:
    """Return a format that is known by its bits alone."""
    if type(bits) is int and 1 <= bits <= 64:
        return NumberFormat(name=f"INT{bits}", exponent_bits=0, mantissa_bits=bits - 1)
    if isinstance(bits, tuple) and [type(part) for part in bits] == [int, int]:
        exponent, mantissa = bits
        if 0 <= exponent <= 8 and 0 <= mantissa <= 23:
            name = f"E{exponent}M{mantissa}"
            return NumberFormat(name=name, exponent_bits=exponent, mantissa_bits=mantissa)
    return None


def _read_element(name: str) -> NumberFormat | None:
    """Return a format that is known by its bits alone, by its name: `INT6`, `UINT8`, `E3M2`."""
    integer = _INTEGER.fullmatch(name)
    found = _read_bits(int(integer[2]) if integer else read_num_bits(name))
    if found is not None and integer and integer[1]:
        found = replace(found, name=f"U{found.name}", is_signed=False, mantissa_bits=found.bits)
    return found if found is not None and found.name == name else None


def _in_blocks(row: NumberFormat, size: int) -> NumberFormat:
    if size == row.block_size:
        return row
    return replace(row, name=f"{row.name} (block {size})", block_size=size)
