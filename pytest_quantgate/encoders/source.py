"""Where a model's files are and their digest: no torch, so that a warm cache stays quick."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import (
    MissingPackage,
    ModelError,
    NotMeasured,
    SuiteError,
    UnsupportedModel,
)
from pytest_quantgate.store.surroundings import Surroundings
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where, expand_path
from pytest_quantgate.untrusted import hash_file, read_regular

#: What a Hugging Face checkpoint directory can hold that changes an embedding.
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")

RECIPE_SUFFIXES = (".yaml", ".yml")

CONFIG = "config.json"
#: The file that says what model a checkpoint of open_clip is.
OPEN_CLIP_CONFIG = "open_clip_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: Files of sentence-transformers that say what is done with the hidden states of a model.
MODULES = "modules.json"
SENTENCE_SETTINGS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"

#: Files that hold settings, in which a value could name another file or code.
SETTINGS = (
    CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)

#: All that is read of a checkpoint beside its weights; each of them is in the digest.
LOADED_FILES = (
    *SETTINGS,
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


#: The file that lists the parts of a pipeline of diffusers.
PIPELINE = "model_index.json"

#: Where a pipeline of diffusers keeps what feeds an encoder, by the encoder's own folder.
BESIDE = {
    "text_encoder": "tokenizer",
    "text_encoder_2": "tokenizer_2",
    "text_encoder_3": "tokenizer_3",
    "image_encoder": "feature_extractor",
}

#: Files of sentence-transformers in a folder of their own, one for each step behind the model.
STEPS = ("[0-9]_*/config.json", "[0-9]_*/*.safetensors")


@dataclass(frozen=True, kw_only=True)
class FactoryCode:
    """A function of one's own that makes a model, by its `name` (`package.module:function`).

    `package` is the folder or file of the package, `root` the folder that it is imported from,
    `files` are the files and folders that the function is given.
    """

    name: str
    package: Path
    root: Path
    files: tuple[Path, ...] = ()

    def list_files(self) -> tuple[Path, ...]:
        """Return the files that are named, and all below the folders that are, in their order."""
        return tuple(
            path
            for named in self.files
            for path in ([named] if named.is_file() else sorted(named.rglob("*")))
            if path.is_file()
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """A checkpoint directory, the SHA-256 over its files, and its name for people.

    `files` gives the SHA-256 (hex) of each file by its name. `code` is what makes a model that no
    files describe; `directory` is then where its package is, and nothing there is a checkpoint's.
    """

    directory: Path
    digest: str
    description: str
    files: Mapping[str, str] = field(default_factory=dict)
    code: FactoryCode | None = None

    @property
    def paths(self) -> dict[str, Path]:
        """Where these files are, by their names."""
        return {} if self.code else find_files(self.directory)


def resolve_checkpoint(
    spec: ModelSpec, *, environ: Mapping[str, str], weights: Mapping[str, str] | None = None
) -> CheckpointSource:
    """Return where the model of a suite is.

    `weights` are the SHA-256 (hex) of files elsewhere that hold its weights, by their names.
    Raises NotMeasured where the directory or the hub's files are not there, with the line that
    mends it, and ModelError where the directory holds no safetensors, or a file of it is a link
    that leads out of it.
    """
    if spec.factory is not None:
        return _resolve_factory(spec, environ=environ)
    directory, description = find_directory(spec, environ=environ)
    files = find_files(directory)
    if spec.source == "onnx":  # weights beside the settings are not those of the ONNX files
        files = {name: path for name, path in files.items() if path.suffix != ".safetensors"}
    elif not any(path.suffix == ".safetensors" for path in files.values()):
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        hint = (
            f"; {pickles[0]} is a pickle, which is never loaded: save the model again with "
            f"safe_serialization=True"
            if pickles
            else ""
        )
        raise ModelError(f"{spec.where.of('id')}: {directory} holds no *.safetensors file{hint}")
    digest = hashlib.sha256()
    digests = {}
    for name, path in sorted(files.items(), key=lambda item: item[1]):
        if not stays_inside(path, directory=path.parent):
            raise ModelError(
                f"{spec.where.of('id')}: {path} is a link that leads out of its folder, which is "
                f"not followed: put the file itself there"
            )
        if not path.is_file():
            raise ModelError(f"{spec.where.of('id')}: {path} is no regular file: remove it")
        digests[name] = _hash_file(path, where=spec.where.of("id"))
        digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(digests[name]))
    for name, sha256 in sorted((weights or {}).items()):
        digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(sha256))
    return CheckpointSource(
        directory=directory, digest=digest.hexdigest(), description=description, files=digests
    )


def _hash_file(path: Path, *, where: str) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise ModelError(f"{where}: {path} cannot be read: {error.strerror or error}") from error


def find_code(spec: ModelSpec, *, environ: Mapping[str, str]) -> FactoryCode:
    """Return where a suite's factory and its files are; nothing is imported.

    Raises NotMeasured where one of them is not here.
    """
    assert spec.factory is not None  # the suite's check wants it
    top = spec.factory.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(top)
    places = (found.submodule_search_locations or [found.origin or ""]) if found else []
    package = Path(next(iter(places), ""))
    if not package.is_absolute() or not package.exists():
        raise NotMeasured(
            f"{spec.where.of('factory')}: {spec.factory}: no package {top} can be imported here: "
            f"install it, or set pythonpath in pyproject.toml ([tool.pytest.ini_options])"
        )
    files = []
    for text in spec.files:
        path = expand_path(text, where=spec.where.of("files"), environ=environ).absolute()
        if not path.exists():
            raise NotMeasured(f"{spec.where.of('files')}: {text} is not there: put it there")
        files.append(path)
    return FactoryCode(name=spec.factory, package=package, root=package.parent, files=tuple(files))


def pin_model(spec: ModelSpec, *, source: CheckpointSource) -> dict[str, Any]:
    """Return a model as plain data for another process, in which its files are where they are."""
    if source.code is None:
        # What a suite says may be a variable, or a name on the hub.
        named = {"source": "transformers", "id": str(source.directory)}
        return {**named, "dtype": spec.dtype, "attn_implementation": spec.attn_implementation}
    return {
        "source": "factory",
        "factory": source.code.name,
        "files": [str(path) for path in source.code.files],
        "towers": list(spec.towers),
        "dtype": spec.dtype,
        "root": str(source.code.root),
    }


def read_model(pinned: Mapping[str, Any]) -> ModelSpec:
    """Return a model that `pin_model` described; a factory's package can be imported then."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in pinned.items()
    }
    root = values.pop("root", "")
    if root and root not in sys.path:
        sys.path.append(root)
    return ModelSpec(where=Where(file=values.get("id") or root, line=0), **values)


