"""Saves a variant, restores it in a new process, compares bit for bit, and plants damage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.errors import ModelError
from pytest_quantgate.measurement import Roundtrip
from pytest_quantgate.models.checkpoint import (
    MANIFEST,
    STATE,
    WEIGHTS,
    digest_amax,
    restore_module,
    save_checkpoint,
    verify_checkpoint,
)
from pytest_quantgate.models.clip import ClipModel, PairBatch
from pytest_quantgate.models.loading import quiet_libraries

if TYPE_CHECKING:
    import torch

INPUTS = "inputs.safetensors"
OUTPUTS = "outputs.safetensors"


def measure_roundtrip(
    model: ClipModel, *, batches: Sequence[PairBatch], directory: Path
) -> Roundtrip:
    """Return what a save and a restore of `model` gave; `directory` is a scratch folder.

    The outputs of the first batch are compared with those of a new process that knows nothing but
    the checkpoint. Then copies of the checkpoint are damaged and must each be refused.
    """
    from safetensors.torch import load_file, save_file

    batch = batches[0]
    checkpoint = directory / "checkpoint"
    saved_bytes = save_checkpoint(model, checkpoint)
    save_file(
        {"pixel_values": batch.pixel_values.contiguous(), **_contiguous(batch.tokens)},
        directory / INPUTS,
    )
    with quiet_libraries():
        vision, text = run_towers(model.module, pixel_values=batch.pixel_values, tokens=batch.tokens)
    _restore_elsewhere(directory)
    outputs = load_file(directory / OUTPUTS)
    restored_amax = verify_restored_amax(directory)
    own_amax = digest_amax(model.module)
    different = sorted(
        name
        for name in own_amax.keys() | restored_amax.keys()
        if own_amax.get(name) != restored_amax.get(name)
    )
    refused, accepted = plant_damage(checkpoint, scratch=directory)
    return Roundtrip(
        saved_bytes=saved_bytes,
        vision_equal=_equal(vision, outputs["vision"]),
        text_equal=_equal(text, outputs["text"]),
        max_abs_difference=max(
            float((vision.cpu() - outputs["vision"]).abs().max()),
            float((text.cpu() - outputs["text"]).abs().max()),
        ),
        amax_count=len(own_amax),
        amax_different=tuple(different),
        refused=refused,
        accepted=accepted,
    )


def run_towers(
    module: torch.nn.Module, *, pixel_values: torch.Tensor, tokens: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the float32 embeddings of both towers, not normalised."""
    parameter = next(module.parameters())
    bare = ClipModel(
        module=module,
        tokenizer=None,
        image_processor=None,
        weights_digest="",
        description="",
        weight_dtype="",
        compute_dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
    )
    return bare.encode_image(pixel_values), bare.encode_text(tokens)  # type: ignore[arg-type]


def verify_restored_amax(directory: Path) -> dict[str, str]:
    """Return the amax digests that the new process found in its restored model."""
    import json

    digests: dict[str, str] = json.loads((directory / "amax.json").read_text(encoding="utf-8"))
    return digests


def restore_here(directory: Path) -> None:
    """Run in the new process: restore the checkpoint, write its outputs and amax digests."""
    import json

    from safetensors.torch import load_file, save_file

    checkpoint = directory / "checkpoint"
    manifest = verify_checkpoint(checkpoint)
    module = restore_module(checkpoint, manifest=manifest)
    inputs = load_file(directory / INPUTS)
    pixel_values = inputs.pop("pixel_values")
    with quiet_libraries():
        vision, text = run_towers(module, pixel_values=pixel_values, tokens=inputs)
    save_file({"vision": vision.cpu(), "text": text.cpu()}, directory / OUTPUTS)
    (directory / "amax.json").write_text(json.dumps(digest_amax(module)), encoding="utf-8")


def plant_damage(checkpoint: Path, *, scratch: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the damages that were refused, and those that were wrongly accepted."""
    damages: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("state file missing", lambda folder: (folder / STATE).unlink()),
        ("one amax missing", lambda folder: _edit_amax(folder, factor=None)),
        ("one amax times ten", lambda folder: _edit_amax(folder, factor=10.0)),
    )
    refused, accepted = [], []
    for name, damage in damages:
        copy = scratch / "damaged"
        copy.mkdir()
        for file in (STATE, WEIGHTS, MANIFEST, "config.json"):
            (copy / file).hardlink_to(checkpoint / file)
        try:
            damage(copy)
            verify_checkpoint(copy)
        except ModelError:
            refused.append(name)
        else:
            accepted.append(name)
        finally:
            shutil.rmtree(copy)
    return tuple(refused), tuple(accepted)


def _edit_amax(folder: Path, *, factor: float | None) -> None:
    """Rewrite the weights with one amax changed, or without it (factor None)."""
    from safetensors.torch import load_file, save_file

    path = folder / WEIGHTS
    weights = load_file(path)
    name = next(name for name in sorted(weights) if name.endswith("_amax"))
    if factor is None:
        del weights[name]
    else:
        weights[name] = weights[name] * factor
    path.unlink()  # it is a link to the good file
    save_file(weights, path)


def _restore_elsewhere(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest_quantgate.measure.restore", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"the saved checkpoint cannot be restored in a new process: {last}")


def _contiguous(tokens: object) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in tokens.items()}  # type: ignore[attr-defined]


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors hold the same bits (so NaN equals NaN)."""
    import torch

    bits = (left.cpu().contiguous().view(torch.int32), right.contiguous().view(torch.int32))
    return torch.equal(*bits)
