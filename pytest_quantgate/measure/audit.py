"""The quantizer audit: what is there, enabled, calibrated, and what really runs in a forward.

A quantizer that is enabled, or that has an amax, proves nothing: it may never be called. So every
tower's forward is run, calls are counted at the quantizers, and the matrix operations themselves
are asked whether their operands came out of one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import Audit, LayerActivation, Module, Tower, TowerName
from pytest_quantgate.measure.activations import ActivationRecorder, highest_finite
from pytest_quantgate.measure.invariance import measure_invariance
from pytest_quantgate.measure.operations import Recorder
from pytest_quantgate.measure.quantizers import (
    Activity,
    declare,
    describe_quantizer,
    replay_recipe,
    watch,
)
from pytest_quantgate.measure.side_paths import probe_side_paths
from pytest_quantgate.quantization.emulation import kernels_for
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import (
    block_of,
    find_quantizers,
    list_enabled_formats,
    owner_of,
    plain_class_name,
    require_kernels,
    tower_of,
)
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.quantization.search import count_bits

if TYPE_CHECKING:
    import torch

#: Samples in the forward that records operations: it keeps every quantized tensor alive.
RECORDED_SAMPLES = 2


def audit_quantizers(
    model: Encoder,
    *,
    recipe: Recipe,
    exclude: tuple[str, ...] = (),
    held_out: Sequence[Batch],
) -> Audit:
    """Return the audit of a quantized model, with clipping counted on `held_out` samples.

    Raises ValueError for no held-out pairs: an audit without a forward proves nothing.
    """
    if not held_out:
        raise ValueError("audit_quantizers needs at least one batch of held-out pairs")
    few = held_out[0].take(slice(RECORDED_SAMPLES))
    audit = audit_module(
        model.module,
        runs={name: _run(model, name, few) for name in model.tower_names},
        recipe=recipe,
        exclude=exclude,
        held_out={name: [_run(model, name, b) for b in held_out] for name in model.tower_names},
        notes=model.notes,
        highest=highest_finite(model.weight_dtype),
    )
    return replace(
        audit,
        invariance=tuple(
            measure_invariance(model, tower=tower, batches=held_out) for tower in model.tower_names
        ),
    )


def audit_module(
    module: torch.nn.Module,
    *,
    runs: Mapping[TowerName, Callable[[], object]],
    recipe: Recipe | None = None,
    exclude: tuple[str, ...] = (),
    held_out: Mapping[TowerName, Iterable[Callable[[], object]]] | None = None,
    notes: tuple[str, ...] = (),
    highest: float = math.inf,
) -> Audit:
    """Return the audit of any model.

    `runs` are one forward of each tower. Without a `recipe` every Linear and Conv layer's input
    and weight are taken as intended, in the formats that the enabled quantizers have. `held_out`
    are further forwards on data that the quantizers were not calibrated on, in which clipped values
    are counted, and values above `highest`, which the number format that ships cannot hold.

    Raises NotMeasured where a quantizer needs a kernel that this machine cannot run.
    """
    quantizers = find_quantizers(module)
    formats = list_enabled_formats(module)
    require_kernels(formats, module=module)
    activity = {name: Activity() for name in quantizers}
    operations = Recorder()
    with quiet_libraries(), kernels_for(formats, module=module):
        for tower, run in runs.items():
            # Two runs: recording changes what it looks at (fused paths are left under it), so
            # calls are counted in a forward that is watched by nothing else.
            with watch(quantizers, activity=activity, tower=tower, count_clipping=False):
                run()
            with operations.record(module, quantizers=quantizers, tower=tower):
                run()
        scales, branches = probe_side_paths(module, quantizers=quantizers, runs=runs)
        clipping = {name: Activity() for name in quantizers}
        activations: list[LayerActivation] = []
        for tower, forwards in (held_out or {}).items():
            recorder = ActivationRecorder(highest=highest)
            for forward in forwards:
                with (
                    recorder.record(module, tower=tower, ignore=quantizers, products=False),
                    watch(quantizers, activity=clipping, tower=tower, count_clipping=True),
                ):
                    forward()
            activations += recorder.describe()
    for name, seen in clipping.items():
        activity[name] = replace(
            activity[name],
            changed=activity[name].changed or seen.changed,
            clipped_values=seen.clipped_values,
            seen=seen.seen,
            largest=seen.largest,
        )
    # What never ran belongs to the one tower that there is, or is told by its name.
    only = frozenset(runs) if len(runs) == 1 else frozenset[Tower]()
    ran = {name: only for name, _ in module.named_modules()}
    ran |= {name: frozenset(where) for name, where in operations.ran.items()}
    modules = _describe_modules(module, quantizers=quantizers, ran=ran)
    kinds = {found.name: found.kind for found in modules}
    owners = {name: _submodule(module, owner_of(name)) for name in quantizers}
    records = tuple(
        describe_quantizer(
            name,
            quantizer,
            owner=owners[name],
            activity=activity[name],
            ran_in=ran.get(owner_of(name), frozenset()),
        )
        for name, quantizer in quantizers.items()
    )
    names = {name: owner_of(name) for name in quantizers}
    entries = recipe.quant_cfg if recipe is not None else _every_layer()
    intended, off, excluded = replay_recipe(
        names=names,
        entries=entries,
        exclude=exclude,
        matches_class=lambda owner, parent: _is_instance(_submodule(module, owner), parent),
    )
    quantizable = ("linear", "conv", "attention", "mha")
    meant = tuple(name for name in intended if kinds.get(names[name]) in quantizable)
    search = recipe.search if recipe is not None else None
    if search is not None:
        search = replace(search, bits=count_bits(module, layers=search.layers))
    return Audit(
        towers=tuple(runs),
        modules=modules,
        quantizers=records,
        operations=tuple(operations.operations.values()),
        excludes=tuple((pattern, matched) for pattern, matched in excluded.items()),
        intended=meant,
        disabled_by=tuple((name, off[name]) for name in meant if name in off),
        recipe_name=recipe.name if recipe is not None else "every layer",
        formats=(
            recipe.formats
            if recipe is not None
            else tuple(dict.fromkeys(q.format for q in records if q.enabled))
        ),
        notes=notes,
        algorithm=_name_algorithm(recipe.algorithm) if recipe is not None else "",
        activations=tuple(activations),
        input_scales=scales,
        branches=branches,
        declared={
            name: declare(cfg) for name in meant if (cfg := intended[name]) and "num_bits" in cfg
        },
        search=search,
    )


def _name_algorithm(algorithm: Any) -> str:
    """Return the name of a recipe's algorithm, which may be a mapping with its `method`."""
    if algorithm is None:
        return "none"
    if isinstance(algorithm, Mapping):
        algorithm = algorithm.get("method")
    return algorithm if isinstance(algorithm, str) else ""


