"""`quantgate validate`: names are looked up, folders searched, and nothing heavy is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.commands.suite_checks import check_suite
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {source: transformers, id: "${QUANTGATE_CLIP}"}
datasets:
  photos: {dataset: wds/photos, root: "${QUANTGATE_PHOTOS}"}
calibration: {data: photos/train, samples: 512, batch_size: 64}
quantize: {recipe: fp8, exclude: ["*patch_embedding*"]}
gates:
  coverage:
    waive: [{modules: "*proj*", reason: "why", until: 2026-01-01}]
  accuracy: {task: photos/classification, metric: acc1, max_drop: 1pp}
"""
FULL = {"QUANTGATE_CLIP": ".", "QUANTGATE_PHOTOS": "."}

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str = SUITE, *, name: str = "s") -> Path:
    path = Path(f"{name}.quantgate.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def check(old: str = "", new: str = "", *, environ: dict[str, str] = FULL) -> tuple[str, ...]:
    assert SUITE.count(old) == 1 or not old
    suite = load_suite(write(SUITE.replace(old, new) if old else SUITE))
    return check_suite(suite, environ=environ, today=date(2025, 12, 31)).errors


def test_suite_with_all_that_it_names_is_without_errors() -> None:
    assert check() == ()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fp8,", "fp9,", "s.quantgate.yaml:6: unknown recipe 'fp9'; did you mean 'fp8'?"),
        ("fp8,", "FP8_DEFALT_CFG,", "no preset 'FP8_DEFALT_CFG'; did you mean 'FP8_DEFAULT_CFG'?"),
        ("fp8,", "./mine.yaml,", "s.quantgate.yaml:6: recipe file ./mine.yaml does not exist"),
        (
            "fp8,",
            '[{quantizer_name: "*", enable: false}],',
            "every entry of quant_cfg switches off",
        ),
        ("fp8,", "{quant_cfg: {}},", "quant_cfg is empty"),
        ("fp8,", "{quant_cfg: 7},", "quant_cfg is a list of entries or a mapping of patterns"),
        ("fp8,", "{quant_cfg: [7]},", "quant_cfg[0] is no mapping"),
        ("fp8,", "{quant_cfg: [{a: b}], algoritm: max},", "not algoritm"),
        (
            "data: photos/train",
            "data: photo/train",
            "unknown data set 'photo'; did you mean 'photos'",
        ),
        ("photos/classification", "fotos/classification", "s.quantgate.yaml:10: unknown data set"),
        (', root: "${QUANTGATE_PHOTOS}"', "", "data set 'photos' needs a root"),
        ('"*patch_embedding*"', '"* patch*"', "'* patch*' can match no module"),
        ('"*proj*"', '"proj; rm"', "s.quantgate.yaml:9: 'proj; rm' can match no module"),
        (
            "until: 2026-01-01",
            "until: 9999-12-31",
            "s.quantgate.yaml:9: the waiver holds until 9999-12-31, more than 366 days from today: "
            "write 2027-01-01 or earlier",
        ),
    ],
)
def test_wrong_name_is_an_error_at_its_line(old: str, new: str, words: str) -> None:
    (error,) = check(old, new)

    assert error.startswith("s.quantgate.yaml:")
    assert words in error


@pytest.mark.parametrize("recipe", ["fp8-attention", "FP8_DEFAULT_CFG", "huggingface/vit/ptq/fp8"])
def test_known_recipes_pass(recipe: str) -> None:
    assert check("fp8,", f"{recipe},") == ()


def test_a_task_that_needs_a_tower_which_the_model_lacks_is_an_error() -> None:
    Path("config.json").write_text('{"model_type": "dinov2"}', encoding="utf-8")

    (error,) = check()
    assert error == (
        "s.quantgate.yaml:10: the model has no text tower, and photos/classification needs one "
        "(zero-shot: images against class names in templates): judge it by photos/knn "
        "(with labels) or photos/neighbours (without)"
    )
    assert check("photos/classification", "photos/knn") == ()


def test_a_bank_that_is_not_declared_is_an_error() -> None:
    (error,) = check("photos/classification", "photos/knn, bank: fotos/train")

    assert error.startswith("s.quantgate.yaml:10: unknown data set 'fotos'; did you mean 'photos'?")


def test_what_this_machine_lacks_is_a_note(capsys: Captured) -> None:
    assert main(["validate", str(write())], environ={}) == 0

    out, err = capsys.readouterr()
    assert err == ""
    assert out == (
        "s.quantgate.yaml: valid (s)\n"
        "  note: s.quantgate.yaml:4: environment variable QUANTGATE_PHOTOS is not set: "
        "export QUANTGATE_PHOTOS=PATH\n"
        "  note: s.quantgate.yaml:2: environment variable QUANTGATE_CLIP is not set: "
        "export QUANTGATE_CLIP=PATH\n"
        "  note: s.quantgate.yaml:9: the waiver ran out on 2026-01-01\n"
    )


