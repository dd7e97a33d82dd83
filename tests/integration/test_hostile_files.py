"""Nothing that is read runs code or leads out of its folder: a canary is planted in every place."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import (
    BaselineError,
    DataError,
    ModelError,
    NotMeasured,
    QuantGateError,
    SuiteError,
)
from pytest_quantgate.quantization.recipes import resolve_recipe
from pytest_quantgate.store.baselines import Store, accept_obtained
from pytest_quantgate.store.cache import Cache, find_damage, seal
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import DatasetSpec, ModelSpec, QuantizeSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.reader import Source
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.webdataset import load_webdataset
from tests.hostile import Bomb, update

WHERE = Where(file="suites/x.quantgate.yaml", line=3)
Plant = Callable[[Path], None]


@pytest.fixture
def bomb(canary: Path) -> bytes:
    """A pickle that creates the canary; that it does is tried first."""
    data = pickle.dumps(Bomb(canary))
    pickle.loads(data)
    assert canary.exists()
    canary.unlink()
    return data


@pytest.fixture
def code(canary: Path) -> str:
    """A module that creates the canary when it is imported."""
    return f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Evil: pass\n"


# -- the FP16 model --------------------------------------------------------------------------------


@pytest.fixture
def clip(tiny_clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_clip, tmp_path / "clip"))


def load(folder: Path) -> None:
    load_fp16(ModelSpec(where=WHERE, source="transformers", id=str(folder)), environ={})


def test_code_that_comes_with_a_model_is_not_run(clip: Path, code: str, canary: Path) -> None:
    """sentence-transformers' modules, and generate's own hook; `auto_map` is refused."""
    for name in ("evil.py", "custom_st.py", "custom_generate/generate.py"):
        (clip / name).parent.mkdir(exist_ok=True)
        (clip / name).write_text(code)
    update(clip / "tokenizer_config.json", tokenizer_class="Evil")
    (clip / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]')
    (clip / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")

    load(clip)

    assert not canary.exists()


def test_pickles_beside_the_weights_are_not_read(clip: Path, bomb: bytes, canary: Path) -> None:
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "modelopt_state.pth",
        "training_args.bin",
        "tokenizer.pkl",
        "vocab.pkl",
    ):
        (clip / name).write_bytes(bomb)

    load(clip)

    assert not canary.exists()


def test_a_kernel_of_the_hub_in_the_config_is_not_fetched(clip: Path) -> None:
    config = json.loads((clip / "config.json").read_text("utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["_attn_implementation"] = part["attn_implementation"] = "evil/kernel"
    (clip / "config.json").write_text(json.dumps(config))

    spec = ModelSpec(where=WHERE, source="transformers", id=str(clip))
    module: Any = load_fp16(spec, environ={}).module

    assert module.config.vision_config._attn_implementation == "sdpa"
    assert module.config.text_config._attn_implementation == "sdpa"


def rename_weights(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("../outside.safetensors", "names the shard '../outside.safetensors': only *.safetensors"),
        ("/tmp/outside.safetensors", "names the shard '/tmp/outside.safetensors': only"),
        ("..\\outside.safetensors", "names the shard '..\\\\outside.safetensors': only"),
        ("n" * 250 + ".safetensors", "nnn': only *.safetensors files beside it are read"),
        ("bomb.bin", "names the shard 'bomb.bin': only *.safetensors files beside it are read"),
        ("gone.safetensors", "names the shard 'gone.safetensors', which is missing"),
    ],
)
def test_an_index_cannot_lead_to_other_files(
    clip: Path, bomb: bytes, canary: Path, shard: str, words: str
) -> None:
    rename_weights(clip, "other.safetensors")
    (clip / "bomb.bin").write_bytes(bomb)
    shutil.copy(clip / "other.safetensors", clip.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"logit_scale": shard}}
    (clip / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelError) as caught:
        load(clip)

    assert words in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (
            lambda f: update(f / "adapter_config.json", base_model_name_or_path="evil/base"),
            "holds an adapter (adapter_config.json), which names another base model",
        ),
        (
            lambda f: update(f / "config.json", quantization_config={"quant_method": "evil"}),
            "config.json: has a quantization_config: the baseline must be the model before",
        ),
        (
            lambda f: update(f / "config.json", projection_dim=10**12),
            "config.json: projection_dim is 1000000000000: expected 1 to 65536",
        ),
        (
            lambda f: update(f / "config.json", vision_config={"num_hidden_layers": True}),
            "config.json: vision_config.num_hidden_layers is True: expected 1 to 1000",
        ),
        (
            lambda f: update(f / "preprocessor_config.json", crop_size={"height": 10**6}),
            "preprocessor_config.json: crop_size.height is 1000000: expected 1 to 1024",
        ),
        (
            lambda f: (f / "config.json").write_text("[" * 100_000),
            "config.json is missing or unreadable: it is nested too deeply",
        ),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "clip", "a": 1e999}'),
            "config.json is missing or unreadable: 1e999 is out of range",
        ),
        (lambda f: (f / "config.json").write_text("[]"), "unreadable: expected a mapping"),
        (lambda f: os.mkfifo(f / "more.json"), "more.json is no regular file: remove it"),
        (lambda f: (f / "more.txt").mkdir(), "more.txt is no regular file: remove it"),
    ],
)
def test_a_hostile_model_folder_is_refused_at_once(clip: Path, plant: Plant, words: str) -> None:
    plant(clip)

    with pytest.raises(ModelError) as caught:
        load(clip)

    assert words in str(caught.value)
    assert str(caught.value).startswith("suites/x.quantgate.yaml:3: ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("~nobody-9/clip", "'~nobody-9/clip' is no path: Could not determine home directory"),
        ("/" + "a" * 300, "is no path: File name too long"),
    ],
)
def test_a_path_that_cannot_be_one_is_refused(name: str, words: str) -> None:
    with pytest.raises(SuiteError) as caught:
        load(Path(name))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500
    for kind in (lambda: recipe(f"{name}.yaml"), lambda: samples(name)):
        with pytest.raises(SuiteError, match="is no path"):
            kind()


def test_what_is_no_id_of_the_hub_is_refused() -> None:
    spec = ModelSpec(where=WHERE, source="transformers", id="a b/../c", revision="main")

    with pytest.raises(ModelError, match=r"x\.quantgate\.yaml:3: 'a b/\.\./c' is no id of the hub"):
        load_fp16(spec, environ={})


def test_torch_that_was_told_to_unpickle_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    with pytest.raises(ModelError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        load(clip)
    with pytest.raises(ModelError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        samples(str(tmp_path), dataset="imagenet1k")


# -- recipes ---------------------------------------------------------------------------------------


def recipe(text: Any) -> None:
    resolve_recipe(QuantizeSpec(where=WHERE, recipe=text), environ={})


RESUMING = {
    "quant_cfg": [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": [4, 3]}}],
    "algorithm": {"method": "max", "layerwise": {"enable": True, "checkpoint_dir": "/tmp/x"}},
}


def test_a_recipe_that_resumes_from_pickles_is_refused(tmp_path: Path) -> None:
    """ModelOpt unpickles what lies in `checkpoint_dir`, without `weights_only`."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(RESUMING))

    for form in (RESUMING, str(path)):
        with pytest.raises(ModelError, match="where ModelOpt unpickles files, which can run code"):
            recipe(form)


