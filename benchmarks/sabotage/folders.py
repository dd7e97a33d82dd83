"""Models and data sets in folders, as a team has them: what a person can break in a file."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.sabotage.bench import Bench
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.reference import weights_dir
from pytest_quantgate.run.case import Case
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples

Edit = Callable[[dict[str, Any]], Any]
#: A picture and its class.
Photo = tuple[Any, int]
Draw = Callable[[Samples], Iterable[Photo]]

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"

SOURCE = "{source: reference}"
DATA, TASK = "calibration: {data: scenes/calibration", "scenes/classification"


def of_files(
    title: str,
    *,
    source: str = "scenes/test",
    model: Mapping[str, Edit | None] | None = None,
    dtype: str = "float16",
    test: Draw | None = None,
    train: Draw | None = None,
    names: Callable[[Sequence[str]], Sequence[str]] | None = None,
    templates: Sequence[str] | None = None,
    edits: Mapping[str, str] | None = None,
) -> Callable[[Bench], Case]:
    """Return the maker of the good suite on a model and a data set that lie in folders.

    `model` edits files of the reference model, or deletes them with None. Of the pictures of
    `source` `test` chooses and labels those of the task, in PNG, `train` those that are calibrated
    on, in lossless WebP; `names` and `templates` are the texts beside them. `edits` change the
    suite.
    """
    has_photos = any(part is not None for part in (test, train, names, templates))

    def make(bench: Bench) -> Case:
        changes = dict(edits or {})
        place = bench.root.resolve() / "files" / digest_of(title)[:12]
        shutil.rmtree(place, ignore_errors=True)
        if model is not None:
            _write_model(place / "clip", edits=model)
            changes[SOURCE] = f'{{source: transformers, id: "{place}/clip", dtype: {dtype}}}'
        if has_photos:
            count = bench.samples if source.startswith("scenes") else None
            samples = load_samples(source, datasets={}, samples=count, environ={})
            _write_texts(
                place / "photos",
                names=(names or tuple)(samples.class_names),
                templates=samples.templates if templates is None else templates,
            )
            _write_photos(place / "photos" / "test", (test or as_they_are)(samples), kind="PNG")
            if train is not None:
                _write_photos(place / "photos" / "train", train(samples), kind="WEBP")
            used = "scenes/calibration" if train is None else "photos/train"
            changes[TASK] = "photos/classification"
            if count is None:
                changes[f"samples: {bench.samples}, "] = ""
            changes[DATA] = (
                f'datasets: {{photos: {{dataset: wds, root: "{place}/photos"}}}}\n'
                f"calibration: {{data: {used}"
            )
        return bench.load(edits=changes)

    return make


def as_they_are(samples: Samples) -> Iterable[Photo]:
    assert samples.labels is not None
    return ((samples.images[i], label) for i, label in enumerate(samples.labels))


def relabelled(change: Callable[[int], int]) -> Draw:
    return lambda samples: ((image, change(label)) for image, label in as_they_are(samples))


def _write_model(folder: Path, *, edits: Mapping[str, Edit | None]) -> None:
    shutil.copytree(weights_dir(), folder)
    for file, edit in edits.items():
        path = folder / file
        if edit is None:
            path.unlink()
        elif file == WEIGHTS:
            tensors = {key: value.float() for key, value in load_file(path).items()}
            edit(tensors)
            save_file(tensors, path, metadata={"format": "pt"})
        else:
            data = json.loads(path.read_text(encoding="utf-8"))
            edit(data)
            path.write_text(json.dumps(data), encoding="utf-8")


def _write_texts(root: Path, *, names: Sequence[str], templates: Sequence[str]) -> None:
    root.mkdir(parents=True)
    for file, lines in ((CLASS_NAMES, names), (TEMPLATES, templates)):
        (root / file).write_text("\n".join(lines), encoding="utf-8")


def _write_photos(folder: Path, photos: Iterable[Photo], *, kind: str) -> None:
    folder.mkdir()
    (folder / "nshards.txt").write_text("1", encoding="utf-8")
    with tarfile.open(folder / "0.tar", "w") as archive:
        for index, (image, label) in enumerate(photos):
            picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
            stream = io.BytesIO()
            picture.save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
            for suffix, content in (
                (kind.lower(), stream.getvalue()),
                ("cls", f"{label}".encode()),
            ):
                info = tarfile.TarInfo(f"s{index:06d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
