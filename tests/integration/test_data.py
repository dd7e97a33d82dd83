"""Data that is not what it seems: sorted by class, stored twice, calibrated on, half the classes.

The pictures are noise with any labels, so what is judged here is the data.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.proof import judge_again
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.tasks.pictures import Pictures

CLASSES = ("red", "green", "blue", "yellow")

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  photos: {{dataset: wds/photos, root: "{root}"}}
calibration: {{data: photos/train, samples: 12, batch_size: 12, held_out_samples: 8}}
quantize: {{recipe: int8}}
gates:
  calibration: {{max_clipped: 49%}}
  fidelity: {{samples: 12, min_cosine: 0.01}}
  accuracy:
    - {{task: photos/classification, metric: acc1, max_drop: 100pp, max_flips: 60%}}
"""


def picture(seed: int, *, side: int = 48) -> Image.Image:
    """Return grey noise with about the spectrum of photographs, in one tint."""
    noise = np.random.default_rng(seed)
    layers = [
        Image.fromarray(noise.integers(0, 256, (rough, rough), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for rough in (3, 6, 12, side // 2)
    ]
    mixed = np.average([np.asarray(layer) for layer in layers], axis=0, weights=[8, 4, 2, 1])
    tint = noise.uniform(0.7, 1, 3)
    return Image.fromarray((mixed[:, :, None] * tint).astype(np.uint8))


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
        splits.setdefault("train", [photo(1000 + i, i % 4) for i in range(20)])
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
def case_of(
    tmp_path: Path,
    tiny_clip: Path,
    make_case: Callable[..., Case],
    assume_sane: Callable[[Case], Case],
) -> Callable[..., Case]:
    """Make the case of the suite above on a data set, with `edits` of its text."""

    def make(root: Path, *, edits: dict[str, str] | None = None) -> Case:
        text = SUITE.format(model=tiny_clip, root=root)
        for old, new in (edits or {}).items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "data.quantgate.yaml"
        path.write_text(text, encoding="utf-8")
        return assume_sane(make_case(load_suite(path)))

    return make


def test_a_gate_draws_its_samples_over_a_sorted_archive(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    root = make_photos(test=[photo(i, i // 20) for i in range(80)])
    case = case_of(
        root,
        edits={"max_drop: 100pp, max_flips: 60%": "max_drop: 100pp, max_flips: 60%, samples: 12"},
    )
    (gate,) = case.suite.gates.all(AccuracyGate)

    drawn, _ = case.outcomes(task=gate.task, metric="acc1", samples=12)
    first, _ = case.outcomes(task=gate.task, metric="acc1", samples=12, first=True)
    assert Counter(drawn.labels) == dict.fromkeys(range(4), 3)
    assert Counter(first.labels) == {0: 12}
    assert drawn.data_digest != first.data_digest
    assert {about[4] for about in case.used if about[0] == "outcomes"} == {"12", "first 12"}
    again = judge_again(case, kind="accuracy", key=gate.key)
    assert again is not None
    assert again.status is case.judge(kind="accuracy", key=gate.key).verdict.status


# -- the test images calibrated on, in other files ------------------------------------------------


def test_test_images_in_other_files_are_calibrated_on(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    """As PNG and lossless WebP the files have no byte in common."""
    pictures = [picture(i) for i in range(20)]
    root = make_photos(
        train=[(encode(image), str(i % 4)) for i, image in enumerate(pictures)],
        test=[
            *(
                (encode(image, "WEBP", lossless=True), str(i % 4))
                for i, image in enumerate(pictures)
            ),
            *(photo(100 + i, i % 4) for i in range(20)),
        ],
    )
    by_fidelity = {
        "fidelity: {samples: 12,": "fidelity: {data: photos/test, samples: 32,",
        "  accuracy:\n"
        "    - {task: photos/classification, metric: acc1, max_drop: 100pp, max_flips: 60%}\n": "",
    }
    for edits in ({}, by_fidelity):
        verdict = case_of(root, edits=edits).judge(kind="calibration").verdict

        assert (verdict.status, verdict.code) == (Status.FAIL, "calibration.overlap"), edits
        assert "12 evaluation samples by content also calibrated the quantizers" in verdict.headline
        assert re.fullmatch(r"0/s000\d\d is calibration sample 0/s000\d\d", verdict.evidence[0])


def test_resized_and_recompressed_test_images_are_a_note_with_the_pairs(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    root = make_photos(
        train=[photo(i, i % 4) for i in range(20)],
        test=[
            (encode(picture(0).resize((96, 96)), "JPEG", quality=90), "0"),
            (encode(picture(1), "JPEG", quality=90), "1"),
            *(photo(100 + i, i % 4) for i in range(20)),
        ],
    )
    case = case_of(root, edits={"samples: 12, batch": "samples: 12, first: true, batch"})
    judged = case.judge(kind="calibration")

    assert judged.verdict.passed
    assert {(copy.sample, copy.like) for copy in case.near_copies()} == {
        ("0/s00000", "0/s00000"),
        ("0/s00001", "0/s00001"),
    }
    note, *_ = judged.notes
    assert "2 evaluation samples may be near copies of calibration samples" in note


def test_different_photographs_give_no_note(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    judged = case_of(make_photos(test=[photo(i, i % 4) for i in range(40)])).judge(
        kind="calibration"
    )

    assert judged.verdict.passed
    assert not [note for note in judged.notes if "near copies" in note]


def test_a_warm_run_decodes_nothing(
    make_photos: Callable[..., Path],
    case_of: Callable[..., Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = make_photos(test=[photo(i, i % 4) for i in range(20)])
    gates = ("calibration", "fidelity", "accuracy")
    key = "photos/classification-acc1"
    cold = case_of(root)
    before = [cold.judge(kind=k, key=key if k == "accuracy" else "").verdict for k in gates]

    def refuse(*_: Any) -> None:
        pytest.fail("an image was decoded")

    monkeypatch.setattr(Pictures, "__getitem__", refuse)
    warm = case_of(root)
    after = [warm.judge(kind=k, key=key if k == "accuracy" else "").verdict for k in gates]
    assert after == before


# -- copies ---------------------------------------------------------------------------------------


def judge_task(case: Case) -> Verdict:
    (gate,) = case.suite.gates.all(AccuracyGate)
    verdict: Verdict = case.judge(kind="accuracy", key=gate.key).verdict
    return verdict


def test_an_export_that_ran_twice_is_worth_its_distinct_images(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    """Each time in another file: the bytes differ, the pictures do not."""
    kinds: tuple[dict[str, Any], ...] = (
        {"kind": "PNG"},
        {"kind": "PNG", "compress_level": 1},
        {"kind": "WEBP", "lossless": True},
    )
    once = [(picture(i), str(i % 4)) for i in range(20)]
    root = make_photos(test=[(encode(im, **kind), label) for kind in kinds for im, label in once])
    case = case_of(root)
    verdict = judge_task(case)

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "accuracy.copies")
    assert "40 of 60 samples are copies of others, 20 are distinct" in verdict.headline
    assert (verdict.figures["samples"], verdict.figures["copies"]) == (60, 40)

    alone = case_of(make_photos(test=[(encode(image), label) for image, label in once]))
    both = [judge_task(each).figures["drop_high_points"] for each in (case, alone)]
    assert both[0] == pytest.approx(both[1], abs=1.0)


def test_one_photograph_in_two_classes_is_judged_as_before(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    test = [photo(i, label) for i in range(40) for label in (i % 4, (i + 1) % 4)]
    case = case_of(make_photos(test=test))
    verdict = judge_task(case)

    assert verdict.passed, verdict.headline
    assert "on 80 samples of 4 classes" in verdict.headline
    fp16, _ = case.outcomes(task="photos/classification", metric="acc1", samples=None)
    assert (len(set(fp16.clusters)), fp16.copies) == (40, 0)


def test_captions_of_one_image_stored_apart_are_one_cluster(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    """As some exports do: a sample a caption, the photograph again in each."""
    words = ("red circle", "blue square", "green star")
    test = [(encode(picture(i)), f"a {words[i % 3]} {word}") for i in range(12) for word in words]
    root = make_photos(captioned=True, test=test, train=[photo(99 + i, "a cat") for i in range(20)])
    case = case_of(root, edits={"photos/classification, metric: acc1": RETRIEVAL})
    fp16, quantized = case.outcomes(
        task="photos/retrieval", metric="image_retrieval_recall@5", samples=None
    )

    assert fp16.clusters == quantized.clusters
    assert fp16.copies == 0
    # The captions of one picture, and the pictures of one caption: three kinds of words.
    assert len(set(fp16.clusters)) == 3


RETRIEVAL = "photos/retrieval, metric: image_retrieval_recall@5"


def test_calibration_on_copies_is_not_decided(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    root = make_photos(
        train=[*(photo(50 + i % 3, i % 3) for i in range(40)), *(photo(i, 3) for i in range(9))],
        test=[photo(200 + i, i % 4) for i in range(20)],
    )
    verdict = case_of(root).judge(kind="calibration").verdict

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "calibration.copies")
    assert "of 12 samples are copies of others" in verdict.headline


# -- classes that were not seen -------------------------------------------------------------------


def test_one_class_of_four_does_not_stand_for_the_task(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    root = make_photos(test=[photo(i, i // 40) for i in range(160)])
    first = judge_task(case_of(root, edits={"flips: 60%": "flips: 60%, samples: 40, first: true"}))
    drawn = judge_task(case_of(root, edits={"flips: 60%": "flips: 60%, samples: 40"}))

    assert (first.status, first.code) == (Status.INCONCLUSIVE, "accuracy.classes-unseen")
    assert "40 samples of 1 of 4 classes do not stand for the task" in first.headline
    assert first.evidence[0] == "without a sample: green, blue, yellow"
    assert first.next_step.startswith("leave out first: true, or evaluate on data that shows every")
    assert drawn.passed
    assert "on 40 samples of 4 classes" in drawn.headline


def test_data_without_a_class_passes_where_the_suite_says_so(
    make_photos: Callable[..., Path], case_of: Callable[..., Case]
) -> None:
    root = make_photos(test=[photo(i, i % 3) for i in range(60)])

    assert judge_task(case_of(root)).code == "accuracy.classes-unseen"
    verdict = judge_task(case_of(root, edits={"flips: 60%": "flips: 60%, min_classes: 3"}))
    assert verdict.passed
    assert "on 60 samples of 3 of 4 classes" in verdict.headline
