"""A file against the FP16 model that it was made from: same weights, noise by layer, size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.checkpoints import CheckpointFiles, is_quantizer_part
from pytest_quantgate.artifacts.dequantized import LayerWeight
from pytest_quantgate.artifacts.given_weights import list_changed
from pytest_quantgate.artifacts.layers import WEIGHTS
from pytest_quantgate.artifacts.onnx_file import OnnxGraph
from pytest_quantgate.artifacts.onnx_places import TowerModel
from pytest_quantgate.artifacts.safetensors_file import FLOATS, Tensor, import_numpy
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.inspection.findings import Against, Finding, LayerError, name_all
from pytest_quantgate.quantization.quantizers import tower_of
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, numpy.dtype[Any]]

#: Below this a weight of so many bits is not the base's with rounding on top.
_LEAST_SQNR_DB = {8: 20.0, 4: 8.0}

#: FP4 in blocks that have scales of their own is off by a fifth of a value at most, about 14 dB.
_LEAST_SQNR_FP4_DB = 12.0

#: What storing a weight in another type of 16 bits changes at most, relative to its size.
_ROUNDING = 2.0**-8

#: A weight is a layer of the base where the cosine of so many of its values is above this.
_SAMPLED = 4096
_SAME_COSINE = 0.8

#: Codes of 4 bits of a block's own values have a cosine of 0.99 with these.
_SAME_BLOCK = 0.97

#: Natural logarithms of a block's factor against the base: rounding stays below the first in all
#: but a few blocks, and below the second in all.
_OFF = 0.15
_FEW_OFF = 0.02
_FAR_OFF = 0.4

#: The mean of fewer values says nothing of their block.
_SMALL_BLOCK = 8

#: Values that are compared at once.
_STEP = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that a file is compared with: its layers, all tensors where it is a checkpoint."""

    label: str
    layers: Mapping[str, LayerWeight]
    tensors: Mapping[str, Tensor]
    bytes: int


def compare_with_base(
    base: Base,
    weights: Iterable[LayerWeight],
    *,
    files: CheckpointFiles | None,
    bytes: int,
    towers: Collection[str],
    rest: tuple[int, Sequence[str]],
) -> tuple[Against, list[Finding]]:
    """Return a file against its base, and what is wrong there.

    `files` is there for a checkpoint; `towers` are those that the file has, and the base may have
    more. `rest` is how many tensors outside of layers were compared, and which are others
    (`compare_rest`, `compare_graph`). Raises ArtifactError where the two have no layer in common.
    """
    layers: list[LayerError] = []
    changed: list[str] = []
    own = list(weights)
    pairs, single = _pair_by_name(own, base=base)
    found = {other.layer for _, other in pairs}
    more = list(
        _pair_by_values(single, among=[w for n, w in base.layers.items() if n not in found])
    )
    pairs += more
    if own and not pairs:
        raise ArtifactError(
            f"{base.label} has no layer of this file, neither by name nor by its values: name the "
            f"model it is from"
        )
    compared = len(pairs) + rest[0]
    misplaced: dict[str, _Misplaced] = {}
    for weight, other in pairs:
        error, wrong = _measure(weight, other)
        if wrong is not None:
            misplaced[weight.layer] = wrong
        if error is None:
            changed.append(f"{weight.layer} (another shape)")
        elif weight.format:
            layers.append(error)
        elif error.relative_error > (0 if weight.stored == other.stored else _ROUNDING):
            changed.append(weight.layer)
    changed += rest[1]
    paired = {id(weight) for weight, _ in pairs}
    against = Against(
        base=base.label,
        bytes=bytes,
        base_bytes=_count_bytes(base, towers=towers),
        same=compared - len(layers) - len(changed),
        compared=compared - len(layers),
        layers=tuple(sorted(layers, key=lambda e: e.sqnr_db)),
        found=len(pairs),
        sought=len(own),
        by_values=len(more),
        unfound=tuple(weight.layer for weight in own if id(weight) not in paired),
        unclaimed=tuple(_list_unclaimed(base, pairs=pairs, files=files, towers=towers)),
    )
    lost = [weight.layer for weight in own if weight.format and id(weight) not in paired]
    is_whole = files is not None and bool(base.tensors)
    return against, list(
        _find_findings(against, changed=changed, lost=lost, is_whole=is_whole, misplaced=misplaced)
    )


