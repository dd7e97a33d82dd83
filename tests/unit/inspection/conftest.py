"""Files of other tools, and copies of them that are spoiled.

What other tools wrote is not part of the project: QUANTGATE_TEST_DATA names the folder with
`handed-over/`; by default it is looked for beside the checkout, in `shared/data`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.inspection.quantized_files import (
    INT8_CONFIG,
    Edit,
    make_base,
    make_int8,
    read_safetensors,
    write_safetensors,
)

REPOSITORY = Path(__file__).parents[3]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def handed_over() -> Path:
    if not (DATA / "handed-over").is_dir():
        pytest.skip(f"no files of other tools in {DATA}: set QUANTGATE_TEST_DATA")
    return DATA / "handed-over"


@pytest.fixture(scope="session")
def base_folder() -> Path:
    if not (DATA / "clip-cifar10-tiny").is_dir():
        pytest.skip(f"no clip-cifar10-tiny in {DATA}: set QUANTGATE_TEST_DATA")
    return DATA / "clip-cifar10-tiny"


@pytest.fixture
def copy_of(handed_over: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a folder of the handed-over files, with its tensors and its JSON files edited."""

    def copy(name: str, edit: Edit | None = None, **files: Callable[[Any], None]) -> Path:
        folder = tmp_path / name
        shutil.copytree(handed_over / name, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        if edit is not None:
            tensors, metadata = read_safetensors(folder / "model.safetensors")
            edit(tensors)
            write_safetensors(folder / "model.safetensors", tensors, metadata=metadata)
        for stem, change in files.items():
            path = folder / f"{stem}.json"
            data = json.loads(path.read_text())
            change(data)
            path.write_text(json.dumps(data))
        return folder

    return copy


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint in INT8, as compressed-tensors has it, with an edit."""

    def make(edit: Edit | None = None, *, config: Any = INT8_CONFIG, name: str = "int8") -> Path:
        tensors = make_int8(make_base())
        if edit is not None:
            edit(tensors)
        folder = tmp_path / name
        write_safetensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return the folder of the model that `make_checkpoint` quantizes."""
    folder = tmp_path / "base"
    write_safetensors(folder / "model.safetensors", make_base())
    (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"]}))
    return folder
