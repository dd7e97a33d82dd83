"""How near the quantized variant's embeddings are to FP16's."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quantgate.evidence.audit import Tower


@dataclass(frozen=True, kw_only=True)
class TowerFidelity:
    """Embeddings of one tower against FP16's on the same samples.

    Cosine in [-1, 1]; SQNR in dB, 10 log10(sum x^2 / sum (x - y)^2), +inf where equal.
    `nonfinite` counts samples whose embedding holds NaN or Inf on either side.
    """

    tower: Tower
    samples: int
    cosine_mean: float
    cosine_worst: float
    cosine_worst_id: str
    sqnr_mean_db: float
    sqnr_worst_db: float
    sqnr_worst_id: str
    nonfinite: int


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Fidelity of both towers.

    `worst_layers` are (module, SQNR in dB) of every layer by itself, worst first, or empty.
    `scales` are (name, FP16's, the variant's) of the single numbers beside the towers that differ:
    the scale of the logits, which no embedding shows.
    `copies` counts the images that repeat another.
    """

    data: str
    towers: tuple[TowerFidelity, ...]
    worst_layers: tuple[tuple[str, float], ...] = ()
    copies: int = 0
    scales: tuple[tuple[str, float, float], ...] = ()