def test_a_recipe_that_exports_while_it_calibrates_is_refused() -> None:
    """Since ModelOpt 0.48 `export_dir` writes files, and leaves a model that does not run."""
    layerwise = {"enable": True, "export_dir": "/tmp/x"}
    form = {**RESUMING, "algorithm": {"method": "max", "layerwise": layerwise}}

    with pytest.raises(ModelError, match="exports to export_dir while it calibrates"):
        recipe(form)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quant_cfg: !!python/object/apply:os.mkdir [CANARY]", r"line 1: tags \(!...\) are not"),
        ("a: &a [1]\nb: &b [*a, *b]", "line 2: alias .b stands for what holds it"),
        ("[" * 60, "line 1: nested deeper than 50 levels"),
        ("a: [", "line 1: not YAML"),
        ("quant_cfg: 2001-99-99", "month must be in 1..12"),
        ("imports: {a: ./other}\nquantize: {}", "imports.a is './other', which is not part of"),
        ("imports: {a: ../../../etc/passwd}", "imports.a is '../../../etc/passwd', which is not"),
        ("# modelopt-schema: os.system\nquant_cfg: 1", "ModelOpt does not take this quant_cfg"),
        ("x" * (1 << 20) + "x", "it is larger than 1048576 bytes"),
    ],
    ids=lambda value: value[:20],
)
def test_a_hostile_recipe_file_is_refused(
    tmp_path: Path, canary: Path, text: str, words: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("CANARY", str(canary)))

    with pytest.raises(ModelError, match=words):
        recipe(str(path))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "own/recipe", "a\\b/c"])
def test_a_recipe_by_name_is_one_of_modelopts_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "recipe.yaml").write_text(json.dumps(RESUMING))

    with pytest.raises(ModelError, match="ModelOpt has no recipe"):
        recipe(name)


