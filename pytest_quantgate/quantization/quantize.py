"""Builds the quantized variant: ModelOpt's PTQ, calibrated with samples through every tower."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError, NotMeasured
from pytest_quantgate.quantization.attention import attention_class
from pytest_quantgate.quantization.emulation import kernels_for, with_emulation
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import find_quantizers, require_kernels
from pytest_quantgate.quantization.recipes import Recipe, to_modelopt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """The quantized variant and what its calibration really saw.

    `tower_batches` counts forwards that ran to their end, per tower;
    `nonfinite` names the samples that held NaN or Inf and were left out.
    """

    model: Encoder
    batches: int
    tower_batches: Mapping[str, int]
    nonfinite: tuple[str, ...]


@dataclass(kw_only=True)
class _Seen:
    batches: int = 0
    towers: Counter[str] = field(default_factory=Counter)
    nonfinite: list[str] = field(default_factory=list)


def quantize(
    fp16: Encoder,
    *,
    recipe: Recipe,
    exclude: tuple[str, ...] = (),
    batches: Iterable[Batch],
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Return a quantized copy of `fp16`, which stays as it is.

    Every batch goes through every tower. Samples with NaN or Inf are left out and named: ModelOpt
    would stop at them without saying which. `exclude` are patterns as in `mtq.disable_quantizer`.
    `batches` must be a collection, not an iterator, for an algorithm that reads it more than once
    (AWQ). `progress` is told the number of pairs of every batch of the first pass.
    Raises ModelError where ModelOpt refuses the recipe or nothing is quantized, NotMeasured where
    it needs a GPU for the recipe's formats and the model is on none.
    """
    mtq = import_modelopt("modelopt.torch.quantization")
    model = replace(fp16, module=copy.deepcopy(fp16.module))
    seen = _Seen()
    passes = 0

    def calibrate(_module: torch.nn.Module) -> None:
        nonlocal passes
        passes += 1
        if passes > 1 and isinstance(batches, Iterator):
            raise ModelError(
                f"recipe {recipe.name!r} reads the calibration data more than once, and `batches` "
                f"is an iterator that is used up: pass a list"
            )
        here = seen if passes == 1 else _Seen()
        for batch in batches:
            _calibrate_batch(model, batch, seen=here)
            if progress is not None and passes == 1:
                progress(len(batch.ids))

    with (
        quiet_libraries(),
        kernels_for(recipe.formats, module=model.module),
        attention_class(model.module, towers=model.towers, kind=recipe.attention),
    ):
        try:
            mtq.quantize(model.module, to_modelopt(recipe), forward_loop=calibrate)
        except ImportError as error:
            raise NotMeasured(
                f"ModelOpt needs another package for recipe {recipe.name!r}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            require_kernels(recipe.formats, module=model.module)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"ModelOpt cannot apply recipe {recipe.name!r}: {reason}") from error
        for pattern in exclude:
            mtq.disable_quantizer(model.module, pattern)
    _check_took_effect(model.module, recipe=recipe, exclude=exclude)
    model.module.eval().requires_grad_(False)
    return Quantized(
        model=with_emulation(model),
        batches=seen.batches,
        tower_batches={name: seen.towers[name] for name in model.tower_names},
        nonfinite=tuple(seen.nonfinite),
    )


def find_finite(batch: Batch) -> torch.Tensor:
    """Return bool [N]: the samples of which no input is NaN or Inf."""
    import torch

    finite = torch.ones(len(batch.ids), dtype=torch.bool)
    for named in batch.inputs.values():
        for value in named.values():
            finite &= torch.isfinite(value).flatten(start_dim=1).all(dim=1).cpu()
    return finite


def _calibrate_batch(model: Encoder, batch: Batch, *, seen: _Seen) -> None:
    finite = find_finite(batch)
    seen.batches += 1
    seen.nonfinite += [
        name for name, good in zip(batch.ids, finite.tolist(), strict=True) if not good
    ]
    if not bool(finite.any()):
        return
    good = batch if bool(finite.all()) else batch.take(finite)
    for tower in model.tower_names:
        model.encode(tower, good.inputs[tower])
        seen.towers[tower] += 1


def _check_took_effect(
    module: torch.nn.Module, *, recipe: Recipe, exclude: tuple[str, ...]
) -> None:
    quantizers = find_quantizers(module).values()
    if not any(quantizer.is_enabled for quantizer in quantizers):
        patterns = ", ".join(
            repr(entry["quantizer_name"]) for entry in recipe.quant_cfg if entry["enable"]
        )
        raise ModelError(
            f"recipe {recipe.name!r} quantizes nothing: 0 of {len(quantizers)} quantizers are "
            f"enabled (it switches on {patterns}; exclude: {list(exclude)})"
        )
