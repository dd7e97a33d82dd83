"""Names of data and tasks, built-in data, and clip-benchmark's own data sets."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clip_benchmark.datasets import builder
from PIL import Image

from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.suite.specs import DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import data_key, evaluation_data, load_samples
from pytest_quantgate.tasks.samples import Samples, fill

WHERE = Where(file="suites/x.quantgate.yaml", line=4)


def load(
    name: str, *, count: int | None = 4, purpose: Any = "classification", **more: Any
) -> Samples:
    given: dict[str, Any] = {"datasets": {}, "environ": {}, **more}
    return load_samples(name, samples=count, purpose=purpose, **given)


def test_tasks_are_evaluated_on_the_test_split() -> None:
    assert evaluation_data("scenes/classification") == ("scenes/test", "classification")
    assert evaluation_data("my/photos/retrieval") == ("my/photos/test", "retrieval")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("scenes/clasification", "did you mean scenes/classification"),
        (
            "scenes/detection",
            "tasks are classification, retrieval, knn, .*, filter, duplicates, multilingual$",
        ),
        ("scenes", "'scenes' is no task: write <data set>/<kind>, of class"),
        ("/test", "'/test' is no task"),
    ],
)
def test_an_unknown_task_is_named(task: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluation_data(task)


def test_scenes_have_labels_or_captions_by_purpose() -> None:
    classes, pairs = load("scenes/test"), load("scenes/calibration", purpose="pairs")
    retrieval = load("scenes/test", purpose="retrieval")

    assert classes.labels is not None
    assert len(classes.class_names) == 100
    assert pairs.captions is not None
    assert retrieval.labels is None
    assert len(set(classes.hashes) | set(pairs.hashes)) == 8
    assert classes.digest != retrieval.digest


def test_digits_have_labels_and_both_purposes_of_them() -> None:
    found = load("digits/test")
    everything = load("digits/test", count=None)

    assert set(found.ids) < set(everything.ids)
    assert load("digits/test", first=True).ids == everything.ids[:4]
    assert load("digits/test", count=596).ids == everything.ids
    assert set(load("digits/test", count=10).labels or ()) == set(range(10))
    assert len(everything) == 596
    assert load("digits/train", purpose="pairs").text(0) in {
        fill(template, name) for template in found.templates for name in found.class_names
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits/test", {"purpose": "retrieval"}, "digits have labels and no captions"),
        ("digits/val", {}, "digits has no split 'val'; splits: train, test"),
        ("scenes/val", {}, "scenes has no split 'val'; splits: "),
        ("scene/test", {}, "unknown data set 'scene'; did you mean 'scenes'"),
        ("photos/test", {}, "unknown data set 'photos'; known here: scenes, digits"),
        ("digits/test", {"count": 600}, "digits/test has 596 samples, 600 are asked for"),
    ],
)
def test_what_is_not_there_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name, **options)


def test_a_data_set_without_a_root_is_named() -> None:
    datasets = {"cifar": DatasetSpec(where=WHERE, dataset="cifar100")}
    with pytest.raises(DataError, match=r"x\.quantgate\.yaml:4: data set 'cifar' needs a root"):
        load("cifar/test", datasets=datasets)


def test_the_key_of_built_in_data_needs_no_decoding() -> None:
    def key(name: str, samples: int | None, purpose: Any) -> str | None:
        return data_key(name, datasets={}, samples=samples, environ={}, purpose=purpose)

    keys = {
        key("scenes/test", None, "classification"),
        key("scenes/test", 4, "classification"),
        key("scenes/test", None, "retrieval"),
        key("digits/test", None, "classification"),
    }
    assert len(keys) == 4
    assert None not in keys


class Fake:
    """A data set as clip-benchmark's builder returns it."""

    classes = ("cat", "dog")
    templates: Any = ("a photo of a {c}.",)

    def __init__(self, targets: list[Any]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels = np.full((4, 4), index, dtype=np.uint8)
        return Image.fromarray(pixels), self.targets[index]


class Sorted(Fake):
    """A hundred samples, class after class, that notes what was decoded."""

    classes = tuple("abcde")  # type: ignore[assignment]

    def __init__(self, keeps: str) -> None:
        self.values = [index // 20 for index in range(100)]
        self.decoded: set[int] = set()
        setattr(self, keeps, self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.decoded.add(index)
        pixels = np.full((4, 4), index, dtype=np.uint8)
        return Image.fromarray(pixels), self.values[index]


@pytest.fixture
def use_builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Load a data set that the builder makes, or refuses with an error."""

    def use(
        found: Any, *, name: str = "cifar100", **options: Any
    ) -> tuple[Samples, dict[str, Any]]:
        asked: dict[str, Any] = {}

        def build(**arguments: Any) -> Any:
            asked.update(arguments)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(builder, "build_dataset", build)
        datasets: Mapping[str, DatasetSpec] = {
            "mine": DatasetSpec(where=WHERE, dataset=name, root=str(tmp_path))
        }
        return load("mine/test", datasets=datasets, **options), asked

    return use


def test_clip_benchmark_sets_keep_their_order_names_and_templates(use_builder: Any) -> None:
    found, asked = use_builder(Fake([0, 1, 1]), count=None)

    assert found.labels == (0, 1, 1)
    assert found.templates == ("a photo of a {c}.",)
    assert found.images[1].mode == "RGB"
    assert len(found.images[0:3]) == 3
    assert len(set(found.hashes)) == 3
    assert asked["download"] is False
    assert (asked["dataset_name"], asked["split"]) == ("cifar100", "test")
    with pytest.raises(IndexError):
        _ = found.images[3]


@pytest.mark.parametrize("keeps", ["targets", "labels", "_labels", "nothing that says"])
def test_only_what_is_drawn_is_decoded(use_builder: Any, keeps: str) -> None:
    """The labels are taken where torchvision's sets keep them; without, all are one class."""
    there = Sorted(keeps)
    found, _ = use_builder(there, count=10)

    assert len(there.decoded) == len(found) == 10
    assert found.labels is not None
    if keeps != "nothing that says":
        assert Counter(found.labels) == dict.fromkeys(range(5), 2)
    assert found.ids[0] == f"cifar100/test/{min(there.decoded):06d}"
    assert np.asarray(found.images[0])[0, 0, 0] == min(there.decoded)


def test_a_target_that_is_no_class_is_named(use_builder: Any) -> None:
    with pytest.raises(DataError, match=r"cifar100: sample 0: its target is no class index, but"):
        use_builder(Fake([np.zeros(20)]), count=1)


def test_clip_benchmark_captions(use_builder: Any) -> None:
    found, asked = use_builder(
        Fake([["one", "two"], "three"]), name="mscoco_captions", count=2, purpose="retrieval"
    )

    assert found.captions == (("one", "two"), ("three",))
    assert asked["task"] == "zeroshot_retrieval"


@pytest.mark.parametrize("error", [FileNotFoundError("no"), RuntimeError("Dataset not found")])
def test_a_set_that_is_not_on_disk_is_not_measured(use_builder: Any, error: Exception) -> None:
    with pytest.raises(NotMeasured, match="put the data set there first, for example with: clip_b"):
        use_builder(error)


def test_an_unknown_clip_benchmark_set_is_named(use_builder: Any) -> None:
    with pytest.raises(DataError, match=r"cifar100: clip-benchmark cannot build it: Unsupported"):
        use_builder(ValueError("Unsupported dataset: cifar1000."))


def test_templates_by_class_are_refused(use_builder: Any) -> None:
    fake = Fake([0])
    fake.templates = {"cat": ["a cat"]}
    with pytest.raises(DataError, match="templates differ by class"):
        use_builder(fake, count=1)


def test_labels_and_captions_are_not_mixed_up(use_builder: Any) -> None:
    with pytest.raises(DataError, match="use <data set>/retrieval"):
        use_builder(Fake([["one"]]), name="mscoco_captions", count=1)
    with pytest.raises(DataError, match="use <data set>/classification"):
        use_builder(Fake([0]), count=1, purpose="retrieval")


def test_the_real_builder_refuses_an_unknown_name(tmp_path: Path) -> None:
    datasets = {"x": DatasetSpec(where=WHERE, dataset="no_such_set", root=str(tmp_path))}
    with pytest.raises(DataError, match="no_such_set: clip-benchmark cannot build it"):
        load("x/test", datasets=datasets)


def test_the_real_builder_finds_nothing_in_an_empty_folder(tmp_path: Path) -> None:
    datasets = {"x": DatasetSpec(where=WHERE, dataset="cifar100", root=str(tmp_path))}
    with pytest.raises(NotMeasured, match="cifar100: not found under"):
        load("x/test", datasets=datasets)
    gone = {"x": DatasetSpec(where=WHERE, dataset="cifar100", root=str(tmp_path / "gone"))}
    with pytest.raises(NotMeasured, match="does not exist"):
        load("x/test", datasets=gone)


def test_without_clip_benchmark_the_install_line_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark.datasets", None)
    datasets = {"x": DatasetSpec(where=WHERE, dataset="cifar100", root=str(tmp_path))}
    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[clip\]'"):
        load("x/test", datasets=datasets)


def test_samples_must_be_whole() -> None:
    common: dict[str, Any] = {"name": "d", "images": [None, None], "hashes": ("1", "2")}
    bare = Samples(ids=("a", "b"), **common)
    with pytest.raises(DataError, match="neither labels nor captions: there is no text"):
        bare.text(0)
    with pytest.raises(DataError, match="1 sample ids are not unique, first 'a'"):
        Samples(ids=("a", "a"), captions=(("x",), ("y",)), **common)


def test_a_part_of_a_part_keeps_its_order() -> None:
    samples = Samples(
        name="d",
        ids=tuple("abcd"),
        images=list("ABCD"),
        hashes=tuple("1234"),
        captions=tuple((letter,) for letter in "wxyz"),
    )
    part = samples.take(1, 4).select([2, 0])

    assert part.ids == ("d", "b")
    assert list(part.images[:]) == ["D", "B"]
    assert part.images[1] == "B"
    assert len(part.images) == 2
    assert part.text(0) == "z"
    assert part.digest != samples.digest


def test_a_template_is_filled_and_nothing_is_evaluated() -> None:
    assert fill("a {c} of {c.__class__}", "cat") == "a cat of {c.__class__}"


def test_texts_take_turns_with_the_templates() -> None:
    samples = Samples(
        name="d",
        ids=("a", "b"),
        images=[None, None],
        hashes=("1", "2"),
        labels=(0, 0),
        class_names=("cat",),
        templates=("a {c}", "the {c}"),
    )
    assert [samples.text(0), samples.text(1)] == ["a cat", "the cat"]
    plain = SimpleNamespace(**{**vars(samples), "templates": ()})
    assert Samples.text(plain, 0) == "cat"  # type: ignore[arg-type]
