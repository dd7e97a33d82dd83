"""What stands in an exported graph, and what its engine gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_quantgate.evidence.audit import Slot


@dataclass(frozen=True, kw_only=True)
class EngineOutputs:
    """What a quantized engine gave on a device, as SQNR in dB against FP16 in PyTorch.

    `sqnr_onnx_db` is None where the exported file could not be run in ONNX Runtime. `nonfinite`
    samples of `samples` have a NaN or an Inf in the engine's embedding.
    """

    tower: str
    samples: int
    nonfinite: int
    sqnr_engine_db: float
    sqnr_torch_db: float
    sqnr_onnx_db: float | None


@dataclass(frozen=True, kw_only=True)
class QdqPair:
    """One QuantizeLinear/DequantizeLinear pair of an ONNX graph, or a lone half of one.

    `quantizer` is the quantizer it belongs to by its name, None where the name is of none; `slot`
    follows from it. `format` is `E4M3`, `INT8` or ONNX's name of the type. `scale_type` is the
    type the scale is stored in, `scale_digest` the SHA-256 of its values as float32;
    `amax` is the scale times the largest value of the format (448, 127). `symmetric` says whether
    all zero points are 0.
    `source` is `weight, 8 bit` (an 8-bit initializer, no QuantizeLinear), `weight, float` (a
    full-precision initializer behind QuantizeLinear: nothing is saved), or `activation`.
    `complete` says whether both halves are there with one scale and one type.
    `producer` is the module of the node whose value is quantized (None for weights and inputs),
    `consumers` the modules of those that read the result; nodes that only move values are
    looked through. `feeds_owner` says whether they include the module that the quantizer's name
    says it belongs to. `amax_deviation` is the largest relative difference between an amax of
    the graph and the calibrated one at the same place; None where they were not compared.
    """

    node: str
    quantizer: str | None
    slot: Slot
    format: str
    scale_type: str
    scale_min: float
    scale_max: float
    scale_count: int
    scale_digest: str
    amax_min: float
    amax_max: float
    symmetric: bool
    source: Literal["weight, 8 bit", "weight, float", "activation"]
    complete: bool
    producer: str | None
    consumers: tuple[str, ...]
    feeds_owner: bool
    amax_deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class OnnxOperation:
    """One Conv, Gemm or MatMul of an ONNX graph.

    `operands_quantized` says for the first two inputs whether they come out of a complete pair;
    `quantizers` names them (None for an input that is not quantized, or by a nameless pair).
    `weights_count` and `weight_type` describe the operand that is an initializer: 0 and None
    where there is none.
    """

    node: str
    module: str
    operator: str
    operands_quantized: tuple[bool, ...]
    quantizers: tuple[str | None, ...]
    weights_count: int
    weight_type: str | None


@dataclass(frozen=True, kw_only=True)
class GivenGraph:
    """A file that was handed over, held against the PyTorch model.

    `digest` is the SHA-256 of the file as it was given, `tool` what wrote it. Of `tensors` of the
    model `same` are in the graph at their place, value by value or code by code; `differing` name
    those that are there with other values and how, `unproven` those that were not found.
    `unmapped` are nodes whose place in the model is not known. `refused` says in words what
    TensorRT does not take of it, empty where nothing is known of such. `batch` is the only size of
    a batch that it takes, 0 where that is free.
    """

    name: str
    digest: str
    tool: str
    tensors: int
    same: int
    differing: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()
    unmapped: tuple[str, ...] = ()
    refused: str = ""
    batch: int = 0


@dataclass(frozen=True, kw_only=True)
class OnnxAudit:
    """All that an ONNX file says about its quantization.

    `declared` are the quantizers that the exporter wrote into the file's metadata, `extra` those
    of them that were asked for beyond what the model simulates (softmax pairs); both are empty
    for a file of another exporter. `domains` are those of the opset imports and nodes ('' is
    standard ONNX). `weights_bytes` are the bytes of initializers by type. `problems` is what
    ONNX's own checker says, empty where the model is valid. `digest` is the file's SHA-256.
    `given` is about a file that was handed over, None for one that was exported here.
    """

    tower: str
    precision: str
    opset: int
    domains: tuple[str, ...]
    file_bytes: int
    digest: str
    dynamic_batch: bool
    weights_bytes: tuple[tuple[str, int], ...]
    declared: tuple[str, ...]
    extra: tuple[str, ...]
    pairs: tuple[QdqPair, ...]
    operations: tuple[OnnxOperation, ...]
    problems: tuple[str, ...]
    given: GivenGraph | None = None

    @property
    def lost(self) -> tuple[str, ...]:
        """Declared quantizers without a complete pair at their place."""
        held = {p.quantizer for p in self.pairs if p.complete and p.feeds_owner}
        return tuple(name for name in self.declared if name not in held)

    @property
    def undeclared(self) -> tuple[QdqPair, ...]:
        """Pairs of no quantizer that the exporter declared."""
        return tuple(p for p in self.pairs if p.quantizer not in self.declared)

    @property
    def unquantized(self) -> tuple[OnnxOperation, ...]:
        """Operations with at least one of two operands in full precision."""
        return tuple(op for op in self.operations if not all(op.operands_quantized))
