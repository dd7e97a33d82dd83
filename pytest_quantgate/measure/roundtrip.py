"""Saves a variant, restores it in a new process, compares bit for bit, and plants damage."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.families import wrap_module
from pytest_quantgate.encoders.loading import load_fp16, quiet_libraries
from pytest_quantgate.encoders.source import read_model
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.parity import Roundtrip
from pytest_quantgate.own_process import start_module
from pytest_quantgate.quantization.checkpoint import (
    FILES,
    MANIFEST,
    STATE,
    WEIGHTS,
    build_plain,
    digest_amax,
    restore_over,
    save_checkpoint,
    verify_checkpoint,
)
from pytest_quantgate.quantization.emulation import with_emulation

if TYPE_CHECKING:
    import torch

INPUTS = "inputs.safetensors"
OUTPUTS = "outputs.safetensors"
RUN = "run.json"

#: What the new process reads before it restores; the end of its input before that ends it.
GO = "restore"


def measure_roundtrip(model: Encoder, *, batches: Sequence[Batch], directory: Path) -> Roundtrip:
    """Return what a save and a restore of `model` gave; `directory` is a scratch folder.

    The outputs on `batches` are compared with those of a new process that knows nothing but the
    checkpoint, this device and the number of threads (which decides the order of sums). Then
    copies of the checkpoint are damaged and must each be refused. Raises ValueError for no
    batches, ModelError where the checkpoint cannot be written or restored at all.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if not batches:
        raise ValueError("measure_roundtrip needs at least one batch of pairs")
    checkpoint = directory / "checkpoint"
    with _restoring_elsewhere(directory) as restore:
        saved_bytes = save_checkpoint(model, checkpoint)
        flat = {
            name: value.contiguous()
            for named in Batch.join(batches).inputs.values()
            for name, value in named.items()
        }
        save_file(flat, directory / INPUTS)
        run = {
            "device": model.device,
            "threads": torch.get_num_threads(),
            # No checkpoint may name code: this process says which made the model.
            "factory": getattr(model.module.config, "model", None),
        }
        (directory / RUN).write_text(json.dumps(run), encoding="utf-8")
        with quiet_libraries():
            own = run_towers(with_emulation(model), inputs=flat)
        _return_memory()
        restore()
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
        equal={name: _equal(value, outputs[name]) for name, value in own.items()},
        max_abs_difference=max(
            float((value - outputs[name]).abs().max()) for name, value in own.items()
        ),
        amax_count=len(own_amax),
        amax_different=tuple(different),
        refused=refused,
        accepted=accepted,
    )


def run_towers(model: Encoder, *, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the float32 embeddings of every tower, not normalised, on the CPU."""
    return {name: model.encode(name, inputs).cpu() for name in model.tower_names}


def verify_restored_amax(directory: Path) -> dict[str, str]:
    """Return the amax digests that the new process found in its restored model."""
    digests: dict[str, str] = json.loads((directory / "amax.json").read_text(encoding="utf-8"))
    return digests


def restore_here(directory: Path) -> None:
    """Run in the new process: restore the checkpoint, write its outputs and amax digests."""
    import torch
    from safetensors.torch import load_file, save_file

    checkpoint = directory / "checkpoint"
    run = json.loads((directory / RUN).read_text(encoding="utf-8"))
    torch.set_num_threads(run["threads"])
    manifest = verify_checkpoint(checkpoint)
    if run["factory"]:
        plain = load_fp16(read_model(run["factory"]), device=run["device"])
    else:
        plain = wrap_module(build_plain(checkpoint).to(run["device"]))
    model = restore_over(plain.module, checkpoint, manifest=manifest, like=plain)
    inputs = load_file(directory / INPUTS)
    with quiet_libraries():
        found = run_towers(model, inputs=inputs)
    save_file({name: value.contiguous() for name, value in found.items()}, directory / OUTPUTS)
    (directory / "amax.json").write_text(json.dumps(digest_amax(model.module)), encoding="utf-8")


def plant_damage(checkpoint: Path, *, scratch: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the damages that were refused, and those that were wrongly accepted.

    A model whose quantizers are all dynamic has no amax that could be damaged.
    """
    damages: list[tuple[str, Callable[[Path], None]]] = [
        ("state file missing", lambda folder: (folder / STATE).unlink())
    ]
    if verify_checkpoint(checkpoint)["amax"]:
        damages += [
            ("one amax missing", lambda folder: _edit_amax(folder, factor=None)),
            ("one amax times ten", lambda folder: _edit_amax(folder, factor=10.0)),
        ]
    refused, accepted = [], []
    for name, damage in damages:
        copy = scratch / "damaged"
        copy.mkdir()
        for file in (*FILES, MANIFEST):
            _link_or_copy(checkpoint / file, copy / file)
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


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a file, or copy it on a file system without hard links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _return_memory() -> None:
    """Give freed memory back before a second process needs it: glibc keeps more than a gigabyte
    of what saving a ViT-L/14 took."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


@contextmanager
def _restoring_elsewhere(directory: Path) -> Iterator[Callable[[], None]]:
    """Start the new process, and give what lets it restore and waits for it.

    Meanwhile it imports PyTorch and ModelOpt, which takes it longer than the restore. The function
    raises ModelError where the checkpoint cannot be restored.
    """
    with start_module(
        "pytest_quantgate.measure.restore",
        str(directory.absolute()),
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:

        def restore() -> None:
            _, said = process.communicate(f"{GO}\n")
            if process.returncode != 0:
                last = (said.strip().splitlines() or ["no message"])[-1]
                raise ModelError(
                    f"the saved checkpoint cannot be restored in a new process: {last}"
                )

        yield restore


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors hold the same bits (so NaN equals NaN)."""
    import torch

    bits = (left.cpu().contiguous().view(torch.int32), right.contiguous().view(torch.int32))
    return torch.equal(*bits)