def _count_bytes(base: Base, *, towers: Collection[str]) -> int:
    """Return the bytes of those towers of the base that the file has."""
    if not base.tensors:
        return base.bytes
    return sum(
        tensor.bytes
        for name, tensor in base.tensors.items()
        if tower_of(name) in towers or tower_of(name) == "other"
    )


_Pair = tuple[LayerWeight, LayerWeight]


def _pair_by_name(
    weights: Sequence[LayerWeight], *, base: Base
) -> tuple[list[_Pair], list[LayerWeight]]:
    """Return weights with the layer of the base that has their name, one each, and the others."""
    pairs, rest = [], []
    taken: set[str] = set()
    for weight in weights:
        found = _find(base, weight.layer)
        if found is None or found.layer in taken:
            rest.append(weight)
        else:
            taken.add(found.layer)
            pairs.append((weight, found))
    return pairs, rest


def _find(base: Base, layer: str) -> LayerWeight | None:
    """Return the base's layer of a name, which an export may have put something in front of.

    What an export has cut off the front is added again, where one layer alone then fits.
    """
    found = base.layers.get(layer)
    if found is not None:
        return found
    rest = layer
    while "." in rest:
        rest = rest.partition(".")[2]
        if rest in base.layers:
            return base.layers[rest]
    longer = [weight for name, weight in base.layers.items() if name.endswith(f".{layer}")]
    return longer[0] if len(longer) == 1 else None


def _pair_by_values(
    weights: Sequence[LayerWeight], *, among: Sequence[LayerWeight]
) -> Iterator[_Pair]:
    """Yield weights with the layer of the base whose values they have, up to rounding, one each.

    Exporters that trace give layers names of their own. What decides is the cosine of some values
    at the same places: that of two layers of one model is near 0.
    """
    if not weights:
        return
    numpy = import_numpy()
    samples: dict[tuple[int, ...], list[tuple[LayerWeight, Array]]] = {}
    for layer in among:
        shape, values = _sample(layer)
        samples.setdefault(shape, []).append((layer, values))
    for weight in weights:
        shape, values = _sample(weight)
        free = samples.get(shape, [])
        if not free:
            continue
        with numpy.errstate(all="ignore"):
            cosines = numpy.nan_to_num([numpy.dot(values, other) for _, other in free], nan=-1.0)
        best = int(cosines.argmax())
        if cosines[best] > _SAME_COSINE:
            yield weight, free.pop(best)[0]


def _list_unclaimed(
    base: Base,
    *,
    pairs: Sequence[_Pair],
    files: CheckpointFiles | None,
    towers: Collection[str],
) -> Iterator[str]:
    """Yield what the base has, in the towers of the file, and the file has not.

    Of a graph its layers alone are looked for: an embedding is no layer there.
    """
    found = {other.layer for _, other in pairs}
    kept = frozenset(() if files is None else files.tensors)
    for name, weight in base.layers.items():
        is_there = name in kept or any(f"{name}.{part}" in kept for part in WEIGHTS)
        if name in found or is_there or tower_of(name) not in towers:
            continue
        if files is not None or not weight.is_embedding:
            yield name
    rest = [n for n, t in base.tensors.items() if len(t.shape) < 2 and t.dtype in FLOATS]
    if not kept.isdisjoint(rest):  # the names are the same in both
        yield from (name for name in rest if name not in kept and tower_of(name) in towers)


