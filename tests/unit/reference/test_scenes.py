"""The scenes: the same bits everywhere, prefixes, disjoint splits, captions that say the truth."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pytest_quantgate.reference import scenes
from pytest_quantgate.reference.scenes import Kind, Split, render_retrieval, render_scenes

pytestmark = pytest.mark.slow

SPLITS: tuple[Split, ...] = ("train", "calibration", "test")

# sha256 of the image bytes of the first 64 scenes. They may change only together with the
# weights, the model card's figures and every baseline that was made from scenes.
FIRST_64: dict[tuple[Split, Kind], str] = {
    ("train", "single"): "db9c83ce14c774855716bcf901c48010bb08ba0c065cd6b2b2f95c220427102b",
    ("train", "relation"): "c27817b8eadd66713e88a76331eaf8dc564a9db19c8600265cc0afa0eb369301",
    ("calibration", "single"): "e60b5a1c5ac93bdc1bac0f485d10b552851d7bcca0b77abad4138532097e9bb9",
    ("calibration", "relation"): "47cb17fbd2127f646c8e0cfcbb1e57bb358ae43863413386a856e771fc47793a",
    ("test", "single"): "267c891ea82cc2b497a13ad28c8f0d36a99a6e3d28fc1e292461650c2f0c3d2e",
    ("test", "relation"): "e42c949dc38eecd35a3ef3518fe8f871ef6d1e6513fcfc098958591fa9f06503",
}


@pytest.mark.parametrize(("split", "kind"), FIRST_64, ids="-".join)
def test_the_first_scenes_are_the_same_bits_on_every_machine(split: Split, kind: Kind) -> None:
    rendered = render_scenes(split=split, kind=kind, count=64)
    assert hashlib.sha256(rendered.images.tobytes()).hexdigest() == FIRST_64[split, kind]


def test_shapes_and_types() -> None:
    rendered = render_scenes(split="test", count=3)
    assert rendered.images.shape == (3, 48, 48, 3)
    assert rendered.images.dtype == np.uint8
    assert rendered.images.flags.c_contiguous
    assert rendered.labels.dtype == np.int64
    assert rendered.ids == tuple(f"scenes/test/single/00000{i}" for i in range(3))


@pytest.mark.parametrize("kind", ["single", "relation", "mixed"])
@pytest.mark.parametrize("distinct", [False, True])
def test_a_shorter_rendering_is_a_prefix_of_a_longer_one(kind: Kind, distinct: bool) -> None:
    longer = render_scenes(split="test", kind=kind, count=150, distinct_captions=distinct)
    for count in (0, 1, 63, 64, 65, 101):
        shorter = render_scenes(split="test", kind=kind, count=count, distinct_captions=distinct)
        assert np.array_equal(shorter.images, longer.images[:count])
        assert np.array_equal(shorter.labels, longer.labels[:count])
        assert shorter.captions == longer.captions[:count]
        assert shorter.ids == longer.ids[:count]


@pytest.mark.parametrize("kind", ["single", "relation", "mixed"])
@pytest.mark.parametrize("start", [1, 63, 64, 90])
def test_a_range_is_cut_out_of_the_whole(kind: Kind, start: int) -> None:
    whole = render_scenes(split="train", kind=kind, count=start + 70)
    part = render_scenes(split="train", kind=kind, start=start, count=70)
    assert np.array_equal(part.images, whole.images[start:])
    assert part.ids == whole.ids[start:]
    assert part.captions == whole.captions[start:]


def test_mixed_scenes_are_single_and_relation_scenes_in_turn() -> None:
    mixed = render_scenes(split="test", kind="mixed", count=8)
    assert mixed.ids[:3] == (
        "scenes/test/single/000000",
        "scenes/test/relation/000000",
        "scenes/test/single/000001",
    )
    singles = render_scenes(split="test", kind="single", count=4)
    assert np.array_equal(mixed.images[::2], singles.images)


def test_no_image_is_in_two_splits_nor_twice_in_one() -> None:
    digests: list[str] = []
    for split in SPLITS:
        images = render_scenes(split=split, kind="mixed", count=2000).images
        digests += [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert len(set(digests)) == len(digests) == 6000


def test_labels_captions_and_attributes_agree() -> None:
    rendered = render_scenes(split="test", kind="mixed", count=400)
    for index, (label, caption) in enumerate(zip(rendered.labels, rendered.captions, strict=True)):
        assert scenes.CLASS_NAMES[label] in caption
        relation = int(rendered.attributes.relation[index])
        if relation < 0:
            words = caption.split()
            assert words[0] == "a"
            assert words[1] in scenes.SIZES
            assert words[2] in scenes.TEXTURES
            assert caption.endswith(scenes.POSITIONS[rendered.attributes.position[index]])
        else:
            first, second = caption.split(f" {scenes.RELATIONS[relation]} ")
            assert first.endswith(scenes.CLASS_NAMES[label])
            other = int(
                rendered.attributes.other_shape[index] * 10
                + rendered.attributes.other_colour[index]
            )
            assert second.endswith(scenes.CLASS_NAMES[other])


def test_every_class_is_about_equally_frequent() -> None:
    counts = np.bincount(render_scenes(split="test", count=5000).labels, minlength=100)
    assert counts.min() >= 25
    assert counts.max() <= 80


def test_the_position_in_the_caption_is_where_the_colour_is() -> None:
    rendered = render_scenes(split="train", count=3000)
    a = rendered.attributes
    small = np.flatnonzero((a.size == 0) & (a.texture == 0) & (a.shape == 0))
    assert len(small) > 5
    for index in small:
        colour = np.array(scenes._PALETTE[a.colour[index]])
        distance = np.abs(rendered.images[index].astype(int) - colour).sum(axis=2)
        row, column = divmod(int(a.position[index]), 3)
        places = [24 + (place - 1) * 14 for place in range(3)]
        inside = distance[
            places[row] - 3 : places[row] + 3, places[column] - 3 : places[column] + 3
        ]
        assert inside.mean() < distance.mean()


def test_articles_fit() -> None:
    captions = render_scenes(split="test", kind="relation", count=400).captions
    assert any("an outlined" in caption for caption in captions)
    assert not any("a outlined" in caption for caption in captions)
    terse = render_scenes(split="test", kind="relation", detail="terse", count=400).captions
    assert any(caption.startswith("an orange") for caption in terse)
    assert not any("a orange" in caption for caption in terse)


def test_distinct_captions_are_distinct_either_way_round() -> None:
    rendered = render_retrieval(split="test", count=1000)
    assert len(set(rendered.captions)) == len(rendered.ids) == 1000
    said = set(rendered.captions)
    mirror = {" left of ": " right of ", " right of ": " left of ", " above ": " below "}
    mirror[" below "] = " above "
    for caption in rendered.captions:
        relation = next(relation for relation in mirror if relation in caption)
        first, second = caption.split(relation)
        assert second + mirror[relation] + first not in said - {caption}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation", "count": 1}, "split must be one of train, calibration, test"),
        ({"split": "test", "count": 1, "kind": "pair"}, "kind must be one of single, relation"),
        ({"split": "test", "count": 1, "detail": "long"}, "detail must be one of full, terse"),
        ({"split": "test", "count": -1}, "must not be negative, got -1 and 0"),
        ({"split": "test", "count": 1, "start": -2}, "must not be negative, got 1 and -2"),
        (
            {"split": "test", "count": 1, "start": 1, "distinct_captions": True},
            "distinct_captions needs start=0",
        ),
        (
            {"split": "test", "count": 101, "detail": "terse", "distinct_captions": True},
            "at most 100 single scenes with distinct terse captions, got 101",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_scenes(**arguments)  # type: ignore[arg-type]


def test_class_names_and_templates() -> None:
    assert len(scenes.CLASS_NAMES) == len(set(scenes.CLASS_NAMES)) == 100
    assert scenes.CLASS_NAMES[0] == "red circle"
    assert scenes.CLASS_NAMES[57] == "pink ring"
    assert all("{c}" in template for template in scenes.TEMPLATES)


def test_the_sine_table_is_far_from_ties() -> None:
    # A rounding tie would let two C libraries disagree.
    import math

    for k in range(256):
        exact = math.sin(2 * math.pi * k / 256) * 16384
        assert abs(abs(exact - math.floor(exact)) - 0.5) > 1e-6