def _run(model: Encoder, tower: TowerName, batch: Batch) -> Callable[[], object]:
    return lambda: model.encode(tower, batch.inputs[tower])


def _every_layer() -> list[Mapping[str, Any]]:
    """Return entries for every layer; the caller keeps those of Linear and Conv."""
    return [
        {"quantizer_name": pattern, "parent_class": None, "enable": True}
        for pattern in ("*weight_quantizer", "*input_quantizer")
    ]


def _describe_modules(
    module: torch.nn.Module,
    *,
    quantizers: Mapping[str, Any],
    ran: Mapping[str, frozenset[Tower]],
) -> tuple[Module, ...]:
    inside = {id(part) for quantizer in quantizers.values() for part in quantizer.modules()}
    found = []
    for name, child in module.named_modules():
        kind = _kind_of(child)
        if id(child) in inside or kind is None:
            continue
        found.append(
            Module(
                name=name,
                class_name=plain_class_name(child),
                kind=kind,  # type: ignore[arg-type]
                tower=tower_of(name, ran_in=ran.get(name, frozenset())),
                block=block_of(name),
                weights_count=sum(p.numel() for p in child.parameters(recurse=False)),
            )
        )
    # A module around attention that is named so as well is none (DINOv2's).
    inner = [part.name for part in found if part.kind == "attention"]
    return tuple(
        part
        for part in found
        if part.kind != "attention" or not any(n.startswith(f"{part.name}.") for n in inner)
    )


def _kind_of(module: torch.nn.Module) -> str | None:
    """Return the kind of a module that a coverage gate cares about; None for containers."""
    from torch import nn

    kinds: tuple[tuple[Any, str], ...] = (
        (nn.MultiheadAttention, "mha"),
        (nn.Linear, "linear"),
        ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
        ((nn.Embedding, nn.EmbeddingBag), "embedding"),
        ((nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm), "norm"),
    )
    for cls, kind in kinds:
        if isinstance(module, cls):
            return kind
    name = plain_class_name(module)
    if name.endswith("Norm"):
        return "norm"
    if name.endswith("Attention"):
        return "attention"
    if any(True for _ in module.parameters(recurse=False)):
        return "other"
    return None


def _submodule(module: torch.nn.Module, name: str) -> torch.nn.Module:
    return module.get_submodule(name)


def _is_instance(module: torch.nn.Module, parent: str) -> bool:
    """Return whether ModelOpt's `parent_class` filter would match a module."""
    registry = import_modelopt("modelopt.torch.quantization.nn").QuantModuleRegistry
    with contextlib.suppress(KeyError):
        return isinstance(module, registry[parent])
    return plain_class_name(module) == parent.removeprefix("nn.")
