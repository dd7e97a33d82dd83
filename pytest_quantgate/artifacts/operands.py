"""What a file says of a quantized model, whichever tool wrote it: one record an operand.

An operand is a value that a layer or an attention product computes with: the weight and the input
of a Linear layer; q, k, v and the softmax output of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_quantgate.formats.table import BY_SAFETENSORS, find_format

Kind = Literal["linear", "conv", "embedding", "norm", "attention", "other"]

Slot = Literal["weight", "input", "output", "q", "k", "v", "softmax", "attention_output", "other"]

#: Types of whole bytes that hold codes.
_PACKED = frozenset(("U8", "I32", *BY_SAFETENSORS))


def largest_of(format: str) -> float:
    """Return the largest value of a format: a range is a scale times it. 1.0 for what is none."""
    found = find_format(format)
    return 1.0 if found is None else found.largest


@dataclass(frozen=True, kw_only=True)
class WeightSummary:
    """What one pass over a stored weight tells.

    `largest` is the largest magnitude under each scale, in stored units (codes, or values where
    the weight is kept in full precision). `rms` is the root mean square of the dequantized weight,
    0 where its scales are not known. `not_finite` counts NaN and infinities,
    `beyond` codes that the format does not have.
    """

    largest: tuple[float, ...]
    rms: float
    not_finite: int = 0
    beyond: int = 0


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One operand of one layer or attention product.

    `format` is empty where it is not quantized. `ranges` are the largest magnitudes that the
    format can hold, one a scale, None where the file keeps none. `stored` is the type that a
    weight has in the file, `values` how many values a weight has. `fits` says whether a weight has
    as many scales as its shape and granularity ask for.
    """

    layer: str
    tower: str
    kind: Kind
    slot: Slot
    format: str = ""
    granularity: str = ""
    dynamic: bool = False
    symmetric: bool = True
    ranges: tuple[float, ...] | None = None
    needs_range: bool = True
    fits: bool = True
    stored: str = ""
    values: int = 0
    summary: WeightSummary | None = None

    @property
    def is_quantized(self) -> bool:
        return bool(self.format)

    @property
    def is_packed(self) -> bool:
        """Return whether a quantized weight lies in the bits of its format."""
        return self.stored in _PACKED or find_format(self.stored) is not None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A checkpoint or an ONNX file.

    `what` is the sort of file in words, `tool` what wrote it, `bytes_by_type` the bytes of all
    tensors by the type that they are stored in. `facts` are what the file says of itself,
    `disagreements` where that contradicts its tensors, `excluded` patterns of modules that it
    says were left out. `pre_scaled` tells that inputs are scaled before they are quantized
    (SmoothQuant, AWQ), `by_max` that a weight's range is that of its largest value,
    `is_restorable` that a suite can take it.
    """

    what: str
    tool: str
    operands: tuple[Operand, ...]
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    disagreements: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    pre_scaled: bool = False
    by_max: bool = False
    is_restorable: bool = False
