"""A quantized checkpoint that was handed over, restored as it is: what ModelOpt itself saved.

Nothing is quantized again and nothing is calibrated. Its state is read by the restricted reader
first, so that a pickle with code is refused before torch looks at it; every tensor of the model
must be in the file, as ModelOpt fills in what is missing without a word.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.checkpoints import (
    CONFIG,
    CheckpointFiles,
    is_quantizer_part,
    read_files,
)
from pytest_quantgate.encoders.encoder import Encoder, describe_error
from pytest_quantgate.encoders.loading import quiet_libraries, refuse_forced_pickles
from pytest_quantgate.errors import (
    ArtifactError,
    Incomparable,
    ModelError,
    NotMeasured,
    QuantGateError,
)
from pytest_quantgate.quantization.attention import attention_class
from pytest_quantgate.quantization.checkpoint import STATE
from pytest_quantgate.quantization.emulation import with_emulation
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.recipes import Recipe, build_recipe
from pytest_quantgate.suite.specs import QuantizedSpec
from pytest_quantgate.suite.where import expand_path
from pytest_quantgate.untrusted import hash_file

if TYPE_CHECKING:
    import torch

#: Tensors that are named where a checkpoint is not of the model that the suite names.
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class GivenCheckpoint:
    """The files of a checkpoint, the SHA-256 (hex) of each that is read, its place in the suite.

    `digest` is the SHA-256 over all of them.
    """

    files: CheckpointFiles
    digests: Mapping[str, str]
    where: str

    @property
    def digest(self) -> str:
        lines = (f"{name}\0{digest}\n" for name, digest in self.digests.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def description(self) -> str:
        return self.files.path.name

    @property
    def declared_recipe(self) -> Recipe:
        """What the checkpoint's own state says that was asked of ModelOpt; raises ModelError."""
        state = self.files.state
        assert state is not None  # open_given wants one
        content = {"quant_cfg": list(state.quant_cfg), "algorithm": state.algorithm or "max"}
        return build_recipe(content, name="as the checkpoint declares", where=self.where)


@dataclass(frozen=True, kw_only=True)
class TakenVariant:
    """A given checkpoint as a variant.

    Of the base's tensors `same` are in it bit by bit, `rescaled` were scaled by the calibration
    (SmoothQuant, AWQ), so that nothing is proved of them, and `changed` are others.
    """

    model: Encoder
    same: int
    rescaled: int
    changed: tuple[str, ...]


def open_given(spec: QuantizedSpec, *, environ: Mapping[str, str] = os.environ) -> GivenCheckpoint:
    """Return the checkpoint that a suite was handed.

    Raises NotMeasured where nothing is there, ModelError for what cannot be restored: another
    tool's or an export's, one without its state, a damaged one, a state that would run code.
    """
    where = spec.where.of("checkpoint")
    path = expand_path(spec.checkpoint, where=where, environ=environ)
    if not path.exists():
        raise NotMeasured(f"{where}: {path} is not there: set quantized.checkpoint to a checkpoint")
    try:
        files = read_files(path)
    except ArtifactError as error:
        raise ModelError(f"{where}: {error}") from error
    _refuse_exports(files, where=where)
    assert files.state is not None  # _refuse_exports wants one
    if files.state.foreign:
        raise ModelError(
            f"{where}: {path} names {files.state.foreign[0]!r:.80}, which loading it would run: "
            f"nothing of it was loaded; save the model again with ModelOpt"
        )
    if files.missing:
        raise ModelError(f"{where}: {path}: {files.missing[0]} of its index is missing")
    return GivenCheckpoint(files=files, digests=_digest_files(files), where=where)


def _refuse_exports(files: CheckpointFiles, *, where: str) -> None:
    config = files.config.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if method is None and files.state is not None:
        return
    what = (
        f"is an export of {str(method)[:40]!r} with packed weights"
        if method
        else f"holds no {STATE}, without which it would load unquantized"
    )
    raise ModelError(
        f"{where}: {files.path} {what}: a suite takes what ModelOpt saves (save_pretrained with "
        f"mto.enable_huggingface_checkpointing(), or mto.save); quantgate check {files.path.name} "
        f"audits this one"
    )


def _digest_files(files: CheckpointFiles) -> dict[str, str]:
    named = {files.path} if files.path.is_file() else {files.path / STATE}
    named |= {tensor.file for tensor in files.tensors.values()}
    config = files.folder / CONFIG
    named |= {config} if config.is_file() else set()
    return {path.name: hash_file(path) for path in sorted(named)}


