"""Recipes: what a suite's `quantize.recipe` means as ModelOpt's ordered `quant_cfg` list."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.encoders.source import find_recipe_file, read_recipe_text
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import FormatSearch
from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.formats.table import name_format, read_num_bits
from pytest_quantgate.quantization.modelopt import import_modelopt, read_version
from pytest_quantgate.suite.specs import QuantizeSpec
from pytest_quantgate.untrusted import check_yaml

#: The ModelOpt releases that this product was tested with: the first, and the first that is not.
MODELOPT_VERSIONS = ((0, 47), (0, 49))

#: Folders of ModelOpt's library that have another name since 0.47 (the first) or 0.48, which it
#: finds by the old one too: the longest first.
_MOVED_TIERS = {
    "huggingface/models/": "models/",
    "model_type/models/": "models/",
    "huggingface/": "model_type/",
}

#: Settings of an algorithm by which a calibration reads files that can run code, or writes some and
#: leaves a model that does not run.
_FILES_OF_CALIBRATION = {
    "checkpoint_dir": (
        "resumes its calibration from checkpoint_dir, where ModelOpt unpickles files, which can "
        "run code"
    ),
    "export_dir": "exports to export_dir while it calibrates, and leaves a model that does not run",
}

_AXIS = re.compile(r"-?[0-9]{1,2}")

#: Until 0.43 `quant_cfg` is a dict whose `default` is applied first wherever it stands; since 0.44
#: it is an ordered list, in which a dict's last entry wins: the same suite would quantize
#: something else there.
FIRST_WITH_LIST = (0, 44)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A resolved recipe.

    `quant_cfg` is ModelOpt's ordered list (later entries win) in plain data; `algorithm` its
    calibration algorithm; `formats` the formats that it switches on; `attention` the class that
    its attention quantizers need: `diffusers`, or `automatic` for ModelOpt's own choice; `search`
    what chose the formats, None where nothing was searched.
    """

    name: str
    quant_cfg: tuple[Mapping[str, Any], ...]
    algorithm: Any
    formats: tuple[str, ...]
    attention: Literal["automatic", "diffusers"]
    search: FormatSearch | None = None


#: What a variant of ONNX files alone was made by: nothing says it.
RECIPE_OF_FILES = Recipe(
    name="the ONNX files", quant_cfg=(), algorithm=None, formats=(), attention="automatic"
)


def resolve_recipe(spec: QuantizeSpec, *, environ: Mapping[str, str] = os.environ) -> Recipe:
    """Return the recipe of a suite.

    Raises ModelError, with the place in the suite, for a name that is no recipe, a file that
    cannot be read, a form that ModelOpt does not take, or a recipe that switches nothing on;
    MissingPackage without ModelOpt.
    """
    check_modelopt_version()
    where = spec.where.of("recipe")
    recipe = spec.recipe
    if isinstance(recipe, str):
        path = find_recipe_file(recipe, where=where, environ=environ)
        if path is not None:
            return build_recipe(_load_file(path, where=where), name=recipe, where=where)
        named = named_recipes()
        config = named[recipe] if recipe in named else _load_config(recipe, where=where)
        return build_recipe(config, name=recipe, where=where)
    return build_recipe(recipe, name="inline quant_cfg", where=where)


def named_recipes() -> dict[str, dict[str, Any]]:
    """Return the product's own recipes by name, as ModelOpt configurations."""
    return {name: row.to_config() for name, row in RECIPES.items()}


def check_modelopt_version() -> None:
    """Raise MissingPackage without ModelOpt, ModelError for a release that is not supported."""
    low, high = MODELOPT_VERSIONS
    found = read_version()
    if not low <= found < high:
        reason = (
            "its quant_cfg is a dict, where the order of entries means something else (since 0.44 "
            "it is a list)"
            if found < FIRST_WITH_LIST
            else "this release of pytest-quantgate was not tested with it"
        )
        raise ModelError(
            f"nvidia-modelopt {metadata.version('nvidia-modelopt')} is not supported: {reason}; "
            f"pip install 'nvidia-modelopt>={low[0]}.{low[1]},<{high[0]}.{high[1]}'"
        )


