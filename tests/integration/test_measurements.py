"""What measurements really run through, against what is declared, and caches after a change."""

from __future__ import annotations

import fnmatch
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.mended import KINDS, PACKAGE, PAGE, PLANTS, REPLACED, ROOT
from pytest_quantgate.encoders.source import FILES
from pytest_quantgate.errors import ModelError
from pytest_quantgate.store.keys import ENGINES, MEASUREMENTS
from pytest_quantgate.store.surroundings import JUDGING
from pytest_quantgate.suite.load import load_suite

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case

#: Packages that are loaded while something is measured, and why none of them moves a number.
INERT = {
    "brought by PyTorch's own distribution": "functorch torchgen",
    "found and read by their digests: files of the hub": "huggingface_hub filelock",
    "a transport that nothing is sent by": "anyio certifi charset_normalizer h11 httpcore httpx "
    "idna requests urllib3",
    "what the tests run in": "_pytest benchmarks hypothesis iniconfig pluggy py pytest",
    "symbols of shapes, in PyTorch's compiler": "mpmath sympy networkx",
    "types, text and tables for people": "annotated_types attr click jinja2 markupsafe narwhals "
    "pygments rich tqdm typing_extensions typing_inspection",
    "imported by transformers and ModelOpt for what is not used here": "cloudpickle joblib pulp "
    "sklearn threadpoolctl",
    "asks the driver which GPUs there are": "cuda pynvml",
    "versions and installers": "_distutils_hack backports jaraco more_itertools packaging "
    "setuptools",
}

#: Fields of a suite that are read while something is measured, by the input that holds them.
FIELDS = {
    "model: the digest of its files, or of its factory's": "ModelSpec.factory ModelSpec.files "
    "ModelSpec.id ModelSpec.revision ModelSpec.source ModelSpec.towers",
    "dtype, attn_implementation": "ModelSpec.attn_implementation ModelSpec.dtype",
    "recipe": "QuantizeSpec.exclude QuantizeSpec.recipe",
    "calibration": "CalibrationSpec.batch_size CalibrationSpec.data CalibrationSpec.first "
    "CalibrationSpec.held_out_samples CalibrationSpec.samples CalibrationSpec.skip",
    "data: a digest of what is read, and how": "DatasetSpec.captions_per_image "
    "DatasetSpec.columns DatasetSpec.dataset DatasetSpec.exif_rotation DatasetSpec.language "
    "DatasetSpec.root DatasetSpec.test_split",
    "artifacts: digests of the files": "Suite.artifacts",
    "task, metric, samples, first": "AccuracyGate.first AccuracyGate.metric AccuracyGate.samples "
    "AccuracyGate.task FidelityGate.data FidelityGate.first FidelityGate.samples "
    "FidelityGate.stage",
    "softmax": "ExportGate.allow Gates.sections",
    "tower, samples": "LatencyGate.batch LatencyGate.tower",
    "none: the places that messages name": "CalibrationSpec.where DatasetSpec.where "
    "ModelSpec.where QuantizeSpec.where Where.file Where.keys Where.line",
    "none: what the others are in": "Suite.calibration Suite.datasets Suite.gates Suite.model "
    "Suite.quantize Suite.quantized",
}