# -- suites ----------------------------------------------------------------------------------------

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8}
gates: {accuracy: {task: TASK, metric: acc1, max_drop: 1pp}}
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SUITE.replace("fp8", "!!python/object/apply:os.mkdir [CANARY]"), "4: tags (!...) are not"),
        (SUITE.replace("TASK", '"a\\n::error::b/classification"'), "holds U+000A: write it in one"),
        (SUITE.replace("TASK", '"a\\e[2J/classification"'), "5: the character U+001B is not"),
        (SUITE.replace("TASK", '"\u202e/classification"'), "holds U+202E: write it in one line"),
        (SUITE.replace("fp8", '"${A}\\t"'), "4: quantize.recipe: '${A}\\t' holds U+0009"),
    ],
    ids=["tag", "newline", "escape", "bidi", "tab"],
)
def test_a_hostile_suite_is_refused(tmp_path: Path, canary: Path, text: str, words: str) -> None:
    path = tmp_path / "x.quantgate.yaml"
    path.write_text(text.replace("CANARY", str(canary)), encoding="utf-8")

    with pytest.raises(SuiteError) as caught:
        load_suite(path)

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_a_message_about_a_long_value_is_short(tmp_path: Path) -> None:
    path = tmp_path / "x.quantgate.yaml"
    for text in (
        SUITE.replace("TASK", "x" * 100_000),
        SUITE.replace("acc1", "x" * 100_000).replace("TASK", "a/classification"),
        SUITE.replace("max_drop", "x" * 900),
    ):
        path.write_text(text)
        with pytest.raises(SuiteError) as caught:
            load_suite(path)
        assert len(str(caught.value)) < 1000 + len(str(path))


def test_a_pipe_in_the_place_of_a_suite_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.quantgate.yaml"
    os.mkfifo(path)

    with pytest.raises(SuiteError, match="cannot read the suite: it is no regular file"):
        load_suite(path)


# -- data sets -------------------------------------------------------------------------------------


