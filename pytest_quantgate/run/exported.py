"""The towers of an exported variant behind the interface of a ClipModel, and how they are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pytest_quantgate.models.clip import PairBatch
    from pytest_quantgate.runtimes.engine_run import RunsBatches
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

TowerName = Literal["vision", "text"]
Variant = Literal["fp16", "quantized"]
Precision = Literal["float32", "float16", "bfloat16"]

TOWERS: tuple[TowerName, ...] = ("vision", "text")
VARIANTS: tuple[Variant, ...] = ("fp16", "quantized")

TEXT_INPUTS = ("input_ids", "attention_mask")


class ExportedClip:
    """The exported towers of a variant in ONNX Runtime, with the interface of a ClipModel."""

    def __init__(self, *, vision: OnnxRuntimeModel, text: OnnxRuntimeModel) -> None:
        self.vision = vision
        self.text = text

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for pixel values [N, 3, H, W]."""
        import torch

        return torch.from_numpy(self.vision.run_image(pixel_values.cpu().numpy()))

    def encode_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for token ids and attention mask [N, T]."""
        import torch

        ids, mask = (tokens[name].cpu().numpy() for name in TEXT_INPUTS)
        return torch.from_numpy(self.text.run_text(ids, mask))


class EngineClip:
    """Engines of both towers, built for one batch size, with the interface of a ClipModel."""

    def __init__(self, *, vision: RunsBatches, text: RunsBatches, batch: int) -> None:
        self.vision = vision
        self.text = text
        self.batch = batch

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for pixel values [N, 3, H, W]."""
        return self._run(self.vision, {"pixel_values": pixel_values})

    def encode_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for token ids and attention mask [N, T]."""
        return self._run(self.text, {name: tokens[name] for name in TEXT_INPUTS})

    def _run(self, engine: RunsBatches, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        from pytest_quantgate.runtimes.engine_run import run_in_batches

        found: torch.Tensor = run_in_batches(engine, inputs, batch=self.batch)
        return found


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """Which engine is wanted; `source` is where the suite asks for it, for messages."""

    target: str
    library: str
    batch: int
    source: str


def select_inputs(batch: PairBatch, *, tower: str) -> dict[str, torch.Tensor]:
    """Return the inputs of one tower by the names of its exported graph."""
    if tower == "vision":
        return {"pixel_values": batch.pixel_values}
    return {name: batch.tokens[name] for name in TEXT_INPUTS}
