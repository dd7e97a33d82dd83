"""Real damage to the quantizers of a variant, audited again, and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.audit import Audit, Quantizer
from pytest_quantgate.formats.table import E4M3, INT8
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.selftest.sabotage import Sabotage, exchange

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case

#: Held-out pairs of an audit that only has to see whether damage shows.
AUDIT_SAMPLES = 16

#: A range so much too small clips nearly everything, whatever a suite allows.
NARROWER = 256.0

#: Does something to the quantizers that are named, each a ModelOpt TensorQuantizer.
Damage = Callable[[Sequence[Any]], None]


def audit_again(
    case: Case, *, names: Sequence[str] = (), damage: Damage = lambda _quantizers: None
) -> Audit:
    """Return a new audit of the variant, with damage done to some of its quantizers for its time.

    Without damage it is the same measurement a second time, on fewer held-out pairs.
    """
    from pytest_quantgate.measure.audit import audit_quantizers
    from pytest_quantgate.measure.embeddings import make_batches
    from pytest_quantgate.quantization.quantizers import find_quantizers

    batches = list(make_batches(case.fp16, case.held_out(AUDIT_SAMPLES), batch_size=AUDIT_SAMPLES))
    quantizers = find_quantizers(case.quantized.module)
    with undone_afterwards([quantizers[name] for name in names]) as chosen:
        damage(chosen)
        return audit_quantizers(
            case.quantized,
            recipe=case.recipe,
            exclude=case.suite.variant.exclude,
            held_out=batches,
        )


@contextmanager
def undone_afterwards(quantizers: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Give back what quantizers were when the block ends: switches, formats and ranges."""
    before = [
        (
            quantizer,
            bool(quantizer.is_enabled),
            quantizer.num_bits,
            quantizer._amax.detach().clone() if hasattr(quantizer, "_amax") else None,
        )
        for quantizer in quantizers
    ]
    try:
        yield quantizers
    finally:
        for quantizer, enabled, num_bits, amax in before:
            quantizer.enable() if enabled else quantizer.disable()
            quantizer.num_bits = num_bits
            if amax is not None:
                if hasattr(quantizer, "_amax"):
                    delattr(quantizer, "_amax")
                quantizer.register_buffer("_amax", amax)


def switch_off(quantizers: Sequence[Any]) -> None:
    for quantizer in quantizers:
        quantizer.disable()


def change_format(quantizers: Sequence[Any]) -> None:
    """Make FP8 quantizers INT8 ones, and others FP8."""
    for quantizer in quantizers:
        other = INT8 if quantizer.num_bits == E4M3.num_bits else E4M3
        quantizer.num_bits = other.num_bits


def forget_ranges(quantizers: Sequence[Any]) -> None:
    """Take the ranges away: ModelOpt then quantizes each batch by its own and says nothing."""
    for quantizer in quantizers:
        delattr(quantizer, "_amax")


def break_ranges(quantizers: Sequence[Any]) -> None:
    for quantizer in quantizers:
        quantizer._amax.fill_(float("nan"))


def narrow_ranges(quantizers: Sequence[Any]) -> None:
    for quantizer in quantizers:
        quantizer._amax.div_(NARROWER)


def list_model_sabotages() -> tuple[Sabotage, ...]:
    """Return the sabotages of the coverage and the calibration gate that damage the model."""
    return (
        Sabotage(
            name="a whole tower switched off",
            gate="coverage",
            cause="(?s)whole (vision|text) tower is unquantized.*disabled after the quantization",
            spoil=_damage(_first_tower, switch_off),
        ),
        Sabotage(
            name="one block switched off",
            gate="coverage",
            cause=r"(are|is) off\b",
            spoil=_damage(_first_block, switch_off),
        ),
        Sabotage(
            name="one layer of another format",
            gate="coverage",
            cause="another format",
            spoil=_damage(_one_layer, change_format),
        ),
        Sabotage(
            name="a range that is missing",
            gate="calibration",
            cause="no amax",
            spoil=_damage(_one_static, forget_ranges),
        ),
        Sabotage(
            name="a range that is NaN",
            gate="calibration",
            cause="NaN or Inf",
            spoil=_damage(_one_static, break_ranges),
        ),
        Sabotage(
            name="ranges of other data",
            gate="calibration",
            cause="clips? more than max_clipped",
            spoil=_damage(_inputs, narrow_ranges),
        ),
    )


def _damage(
    choose: Callable[[Case], Sequence[str]], damage: Damage
) -> Callable[[Case, str], Case | None]:
    def spoil(case: Case, _key: str) -> Case | None:
        names = choose(case)
        if not names:
            return None
        return exchange(case, audit=audit_again(case, names=names, damage=damage))

    return spoil


def _running(case: Case) -> list[Quantizer]:
    return [q for q in case.audit.quantizers if q.enabled and q.calls]


def _first_tower(case: Case) -> list[str]:
    gate = case.suite.gates.one(CoverageGate)
    towers = gate.towers if gate is not None else ("vision", "text")
    for tower in towers:
        names = [q.name for q in _running(case) if q.tower == tower]
        if names:
            return names
    return []


def _first_block(case: Case) -> list[str]:
    """Return the quantizers of the layers of one block; those of attention may be left to it."""
    layers = [q for q in _running(case) if q.block is not None and q.slot in ("input", "weight")]
    return [q.name for q in layers if (q.tower, q.block) == (layers[0].tower, layers[0].block)]


def _one_layer(case: Case) -> list[str]:
    intended = set(case.audit.intended)
    plain = [q for q in _running(case) if q.slot == "input" and q.name in intended]
    return [plain[0].name] if plain else []


def _static(case: Case) -> list[Quantizer]:
    return [
        q for q in _running(case) if not q.dynamic and q.amax_count and q.granularity != "block"
    ]


def _one_static(case: Case) -> list[str]:
    return [q.name for q in _static(case) if q.slot == "input"][:1]


def _inputs(case: Case) -> list[str]:
    return [q.name for q in _static(case) if q.slot == "input"]
