"""Reads safetensors files tensor by tensor, mapped and not loaded, in any dtype, with NumPy alone.

The format: eight bytes with the length of a JSON header (little endian), the header, the data.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import ArtifactError, MissingPackage
from pytest_quantgate.formats.table import E4M3
from pytest_quantgate.untrusted import parse_json

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

#: What NumPy reads each type of the format as; the values of some are decoded from it.
_NUMPY = {
    "BOOL": "u1",
    "U8": "u1",
    "I8": "i1",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "F8_E8M0": "u1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
FLOATS = ("F16", "BF16", "F32", "F64")

#: Bytes of one value by the name that the format gives its type.
SIZES = {name: int(code[-1]) for name, code in _NUMPY.items()}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Where one tensor is; nothing of it is read before `raw` or `values` is asked."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * SIZES[self.dtype]

    def raw(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the stored numbers `start` to `stop` of the flat tensor, mapped from the file."""
        numpy = import_numpy()
        stop = self.count if stop is None else min(stop, self.count)
        if stop <= start:
            empty: Array = numpy.empty(0, dtype=_NUMPY[self.dtype])
            return empty
        mapped: Array = numpy.memmap(
            self.file,
            dtype=_NUMPY[self.dtype],
            mode="r",
            offset=self.offset + start * SIZES[self.dtype],
            shape=(stop - start,),
        )
        return mapped

    def values(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the values as float64 (integers and Booleans too)."""
        return self._decode(start, stop, "f8")

    def singles(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the values as float32, which is exact for every type of 16 bits and fewer."""
        return self._decode(start, stop, "f4")

    def _decode(self, start: int, stop: int | None, dtype: str) -> Array:
        numpy = import_numpy()
        raw = self.raw(start, stop)
        if self.dtype == "BF16":
            raw = (raw.astype("<u4") << 16).view("<f4")
        elif self.dtype == "F8_E5M2":
            raw = (raw.astype("<u2") << 8).view("<f2")
        elif self.dtype == "F8_E4M3":
            raw = numpy.asarray(_e4m3_values(), dtype=dtype)[raw]
        elif self.dtype == "F8_E8M0":
            raw = decode_powers(raw)
        with numpy.errstate(all="ignore"):  # a NaN that signals; whoever reads it says so
            return raw.astype(dtype)


def decode_powers(raw: Array) -> Array:
    """Return the powers of two that E8M0 bytes stand for, as float64; its last code is NaN."""
    numpy = import_numpy()
    found: Array = numpy.where(raw == 255, numpy.nan, numpy.ldexp(1.0, raw.astype("i4") - 127))
    return found


@cache
def _e4m3_values() -> tuple[float, ...]:
    """Return the value of each E4M3FN byte."""
    sizes = [*map(E4M3.value_of, range(E4M3.top_code + 1)), math.nan]
    return (*sizes, *(-size for size in sizes))


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name; raises ArtifactError for a damaged one."""
    header, start, size = _read_json_header(path)
    tensors = {
        name: _read_entry(entry, name=name, path=path, start=start, size=size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.bytes)):
        if tensor.offset != end:
            break
        end += tensor.bytes
    if end != size:
        raise ArtifactError(
            f"{path} is damaged: its tensors do not fill the file one behind the other (byte {end} "
            f"of {size}), which every loader refuses: copy or save it again"
        )
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a file says beside its tensors; raises ArtifactError for a damaged one."""
    found = _read_json_header(path)[0].get("__metadata__")
    texts = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in texts if isinstance(text, str)}


def _read_json_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header of a file, where its data begins, and the size of the file in bytes."""
    damaged = f"{path} is damaged"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise ArtifactError(f"{path} is no regular file: copy or save it again")
        size = found.st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(bounds.HEADER_BYTES, size - 8):
                raise ArtifactError(
                    f"{damaged}: its header says {length} bytes, the file has {size}: "
                    f"copy or save it again"
                )
            header = parse_json(stream.read(length))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{damaged}: its header is not JSON: copy or save it again") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{damaged}: its header is no mapping: copy or save it again")
    return header, 8 + length, size


def _read_entry(entry: Any, *, name: str, path: Path, start: int, size: int) -> Tensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged: tensor {name!r:.80} is not described: save it again"
        ) from error
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise ArtifactError(
            f"{path}: tensor {name!r:.80} has the type {dtype!r:.80}, which is not known here"
        )
    plain = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if (
        not plain
        or len(shape) > bounds.DIMENSIONS
        or end - begin != math.prod(shape) * SIZES[dtype]
        or start + end > size
    ):
        raise ArtifactError(
            f"{path} is damaged: tensor {name!r:.80} ends beyond the file or has another size than "
            f"its shape: copy or save it again"
        )
    return Tensor(file=path, dtype=dtype, shape=shape, offset=start + begin)


def import_numpy() -> Any:
    """Return NumPy; raises MissingPackage without it."""
    try:
        import numpy
    except ImportError as error:
        raise MissingPackage("numpy", extra="clip", purpose="comparing checkpoints") from error
    return numpy
