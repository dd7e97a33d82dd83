"""What people report of models and data of this kind, on a really trained CLIP and photographs.

The data is not part of the project: see `test_real_photographs.py`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(),
    reason=f"no photographs in {DATA}: set QUANTGATE_TEST_DATA to the folder with cifar10/",
)

TEMPLATES = "zeroshot_classification_templates.txt"
SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  photos: {{dataset: wds/photos, root: "{root}"}}
calibration: {{data: photos/train, samples: 16, batch_size: 16, held_out_samples: 4}}
quantize: {{recipe: int8}}
gates:
  coverage: {{}}
  accuracy: {{task: photos/classification, metric: acc1, max_drop: 20pp}}
"""

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Copy the trained CLIP; `<file>=edit` edits one of its JSON files, None deletes it."""

    def write(**edits: Edit | None) -> Path:
        folder = tmp_path / "clip"
        shutil.copytree(DATA / "clip-cifar10-tiny", folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        for name, edit in edits.items():
            path = folder / f"{name}.json"
            if edit is None:
                path.unlink()
                continue
            data = json.loads(path.read_text("utf-8"))
            edit(data)
            path.write_text(json.dumps(data), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def write_photos(tmp_path: Path) -> Callable[..., Path]:
    """Copy some of the photographs, with other labels, class names or templates."""

    def write(
        *,
        samples: int = 300,
        label: Callable[[int], int] = lambda label: label,
        names: Callable[[list[str]], list[str]] = lambda names: names,
        templates: tuple[str, ...] | None = None,
    ) -> Path:
        root = tmp_path / "photos"
        for split, count in (("train", 24), ("test", samples)):
            (root / split).mkdir(parents=True)
            (root / split / "nshards.txt").write_text("1", encoding="utf-8")
            with (
                tarfile.open(DATA / "cifar10" / split / "0.tar") as source,
                tarfile.open(root / split / "0.tar", "w") as target,
            ):
                for position, member in enumerate(source):
                    if position == 2 * count:
                        break
                    stream = source.extractfile(member)
                    assert stream is not None
                    content = stream.read()
                    if member.name.endswith(".cls") and split == "test":
                        content = str(label(int(content))).encode()
                    info = tarfile.TarInfo(member.name)
                    info.size = len(content)
                    target.addfile(info, io.BytesIO(content))
        known = (DATA / "cifar10" / "classnames.txt").read_text("utf-8").split()
        (root / "classnames.txt").write_text("\n".join(names(known)), encoding="utf-8")
        if templates is None:
            shutil.copyfile(DATA / "cifar10" / TEMPLATES, root / TEMPLATES)
        else:
            (root / TEMPLATES).write_text("\n".join(templates), encoding="utf-8")
        return root

    return write


@pytest.fixture
def judge(tmp_path: Path, make_case: Callable[..., Case]) -> Callable[..., Mapping[str, Verdict]]:
    """Judge gates of the suite above: all of them, or the ones that are named."""
    keys = {"sanity": "", "coverage": "", "accuracy": "photos/classification-acc1"}

    def run(
        *gates: str, model: Path = DATA / "clip-cifar10-tiny", root: Path
    ) -> Mapping[str, Verdict]:
        path = tmp_path / "photos.quantgate.yaml"
        path.write_text(SUITE.format(model=model, root=root), encoding="utf-8")
        case = make_case(load_suite(path, relative_to=tmp_path))
        return {kind: case.judge(kind=kind, key=keys[kind]).verdict for kind in gates or keys}

    return run


def add_domain(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["<domain>"] = 30
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"].append({"id": 30, "content": "<domain>", "special": False, **plain})


def text_config(**values: Any) -> Edit:
    return lambda config: config["text_config"].update(values)


def grow_table(folder: Path) -> None:
    """Give the word behind the end token a row of its own, near that of `photo`."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][20:21] * 1.05])
    save_file(tensors, path, metadata={"format": "pt"})


DATA_FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "templates of another tool": (
        {"templates": ("a photo of a {}.", "a picture of the {}.")},
        "sanity.template-without-class",
        f"photos/{TEMPLATES}:1: template 'a photo of a {{}}.' has no {{c}}",
    ),
    "one template of another tool": (
        {"templates": ("a photo of a {c}", "", "a picture of the {0}")},
        "sanity.template-without-class",
        f"photos/{TEMPLATES}:3: template 'a picture of the {{0}}' has no {{c}}",
    ),
    "a file of templates that is empty": (
        {"templates": ("",)},
        "sanity.templates-empty",
        f"photos/{TEMPLATES} is there and holds no template",
    ),
    "a class name twice": (
        {"names": lambda names: [*names[:9], names[8]]},
        "sanity.class-name-twice",
        "photos/classnames.txt:9 and 10: class name 'ship' stands twice",
    ),
    "labels of the next class": (
        {"label": lambda label: (label + 1) % 10},
        "sanity.fp16-at-chance",
        "photos/classification: FP16 is under chance: right on ",
    ),
    "class names sorted otherwise": (
        {"names": lambda names: [names[9], *names[:9]]},
        "sanity.fp16-at-chance",
        "FP16 is under chance",
    ),
    "a header above the class names": (
        {"names": lambda names: ["name", *names]},
        "sanity.fp16-at-chance",
        "FP16 is under chance",
    ),
    "words that no tokenizer knows": (
        {"names": lambda _: [f"class{number}" for number in range(10)]},
        "sanity.prompts-equal",
        "photos/classification: all 10 classes read alike",
    ),
}