def words_of(table: dict[str, str]) -> set[str]:
    return {word for words in table.values() for word in words.split()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    """What `recorded_run.py` writes down of a cold run of every kind of measurement."""
    script = Path(__file__).with_name("recorded_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def test_the_recorded_run_took_every_measurement(record: dict[str, Any]) -> None:
    """Engines need TensorRT, exclusions and pictures judge first, given graphs are none here."""
    stored = {measurement.kind for measurement in MEASUREMENTS} - {
        *("fp16", "without", "exported", "executed", "repaired"),  # only inputs of others
        *("engine", "exclusion", "previews", "near_copies", "onnx_check"),
    }

    assert set(record["built"]) >= stored


def test_no_package_is_loaded_that_is_not_declared(record: dict[str, Any]) -> None:
    declared = {name.partition(".")[0] for name in ENGINES} | {
        name for measurement in MEASUREMENTS for name in measurement.packages
    }
    loaded = {
        name
        for name in record["loaded"]
        if name not in sys.stdlib_module_names
        and not name.startswith("_")  # extension modules of the others
        and name not in ("cython_runtime", "pytest_quantgate")
    }

    assert loaded >= {"torch", "transformers", "modelopt", "onnxruntime", "PIL", "tokenizers"}
    assert loaded - declared - words_of(INERT) == set()


def test_no_setting_of_a_suite_is_read_that_no_key_holds(record: dict[str, Any]) -> None:
    assert "ModelSpec.dtype" in record["read"]
    assert set(record["read"]) - words_of(FIELDS) == set()


def test_no_file_is_opened_that_no_key_holds(record: dict[str, Any], folder: Path) -> None:
    """Of the model, of the data, of this package; libraries, the system and the cache aside."""
    weights = PACKAGE / "reference" / "weights"
    pictures = folder / "pictures"
    data = {
        *("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"),
        *("test/0.tar", "test/nshards.txt"),  # which names the shards whose digests count
    }
    seen = {"model": 0, "data": 0, "code": 0}
    judging = {measurement.kind for measurement in MEASUREMENTS if measurement.code == "whole"}
    for name, kind in record["opened"]:
        path = Path(name)
        if path.is_dir():
            continue  # opened so that no link is followed; nothing is read of it
        if path.is_relative_to(weights):
            seen["model"] += 1
            assert any(fnmatch.fnmatch(path.name, pattern) for pattern in FILES), name
        elif path.is_relative_to(pictures):
            seen["data"] += 1
            assert path.relative_to(pictures).as_posix() in data
        elif path.is_relative_to(PACKAGE) and path.suffix != ".pyc":
            seen["code"] += 1
            judges = path.relative_to(PACKAGE).as_posix().startswith(JUDGING)
            assert kind in judging or not judges, name
        elif path.is_relative_to(folder):
            assert path.is_relative_to(folder / "cache"), name
    assert all(seen.values())


def test_plants_are_in_most_modules_that_measure() -> None:
    """`benchmarks/mended.md` is the record of all of them; here are a few."""
    page = PAGE.read_text("utf-8")
    assert "0 of " in page
    assert all(f"| `{plant.module}` |" in page for plant in (*PLANTS, *REPLACED))
    assert {plant.spoils for plant in PLANTS} == set(KINDS)
    assert len({plant.module for plant in PLANTS}) == len(PLANTS) > 30
    assert not any(plant.module.startswith(JUDGING) for plant in PLANTS)


def test_a_mended_bug_and_a_replaced_runtime_are_measured_again_on_a_warm_cache() -> None:
    """The two lines of the issue: FP16 compared with itself in `run/measured.py`, and an ONNX
    Runtime of the same version whose vision outputs come out reversed."""
    some = r"^run/measured\.py|^onnxruntime/"

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.mended", "--only", some],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    rows = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "BAD"))]
    assert [row.split()[:2] for row in rows] == [
        ["ok", "run/measured.py"],
        ["ok", "onnxruntime/__init__.py"],
        ["ok", "all"],
    ], done.stdout + done.stderr
    assert rows[-1].endswith("the first values, nothing built")
    assert done.returncode == 0


@pytest.mark.parametrize("changed", ["model", "recipe"])
def test_files_that_change_while_a_suite_runs_are_not_taken_for_those_of_its_keys(
    make_case: Callable[..., Case], tiny_clip: Path, tmp_path: Path, changed: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_clip, model)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('quant_cfg: {"*weight_quantizer": {"num_bits": 8}, "default": {"enable": 0}}')
    path = tmp_path / "changing.quantgate.yaml"
    path.write_text(
        f"quantgate: 1\nmodel: {{source: transformers, id: {model}}}\n"
        "calibration: {data: scenes/calibration, samples: 8, batch_size: 8}\n"
        f"quantize: {{recipe: {recipe}}}\ngates: {{coverage: {{}}}}\n"
    )
    case = make_case(load_suite(path))
    key = case.variant_key
    edited = {"model": model / "config.json", "recipe": recipe}[changed]

    edited.write_text(edited.read_text() + "\n")

    with pytest.raises(ModelError, match=r"changing.*:\d: .* was changed while the suite ran: "):
        getattr(case, {"model": "fp16", "recipe": "recipe"}[changed])
    assert case.variant_key == key
