"""Where a model's files are and their digest: no torch, so that a warm cache stays quick."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured
from pytest_quantgate.suite import ModelSpec, Where, expand_environment

#: What a Hugging Face checkpoint directory can hold that changes an embedding.
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class CheckpointSource:
    """A checkpoint directory, the SHA-256 over its files, and its name for people."""

    directory: Path
    digest: str
    description: str


def resolve_checkpoint(spec: ModelSpec, *, environ: Mapping[str, str]) -> CheckpointSource:
    """Return where the model of a suite is.

    Raises NotMeasured where the directory or the hub's files are not there, with the line that
    mends it, and ModelError where the directory holds no safetensors.
    """
    directory, description = find_directory(spec, environ=environ)
    files = sorted({path for pattern in FILES for path in directory.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        hint = (
            f"; {pickles[0]} is a pickle, which is never loaded: save the model again with "
            f"safe_serialization=True"
            if pickles
            else ""
        )
        raise ModelError(f"{spec.where.of('id')}: {directory} holds no *.safetensors file{hint}")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            part = hashlib.file_digest(stream, "sha256").digest()
        digest.update(path.name.encode() + b"\0" + part)
    return CheckpointSource(directory=directory, digest=digest.hexdigest(), description=description)


def find_directory(spec: ModelSpec, *, environ: Mapping[str, str]) -> tuple[Path, str]:
    """Return the checkpoint directory of a model and its name for people."""
    if spec.source == "reference":
        from pytest_quantgate.reference import weights_dir

        return weights_dir(), "the reference model"
    assert spec.id is not None  # the schema requires it
    where = spec.where.of("id")
    name = expand_environment(spec.id, where=where, environ=environ)
    if is_local(spec.id):
        directory = Path(name).expanduser()
        if not directory.is_dir():
            raise NotMeasured(f"{where}: {name} is no directory: set model.id to a CLIP checkpoint")
        return directory, directory.name
    return _find_in_hub(name, revision=spec.revision, where=where), name


def is_local(name: str) -> bool:
    """Return whether a model id is a path (`/`, `./`, `~/`, `${NAME}`), not a hub id."""
    return name.startswith(("/", ".", "~", "$"))


def _find_in_hub(name: str, *, revision: str | None, where: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
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
        found = snapshot_download(
            name, revision=revision, allow_patterns=[*FILES], ignore_patterns=["open_clip*"]
        )
    except LocalEntryNotFoundError as error:
        raise NotMeasured(
            f"{where}: {name} is not here and the hub is not reached: {mend}"
        ) from error
    except unreachable as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotMeasured(
            f"{where}: {name} cannot be had from the hub ({reason}): {mend}"
        ) from error
    return Path(found)


def recipe_content(
    recipe: str | Mapping[str, Any] | tuple[Any, ...],
    *,
    where: Where,
    environ: Mapping[str, str] = os.environ,
) -> Any:
    """Return what a recipe's digest is made of: its name, its file's text, or the inline value."""
    if not isinstance(recipe, str):
        return recipe
    text = expand_environment(recipe, where=where.of("recipe"), environ=environ)
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{where.of('recipe')}: cannot read the recipe {text}: {error}"
            ) from error
    return text