@pytest.mark.parametrize("name", DATA_FAULTS)
def test_data_that_mean_nothing_are_said_once(
    write_photos: Callable[..., Path],
    judge: Callable[..., Mapping[str, Verdict]],
    name: str,
) -> None:
    changes, code, words = DATA_FAULTS[name]
    verdicts = judge(root=write_photos(**changes))

    assert (verdicts["sanity"].status, verdicts["sanity"].code) == (Status.FAIL, code)
    assert words in verdicts["sanity"].headline
    for other in ("coverage", "accuracy"):
        assert verdicts[other].status is Status.NOT_MEASURED
        assert verdicts[other].brief == f"not judged, as the sanity gate fails [{code}]"


def test_classes_that_are_exchanged_are_found_though_fp16_beats_chance(
    write_photos: Callable[..., Path], judge: Callable[..., Mapping[str, Verdict]]
) -> None:
    swap = {0: 1, 1: 0}
    root = write_photos(samples=400, label=lambda label: swap.get(label, label))
    verdicts = judge("accuracy", root=root)

    assert verdicts["accuracy"].code == "sanity.classes-exchanged"
    assert "samples of 'airplane', 'automobile' are taken for one another" in (
        verdicts["accuracy"].headline
    )


GOOD_DATA: dict[str, dict[str, Any]] = {
    "as they are": {},
    "one template": {"templates": ("a photo of a {c}",)},
    "the class name alone": {"templates": ("{c}",)},
    "names in other letters": {"names": lambda names: [name.title() for name in names]},
    "names with a word that is not known": {
        "names": lambda names: [f"lovely {name}" for name in names]
    },
    "prompts that are cut off behind the class name": {
        "templates": ("{c} " + "this is a good photo of a small picture " * 3,)
    },
    "an advisory suite on 40 photographs": {"samples": 40},
}


@pytest.mark.parametrize("name", GOOD_DATA)
def test_good_data_pass(
    write_photos: Callable[..., Path], judge: Callable[..., Mapping[str, Verdict]], name: str
) -> None:
    verdict = judge("sanity", root=write_photos(**GOOD_DATA[name]))["sanity"]

    assert verdict.passed, verdict


def test_labels_of_the_same_photograph_in_two_classes_pass(
    write_photos: Callable[..., Path], judge: Callable[..., Mapping[str, Verdict]], tmp_path: Path
) -> None:
    """As in a multi-label set: half of the answers are wrong by construction."""
    root = write_photos(samples=100)
    shutil.copyfile(root / "test" / "0.tar", root / "test" / "1.tar")
    with (
        tarfile.open(root / "test" / "0.tar") as source,
        tarfile.open(root / "test" / "1.tar", "w") as target,
    ):
        for member in source:
            stream = source.extractfile(member)
            assert stream is not None
            content = stream.read()
            if member.name.endswith(".cls"):
                content = str((int(content) + 3) % 10).encode()
            info = tarfile.TarInfo(f"again-{member.name}")
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    (root / "test" / "nshards.txt").write_text("2", encoding="utf-8")

    assert judge("sanity", root=root)["sanity"].passed


MODEL_FAULTS: dict[str, tuple[dict[str, Edit | None], str, str]] = {
    "no end token": (
        {"tokenizer": lambda data: data["post_processor"]["single"].pop()},
        "sanity.end-token-absent",
        "clip: its tokenizer appends no end token '<|endoftext|>'",
    ),
    "what save_pretrained of the model alone leaves": (
        {"tokenizer": None, "tokenizer_config": None},
        "sanity.no-tokenizer",
        "clip: its folder holds no tokenizer",
    ),
    "the processor of another model": (
        {
            "preprocessor_config": lambda config: config.update(
                size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
            )
        },
        "sanity.image-size",
        "makes images of 3 x 224 x 224 (channels, height, width), the vision tower takes 3 x 32 x",
    ),
    "no padding token": (
        {"tokenizer_config": lambda config: config.pop("pad_token")},
        "sanity.no-padding-token",
        "its tokenizer has no padding token",
    ),
    "a word behind the table": (
        {"tokenizer": lambda data: data["model"]["vocab"].update(lorry=30)},
        "sanity.token-beyond-table",
        "token 30 ('lorry') lies behind the embedding table of 30 rows",
    ),
    "an old config and a word above the end token": (
        {"config": text_config(eos_token_id=2, vocab_size=31), "tokenizer": add_domain},
        "sanity.pooled-token",
        "'<domain>' (30) is above the end token '<|endoftext|>' (29)",
    ),
    "another end token in the config": (
        {"config": text_config(eos_token_id=20)},
        "sanity.pooled-token",
        "the text tower pools token 20 (text_config.eos_token_id in config.json)",
    ),
}


