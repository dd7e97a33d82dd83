"""Whether an embedding depends on what else is in its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_quantgate.encoders.encoder import Batch, Encoder, join_inputs
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import BatchInvariance, TowerName
from pytest_quantgate.measure.parity import list_blocks, nudged

if TYPE_CHECKING:
    import torch

#: How many samples are embedded alone and in two batches: what depends on a batch does in each.
SAMPLES = 4

#: How often the model is nudged to see how far it moves by itself.
DRAWS = 3


def measure_invariance(
    model: Encoder, *, tower: TowerName, batches: Sequence[Batch]
) -> BatchInvariance:
    """Return how far embeddings move between a batch of one and two batches with other mates.

    Of each sample the largest relative distance of the three, ||a - b|| / ||alone||, and of these
    the median: the kernels for a batch of one round otherwise than those for many, which in a
    quantized model moves some samples far and most not at all. The floor is the same of three
    draws in which each value in front of a block is changed by a random 1e-6 of it: the largest of
    all samples instead is what one value at a tie moves, and hides a batch that moves each. One of
    the batches is embedded twice: a model that draws at random moves then, too, and would raise its
    own floor. With fewer than two samples nothing can be compared, and
    `samples` is 0.
    """
    import torch

    inputs = join_inputs(batches, tower=tower)
    total = len(next(iter(inputs.values())))
    count = min(SAMPLES, total // 2)
    if count == 0:
        return BatchInvariance(tower=tower, samples=0, change=0.0, floor=0.0)
    own, mates = list(range(count)), list(range(count, min(total, 3 * count)))
    first, second = mates[:count], mates[count:] or mates[::-1]

    def embed(places: Sequence[int]) -> torch.Tensor:
        chosen = {name: value[places] for name, value in inputs.items()}
        with quiet_libraries():
            return model.encode(tower, chosen).cpu().double()

    alone = torch.cat([embed([place]) for place in own])
    among = embed([*own, *first])[:count]
    others = embed([*second, *own])[-count:]
    again = embed([*own, *first])[:count]
    change = [_distances(*pair) for pair in ((among, alone), (others, alone), (others, among))]
    floors = []
    for seed in range(DRAWS):
        with nudged(model, blocks=list_blocks(model, tower=tower), seed=seed):
            floors.append(_distances(embed([*own, *first])[:count], among))
    return BatchInvariance(
        tower=tower,
        samples=count,
        change=float(torch.stack(change).amax(dim=0).median()),
        floor=float(torch.stack(floors).amax(dim=0).median()),
        repeat=float(_distances(again, among).median()),
    )


def _distances(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return ||value - reference|| / ||reference|| of each row [N, D], [N]."""
    found: torch.Tensor = (value - reference).norm(dim=1) / reference.norm(dim=1)
    return found
