"""The exported graph in the number format that ships: it gives numbers, and the right ones.

Part of the parity gate; of the export gate in a suite without one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Figure, Status, Verdict
from pytest_quantgate.gates.overflow import LARGEST, size
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_quantgate.evidence.parity import ShippedTower
    from pytest_quantgate.suite.where import Where

#: An embedding that rounding alone moves by more than a tenth of its length is another one.
LEAST_ROUNDING_DB = 20.0

#: Rounding puts values near a tie on its other side, as far from them as before: the noise is
#: another draw of the same size. Of 30 exports (INT8, FP8 and FP8 attention, both towers) the SQNR
#: moved by 0.00 dB on average, with a standard deviation of about this over the square root of the
#: samples: 0.55 at 16, 0.14 at 256.
SPREAD_DB = 2.2


def judge_shipped(
    towers: Sequence[ShippedTower],
    *,
    gate: str,
    where: Where,
    torch_db: Mapping[str, float],
    max_change_db: float,
) -> tuple[Verdict, ...]:
    """Return a verdict a tower: finite on every sample, and no noisier than it may be.

    `torch_db` is the SQNR of the quantized PyTorch model against FP16 by tower, empty where it was
    not measured. The noise may be that of quantization and of rounding together, `max_change_db`
    more, and twice the standard deviation of two draws of it.
    """
    return tuple(
        _judge_tower(
            tower,
            gate=gate,
            where=where,
            quantized_db=torch_db.get(tower.tower),
            change=max_change_db,
        )
        for tower in towers
    )


def _judge_tower(
    tower: ShippedTower, *, gate: str, where: Where, quantized_db: float | None, change: float
) -> Verdict:
    if tower.nonfinite:
        limit = LARGEST[tower.dtype]
        first = (
            f": the first value that {tower.dtype} does not hold is {size(tower.largest)} in "
            f"{tower.first or 'the graph'}, the largest it does is {size(limit)}"
            if tower.largest
            else ""
        )
        return Verdict(
            gate=gate,
            status=Status.FAIL,
            headline=f"{gate}: the {tower.dtype} graph of the {tower.tower} tower gives NaN or Inf "
            f"on {tower.nonfinite} of {count(tower.samples, 'sample')}{first} ({where})",
            brief=f"{tower.tower}: NaN or Inf in {tower.dtype} on {tower.nonfinite} of "
            f"{tower.samples}",
            cause="a value overflows in the number format that ships; in float32 nothing does",
            next_step="ship in bfloat16 (model: {dtype: bfloat16}), or scale the weights in front "
            "of this module down"
            if tower.dtype == "float16"
            else "scale the weights in front of this module down",
            figures={f"{tower.tower}_nonfinite_{tower.dtype}": tower.nonfinite},
            code=f"{gate}.nonfinite",
        )
    figures: dict[str, Figure] = {
        f"{tower.tower}_sqnr_{tower.dtype}_db": tower.sqnr_db,
        f"{tower.tower}_sqnr_rounding_db": tower.rounding_db,
    }
    figures = {name: v for name, v in figures.items() if math.isfinite(float(v))}
    said = (
        f"the {tower.dtype} graph of the {tower.tower} tower gives numbers on "
        f"{count(tower.samples, 'sample')}, SQNR {tower.sqnr_db:.1f} dB against FP16 in float32; "
        f"rounding alone {tower.rounding_db:.1f} dB"
    )
    least = -math.inf
    if quantized_db is not None:
        noise = 10 ** (-quantized_db / 10) + 10 ** (-tower.rounding_db / 10)
        explained = -10 * math.log10(noise) if noise else math.inf
        least = explained - change - 2 * SPREAD_DB / math.sqrt(tower.samples)
    if not tower.rounding_db >= LEAST_ROUNDING_DB:
        return Verdict(
            gate=gate,
            status=Status.FAIL,
            headline=f"{gate}: FP16 itself loses the {tower.tower} embeddings in {tower.dtype}: "
            f"{said}, under {LEAST_ROUNDING_DB:g} dB ({where})",
            cause=f"values too small or too large for {tower.dtype}; in float32 they are not",
            next_step="ship in another format (model.dtype), or scale the weights",
            figures=figures,
            code=f"{gate}.rounding",
        )
    # Without quantizers nothing but rounding is left, which is noise of its own in every run.
    if not (tower.sqnr_db >= least or tower.sqnr_db >= 60):
        return Verdict(
            gate=gate,
            status=Status.FAIL,
            headline=f"{gate}: {said}, under {least:.1f} dB, which quantization and rounding "
            f"explain ({where})",
            brief=f"{tower.tower} SQNR {tower.sqnr_db:.1f} dB in {tower.dtype}, under {least:.1f}",
            cause=f"the graph loses more in {tower.dtype} than its model does",
            next_step="look for scales and weights that are tiny or huge, and export again",
            figures=figures,
            code=f"{gate}.precision-lost",
        )
    return Verdict(gate=gate, status=Status.PASS, headline=f"{gate}: {said}", figures=figures)
