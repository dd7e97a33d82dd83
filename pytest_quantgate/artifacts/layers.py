"""The layers of a model, found from the names and shapes of its tensors alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_quantgate.artifacts.operands import Kind
from pytest_quantgate.artifacts.packed_codes import PackedCodes, find_packed
from pytest_quantgate.artifacts.safetensors_file import Tensor
from pytest_quantgate.quantization.quantizers import tower_of

#: What the tensor that holds a layer's weight is called; the rest of its name is the layer.
WEIGHTS = ("weight", "weight_packed", "_weight_qdata", "in_proj_weight")

#: Parameters that multiply and are no `.weight` (open_clip).
_PARAMETERS = ("proj", "text_projection", "visual_projection")

#: How many 4-bit codes lie in one number of a type, where the layout is not known.
_PACKED = {"U8": 2, "I32": 8}

_EMBEDDING = re.compile(r"embed|wte|wpe|position", re.IGNORECASE)
_NORM = re.compile(r"norm|ln_\w+|^ln\d?$", re.IGNORECASE)

#: Children that tell an attention module, in the names of the families that are known.
_ATTENTION_CHILDREN = (
    {"q_proj", "k_proj", "v_proj"},
    {"query", "key", "value"},
    {"qkv"},
    {"in_proj"},
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with a weight: its module, what it is, and the tensor that keeps the weight.

    `packed` are its codes where several lie in one number, and their layout is known.
    """

    name: str
    tower: str
    kind: Kind
    tensor: Tensor
    tensor_name: str
    packed: PackedCodes | None = None

    @property
    def values(self) -> int:
        """Return how many values the weight has, several in one number where it is packed."""
        if self.packed is not None:
            return math.prod(self.packed.shape)
        return self.tensor.count * _PACKED.get(self.tensor.dtype, 1)

    @property
    def is_packed(self) -> bool:
        return self.tensor.dtype in _PACKED


def find_layers(tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers in the order of their names; biases and lone scalars are none."""
    layers = []
    for full, tensor in sorted(tensors.items()):
        module, _, last = full.rpartition(".")
        if last in WEIGHTS:
            name = f"{module}.in_proj" if last == "in_proj_weight" else module
        elif last in _PARAMETERS and len(tensor.shape) == 2:
            name = full
        else:
            continue
        layers.append(
            Layer(
                name=name,
                tower=tower_of(name),
                kind=_find_kind(name, tensor),
                tensor=tensor,
                tensor_name=full,
                packed=find_packed(tensors, name=full, module=name),
            )
        )
    return layers


def _find_kind(name: str, tensor: Tensor) -> Kind:
    last = name.rpartition(".")[2]
    if len(tensor.shape) >= 3:
        return "conv"
    if len(tensor.shape) < 2 or _NORM.search(last):
        return "norm"
    return "embedding" if _EMBEDDING.search(last) else "linear"


def lies_flat(granularity: str, shape: tuple[int, ...], *, scales: int) -> bool:
    """Return whether the values under one scale stand beside each other in the file.

    They do per tensor and per row; not in blocks of several rows, nor where a row is no whole
    number of blocks.
    """
    if not granularity.startswith("block"):
        return scales <= 1 or (bool(shape) and scales == shape[0])
    size = granularity.removeprefix("block ")
    if not size.isdecimal() or len(shape) != 2 or int(size) == 0:
        return False
    return shape[1] % int(size) == 0 and scales * int(size) == shape[0] * shape[1]


def find_attentions(names: Iterable[str]) -> list[str]:
    """Return the modules that hold an attention, by the layers inside of them, in order."""
    children: dict[str, set[str]] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        children.setdefault(parent, set()).add(child)
    return [
        parent
        for parent, found in children.items()
        if any(wanted <= found for wanted in _ATTENTION_CHILDREN)
    ]
