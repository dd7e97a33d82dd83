"""What a file or folder is, by its name and first bytes; what is refused, and what to do then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.checkpoints import CONFIG, STATE, is_checkpoint
from pytest_quantgate.artifacts.engine_files import is_layer_report, is_plan
from pytest_quantgate.artifacts.recipe_lines import as_mapping
from pytest_quantgate.artifacts.safetensors_file import read_header
from pytest_quantgate.encoders.source import stays_inside
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.text.words import listed
from pytest_quantgate.untrusted import parse_json, read_regular

Sort = Literal["checkpoint", "onnx", "layer-report", "plan"]

#: A folder is searched for so many files, and so deep.
_MOST_FILES = 2000
_DEPTH = 4

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy")

_WANTED = (".onnx", ".plan", ".engine", ".trt", ".gguf", *_PICKLES)

_SAVE_AS = (
    "pickles are never loaded here: save the model as safetensors "
    "(save_pretrained, safetensors.torch.save_file)"
)

#: Quantization methods of a config.json that are known and not read, and what to do.
_METHODS = {
    "bitsandbytes": "its weights are decoded by bitsandbytes alone and no TensorRT engine runs "
    "them: quantize the FP16 model with ModelOpt",
    "quanto": "Quanto cannot be exported to ONNX or TensorRT: quantize the FP16 model with "
    "ModelOpt",
    "awq": "AutoAWQ packs weights in an order of its own: quantize with ModelOpt's "
    "INT4_AWQ_CFG, or convert it with llm-compressor to compressed-tensors",
    "gptq": "GPTQ packs weights in an order of its own: convert it with llm-compressor to "
    "compressed-tensors",
}


def recognise(path: Path) -> Sort:
    """Return what a path is; raises ArtifactError, by name and with the way out, for others."""
    if path.is_dir():
        if is_checkpoint(path):
            refuse_method(path)
            return "checkpoint"
        raise ArtifactError(f"{path} holds no checkpoint")
    if not path.is_file():
        missing = "is no regular file" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {missing}")
    if path.suffix == ".safetensors":
        refuse_method(path.parent)
        _refuse_names(path)
        return "checkpoint"
    if path.suffix == ".onnx":
        return "onnx"
    return _recognise_content(path)


def _recognise_content(path: Path) -> Sort:
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if head.startswith(b"GGUF") or path.suffix == ".gguf":
        raise ArtifactError(
            f"{path} is a GGUF file, of llama.cpp, which is not read: check the safetensors that "
            f"it was converted from"
        )
    if is_plan(path):
        return "plan"
    if head.startswith(b"PK\x03\x04") and path.suffix in _PICKLES:
        return "checkpoint"  # read by the restricted reader, which takes mto.save's alone
    if head.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in _PICKLES:
        raise ArtifactError(f"{path} is a pickle: {_SAVE_AS}")
    if head.startswith(b"Layers:"):
        return "layer-report"
    if path.suffix == ".json":
        if _is_report(path):
            return "layer-report"
        raise ArtifactError(f"{path} is JSON, and no layer report (trtexec --exportLayerInfo=FILE)")
    raise ArtifactError(
        f"{path} is nothing that is known here: a checkpoint (folder or *.safetensors), *.onnx, an "
        f"engine plan, or a layer report"
    )


def _is_report(path: Path) -> bool:
    try:
        data = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: not JSON: {error}") from error
    if isinstance(data, list) and data and "count" in as_mapping(data[0]):
        raise ArtifactError(
            f"{path} is a profile, the times of layers: export the layers too "
            f"(trtexec --exportLayerInfo=FILE --profilingVerbosity=detailed)"
        )
    return is_layer_report(data)


def refuse_method(folder: Path) -> None:
    """Raise ArtifactError for a checkpoint that a tool wrote whose weights are not read here."""
    try:
        config = parse_json(read_regular(folder / CONFIG, max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        config = {}  # a damaged one is reported where it is read
    settings = as_mapping(as_mapping(config).get("quantization_config"))
    method = str(settings.get("quant_method", "")).lower()
    if method in _METHODS:
        raise ArtifactError(
            f"{folder} is a checkpoint of {method}, which is not read: {_METHODS[method]}"
        )
    for file in sorted(folder.glob("*.safetensors")):
        if file.is_file():
            _refuse_names(file)


def _refuse_names(path: Path) -> None:
    """Raise ArtifactError for tensors named as a tool names them that is not read here."""
    names = read_header(path)
    ends = {name.rpartition(".")[2] for name in names}
    found = ""
    if "SCB" in ends or any(".weight.quant_state." in name for name in names):
        found = "bitsandbytes"
    elif any(name.endswith(".weight._data") for name in names):
        found = "quanto"
    elif "qweight" in ends:
        found = "gptq" if "g_idx" in ends else "awq"
    if found:
        raise ArtifactError(f"{path} is of {found}, which is not read: {_METHODS[found]}")


def find_files(path: Path) -> tuple[list[Path], list[str]]:
    """Return what there is to check at a path, and notes on what else lies there.

    A folder is searched for checkpoints, ONNX files, plans and layer reports. Links that lead out
    of it are not followed.
    """
    if not path.is_dir():
        return [path], []
    found: list[Path] = []
    notes: list[str] = []
    skipped: list[str] = []
    seen = 0
    for folder in _walk(path, depth=_DEPTH, skipped=skipped):
        is_model = is_checkpoint(folder)
        if is_model:
            found.append(folder)
            notes += _note_pickles(folder)
        for file in sorted(folder.iterdir()):
            seen += 1
            if seen > _MOST_FILES:
                raise ArtifactError(
                    f"{path}: more than {_MOST_FILES} files: name the folder that is meant"
                )
            is_away = file.is_symlink() and not stays_inside(file, directory=path)
            if is_away and file.suffix in _WANTED:
                skipped.append(file.as_posix())
            if is_away or not file.is_file() or not _is_wanted(file):
                continue
            if not (is_model and file.suffix in _PICKLES):
                found.append(file)
    if not found:
        raise ArtifactError(
            f"{path} holds no checkpoint (*.safetensors, modelopt_state.pth), *.onnx, engine plan "
            f"or layer report"
        )
    if skipped:
        notes.append(f"not searched (hidden, a link, or too deep): {listed(skipped)}")
    return found, notes


def _walk(folder: Path, *, depth: int, skipped: list[str]) -> Iterator[Path]:
    """Yield a folder and those below it; not the inner one of a cache entry, which is read too.

    `skipped` gets those that are not searched.
    """
    yield folder
    for child in sorted(folder.iterdir()):
        is_inner = child.name == "checkpoint" and is_checkpoint(folder)
        if is_inner or not child.is_dir():
            continue
        if child.is_symlink() or child.name.startswith(".") or not depth:
            skipped.append(child.as_posix())
        else:
            yield from _walk(child, depth=depth - 1, skipped=skipped)


def _is_wanted(file: Path) -> bool:
    if file.suffix in _WANTED:
        return True
    if file.suffix == ".json":
        try:
            return _is_report(file)
        except ArtifactError:
            return False  # some other JSON, which nobody asked about
    return False


def _note_pickles(folder: Path) -> list[str]:
    found = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES and p.name != STATE)
    more = [f"{len(found) - 5} more pickles in {folder.name} were not read"] * (len(found) > 5)
    return [*(f"{folder.name}/{name} is a pickle and was not read" for name in found[:5]), *more]