def samples(
    root: str, *, dataset: str = "wds/photos", name: str = "photos/test", **more: str
) -> Any:
    datasets = {"photos": DatasetSpec(where=WHERE, dataset=dataset, root=root, **more)}  # type: ignore[arg-type]
    return load_samples(name, datasets=datasets, samples=None, environ={})


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (1, 2, 3)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Path]:
    """Write a WebDataset folder with one shard; a member is a name and bytes, or a TarInfo."""

    def make(*members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
        folder = tmp_path / "photos" / "test"
        folder.mkdir(parents=True)
        (folder / "nshards.txt").write_text("1\n")
        (folder.parent / "classnames.txt").write_text("cat\ndog\n")
        with tarfile.open(folder / "0.tar", "w") as archive:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    archive.addfile(member)
                    continue
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
        return folder.parent

    return make


GOOD = (("a.png", png()), ("a.cls", b"1"))


def test_members_that_other_readers_unpickle_are_passed_over(
    make_shard: Callable[..., Path], bomb: bytes, canary: Path
) -> None:
    suffixes = ("pkl", "pickle", "pyd", "pth", "pt", "npy", "npz", "json", "ten", "mp")
    root = make_shard(*GOOD, *((f"a.{suffix}", bomb) for suffix in suffixes))

    found = samples(str(root))

    assert (found.ids, found.labels) == (("0/a",), (1,))
    assert found.images[0].size == (6, 4)
    assert not canary.exists()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("../a.png", png()), ("../a.cls", b"1")], "member '../a.png' leads out of its folder"),
        ([("x/../../a.png", png())], "member 'x/../../a.png' leads out of its folder"),
        ([("/etc/a.png", png())], "member '/etc/a.png' leads out of its folder"),
        ([("x\\..\\a.png", png())], "member 'x\\\\..\\\\a.png' leads out of its folder"),
        ([("a\n::error::.png", png())], "member 'a\\n::error::.png' holds characters"),
        ([("a\udcff.png", png())], "member 'a\\udcff.png' holds characters that no name should"),
        ([link("a.png", "/etc/passwd"), ("a.cls", b"1")], "1 samples lack an image or a .cls"),
        ([link("a.cls", "/etc/passwd"), ("a.png", png())], "1 samples lack an image or a .cls"),
        ([*GOOD, ("a.cls", b"0")], "sample 'a' stands twice"),
        ([*GOOD, ("a.webp", png())], "sample 'a' stands twice"),
        ([GOOD[0], ("a.cls", b"__import__('os')")], "label \"__import__('os')\" is no class"),
        ([GOOD[0], ("a.cls", b"9" * 5000)], "is no class index"),
        ([GOOD[0], ("a.cls", b" " * (1 << 20) + b"1")], "'a.cls' is sparse or larger than 1048576"),
    ],
    ids=lambda value: ascii(value)[:30] if isinstance(value, str) else "",
)
def test_hostile_members_are_refused(
    make_shard: Callable[..., Path], members: list[Any], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        samples(str(make_shard(*members)))
    assert words in str(caught.value)


def test_names_that_tar_writes_for_a_folder_are_read(make_shard: Callable[..., Path]) -> None:
    """`tar cf 0.tar .` puts ./ before each name, and a folder may have a dot in its own."""
    deeper = (("v1.0/b.png", png()), ("v1.0/b.cls", b"0"))
    root = make_shard(("./a.png", png()), ("./a.cls", b"1"), *deeper)

    assert samples(str(root)).ids == ("0/a", "0/v1.0/b")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(x) (w) file\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    import struct
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(side: int) -> bytes:
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


@pytest.mark.parametrize(
    "content",
    [POSTSCRIPT, huge_png(50_000), huge_png(11_000), b"\x80\x04N.", png()[:40], b""],
    ids=["PostScript", "bomb", "half a bomb", "pickle", "cut", "empty"],
)
def test_an_image_that_is_none_is_refused(
    make_shard: Callable[..., Path], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def run(_process: Any, command: Any, **_options: Any) -> None:
        started.append(command)
        raise OSError("no program is started here")

    monkeypatch.setattr("subprocess.Popen.__init__", run)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")  # as if it were installed
    found = samples(str(make_shard(("a.png", content), ("a.cls", b"1"))))

    with pytest.raises(DataError, match=r"0\.tar: image '0/a' cannot be decoded"):
        _ = found.images[0]
    assert started == []


def test_a_number_of_shards_that_nobody_has_is_refused(make_shard: Callable[..., Path]) -> None:
    root = make_shard(*GOOD)
    for text, words in (
        ("1000000000", "1000000000 is no number of shards: expected 0 to 1000000"),
        ("-1", "-1 is no number of shards"),
        ("9" * 5000, "it is larger than 100 bytes"),
        ("900000", r"1\.tar is missing"),
    ):
        (root / "test" / "nshards.txt").write_text(text)
        with pytest.raises(DataError, match=words):
            samples(str(root))


@pytest.mark.parametrize("split", ["..", "../other", ".", "a\\b", "/etc"])
def test_a_split_is_the_name_of_a_folder(make_shard: Callable[..., Path], split: str) -> None:
    root = make_shard(*GOOD)

    with pytest.raises(DataError, match=r"is no name of a folder in"):
        load_webdataset(Source.of_folder(root, split=split), Draw())


def test_class_names_with_a_mark_of_the_byte_order_are_read(
    make_shard: Callable[..., Path],
) -> None:
    root = make_shard(*GOOD)
    (root / "classnames.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")

    assert samples(str(root)).class_names == ("cat", "dog")


def test_pickles_of_other_data_sets_are_not_loaded(
    tmp_path: Path, bomb: bytes, canary: Path
) -> None:
    """torchvision reads CIFAR's pickles, and those alone: it knows the digest of each."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(bomb)
    with pytest.raises(NotMeasured, match=r"cifar100: not found under .*corrupted"):
        samples(str(tmp_path), dataset="cifar100")
    assert not canary.exists()

    torch.save(Bomb(canary), tmp_path / "meta.bin")
    (tmp_path / "val").mkdir()
    with pytest.raises(QuantGateError, match="imagenet1k"):
        samples(str(tmp_path), dataset="imagenet1k")
    assert not canary.exists()


def test_a_folder_name_never_reaches_a_shell(tmp_path: Path, canary: Path) -> None:
    """clip-benchmark unpacks COCO with `unzip {root}/...` where it is incomplete."""
    root = tmp_path / f"x; touch {canary.name}; cd "
    root.mkdir()
    (root / "val2014.zip").write_bytes(b"")

    with pytest.raises(NotMeasured, match="it is not complete, it would run: "):
        samples(str(root), dataset="mscoco_captions", name="photos/test")

    assert not canary.exists()
    assert not Path(canary.name).exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"language": "../../../x"}, "'../../../x' is no name of a split or a language"),
        ({"dataset": "winoground/../x"}, "clip-benchmark cannot build it"),
        ({"dataset": "cifar100", "name": "photos/val"}, "Only `train` and `test` split"),
        ({"dataset": "tfds/x"}, "which is not installed"),
    ],
)
def test_what_clip_benchmark_would_stumble_over_is_refused(
    tmp_path: Path, more: dict[str, str], words: str
) -> None:
    with pytest.raises(QuantGateError) as caught:
        samples(str(tmp_path), **{"dataset": "cifar100", **more})
    assert words in str(caught.value)


# -- the cache -------------------------------------------------------------------------------------

KEY = "ab" * 32


def test_a_pickle_among_cached_embeddings_is_measured_again(
    tmp_path: Path, bomb: bytes, canary: Path
) -> None:
    """Even where whoever planted it made the manifest fit."""
    from pytest_quantgate.store.rows import open_rows

    warnings: list[str] = []
    cache = Cache(root=tmp_path / "cache", warn=warnings.append)
    good = np.ones((3, 2), dtype=np.float32)
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    wrong = io.BytesIO()
    np.save(wrong, np.ones((2, 2), dtype=np.float32))
    header = b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': __import__('os').system('id')}".ljust(64)
    for planted in (bomb, stream.getvalue(), wrong.getvalue(), header, b""):
        entry = cache.path(kind="embeddings", key=KEY)
        shutil.rmtree(entry, ignore_errors=True)
        entry.mkdir(parents=True)
        (entry / "fp16.npy").write_bytes(planted)
        seal(entry)
        warnings.clear()

        found = cache.get_and_read(
            kind="embeddings",
            key=KEY,
            build=lambda folder: np.save(folder / "fp16.npy", good),
            read=lambda folder: open_rows(folder / "fp16.npy", count=3),
        )

        assert np.array_equal(found, good)
        assert not canary.exists()
        assert len(warnings) == 1
        assert "is damaged (it cannot be read: " in warnings[0]


def test_a_manifest_that_names_other_files_is_damage(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    for name in ("../outside", str(outside), "..\\outside", "a/../../outside"):
        folder = tmp_path / "entry"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        seal(folder)
        digest = __import__("hashlib").sha256(b"x").hexdigest()
        (folder / "manifest.json").write_text(json.dumps({name: digest}))
        assert find_damage(folder) == f"{name} is missing"


@pytest.mark.parametrize(
    ("plant", "damage"),
    [
        (lambda f: os.mkfifo(f / "pipe"), "pipe is not in the manifest"),
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "link is not in the manifest"),
        (lambda f: (f / "folder").symlink_to("/etc"), "folder is not in the manifest"),
        (lambda f: replace_by_pipe(f / "manifest.json"), "manifest.json is missing or unreadable"),
        (lambda f: replace_by_pipe(f / "value.json"), "value.json is no regular file"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text('{"value.json": 5}'), "the SHA-256 of value"),
    ],
)
def test_pipes_links_and_nonsense_in_an_entry_are_damage(
    tmp_path: Path, plant: Plant, damage: str
) -> None:
    folder = tmp_path / "entry"
    folder.mkdir()
    (folder / "value.json").write_text("{}")
    seal(folder)
    assert find_damage(folder) is None

    plant(folder)

    assert (find_damage(folder) or "").startswith(damage)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_in_the_place_of_an_entry_is_set_aside(tmp_path: Path, kind: str) -> None:
    cache = Cache(root=tmp_path / "cache")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")
    place = cache.path(kind="variant", key=KEY)
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.write_text("x")
    else:
        seal(elsewhere)
        place.symlink_to(elsewhere)

    found = cache.get_or_build(
        kind="variant",
        key=KEY,
        build=lambda folder: (folder / "a").write_text("a"),  # type: ignore[arg-type]
    )

    assert (found / "a").read_text() == "a"
    assert not found.is_symlink()
    assert (elsewhere / "mine.txt").read_text() == "mine"


# -- baselines -------------------------------------------------------------------------------------


def test_a_pipe_among_obtained_results_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "obtained" / "demo").mkdir(parents=True)
    os.mkfifo(tmp_path / "obtained" / "demo" / "regression-x.json")

    with pytest.raises(BaselineError, match="cannot be read: it is no regular file"):
        accept_obtained(tmp_path / "obtained", store=Store(tmp_path / "baselines"), reason="why")
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize("suite", ["..", "../x", "/etc", "a/../../b", "", ".", "a//b"])
def test_a_suite_that_is_not_below_the_root_has_no_place(tmp_path: Path, suite: str) -> None:
    with pytest.raises(BaselineError, match="is not below the root of this run"):
        Store(tmp_path).path(suite, "scenes/classification-acc1")


@pytest.mark.parametrize("suite", ["a\\b", "a\nb", "x" * 101, "a/\x1b[31m"])
def test_a_suite_with_an_odd_name_gets_a_plain_folder(tmp_path: Path, suite: str) -> None:
    path = Store(tmp_path).path(suite, "scenes/classification-acc1")

    folder = path.parent.relative_to(tmp_path).as_posix()
    assert re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", folder), folder


@pytest.mark.parametrize(
    "key", ["../../x", "/etc/passwd", "..\\x", "a\nb", "\ud800", "x" * 5000, "a/" * 200 + "b-c", ""]
)
def test_a_key_is_one_part_of_a_file_name_whatever_it_is(tmp_path: Path, key: str) -> None:
    path = Store(tmp_path).path("demo", key)

    assert path.parent == tmp_path / "demo"
    assert path.name.isprintable()
    assert len(path.name) < 255
    assert Store(tmp_path).read("demo", key) is None


# -- ONNX ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../secret", "ABSOLUTE", "link", "beside", "..\\secret", ""])
def test_weights_in_other_files_are_not_read(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

    folder = tmp_path / "model"
    folder.mkdir()
    values = np.eye(4, dtype=np.float32).tobytes()
    for path in (tmp_path / "secret", folder / "beside"):
        path.write_bytes(values)
    (folder / "link").symlink_to(tmp_path / "secret")
    monkeypatch.chdir(folder)  # where ONNX Runtime would look for them
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4, 4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key = "location"
    entry.value = location.replace("ABSOLUTE", str(tmp_path / "secret"))
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["pixel_values", "w"], ["y"])],
        "tower",
        [value("pixel_values", 1, ["n", 4])],
        [value("y", 1, ["n", 4])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match="the weights of 'w' are kept in another file"):
        OnnxRuntimeModel(path)


# -- the terminal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [(), ("--quantgate-strict",)])
def test_a_folder_name_cannot_speak_to_the_terminal_or_the_runner(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    strict: tuple[str, ...],
) -> None:
    folder = pytester.path / "x\x1b[2J\n::error::forged\r##[error]y"
    monkeypatch.setenv("QUANTGATE_CLIP", str(folder))
    write_suite(replace={str(tiny_clip): "${QUANTGATE_CLIP}"})
    for exists in (False, True):  # not measured, then a failure
        if exists:
            folder.mkdir()
            (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")

        result = run_gates("-k", "coverage", "-rs", *strict)

        text = result.stdout.str() + result.stderr.str()
        if exists:
            assert "x\\x1b[2J\\n::error::forged\\r#\\#[error]y" in text
        else:
            assert "there is nothing at ${QUANTGATE_CLIP} on this machine" in text
        assert "\x1b" not in text
        assert "##[error]" not in text
        assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_the_command_line_shows_one_line_of_visible_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytest_quantgate.commands.cli import main

    path = tmp_path / "x\x1b[2J\n::error::y.quantgate.yaml"
    path.write_text("quantgate: 2")
    good = tmp_path / "good\n::notice::.quantgate.yaml"
    plain = tmp_path / "plain.quantgate.yaml"
    for file in (good, plain):
        file.write_text(SUITE.replace("TASK", "scenes/classification"))

    assert main(["validate", str(path), str(good), str(plain)]) == 1
    assert main(["accept", str(tmp_path / "gone\n::error::z"), "--reason", "why"]) == 1

    shown = capsys.readouterr()
    for line in (shown.out + shown.err).splitlines():
        assert line.isprintable()
        assert not line.startswith("::")
    assert len(shown.err.splitlines()) == 3
    assert len(shown.out.splitlines()) == 1


NAMES = (
    "x\n::error::forged",
    "x\r::error::forged",
    "::error::forged",
    "x\x1b[2Jy",
    "x\x9b2Jy",
    "##[error]forged",
    "x ##vso[task.complete]y",
    "x\u202ey",
    "x\u2028y",
    "x\udcffy",
)


@pytest.mark.parametrize("place", ["NAME.quantgate.yaml", "NAME/x.quantgate.yaml"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_suite_whose_name_speaks_to_the_runner_is_refused(
    pytester: pytest.Pytester, run_gates: Callable[..., pytest.RunResult], name: str, place: str
) -> None:
    path = pytester.path / "suites" / place.replace("NAME", name)
    path.parent.mkdir(parents=True)
    path.write_text(SUITE.replace("TASK", "scenes/classification"))

    result = run_gates(
        "-v",
    )

    assert result.ret == pytest.ExitCode.INTERRUPTED
    text = result.stdout.str() + result.stderr.str()
    for line in text.splitlines():
        assert line.isprintable(), ascii(line)
        assert "##[" not in line
        assert "##vso[" not in line
        assert not line.lstrip().startswith("::")
    assert text.count("holds visible characters alone and no command of a CI log") >= 1
    with pytest.raises(SuiteError, match="rename it"):
        load_suite(path, relative_to=pytester.path)


@pytest.mark.parametrize("name", ["x\n::error::forged", "::error::forged", "x\n##[error]y"])
def test_a_name_that_a_shell_writes_is_refused(
    pytester: pytest.Pytester, run_gates: Callable[..., pytest.RunResult], name: str
) -> None:
    """As with `pytest suites/*` or `pytest *`: pytest looks for what stands before a `::`."""
    folder = pytester.path / name
    folder.mkdir()
    file = pytester.path / f"{name}.quantgate.yaml"
    file.write_text(SUITE.replace("TASK", "scenes/classification"))

    for path in (folder, file):
        result = run_gates(path=path.name)

        assert result.ret == pytest.ExitCode.USAGE_ERROR
        text = result.stdout.str() + result.stderr.str()
        assert "this name cannot be shown as it is: rename it" in text
        for line in text.splitlines():
            assert line.isprintable(), ascii(line)
            assert "##[" not in line
            assert not line.lstrip().startswith("::")


def test_what_a_library_says_of_a_gate_is_shown_as_visible_lines(
    run_gates: Callable[..., pytest.RunResult],
    write_suite: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception that nobody expected, and what it printed before."""
    from pytest_quantgate.run.case import Case

    def break_down(*_: Any, **__: Any) -> None:
        print("::error::printed\x1b[2J")
        raise RuntimeError("no class\n::error::forged\x1b[2J\n##[error]x")

    monkeypatch.setattr(Case, "judge", break_down)
    write_suite()

    result = run_gates(
        "-rA",
    )

    text = result.stdout.str() + result.stderr.str()
    assert "forged\\x1b[2J" in text
    assert "printed\\x1b[2J" in text
    assert "\x1b" not in text
    assert "##[error]" not in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_what_a_green_gate_says_is_shown_as_visible_lines() -> None:
    from pytest_quantgate.plugin.results import make_printable

    report = pytest.TestReport(
        nodeid="suites/x.quantgate.yaml::coverage",
        location=("suites/x.quantgate.yaml", 0, "coverage"),
        keywords={},
        outcome="passed",
        longrepr=None,
        when="call",
        sections=[("quantgate", "coverage: whole\n::error::forged\x1b[2J\n")],
    )

    make_printable(report)

    assert report.sections == [("quantgate", "coverage: whole\n:\\:error::forged\\x1b[2J\n")]


def test_commands_print_through_one_door() -> None:
    """Every text that a command prints is a constant, JSON, or went through `printable`."""
    import ast

    import pytest_quantgate

    package = Path(pytest_quantgate.__file__).parent
    wrapped = {"printable", "dumps"}
    found = []
    for path in sorted((package / "commands").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"):
                continue
            for argument in node.args:
                calls = [each for each in ast.walk(argument) if isinstance(each, ast.Call)]
                names = {getattr(c.func, "id", getattr(c.func, "attr", "")) for c in calls}
                if not isinstance(argument, ast.Constant) and not names & wrapped:
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []


LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", LONG],
        ["validate", f"{LONG}.quantgate.yaml"],
        ["plan", LONG],
        ["doctor", LONG],
        ["accept", LONG, "--reason=why"],
        ["migrate", "x", "--baselines", LONG],
        ["diff", LONG, LONG],
        ["diff", f"{LONG}..HEAD"],
        ["init", "--model", LONG, "--data", "scenes", "--output", "x.quantgate.yaml"],
        ["init", "--model=reference", "--data=scenes", f"--output={LONG}.quantgate.yaml"],
        ["init", "--model", "reference", "--data", f"./{LONG}", "--output", "x.quantgate.yaml"],
        ["sensitivity", f"{LONG}.quantgate.yaml"],
    ],
    ids=lambda value: " ".join(word[:12] for word in value),
)
def test_names_beyond_255_bytes_are_one_line(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pytest_quantgate.commands.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "baselines").mkdir()

    assert main(arguments) in (0, 1, 2)

    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) <= 2, shown.err


