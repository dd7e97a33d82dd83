"""Small files that unfold: each is refused with one line, in little time and memory."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate import bounds
from pytest_quantgate.encoders.encoder import group_images
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import DataError, ModelError
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.reader import Source
from pytest_quantgate.tasks.webdataset import load_webdataset

WHERE = Where(file="suites/x.quantgate.yaml", line=3)


MEASURED = """
import resource, sys
from pytest_quantgate.commands.cli import main
status = main(["diff", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def diff(*arguments: str, cwd: Path) -> str:
    """Return what `quantgate diff` says of trouble, in one line, and in little memory."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
    line, peak_kilobytes = done.stderr.splitlines()
    assert int(peak_kilobytes) < (9 << 30) // 2 >> 10
    assert time.monotonic() - started < 100  # on a busy machine; alone it takes a tenth
    return line


def put_state(folder: Path, data: bytes) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "modelopt_state.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("s/data.pkl", data)


DEEP = b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"Ns."  # a key that is hashed to the bottom
WIDE = b"\x80\x02" + b")" + b"q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"."  # 2^60 ways through
MANY = b"\x80\x02](" + b"}" * (bounds.STATE_BYTES - 100) + b"e."
LONG = b"\x80\x02]" * (bounds.STATE_BYTES // 3 + 10)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DEEP, "ended by SIG"),
        (WIDE, "holds no ModelOpt state"),
        (MANY, "holds no ModelOpt state"),
        (LONG, f"of state, at most {bounds.STATE_BYTES} are read"),
    ],
    ids=["deep", "wide", "many", "long"],
)
def test_a_pickle_that_unfolds_ends_a_process_of_its_own(
    tmp_path: Path, data: bytes, words: str
) -> None:
    put_state(tmp_path / "a", data)
    put_state(tmp_path / "b", pickle.dumps({"modelopt_state_dict": []}))

    assert words in diff("a", "b", cwd=tmp_path)


def test_a_graph_of_empty_nodes_ends_a_process_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    nodes = b"\x0a\x00" * 40_000_000  # each is an object of its own
    size = len(nodes)
    varint = bytearray()
    while size:
        varint.append((size & 127) | (128 if size > 127 else 0))
        size >>= 7
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(b"\x08\x08\x3a" + bytes(varint) + nodes)

    line = diff("a.onnx", "b.onnx", cwd=tmp_path)

    assert any(
        words in line for words in ("GiB of memory", "nodes or values", "Arena alloc failed")
    )


def git(*arguments: str, cwd: Path, stdin: bytes = b"") -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=cwd, input=stdin, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def commit_tree(tree: str, *, cwd: Path) -> str:
    return git("commit-tree", tree, "-m", "x", cwd=cwd)


def plant_tree_bomb(cwd: Path) -> str:
    """Ten folders in ten folders, ten times over: ten objects, ten thousand million files."""
    blob = git("hash-object", "-w", "--stdin", cwd=cwd, stdin=b"x")
    entry = f"100644 blob {blob}"
    for _ in range(10):
        lines = "".join(f"{entry}\t{index}.json\n" for index in range(10))
        entry = f"040000 tree {git('mktree', cwd=cwd, stdin=lines.encode())}"
    return git("mktree", cwd=cwd, stdin=f"{entry}\tbaselines\n".encode())


def plant_many_bytes(cwd: Path) -> str:
    """One blob of 8 MiB that compresses to nothing, under a hundred names."""
    data = bytes(bounds.GIT_FILE_BYTES)
    blob = git("hash-object", "-w", "--stdin", cwd=cwd, stdin=data)
    lines = "".join(f"100644 blob {blob}\t{index}.json\n" for index in range(100))
    tree = git("mktree", cwd=cwd, stdin=lines.encode())
    return git("mktree", cwd=cwd, stdin=f"040000 tree {tree}\tbaselines\n".encode())


def plant_long_name(cwd: Path) -> str:
    blob = git("hash-object", "-w", "--stdin", cwd=cwd, stdin=b"{}")
    line = f"100644 blob {blob}\t{'n' * 300}.json\n"
    tree = git("mktree", cwd=cwd, stdin=line.encode())
    return git("mktree", cwd=cwd, stdin=f"040000 tree {tree}\tbaselines\n".encode())


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_tree_bomb, "more than 16 MiB of names"),
        (plant_many_bytes, "more than 20000 files or 256 MiB are no baselines and no suites"),
        (plant_long_name, "cannot be unpacked: File name too long"),
    ],
)
def test_a_git_bomb_is_not_unpacked(
    tmp_path: Path, plant: Callable[[Path], str], words: str
) -> None:
    git("init", "-q", cwd=tmp_path)
    good = git("mktree", cwd=tmp_path)
    before, after = (commit_tree(tree, cwd=tmp_path) for tree in (good, plant(tmp_path)))

    assert words in diff(f"{before}..{after}", cwd=tmp_path)


# -- images and texts ------------------------------------------------------------------------------


class Picture:
    """As large as it says; counts how many are held at once."""

    alive = 0

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)


def test_large_images_are_not_held_together() -> None:
    decoded: list[int] = []

    def decode() -> Iterator[Picture]:
        for index in range(8):
            decoded.append(index)
            yield Picture(9400, 9400)

    groups = group_images(decode(), edge=224)
    sizes = []
    for group in groups:
        sizes.append(len(group))
        assert len(decoded) - sum(sizes) <= 1  # the next one shows that this group is full
    assert sizes == [1] * 8


@pytest.mark.parametrize(
    ("size", "edge", "expected"),
    [
        ((500, 375), 224, [64]),
        ((6000, 4000), 224, [2] * 32),
        ((32, 32), 224, [64]),
        ((2, 100), 1024, [1] * 64),  # 1024 x 51200 when it is resized
    ],
)
def test_images_are_grouped_by_what_they_become(
    size: tuple[int, int], edge: int, expected: list[int]
) -> None:
    pictures = [Picture(*size) for _ in range(64)]

    groups = list(group_images(iter(pictures), edge=edge))

    assert [len(group) for group in groups] == expected
    assert [picture for group in groups for picture in group] == pictures


@pytest.mark.parametrize("size", [(1, 51), (1_000_000, 1), (0, 5)])
def test_an_image_that_is_resized_to_gigabytes_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="one side may be at most 50 times the other"):
        list(group_images([Picture(*size)], edge=224))


def test_images_in_groups_are_prepared_as_they_are_together(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import torch

    model = load_fp16(ModelSpec(where=WHERE, source="transformers", id=str(tiny_clip)), environ={})
    noise = np.random.default_rng(0)
    images = [noise.integers(0, 256, (40 + 7 * index, 60, 3), dtype=np.uint8) for index in range(6)]
    together = model.preprocess(images)

    monkeypatch.setattr(bounds, "PIXELS", 5000)

    assert torch.equal(model.preprocess(iter(images)), together)


def write_texts(root: Path, *, names: str, templates: str) -> None:
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text(names)
    (root / "zeroshot_classification_templates.txt").write_text(templates)
    with tarfile.open(root / "test" / "0.tar", "w") as archive:
        for name in ("a.png", "a.cls"):
            info = tarfile.TarInfo(name)
            archive.addfile(info)


def load(root: Path) -> None:
    load_webdataset(Source.of_folder(root, split="test"), Draw())


def test_prompts_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    names = "".join(f"{index:05}\n" for index in range(100_000))
    write_texts(tmp_path, names=names, templates="{c}" * 1000)
    with tarfile.open(tmp_path / "test" / "0.tar", "w") as archive:
        for name, content in (("a.png", b"x"), ("a.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    with pytest.raises(DataError, match="100000 class names in 1 templates are 800000000 char"):
        load(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_long_header_of_an_archive_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """A hole in the file, as large as its header says."""
    write_texts(tmp_path, names="a\nb\n", templates="{c}")
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 3 << 30
    with (tmp_path / "test" / "0.tar").open("wb") as out:
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.truncate(4 << 30)

    with pytest.raises(DataError, match=r"0\.tar is damaged: a header or text of \d+ bytes"):
        load(tmp_path)


# -- checkpoints -----------------------------------------------------------------------------------


def test_a_header_that_unfolds_is_not_read(tiny_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    length = bounds.HEADER_BYTES + 1
    with (folder / "model.safetensors").open("wb") as out:
        out.write(length.to_bytes(8, "little") + b"{")
        out.truncate(length + 100)

    with pytest.raises(ModelError, match=r"its header has \d+ bytes, at most \d+ are read"):
        load_fp16(ModelSpec(where=WHERE, source="transformers", id=str(folder)), environ={})
    assert "its header says" in diff("clip", "clip", cwd=tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
def test_json_of_many_values_is_not_read(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    found = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**found, "more": [[]] * 500_000}))
    monkeypatch.setattr(bounds, "JSON_VALUES", 400_000)

    with pytest.raises(ModelError, match=r"it holds up to \d+ values, at most 400000 are read"):
        load_fp16(ModelSpec(where=WHERE, source="transformers", id=str(folder)), environ={})


def test_all_bounds_are_numbers() -> None:
    found: dict[str, Any] = {name: getattr(bounds, name) for name in dir(bounds) if name.isupper()}
    assert len(found) > 25
    assert all(isinstance(value, (int, dict)) for value in found.values())


# -- what names code or files elsewhere ------------------------------------------------------------


def test_an_operator_of_somebody_elses_library_is_refused(tmp_path: Path) -> None:
    """No library of operators is ever loaded, whatever the graph asks for."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pytest_quantgate.runtimes.onnx_graph import read_graph
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Evil", ["pixel_values"], ["y"], domain="com.evil")
    graph = onnx.helper.make_graph(
        [node], "tower", [value("pixel_values", 1, ["n", 4])], [value("y", 1, ["n", 4])]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.evil", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, functions=[])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    assert "com.evil" in read_graph(path).domains
    with pytest.raises(ModelError, match="ONNX Runtime does not take it") as caught:
        OnnxRuntimeModel(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sparse_member_of_an_archive_is_refused(tmp_path: Path) -> None:
    """A few bytes that say that they are gigabytes."""
    write_texts(tmp_path, names="a\nb\n", templates="{c}")
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(1 << 40),
    }
    info.size = 1
    with tarfile.open(tmp_path / "test" / "0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x"))

    with pytest.raises(DataError, match="is sparse or larger than"):
        load(tmp_path)
