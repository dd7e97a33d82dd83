"""What ONNX files stand for where there is no PyTorch model: FP16's encoder, an audit of graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.audit import Audit, Quantizer
from pytest_quantgate.run.exported import ExportedTowers

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.evidence.audit import TowerName
    from pytest_quantgate.evidence.onnx import OnnxAudit
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel


def open_onnx_encoder(plain: Encoder, *, sessions: Mapping[TowerName, OnnxRuntimeModel]) -> Encoder:
    """Return a model without weights as an encoder that runs its towers in ONNX Runtime."""
    exported = ExportedTowers(sessions)
    return replace(
        plain,
        towers=tuple(
            replace(tower, embed=partial(_embed, exported=exported, tower=tower.name))
            for tower in plain.towers
        ),
    )


def _embed(
    _module: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    exported: ExportedTowers,
    tower: TowerName,
) -> torch.Tensor:
    return exported.encode(tower, inputs)


def describe_graphs(audits: Sequence[OnnxAudit]) -> Audit:
    """Return the quantizers that graphs hold, as an audit; they are of no recipe and no module."""
    quantizers = tuple(found for audit in audits for found in _list_quantizers(audit))
    return Audit(
        towers=tuple(audit.tower for audit in audits),  # type: ignore[misc]
        modules=(),
        quantizers=quantizers,
        operations=(),
        excludes=(),
        intended=(),
        disabled_by=(),
        recipe_name="the ONNX files",
        formats=tuple(dict.fromkeys(quantizer.format for quantizer in quantizers)),
    )


def _list_quantizers(audit: OnnxAudit) -> Iterator[Quantizer]:
    """Yield a quantizer for each operand that a complete pair stands at."""
    for pair in audit.pairs:
        if pair.quantizer is not None and pair.complete:
            yield Quantizer(
                name=pair.quantizer,
                module=pair.quantizer.rpartition(".")[0],
                module_class="",
                slot=pair.slot,
                tower=audit.tower,  # type: ignore[arg-type]
                block=None,
                enabled=True,
                format=pair.format,
                granularity="per-tensor" if pair.scale_count == 1 else "per-channel",
                dynamic=pair.scale_type == "computed",
                amax_min=pair.amax_min,
                amax_max=pair.amax_max,
                amax_finite=True,
                amax_count=pair.scale_count,
                tower_calls={audit.tower: 1},
                changed=True,
            )
