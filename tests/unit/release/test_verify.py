"""Files to deploy against a manifest: what was changed, lost, added or renamed is found."""

from __future__ import annotations

import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.release import verify
from pytest_quantgate.release.manifest_file import Manifest
from pytest_quantgate.release.verify import Verification, verify_files
from tests.manifests import write_files, write_manifest

FILES = {
    "checkpoint/model-00001-of-00002.safetensors": b"first half",
    "checkpoint/model-00002-of-00002.safetensors": b"second half",
    "checkpoint/config.json": b'{"a": 1}',
    "model/model.safetensors": b"fp16",
    "model/preprocessor_config.json": b'{"size": 224}',
    "onnx-quantized-vision-float16/model.onnx": b"vision",
    "onnx-quantized-text-float16/model.onnx": b"text",
    "suite/suites/clip.quantgate.yaml": b"quantgate: 1",
}
SHARDS = [name for name in FILES if name.startswith("checkpoint/")]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_manifest(tmp_path / "manifest.json", FILES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoint and the preprocessor's settings, as somebody deploys them."""
    names = (*SHARDS, "model/preprocessor_config.json")
    return write_files(tmp_path / "out", {Path(name).name: FILES[name] for name in names})


def describe(found: Verification) -> list[str]:
    return [
        f"{each.what} {Path(each.path).name} {each.subject}".replace("  ", " ").strip()
        for each in found.differences
    ]


def test_what_was_judged_is_verified(folder: Path, manifest: Manifest) -> None:
    found = verify_files([folder], manifest=manifest)

    assert describe(found) == []
    assert found.unread == found.others == ()
    assert [match.subject for match in found.matches] == [
        "clip/checkpoint/config.json",
        "clip/checkpoint/model-00001-of-00002.safetensors",
        "clip/checkpoint/model-00002-of-00002.safetensors",
        "clip/model/preprocessor_config.json",
    ]


def change(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(b"other")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (change("model-00001-of-00002.safetensors"),
         ["differs model-00001-of-00002.safetensors "
          "clip/checkpoint/model-00001-of-00002.safetensors"]),
        (change("config.json"), ["differs config.json clip/checkpoint/config.json"]),
        (change("preprocessor_config.json"),
         ["differs preprocessor_config.json clip/model/preprocessor_config.json"]),
        (change("model.safetensors"),
         ["differs model.safetensors clip/model/model.safetensors"]),
        (change("adapter.safetensors"), ["extra adapter.safetensors"]),
        (change("weights.BIN"), ["extra weights.BIN"]),
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
         ["missing clip/checkpoint/model-00002-of-00002.safetensors"]),
        (lambda f: (f / "config.json").unlink(), ["missing clip/checkpoint/config.json"]),
        (lambda f: (f / "model-00001-of-00002.safetensors").rename(f / "a.safetensors"), []),
        (lambda f: (f / "preprocessor_config.json").unlink(), []),
        (change("README.md"), []),
    ],
)  # fmt: skip
def test_each_way_to_deploy_something_else_is_named(
    folder: Path, manifest: Manifest, damage: Callable[[Path], object], expected: list[str]
) -> None:
    damage(folder)

    assert describe(verify_files([folder], manifest=manifest)) == expected


