"""Writes the variant of a suite for who serves it: what was judged, and nothing else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.source import LOADED_FILES
from pytest_quantgate.errors import ModelError
from pytest_quantgate.store.disk import describe_write_error, refuse_links
from pytest_quantgate.untrusted import hash_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_quantgate.run.measured import Measured

#: What a folder that was written here says of itself.
RECORD = "quantgate-export.json"

#: Values that a reader computes in another order may lie this far apart, as a share of the largest.
_ROUNDING = 2.0**-16


@dataclass(frozen=True, kw_only=True)
class Handover:
    """What was written: the SHA-256 of each file by its name; `checked` says what was read back."""

    folder: Path
    files: Mapping[str, str]
    checked: str


def hand_over(case: Measured, *, format: str, folder: Path) -> Handover:
    """Write the quantized variant of a case to a new folder, whole or not at all.

    Raises ModelError where the folder exists or cannot be written, where the format cannot hold the
    variant whole, or does not give it back.
    """
    with _new_folder(folder) as draft:
        checked = WRITERS[format](case, draft)
        _copy_settings(case, draft)
        files = {
            path.relative_to(draft).as_posix(): hash_file(path)
            for path in sorted(draft.rglob("*"))
            if path.is_file()
        }
        record = {
            "suite": case.suite.name,
            "format": format,
            "model": case.fp16.description,
            "model_digest": case.fp16.weights_digest,
            "recipe": case.recipe.name,
            "files": files,
        }
        (draft / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Handover(folder=folder, files=files, checked=checked)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill beside the one that is wanted, which it becomes at the end."""
    if folder.exists() or folder.is_symlink():
        raise ModelError(f"{folder} is there already and was not touched: name a new folder")
    try:
        refuse_links(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".exporting-", dir=folder.parent))
        try:
            yield draft
            draft.chmod(0o755)
            draft.replace(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        reason = describe_write_error(error, folder=folder.parent)
        raise ModelError(f"cannot write {folder}: {reason}") from error


def _copy_settings(case: Measured, folder: Path) -> None:
    """Put the tokenizer and the image processor beside what was written."""
    for name, path in case.source.paths.items():
        if name in LOADED_FILES and not (folder / name).exists():
            shutil.copyfile(path, folder / name)


def _write_onnx(case: Measured, folder: Path) -> str:
    for tower in case.towers:
        path = case.stages.onnx_path(
            variant="quantized", tower=tower, precision=case.stages.shipped
        )
        shutil.copyfile(path, folder / f"{tower}.onnx")
    return f"the files that the export gate judges, in {case.stages.shipped}"


def _write_modelopt(case: Measured, folder: Path) -> str:
    from pytest_quantgate.quantization.checkpoint import FILES

    case.require_torch()
    source = case.variant_folder / "checkpoint"
    for name in FILES:
        shutil.copyfile(source / name, folder / name)
    return "the checkpoint that the gates judge"


def _write_compressed(case: Measured, folder: Path) -> str:
    from safetensors.torch import save_file

    from pytest_quantgate.quantization.compressed_tensors import compress

    with case.progress.stage("writing codes and scales"):
        found = compress(case.quantized)
        save_file(dict(found.tensors), folder / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(found.config, indent=1, default=str) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
    with case.progress.stage("reading them back"):
        _compare(found.layers, _read_layers(folder))
    return f"{len(found.layers)} layers read back from codes, with the values of the variant"


def _read_layers(folder: Path) -> Mapping[str, Callable[[], Any]]:
    """Return what a reader that knows nothing of the variant makes of the codes, by layer."""
    from pytest_quantgate.artifacts.checkpoint_operands import describe_checkpoint
    from pytest_quantgate.artifacts.checkpoints import read_files
    from pytest_quantgate.artifacts.dequantized import list_checkpoint_weights

    files = read_files(folder)
    weights = list_checkpoint_weights(files, describe_checkpoint(files))
    return {weight.layer: weight.read for weight in weights if weight.format}


def _compare(wanted: Mapping[str, Any], read: Mapping[str, Callable[[], Any]]) -> None:
    missing = sorted(set(wanted) ^ set(read))
    if missing:
        raise ModelError(f"{missing[0]} does not come back from the file that was written")
    for name, values in wanted.items():
        error = abs(read[name]() - values.numpy()).max()
        if not error <= _ROUNDING * abs(values.numpy()).max():
            raise ModelError(
                f"{name} comes back from the file that was written with an error of {error:.3g}"
            )


#: What writes each format into an empty folder, and says what was checked.
WRITERS: Mapping[str, Callable[[Measured, Path], str]] = {
    "onnx": _write_onnx,
    "modelopt": _write_modelopt,
    "compressed-tensors": _write_compressed,
}
