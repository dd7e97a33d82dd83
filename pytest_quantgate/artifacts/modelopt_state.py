"""Reads ModelOpt's `modelopt_state.pth` and the one file of `mto.save`, without torch.

Nothing in them is run.

`torch.save` writes a zip archive with one pickle. Here every name in it that is not plain data
becomes an inert stand-in: nothing of it is imported or called, and what it named is reported.
A tensor becomes the place in the file where its values lie.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.safetensors_file import SIZES, Tensor
from pytest_quantgate.errors import ArtifactError

#: Names that torch.load(weights_only=True) takes: plain data and parts of tensors.
_TENSOR_PARTS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}

#: Plain data too, of recipes with blocks: made by its class, which is not called here.
_PLAIN = {"builtins.slice", "__builtin__.slice"}

#: What torch calls a storage's type, and safetensors a tensor's.
_STORAGES = {
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ShortStorage": "I16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "UntypedStorage": "U8",
}

#: Types that have no storage of their own: their tensors say which they are.
_UNTYPED = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class Inert:
    """Stands for anything that a pickle names; does nothing whatever is done to it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class ModelOptState:
    """What a state file says.

    `quantizers` maps a quantizer's name to its settings, `quant_cfg` is the recipe as ModelOpt
    kept it, `algorithm` the name of its calibration, `modes` all that was applied in order.
    `foreign` are names in the pickle that are no plain data: a load with code would run them.
    """

    quantizers: Mapping[str, Mapping[str, Any]]
    quant_cfg: tuple[Any, ...]
    algorithm: str
    modes: tuple[str, ...]
    version: str
    foreign: tuple[str, ...]


def read_state(path: Path) -> ModelOptState:
    """Return what a state file says; raises ArtifactError for one that cannot be read."""
    plain, foreign = _unpickle(path)
    return _read_state(plain, foreign=foreign, path=path)


def read_saved(path: Path) -> tuple[ModelOptState, dict[str, Tensor]]:
    """Return the state and the tensors, by name, of a file that `mto.save` wrote.

    Raises ArtifactError for any other file.
    """
    plain, foreign = _unpickle(path)
    whole = _mapping(plain)
    if "modelopt_state" not in whole and not foreign:
        raise ArtifactError(
            f"{path} is a pickle, and none of ModelOpt's: pickles are never loaded here; save the "
            f"model as safetensors (save_pretrained, safetensors.torch.save_file)"
        )
    state = _read_state(whole.get("modelopt_state"), foreign=foreign, path=path)
    places = _locate_entries(path)
    tensors = {
        str(name): _place(value, name=str(name), path=path, places=places)
        for name, value in _mapping(whole.get("model_state_dict")).items()
        if isinstance(value, _Rebuilt)
    }
    return state, tensors


@dataclass(frozen=True)
class _Rebuilt:
    """A tensor as its pickle describes it: entry of the archive, type, first value, shape."""

    key: str
    dtype: str
    first: int
    shape: tuple[int, ...]


def _rebuild_tensor(storage: Any, first: Any, shape: Any, strides: Any, *_rest: Any) -> Any:
    """Return where a tensor lies; an inert one for what is no whole tensor in its usual order."""
    usual, step = [], 1
    for size in reversed(shape):
        usual.append(step)
        step *= size
    flat = all(size == 1 or a == b for size, a, b in zip(shape, strides, usual[::-1], strict=True))
    if not isinstance(storage, tuple) or storage[0] not in SIZES or not flat:
        return Inert()
    return _Rebuilt(key=storage[1], dtype=storage[0], first=int(first), shape=tuple(shape))


def _rebuild_untyped(
    storage: Any, first: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any
) -> Any:
    """Return where a tensor of 8-bit floats lies, an inert one for another type."""
    if dtype not in _UNTYPED or not isinstance(storage, tuple):
        return Inert()
    return _rebuild_tensor((_UNTYPED[dtype], storage[1]), first, shape, strides)


def _locate_entries(path: Path) -> dict[str, tuple[int, int]]:
    """Return first byte and size of every entry that lies in the archive as it is."""
    places = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for entry in archive.infolist():
            stream.seek(entry.header_offset + 26)
            lengths = stream.read(4)
            begin = entry.header_offset + 30
            begin += int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            if entry.compress_type == zipfile.ZIP_STORED:
                places[entry.filename.partition("/")[2]] = (begin, entry.file_size)
    return places


def _place(
    tensor: _Rebuilt, *, name: str, path: Path, places: Mapping[str, tuple[int, int]]
) -> Tensor:
    begin, size = places.get(f"data/{tensor.key}", (0, 0))
    width = SIZES[tensor.dtype]
    found = Tensor(
        file=path, dtype=tensor.dtype, shape=tensor.shape, offset=begin + tensor.first * width
    )
    plain = all(type(side) is int and side >= 0 for side in (*tensor.shape, tensor.first))
    if (
        not plain
        or len(tensor.shape) > bounds.DIMENSIONS
        or tensor.first * width + found.bytes > size
        or begin + size > path.stat().st_size
    ):
        raise ArtifactError(f"{path} is damaged: tensor {name!r:.80} ends beyond it: save it again")
    return found


