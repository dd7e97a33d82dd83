"""How far an exported tower is from the PyTorch model, and how far that moves by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.measure.fidelity import to_db
from pytest_quantgate.measurement import TowerParity
from pytest_quantgate.models.clip import ClipModel, PairBatch
from pytest_quantgate.models.loading import quiet_libraries

if TYPE_CHECKING:
    import torch

#: Relative size of a nudge: what rounding adds up to on the way through a few layers in float32.
NUDGE = 1e-6

#: How often the model is nudged; the largest answer counts.
DRAWS = 4

_EMBEDDINGS: Mapping[str, str] = {
    "vision": "vision_model.embeddings",
    "text": "text_model.embeddings",
}


def measure_tower_parity(
    *,
    tower: Literal["vision", "text"],
    fp16: ClipModel,
    quantized: ClipModel,
    exported: Callable[[PairBatch], torch.Tensor],
    batches: Sequence[PairBatch],
    optimization: str,
) -> TowerParity:
    """Return the errors of one exported tower on `batches`; `exported` gives its embeddings [N, D].

    Errors are relative, ||a - b|| / ||b|| over all samples. Raises ValueError for no batches.
    """
    import torch

    if not batches:
        raise ValueError("parity needs at least one batch of pairs")

    def run(model: ClipModel) -> torch.Tensor:
        with quiet_libraries():
            if tower == "vision":
                parts = [model.encode_image(batch.pixel_values) for batch in batches]
            else:
                parts = [model.encode_text(batch.tokens) for batch in batches]
        return torch.cat(parts).cpu().double()

    reference, approved = run(fp16), run(quantized)
    found = torch.cat([exported(batch) for batch in batches]).double()
    floor = 0.0
    for seed in range(DRAWS):
        with nudged(quantized.module.get_submodule(_EMBEDDINGS[tower]), seed=seed):
            floor = max(floor, relative_error(run(quantized), approved))
    return TowerParity(
        tower=tower,
        samples=len(found),
        error=relative_error(found, approved),
        floor=floor,
        quantization_error=relative_error(approved, reference),
        sqnr_torch_db=_sqnr_db(reference, approved),
        sqnr_onnx_db=_sqnr_db(reference, found),
        nonfinite=int((~torch.isfinite(found).all(dim=1)).sum()),
        optimization=optimization,
    )


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ||value - reference|| / ||reference||, both [N, D]."""
    return float((value - reference).norm() / reference.norm())


@contextmanager
def nudged(module: torch.nn.Module, *, seed: int) -> Iterator[None]:
    """Change each value that `module` gives by a random 1e-6 of itself while the block runs.

    Each by its own: a common factor would be undone by the LayerNorm that follows.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def change(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output * (1 + NUDGE * noise)

    handle = module.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _sqnr_db(reference: torch.Tensor, value: torch.Tensor) -> float:
    signal, noise = reference.square().sum(), (reference - value).square().sum()
    return to_db(float(signal), float(noise))
