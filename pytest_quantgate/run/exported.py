"""The towers of an exported variant behind the interface of a Encoder, and how they are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.evidence.audit import TowerName

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from pytest_quantgate.runtimes.engine_run import RunsBatches
    from pytest_quantgate.runtimes.onnx_reference import ReferenceModel
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

Variant = Literal["fp16", "quantized"]
Precision = Literal["float32", "float16", "bfloat16"]

VARIANTS: tuple[Variant, ...] = ("fp16", "quantized")


class ExportedTowers:
    """Exported towers of a variant in ONNX Runtime, with an Encoder's `encode`."""

    def __init__(self, sessions: Mapping[TowerName, OnnxRuntimeModel | ReferenceModel]) -> None:
        self.sessions = sessions

    def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for the inputs of one tower by their names."""
        import torch

        feeds = {key: value.cpu().numpy() for key, value in inputs.items()}
        return torch.from_numpy(self.sessions[name].embed(feeds))


class EngineTowers:
    """Engines of towers with an Encoder's `encode`."""

    def __init__(self, engines: Mapping[TowerName, RunsBatches], *, batch: int) -> None:
        """Embed `batch` samples at a time, or as many as an engine takes where it takes fewer."""
        self.engines = engines
        self.batch = batch

    def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for the inputs of one tower by their names."""
        from pytest_quantgate.runtimes.engine_run import run_in_batches

        engine = self.engines[name]
        found: torch.Tensor = run_in_batches(engine, inputs, batch=engine.fit_batch(self.batch))
        return found


@dataclass(frozen=True, kw_only=True)
class RunnableEngine:
    """A plan that may run here, and its sizes in bytes; `weights_bytes` is None where unknown."""

    path: Path
    target: str
    plan_sha256: str
    plan_bytes: int
    weights_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class EngineOrder:
    """Which engine is wanted; `source` is where the suite asks for it, for messages."""

    target: str
    library: str
    batch: int
    source: str