@pytest.mark.parametrize(
    "option", ["report", "markdown", "json", "cache-dir", "baselines-dir", "obtained-dir"]
)
def test_options_with_names_beyond_255_bytes_are_refused_or_reported(
    run_gates: Callable[..., pytest.RunResult], write_suite: Callable[..., Path], option: str
) -> None:
    write_suite()

    result = run_gates(f"--quantgate-{option}={LONG}", "-k", "coverage")

    text = result.stdout.str() + result.stderr.str()
    assert "INTERNALERROR" not in text
    assert "Traceback" not in text
    assert "File name too long" in text or option in ("baselines-dir", "obtained-dir", "cache-dir")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('id: "MODEL"', f'id: "/{LONG}"'),
        ('id: "MODEL"', f'id: "evil/{LONG}"'),
        ("recipe: fp8-attention", f"recipe: {LONG}"),
        ("recipe: fp8-attention", f"recipe: ./{LONG}.yaml"),
        ("calibration: {data: scenes/calibration", f"calibration: {{data: {LONG}/train"),
        (
            "calibration: {data: scenes/calibration",
            f"datasets:\n  photos: {{dataset: wds/x, root: /{LONG}}}\n"
            "calibration: {data: photos/train",
        ),
    ],
    ids=lambda value: value[:24],
)
def test_suites_with_names_beyond_255_bytes_are_judged(
    run_gates: Callable[..., pytest.RunResult],
    write_suite: Callable[..., Path],
    tiny_clip: Path,
    old: str,
    new: str,
) -> None:
    write_suite(replace={old.replace("MODEL", str(tiny_clip)): new})

    result = run_gates("-k", "coverage")

    text = result.stdout.str() + result.stderr.str()
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    assert "Error:" not in text, text[-3000:]