def _read_state(plain: Any, *, foreign: tuple[str, ...], path: Path) -> ModelOptState:
    if not isinstance(plain, Mapping) or not isinstance(plain.get("modelopt_state_dict"), list):
        if foreign:  # what could not be read is what the file is about
            return ModelOptState(
                quantizers={}, quant_cfg=(), algorithm="", modes=(), version="", foreign=foreign
            )
        raise ArtifactError(f"{path} holds no ModelOpt state: save the model again")
    quantizers: Mapping[str, Mapping[str, Any]] = {}
    quant_cfg: tuple[Any, ...] = ()
    algorithm = ""
    modes = []
    for entry in plain["modelopt_state_dict"]:
        mode, state = _mode(entry, path=path)
        modes.append(mode)
        found = _mapping(_mapping(state.get("metadata")).get("quantizer_state"))
        if found:  # ModelOpt brings the last one up to date when it saves
            quantizers = {str(name): _mapping(value) for name, value in found.items()}
        config = _mapping(state.get("config"))
        if "quant_cfg" in config:
            kept = config["quant_cfg"]
            quant_cfg = tuple(kept) if isinstance(kept, (list, tuple)) else (kept,)
        algorithm = str(config.get("method") or config.get("algorithm") or algorithm)
    return ModelOptState(
        quantizers=quantizers,
        quant_cfg=quant_cfg,
        algorithm=algorithm,
        modes=tuple(modes),
        version=str(plain.get("modelopt_version", "")),
        foreign=foreign,
    )


def _mode(entry: Any, *, path: Path) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        raise ArtifactError(f"{path}: an entry of modelopt_state_dict is no (mode, state) pair")
    return str(entry[0]), _mapping(entry[1])


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_pickle(path: Path) -> bytes:
    """Return the pickle that torch would load, in which no other reader could see another one.

    torch looks for `data.pkl` below the folder of the first entry, whatever the case, in a file
    that begins with an entry. Two that could be meant, or bytes before the archive, are a decoy,
    for which ArtifactError is raised.
    """
    with path.open("rb") as stream:
        is_first = stream.read(4) == b"PK\x03\x04"
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > bounds.STATE_ENTRIES:
            raise ArtifactError(
                f"{path}: {len(entries)} entries, at most {bounds.STATE_ENTRIES} are read"
            )
        names = [entry.filename for entry in entries]
        folder = names[0].partition("/")[0] if names else ""
        if f"{folder}/data.pkl" not in names:
            raise ArtifactError(f"{path} holds no data.pkl: it was not written by torch.save")
        seen: set[str] = set()
        for name in names:
            if not name.startswith(f"{folder}/") or name.casefold() in seen:
                raise ArtifactError(
                    f"{path}: its entry {name[:80]!r} could be taken for another one, which "
                    f"torch.save never writes: save the model again"
                )
            seen.add(name.casefold())
        if not is_first or entries[0].header_offset != 0 or archive.comment:
            raise ArtifactError(
                f"{path}: bytes before or behind the archive, which torch.save never writes: save "
                f"the model again"
            )
        entry = archive.getinfo(f"{folder}/data.pkl")
        if entry.file_size > bounds.STATE_BYTES:
            raise ArtifactError(
                f"{path}: {entry.file_size} bytes of state, at most {bounds.STATE_BYTES} are read"
            )
        return archive.read(entry)


def _unpickle(path: Path) -> tuple[Any, tuple[str, ...]]:
    foreign: dict[str, None] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full == "collections.OrderedDict":
                return OrderedDict
            if full == "torch.Size":
                return tuple
            if module == "torch" and name in _DTYPES:
                return name  # looked up and never called
            if module in ("torch", "torch.storage") and name in _STORAGES:
                return _STORAGES[name]  # looked up and never called
            if module == "torch" and name.endswith("Storage"):
                return Inert
            if full == "torch._utils._rebuild_tensor_v2":
                return _rebuild_tensor
            if full == "torch._utils._rebuild_tensor_v3":
                return _rebuild_untyped
            if full not in _TENSOR_PARTS | _PLAIN:
                foreign[full] = None
            return Inert

        def persistent_load(self, identity: Any) -> Any:
            if isinstance(identity, tuple) and len(identity) > 2 and identity[0] == "storage":
                kind, key = identity[1:3]
                if isinstance(kind, str) and isinstance(key, str):
                    return (kind, key)
            return Inert()

    try:
        data = _read_pickle(path)
        return Reader(io.BytesIO(data)).load(), tuple(foreign)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{path} is damaged or not written by torch.save: {error}") from error
    except ArtifactError:
        raise
    except Exception as error:  # a damaged pickle ends in any of them
        if foreign:  # a stand-in did not behave: the names say what the file is
            return None, tuple(foreign)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(f"{path} is damaged: {reason}: save the model again") from error


_DTYPES = {
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
}
