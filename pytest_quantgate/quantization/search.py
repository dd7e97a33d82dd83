"""The search for the format of each layer: ModelOpt's `auto_quantize` by gradients.

ModelOpt scores a format of a layer by the square of a gradient times the change of the layer's
output, and solves for the least sum within a number of bits. That is right where the gradient is
one of a log likelihood (Theis et al. 2018, arXiv:1801.05787). Here it is that of an answer drawn
from a Gaussian around the normalised embedding, so that a score is the expected square of its
change, whatever the towers are: neither labels nor pairs are needed.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import FormatSearch
from pytest_quantgate.formats.recipes import FULL_BITS, SEARCHED, AutoRecipe, NamedRecipe
from pytest_quantgate.formats.table import read_blocks
from pytest_quantgate.quantization.attention import attention_class
from pytest_quantgate.quantization.emulation import kernels_for
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantize import find_finite
from pytest_quantgate.quantization.quantizers import find_quantizers, format_of, require_kernels
from pytest_quantgate.quantization.recipes import Recipe, build_recipe

if TYPE_CHECKING:
    import torch

#: Of the drawn answers, so that a search gives the same twice.
SEED = 0

_OFF = {"quantizer_name": "*", "enable": False}


def search_formats(
    fp16: Encoder,
    *,
    auto: AutoRecipe,
    exclude: tuple[str, ...] = (),
    batches: Iterable[Batch],
    steps: int,
    progress: Callable[[int], None] | None = None,
) -> FormatSearch:
    """Return a recipe for each Linear layer and convolution of `fp16`, which stays as it is.

    Layers whose weight an `exclude` pattern matches stay in full precision. `steps` of the
    `batches`, which are read more than once, calibrate each format and score all. `progress` is
    told the samples of each batch, once a format and once for the scores. Raises ModelError where
    the bits cannot be reached, NotMeasured where a format needs a GPU.
    """
    import torch

    mtq = import_modelopt("modelopt.torch.quantization")
    kind_of_choice = import_modelopt("modelopt.torch.quantization.algorithms").QuantRecipe
    model = replace(fp16, module=copy.deepcopy(fp16.module))
    formats = _list_formats(auto)
    require_kernels(formats, module=model.module)
    layers = _list_layers(model.module)
    configs = {row.name: _to_format(row, layers=layers) for row in auto.rows}
    spaces, off = _allot(configs, auto=auto, layers=layers)
    off += [n for n in layers if any(fnmatch.fnmatch(f"{n}.weight_quantizer", p) for p in exclude)]
    generator = torch.Generator().manual_seed(SEED)

    def forward(_module: torch.nn.Module, batch: Batch) -> None:
        with torch.no_grad():
            _embed(model, batch)
        if progress is not None:
            progress(len(batch.ids))

    def score(_module: torch.nn.Module, batch: Batch) -> None:
        loss = _draw_loss(_embed(model, batch), generator=generator)
        loss.backward()  # type: ignore[no-untyped-call]
        if progress is not None:
            progress(len(batch.ids))

    with (
        quiet_libraries(),
        kernels_for(formats, module=model.module),
        attention_class(model.module, towers=model.towers, kind="automatic"),
    ):
        try:
            _, state = mtq.auto_quantize(
                model.module,
                constraints={"effective_bits": auto.bits},
                quantization_formats=list(configs.values()),
                module_search_spaces=spaces,
                data_loader=batches,
                forward_step=forward,
                forward_backward_step=score,
                disabled_layers=off,
                num_calib_steps=steps,
                num_score_steps=steps,
                verbose=False,
            )
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            # ModelOpt switches the folding of scales off for the process while it searches.
            kind_of_choice.fold_pqs_to_weights(model.module)
            reason = " ".join(str(error).split()) or type(error).__name__
            kept = f" ({', '.join(off)} stay in full precision)" if off else ""
            raise ModelError(
                f"ModelOpt finds no formats with {auto.bits:g} bits among "
                f"{', '.join(auto.formats)}{kept}: {reason[:300]}"
            ) from error
    names = {kind_of_choice(config, name=name): name for name, config in configs.items()}
    return FormatSearch(
        asked_bits=auto.bits,
        layers={
            layer: names.get(choice, "")
            for group, choice in state["best"]["recipe"].items()
            for layer in state["candidate_stats"][group]["module_names"]
        },
    )


def to_recipe(search: FormatSearch, *, auto: AutoRecipe, where: str = "recipe") -> Recipe:
    """Return the recipe that says what was chosen, layer by layer.

    Raises ModelError where every layer stays in full precision.
    """
    chosen = {layer: SEARCHED[name] for layer, name in search.layers.items() if name}
    entries = [entry for layer, row in chosen.items() for entry in row.to_entries(f"{layer}.")]
    calibrated = any(row.algorithm for row in chosen.values())
    config = {"quant_cfg": [_OFF, *entries], "algorithm": "max" if calibrated else None}
    name = f"auto: {auto.bits:g} bits of {', '.join(auto.formats)}"
    return replace(build_recipe(config, name=name, where=where), search=search)


def count_bits(module: torch.nn.Module, *, layers: Iterable[str]) -> float:
    """Return the bits of an average weight of some layers, as their quantizers are."""
    quantizers = find_quantizers(module)
    bits = weights = 0
    for layer in layers:
        weight = module.get_submodule(layer).get_parameter("weight")
        quantizer = quantizers.get(f"{layer}.weight_quantizer")
        kind = format_of(quantizer) if quantizer is not None and quantizer.is_enabled else None
        blocks = read_blocks(quantizer.block_sizes) if quantizer is not None else None
        weights += weight.numel()
        bits += (
            weight.numel() * FULL_BITS
            if kind is None
            else kind.count_bits(weight.shape, blocks=blocks, full_bits=FULL_BITS)
        )
    return bits / weights


def _list_formats(auto: AutoRecipe) -> tuple[str, ...]:
    found = (build_recipe(row.to_config(), name=row.name).formats for row in auto.rows)
    return tuple(dict.fromkeys(name for names in found for name in names))


def _list_layers(module: torch.nn.Module) -> dict[str, tuple[str, torch.Size]]:
    """Return (kind in ModelOpt's words, shape of the weight) of the layers that have a format."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    return {
        name: (
            "nn.Linear" if isinstance(layer, nn.Linear) else f"nn.{type(layer).__name__}",
            layer.weight.shape,
        )
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, _ConvNd))
    }