def _resolve_factory(spec: ModelSpec, *, environ: Mapping[str, str]) -> CheckpointSource:
    """Return the source of a model that code makes: its digest is that of package and files."""
    code = find_code(spec, environ=environ)
    top = code.name.partition(":")[0].partition(".")[0]
    package = Surroundings(environ=environ).package(top)
    assert package is not None  # find_code found it
    digest = hashlib.sha256(f"{code.name}\0{package.digest}".encode())
    digests = {}
    for path in code.list_files():
        index, named = next((i, p) for i, p in enumerate(code.files) if path.is_relative_to(p))
        name = f"{index}/{path.relative_to(named.parent).as_posix()}"
        sha256 = _hash_file(path, where=spec.where.of("files"))
        digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(sha256))
        digests[path.name if path == named else name.partition("/")[2]] = sha256
    return CheckpointSource(
        directory=code.root,
        digest=digest.hexdigest(),
        description=code.name,
        files=digests,
        code=code,
    )


def find_files(directory: Path) -> dict[str, Path]:
    """Return the files of a checkpoint that change an embedding, by their names in it.

    An encoder in a pipeline of diffusers that has no tokenizer or image processor of its own takes
    the files of the folder beside it.
    """
    files = {path.name: path for pattern in FILES for path in directory.glob(pattern)}
    files |= {
        f"{path.parent.name}/{path.name}": path for step in STEPS for path in directory.glob(step)
    }
    beside = directory.parent / BESIDE.get(directory.name, "")
    feeding = set(LOADED_FILES) - {CONFIG, "special_tokens_map.json"}
    if directory.name in BESIDE and beside.is_dir() and not feeding & files.keys():
        files |= {name: beside / name for name in feeding if (beside / name).exists()}
        special = "special_tokens_map.json"
        if (beside / special).exists():
            files.setdefault(special, beside / special)
    return files


