"""Loads the FP16 baseline of a suite: safetensors only, checked, in a known arithmetic.

Which files are read is decided here and in source.py, never by what stands in one of them: the
weights are read here, and transformers sees the rest in a folder that holds nothing else.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.families import find_config, find_pretrained, read_settings
from pytest_quantgate.encoders.family import Pretrained
from pytest_quantgate.encoders.source import (
    CONFIG,
    INDEX,
    LOADED_FILES,
    SETTINGS,
    WEIGHTS,
    CheckpointSource,
    resolve_checkpoint,
)
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.untrusted import parse_json, read_regular, refuse_many_values

if TYPE_CHECKING:
    import torch

#: Keys that name another file, or code, to transformers; those that end in `_file` do too.
_POINTERS = ("auto_map", "init_inputs", "merges", "transformers_weights", "vocab")
#: Written by transformers and never read.
_IDLE_POINTERS = ("special_tokens_map_file",)

#: Layouts of tensors (metadata of a safetensors file) that are those of PyTorch.
_LAYOUTS = (None, "pt", "np")

#: Names that open_clip has given to the weights of a checkpoint.
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    WEIGHTS,
)

#: Where sizes stand; what ends in `_dict` is older, and takes the place of the other.
_SIZED = (
    "",
    "text_config",
    "vision_config",
    "text_config_dict",
    "vision_config_dict",
    "size",
    "crop_size",
)


def load_fp16(
    spec: ModelSpec, *, device: str = "cpu", environ: Mapping[str, str] = os.environ
) -> Encoder:
    """Return the FP16 variant of a suite's model.

    The weights are rounded to `spec.dtype`. On a CPU they are then computed with in FP32: PyTorch
    emulates most FP16 kernels there, and the note says so. Raises NotMeasured where the weights or
    the device are not there, MissingPackage without the `clip` extra, and ModelError for a
    checkpoint that is damaged, of no known family, incomplete, or holds NaN or Inf.
    """
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            error.name or "transformers", extra="clip", purpose="loading a model"
        ) from error
    source = resolve_checkpoint(spec, environ=environ)
    where = spec.where.of("id")
    if device == "cuda" and not torch.cuda.is_available():
        raise NotMeasured("device cuda: torch finds no CUDA device; use --quantgate-device=cpu")
    refuse_forced_pickles(where=where)
    if source.code is not None:
        from pytest_quantgate.encoders.factory import load_factory

        with quiet_libraries():
            made = load_factory(spec, source=source, device=device)
        check_finite(made.module, where=f"{spec.where.of('factory')}: {source.description}")
        rounded = note_rounding(compute_dtype=made.compute_dtype, dtype=spec.dtype)
        return replace(made, notes=rounded)
    settings = check_files(source, where=where)
    known = find_pretrained(settings)
    assert known is not None  # check_files refuses others
    kind = known[1]
    compute_dtype = "float32" if device == "cpu" else spec.dtype
    dtype: torch.dtype = getattr(torch, spec.dtype)
    with _reading(source, where=where) as folder:
        config = kind.make_config(settings)
        config._attn_implementation = spec.attn_implementation
        check_config(config.to_dict(), where=f"{where}: {source.directory / CONFIG}")
        state = read_weights(
            source, where=where, place=functools.partial(kind.place, settings=settings)
        )
        _check_size(
            functools.partial(
                kind.make_module, copy.deepcopy(config), attention=spec.attn_implementation
            ),
            state=state,
            where=f"{where}: {source.description}",
        )
        loaded = kind.load(config, state=state, dtype=dtype, attention=spec.attn_implementation)
        module: Any = loaded.module
        tokenizer = kind.read_tokenizer(folder, config=config)
        processor = kind.read_processor(folder, config=config)
        towers = _describe_towers(
            known, config=module.config, processor=processor, where=f"{where}: {source.description}"
        )
    if loaded.missing:
        raise ModelError(
            f"{where}: {source.description}: {len(loaded.missing)} weights are missing or of "
            f"another shape, first {loaded.missing[0]}: the checkpoint is not the model of its "
            f"config.json"
        )
    # Older checkpoints keep the position ids, which are no weights.
    unused = [
        key
        for key in loaded.unused
        if not key.endswith(".position_ids") and not key.startswith(kind.unused)
    ]
    if unused:
        raise ModelError(
            f"{where}: {source.description}: {len(unused)} weights have no place in the model of "
            f"config.json, first {unused[0]}: it would run without them"
        )
    check_finite(module, where=f"{where}: {source.description}")
    module = module.to(device=device, dtype=getattr(torch, compute_dtype)).eval()
    module.requires_grad_(False)
    notes = kind.list_notes(settings)
    notes += note_rounding(compute_dtype=compute_dtype, dtype=spec.dtype)
    return Encoder(
        module=module,
        towers=towers,
        tokenizer=tokenizer,
        image_processor=processor,
        weights_digest=source.digest,
        description=source.description,
        weight_dtype=spec.dtype,
        compute_dtype=compute_dtype,
        device=device,
        notes=notes,
    )


def note_rounding(*, compute_dtype: str, dtype: str) -> tuple[str, ...]:
    """Return what a run says that computes in another type than that of the weights."""
    if compute_dtype == dtype:
        return ()
    return (
        f"computed in {compute_dtype} from weights rounded to {dtype}: this CPU run stands for "
        f"{dtype} up to its rounding of activations",
    )


def load_unweighted(
    spec: ModelSpec, *, source: CheckpointSource, towers: Collection[TowerName]
) -> Encoder:
    """Return some towers of a model as its folder describes them, with what feeds them.

    Its module is empty: who has the weights in another form puts their own `embed` into the
    towers. Raises as `load_fp16`.
    """
    import torch

    where = spec.where.of("id")
    settings = check_settings(source, where=where)
    known = find_pretrained(settings)
    assert known is not None  # check_settings refuses others
    kind = known[1]
    with _reading(source, where=where) as folder:
        config = kind.make_config(settings)
        check_config(config.to_dict(), where=f"{where}: {source.directory / CONFIG}")
        processor = kind.read_processor(folder, config=config) if "vision" in towers else None
        tokenizer = kind.read_tokenizer(folder, config=config) if "text" in towers else None
        found = _describe_towers(
            known, config=config, processor=processor, where=f"{where}: {source.description}"
        )
    return Encoder(
        module=torch.nn.Module(),
        towers=tuple(tower for tower in found if tower.name in towers),
        tokenizer=tokenizer,
        image_processor=processor,
        weights_digest=source.digest,
        description=source.description,
        weight_dtype=spec.dtype,
        compute_dtype="float32",
        device="cpu",
        notes=kind.list_notes(settings),
    )


@contextmanager
def _reading(source: CheckpointSource, *, where: str) -> Iterator[Path]:
    """Give a folder with what transformers may read of a checkpoint; say what it fails on."""
    with quiet_libraries(), temporary_folder() as folder:
        _copy_files(source, folder, where=where)
        try:
            yield folder
        except ModelError:
            raise
        except ImportError as error:  # a tokenizer or an image processor with a package of its own
            raise NotMeasured(f"{where}: {source.description}: {_first_line(error)}") from error
        except Exception as error:  # tokenizers raises a bare Exception for a damaged file
            raise ModelError(f"{where}: {source.description}: {_first_line(error)}") from error


def _describe_towers(
    known: tuple[str, Pretrained], *, config: Any, processor: Any, where: str
) -> tuple[TowerSpec, ...]:
    name, kind = known
    if kind.any_size and processor is not None:
        config = copy.deepcopy(config)
        config.image_size = read_image_size(processor)
    towers = kind.describe_towers(config)
    if tuple(tower.name for tower in towers) != kind.towers:
        raise ModelError(
            f"{where}: the family says that {name} has the towers {', '.join(kind.towers)}, and "
            f"describes {', '.join(tower.name for tower in towers)}: the family must be mended"
        )
    return towers


def read_image_size(processor: Any) -> tuple[int, int]:
    """Return height and width of what an image processor makes of an image."""
    import numpy

    image = numpy.zeros((32, 48, 3), dtype=numpy.uint8)
    height, width = processor(images=[image], return_tensors="np")["pixel_values"].shape[-2:]
    return int(height), int(width)


def check_files(source: CheckpointSource, *, where: str) -> Mapping[str, Any]:
    """Return what `check_settings` does, for a checkpoint whose weights can be read.

    Raises ModelError, naming the file, for damaged safetensors too.
    """
    from safetensors import SafetensorError, safe_open

    directory = source.directory
    config = check_settings(source, where=where)
    list_weights(directory, where=where)
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if bounds.HEADER_BYTES < length < path.stat().st_size:
            raise ModelError(
                f"{where}: {path}: its header has {length} bytes, at most {bounds.HEADER_BYTES} "
                f"are read: save it again"
            )
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{where}: {path} is damaged ({path.stat().st_size} bytes; {_first_line(error)}): "
                f"download or save it again"
            ) from error
    return config


def check_settings(source: CheckpointSource, *, where: str) -> Mapping[str, Any]:
    """Return all that makes the model, of config.json and of what its family reads beside it.

    Raises ModelError, naming the file, for a config of another model, and for what would load
    something else than the files in this directory.
    """
    directory = source.directory
    try:
        config = read_settings(directory)
    except ModelError as error:
        raise type(error)(f"{where}: {error}") from error
    known = find_pretrained(config)
    assert known is not None  # read_settings refuses others
    kind = known[1]
    if (directory / "adapter_config.json").exists():
        raise ModelError(
            f"{where}: {directory} holds an adapter (adapter_config.json), which names "
            f"another base model: merge it and save the whole model"
        )
    for name, path in source.paths.items():
        if name in SETTINGS:
            settings = _read_mapping(path, where=where)
            check_config(settings, where=f"{where}: {path}", kind=kind)
            check_pointers(settings, where=f"{where}: {path}")
    return config


def check_pointers(settings: Mapping[str, Any], *, where: str) -> None:
    """Raise ModelError for a value that would make transformers read another file, or run code."""
    parts = [("", settings)] + [
        (f"{name}.", part)
        for name, part in settings.items()
        if name.endswith("_config") and isinstance(part, Mapping)
    ]
    for place, part in parts:
        for key, value in part.items():
            points = key in _POINTERS or key.endswith(("_file", "_files"))
            if points and value and key not in _IDLE_POINTERS:
                raise ModelError(
                    f"{where}: {place}{key} is {repr(value)[:80]}: a checkpoint may not name other "
                    f"files or code; keep everything in {WEIGHTS} and the tokenizer's usual files, "
                    f"and remove the key"
                )


def check_config(config: Mapping[str, Any], *, where: str, kind: Pretrained | None = None) -> None:
    """Raise ModelError for sizes that no such model has, and for an already quantized model.

    Of a model whose `kind` has no text tower, what makes the texts is not looked at.
    """
    if config.get("quantization_config") is not None:
        raise ModelError(
            f"{where}: has a quantization_config: the baseline must be the model before it was "
            f"quantized"
        )
    size_is_area = kind is not None and kind.size_is_area
    unread = "text_config" if kind is not None and "text" not in kind.towers else ""
    parts = {"": config, **config}
    inner = config.get("image_processor")  # of processor_config.json
    if isinstance(inner, Mapping):
        parts |= {key: inner.get(key) for key in ("size", "crop_size")}
    for key in _SIZED:
        if unread and key.startswith(unread):
            continue
        part = parts.get(key)
        if key in ("size", "crop_size") and not isinstance(part, Mapping):
            part = {"": part}
        for name, value in part.items() if isinstance(part, Mapping) else ():
            is_side = key in ("size", "crop_size")
            most = bounds.MODEL_SIZES.get("image_size" if is_side else name)
            if most is None or value is None or (is_side and size_is_area):
                continue
            if not bounds.is_size("image_size" if is_side else name, value, pair=not is_side):
                shown = repr(value)[:40]
                place = ".".join(filter(None, (key, name)))
                raise ModelError(f"{where}: {place} is {shown}: expected 1 to {most}")


def list_weights(directory: Path, *, where: str) -> tuple[Path, ...]:
    """Return the safetensors files that hold the weights: one, or the shards of an index.

    Raises ModelError for neither, and for an index of shards that are not safetensors files
    beside it.
    """
    path = directory / INDEX
    shards: list[str] = []
    if path.exists():
        found = _read_mapping(path, where=where).get("weight_map")
        if not isinstance(found, Mapping):
            raise ModelError(f"{where}: {path} has no weight_map: save the model again")
        shards = sorted({str(shard) for shard in found.values()})
    for name in shards:
        if not re.fullmatch(r"[\w.-]{1,200}\.safetensors", name):
            raise ModelError(
                f"{where}: {path} names the shard {name[:100]!r}: only *.safetensors files beside "
                f"it are read"
            )
        if not (directory / name).is_file():
            raise ModelError(f"{where}: {path} names the shard {name!r}, which is missing")
    wanted = (WEIGHTS,) if find_config(directory).name == CONFIG else OPEN_CLIP_WEIGHTS
    for name in wanted:
        if (directory / name).is_file():
            return (directory / name,)
    if not shards:
        raise ModelError(
            f"{where}: {directory} holds neither {wanted[0]} nor {INDEX}: save the model again"
        )
    return tuple(directory / name for name in shards)


def read_weights(
    source: CheckpointSource, *, where: str, place: Callable[[str], str | None] = str
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, mapped from its files as long as they can be.

    `place` gives the name in the model of each, None for one that is left where it is.

    Raises ModelError for a name that stands in two shards, and for tensors that are laid out as
    those of another library.
    """
    from safetensors import safe_open

    state: dict[str, torch.Tensor] = {}
    for path in list_weights(source.directory, where=where):
        with safe_open(path, framework="pt") as stored:
            layout = (stored.metadata() or {}).get("format")
            if layout not in _LAYOUTS:
                raise ModelError(
                    f"{where}: {path} holds the tensors of {layout[:80]!r}: save them with PyTorch"
                )
            for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                placed = place(name)
                if placed is None:
                    continue
                if placed in state:
                    raise ModelError(f"{where}: {path}: {name[:80]!r} stands in another shard too")
                state[placed] = stored.get_tensor(name)
    return state