def _sample(weight: LayerWeight) -> tuple[tuple[int, ...], Array]:
    """Return the shape of a weight, and some of its values as a vector of length 1."""
    numpy = import_numpy()
    whole = weight.read()
    flat = whole.reshape(-1)
    some = flat[:: max(1, flat.size // _SAMPLED)].astype("f8")
    with numpy.errstate(all="ignore"):
        unit: Array = some / numpy.linalg.norm(some)
    return tuple(whole.shape), unit


@dataclass(frozen=True, kw_only=True)
class _Misplaced:
    """Blocks of a weight that another scale was laid over: `off` of `blocks`, by up to `factor`;
    or none, and blocks that are moved as a whole."""

    off: int = 0
    blocks: int = 0
    factor: float = 1.0


def _find_misplaced(before: Array, after: Array, *, block: int) -> _Misplaced | None:
    """Return whether blocks of a dequantized weight are the base's moved, or times a factor.

    Moved: most of the error is that of the blocks' means, which rounding leaves in place. The
    factor is that of least squares, <before, after> / <after, after>, against the median of all;
    rounding changes it by a few percent, and blocks of other values are not counted. The SQNR of
    a whole weight shows neither.
    """
    numpy = import_numpy()
    block = block or before.size
    if block < _SMALL_BLOCK or before.size % block:
        return None
    one, two = before.reshape(-1, block), after.reshape(-1, block)
    with numpy.errstate(all="ignore"):
        error = two - one
        energy = float(numpy.square(error, dtype="f8").sum())
        if block * float(numpy.square(error.mean(axis=1, dtype="f8")).sum()) > energy / 2 > 0:
            return _Misplaced()
        both, before_, after_ = (
            numpy.einsum("ij,ij->i", *pair) for pair in ((one, two), (one, one), (two, two))
        )
        alike = both > _SAME_BLOCK * numpy.sqrt(before_ * after_)
        factors = numpy.log(both[alike] / after_[alike])
    far = numpy.abs(factors - numpy.median(factors)) if factors.size else factors
    off = int((far > _OFF).sum())
    if off <= _FEW_OFF * far.size and not (far > _FAR_OFF).any():
        return None
    return _Misplaced(off=off, blocks=len(one), factor=math.exp(float(far.max())))


def _measure(weight: LayerWeight, base: LayerWeight) -> tuple[LayerError | None, _Misplaced | None]:
    """Return the error of one weight against the base's, None where shapes differ, and what lies
    over other blocks than its own where something does."""
    numpy = import_numpy()
    before, after = base.read(), weight.read()
    if before.shape != after.shape:
        return None, None
    misplaced = _find_misplaced(before, after, block=weight.block) if weight.format else None
    signal = noise = 0.0
    before, after = before.reshape(-1), after.reshape(-1)
    for start in range(0, before.size, _STEP):
        one, two = before[start : start + _STEP], after[start : start + _STEP]
        with numpy.errstate(all="ignore"):
            difference = two - one
            signal += float(numpy.dot(one, one))
            noise += float(numpy.dot(difference, difference))
    if not math.isfinite(noise) or not math.isfinite(signal):
        ratio, relative = -math.inf, math.inf
    elif noise == 0:
        ratio, relative = math.inf, 0.0
    else:
        ratio = 10 * math.log10(signal / noise) if signal else -math.inf
        relative = math.sqrt(noise / signal) if signal else math.inf
    error = LayerError(
        layer=weight.layer, format=weight.format, sqnr_db=ratio, relative_error=relative
    )
    return error, misplaced


def compare_graph(
    graph: OnnxGraph, base: Base, *, towers: Collection[str]
) -> tuple[int, list[str]]:
    """Return how many biases, norms and embeddings of a base are at their places in a graph, and
    which of them have other values."""
    rest = {
        name: tensor.singles().reshape(tensor.shape)
        for name, tensor in base.tensors.items()
        if tensor.dtype in FLOATS
        and tower_of(name) in towers
        and (len(tensor.shape) < 2 or "embed" in name)
    }
    types = Counter(base.tensors[name].dtype for name in rest).most_common(1)
    parents = {name[:place] for name in rest for place in range(len(name)) if name[place] == "."}
    model = TowerModel(
        tower="",
        inputs=(),
        modules=frozenset(parents.union(base.layers)),
        quantizers=(),
        amax={},
        tensors=rest,
        dtype={"F16": "float16", "BF16": "bfloat16"}.get(types[0][0] if types else "", "float32"),
    )
    found = list(list_changed(graph, model=model))
    return len(found), [name for name, is_other in found if is_other]


def compare_rest(files: CheckpointFiles, base: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """Return how many tensors outside of layers were compared, and which are not the base's."""
    numpy = import_numpy()
    compared, changed = 0, []
    for name, tensor in files.tensors.items():
        other = base.get(name)
        is_layer = name.endswith((".weight", "_proj", ".proj")) and len(tensor.shape) >= 2
        if other is None or is_layer or is_quantizer_part(name, files.state):
            continue
        compared += 1
        if other.shape != tensor.shape:
            changed.append(f"{name} (another shape)")
            continue
        one, two = other.singles(), tensor.singles()
        limit = numpy.float32(0 if tensor.dtype == other.dtype else 2.0**-7)
        with numpy.errstate(all="ignore"):
            far = numpy.abs(two - one) > limit * numpy.abs(one) + limit * numpy.float32(1e-4)
        if far.any() or (numpy.isnan(two) & ~numpy.isnan(one)).any():
            changed.append(name)
    return compared, changed


def _find_findings(
    against: Against,
    *,
    changed: list[str],
    lost: list[str],
    is_whole: bool,
    misplaced: Mapping[str, _Misplaced],
) -> Iterator[Finding]:
    yield from name_all(
        "check.base-unmatched",
        lost,
        "quantized weight",
        "of which the base has no layer, neither by name nor by its values",
        cause="made from another model, or weights that are another layer's",
        next_step="name the model that this was made from as --base, or make it again",
    )
    if is_whole and against.unclaimed:
        yield from name_all(
            "check.base-missing",
            against.unclaimed,
            "weight",
            "of the base not in the file",
            cause="a tensor or a shard that was lost, or another model",
            next_step="copy or save it again: a loader fills what is missing with noise",
        )
    yield from name_all(
        "check.base-changed",
        changed,
        "unquantized tensor",
        f"of {against.compared} not those of the base",
        cause="made from another model, trained on after that, damaged, or scaled for the "
        "layers behind it (SmoothQuant, AWQ)",
        next_step="name the model that this was made from as --base, or make it again",
    )
    moved = {layer: found for layer, found in misplaced.items() if found.off}
    if moved:
        layer, found = max(moved.items(), key=lambda item: item[1].factor)
        yield Finding(
            code="check.scales-moved",
            headline=f"{count(len(moved), 'weight')} with scales that are not those of their "
            f"blocks, most {layer}: {found.off} of {found.blocks} blocks are off, by a factor of "
            f"up to {found.factor:.3g}",
            cause="scales that were put into another order, or edited in some blocks",
            next_step="quantize these layers again from the base",
            subjects=tuple(moved),
        )
    yield from name_all(
        "check.zero-points-lost",
        [layer for layer in misplaced if layer not in moved],
        "weight",
        "whose blocks are the base's, each moved by a constant",
        cause="zero points that were lost, or that are those of other blocks",
        next_step="quantize these layers again from the base",
    )
    low = [
        e
        for e in against.layers
        if e.layer not in misplaced and e.sqnr_db < _least_sqnr_db(e.format)
    ]
    if low:
        worst = low[0]
        yield Finding(
            code="check.sqnr-low",
            headline=f"{count(len(low), 'weight')} too far from the base's for {worst.format}, "
            f"most {worst.layer}: SQNR {worst.sqnr_db:.1f} dB",
            cause="a scale that was edited or is another layer's, or weights of another model",
            next_step="quantize these layers again from the base",
            subjects=tuple(e.layer for e in low),
        )


def _least_sqnr_db(format: str) -> float:
    kind = find_format(format)
    if kind is not None and kind.bits == 4 and kind.scale_bits is not None:
        return _LEAST_SQNR_FP4_DB
    return _LEAST_SQNR_DB.get(8 if kind is None else kind.bits, 0.0)
