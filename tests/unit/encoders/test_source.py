"""Where a model's files are, and what stands there instead of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.encoders.source import recipe_content, resolve_checkpoint, stays_inside
from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured, SuiteError
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where

WHERE = Where(file="suites/tiny.quantgate.yaml", line=7)


def test_reference_is_in_the_package() -> None:
    source = resolve_checkpoint(ModelSpec(where=WHERE, source="reference"), environ={})
    assert (source.directory / "model.safetensors").is_file()
    assert source.description == "the reference model"


def test_directory_from_the_environment(
    tiny_clip: Path, model_spec: Callable[..., ModelSpec]
) -> None:
    named = resolve_checkpoint(
        model_spec("${QUANTGATE_CLIP}"), environ={"QUANTGATE_CLIP": str(tiny_clip)}
    )
    assert named.directory == tiny_clip
    assert named.digest == resolve_checkpoint(model_spec(), environ={}).digest


def test_unset_variable_is_not_measured(model_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(NotMeasured, match=r"environment variable QUANTGATE_CLIP is not set"):
        resolve_checkpoint(model_spec("${QUANTGATE_CLIP}"), environ={})


def test_stray_dollar_is_an_error(model_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(SuiteError, match=r"'\$' must start"):
        resolve_checkpoint(model_spec("$MY_CLIP"), environ={"QUANTGATE_CLIP": "/x"})


def test_missing_directory_is_not_measured(
    tmp_path: Path, model_spec: Callable[..., ModelSpec]
) -> None:
    with pytest.raises(NotMeasured) as caught:
        resolve_checkpoint(model_spec(tmp_path / "gone"), environ={})
    assert str(caught.value) == (
        f"suites/tiny.quantgate.yaml:7: {tmp_path}/gone is no directory: "
        f"set model.id to a checkpoint"
    )


def test_pickled_weights_are_refused(
    tiny_clip: Path, tmp_path: Path, model_spec: Callable[..., ModelSpec]
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_clip, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors.*pytorch_model\.bin is a pickle"):
        resolve_checkpoint(model_spec(folder), environ={})


def test_empty_directory_is_refused(tmp_path: Path, model_spec: Callable[..., ModelSpec]) -> None:
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors file$"):
        resolve_checkpoint(model_spec(tmp_path), environ={})


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_digest_follows_every_file_that_can_change_an_embedding(
    name: str, tiny_clip: Path, tmp_path: Path, model_spec: Callable[..., ModelSpec]
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_clip, folder)
    before = resolve_checkpoint(model_spec(folder), environ={}).digest
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert resolve_checkpoint(model_spec(folder), environ={}).digest != before


def _offline(*_args: Any, **_options: Any) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("cannot find the requested files in the disk cache")


def _broken(*_args: Any, **_options: Any) -> str:
    raise OSError("401 Client Error\nmore")


@pytest.mark.parametrize(
    ("download", "reason"),
    [
        (_offline, "is not here and the hub is not reached"),
        (_broken, r"cannot be had from the hub \(401 Client Error\)"),
    ],
)
def test_hub_that_cannot_be_reached_is_not_measured(
    download: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    spec = ModelSpec(where=WHERE, source="transformers", id="openai/clip", revision="abc123")
    with pytest.raises(NotMeasured, match=reason) as caught:
        resolve_checkpoint(spec, environ={})
    assert "run: hf download openai/clip --revision abc123" in str(caught.value)


def test_hub_files_are_used_at_the_pinned_revision(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(tiny_clip)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    spec = ModelSpec(where=WHERE, source="transformers", id="openai/clip", revision="abc123")
    assert resolve_checkpoint(spec, environ={}).directory == tiny_clip
    assert (asked["name"], asked["revision"]) == ("openai/clip", "abc123")
    assert not any(pattern.endswith(".bin") for pattern in asked["allow_patterns"])


def test_a_model_of_open_clip_alone_is_fetched_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where both are there, the files of open_clip are left where they are."""

    def download(_name: str, **options: Any) -> str:
        if "ignore_patterns" not in options:
            (tmp_path / "open_clip_config.json").write_text("{}")
            (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    spec = ModelSpec(where=WHERE, source="transformers", id="laion/clip", revision="abc123")

    found = resolve_checkpoint(spec, environ={})

    assert set(found.files) == {"open_clip_config.json", "open_clip_model.safetensors"}


def test_links_of_the_hubs_cache_are_followed_in_folders_of_a_snapshot_too(
    tmp_path: Path,
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc123"
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "1_Pooling").mkdir(parents=True)
    (snapshot / "1_Pooling" / "config.json").symlink_to(blobs / "1")
    (snapshot / "1_Pooling" / "other.json").symlink_to(tmp_path / "secret")

    for name, inside in (("config.json", True), ("other.json", False)):
        path = snapshot / "1_Pooling" / name
        assert stays_inside(path, directory=path.parent) is inside


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    spec = ModelSpec(where=WHERE, source="transformers", id="openai/clip", revision="abc123")
    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[clip\]'"):
        resolve_checkpoint(spec, environ={})


def test_recipe_content_is_what_the_recipe_says(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("quant_cfg: []\n", encoding="utf-8")
    inline = {"quant_cfg": {"default": {"enable": False}}}
    assert recipe_content("fp8", where=WHERE, environ={}) == "fp8"
    assert recipe_content(str(path), where=WHERE, environ={}) == "quant_cfg: []\n"
    assert recipe_content(inline, where=WHERE, environ={}) == inline
    with pytest.raises(ModelError, match=r"cannot read the recipe .*gone\.yaml"):
        recipe_content(str(tmp_path / "gone.yaml"), where=WHERE, environ={})
