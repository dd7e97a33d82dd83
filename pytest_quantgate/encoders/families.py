"""The registry of families: those of this package, and those of others by their entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders import clip, siglip, vit
from pytest_quantgate.encoders.family import EncoderFamily
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.untrusted import parse_json, read_regular

GROUP = "pytest_quantgate.encoders"

_OWN = (clip.FAMILY, siglip.FAMILY, vit.FAMILY)


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
    return tuple(sorted({kind for family in list_families() for kind in family.pretrained}))


def find_family(model_type: object) -> EncoderFamily | None:
    """Return the family of a `model_type`, None where there is none.

    Other packages are imported where none of this package's families takes it. Raises as
    `list_families`.
    """
    if not isinstance(model_type, str):
        return None
    own = next((family for family in _OWN if model_type in family.pretrained), None)
    return own or next((f for f in list_families() if model_type in f.pretrained), None)


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return the towers of a model with a configuration of transformers; raises ModelError for
    one of no family."""
    model_type = getattr(config, "model_type", None)
    family = find_family(model_type)
    if family is None:
        raise ModelError(
            f"{type(config).__name__} (model_type {str(model_type)[:80]!r}) is of no known family: "
            f"{', '.join(list_model_types())}"
        )
    return family.describe_towers(config)


def describe_settings(settings: Mapping[str, Any]) -> tuple[TowerSpec, ...]:
    """Return the towers of a model by what stands in its config.json, without transformers.

    What does not stand there is as its family says. Raises ModelError for a model of no family, and
    for sizes that make no sense.
    """
    model_type = settings.get("model_type")
    family = find_family(model_type)
    if family is None:
        known = " or ".join(map(repr, list_model_types()))
        raise ModelError(f"model_type is {str(model_type)[:80]!r}, a suite needs {known}")
    usual = family.pretrained[str(model_type)].settings
    config = SimpleNamespace(**{**usual.get("", {}), **settings})
    for name in filter(None, usual):
        found = settings.get(name)
        section = {**usual[name], **(found if isinstance(found, Mapping) else {})}
        setattr(config, name, SimpleNamespace(**section))
    for name in usual:
        for key, value in vars(getattr(config, name) if name else config).items():
            most = bounds.MODEL_SIZES.get(key)
            is_count = isinstance(value, int) and not isinstance(value, bool)
            if most is not None and not (is_count and 0 < value <= most):
                place = ".".join(filter(None, (name, key)))
                raise ModelError(
                    f"the sizes of its towers make no sense: {place} is {value!r:.40}, expected 1 "
                    f"to {most}"
                )
    try:
        return family.describe_towers(config)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"its towers make no sense: {error}") from error


def read_towers(directory: Path) -> tuple[TowerName, ...]:
    """Return the names of the towers of a checkpoint, from its config.json and nothing else.

    Raises ModelError for a checkpoint of no family.
    """
    path = directory / "config.json"
    try:
        found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
        model_type = found["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is missing or unreadable: {error}") from error
    family = find_family(model_type)
    if family is None:
        raise ModelError(f"{path}: model_type {str(model_type)[:80]!r} is of no known family")
    return family.pretrained[model_type].towers
