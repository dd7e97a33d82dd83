"""Loads the FP16 baseline of a suite: safetensors only, checked, in a known arithmetic."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured
from pytest_quantgate.models.clip import ClipModel
from pytest_quantgate.models.source import CheckpointSource, resolve_checkpoint
from pytest_quantgate.suite import ModelSpec

if TYPE_CHECKING:
    import torch


def load_fp16(
    spec: ModelSpec, *, device: str = "cpu", environ: Mapping[str, str] = os.environ
) -> ClipModel:
    """Return the FP16 variant of a suite's model.

    The weights are rounded to `spec.dtype`. On a CPU they are then computed with in FP32: PyTorch
    emulates most FP16 kernels there, and the note says so. Raises NotMeasured where the weights or
    the device are not there, MissingPackage without the `clip` extra, and ModelError for a
    checkpoint that is damaged, no CLIP, incomplete, or holds NaN or Inf.
    """
    try:
        import torch
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
    except ImportError as error:
        raise MissingPackage(
            error.name or "transformers", extra="clip", purpose="loading a CLIP model"
        ) from error
    source = resolve_checkpoint(spec, environ=environ)
    where = spec.where.of("id")
    if device == "cuda" and not torch.cuda.is_available():
        raise NotMeasured("device cuda: torch finds no CUDA device; use --quantgate-device=cpu")
    check_files(source, where=where)
    compute_dtype = "float32" if device == "cpu" else spec.dtype
    dtype: torch.dtype = getattr(torch, spec.dtype)
    with quiet_libraries():
        try:
            module, info = CLIPModel.from_pretrained(
                source.directory,
                dtype=dtype,
                attn_implementation=spec.attn_implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                source.directory, local_files_only=True, trust_remote_code=False
            )
            processor = CLIPImageProcessor.from_pretrained(source.directory, local_files_only=True)
        except Exception as error:  # tokenizers raises a bare Exception for a damaged file
            raise ModelError(f"{where}: {source.description}: {_first_line(error)}") from error
    incomplete = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if incomplete:
        raise ModelError(
            f"{where}: {source.description}: {len(incomplete)} weights are missing or of another "
            f"shape, first {incomplete[0]}: the checkpoint is not the model of its config.json"
        )
    # Older checkpoints keep the position ids, which are no weights.
    unused = sorted(k for k in info["unexpected_keys"] if not k.endswith(".position_ids"))
    if unused:
        raise ModelError(
            f"{where}: {source.description}: {len(unused)} weights have no place in the model of "
            f"config.json, first {unused[0]}: it would run without them"
        )
    check_finite(module, where=f"{where}: {source.description}")
    module = module.to(device=device, dtype=getattr(torch, compute_dtype)).eval()
    module.requires_grad_(False)
    notes: tuple[str, ...] = ()
    if compute_dtype != spec.dtype:
        notes = (
            f"computed in {compute_dtype} from weights rounded to {spec.dtype}: this CPU run "
            f"stands for {spec.dtype} up to its rounding of activations",
        )
    return ClipModel(
        module=module,
        tokenizer=tokenizer,
        image_processor=processor,
        weights_digest=source.digest,
        description=source.description,
        weight_dtype=spec.dtype,
        compute_dtype=compute_dtype,
        device=device,
        notes=notes,
    )


def check_files(source: CheckpointSource, *, where: str) -> None:
    """Raise ModelError, naming the file, for a config of another model or damaged safetensors."""
    from safetensors import SafetensorError, safe_open

    config = source.directory / "config.json"
    try:
        architecture = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{where}: {config} is missing or unreadable: {error}") from error
    if architecture != "clip":
        raise ModelError(
            f"{where}: {config}: model_type is {architecture!r}, this suite needs 'clip'"
        )
    for path in sorted(source.directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{where}: {path} is damaged ({path.stat().st_size} bytes; {_first_line(error)}): "
                f"download or save it again"
            ) from error


def check_finite(module: torch.nn.Module, *, where: str) -> None:
    """Raise ModelError naming the first weight that holds NaN or Inf, and how many do."""
    import torch

    bad = [
        (name, int((~torch.isfinite(tensor)).sum()))
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        name, count = bad[0]
        raise ModelError(
            f"{where}: {len(bad)} weight tensors hold NaN or Inf (or lie outside the range of "
            f"{str(module.state_dict()[name].dtype).removeprefix('torch.')}), first {name} "
            f"({count} values): repair the checkpoint; a quantizer calibrated on it would hide this"
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what the libraries say on the side out of the run's output.

    Under `filterwarnings = error` a deprecation inside a library would otherwise end a gate.
    """
    import io
    from contextlib import redirect_stderr, redirect_stdout

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        silence = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(silence), redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