def build_recipe(config: Any, *, name: str, where: str = "recipe") -> Recipe:
    """Return a Recipe from any form that ModelOpt or a published recipe uses.

    `config` is a whole configuration (`{quant_cfg, algorithm}`), a bare `quant_cfg` list, or a
    bare dict of patterns, whose `default` entry is applied first as its authors mean it.
    """
    algorithm: Any = "max"
    if isinstance(config, Mapping) and "quant_cfg" in config:
        algorithm = config.get("algorithm", "max")
        config = config["quant_cfg"]
    for key, does in _FILES_OF_CALIBRATION.items():
        if key in _keys_in(algorithm):
            raise ModelError(f"{where}: recipe {name!r} {does}: leave {key} out")
    entries = normalise_quant_cfg(config, where=where)
    enabling = [entry for entry in entries if entry["enable"]]
    if not enabling:
        patterns = ", ".join(repr(entry["quantizer_name"]) for entry in entries) or "none"
        raise ModelError(
            f"{where}: recipe {name!r} quantizes nothing: every entry switches off ({patterns})"
        )
    formats = tuple(
        dict.fromkeys(
            format_of(cfg)
            for entry in enabling
            for cfg in _as_list(entry["cfg"])
            if cfg is not None
        )
    )

    def names(slot: str) -> bool:
        return any(_names_slot(entry["quantizer_name"], slot) for entry in enabling)

    # Only the diffusers class has `bmm2_output`; a recipe that names both `softmax` and `p_bmm`
    # (huggingface/vit/ptq/fp8) serves either class, and ModelOpt's own choice is the other one.
    needs_diffusers = names("bmm2_output_quantizer") or (
        names("softmax_quantizer") and not names("p_bmm_quantizer")
    )
    return Recipe(
        name=name,
        quant_cfg=tuple(entries),
        algorithm=algorithm,
        formats=formats,
        attention="diffusers" if needs_diffusers else "automatic",
    )


def normalise_quant_cfg(config: Any, *, where: str) -> list[dict[str, Any]]:
    """Return the ordered entries `{quantizer_name, parent_class, cfg, enable}` in plain data."""
    check_modelopt_version()
    if isinstance(config, Mapping):
        # ModelOpt keeps the dict's order since 0.44 and lets `default: {enable: False}` at its
        # end switch off all that came before; until 0.43 `default` came first by definition.
        first = {key: value for key, value in config.items() if key == "default"}
        config = {**first, **config}
    module = import_modelopt("modelopt.torch.quantization.config")
    with quiet_libraries():
        try:
            found = module.normalize_quant_cfg_list(_as_modelopt(config))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{where}: ModelOpt does not take this quant_cfg: {reason}") from error
    return [
        {
            "quantizer_name": entry.quantizer_name,
            "parent_class": entry.parent_class,
            "cfg": _plain_cfg(entry.cfg),
            "enable": bool(entry.enable),
        }
        for entry in found
    ]


def describe_content(recipe: Recipe) -> tuple[str, ...]:
    """Return what a recipe does, one line an entry in order: the same lines mean the same."""
    lines = []
    for entry in recipe.quant_cfg:
        parent = f"{entry['parent_class']} " if entry["parent_class"] else ""
        does = _write(entry["cfg"]) if entry["enable"] else "off"
        lines.append(f"{parent}{entry['quantizer_name']}: {does}")
    algorithm = _write(recipe.algorithm)
    return (*lines, f"algorithm: {algorithm}", f"attention class: {recipe.attention}")


def _write(value: Any) -> str:
    """Return plain data as JSON; `block_sizes` has axes and words as its keys."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(plain(value), sort_keys=True, default=str)


def to_modelopt(recipe: Recipe) -> dict[str, Any]:
    """Return the configuration that `mtq.quantize` takes."""
    entries = []
    for entry in recipe.quant_cfg:
        plain = {key: value for key, value in entry.items() if value is not None}
        entries.append(_as_modelopt(plain))
    return {"quant_cfg": entries, "algorithm": _as_modelopt(recipe.algorithm)}


def format_of(cfg: Mapping[str, Any]) -> str:
    """Return the name of a quantizer configuration's number format, as `name_format` does."""
    return name_format(cfg.get("num_bits", 8), block_sizes=cfg.get("block_sizes"))


def _names_slot(pattern: str, slot: str) -> bool:
    """Return whether a pattern means a slot by name: `*` and `*_quantizer` mean all and none."""
    return fnmatch.fnmatch(f"layer.{slot}", pattern) and slot.removesuffix("_quantizer") in pattern


def _keys_in(value: Any) -> set[Any]:
    """Return every key of nested plain data."""
    if isinstance(value, Mapping):
        return set(value).union(*(_keys_in(item) for item in value.values()))
    if isinstance(value, (list, tuple)):
        return set().union(*(_keys_in(item) for item in value))
    return set()


