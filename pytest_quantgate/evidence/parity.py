"""How near an exported or restored variant is to the one that was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_quantgate.evidence.audit import Tower


@dataclass(frozen=True, kw_only=True)
class BlockParity:
    """One transformer block of the exported graph, given the hidden state that PyTorch's got.

    Errors are of a sample, relative to what the block adds to its hidden state,
    ||onnx - torch|| / ||added||, floors the same between PyTorch's block and itself with its hidden
    state changed by a random 1e-6. `error` is that of half of the samples and less, `floor` that of
    75 % of the nudged ones; `high_error` that of 90 % of the samples, `high_floor` the largest.
    """

    module: str
    error: float
    floor: float
    high_error: float = 0.0
    high_floor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TowerParity:
    """One exported tower against the PyTorch model on the same samples.

    Errors are of a sample, ||onnx - torch|| / ||torch||, floors the same between the PyTorch model
    and itself with each hidden state behind the embeddings changed by a random 1e-6 of it: what it
    moves by itself. `error`, `floor`, `high_error` and `high_floor` are as in `BlockParity`.
    `quantization_error` is PyTorch's error against FP16 over all samples; the SQNR are against
    FP16, in dB.
    `blocks` are compared one by one, each with PyTorch's own hidden state: no error of a block
    reaches the next one.
    """

    tower: Tower
    samples: int
    error: float
    floor: float
    quantization_error: float
    sqnr_torch_db: float
    sqnr_onnx_db: float
    nonfinite: int
    optimization: str
    blocks: tuple[BlockParity, ...] = ()
    high_error: float = 0.0
    high_floor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ShippedTower:
    """One exported tower in the number format that ships, each result rounded to it.

    `nonfinite` samples have a NaN or an Inf in their embedding; `first` is then the module with the
    first value that the format does not hold, and `largest` that value. The SQNR are in dB:
    `sqnr_db` of this tower against FP16 in float32, `rounding_db` of FP16 itself, rounded in the
    same way in PyTorch.
    """

    tower: Tower
    dtype: str
    samples: int
    nonfinite: int
    first: str
    largest: float
    sqnr_db: float
    rounding_db: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Parity of both towers, and what ran the graphs.

    `by_reference` says why that was not ONNX Runtime but ONNX's reference evaluator, empty where it
    was.
    """

    towers: tuple[TowerParity, ...]
    runtime: str
    by_reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Roundtrip:
    """A save and a restore in a fresh process.

    `equal` says of each tower whether its outputs are the same bits; `amax_different` names amax
    that are not bit-identical;
    `refused` lists the damage that was planted and refused, `accepted` the damage that was
    planted and wrongly accepted (each a short phrase such as `state file missing`).
    """

    saved_bytes: int
    equal: Mapping[str, bool]
    max_abs_difference: float
    amax_count: int
    amax_different: tuple[str, ...]
    refused: tuple[str, ...]
    accepted: tuple[str, ...]
