"""What an algorithm put beside a layer's quantizers, and whether it acts when the layer runs.

SmoothQuant and AWQ divide the inputs of a layer and multiply its weight by as much; SVDQuant gives
it a branch of low rank in full precision. Both are buffers of quantizers, of one that may be off,
and being there proves nothing: so each is changed once, and the layer's output must change too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.audit import InputScale, LowRankBranch, Tower, TowerName
from pytest_quantgate.quantization.quantizers import owner_of, slot_of, tower_of

if TYPE_CHECKING:
    import torch

_SCALE = "_pre_quant_scale"
_BRANCH = ("_svdquant_lora_a", "_svdquant_lora_b")


def probe_side_paths(
    module: torch.nn.Module,
    *,
    quantizers: Mapping[str, Any],
    runs: Mapping[TowerName, Callable[[], object]],
) -> tuple[tuple[InputScale, ...], tuple[LowRankBranch, ...]]:
    """Return the input scales and the low-rank branches of a model, in its own order.

    One forward of each tower more, where there are any; the layers run in it are run again with
    the scale doubled, and without the branch.
    """
    scaled = {owner_of(name): q for name, q in quantizers.items() if _has_scale(name, q)}
    branched = {owner_of(name): q for name, q in quantizers.items() if _has_branch(q)}
    if not scaled and not branched:
        return (), ()
    applied: dict[str, bool] = {}
    shares: dict[str, float] = {}
    ran: dict[str, frozenset[Tower]] = {}

    def probe(name: str, run: Callable[[], torch.Tensor], output: torch.Tensor) -> None:
        if name in scaled and name not in applied:
            with _changed(scaled[name], _SCALE, factor=2.0):
                applied[name] = not _is_same(run(), output)
        if name in branched and name not in shares:
            with _changed(branched[name], _BRANCH[1], factor=0.0):
                shares[name] = _share(run(), output)

    layers = {name: module.get_submodule(name) for name in {**scaled, **branched}}
    for tower, run in runs.items():
        with _probing(layers, probe=probe) as called:
            run()
        ran.update(dict.fromkeys(called, frozenset({tower})))
    where = {name: tower_of(name, ran_in=ran.get(name, frozenset())) for name in layers}
    return (
        tuple(
            _describe_scale(name, q, tower=where[name], applied=applied.get(name))
            for name, q in scaled.items()
        ),
        tuple(
            LowRankBranch(
                module=name,
                tower=where[name],
                rank=int(getattr(q, _BRANCH[0]).shape[0]),
                output_share=shares.get(name),
            )
            for name, q in branched.items()
        ),
    )


def find_branch_storages(quantizers: Mapping[str, Any]) -> frozenset[int]:
    """Return the addresses of the storages that hold low-rank branches."""
    return frozenset(
        getattr(quantizer, name).untyped_storage().data_ptr()
        for quantizer in quantizers.values()
        if _has_branch(quantizer)
        for name in _BRANCH
    )


def _has_scale(name: str, quantizer: Any) -> bool:
    return slot_of(name) == "input" and getattr(quantizer, _SCALE, None) is not None


def _has_branch(quantizer: Any) -> bool:
    return all(getattr(quantizer, name, None) is not None for name in _BRANCH)


@contextmanager
def _probing(
    layers: Mapping[str, torch.nn.Module],
    *,
    probe: Callable[[str, Callable[[], torch.Tensor], torch.Tensor], None],
) -> Iterator[set[str]]:
    """Call `probe` behind each call of a layer, with what runs it again; yield who was called."""
    from torch.nn.modules.module import register_module_forward_hook

    called: set[str] = set()
    names = {id(layer): name for name, layer in layers.items()}

    def hook(layer: Any, inputs: Any, options: Any, output: Any) -> None:
        name = names.get(id(layer))
        if name is not None:
            called.add(name)
            # `forward` itself: a call would run this hook again.
            probe(name, lambda: layer.forward(*inputs, **options), output)

    handle = register_module_forward_hook(hook, with_kwargs=True)
    try:
        yield called
    finally:
        handle.remove()


@contextmanager
def _changed(quantizer: Any, name: str, *, factor: float) -> Iterator[None]:
    before = getattr(quantizer, name)
    setattr(quantizer, name, before * factor)
    try:
        yield
    finally:
        setattr(quantizer, name, before)


def _is_same(value: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return torch.equal(value.nan_to_num(), other.nan_to_num())


def _share(without: torch.Tensor, output: torch.Tensor) -> float:
    """Return the length of what a branch adds, as a share of the length of the whole output."""
    whole = float(output.double().norm())
    return float((output.double() - without.double()).norm()) / whole if whole else 0.0


def _describe_scale(name: str, quantizer: Any, *, tower: Tower, applied: bool | None) -> InputScale:
    import torch

    scale = getattr(quantizer, _SCALE).detach().float()
    return InputScale(
        module=name,
        tower=tower,
        count=scale.numel(),
        smallest=float(scale.min()),
        largest=float(scale.max()),
        finite=bool(torch.isfinite(scale).all()),
        applied=applied,
    )
