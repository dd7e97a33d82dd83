"""How close the quantized embeddings are to FP16's, and which layer adds the noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import Tower
from pytest_quantgate.evidence.fidelity import TowerFidelity

if TYPE_CHECKING:
    import torch

#: Of the product of two norms, below which a cosine counts as 0 / 0 = 0.
SMALLEST_NORM = 1e-16

#: That of bfloat16, the coarsest type that a model is cast to.
ROUNDING = 2.0**-8


def compare_embeddings(
    *, tower: Tower, fp16: torch.Tensor, quantized: torch.Tensor, ids: Sequence[str]
) -> TowerFidelity:
    """Return cosine and SQNR between two [N, D], mean and worst sample.

    SQNR is 10 log10(sum x^2 / sum (x - y)^2) in dB: of each sample, and for the mean of all
    samples together. Where NaN or Inf occurs on either side all four figures are NaN.
    """
    import numpy as np
    import torch

    x, y = fp16.double(), quantized.double()
    finite = torch.isfinite(x).all(dim=1) & torch.isfinite(y).all(dim=1)
    nonfinite = int((~finite).sum())
    if nonfinite:
        nan = math.nan
        bad = ids[int((~finite).nonzero()[0])]
        return TowerFidelity(
            tower=tower,
            samples=len(ids),
            cosine_mean=nan,
            cosine_worst=nan,
            cosine_worst_id=bad,
            sqnr_mean_db=nan,
            sqnr_worst_db=nan,
            sqnr_worst_id=bad,
            nonfinite=nonfinite,
        )
    a, b = x.detach().cpu().numpy(), y.detach().cpu().numpy()
    signal, noise, after = ((value**2).sum(axis=1) for value in (a, a - b, b))
    cosine = (a * b).sum(axis=1) / np.maximum(np.sqrt(signal) * np.sqrt(after), SMALLEST_NORM)
    sqnr = [to_db(float(s), float(n)) for s, n in zip(signal, noise, strict=True)]
    lowest = min(range(len(sqnr)), key=sqnr.__getitem__)
    furthest = int(cosine.argmin())
    return TowerFidelity(
        tower=tower,
        samples=len(ids),
        cosine_mean=float(cosine.mean()),
        cosine_worst=float(cosine[furthest]),
        cosine_worst_id=ids[furthest],
        sqnr_mean_db=to_db(float(signal.sum()), float(noise.sum())),
        sqnr_worst_db=sqnr[lowest],
        sqnr_worst_id=ids[lowest],
        nonfinite=0,
    )


def to_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): +inf for no noise, -inf for noise without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def sum_of_squares(value: torch.Tensor) -> float:
    """Return sum x^2 in float64, the same to the last digit on any number of threads.

    NumPy adds in pairs in a fixed order; PyTorch shares a large sum out among its threads.
    """
    return float((value.detach().cpu().double().numpy() ** 2).sum())


def compare_scales(*, fp16: Encoder, quantized: Encoder) -> tuple[tuple[str, float, float], ...]:
    """Return (name, FP16's, the variant's) of the single numbers beside the towers that differ.

    CLIP's `logit_scale`, SigLIP's `logit_bias`: what probabilities are made of. Rounding to another
    type is no difference.
    """
    there = dict(quantized.module.named_parameters(recurse=False))
    found = []
    for name, value in fp16.module.named_parameters(recurse=False):
        if value.numel() == 1:
            before = float(value)
            after = float(there[name]) if name in there else math.nan
            if not math.isclose(before, after, rel_tol=ROUNDING):
                found.append((name, before, after))
    return tuple(found)


def rank_layers(
    *, fp16: Encoder, quantized: Encoder, batch: Batch
) -> tuple[tuple[str, float], ...]:
    """Return (layer, SQNR in dB), worst first, of the noise that each layer itself adds.

    Every Linear and Conv of the quantized model is run on the FP16 model's own input to it, so
    that a layer is not blamed for what came before.
    """
    from torch import nn

    found: list[tuple[str, float]] = []

    def compare(name: str) -> Any:
        layer = quantized.module.get_submodule(name)

        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # The variant may compute in another type than FP16 does here (`.half()` on a CPU).
            noisy = layer(*(value.to(layer.weight.dtype) for value in inputs))
            noise = sum_of_squares(output.double() - noisy.double())
            found.append((name, to_db(sum_of_squares(output), noise)))

        return hook

    handles = [
        module.register_forward_hook(compare(name))
        for name, module in fp16.module.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    try:
        with quiet_libraries(), quantized.forward_context():
            for tower in fp16.tower_names:
                fp16.encode(tower, batch.inputs[tower])
    finally:
        for handle in handles:
            handle.remove()
    worst: dict[str, float] = {}
    for name, value in found:
        worst[name] = min(value, worst.get(name, math.inf))
    return tuple(sorted(worst.items(), key=lambda item: item[1]))
