"""A quantized checkpoint: its quantizers, ranges, weights, and what it says of itself.

`read_checkpoint` takes a folder as `quantization/checkpoint.py` saves it (with or without the cache
entry around it), one that ModelOpt and transformers saved, and ModelOpt's unified export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.modelopt_state import ModelOptState, read_saved, read_state
from pytest_quantgate.artifacts.recipe_lines import as_mapping, describe_entry, show_plain
from pytest_quantgate.artifacts.safetensors_file import Tensor, read_header, read_metadata
from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.encoders.source import INDEX, stays_inside
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.evidence.calibration import Calibrated, describe_images
from pytest_quantgate.formats.table import BY_SAFETENSORS, E4M3, name_format
from pytest_quantgate.quantization.quantizers import owner_of
from pytest_quantgate.text.words import listed
from pytest_quantgate.untrusted import hash_file, parse_json, read_regular

STATE = "modelopt_state.pth"
MANIFEST = "manifest.json"
CONFIG = "config.json"
ALGORITHM = "calibration algorithm"
EXPORT_CONFIG = "hf_quant_config.json"

#: What a configuration says of its own making, not of the model.
_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "torch_dtype", "_commit_hash"}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a checkpoint says; `weights` are read when their values are asked.

    `sizes` are the bytes of all tensors by the type they are stored in.
    """

    label: str
    quantizers: Mapping[str, StoredQuantizer]
    weights: Mapping[str, Tensor]
    recipe: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    calibration: Calibrated = field(default_factory=Calibrated)
    damage: tuple[str, ...] = ()


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a model, or a cache entry with one."""
    return any(_model_folder(folder).glob("*.safetensors")) or (folder / STATE).is_file()


def _model_folder(folder: Path) -> Path:
    inner = folder / "checkpoint"
    return inner if (inner / STATE).is_file() or (inner / MANIFEST).is_file() else folder


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """The files of a checkpoint, read and not compared: tensors stay where they lie.

    `metadata` is what the safetensors files say beside their tensors, `missing` the files that
    their index names and that are not there, `lost` the tensors that it says are in those that are
    there; `audit` and `calibration` are what the cache keeps
    around a checkpoint of its own.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any]
    export: Mapping[str, Any]
    manifest: Mapping[str, Any]
    state: ModelOptState | None
    missing: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def read_files(path: Path) -> CheckpointFiles:
    """Return what lies in the folder of a checkpoint, or in one file and its config beside it.

    Raises ArtifactError where it cannot be read at all.
    """
    if path.is_file():
        return _read_single(path)
    _refuse_links(path)
    folder = _model_folder(path)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in sorted(found for found in folder.glob("*.safetensors") if found.is_file()):
        header = read_header(file)
        for name in sorted(header.keys() & tensors.keys()):
            raise ArtifactError(
                f"{file}: tensor {name!r:.80} stands in {tensors[name].file.name} too: which of "
                f"them is the model's cannot be told; remove the file that is not"
            )
        tensors |= header
        metadata |= read_metadata(file)
    places = as_mapping(_read_json(folder / INDEX).get("weight_map"))
    missing = tuple(
        name
        for name in dict.fromkeys(map(str, places.values()))
        if not (folder / Path(name).name).is_file()
    )
    return CheckpointFiles(
        path=folder,
        tensors=tensors,
        metadata=metadata,
        config=_read_json(folder / CONFIG),
        export=_read_json(folder / EXPORT_CONFIG),
        manifest=_read_json(folder / MANIFEST),
        state=read_state(folder / STATE) if (folder / STATE).is_file() else None,
        missing=missing,
        lost=tuple(
            n for n, file in places.items() if n not in tensors and str(file) not in missing
        ),
        audit=_read_json(path / "audit.json"),
        calibration=_read_json(path / "calibration.json"),
    )


