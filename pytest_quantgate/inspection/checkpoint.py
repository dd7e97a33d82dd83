"""What is right and wrong with a checkpoint that was handed over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pytest_quantgate.artifacts.checkpoint_operands import describe_checkpoint
from pytest_quantgate.artifacts.checkpoints import (
    STATE,
    CheckpointFiles,
    find_damage,
    is_quantizer_part,
)
from pytest_quantgate.artifacts.labels import is_renamed
from pytest_quantgate.artifacts.layers import Layer, find_layers
from pytest_quantgate.artifacts.operands import Artifact
from pytest_quantgate.artifacts.recipe_lines import as_mapping
from pytest_quantgate.artifacts.safetensors_file import FLOATS, import_numpy
from pytest_quantgate.artifacts.weight_summary import summarize_tensor
from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.inspection.coverage import find_coverage, list_notes
from pytest_quantgate.inspection.findings import Finding, Inspection, name_all
from pytest_quantgate.inspection.headline import list_facts, make_rows, name_recipe, write_headline
from pytest_quantgate.inspection.ranges import find_ranges, list_wide
from pytest_quantgate.quantization.quantizers import owner_of, slot_of
from pytest_quantgate.text.words import count, group, listed

#: So many values, which no two layers have in common, are compared first.
_LEAST_VALUES = 64

#: What ModelOpt's state names where weights were compressed, and does not call.
_COMPRESSED = re.compile(r"modelopt\.torch\.quantization\.qtensor\.\w+\.\w+QTensor")


def inspect_checkpoint(files: CheckpointFiles, *, label: str) -> tuple[Inspection, Artifact]:
    """Return what is said of a checkpoint, and what was read of it; raises ArtifactError."""
    artifact = describe_checkpoint(files)
    findings = [
        *_find_state(files),
        *_find_lost(files, artifact),
        *_find_not_finite(files, artifact),
        *_find_copies(files, artifact),
        *_find_export(files, artifact),
        *(
            finding
            for finding in find_coverage(
                artifact.operands, excluded=artifact.excluded, is_listed=_is_export(files)
            )
            if not (_is_export(files) and finding.code == "check.attention-operand-off")
        ),
        *find_ranges(artifact.operands, pre_scaled=artifact.pre_scaled, by_max=artifact.by_max),
        *_find_asymmetric(artifact),
        *_find_labels(artifact),
    ]
    return (
        Inspection(
            path=label,
            what="checkpoint",
            tool=artifact.tool,
            headline=write_headline(artifact),
            rows=make_rows(artifact.operands),
            operands=list_facts(artifact.operands),
            findings=tuple(findings),
            notes=tuple(_list_notes(files, artifact)),
            next_steps=tuple(_list_steps(artifact, label=label, is_good=not findings)),
            facts=artifact.facts,
            bytes_by_type=artifact.bytes_by_type,
        ),
        artifact,
    )


def _is_export(files: CheckpointFiles) -> bool:
    settings = as_mapping(files.config.get("quantization_config"))
    return files.state is None and (
        settings.get("quant_method") == "modelopt" or bool(files.export)
    )


def _find_state(files: CheckpointFiles) -> Iterator[Finding]:
    """Yield a state that is lost, was changed, or would run code."""
    ranges = [name for name in files.tensors if name.endswith("._amax")]
    if files.state is None and ranges:
        yield Finding(
            code="check.state-missing",
            headline=f"{count(len(ranges), 'range')} (_amax) and no {STATE}: without it the "
            f"model loads unquantized, without a word",
            cause="the state was not copied, or saved without "
            "mto.enable_huggingface_checkpointing()",
            next_step=f"copy {STATE} beside the weights, or save again",
            subjects=tuple(ranges),
        )
    foreign = files.state.foreign if files.state is not None else ()
    foreign = tuple(name for name in foreign if not _COMPRESSED.fullmatch(name))
    if foreign:
        yield Finding(
            code="check.state-foreign",
            headline=f"{files.path.name if files.path.is_file() else STATE} is a pickle that "
            f"holds more than plain data: {listed(foreign)}",
            cause="made by another tool, or made to run code where it is loaded",
            next_step="do not load it; ask for one that ModelOpt wrote",
            subjects=foreign,
        )
    if files.missing:
        yield Finding(
            code="check.shard-missing",
            headline=f"files that the index names are not there: {listed(files.missing)}",
            cause="a download or copy that was not finished",
            next_step="copy them too: what is missing is counted as if the model had not got it",
            subjects=files.missing,
        )
    changed = [line for line in find_damage(files) if not line.startswith(f"{STATE} holds")]
    if changed:
        yield Finding(
            code="check.changed-after-saving",
            headline=f"not as it was saved: {listed(changed)}",
            cause="a file was edited, or copied from another checkpoint",
            next_step="restore the files, or save again",
            subjects=tuple(changed),
        )


def _find_lost(files: CheckpointFiles, artifact: Artifact) -> Iterator[Finding]:
    """Yield weights that are not there, and whose scale, range or place in the index is."""
    layers = {o.layer for o in artifact.operands if o.slot == "weight" and o.stored}
    owners = (owner_of(n.removesuffix("._amax")) for n in files.tensors if _is_weight_scale(n))
    lost = tuple(dict.fromkeys((*files.lost, *(name for name in owners if name not in layers))))
    yield from name_all(
        "check.weight-missing",
        lost,
        "weight",
        "not there, whose scale is, or whose name is in the index",
        cause="a tensor that was lost when the file was edited or saved in parts",
        next_step="save again: a loader fills what is missing with noise",
    )


def _is_weight_scale(name: str) -> bool:
    whole, _, last = name.rpartition(".")
    if last == "_amax":
        return slot_of(whole) == "weight"
    return last in ("weight_scale", "weight_scale_inv", "_weight_scale")


def _find_not_finite(files: CheckpointFiles, artifact: Artifact) -> Iterator[Finding]:
    """Yield tensors that are not quantized and hold NaN or infinities; a mask may."""
    read = {o.layer for o in artifact.operands if o.summary}
    seen = {layer.tensor_name for layer in find_layers(files.tensors) if layer.name in read}
    odd = [
        name
        for name, tensor in files.tensors.items()
        if tensor.dtype in FLOATS
        and name not in seen
        and not is_quantizer_part(name, files.state)
        and "mask" not in name
        and summarize_tensor(tensor, format="", ranges=None).not_finite
    ]
    yield from name_all(
        "check.not-finite",
        odd,
        "unquantized tensor",
        "with NaN or infinite values",
        cause="a value that overflowed in half precision, or a damaged file",
        next_step="save again from a finite model",
    )


def _find_copies(files: CheckpointFiles, artifact: Artifact) -> Iterator[Finding]:
    """Yield quantized weights of several layers that are the same, code by code."""
    numpy = import_numpy()
    on = {o.layer for o in artifact.operands if o.slot == "weight" and o.is_quantized}
    groups: dict[tuple[Any, ...], list[Layer]] = {}
    for layer in find_layers(files.tensors):
        tensor = layer.tensor
        if layer.name in on and layer.kind == "linear" and tensor.count >= _LEAST_VALUES:
            begin = tensor.raw(0, _LEAST_VALUES).tobytes()
            groups.setdefault((tensor.shape, tensor.dtype, begin), []).append(layer)
    same = [
        layer.name
        for first, *others in groups.values()
        if others and first.tensor.raw().any()
        for layer in others
        if numpy.array_equal(layer.tensor.raw(), first.tensor.raw())
        for layer in (first, layer)
    ]
    names = tuple(dict.fromkeys(same))
    yield from name_all(
        "check.weights-equal",
        names,
        "quantized weight",
        "with the codes of another layer",
        cause="a layer that was written over with another, or one that the model has twice",
        next_step="compare with the base: quantgate check THIS --base FP16",
    )


def _find_export(files: CheckpointFiles, artifact: Artifact) -> Iterator[Finding]:
    """Yield what ModelOpt's unified export loses, and who reads it wrongly."""
    if not _is_export(files) or not any(o.is_quantized for o in artifact.operands):
        return
    products = [o for o in artifact.operands if o.kind == "attention"]
    lost = [o.layer for o in products if o.slot == "q" and not o.is_quantized]
    if lost and any(o.slot in ("k", "v") and o.is_quantized for o in products):
        yield Finding(
            code="check.q-range-lost",
            headline=f"the range of attention's q is lost in {count(len(lost), 'block')}, those "
            f"of k and v are there: {listed(group(lost))}",
            cause="ModelOpt's unified export keeps k_scale and v_scale, as for a KV cache, and has "
            "no place for q",
            next_step="hand over what mto.save or save_pretrained wrote as well: attention cannot "
            "be rebuilt from this file",
            subjects=tuple(lost),
        )
    packed = [
        o.layer for o in artifact.operands if o.slot == "weight" and o.is_packed and o.is_quantized
    ]
    if packed:
        yield Finding(
            code="check.loads-as-plain",
            headline=f"transformers loads this as {count(len(packed), 'plain layer')} with codes "
            f"as weights, without an error",
            cause="it does not know quant_method modelopt and leaves the scales out",
            next_step="never from_pretrained() it: it is for serving engines (vLLM, TensorRT-LLM); "
            "measure what mto.save or save_pretrained wrote",
            subjects=tuple(packed),
        )


