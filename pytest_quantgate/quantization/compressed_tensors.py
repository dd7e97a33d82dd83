"""A quantized variant as compressed-tensors keeps it: codes, scales and which layers they are of.

Format: https://github.com/vllm-project/compressed-tensors (`quantization_config` of config.json).
It has codes of Linear layers and the scales of their inputs, and nothing else: what a variant
quantizes besides has no place there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.errors import ModelError
from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import E4M3, INT8
from pytest_quantgate.quantization.quantizers import (
    amax_of,
    find_quantizers,
    format_of,
    is_dynamic,
    owner_of,
    slot_of,
)

if TYPE_CHECKING:
    import torch

#: What it holds codes of.
_FORMATS = (E4M3, INT8)

#: Values that ModelOpt computes with other roundings may lie this far apart, as a share of a range.
_ROUNDING = 2.0**-18


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """`tensors` and the `config` of config.json; `layers` are those with codes, by their names,
    with the values [out, in] that the variant computes with, in float32."""

    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, Any]
    layers: Mapping[str, torch.Tensor]


def list_without_place(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the enabled quantizers that compressed-tensors has no place for."""
    quantizers = {n: q for n, q in find_quantizers(module).items() if q.is_enabled}
    return tuple(
        name for name in quantizers if not _has_place(name, quantizers=quantizers, module=module)
    )


def _has_place(name: str, *, quantizers: Mapping[str, Any], module: torch.nn.Module) -> bool:
    import torch

    quantizer, slot, owner = quantizers[name], slot_of(name), owner_of(name)
    kind = format_of(quantizer)
    if slot not in ("input", "weight") or kind not in _FORMATS:
        return False
    if quantizer.block_sizes or getattr(quantizer, "_pre_quant_scale", None) is not None:
        return False
    if not isinstance(module.get_submodule(owner), torch.nn.Linear):
        return False
    beside = quantizers.get(f"{owner}.weight_quantizer")
    if beside is None:
        return False  # an input alone
    amax = amax_of(quantizer)
    if slot == "weight":
        return amax is not None and quantizer.axis in (None, 0, (0,))
    return is_dynamic(quantizer) or (amax is not None and amax.numel() == 1)


def compress(model: Encoder) -> Compressed:
    """Return a variant in codes; raises ModelError for one that this format cannot hold whole."""
    import torch

    module: Any = model.module
    lost = list_without_place(module)
    if lost:
        raise ModelError(
            f"{len(lost)} quantizers have no place in compressed-tensors, which holds Linear "
            f"layers in FP8 or INT8 alone, first {lost[0]}: leave them out of the suite "
            f"(quantize.exclude, or a recipe without them), so that what is judged is what is "
            f"handed on"
        )
    quantizers = {n: q for n, q in find_quantizers(module).items() if q.is_enabled}
    weights = [name for name in quantizers if slot_of(name) == "weight"]
    if not weights:
        raise ModelError("no weight is quantized: there is nothing to hand on")
    if not hasattr(module, "config"):
        raise ModelError(f"{model.description} has no config of transformers to put it into")
    parts = tuple(find_quantizers(module))
    dtype: torch.dtype = getattr(torch, model.weight_dtype)
    tensors = {
        name: _store(value, dtype=dtype)
        for name, value in module.state_dict().items()
        if not name.startswith(tuple(f"{part}." for part in parts))
    }
    groups: dict[str, list[str]] = {}
    schemes: dict[str, Mapping[str, Any]] = {}
    layers = {}
    for name in weights:
        layer = owner_of(name)
        values, codes, scale = _encode(
            module.get_submodule(layer).weight, quantizer=quantizers[name], name=name
        )
        layers[layer] = values
        tensors[f"{layer}.weight"] = codes
        tensors[f"{layer}.weight_scale"] = scale
        source = quantizers.get(f"{layer}.input_quantizer")
        if source is not None and not is_dynamic(source):
            tensors[f"{layer}.input_scale"] = _scale_of(source)
        scheme = _describe(quantizers[name], source=source)
        schemes[repr(scheme)] = scheme
        groups.setdefault(repr(scheme), []).append(layer)
    plain = [
        name
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and name not in layers
    ]
    return Compressed(
        tensors={name: value.contiguous() for name, value in sorted(tensors.items())},
        config=_make_config(module.config, groups=groups, schemes=schemes, plain=plain),
        layers=layers,
    )


def _store(value: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    value = value.detach().cpu()
    return value.to(dtype) if value.is_floating_point() else value


def _encode(
    weight: torch.Tensor, *, quantizer: Any, name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what a layer computes with in float32, its codes, and their scales in float32.

    Raises ModelError where the codes do not give those values again.
    """
    import torch

    with torch.inference_mode():
        values = quantizer(weight.detach().float()).cpu().float()
        scale = _scale_of(quantizer)
        codes = values / torch.where(scale == 0, torch.ones_like(scale), scale)
        kind = format_of(quantizer)
        assert kind is not None  # `compress` refuses others
        codes = (codes.round() if kind.is_integer else codes).to(getattr(torch, kind.torch_dtype))
        error = (codes.float() * scale - values).abs()
    ranges = scale * kind.largest
    if not bool((error <= _ROUNDING * ranges).all()):
        raise ModelError(
            f"{name}: its codes are off by {float((error / ranges).max()):.2g} of its range: this "
            f"variant cannot be handed on in codes"
        )
    return values, codes, scale


def _scale_of(quantizer: Any) -> torch.Tensor:
    """Return the scales of a quantizer in float32: [1], or [out, 1] for one a channel."""
    amax, kind = amax_of(quantizer), format_of(quantizer)
    assert amax is not None  # `compress` refuses others
    assert kind is not None
    scale = amax.detach().float().cpu() / kind.largest
    return scale.reshape(1) if scale.numel() == 1 else scale.reshape(-1, 1)


def _describe(quantizer: Any, *, source: Any | None) -> Mapping[str, Any]:
    """Return the two sides of a layer in the words of the format."""
    kind = format_of(quantizer)
    assert kind is not None
    amax = amax_of(quantizer)
    assert amax is not None
    same = {"num_bits": 8, "type": _type_of(kind), "symmetric": True, "group_size": None}
    weights = {
        **same,
        "strategy": "tensor" if amax.numel() == 1 else "channel",
        "dynamic": False,
    }
    inputs = None
    if source is not None:
        per_token = is_dynamic(source)
        found = format_of(source)
        assert found is not None
        inputs = {
            **same,
            "type": _type_of(found),
            "strategy": "token" if per_token and source.axis is not None else "tensor",
            "dynamic": per_token,
        }
    return {
        "format": f"{_type_of(kind)}-quantized",
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }


def _type_of(kind: NumberFormat) -> str:
    return "int" if kind.is_integer else "float"


def _make_config(
    config: Any,
    *,
    groups: Mapping[str, list[str]],
    schemes: Mapping[str, Mapping[str, Any]],
    plain: list[str],
) -> Mapping[str, Any]:
    """Return config.json with what says how it is quantized; no key of a class of ours."""
    found = {key: value for key, value in config.to_dict().items() if not key.startswith("_")}
    described = {
        f"group_{number}": {
            **schemes[scheme],
            "targets": ["Linear"] if len(groups) == 1 else layers,
        }
        for number, (scheme, layers) in enumerate(groups.items())
    }
    kinds = {str(group["format"]) for group in described.values()}
    found["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": kinds.pop() if len(kinds) == 1 else "mixed-precision",
        "ignore": plain,
        "kv_cache_scheme": None,
        "config_groups": described,
    }
    return found