def stays_inside(path: Path, *, directory: Path) -> bool:
    """Return whether a file of a checkpoint lies in its directory, once links are followed.

    The cache of the hub keeps a snapshot's files as links to the blobs beside it: they belong to
    it. What is not there at all stays inside.
    """
    root = Path(os.path.realpath(directory))
    # The snapshot itself, or a folder in it: an encoder of a pipeline, or a step behind a model.
    snapshots = [found for found in (root, root.parent) if found.parent.name == "snapshots"]
    homes = (root, *(found.parent.parent / "blobs" for found in snapshots))
    found = Path(os.path.realpath(path))  # Path.resolve raises where links go in circles
    return any(found.is_relative_to(home) for home in homes)


def find_directory(spec: ModelSpec, *, environ: Mapping[str, str]) -> tuple[Path, str]:
    """Return the checkpoint directory of a model and its name for people."""
    if spec.source == "reference":
        from pytest_quantgate.reference import weights_dir

        return weights_dir(), "the reference model"
    assert spec.id is not None  # the schema requires it
    where = spec.where.of("id")
    if is_local(spec.id):
        directory = expand_path(spec.id, where=where, environ=environ)
        if not directory.is_dir():
            raise NotMeasured(f"{where}: {directory} is no directory: set model.id to a checkpoint")
        refuse_pipeline(directory, where=where)
        return directory, directory.name
    return _find_in_hub(spec.id, revision=spec.revision, where=where), spec.id


def refuse_pipeline(directory: Path, *, where: str) -> None:
    """Raise UnsupportedModel for a whole pipeline of diffusers, naming the encoders in it."""
    if (directory / PIPELINE).exists() and not (directory / CONFIG).exists():
        found = [name for name in BESIDE if (directory / name / CONFIG).exists()]
        what = " or ".join(str(directory / name) for name in found)
        hint = f"name the folder of one encoder, {what}" if what else "it holds no encoder"
        raise UnsupportedModel(f"{where}: {directory} is a pipeline of diffusers: {hint}")


def is_local(name: str) -> bool:
    """Return whether a model id is a path (`/`, `./`, `~/`, `${NAME}`), not a hub id."""
    return name.startswith(("/", ".", "~", "$"))


def _find_in_hub(name: str, *, revision: str | None, where: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise MissingPackage("huggingface_hub", extra="clip", purpose=f"{where}: {name}") from error
    unreachable: tuple[type[Exception], ...] = (HfHubHTTPError, OSError)
    try:  # huggingface_hub speaks through httpx since 1.0, through requests (OSErrors) before
        from httpx import HTTPError
    except ImportError:
        pass
    else:
        unreachable = (*unreachable, HTTPError)
    mend = f"run: hf download {name} --revision {revision}, or set model.id to a local directory"
    try:
        fetch = functools.partial(
            snapshot_download, name, revision=revision, allow_patterns=[*FILES]
        )
        found = Path(fetch(ignore_patterns=["open_clip*"]))
        if not (found / CONFIG).exists():  # a model of open_clip alone
            found = Path(fetch())
    except LocalEntryNotFoundError as error:
        raise NotMeasured(
            f"{where}: {name} is not here and the hub is not reached: {mend}"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"{where}: {name!r} is no id of the hub: {error}") from error
    except unreachable as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotMeasured(
            f"{where}: {name} cannot be had from the hub ({reason}): {mend}"
        ) from error
    return found


def recipe_content(
    recipe: str | Mapping[str, Any] | tuple[Any, ...],
    *,
    where: Where,
    environ: Mapping[str, str] = os.environ,
) -> Any:
    """Return what a recipe's digest is made of: its name, its file's text, or the inline value."""
    if not isinstance(recipe, str):
        return recipe
    path = find_recipe_file(recipe, where=where.of("recipe"), environ=environ)
    return recipe if path is None else read_recipe_text(path, where=where.of("recipe"))


def find_recipe_file(recipe: str, *, where: str, environ: Mapping[str, str]) -> Path | None:
    """Return the YAML file that a recipe's text leads to, None for one that is a name.

    Raises as `expand_path`, and SuiteError for a variable in a name.
    """
    if "$" not in recipe and not recipe.endswith(RECIPE_SUFFIXES):
        return None
    path = expand_path(recipe, where=where, environ=environ)
    if not path.name.endswith(RECIPE_SUFFIXES):
        raise SuiteError(f"{where}: {recipe} leads to no YAML file: ${{NAME}} is for paths alone")
    return path


def read_recipe_text(path: Path, *, where: str) -> str:
    """Return the text of a recipe file; raises ModelError where it cannot be one."""
    try:
        return read_regular(path, max_bytes=bounds.RECIPE_BYTES).decode("utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"{where}: cannot read the recipe {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: cannot read the recipe {path}: {error}") from error