def restore_given(given: GivenCheckpoint, *, fp16: Encoder, trained: bool) -> TakenVariant:
    """Return a given checkpoint restored over the FP16 model that the suite names.

    Its weights are rounded to the suite's dtype, as the FP16 model's are; ranges, and what its
    calibration rescaled, stay as they are.
    Raises ModelError where it does not fit the model or a tensor is missing, and Incomparable for
    weights that are not the FP16 model's, unless it was `trained`.
    """
    import torch

    files = given.files
    refuse_forced_pickles(where=given.where)
    import_modelopt("modelopt.torch.quantization", purpose="restoring a quantized model")
    mto = import_modelopt("modelopt.torch.opt")
    assert files.state is not None  # open_given wants one
    names = files.state.quantizers
    diffusers = any(name.endswith("bmm2_output_quantizer") for name in names)
    with quiet_libraries():
        try:
            whole = torch.load(_state_file(files), weights_only=True, map_location="cpu")
            state = whole["modelopt_state"] if files.path.is_file() else whole
            plain = copy.deepcopy(fp16.module).cpu()
            with attention_class(
                plain, towers=fp16.towers, kind="diffusers" if diffusers else "automatic"
            ):
                module: torch.nn.Module = mto.restore_from_modelopt_state(plain, state)
            _fill(module, files=files, dtype=getattr(torch, fp16.weight_dtype))
        except QuantGateError:
            raise
        except Exception as error:  # ModelOpt trusts its state: another one ends in any of them
            raise ModelError(
                f"{given.where}: {files.path} does not fit {fp16.description}: "
                f"{describe_error(error)}: name the model that it was made from, or save it again"
            ) from error
    module = module.to(fp16.device).eval().requires_grad_(False)
    same, rescaled, changed = _compare(module, base=fp16.module, files=files)
    if changed and not trained:
        shown = ", ".join(changed[:_SHOWN]) + (" ..." if len(changed) > _SHOWN else "")
        raise Incomparable(
            f"{given.where}: {len(changed)} of {same + rescaled + len(changed)} tensors of "
            f"{given.description} are not those of {fp16.description} ({shown}): it was made from "
            f"another model, so nothing here is what quantization costs; name its own FP16 model, "
            f"or write trained: true where it was trained after that"
        )
    model = with_emulation(replace(fp16, module=module))
    return TakenVariant(model=model, same=same, rescaled=rescaled, changed=changed)


def describe_base(taken: TakenVariant, *, given: GivenCheckpoint, base: Encoder) -> str:
    """Return how much of a given checkpoint is proved to be the FP16 model, in a sentence."""
    total = taken.same + taken.rescaled + len(taken.changed)
    said = f"{taken.same} of {total} tensors of {given.description} are those of {base.description}"
    if taken.rescaled:
        said += f", {taken.rescaled} were rescaled by its calibration, which proves nothing of them"
    if taken.changed:
        said += f", {len(taken.changed)} were trained"
    return said


def _state_file(files: CheckpointFiles) -> Path:
    return files.path if files.path.is_file() else files.path / STATE


def _fill(module: torch.nn.Module, *, files: CheckpointFiles, dtype: torch.dtype) -> None:
    """Copy the stored tensors into `module`, weights rounded to `dtype`; raises ValueError."""
    import torch

    targets = module.state_dict()
    for name in sorted(targets.keys() - files.tensors.keys()):
        raise ValueError(f"tensor {name} is missing: it would stay uninitialised")
    for name in sorted(files.tensors.keys() - targets.keys()):
        if not name.endswith(".position_ids"):
            raise ValueError(f"tensor {name} is not part of the model")
    with torch.no_grad():
        for name, target in targets.items():
            stored = files.tensors[name]
            if stored.shape != tuple(target.shape):
                raise ValueError(f"tensor {name} is {stored.shape}, not {tuple(target.shape)}")
            value = torch.from_numpy(stored.values().reshape(stored.shape))
            kept = is_quantizer_part(name, files.state) or _is_rescaled(name, files=files)
            if target.is_floating_point() and not kept:
                value = value.float().to(dtype)
            target.copy_(value)


def _compare(
    module: torch.nn.Module, *, base: torch.nn.Module, files: CheckpointFiles
) -> tuple[int, int, tuple[str, ...]]:
    import torch

    found: Any = module.state_dict()
    same, rescaled, changed = 0, 0, []
    for name, tensor in base.state_dict().items():
        if torch.equal(found[name], tensor):
            same += 1
        elif _is_rescaled(name, files=files):
            rescaled += 1
        else:
            changed.append(name)
    return same, rescaled, tuple(changed)


def _is_rescaled(name: str, *, files: CheckpointFiles) -> bool:
    """Return whether a tensor is a weight that calibration moved a scale of its input into."""
    layer, _, kind = name.rpartition(".")
    return kind == "weight" and f"{layer}.input_quantizer._pre_quant_scale" in files.tensors
