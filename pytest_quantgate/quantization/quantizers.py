"""The quantizers of a model: which there are, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.audit import Slot, Tower
from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import E4M3, find_format, read_format
from pytest_quantgate.quantization.modelopt import import_modelopt

if TYPE_CHECKING:
    import torch

SLOTS: Mapping[str, Slot] = {
    "input_quantizer": "input",
    "weight_quantizer": "weight",
    "output_quantizer": "output",
    "q_bmm_quantizer": "q",
    "k_bmm_quantizer": "k",
    "v_bmm_quantizer": "v",
    "p_bmm_quantizer": "softmax",
    "softmax_quantizer": "softmax",
    "bmm2_output_quantizer": "attention_output",
}

_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(\d+)(?:\.|$)")
_VISION = re.compile(r"vis|image|patch_embed")
_TEXT = re.compile(r"text|token|^transformer$|^ln_final$|^positional_embedding$")


def format_of(quantizer: Any) -> NumberFormat | None:
    """Return the number format of a quantizer, None where it is none that is known."""
    return read_format(quantizer.num_bits, block_sizes=quantizer.block_sizes)


def require_kernels(formats: Iterable[str], *, module: torch.nn.Module) -> None:
    """Raise NotMeasured for formats that nothing here computes where the model is.

    ModelOpt computes some on an NVIDIA GPU alone. On a CPU most of them are emulated.
    """
    needed = list_gpu_formats(formats)
    device = device_of(module) if needed else "cuda"
    found = [kind.name for kind in needed if device != "cpu" or not kind.is_emulated]
    if found and device != "cuda":
        raise NotMeasured(
            f"ModelOpt computes {' and '.join(dict.fromkeys(found))} on an NVIDIA GPU alone, and "
            f"this model is on the {device}: run on a machine with such a GPU"
        )


def list_gpu_formats(formats: Iterable[str]) -> list[NumberFormat]:
    """Return those of the named formats that ModelOpt computes on a GPU alone."""
    return [kind for name in formats if (kind := find_format(name)) and kind.needs_gpu]


def list_enabled_formats(module: torch.nn.Module) -> tuple[str, ...]:
    """Return the names of the formats that the enabled quantizers of a model have."""
    kinds = (format_of(q) for q in find_quantizers(module).values() if q.is_enabled)
    return tuple(dict.fromkeys(kind.name for kind in kinds if kind is not None))


def device_of(module: torch.nn.Module) -> str:
    """Return the kind of device that a model is on; `cpu` for one without parameters."""
    return next((parameter.device.type for parameter in module.parameters()), "cpu")


def find_quantizers(module: torch.nn.Module) -> dict[str, Any]:
    """Return every TensorQuantizer by its name, in the model's own order."""
    kind = import_modelopt("modelopt.torch.quantization.nn").TensorQuantizer
    return {name: m for name, m in module.named_modules() if isinstance(m, kind)}


def slot_of(name: str) -> Slot:
    """Return where a quantizer sits, from its name (`....q_proj.input_quantizer.0` is `input`)."""
    return SLOTS.get(whole_name(name).rpartition(".")[2], "other")


def owner_of(name: str) -> str:
    """Return the name of the module that a quantizer belongs to."""
    return whole_name(name).rpartition(".")[0]


def whole_name(name: str) -> str:
    """Return the name of the sequence that a quantizer is a part of, or its own name."""
    return re.sub(r"(?:\.\d+)+$", "", name)


def block_of(name: str) -> int | None:
    """Return the index of the transformer block that a module is in, or None."""
    found = _BLOCK.search(name)
    return int(found.group(1)) if found else None


def tower_of(name: str, *, ran_in: frozenset[Tower] = frozenset()) -> Tower:
    """Return the tower of a module: the one whose forward ran it, else the one of its name."""
    if len(ran_in) == 1:
        return next(iter(ran_in))
    for part in name.split("."):
        if _VISION.search(part):
            return "vision"
        if _TEXT.search(part):
            return "text"
    return "other"


def amax_of(quantizer: Any) -> torch.Tensor | None:
    """Return the range that a quantizer keeps, or None where it has none.

    `quantizer.amax` itself raises for a dynamic one, and is None for one with ModelOpt's
    `use_constant_amax`, whose range is the largest E4M3 value.
    """
    import torch

    if has_constant_range(quantizer):
        return torch.tensor(E4M3.largest)
    amax = getattr(quantizer, "_amax", None)
    return amax if isinstance(amax, torch.Tensor) and not quantizer.is_mx_format else None


def is_dynamic(quantizer: Any) -> bool:
    """Return whether a quantizer takes its range from each batch by its own declaration."""
    blocks = quantizer.block_sizes or {}
    return bool(getattr(quantizer, "_dynamic", False)) or blocks.get("type") == "dynamic"


def plain_class_name(module: torch.nn.Module) -> str:
    """Return the class name of a module as its author wrote it: `Linear`, not `QuantLinear`."""
    return plain_class(module).__name__


def plain_class(module: torch.nn.Module) -> type[torch.nn.Module]:
    """Return the class of a module as its author wrote it, below those of ModelOpt."""
    from torch import nn

    dynamic = import_modelopt("modelopt.torch.opt.dynamic").DynamicModule
    if not isinstance(module, dynamic):
        return type(module)
    plain: type[nn.Module] = module.original_cls
    if issubclass(plain, dynamic):  # converted twice, as SVDQuant does
        plain = next(
            cls
            for cls in plain.__mro__
            if issubclass(cls, nn.Module) and not issubclass(cls, dynamic)
        )
    return plain


def has_constant_range(quantizer: Any) -> bool:
    """Return whether a range was never calibrated: ModelOpt's `use_constant_amax`."""
    return bool(getattr(quantizer, "_use_constant_amax", False))