def _load_config(name: str, *, where: str) -> Any:
    """Return a preset or a recipe of ModelOpt's own by its name."""
    mtq = import_modelopt("modelopt.torch.quantization")
    preset = getattr(mtq, name, None)
    if isinstance(preset, Mapping) and "quant_cfg" in preset:
        return preset
    if "/" not in name:
        raise ModelError(_unknown_recipe(name, where=where, presets=_presets(mtq)))
    if not is_own_recipe(name):
        raise ModelError(
            f"{where}: ModelOpt has no recipe {name!r}: for a file of yours write its path with "
            f".yaml at the end"
        )
    return _load_recipe(name, name=name, where=where)


def _load_file(path: Path, *, where: str) -> Any:
    """Return the configuration in a YAML file: a ModelOpt recipe, or a bare `quant_cfg` mapping."""
    import yaml

    if not path.exists():
        raise ModelError(f"{where}: recipe file {path} does not exist")
    text = read_recipe_text(path, where=where)
    try:
        check_yaml(text)
        documents = list(yaml.safe_load_all(text))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: cannot read the recipe {path}: {reason}") from error
    for document in documents:
        if isinstance(document, Mapping):
            _check_imports(document.get("imports"), path=path, where=where)
    if len(documents) == 1 and isinstance(documents[0], Mapping) and "quant_cfg" in documents[0]:
        return documents[0]
    return _load_recipe(path, name=str(path), where=where)


def _load_recipe(recipe: Path | str, *, name: str, where: str) -> Any:
    import yaml

    load_recipe = import_modelopt("modelopt.recipe").load_recipe
    with quiet_libraries():
        try:
            loaded = load_recipe(recipe)
        except (
            ValueError,
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            yaml.YAMLError,  # several documents where ModelOpt takes one
        ) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(
                f"{where}: ModelOpt cannot load the recipe {name!r}: {reason[:300]}"
            ) from error
    quantize = getattr(loaded, "quantize", None)
    if quantize is None:
        raise ModelError(f"{where}: recipe {name!r} has no `quantize` section: it is no PTQ recipe")
    return quantize.model_dump() if hasattr(quantize, "model_dump") else dict(quantize)


def _check_imports(imports: Any, *, path: Path, where: str) -> None:
    """Raise ModelError for an import of a file that is not ModelOpt's own.

    The digest of a variant covers the recipe file and ModelOpt's version, and no third file.
    """
    for name, source in imports.items() if isinstance(imports, Mapping) else ():
        if not is_own_recipe(source):
            raise ModelError(
                f"{where}: {path}: imports.{name} is {str(source)[:100]!r}, which is not part of "
                f"ModelOpt: a change there would go unseen; write its content into the recipe"
            )


def is_own_recipe(name: Any) -> bool:
    """Return whether ModelOpt's library, and not the folder of this run, has a recipe by a name."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name, re.ASCII):
        return False
    if ".." in name.split("/"):
        return False
    library = import_modelopt("modelopt.recipe.loader").BUILTIN_RECIPES_LIB
    names = [tier + ending for tier in (name, _find_tier(name)) for ending in ("", ".yml", ".yaml")]
    own = any(library.joinpath(name).is_file() or library.joinpath(name).is_dir() for name in names)
    return own and not any(Path(name).exists() for name in names)


def _find_tier(name: str) -> str:
    """Return the name that a recipe has since ModelOpt moved its folder: old names work on."""
    for old, new in _MOVED_TIERS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _presets(mtq: Any) -> list[str]:
    return sorted(
        name
        for name in dir(mtq)
        if name.endswith("_CFG") and isinstance(getattr(mtq, name), Mapping)
    )


def _unknown_recipe(name: str, *, where: str, presets: Sequence[str]) -> str:
    import difflib

    known = [*named_recipes(), *presets]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(named_recipes())}"
    return f"{where}: unknown recipe {name!r}{hint} (or a ModelOpt preset, recipe id or YAML path)"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _as_modelopt(value: Any) -> Any:
    """Return plain data as ModelOpt takes it: `num_bits: [4, 3]`, or `e4m3`, becomes a tuple."""
    if isinstance(value, Mapping):
        # The keys of a suite are texts; those of `block_sizes` are axes.
        return {
            int(key) if _AXIS.fullmatch(str(key)) else key: read_num_bits(item)
            if key in ("num_bits", "scale_bits")
            else _as_modelopt(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_as_modelopt(item) for item in value]
    return value


def _plain_cfg(cfg: Any) -> Any:
    if cfg is None:
        return None
    if isinstance(cfg, (list, tuple)):
        return [_plain_cfg(item) for item in cfg]
    if hasattr(cfg, "model_dump"):
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in cfg.model_dump(exclude_unset=True).items()
        }
    return dict(cfg)