def _find_asymmetric(artifact: Artifact) -> Iterator[Finding]:
    odd = [o.layer for o in artifact.operands if o.is_quantized and not o.symmetric]
    yield from name_all(
        "check.asymmetric",
        odd,
        "operand",
        "with a zero point that is not 0, which TensorRT refuses",
        cause="an asymmetric recipe",
        next_step="quantize symmetrically where it is to become an engine",
    )


def _find_labels(artifact: Artifact) -> Iterator[Finding]:
    if artifact.disagreements:
        yield Finding(
            code="check.labels-disagree",
            headline=f"labels and tensors disagree: {'; '.join(artifact.disagreements)}",
            cause="the file was exported with another setting than its label says, or edited",
            next_step="a loader believes the label: correct it, or export again",
        )


def _list_notes(files: CheckpointFiles, artifact: Artifact) -> Iterator[str]:
    yield from list_notes(artifact.operands, excluded=artifact.excluded)
    wide = [
        o for o in artifact.operands if o.slot == "weight" and o.is_quantized and not o.is_packed
    ]
    if wide:
        yield (
            f"{count(len(wide), 'quantized weight')} kept in {wide[0].stored}, as ModelOpt saves "
            f"them: the file is no smaller; an export makes it so"
        )
    yield from list_wide(artifact.operands)
    unread = [o for o in artifact.operands if o.stored in ("U8", "I32") and o.is_quantized]
    if any(o.summary is None for o in unread):
        yield "packed 4-bit codes of a layout that is not known are counted and not decoded"
    if files.state is not None and is_renamed(files):
        yield (
            "layers have other names in the file than in its state, as transformers renames them: "
            "a quantizer that lost its range cannot be told"
        )
    if artifact.pre_scaled:
        yield "weights were scaled with the inputs (SmoothQuant, AWQ): ranges are not compared"


def _list_steps(artifact: Artifact, *, label: str, is_good: bool) -> Iterator[str]:
    if not any(o.is_quantized for o in artifact.operands):
        return
    yield f"compare with what it was made from: quantgate check {label} --base FP16_FOLDER"
    if is_good:
        recipe = name_recipe(artifact)
        known = recipe if recipe in RECIPES else ""
        yield (
            "whether it may ship is for gates to say: quantgate init"
            + (f" --checkpoint {label} --model FP16_FOLDER" if artifact.is_restorable else "")
            + (f" (recipe: {known})" if known else "")
        )