# -- the environment -------------------------------------------------------------------------------

SECRET = "hunter2-the-value-of-a-secret"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("recipe: fp8-attention", 'recipe: "${MY_SECRET}"', "${MY_SECRET}: a suite uses the var"),
        ("recipe: fp8-attention", 'recipe: "${QUANTGATE_SECRET}"', "there is nothing at ${QUANT"),
        ("recipe: fp8-attention", 'recipe: "${QUANTGATE_SECRET}.yaml"', "there is nothing at ${"),
        ("recipe: fp8-attention", 'recipe: "nvfp4/${QUANTGATE_SECRET}"', "there is nothing at nv"),
        ('id: "MODEL"', 'id: "evil-org/${MY_SECRET}", revision: abc', "a hub id holds no ${NAME}"),
        (
            'id: "MODEL"',
            'id: "evil/x${QUANTGATE_SECRET}", revision: abc',
            "a hub id holds no ${NAME}",
        ),
        ('id: "MODEL"', 'id: "${MY_SECRET}"', "a suite uses the variables QUANTGATE_... alone"),
        ('id: "MODEL"', 'id: "${QUANTGATE_SECRET}"', "there is nothing at ${QUANTGATE_SECRET}"),
        ('id: "MODEL"', 'id: "/x/${QUANTGATE_SECRET}"', "there is nothing at /x/${QUANTGATE_SE"),
    ],
    ids=lambda value: value[:40],
)
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["here", "xdist"])
def test_no_secret_of_the_environment_is_shown(
    pytester: pytest.Pytester,
    run_gates: Callable[..., pytest.RunResult],
    write_suite: Callable[..., Path],
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    words: str,
    workers: tuple[str, ...],
) -> None:
    if workers:
        pytest.importorskip("xdist")
        if "QUANTGATE_SECRET" in new:
            pytest.skip("one of each kind is enough where processes are started")
    for name in ("MY_SECRET", "QUANTGATE_SECRET"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_suite(replace={old.replace("MODEL", str(tiny_clip)): new})

    result = run_gates(
        *("-k", "coverage", "-rA", "--quantgate-report=report", "--junitxml=junit.xml", *workers),
        *("--quantgate-markdown=x.md", "--quantgate-strict"),
    )

    assert result.ret != pytest.ExitCode.OK
    text = result.stdout.str() + result.stderr.str()
    assert words in text
    assert SECRET not in text
    written = [path for path in pytester.path.rglob("*") if path.is_file()]
    assert {"index.html", "report.json", "junit.xml"} <= {path.name for path in written}
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["here", "xdist"])
def test_a_variable_that_the_run_allows_is_used(
    run_gates: Callable[..., pytest.RunResult],
    write_suite: Callable[..., Path],
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: tuple[str, ...],
) -> None:
    if workers:
        pytest.importorskip("xdist")
    monkeypatch.setenv("MODELS", str(tiny_clip.parent))
    write_suite(replace={str(tiny_clip): "${MODELS}/" + tiny_clip.name})

    refused = run_gates("-k", "coverage", *workers)
    assert refused.ret != pytest.ExitCode.OK
    assert "allow it with pytest --quantgate-env=MODELS" in refused.stdout.str()

    for allow in ("--quantgate-env=DATA,MODELS", ""):
        if not allow:
            monkeypatch.setenv("QUANTGATE_ENV", "MODELS")
        run_gates("-k", "coverage", *workers, *filter(None, [allow])).assert_outcomes(passed=1)


