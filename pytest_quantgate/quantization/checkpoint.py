"""Saves and restores a quantized variant so that nothing can be missing or changed unseen.

ModelOpt alone loads a model unquantized, without a word, where its state file is missing, and
fills a missing `_amax` with uninitialised memory. So a checkpoint here has a manifest: the SHA-256
of every file and of every amax, checked before anything is loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.families import find_pretrained
from pytest_quantgate.encoders.loading import check_config, quiet_libraries, refuse_forced_pickles
from pytest_quantgate.errors import ModelError
from pytest_quantgate.quantization.attention import attention_class
from pytest_quantgate.quantization.emulation import with_emulation
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import amax_of, find_quantizers
from pytest_quantgate.store.disk import describe_write_error, find_write_error
from pytest_quantgate.untrusted import hash_file, parse_json, read_regular

if TYPE_CHECKING:
    import torch

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "modelopt_state.pth"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FILES = (STATE, WEIGHTS, CONFIG)
DTYPES = ("float32", "float16", "bfloat16")
ATTENTION = ("automatic", "diffusers")

_MANIFEST_FIELDS = {
    "base_weights": str,
    "compute_dtype": str,
    "attention": str,
    "files": dict,
    "amax": dict,
    "dtypes": dict,
}


def save_checkpoint(model: Encoder, directory: Path) -> int:
    """Write a quantized variant to `directory` (which must not exist) and return its bytes.

    Written to a temporary folder beside it and renamed, so that a killed run leaves nothing that
    looks like a checkpoint. Raises ModelError where the folder exists or cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    mto = import_modelopt("modelopt.torch.opt")
    if directory.exists():
        raise ModelError(f"{directory} exists already: a checkpoint is never overwritten")
    module: Any = model.module
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory.parent))
        try:
            with quiet_libraries():
                torch.save(_share_texts(mto.modelopt_state(module)), temporary / STATE)
                save_file(compact_state(module), temporary / WEIGHTS)
                config = module.config.to_dict()
                config["_attn_implementation"] = module.config._attn_implementation
                write_json(temporary / CONFIG, config)
            write_json(temporary / MANIFEST, make_manifest(model, directory=temporary))
            size_bytes = sum(path.stat().st_size for path in temporary.iterdir())
            temporary.replace(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except Exception as error:  # torch, safetensors and the file system share no base class
        found = find_write_error(error, folder=directory.parent)
        if found is None:
            raise
        reason = describe_write_error(found, folder=directory.parent)
        raise ModelError(f"cannot write the checkpoint {directory}: {reason}") from found
    return size_bytes


def _share_texts(value: Any) -> Any:
    """Return plain data in which equal texts are one object.

    pickle writes an object that it met before as a reference: without this a state that was read
    from a file is saved in more bytes than the same state as it was made.
    """
    if isinstance(value, str):
        return sys.intern(value)
    if type(value) is dict:
        return {_share_texts(key): _share_texts(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_share_texts(item) for item in value)
    return value


def load_checkpoint(directory: Path, *, fp16: Encoder) -> Encoder:
    """Return the variant saved in `directory`, restored over the FP16 model it was made from.

    Raises ModelError for a checkpoint that is incomplete or changed in any file or amax, of
    another format, or made from other weights.
    """
    manifest = verify_checkpoint(directory)
    if manifest["base_weights"] != fp16.weights_digest:
        raise ModelError(
            f"{directory}: quantized from other weights (sha256 "
            f"{manifest['base_weights'][:12]}...) than the FP16 model here (sha256 "
            f"{fp16.weights_digest[:12]}...): quantize again"
        )
    if manifest["compute_dtype"] != fp16.compute_dtype:
        raise ModelError(
            f"{directory}: computed in {manifest['compute_dtype']}, the FP16 model here in "
            f"{fp16.compute_dtype}: quantize again"
        )
    return restore_over(copy.deepcopy(fp16.module), directory, manifest=manifest, like=fp16)


def restore_over(
    plain: torch.nn.Module, directory: Path, *, manifest: Mapping[str, Any], like: Encoder
) -> Encoder:
    """Return `like` with `plain` made the quantized module of a verified checkpoint.

    Raises ModelError where the state is more than plain data (a pickle that would run code is
    stopped by `weights_only`), or does not fit the model or the weights.
    """
    import pickle

    import torch
    from safetensors import safe_open

    # Its import registers the mode that the state is restored by.
    import_modelopt("modelopt.torch.quantization", purpose="restoring a quantized model")
    mto = import_modelopt("modelopt.torch.opt")
    with quiet_libraries():
        try:
            dtype: torch.dtype = getattr(torch, manifest["compute_dtype"])
            plain = plain.to(dtype)
            state = torch.load(directory / STATE, weights_only=True, map_location="cpu")
            with attention_class(plain, towers=like.towers, kind=manifest["attention"]):
                module = mto.restore_from_modelopt_state(plain, state)
            with safe_open(directory / WEIGHTS, framework="pt") as stored:
                _fill(module, stored=stored, dtypes=manifest["dtypes"])
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{directory / STATE}: holds more than plain data and was not loaded "
                f"({_first_line(error)}): quantize again"
            ) from error
        except ModelError:
            raise
        except Exception as error:  # ModelOpt trusts its state: a damaged one ends in any of them
            raise ModelError(
                f"{directory}: the checkpoint does not fit this model "
                f"({type(error).__name__}: {_first_line(error)}): quantize again"
            ) from error
    check_amax(module, manifest=manifest, directory=directory)
    # ModelOpt makes the amax that it restores on the CPU.
    restored = module.to(like.device).eval().requires_grad_(False)
    return with_emulation(replace(like, module=restored, compute_dtype=manifest["compute_dtype"]))


def _fill(module: torch.nn.Module, *, stored: Any, dtypes: Mapping[str, str]) -> None:
    """Copy the stored tensors into `module`, one at a time to save memory.

    Raises ValueError, naming the first tensor that is missing, unexpected or of another kind:
    what is not filled here would stay uninitialised.
    """
    import torch

    names = set(stored.keys())
    targets = module.state_dict()
    for name in sorted(names ^ targets.keys()):
        word = "is not part of the model" if name in names else "is missing"
        raise ValueError(f"tensor {name} {word}")
    with torch.no_grad():
        for name, target in targets.items():
            value = stored.get_tensor(name)
            kind = str(target.dtype).removeprefix("torch.")
            if value.shape != target.shape or dtypes.get(name) != kind:
                raise ValueError(
                    f"tensor {name} is {tuple(value.shape)} {dtypes.get(name)}, "
                    f"the model has {tuple(target.shape)} {kind}"
                )
            target.copy_(value)


def verify_checkpoint(directory: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint whose files are all there and unchanged.

    Raises ModelError with the file and what is wrong. Reads JSON and bytes, loads nothing.
    """
    refuse_forced_pickles(where=str(directory), environ=os.environ)
    path = directory / MANIFEST
    try:
        manifest = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} is missing or unreadable ({error}): save the model again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise ModelError(
            f"{path}: checkpoint format {repr(found)[:80]} is not {FORMAT}: save the model again"
        )
    for key, kind in _MANIFEST_FIELDS.items():
        value = manifest.get(key)
        texts = value.values() if isinstance(value, dict) else ()
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise ModelError(f"{path}: {key!r} is missing or damaged: save the model again")
    for key, known in (("compute_dtype", DTYPES), ("attention", ATTENTION)):
        if manifest[key] not in known:
            raise ModelError(
                f"{path}: {key} is {manifest[key][:80]!r}, none of {', '.join(known)}: "
                f"save the model again"
            )
    if set(manifest["files"]) != set(FILES):
        raise ModelError(
            f"{path}: lists {sorted(manifest['files'])}, a checkpoint has {sorted(FILES)}: "
            f"save the model again"
        )
    for name, expected in manifest["files"].items():
        file = directory / name
        if file.is_symlink() or not file.is_file():
            raise ModelError(
                f"{file} is missing: without it the model would load unquantized or with "
                f"uninitialised ranges; restore the file or quantize again"
            )
        found = hash_file(file)
        if found != expected:
            raise ModelError(
                f"{file} was changed: sha256 {found[:12]}..., saved as {expected[:12]}...; "
                f"restore the file or quantize again"
            )
    return manifest


def check_amax(module: torch.nn.Module, *, manifest: Mapping[str, Any], directory: Path) -> None:
    """Raise ModelError naming the first amax of `module` that is not the one that was saved."""
    found = digest_amax(module)
    for name, expected in manifest["amax"].items():
        if found.get(name) != expected:
            word = "changed" if name in found else "missing"
            raise ModelError(
                f"{directory}: amax of {name} is {word}: ModelOpt would fill it in without a word; "
                f"quantize again"
            )
    for name in found:
        if name not in manifest["amax"]:
            raise ModelError(f"{directory}: {name} has an amax that was not saved; quantize again")


def digest_amax(module: torch.nn.Module) -> dict[str, str]:
    """Return the SHA-256 of dtype, shape and bytes of every amax by quantizer name."""
    import torch

    digests = {}
    for name, quantizer in find_quantizers(module).items():
        amax = amax_of(quantizer)
        if amax is not None:
            value = amax.detach().cpu().contiguous()
            head = f"{value.dtype} {tuple(value.shape)} ".encode()
            data = value.reshape(-1).view(torch.uint8).numpy().tobytes()
            digests[name] = hashlib.sha256(head + data).hexdigest()
    return digests


def make_manifest(model: Encoder, *, directory: Path) -> dict[str, Any]:
    """Return what a later load checks."""
    return {
        "format": FORMAT,
        "base_weights": model.weights_digest,
        "compute_dtype": model.compute_dtype,
        "attention": attention_kind(model.module),
        "files": {name: hash_file(directory / name) for name in FILES},
        "amax": digest_amax(model.module),
        "dtypes": {
            name: str(tensor.dtype).removeprefix("torch.")
            for name, tensor in model.module.state_dict().items()
        },
        "versions": {
            package: metadata.version(package)
            for package in ("torch", "transformers", "nvidia-modelopt")
        },
    }


def attention_kind(module: torch.nn.Module) -> str:
    """Return which of ModelOpt's attention classes a quantized model has."""
    names = (name.rpartition(".")[2] for name in find_quantizers(module))
    return "diffusers" if "bmm2_output_quantizer" in names else "automatic"


def compact_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state with FP32 weights stored as FP16 where that loses nothing.

    On a CPU the FP16 weights are computed with as FP32; there is no need to store twice the bytes.
    """
    import torch

    state = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu()
        if value.dtype == torch.float32 and not name.endswith("_amax"):
            half = value.half()
            if torch.equal(half.float(), value):
                value = half
        state[name] = value.contiguous()
    return state


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, default=str), encoding="utf-8")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def build_plain(directory: Path) -> torch.nn.Module:
    """Return the model that a checkpoint was made from, without its weights.

    Raises ModelError for a config of no known family, or of an attention that would be fetched.
    """
    path = directory / CONFIG
    config = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    check_config(config, where=str(path))
    attention = config.pop("_attn_implementation")
    if not isinstance(attention, str) or not re.fullmatch(r"\w+", attention):
        # A name with a / is a kernel that transformers would fetch from the hub and run.
        raise ModelError(f"{path}: attention implementation {str(attention)[:80]!r} is not taken")
    known = find_pretrained(config)
    if known is None:
        raise ModelError(f"{path}: model_type {str(config.get('model_type'))[:80]!r} is not known")
    kind = known[1]
    module = kind.make_module(kind.make_config(config), attention=attention)
    return module.eval().requires_grad_(False)
