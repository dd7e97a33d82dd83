"""The registry of families: those of this package, and those of others by their entry points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders import clip, internvl, llava, open_clip, qwen_vl, siglip, text, vit
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.family import EncoderFamily, Pretrained
from pytest_quantgate.encoders.source import CONFIG, OPEN_CLIP_CONFIG
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ModelError, UnsupportedModel
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.untrusted import parse_json, read_regular

GROUP = "pytest_quantgate.encoders"

#: The files that say what model a checkpoint is: the first that is there.
CONFIGS = (CONFIG, OPEN_CLIP_CONFIG)

#: The key of settings that names the kind of a model, as a family lists it. It is put there by
#: `read_settings` and stays in the configuration object, so that a restored model knows its kind.
KIND = "quantgate_kind"

_OWN = tuple(
    module.FAMILY for module in (clip, siglip, vit, text, open_clip, llava, internvl, qwen_vl)
)


def list_families() -> tuple[EncoderFamily, ...]:
    """Return all families, this package's first; raises ModelError for an odd entry point."""
    found = [*_OWN]
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            family = entry.load()
        except Exception as error:  # whatever another package's code raises
            raise ModelError(
                f"entry point {entry.name} of {GROUP} ({entry.value}) cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(family, EncoderFamily):
            raise ModelError(
                f"entry point {entry.name} of {GROUP} is {type(family).__name__}, no EncoderFamily"
            )
        found.append(family)
    return tuple(found)


def list_packages() -> tuple[str, ...]:
    """Return the packages that bring families of others, by their import names; none is loaded."""
    return tuple(sorted({entry.module.partition(".")[0] for entry in entry_points(group=GROUP)}))


def list_model_types() -> tuple[str, ...]:
    """Return every `model_type` of config.json that a family takes."""
    names = {name for family in list_families() for name in family.pretrained}
    return tuple(sorted(name for name in names if name == name.lower()))  # others are classes


def find_pretrained(settings: Mapping[str, Any]) -> tuple[str, Pretrained] | None:
    """Return the kind of a model by what stands in its config.json, and its name; None for one of
    no family.

    Other packages are imported where none of this package's families takes it. Raises as
    `list_families`.
    """
    architectures = settings.get("architectures")
    first = architectures[0] if isinstance(architectures, (list, tuple)) and architectures else None
    names = [settings.get(KIND), first, settings.get("model_type")]
    named = [name for name in names if isinstance(name, str)]

    def find(families: tuple[EncoderFamily, ...]) -> tuple[str, Pretrained] | None:
        kinds = {name: kind for f in reversed(families) for name, kind in f.pretrained.items()}
        return next(((name, kinds[name]) for name in named if name in kinds), None)

    return find(_OWN) or (find(list_families()) if named else None)


def find_config(directory: Path) -> Path:
    """Return the file of a checkpoint that says what model it is."""
    found = (directory / name for name in CONFIGS)
    return next((path for path in found if path.exists()), directory / CONFIGS[0])


def read_settings(directory: Path) -> Mapping[str, Any]:
    """Return all that makes the model of a checkpoint, of its files, with the name of its kind.

    Raises ModelError for files that are missing or damaged and for a model of no family, and
    UnsupportedModel for one that cannot be done yet.
    """
    path = find_config(directory)
    try:
        found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is missing or unreadable: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is missing or unreadable: expected a mapping")
    found.pop(KIND, None)
    if path.name == OPEN_CLIP_CONFIG:
        found["model_type"] = "open_clip"
    known = find_pretrained(found)
    if known is None:
        model_type = str(found.get("model_type"))[:80]
        for family in list_families():
            if model_type in family.refused:
                raise UnsupportedModel(
                    f"{path}: model_type {model_type!r} is not taken yet: "
                    f"{family.refused[model_type]}"
                )
        raise ModelError(f"{path}: {describe_unknown(found)}")
    name, kind = known
    _refuse_older(kind, path=path)
    return {**kind.read_settings(found, directory=directory), KIND: name}


def _refuse_older(kind: Pretrained, *, path: Path) -> None:
    """Raise UnsupportedModel where transformers is older than the names that a kind reads."""
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        return  # who loads the model says so
    if kind.model and tuple(map(int, re.findall(r"\d+", version)[:2])) < kind.since:
        wanted = ".".join(map(str, kind.since))
        raise UnsupportedModel(
            f"{path}: {kind.model} is read as transformers {wanted} and newer name its parts, and "
            f"{version} is installed: pip install 'transformers>={wanted},<5.15'"
        )


def describe_unknown(settings: Mapping[str, Any]) -> str:
    """Return what to say of a model of no family."""
    model_type = str(settings.get("model_type"))[:80]
    known = " or ".join(map(repr, list_model_types()))
    return f"model_type is {model_type!r}, a suite needs {known}"


def find_pretrained_of(config: Any) -> Pretrained | None:
    """Return the kind of a model by its configuration object, None for one of no family."""
    names = (KIND, "architectures", "model_type")
    known = find_pretrained({name: getattr(config, name, None) for name in names})
    return None if known is None else known[1]


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return the towers of a model by its configuration object; raises ModelError for one of no
    family."""
    kind = find_pretrained_of(config)
    if kind is None:
        raise ModelError(
            f"{type(config).__name__} (model_type "
            f"{str(getattr(config, 'model_type', None))[:80]!r}) is of no known family: "
            f"{', '.join(list_model_types())}"
        )
    return kind.describe_towers(config)


def wrap_module(module: Any, *, description: str = "") -> Encoder:
    """Return a model without what feeds it; raises as `describe_towers`."""
    parameter = next(module.parameters())
    dtype = str(parameter.dtype).removeprefix("torch.")
    return Encoder(
        module=module,
        towers=describe_towers(module.config),
        tokenizer=None,
        image_processor=None,
        weights_digest="",
        description=description,
        weight_dtype=dtype,
        compute_dtype=dtype,
        device=str(parameter.device),
    )


def describe_settings(settings: Mapping[str, Any]) -> tuple[TowerSpec, ...]:
    """Return the towers of a model by what `read_settings` gives, without transformers.

    What does not stand there is as its family says. Raises ModelError for a model of no family, and
    for sizes that make no sense.
    """
    known = find_pretrained(settings)
    if known is None:
        raise ModelError(describe_unknown(settings))
    usual = known[1].settings
    config = SimpleNamespace(**{**usual.get("", {}), **settings})
    for name in filter(None, usual):
        found = settings.get(name)
        section = {**usual[name], **(found if isinstance(found, Mapping) else {})}
        setattr(config, name, SimpleNamespace(**section))
    for name in usual:
        for key, value in vars(getattr(config, name) if name else config).items():
            most = bounds.MODEL_SIZES.get(key)
            if most is not None and not bounds.is_size(key, value):
                place = ".".join(filter(None, (name, key)))
                raise ModelError(
                    f"the sizes of its towers make no sense: {place} is {value!r:.40}, expected 1 "
                    f"to {most}"
                )
    try:
        return known[1].describe_towers(config)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"its towers make no sense: {error}") from error


def read_towers(directory: Path) -> tuple[TowerName, ...]:
    """Return the names of the towers of a checkpoint, from the files that say what model it is.

    Raises as `read_settings`.
    """
    known = find_pretrained(read_settings(directory))
    assert known is not None  # read_settings refuses others
    return known[1].towers
