"""What is quantized, what is not, and what of that looks like a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_quantgate.artifacts.labels import is_excluded
from pytest_quantgate.artifacts.operands import Operand, Slot
from pytest_quantgate.inspection.findings import Finding, name_all
from pytest_quantgate.inspection.headline import count_layers
from pytest_quantgate.quantization.quantizers import block_of
from pytest_quantgate.text.words import count, group, listed

PRODUCTS: tuple[Slot, ...] = ("q", "k", "v", "softmax")

_BY_NAME = (
    "patterns such as '*vision_model*' and '*visual*', which ModelOpt's presets switch off by "
    "name, without a word"
)


def find_coverage(
    operands: Sequence[Operand], *, excluded: Sequence[str] = (), is_listed: bool = False
) -> Iterator[Finding]:
    """Yield what is not quantized and looks as if it should be.

    `excluded` are patterns of modules that were left out; `is_listed` says that an exporter listed
    there what it found, and nobody what was meant.
    """
    linear = [o for o in operands if o.kind == "linear" and o.slot == "weight"]
    if not any(o.is_quantized and o.slot not in ("input", "output") for o in operands):
        alone = sum(o.is_quantized for o in operands)
        yield Finding(
            code="check.not-quantized",
            headline=f"nothing is quantized: {count_layers(operands)}"
            + " in full precision" * any(o.slot == "weight" for o in operands)
            + f", {count(alone, 'input')} in front of them is rounded" * bool(alone),
            cause="the model that came in was saved or exported; or, with ModelOpt, its state was "
            "not saved with it (mto.enable_huggingface_checkpointing())",
            next_step="name the quantized file; as the base of another one: "
            "quantgate check QUANTIZED --base THIS",
        )
        return
    off = list(_find_towers_off(linear))
    yield from off
    towers = {tower for finding in off for tower in finding.subjects}
    rest = [o for o in operands if o.tower not in towers]
    yield from _find_layers_off(rest, excluded=excluded)
    yield from _find_inputs_off(rest)
    meant = () if is_listed else tuple(p for p in excluded if "proj" in p)
    yield from _find_projections_off(operands, without=towers, meant=meant)
    yield from _find_products_off(rest)


def _find_towers_off(linear: Sequence[Operand]) -> Iterator[Finding]:
    total = Counter(o.tower for o in linear)
    on = Counter(o.tower for o in linear if o.is_quantized)
    for tower, number in total.items():
        others = [name for name in on if name != tower]
        if number > 2 and not on[tower] and others:
            yield Finding(
                code="check.tower-off",
                headline=f"the whole {tower} tower is unquantized: 0 of {number} Linear layers, "
                f"{on[others[0]]} of {total[others[0]]} in the {others[0]} tower",
                cause=_BY_NAME,
                next_step="use a recipe without these patterns (fp8, fp8-attention, int8 of "
                "pytest-quantgate), quantize again",
                subjects=(tower,),
            )


def _find_layers_off(operands: Sequence[Operand], *, excluded: Sequence[str]) -> Iterator[Finding]:
    """Yield Linear layers that are off in some blocks and on in others."""
    inside = [
        o
        for o in operands
        if o.kind == "linear" and o.slot == "weight" and block_of(o.layer) is not None
    ]
    on = {_pattern(o.layer) for o in inside if o.is_quantized}
    off = [o.layer for o in inside if not o.is_quantized and _pattern(o.layer) in on]
    off = [layer for layer in off if not is_excluded(layer, excluded=excluded)]
    yield from name_all(
        "check.layers-off",
        off,
        "Linear layer",
        "unquantized, whose like in other blocks are quantized",
        cause="quantizers that were lost or switched off in these blocks",
        next_step="quantize again; where it is meant: --ignore check.layers-off",
    )


def _pattern(layer: str) -> str:
    number = block_of(layer)
    return layer.replace(f".{number}.", ".*.", 1)


def _find_inputs_off(operands: Sequence[Operand]) -> Iterator[Finding]:
    """Yield layers with a quantized weight and an input that is not, where most have both."""
    weights = {
        o.layer
        for o in operands
        if o.slot == "weight" and o.kind in ("linear", "conv") and o.is_quantized
    }
    inputs = {o.layer: o.is_quantized for o in operands if o.slot == "input"}
    bare = [
        o.layer
        for o in operands
        if o.slot == "input" and o.layer in weights and not inputs[o.layer]
    ]
    both = [layer for layer in weights if inputs.get(layer)]
    if bare and len(both) > len(bare):
        yield from name_all(
            "check.input-off",
            bare,
            "layer",
            "with a quantized weight and an input that is not, so computed in full precision",
            cause="an input quantizer that was lost or never calibrated",
            next_step="quantize again; a layer that is to stay weight-only is named by its recipe",
        )


def _find_projections_off(
    operands: Sequence[Operand], *, without: set[str], meant: Sequence[str]
) -> Iterator[Finding]:
    """Yield a projection that is off while the other tower's is on, and was not named to be."""
    found = [
        o for o in operands if o.kind == "linear" and o.slot == "weight" and _is_projection(o.layer)
    ]
    on = [o.layer for o in found if o.is_quantized]
    off = [o.layer for o in found if not o.is_quantized and o.tower not in without]
    off = [layer for layer in off if not is_excluded(layer, excluded=meant)]
    if on and off:
        yield Finding(
            code="check.projection-off",
            headline=f"{listed(off)} is not quantized, and {listed(on)} is",
            cause="ModelOpt's presets switch '*visual*' off, which names the projection too",
            next_step="quantize with a recipe without '*visual*'; where it is meant: "
            "--ignore check.projection-off",
            subjects=tuple(off),
        )