def _check_size(
    make_module: Callable[[], torch.nn.Module], *, state: Mapping[str, torch.Tensor], where: str
) -> None:
    """Raise ModelError for a config of a model so large that its weights cannot be these.

    Weights that are missing would be made before they are named: of a model of any size.
    """
    import torch

    # Models import it, and PyTorch 2.8 cannot import it below a device.
    import torch._dynamo

    with torch.device("meta"):
        described = sum(tensor.numel() for tensor in make_module().state_dict().values())
    held = sum(tensor.numel() for tensor in state.values())
    if described > 2 * held:
        raise ModelError(
            f"{where}: config.json describes a model of {described} weights, the files hold "
            f"{held}: the checkpoint is not the model of its config.json"
        )


def _copy_files(source: CheckpointSource, folder: Path, *, where: str) -> None:
    """Put what transformers may read of a checkpoint into `folder`; raises ModelError."""
    for name in LOADED_FILES:
        path = source.paths.get(name)
        if path is None:
            continue
        try:
            content = read_regular(path, max_bytes=bounds.JSON_BYTES)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ModelError(f"{where}: {path} cannot be read: {reason}") from error
        if path.suffix == ".json":
            try:
                refuse_many_values(content)
            except ValueError as error:
                raise ModelError(f"{where}: {path}: {error}") from error
        (folder / name).write_bytes(content)


def refuse_forced_pickles(*, where: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise ModelError where torch was told to unpickle whatever it reads."""
    if environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        raise ModelError(
            f"{where}: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set, so that loading could run code "
            f"from the file: unset it"
        )


def _read_mapping(path: Path, *, where: str) -> Mapping[str, Any]:
    try:
        found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: {path} is missing or unreadable: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{where}: {path} is missing or unreadable: expected a mapping")
    return found


def check_finite(module: torch.nn.Module, *, where: str) -> None:
    """Raise ModelError naming the first weight that holds NaN or Inf, and how many do."""
    import torch

    bad = [
        (name, int((~torch.isfinite(tensor)).sum()))
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        name, count = bad[0]
        raise ModelError(
            f"{where}: {len(bad)} weight tensors hold NaN or Inf (or lie outside the range of "
            f"{str(module.state_dict()[name].dtype).removeprefix('torch.')}), first {name} "
            f"({count} values): repair the checkpoint; a quantizer calibrated on it would hide this"
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what the libraries say on the side out of the run's output.

    Under `filterwarnings = error` a deprecation inside a library would otherwise end a gate.
    """
    import io
    from contextlib import redirect_stderr, redirect_stdout

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        silence = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(silence), redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