@pytest.mark.parametrize("name", ["A=b", "A B", "1A", "A;B", "${A}"])
def test_what_is_no_name_of_a_variable_is_refused(
    run_gates: Callable[..., pytest.RunResult], write_suite: Callable[..., Path], name: str
) -> None:
    write_suite()

    result = run_gates(f"--quantgate-env={name}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --quantgate-env=*is no name of an environment variable*"])


@pytest.mark.parametrize("command", ["validate", "plan", "doctor", "sensitivity"])
def test_commands_refuse_and_allow_a_variable_alike(
    command: str,
    tmp_path: Path,
    tiny_clip: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pytest_quantgate.commands.cli import main

    path = tmp_path / "x.quantgate.yaml"
    text = SUITE.replace("TASK", "scenes/classification")
    path.write_text(text.replace("recipe: fp8", 'recipe: "${MY_SECRET}/r.yaml"'))
    environ = {"MY_SECRET": SECRET, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    status = main([command, str(path)], environ=environ)

    shown = "".join(capsys.readouterr())
    assert SECRET not in shown
    if command != "plan":  # it needs no recipe
        assert status != 0 or command == "doctor"  # it reports, and judges nothing
        assert "QUANTGATE_ENV=MY_SECRET" in shown
    main([command, str(path)], environ={**environ, "QUANTGATE_ENV": "MY_SECRET"})
    shown = "".join(capsys.readouterr())
    assert SECRET not in shown
    assert "QUANTGATE_ENV=MY_SECRET" not in shown