def _read_single(path: Path) -> CheckpointFiles:
    folder, metadata = path.parent, {}
    if path.suffix == ".safetensors":
        tensors, metadata = read_header(path), read_metadata(path)
        state = read_state(folder / STATE) if (folder / STATE).is_file() else None
    else:
        state, tensors = read_saved(path)
    return CheckpointFiles(
        path=path,
        tensors=tensors,
        metadata=metadata,
        config=_read_json(folder / CONFIG),
        export=_read_json(folder / EXPORT_CONFIG),
        manifest={},
        state=state,
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Return what a checkpoint holds; raises ArtifactError where it cannot be read at all.

    What is missing or was changed after it was saved is in `damage`, and is compared: it may be
    the very change that is looked for.
    """
    files = read_files(path)
    state, tensors, manifest = files.state, files.tensors, files.manifest
    quantizers = read_quantizers(files)
    calls = _read_calls(files.audit)
    quantizers = {
        name: _with_calls(quantizer, calls=calls) for name, quantizer in quantizers.items()
    }
    settings = {
        key: str(manifest[key]) for key in ("compute_dtype", "attention") if key in manifest
    }
    if state is not None:
        settings |= {ALGORITHM: state.algorithm or "none"}
    settings |= _flatten(files.export.get("quantization"), "export")
    return Checkpoint(
        label=path.as_posix(),
        quantizers=quantizers,
        weights={name: t for name, t in tensors.items() if not is_quantizer_part(name, state)},
        recipe=tuple(describe_entry(entry) for entry in state.quant_cfg) if state else (),
        settings=settings,
        config={
            name: value
            for name, value in _flatten(files.config, "").items()
            if name.rpartition(".")[2] not in _NOT_THE_MODEL
        },
        digests=(
            {"FP16 weights": str(manifest["base_weights"])} if "base_weights" in manifest else {}
        ),
        versions=_read_versions(files),
        sizes=count_bytes(tensors),
        calibration=_read_calibration(files.calibration),
        damage=find_damage(files),
    )


def read_quantizers(files: CheckpointFiles) -> dict[str, StoredQuantizer]:
    """Return the quantizers of ModelOpt's state, or those that an export has scales of."""
    if files.state is not None:
        return _read_quantizers(files.state, tensors=files.tensors)
    return _read_exported(files.tensors)


def _read_versions(files: CheckpointFiles) -> dict[str, str]:
    versions = {str(k): str(v) for k, v in as_mapping(files.manifest.get("versions")).items()}
    if files.state is not None and files.state.version:
        versions.setdefault("nvidia-modelopt", files.state.version)
    if "transformers_version" in files.config:
        versions.setdefault("transformers", str(files.config["transformers_version"]))
    return versions


def count_bytes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the bytes of all tensors by the type that they are stored in."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.bytes
    return dict(sorted(sizes.items()))


def find_damage(files: CheckpointFiles) -> tuple[str, ...]:
    """Return what was changed after a checkpoint was saved, and what a pickle in it would run."""
    state = files.state
    found = []
    for name, expected in sorted(as_mapping(files.manifest.get("files")).items()):
        path = files.folder / Path(str(name)).name
        if not path.is_file():
            found.append(f"{name} is missing, which its manifest lists")
            continue
        if hash_file(path) != expected:
            found.append(f"{name} was changed after it was saved (another SHA-256)")
    if state is not None and state.foreign:
        found.append(
            f"{STATE} holds more than plain data ({listed(state.foreign)}): unpickled, it would "
            f"run that; a gate refuses it"
        )
    return tuple(found)


def _read_quantizers(
    state: ModelOptState, *, tensors: Mapping[str, Tensor]
) -> dict[str, StoredQuantizer]:
    quantizers = {}
    for name, settings in state.quantizers.items():
        if settings.get("is_sequential_quantizer"):
            continue
        blocks = as_mapping(settings.get("_block_sizes"))
        axis = settings.get("_axis")
        amax = _values(tensors.get(f"{name}._amax"))
        constant = bool(settings.get("_use_constant_amax"))
        quantizers[name] = StoredQuantizer(
            name=name,
            enabled=not settings.get("_disabled", False),
            format=name_format(settings.get("_num_bits", 8), block_sizes=blocks),
            granularity=(
                f"block {show_plain(blocks)}"
                if blocks
                else "per-tensor"
                if axis is None
                else f"per-channel (axis {show_plain(axis)})"
            ),
            dynamic=bool(settings.get("_dynamic")) or blocks.get("type") == "dynamic",
            amax=(E4M3.largest,) if constant else amax,
            pre_scale=_values(tensors.get(f"{name}._pre_quant_scale")),
            settings=_other_settings(settings),
        )
    return quantizers


def _values(tensor: Tensor | None) -> tuple[float, ...] | None:
    return None if tensor is None else tuple(tensor.values().tolist())


def _other_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    keys = {
        "_unsigned": "unsigned",
        "_narrow_range": "narrow range",
        "_fake_quant": "fake quantization",
        "_if_quant": "quantizes",
        "_rotate": "rotates",
        "_use_constant_amax": "constant range",
        "_bias": "bias",
    }
    return {
        word: show_plain(settings[key])
        for key, word in keys.items()
        if settings.get(key) is not None
    }


def _read_exported(tensors: Mapping[str, Tensor]) -> dict[str, StoredQuantizer]:
    """Return the quantizers of ModelOpt's unified export, where a scale stands for a range."""
    quantizers = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part not in ("weight_scale", "input_scale"):
            continue
        stored = tensors.get(f"{module}.weight")
        dtype = stored.dtype if stored is not None else ""
        kind = BY_SAFETENSORS.get(dtype)
        largest = kind.largest if kind is not None else 1.0
        other = "packed 4 bit" if dtype == "U8" else "unknown(export)"
        full = f"{module}.{part.removesuffix('_scale')}_quantizer"
        quantizers[full] = StoredQuantizer(
            name=full,
            enabled=True,
            format=kind.name if kind is not None else other,
            granularity="per-tensor" if tensor.count == 1 else f"{tensor.count} scales",
            dynamic=False,
            amax=tuple((tensor.values() * largest).tolist()),
        )
    return quantizers


def _read_calls(audit: Mapping[str, Any]) -> dict[str, int]:
    found = audit.get("quantizers")
    calls = {}
    for entry in found if isinstance(found, list) else ():
        entry = as_mapping(entry)
        if "tower_calls" not in entry:
            continue
        counts = [n for n in as_mapping(entry.get("tower_calls")).values() if isinstance(n, int)]
        calls[str(entry.get("name"))] = sum(counts)
    return calls


def _read_calibration(run: Mapping[str, Any]) -> Calibrated:
    """Return how the quantizers got their ranges, where the cache entry says so."""
    keys = ("data", "samples", "batches", "held_out_samples")
    found = {f"calibration {key.replace('_', ' ')}": str(run[key]) for key in keys if key in run}
    for tower, batches in as_mapping(run.get("tower_batches")).items():
        found[f"calibration {tower} batches"] = str(batches)
    if "nonfinite" in run:
        names = [str(name) for name in run["nonfinite"]]
        found["not finite in calibration"] = listed(names) or "none"
    hashes = [_as_pairs(run.get(f"{name}_hashes")) for name in ("sample", "held_out")]
    images = describe_images(hashes[0], held_out=hashes[1]) if hashes[0] else None
    return Calibrated(facts=found, images=images)


def _as_pairs(value: Any) -> list[Sequence[str]]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, list) and len(item) == 2]


