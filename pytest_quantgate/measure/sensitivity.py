"""Which quantizers cost what: forwards with one group alone quantized, and with all but one.

A forward is not repeated from its start. What the blocks before a group give is the same as
without it, so it is kept from one plain forward, and the tower starts at the block in which the
group sits. Half of the work remains, and only the block outputs of one batch are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.sensitivity import OutlierChannels, QuantizerGroup
from pytest_quantgate.formats.table import read_blocks
from pytest_quantgate.measure.fidelity import sum_of_squares, to_db
from pytest_quantgate.measure.groups import block_prefix
from pytest_quantgate.measure.outliers import find_outliers, set_apart
from pytest_quantgate.measure.quantizers import replaced_forward
from pytest_quantgate.quantization.quantizers import find_quantizers, format_of, owner_of, slot_of

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.encoders.encoder import Encoder

#: A state of the quantizers for one group: it alone is on, or all but it.
Direction = Literal["only", "without"]


@dataclass(frozen=True, kw_only=True)
class TowerInputs:
    """One tower: how both variants run it on a batch (giving embeddings [N, D]), and the batches.

    `quantized` must run the module whose quantizers are switched.
    """

    tower: Literal["vision", "text"]
    fp16: Callable[[Any], torch.Tensor]
    quantized: Callable[[Any], torch.Tensor]
    batches: Sequence[Any]


@dataclass(kw_only=True)
class TowerEmbeddings:
    """Embeddings [N, D] of one tower in every state that was run.

    `groups` maps a state and the index of a group to its embeddings; a group that never ran in
    this tower is not there. `outliers` are the outlier channels that the quantizers of a group
    were given in the first batch, `apart` its embeddings as alone, with these and the other
    channels rounded apart; both are empty where no group has any. `forwards` counts whole forwards
    over all samples.
    """

    fp16: torch.Tensor
    off: torch.Tensor
    full: torch.Tensor
    groups: dict[tuple[Direction, int], torch.Tensor]
    forwards: float
    outliers: dict[int, tuple[OutlierChannels, ...]] = field(default_factory=dict)
    apart: dict[int, torch.Tensor] = field(default_factory=dict)


@contextmanager
def enabled_only(quantizers: Mapping[str, Any], names: Collection[str]) -> Iterator[None]:
    """Leave on, of the quantizers that are on, only those named, while the block runs.

    Nothing but the switch is touched: range and SmoothQuant's scale of the inputs stay, and
    ModelOpt multiplies by that scale also where the quantizer is off (the weights are divided by
    it for good).
    """
    before = {name: q for name, q in quantizers.items() if q.is_enabled}
    kept = {name: vars(q).get("_input_dtype") for name, q in before.items()}
    try:
        for name, quantizer in before.items():
            if name not in names:
                quantizer.disable()
        yield
    finally:
        for name, quantizer in before.items():
            quantizer.enable()
            # A quantizer that is off notes the type that it sees; ModelOpt saves that.
            if kept[name] is None:
                vars(quantizer).pop("_input_dtype", None)
            else:
                quantizer._input_dtype = kept[name]


def noise_ratio(reference: torch.Tensor, value: torch.Tensor) -> float:
    """Return sum (x - y)^2 / sum x^2 of embeddings [N, D]; 0 where equal, +inf for NaN or Inf.

    Samples whose reference is not finite are left out; none left gives NaN.
    """
    import torch

    good = torch.isfinite(reference).all(dim=1)
    x, y = reference[good].double(), value[good].double()
    if not len(x):
        return math.nan
    if not bool(torch.isfinite(y).all()):
        return math.inf
    noise, signal = sum_of_squares(x - y), sum_of_squares(x)
    if noise == 0:
        return 0.0
    return noise / signal if signal else math.inf


def sqnr_db(noise: float) -> float:
    """Return a ratio of noise to signal as SQNR in dB: +inf for none, -inf for NaN or Inf."""
    return -math.inf if not math.isfinite(noise) else to_db(1.0, noise)


def measure_towers(
    module: torch.nn.Module,
    *,
    groups: Sequence[QuantizerGroup],
    towers: Sequence[TowerInputs],
    directions: Sequence[Direction] = ("only", "without"),
    start: Callable[[int], Callable[[int], None]] = lambda _total: lambda _count: None,
) -> dict[str, TowerEmbeddings]:
    """Return the embeddings of every tower in every state; `module` is left as it was.

    `start(total)` is called once the work is known, in blocks to run, and returns what is told
    of the blocks that were run. Raises ValueError for a tower without batches.
    """
    quantizers = find_quantizers(module)
    with quiet_libraries():
        works = [
            _TowerWork(module, quantizers, inputs, groups=groups, directions=directions)
            for inputs in towers
        ]
        advance = start(sum(work.total for work in works))
        return {work.inputs.tower: work.run(advance) for work in works}


class _TowerWork:
    """The forwards of one tower: what there is to run, from which block each."""

    def __init__(
        self,
        module: torch.nn.Module,
        quantizers: Mapping[str, Any],
        inputs: TowerInputs,
        *,
        groups: Sequence[QuantizerGroup],
        directions: Sequence[Direction],
    ) -> None:
        if not inputs.batches:
            raise ValueError(f"the {inputs.tower} tower has no batch to run")
        self.module, self.quantizers = module, quantizers
        self.inputs, self.directions = inputs, directions
        self.tower = ResumableTower(module, quantizers, inputs.quantized, inputs.batches[0])
        self.names = [frozenset(group.quantizers) for group in groups]
        self.enabled = frozenset(name for name, q in quantizers.items() if q.is_enabled)
        found = [
            [self.tower.first_block[n] for n in names if n in self.tower.first_block]
            for names in self.names
        ]
        #: The block at which each group first acts; a group that never ran here is not there.
        self.starts = {index: min(blocks) for index, blocks in enumerate(found) if blocks}
        outliers = {
            index: tuple(o for o in self.tower.outliers if o.quantizer in self.names[index])
            for index in (self.starts if "only" in directions else ())
        }
        self.outliers = {index: found for index, found in outliers.items() if found}

    @property
    def total(self) -> int:
        """Blocks to run over all batches: the groups, and the plain forwards of both states."""
        whole = self.tower.cost(0)
        groups = sum(self.tower.cost(start) for start in self.starts.values())
        apart = sum(self.tower.cost(self.starts[index]) for index in self.outliers)
        return len(self.inputs.batches) * (3 * whole + groups * len(self.directions) + apart)

    def run(self, advance: Callable[[int], None]) -> TowerEmbeddings:
        import torch

        fp16: list[torch.Tensor] = []
        plain: dict[Direction, list[torch.Tensor]] = {"only": [], "without": []}
        parts: dict[tuple[Direction, int], list[torch.Tensor]] = {}
        apart: dict[int, list[torch.Tensor]] = {}
        for batch in self.inputs.batches:
            fp16.append(self.inputs.fp16(batch).cpu())
            advance(self.tower.cost(0))
            for state, done in plain.items():
                with enabled_only(self.quantizers, self._on(state)):
                    recording = self.tower.record(batch)
                done.append(recording.embedding)
                advance(self.tower.cost(0))
                for index, first in self.starts.items() if state in self.directions else ():
                    with enabled_only(self.quantizers, self._on(state, index)):
                        found = self.tower.resume(batch, recording, start=first)
                    parts.setdefault((state, index), []).append(found)
                    advance(self.tower.cost(first))
                    if state == "only" and index in self.outliers:
                        with (
                            enabled_only(self.quantizers, self._on(state, index)),
                            set_apart(self.module, self.quantizers, self.outliers[index]),
                        ):
                            found = self.tower.resume(batch, recording, start=first)
                        apart.setdefault(index, []).append(found)
                        advance(self.tower.cost(first))
        return TowerEmbeddings(
            fp16=torch.cat(fp16),
            off=torch.cat(plain["only"]),
            full=torch.cat(plain["without"]),
            groups={key: torch.cat(found) for key, found in parts.items()},
            outliers=self.outliers,
            apart={index: torch.cat(found) for index, found in apart.items()},
            forwards=self.total / (len(self.inputs.batches) * self.tower.cost(0)),
        )

    def _on(self, state: Direction, index: int | None = None) -> frozenset[str]:
        """Return the quantizers that are on: none or all of them, and a group put in or out."""
        group = frozenset[str]() if index is None else self.names[index]
        return group if state == "only" else self.enabled - group


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One forward: the embedding [N, D] on the CPU, and what came out of each block."""

    embedding: torch.Tensor
    outputs: tuple[Any, ...]