def test_folder_that_is_not_there_is_a_note(capsys: Captured) -> None:
    environ = {"QUANTGATE_CLIP": "/no/a", "QUANTGATE_PHOTOS": "/no/b"}

    assert main(["validate", str(write())], environ=environ) == 0
    assert (
        "s.quantgate.yaml:2: there is nothing at ${QUANTGATE_CLIP} on this machine: "
        "export QUANTGATE_CLIP=PATH" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "parqet",
            ":4: parqet is looked for among clip-benchmark's sets; did you mean parquet",
        ),
        (
            "image_folder",
            ":4: image_folder is looked for among .*; did you mean imagefolder",
        ),
    ],
)
def test_a_kind_of_data_that_is_nearly_known_is_a_note(said: str, words: str) -> None:
    suite = load_suite(write(SUITE.replace("wds/photos", said)))

    notes = check_suite(suite, environ=FULL, today=date(2025, 1, 1)).notes

    assert any(re.search(words, note) for note in notes), notes


def test_columns_of_data_that_has_none_are_an_error() -> None:
    new = "dataset: wds/photos, columns: {label: kind}"
    (error,) = check("dataset: wds/photos", new)

    assert error == (
        "s.quantgate.yaml:4: wds/photos has images, labels and captions of its own: remove label, "
        "and name further columns under keep"
    )


@pytest.mark.parametrize(
    ("data", "by", "words"),
    [
        ("parquet, columns: {keep: [lux]}", "[lux, class]", None),
        (
            "parquet, columns: {keep: [lux]}",
            "[[lux, light]]",
            "slices by 'light': add columns: {keep: [lux, light]} to photos (s.quantgate.yaml:4)",
        ),
        (
            "wds/photos",
            "light",
            "slices by 'light': add columns: {keep: [light]} to photos (s.quantgate.yaml:4)",
        ),
    ],
)
def test_slices_by_a_column_that_is_not_kept_are_an_error(
    data: str, by: str, words: str | None
) -> None:
    text = SUITE.replace("dataset: wds/photos", f"dataset: {data}")
    text = text.replace("max_drop: 1pp", f"max_drop: 1pp, slices: {{by: {by}, max_drop: 5pp}}")
    assert text.count("slices") == 1

    errors = check_suite(load_suite(write(text)), environ=FULL).errors

    assert [*errors] == ([] if words is None else [f"s.quantgate.yaml:10: {words}"])


def test_slices_of_a_regression_gate_are_looked_at_too() -> None:
    gate = (
        "  regression: {task: photos/classification, metric: acc1, max_fp16_drop: 1pp, "
        "max_drop: 1pp, max_drop_since_first: 1pp, slices: {by: light, max_drop: 5pp}}\n"
    )
    (error,) = check_suite(load_suite(write(SUITE + gate)), environ=FULL).errors
    assert "slices by 'light': add columns: {keep: [light]} to photos (" in error
    scenes = SUITE + gate.replace("photos", "scenes")
    (error,) = check_suite(load_suite(write(scenes)), environ=FULL).errors
    assert "slices by 'light': scenes has no columns besides class" in error


def test_a_package_that_data_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    suite = load_suite(write(SUITE.replace("wds/photos", "parquet")))

    notes = check_suite(suite, environ=FULL, today=date(2025, 1, 1)).notes

    assert (
        "s.quantgate.yaml:4: parquet needs the package 'pyarrow', which is not installed here: "
        "pip install 'pytest-quantgate[data]'"
    ) in notes


def test_unused_data_set_is_a_note() -> None:
    text = SUITE.replace("datasets:\n", "datasets:\n  spare: {dataset: wds/x, root: ./x}\n")

    notes = check_suite(load_suite(write(text)), environ=FULL, today=date(2025, 1, 1)).notes

    assert "s.quantgate.yaml:4: data set 'spare' is declared and never used" in notes


def test_folders_are_searched_and_every_problem_is_shown(capsys: Captured) -> None:
    write(name="suites/good")
    write(SUITE.replace("fp8,", "fp9,"), name="suites/deep/bad")
    write("x", name="suites/worse")

    assert main(["validate", "suites", "missing.quantgate.yaml", "."], environ=FULL) == 1

    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "valid" in line] == [
        "suites/good.quantgate.yaml: valid (good)",
        "suites/good.quantgate.yaml: valid (good)",
    ]
    assert "suites/deep/bad.quantgate.yaml:6: unknown recipe 'fp9'" in err
    assert "suites/worse.quantgate.yaml:1: " in err
    assert "missing.quantgate.yaml:1: cannot read the suite" in err


def test_folder_without_suites_is_refused(capsys: Captured) -> None:
    Path("empty").mkdir()

    assert main(["validate", "empty"], environ={}) == 1
    assert capsys.readouterr().err == "empty: no *.quantgate.yaml below this folder\n"


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from pytest_quantgate.commands.cli import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'modelopt', 'pytest'} & set(sys.modules), 'heavy';"
        "sys.exit(status)"
    )
    path = write(SUITE.replace("fp8,", "FP8_DEFAULT_CFG,"))

    done = subprocess.run([sys.executable, "-c", code, "validate", str(path)], check=False)

    assert done.returncode == 0