def _with_calls(quantizer: StoredQuantizer, *, calls: Mapping[str, int]) -> StoredQuantizer:
    return replace(quantizer, calls=calls.get(quantizer.name))


def is_quantizer_part(name: str, state: ModelOptState | None) -> bool:
    """Return whether a tensor is a range or scale of a quantizer, and no weight."""
    owner = owner_of(name)
    if owner.rpartition(".")[2].endswith("_quantizer"):
        return True
    return state is None and name.rpartition(".")[2] in ("weight_scale", "input_scale")


def _flatten(value: Any, prefix: str) -> dict[str, str]:
    if isinstance(value, Mapping):
        found: dict[str, str] = {}
        for key, item in value.items():
            found |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if value is None or not prefix else {prefix: show_plain(value)}


def _refuse_links(folder: Path) -> None:
    """Raise ArtifactError for a link out of the checkpoint: the file would be echoed."""
    for part in {folder, _model_folder(folder)}:
        for path in sorted(part.iterdir()):
            if path.is_symlink() and not stays_inside(path, directory=folder):
                raise ArtifactError(
                    f"{path} is a link that leads out of its folder, which is not followed: put "
                    f"the file itself there"
                )


def _read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON mapping, empty where the file is not there."""
    try:
        return as_mapping(parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: not JSON: {error}") from error