def _to_format(row: NamedRecipe, *, layers: Mapping[str, tuple[str, torch.Size]]) -> dict[str, Any]:
    """Return a recipe as `auto_quantize` takes it: patterns are matched inside of one layer.

    Its bits are those of the layer that its blocks fit worst, so that no padding is forgotten.
    """
    bits = [row.count_bits(s) / s.numel() for kind, s in layers.values() if kind in row.layers]
    return {
        "quant_cfg": [_OFF, *row.to_entries("*")],
        "algorithm": row.algorithm,
        "effective_bits": max(bits, default=row.weight_bits),
    }


def _allot(
    configs: Mapping[str, Any],
    *,
    auto: AutoRecipe,
    layers: Mapping[str, tuple[str, torch.Size]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the formats that each kind of layer can have, and the layers that can have none."""
    spaces, off = [], []
    for kind in dict.fromkeys(kind for kind, _ in layers.values()):
        names = [name for name, (found, _) in layers.items() if found == kind]
        fitting = [configs[row.name] for row in auto.rows if kind in row.layers]
        if fitting:
            spaces.append({"module_name_patterns": names, "quantization_formats": fitting})
        else:
            off += names
    return spaces, off


def _embed(model: Encoder, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the embeddings of the samples without NaN and Inf, for each tower."""
    good = batch.take(find_finite(batch))
    if not good.ids:
        return {}
    return {str(tower): model.embed(tower, good.inputs[tower]) for tower in model.tower_names}


def _draw_loss(found: Mapping[str, torch.Tensor], *, generator: torch.Generator) -> torch.Tensor:
    """Return a loss whose gradient is that of a drawn answer's log likelihood."""
    import torch
    from torch.nn import functional

    loss = torch.zeros((), requires_grad=True)
    for embedded in found.values():
        drawn = torch.randn(embedded.shape, generator=generator).to(embedded.device)
        loss = loss + (functional.normalize(embedded, dim=-1) * drawn).sum().cpu()
    return loss