def _is_projection(layer: str) -> bool:
    return block_of(layer) is None and layer.rpartition(".")[2] in (
        "visual_projection",
        "text_projection",
        "proj",
    )


def _find_products_off(operands: Sequence[Operand]) -> Iterator[Finding]:
    """Yield operands of attention products that are on in some places and off in others."""
    fused = _list_fused(operands)
    products = [o for o in operands if o.kind == "attention" and o.layer not in fused]
    on = {o.slot for o in products if o.is_quantized}
    if not on & {"q", "k", "v"}:
        return
    for slot in ("q", "k", "v"):
        bare = [o.layer for o in products if o.slot == slot and not o.is_quantized]
        if bare:
            yield Finding(
                code=f"check.attention-{'partial' if slot in on else 'operand-off'}",
                headline=f"attention {slot} is not quantized in {count(len(bare), 'block')}, "
                f"where other operands of attention are: {listed(group(bare))}",
                cause="a quantizer that was lost, or that an export has no place for",
                next_step="an attention product runs in 8 bits only where both operands are: "
                "quantize again, or leave attention out whole",
                subjects=tuple(bare),
            )
    bare = [o.layer for o in products if o.slot == "softmax" and not o.is_quantized]
    if "softmax" in on and bare:
        yield Finding(
            code="check.attention-partial",
            headline=f"the softmax of attention is not quantized in {count(len(bare), 'block')}, "
            f"and in others it is: {listed(group(bare))}",
            next_step="quantize it in all blocks of a tower, or in none",
            subjects=tuple(bare),
        )


def _list_fused(operands: Sequence[Operand]) -> tuple[str, ...]:
    """Return the attention modules with one weight for q, k and v, of which nothing is quantized:
    ModelOpt has no quantized class of `nn.MultiheadAttention`."""
    held = {o.layer for o in operands if o.kind == "linear" and o.layer.endswith(".in_proj")}
    on = {o.layer for o in operands if o.is_quantized}
    modules = (name.removesuffix(".in_proj") for name in sorted(held - on))
    return tuple(name for name in modules if name not in on)


def list_notes(operands: Sequence[Operand], *, excluded: Sequence[str] = ()) -> list[str]:
    """Return what is not quantized and usually meant so."""
    if not any(o.is_quantized for o in operands):
        return []
    notes = []
    patches = [
        o for o in operands if o.kind == "conv" and o.slot == "weight" and not o.is_quantized
    ]
    if patches:
        names = listed(group(o.layer for o in patches))
        notes.append(f"left in full precision, as is usual: {names} (the first layer)")
    fused = _list_fused(operands)
    if fused:
        notes.append(
            f"left in full precision: {listed(group(fused))}, an nn.MultiheadAttention, which "
            f"ModelOpt has no quantized class of"
        )
    slots = {o.slot for o in operands if o.kind == "attention" and o.is_quantized}
    if any(o.kind == "attention" for o in operands):
        if not slots & set(PRODUCTS):
            notes.append(
                "no attention product (q k, softmax v) is quantized, the layers alone are; a "
                "recipe such as fp8-attention quantizes these too"
            )
        elif "softmax" not in slots:
            notes.append(
                "the softmax of attention is not quantized: TensorRT fuses FP8 attention only "
                "with Q/DQ on it too, which the export has to add"
            )
    projections = [
        o.layer
        for o in operands
        if o.slot == "weight"
        and o.kind == "linear"
        and _is_projection(o.layer)
        and not o.is_quantized
    ]
    if projections and not any(_is_projection(o.layer) and o.is_quantized for o in operands):
        notes.append(f"left in full precision: {listed(projections)}")
    norms = [o.layer for o in operands if o.kind == "norm" and o.is_quantized]
    if norms:
        notes.append(
            f"inputs of {count(len(norms), 'normalization')} are quantized too, which costs "
            f"accuracy and gains nothing: '*input_quantizer' matches them"
        )
    inside = [
        o
        for o in operands
        if o.slot == "weight"
        and o.kind == "linear"
        and not o.is_quantized
        and is_excluded(o.layer, excluded=excluded)
        and not _is_projection(o.layer)
    ]
    if inside:
        notes.append(f"left out by name: {listed(group(o.layer for o in inside))}")
    return notes
