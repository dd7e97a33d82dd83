"""What Parquet and Arrow files have in common: columns of pyarrow as plain values, image cells.

A cell of an image column is its bytes, a struct of `bytes` and `path` as the `datasets` library
writes it, or the name of a file below the data set's folder. pyarrow is imported only here and in
the two readers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.imagefolder import read_image

#: How a message says what an image column may hold.
EXPECTED_IMAGE = "bytes, a struct of bytes and path, or the name of a file"


class Cells(Protocol):
    """The image column of a table, cell by cell."""

    def read_cell(self, row: int) -> tuple[bytes | None, str | None]:
        """Return the bytes of a cell, and the name of its file; either may be None."""

    def locate(self, row: int) -> str: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class CellArrays:
    """Bytes and names of an array of images; each an array of pyarrow, or None."""

    contents: Any
    paths: Any

    @classmethod
    def split(cls, array: Any) -> CellArrays:
        """Return both of an Array or ChunkedArray that `is_image`."""
        import pyarrow.compute as compute
        import pyarrow.types as types

        if types.is_struct(array.type):
            contents = compute.struct_field(array, "bytes")
            paths = compute.struct_field(array, "path") if has_path(array.type) else None
            return cls(contents=contents, paths=paths)
        if is_text(array.type):
            return cls(contents=None, paths=array)
        return cls(contents=array, paths=None)

    def read(self, index: int) -> tuple[bytes | None, str | None]:
        content = self.contents[index].as_py() if self.contents is not None else None
        if content is not None or self.paths is None:
            return content, None
        return None, self.paths[index].as_py()


@dataclass(frozen=True, kw_only=True)
class CellImages:
    """The encoded images of a table's rows."""

    cells: Cells
    root: Path

    def __len__(self) -> int:
        return len(self.cells)

    def locate(self, index: int) -> str:
        return self.cells.locate(index)

    def read(self, index: int) -> bytes:
        content, path = self.cells.read_cell(index)
        if content is not None:
            if len(content) > bounds.IMAGE_BYTES:
                raise DataError(
                    f"{self.locate(index)}: an image of {len(content)} bytes, at most "
                    f"{bounds.IMAGE_BYTES} are read"
                )
            return content
        if not path:
            raise DataError(f"{self.locate(index)} has no image")
        try:
            return read_image(self.root / path, root=self.root)
        except DataError as error:
            raise DataError(f"{self.locate(index)}: {error}") from error


def is_image(kind: Any) -> bool:
    """Return whether a column of this type of pyarrow can hold images."""
    import pyarrow.types as types

    if types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return (
            "bytes" in names and names <= {"bytes", "path"} and _is_bytes(kind.field("bytes").type)
        )
    return _is_bytes(kind) or is_text(kind)


def has_path(kind: Any) -> bool:
    """Return whether a type of pyarrow is a struct that names the file of its bytes."""
    import pyarrow.types as types

    return types.is_struct(kind) and "path" in [kind.field(i).name for i in range(kind.num_fields)]


def is_text(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def check_image_type(kind: Any, *, column: str, name: str) -> None:
    """Raise DataError for a column that can hold no images."""
    if not is_image(kind):
        raise DataError(f"{name}: column {column!r} is {str(kind)[:80]}, expected {EXPECTED_IMAGE}")


def to_values(array: Any, *, column: str, name: str) -> list[Any]:
    """Return an Array or ChunkedArray of texts, numbers or lists of texts as plain values.

    Equal texts of a dictionary are one object, so what is short in the file is short in memory.
    Raises DataError for values of another type, and for texts that would fill the memory.
    """
    import pyarrow as pa
    import pyarrow.types as types

    if isinstance(array, pa.ChunkedArray):
        return [
            value for chunk in array.chunks for value in to_values(chunk, column=column, name=name)
        ]
    kind = array.type
    if types.is_dictionary(kind):
        texts = to_values(array.dictionary, column=column, name=name)
        return [None if i is None else texts[i] for i in array.indices.to_pylist()]
    if types.is_list(kind) or types.is_large_list(kind):
        flat = to_values(array.flatten(), column=column, name=name)
        found: list[Any] = []
        start = 0
        for length in array.value_lengths().to_pylist():
            found.append(None if length is None else flat[start : start + length])
            start += length or 0
        return found
    if is_text(kind):
        if array.nbytes > bounds.TEXTS_BYTES:
            raise DataError(
                f"{name}: column {column!r} holds {array.nbytes} bytes of text, at most "
                f"{bounds.TEXTS_BYTES} are read"
            )
        return list(array.to_pylist())
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return list(array.to_pylist())
    if types.is_null(kind):
        return [None] * len(array)
    raise DataError(
        f"{name}: column {column!r} is {str(kind)[:80]}, expected texts, numbers or lists of texts"
    )


def read_features(metadata: Mapping[bytes, bytes] | None, *, name: str) -> Mapping[str, Any]:
    """Return what the `datasets` library wrote of the columns into a schema; empty without it."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    if len(text) > bounds.CLASS_NAMES_BYTES:
        raise DataError(f"{name}: its `huggingface` metadata is larger than any")
    try:
        found = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def list_classes(features: Mapping[str, Any], column: str) -> Sequence[str]:
    """Return the names of a column that is a `ClassLabel`, none for another one."""
    about = features.get(column)
    names = about.get("names") if isinstance(about, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names)
