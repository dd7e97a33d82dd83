"""Two suites: every edit by its name, and whether it loosens or tightens."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_quantgate.comparison.changes import Change
from pytest_quantgate.comparison.suite_files import compare_suite, compare_suites, read_suites
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import Suite
from tests.unit.comparison.mirrored import mirror

SUITE = """\
quantgate: 1
model: {source: transformers, id: ./clip}
datasets:
  photos: {dataset: wds/photos, root: ./photos}
calibration: {data: photos/train, samples: 512, batch_size: 64}
quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}
gates:
  coverage: {attention: [q, k, v, output], towers: [vision, text]}
  calibration: {max_clipped: 0.1%}
  fidelity: {data: photos/test, samples: 512, min_cosine: 0.99, min_sqnr: 15dB}
  accuracy:
    - {task: photos/classification, metric: acc1, max_drop: 1pp, floor: 70%, max_flips: 5%}
  roundtrip: {}
  export: {allow: [softmax], max_size_ratio: 0.65x}
  engine: {target: sm89, attention: fused-fp8, min_fp8_gemms: 25, max_plan: 100MiB}
"""


def load(folder: Path, text: str, *, name: str = "clip") -> Suite:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.quantgate.yaml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path, relative_to=folder)


def compare(tmp_path: Path, *edits: tuple[str, str]) -> list[Change]:
    text = SUITE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return compare_suite(load(tmp_path / "a", SUITE), load(tmp_path / "b", text))


EDITS = [
    ("max_drop: 1pp", "max_drop: 2pp", "max_drop: 1pp -> 2pp, loosened (clip.quantgate.yaml:12)"),
    ("max_drop: 1pp", "max_drop: 0.5pp", "max_drop: 1pp -> 0.5pp, tightened"),
    ("floor: 70%", "floor: 60%", "floor: 70% -> 60%, loosened"),
    (", floor: 70%", "", "floor: 70% -> none, loosened"),
    (", max_flips: 5%", "", "max_flips: 5% -> none, loosened"),
    (
        "max_flips: 5%",
        "max_flips: 5%, max_class_drop: 9pp",
        "max_class_drop: none -> 9pp, tightened",
    ),
    (
        "max_flips: 5%",
        "max_flips: 5%, slices: {by: [class, [class, light]], max_drop: 9pp}",
        "slices: none -> {by: [[class], [class, light]], max_drop: 9pp}, tightened",
    ),
    ("max_flips: 5%", "max_flips: 5%, published: 75%", "published: none -> 75%, tightened"),
    ("max_flips: 5%", "max_flips: 5%, confidence: 90%", "confidence: 95% -> 90%, loosened"),
    ("max_flips: 5%", "max_flips: 5%, samples: 9", "samples: none -> 9, loosened"),
    ("min_cosine: 0.99", "min_cosine: 0.9", "fidelity.min_cosine: 0.99 -> 0.9, loosened"),
    ("min_sqnr: 15dB", "min_sqnr: 20dB", "fidelity.min_sqnr: 15dB -> 20dB, tightened"),
    ("samples: 512, min", "samples: 64, min", "fidelity.samples: 512 -> 64, loosened"),
    ("[q, k, v, output]", "[q, k, v]", "attention: [q, k, v, output] -> [q, k, v], loosened"),
    ("[vision, text]", "[vision]", "coverage.towers: [vision, text] -> [vision], loosened"),
    ("max_clipped: 0.1%", "max_clipped: 1%", "calibration.max_clipped: 0.1% -> 1%, loosened"),
    ("allow: [softmax], ", "", "export.allow: [softmax] -> [], tightened"),
    ("0.65x", "0.7x", "export.max_size_ratio: 0.65x -> 0.7x, loosened"),
    ("attention: fused-fp8", "attention: fused", "attention: fused-fp8 -> fused, loosened"),
    ("attention: fused-fp8, ", "", "attention: fused-fp8 -> none, loosened"),
    ("min_fp8_gemms: 25", "min_fp8_gemms: 24", "min_fp8_gemms: 25 -> 24, loosened"),
    ("100MiB", "1GiB", "max_plan: 104857600 bytes -> 1073741824 bytes, loosened"),
    ("roundtrip: {}\n", "parity: {}\n", "gate roundtrip is gone: nothing decides on it any more"),
    ("recipe: fp8-attention", "recipe: fp8", "quantize.recipe: fp8-attention -> fp8"),
    ('["*patch_embedding*"]', "[]", "quantize.exclude: [*patch_embedding*] -> []"),
    ("id: ./clip", "id: ./clip2", "model.id: ./clip -> ./clip2"),
    ("samples: 512, batch", "samples: 64, batch", "calibration.samples: 512 -> 64, loosened"),
    ("root: ./photos", "root: ./other", "datasets.photos.root: ./photos -> ./other"),
]


@pytest.mark.parametrize(("old", "new", "words"), EDITS, ids=[words for _, _, words in EDITS])
def test_every_edit_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    found = compare(tmp_path, (old, new))

    assert any(words in change.text for change in found), [change.text for change in found]
    kinds = [word for word in ("loosened", "tightened") if f", {word}" in words]
    assert [change.kind for change in found if change.kind.endswith("ened")] == kinds


@pytest.mark.parametrize(("old", "new", "words"), EDITS, ids=[words for _, _, words in EDITS])
def test_every_edit_is_mirrored(tmp_path: Path, old: str, new: str, words: str) -> None:
    one, two = load(tmp_path / "a", SUITE), load(tmp_path / "b", SUITE.replace(old, new))

    assert {(c.kind, c.subjects, c.before, c.after) for c in compare_suite(one, two)} == {
        (mirror(c.kind), c.subjects, c.after, c.before) for c in compare_suite(two, one)
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_drop: 1pp", "max_drop: 1.0pp"),
        ("max_drop: 1pp", "max_drop: 1pp, confidence: 95%"),
        ("quantgate: 1\n", "# a comment\n\nquantgate: 1\n"),
        ("samples: 512, batch_size: 64", "batch_size: 64, samples: 512"),
    ],
)
def test_what_means_the_same_is_the_same(tmp_path: Path, old: str, new: str) -> None:
    assert compare(tmp_path, (old, new)) == []


def test_columns_of_data_are_compared_key_by_key(tmp_path: Path) -> None:
    folder = "photos: {dataset: imagefolder, root: ./photos, columns: {label: kind}}"
    text = SUITE.replace("photos: {dataset: wds/photos, root: ./photos}", folder)
    one = load(tmp_path / "a", text)
    moved = load(tmp_path / "b", f"# a comment\n\n{text}")
    other = load(tmp_path / "c", text.replace("label: kind", "label: class, keep: [camera, lux]"))
    none = load(tmp_path / "d", text.replace(", columns: {label: kind}", ""))

    assert compare_suite(one, moved) == []
    assert [change.text for change in compare_suite(one, other)] == [
        "clip datasets.photos.columns.label: kind -> class (clip.quantgate.yaml:4)",
        "clip datasets.photos.columns.keep: [] -> [camera, lux] (clip.quantgate.yaml:4)",
    ]
    assert [change.text for change in compare_suite(one, none)] == [
        "clip datasets.photos.columns.label: kind -> none (clip.quantgate.yaml:4)"
    ]
    (added,) = compare_suite(load(tmp_path / "e", SUITE.replace("photos:", "x:", 1)), one)[:1]
    assert "Where" not in added.text


def test_named_recipes_are_compared_entry_by_entry(tmp_path: Path) -> None:
    texts = [c.text for c in compare(tmp_path, ("recipe: fp8-attention", "recipe: fp8"))]

    assert texts[1:] == [
        f"recipe entry removed: *{slot}_quantizer: E4M3 per-tensor"
        for slot in ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
    ]


def test_inline_recipe_is_compared_entry_by_entry(tmp_path: Path) -> None:
    inline = 'recipe: {quant_cfg: [{quantizer_name: "*", enable: %s}], algorithm: max}'
    one = load(tmp_path / "a", SUITE.replace("recipe: fp8-attention", inline % "false"))
    two = load(tmp_path / "b", SUITE.replace("recipe: fp8-attention", inline % "true"))

    assert [c.text for c in compare_suite(one, two)] == [
        "the recipe switches something on again",
        "recipe entry removed: *: off",
        "recipe entry added: *: on",
    ]


@pytest.mark.parametrize("value", ["0", "false", "-1.5", "words"])
def test_inline_recipe_that_is_none_is_compared_all_the_same(tmp_path: Path, value: str) -> None:
    """Building the variant refuses it; what a branch did to it can be told before."""
    inline = f"recipe: {{quant_cfg: {value}}}"
    one, two = (
        load(tmp_path / "a", SUITE),
        load(tmp_path / "b", SUITE.replace("recipe: fp8-attention", inline)),
    )

    texts = [change.text for change in compare_suite(one, two)]

    assert any(text.startswith("recipe entry added: no entries: ") for text in texts), texts


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ('[{quantizer_name: "*", enable: false}]', "every entry is off"),
        (
            '[{quantizer_name: "*weight_quantizer", cfg: {num_bits: [4, 3]}}, '
            '{quantizer_name: "*", enable: false}]',
            "`*: off` stands behind the entries that switch on, and takes them back",
        ),
    ],
)
def test_recipe_that_switches_nothing_on_any_more_is_said_so(
    tmp_path: Path, recipe: str, reason: str
) -> None:
    one = load(tmp_path / "a", SUITE)
    two = load(tmp_path / "b", SUITE.replace("fp8-attention", recipe))

    texts = [c.text for c in compare_suite(one, two)]

    assert f"the recipe switches nothing on any more: {reason}" in texts
    assert not any("switches" in c.text for c in compare_suite(one, one))


def test_default_of_the_dict_form_comes_first_wherever_it_stands(tmp_path: Path) -> None:
    def suite(folder: str, recipe: str) -> Suite:
        return load(tmp_path / folder, SUITE.replace("fp8-attention", recipe))

    on = '"*weight_quantizer": {num_bits: [4, 3]}'
    one = suite("a", f"{{{on}, default: {{enable: false}}}}")
    two = suite("b", f"{{default: {{enable: false}}, {on}}}")

    assert [c.text for c in compare_suite(one, two)] == []


def test_suites_that_came_or_went_are_named(tmp_path: Path) -> None:
    load(tmp_path / "a", SUITE, name="one")
    load(tmp_path / "b", SUITE, name="two")

    found = compare_suites(
        read_suites(tmp_path / "a"), read_suites(tmp_path / "b"), labels=("a", "b")
    )

    assert [(c.kind, c.subjects) for c in found.changes] == [
        ("removed", ("one",)),
        ("added", ("two",)),
    ]
    assert "(coverage, calibration, fidelity, accuracy[photos/classification-acc1], " in (
        found.changes[0].text
    )


def test_two_named_files_are_compared_though_their_names_differ(tmp_path: Path) -> None:
    one = load(tmp_path / "a", SUITE, name="one")
    two = load(tmp_path / "b", SUITE, name="two")

    found = compare_suites({"one": one}, {"two": two}, labels=("a", "b"), by_name=False)

    assert found.changes == ()


SLICES = "slices: {by: [light, class], max_drop: 9pp, min_samples: 60}, published: 75%"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("9pp", "8pp", "slices.max_drop: 9pp -> 8pp, tightened"),
        ("min_samples: 60", "min_samples: 90", "slices.min_samples: 60 -> 90, loosened"),
        (", min_samples: 60", "", "slices.min_samples: 60 -> none, tightened"),
        ("[light, class]", "light", "slices.by: [[light], [class]] -> [[light]], loosened"),
        ("75%", "74%", "published: 75% -> 74% ("),
        ("75%", "75%, tolerance: 2pp", "tolerance: 1pp -> 2pp, loosened"),
    ],
)
def test_a_change_of_slices_says_what_it_lets_through(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    text = SUITE.replace("max_flips: 5%", f"max_flips: 5%, {SLICES}")
    assert text.count(old) == 1

    (change,) = compare_suite(
        load(tmp_path / "a", text), load(tmp_path / "b", text.replace(old, new))
    )

    assert words in change.text