@dataclass(kw_only=True)
class _Seen:
    blocks: list[str] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    first_block: dict[str, int] = field(default_factory=dict)
    outliers: dict[str, OutlierChannels] = field(default_factory=dict)


class ResumableTower:
    """A tower whose forward can start at a block, from what came out of the block before.

    The blocks are those that run once in a forward, one after the other, and give tensors.
    Whether a forward that starts in the middle gives the same bits as a whole one is tried out; a
    tower that does not is run from its start each time.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        quantizers: Mapping[str, Any],
        encode: Callable[[Any], torch.Tensor],
        probe: Any,
    ) -> None:
        self._module, self._quantizers, self._encode = module, quantizers, encode
        self._blocks: dict[str, torch.nn.Module] = {
            name: child for name, child in module.named_modules() if block_prefix(name) == name
        }
        seen = _Seen()
        whole = self._record(probe, seen, look_for_outliers=True)
        #: For every quantizer that ran, how many blocks had ended before.
        self.first_block = seen.first_block
        #: The outlier channels of those that are on, and were given some.
        self.outliers = tuple(seen.outliers.values())
        if len(set(seen.blocks)) < len(seen.blocks) or not all(map(_is_plain, seen.outputs)):
            seen.blocks = []
        self._blocks = {name: self._blocks[name] for name in seen.blocks}
        if self._blocks and not self._repeats(probe, whole, tuple(seen.outputs)):
            self._blocks = {}
        if not self._blocks:
            self.first_block = dict.fromkeys(seen.first_block, 0)

    def cost(self, start: int) -> int:
        """Return how many blocks run from a block on; what is around them counts as one more."""
        return len(self._blocks) + 1 - start

    def record(self, inputs: Any) -> Recording:
        """Run a whole forward and keep what comes out of each block."""
        seen = _Seen()
        embedding = self._record(inputs, seen)
        return Recording(embedding=embedding, outputs=tuple(seen.outputs))

    def resume(self, inputs: Any, recording: Recording, *, start: int) -> torch.Tensor:
        """Return the embedding with the first `start` blocks taken from a recording."""
        if not start:
            return self._encode(inputs).cpu()
        kept = recording.outputs[start - 1]
        with ExitStack() as stack:
            for block in list(self._blocks.values())[:start]:
                stack.enter_context(replaced_forward(block, lambda *_, **__: _copy(kept)))
            return self._encode(inputs).cpu()

    def _repeats(self, probe: Any, whole: torch.Tensor, outputs: tuple[Any, ...]) -> bool:
        import torch

        recording = Recording(embedding=whole, outputs=outputs)
        middle = (len(self._blocks) + 1) // 2
        again = self.resume(probe, recording, start=middle)
        return torch.equal(whole.nan_to_num(), again.nan_to_num())

    def _record(self, inputs: Any, seen: _Seen, *, look_for_outliers: bool = False) -> torch.Tensor:
        from torch.nn.modules.module import register_module_forward_hook

        blocks = {id(block): name for name, block in self._blocks.items()}
        names = {id(quantizer): name for name, quantizer in self._quantizers.items()}

        def hook(module: Any, given: Any, output: Any) -> None:
            if id(module) in names:
                name = names[id(module)]
                if look_for_outliers and module.is_enabled and name not in seen.first_block:
                    owner = self._module.get_submodule(owner_of(name))
                    found = find_outliers(name, module, given[0], owner=owner)
                    if found is not None:
                        seen.outliers[name] = found
                seen.first_block.setdefault(name, len(seen.blocks))
            elif id(module) in blocks:
                seen.blocks.append(blocks[id(module)])
                seen.outputs.append(_copy(output))

        # One hook for all modules: one on a child makes torch leave fused paths (see `watch`).
        handle = register_module_forward_hook(hook)
        try:
            return self._encode(inputs).cpu()
        finally:
            handle.remove()


def _is_plain(output: Any) -> bool:
    import torch

    if isinstance(output, (tuple, list)):
        return type(output) in (tuple, list) and all(map(_is_plain, output))
    return output is None or isinstance(output, torch.Tensor)


def _copy(output: Any) -> Any:
    """Return a copy that a later step may write into."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.clone()
    if type(output) in (tuple, list):
        return type(output)(_copy(item) for item in output)
    return output