def test_a_large_file_may_be_weights_whatever_it_is_called(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LARGE_BYTES", 100)
    (folder / "blob").write_bytes(b"x" * 100)
    (folder / "notes").write_bytes(b"x" * 99)

    found = verify_files([folder], manifest=manifest)

    assert describe(found) == ["extra blob"]
    assert found.others == (str(folder / "notes"),)


def test_a_file_by_itself_misses_nothing(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "vision.plan.onnx"
    path.write_bytes(b"vision")
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.write_bytes(b"first half")

    assert describe(verify_files([path, shard], manifest=manifest)) == []


def test_a_folder_with_nothing_of_it_is_not_verified(tmp_path: Path, manifest: Manifest) -> None:
    other = write_files(tmp_path / "other", {"README.md": b"hello"})

    assert describe(verify_files([other], manifest=manifest)) == ["nothing"]


def test_parts_in_two_folders_are_put_together(tmp_path: Path, manifest: Manifest) -> None:
    first, *rest = SHARDS
    one = write_files(tmp_path / "one", {Path(first).name: FILES[first]})
    two = write_files(tmp_path / "two", {Path(name).name: FILES[name] for name in rest})

    assert describe(verify_files([one, two], manifest=manifest)) == []


def test_links_are_followed_and_no_circle_is_walked(
    folder: Path, tmp_path: Path, manifest: Manifest
) -> None:
    """Loaders follow them, so weights behind one are deployed."""
    hidden = write_files(tmp_path / "hidden", {"adapter.safetensors": b"x"})
    (folder / "link").symlink_to(hidden)
    (folder / "circle").symlink_to(folder)
    blob = tmp_path / "blob"
    blob.write_bytes(FILES["checkpoint/config.json"])
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(blob)

    assert describe(verify_files([folder], manifest=manifest)) == ["extra adapter.safetensors"]


def test_what_cannot_be_read_is_told_and_the_rest_is_looked_at(
    folder: Path, manifest: Manifest
) -> None:
    os.mkfifo(folder / "pipe.bin")
    (folder / "dangling.safetensors").symlink_to("nowhere")
    (folder / "adapter.safetensors").write_bytes(b"x")

    found = verify_files([folder], manifest=manifest)

    assert describe(found) == ["extra adapter.safetensors"]
    assert found.unread == (
        f"{folder}/dangling.safetensors: cannot be read: No such file or directory",
        f"{folder}/pipe.bin: cannot be read: it is no regular file",
    )


def test_the_manifest_in_the_folder_is_no_file_of_it(folder: Path) -> None:
    manifest = write_manifest(folder / "config.json.bin", FILES)

    found = verify_files([folder], manifest=manifest)

    assert describe(found) == []
    assert found.others == ()


def test_ignored_files_are_named(folder: Path, manifest: Manifest) -> None:
    write_files(folder, {"cache/a.bin": b"x", "adapter.safetensors": b"x"})

    found = verify_files([folder], manifest=manifest, ignored=["cache/*", "adapter*"])

    assert describe(found) == []
    assert found.ignored == (str(folder / "adapter.safetensors"), str(folder / "cache/a.bin"))


def test_a_path_that_is_not_there_and_too_many_files_are_refused(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtifactError, match="there is nothing: name the files"):
        verify_files([folder / "none"], manifest=manifest)
    monkeypatch.setattr(verify, "MOST_FILES", 2)
    with pytest.raises(ArtifactError, match="more than 2 files"):
        verify_files([folder], manifest=manifest)


#: Contents by name, of which a deployment takes, changes and adds some.
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=4)
CONTENTS = st.dictionaries(
    st.tuples(st.sampled_from(["checkpoint", "model", "onnx"]), NAMES).map(
        lambda pair: f"{pair[0]}/{pair[1]}.safetensors"
    ),
    st.binary(min_size=1, max_size=8),
    min_size=1,
    max_size=6,
)


@given(judged=CONTENTS, deployed=CONTENTS)
def test_only_what_was_judged_is_ever_verified(
    tmp_path_factory: pytest.TempPathFactory, judged: dict[str, bytes], deployed: dict[str, bytes]
) -> None:
    """Whatever is deployed: each file of it was judged then, and each artifact is whole."""
    root = tmp_path_factory.mktemp("deployed")
    manifest = write_manifest(root / "m.json", judged)
    found = verify_files([write_files(root / "out", deployed)], manifest=manifest)

    known = set(judged.values())
    here = set(deployed.values())
    begun = {name.partition("/")[0] for name, data in judged.items() if data in here}
    whole = all(data in here for name, data in judged.items() if name.partition("/")[0] in begun)
    assert (not found.differences) == (here <= known and whole)