@pytest.mark.parametrize("name", MODEL_FAULTS)
def test_a_model_that_cannot_mean_anything_is_named_by_all_three(
    write_model: Callable[..., Path],
    judge: Callable[..., Mapping[str, Verdict]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """By the gate, once; by doctor and by validate --deep, from the files."""
    edits, code, words = MODEL_FAULTS[name]
    model = write_model(**edits)
    if "config" in edits and "tokenizer" in edits:
        grow_table(model)
    verdicts = judge(model=model, root=DATA / "cifar10")

    assert (verdicts["sanity"].status, verdicts["sanity"].code) == (Status.FAIL, code)
    assert words in verdicts["sanity"].headline
    assert verdicts["accuracy"].status is Status.NOT_MEASURED
    suite = str(tmp_path / "photos.quantgate.yaml")
    for arguments in (["doctor", suite], ["doctor", str(model)], ["validate", "--deep", suite]):
        assert main(arguments, environ={}) == 1
        text = "".join(capsys.readouterr())
        assert words in text
        assert f"[{code}]" in text


GOOD_MODELS: dict[str, dict[str, Edit]] = {
    "as it is": {},
    "no attention mask": {
        "tokenizer_config": lambda config: config.update(model_input_names=["input_ids"])
    },
    "a word of a domain, and the end token in the config": {
        "config": text_config(vocab_size=31),
        "tokenizer": add_domain,
    },
}


@pytest.mark.parametrize("name", GOOD_MODELS)
def test_good_models_pass_all_three(
    write_model: Callable[..., Path],
    write_photos: Callable[..., Path],
    judge: Callable[..., Mapping[str, Verdict]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    model = write_model(**GOOD_MODELS[name])
    root = write_photos(templates=("a <domain> photo of a {c}",) if "domain" in name else None)
    if "domain" in name:
        grow_table(model)
    verdict = judge("sanity", model=model, root=root)["sanity"]

    assert verdict.passed, verdict
    suite = str(tmp_path / "photos.quantgate.yaml")
    assert main(["validate", "--deep", suite], environ={}) == 0
    assert main(["doctor", str(model)], environ={}) == 0
    assert "BROKEN" not in "".join(capsys.readouterr())


def test_an_embedding_beyond_float16_is_named_from_the_files(
    write_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where float16 runs, on photographs, it is judged by other gates."""
    from safetensors.torch import load_file, save_file

    model = write_model()
    path = model / "model.safetensors"
    tensors = load_file(path)
    for name in ("patch_embedding.weight", "class_embedding", "position_embedding.weight"):
        tensors[f"vision_model.embeddings.{name}"] *= 24576.0
    save_file(tensors, path, metadata={"format": "pt"})
    suite = tmp_path / "photos.quantgate.yaml"
    text = SUITE.format(model=model, root=DATA / "cifar10")
    suite.write_text(text, encoding="utf-8")

    for arguments in (["doctor", str(suite)], ["validate", "--deep", str(suite)]):
        assert main(arguments, environ={}) == 1
        assert (
            "the patch embedding gives up to 1.08e+05 for a patch that is half black and half "
            "white, and float16 ends at 65504 [sanity.float16-overflow]"
        ) in "".join(capsys.readouterr())
    wide = text.replace(f'"{model}"}}', f'"{model}", dtype: bfloat16}}')
    suite.write_text(wide, encoding="utf-8")
    assert wide != text
    assert main(["doctor", str(suite)], environ={}) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"templates": ("a photo of a {}.",)}, f"{TEMPLATES}:1: template 'a photo of a {{}}.' has"),
        ({"names": lambda names: [*names[:9], names[8]]}, "classnames.txt:9 and 10: class name"),
        ({"names": lambda _: [f"class{n}" for n in range(10)]}, "all 10 classes read alike"),
    ],
)
def test_texts_are_checked_from_the_files_too(
    write_photos: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    suite = tmp_path / "photos.quantgate.yaml"
    root = write_photos(samples=2, **changes)
    model = DATA / "clip-cifar10-tiny"
    suite.write_text(SUITE.format(model=model, root=root), encoding="utf-8")

    for arguments in (["doctor", str(suite)], ["validate", "--deep", str(suite)]):
        assert main(arguments, environ={}) == 1
        assert words in "".join(capsys.readouterr())