def variant_bytes(model: Encoder) -> tuple[int, int]:
    """Return the bytes of a variant's weights, and of the same weights in full precision."""
    enabled = frozenset(n for n, q in find_quantizers(model.module).items() if q.is_enabled)
    full_bytes = full_bytes_of(model)
    variant, full = (
        weights_bytes(model.module, names=names, full_bytes=full_bytes)
        for names in (enabled, frozenset[str]())
    )
    return variant, full


def full_bytes_of(model: Encoder) -> int:
    """Return the bytes of one weight that is not quantized."""
    return 4 if model.weight_dtype == "float32" else 2


def weights_bytes(module: torch.nn.Module, *, names: Collection[str], full_bytes: int) -> int:
    """Return what a model's weights take with the quantizers `names` on, in bytes.

    A weight whose quantizer is on takes the bits of its format, those of the scales of its blocks
    and of SVDQuant's low-rank branch; every other parameter `full_bytes` each.
    """
    whole = full_bytes * 8
    bits: dict[int, int] = {}
    for name, quantizer in find_quantizers(module).items():
        if name in names and slot_of(name) == "weight":
            weight = module.get_submodule(owner_of(name))._parameters.get("weight")
            kind = format_of(quantizer)
            if weight is not None and kind is not None:
                blocks = read_blocks(quantizer.block_sizes)
                found = kind.count_bits(weight.shape, blocks=blocks, full_bits=whole)
                found += whole * _count_branch(quantizer)
                bits[id(weight)] = min(found, bits.get(id(weight), found))
    return sum(bits.get(id(p), p.numel() * whole) for p in module.parameters()) // 8


def _count_branch(quantizer: Any) -> int:
    """Return how many full-precision values SVDQuant keeps beside a weight."""
    buffers = quantizer.named_buffers(recurse=False)
    return sum(value.numel() for name, value in buffers if name.startswith("_svdquant_lora"))
