"""Data that is not what it seems: sorted by class, stored twice, calibrated on, half the classes.

A random CLIP answers at random, so what is judged here is the data.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_quantgate.case import Case
from pytest_quantgate.selftest.proof import judge_again
from pytest_quantgate.suite_file import load_suite

CLASSES = ("cat", "dog", "fox", "owl")

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  photos: {{dataset: wds/photos, root: "{root}"}}
calibration: {{data: photos/train, samples: 12, batch_size: 12, held_out_samples: 4}}
quantize: {{recipe: int8}}
gates:
  calibration: {{max_clipped: 90%}}
  fidelity: {{samples: 12, min_cosine: -1}}
  accuracy:
    - {{task: photos/classification, metric: acc1, max_drop: 50pp}}
"""


def picture(seed: int, *, side: int = 24) -> Image.Image:
    """Return a picture of soft blobs, as unlike others as photographs are."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(seed: int, label: int | str) -> tuple[bytes, str]:
    return encode(picture(seed)), str(label)


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set of (image file, label or captions) for each split."""

    def make(
        *, captioned: bool = False, classes: Iterable[str] = CLASSES, **splits: list[Any]
    ) -> Path:
        root = tmp_path / "photos"
        root.mkdir(exist_ok=True)
        (root / "classnames.txt").write_text("\n".join(classes), encoding="utf-8")
        (root / "dataset_type.txt").write_text("retrieval" if captioned else "classification")
        splits.setdefault("train", [photo(1000 + i, i % 4) for i in range(16)])
        for split, samples in splits.items():
            (root / split).mkdir(exist_ok=True)
            (root / split / "nshards.txt").write_text("1", encoding="utf-8")
            with tarfile.open(root / split / "0.tar", "w") as archive:
                for index, (image, text) in enumerate(samples):
                    for suffix, content in (
                        ("png", image),
                        ("txt" if captioned else "cls", text.encode()),
                    ):
                        info = tarfile.TarInfo(f"s{index:05d}.{suffix}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
        return root

    return make


@pytest.fixture
def case_of(tmp_path: Path, tiny_clip: Path, make_case: Callable[..., Case]) -> Callable[..., Case]:
    """Make the case of the suite above on a data set, with `edits` of its text."""

    def make(root: Path, *, edits: dict[str, str] | None = None) -> Case:
        text = SUITE.format(model=tiny_clip, root=root)
        for old, new in (edits or {}).items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "data.quantgate.yaml"
        path.write_text(text, encoding="utf-8")
        return make_case(load_suite(path))

    return make


def test_a_gate_draws_its_samples_over_a_sorted_archive(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    root = make_photos(test=[photo(i, i // 20) for i in range(80)])
    case = case_of(root, edits={"max_drop: 50pp": "max_drop: 50pp, samples: 12"})
    (gate,) = case.suite.gates.accuracy

    drawn, _ = case.outcomes(task=gate.task, metric="acc1", samples=12)
    first, _ = case.outcomes(task=gate.task, metric="acc1", samples=12, first=True)
    assert Counter(drawn.labels) == dict.fromkeys(range(4), 3)
    assert Counter(first.labels) == {0: 12}
    assert drawn.data_digest != first.data_digest
    assert {about[4] for about in case.used if about[0] == "outcomes"} == {"12", "first 12"}
    again = judge_again(case, kind="accuracy", key=gate.key)
    assert again is not None
    assert again.status is case.judge(kind="accuracy", key=gate.key).verdict.status
