"""A TensorRT plan is code: one out of the cache is loaded only where it was built here."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_quantgate
from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.run.exported import EngineOrder
from pytest_quantgate.run.progress import Progress
from pytest_quantgate.run.stages import Stages
from pytest_quantgate.runtimes.engine_layers import EngineReport
from pytest_quantgate.store.cache import Cache, seal, write_json
from pytest_quantgate.store.plans import KnownPlans, default_plans_root

PLAN = b"a plan"
DIGEST = hashlib.sha256(PLAN).hexdigest()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(PLAN)
    return path


def test_a_plan_that_was_built_here_is_known_to_later_runs(plan: Path, tmp_path: Path) -> None:
    root = tmp_path / "state" / "plans"
    with pytest.raises(ValueError, match="was not built here and is not among those in"):
        KnownPlans(root).check(plan)

    known = KnownPlans(root)
    known.add(DIGEST)
    known.check(plan)
    KnownPlans(root).check(plan)

    plan.write_bytes(PLAN + b" with something in it")
    for each in (known, KnownPlans(root)):
        with pytest.raises(ValueError, match="was not built here"):
            each.check(plan)


def test_a_plan_that_never_ran_leaves_nothing_in_the_users_home(tmp_path: Path) -> None:
    KnownPlans(tmp_path / "plans").add(DIGEST)
    assert not (tmp_path / "plans").exists()


def test_a_digest_that_the_user_gave_is_known(plan: Path, tmp_path: Path) -> None:
    root = default_plans_root({"XDG_STATE_HOME": str(tmp_path)})
    root.mkdir(parents=True)
    (root / DIGEST).touch()

    KnownPlans(root).check(plan)


def test_a_folder_that_others_can_fill_knows_nothing(plan: Path, tmp_path: Path) -> None:
    root = tmp_path / "plans"
    root.mkdir()
    (root / DIGEST).touch()
    (tmp_path / "linked").symlink_to(root)
    with pytest.raises(ValueError, match="was not built here"):
        KnownPlans(tmp_path / "linked").check(plan)
    KnownPlans(root).check(plan)

    root.chmod(0o777)

    with pytest.raises(ValueError, match="was not built here"):
        KnownPlans(root).check(plan)


def test_a_plan_from_elsewhere_is_built_again_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that is whole by its manifest, whose report says what its author wants."""
    report = EngineReport(
        **dict.fromkeys(("target", "library", "library_version", "onnx_sha256"), "x"),  # type: ignore[arg-type]
        plan_sha256=DIGEST,
        **{f.name: 0 for f in fields(EngineReport) if f.type in ("int", "float")},  # type: ignore[arg-type]
        **{f.name: () for f in fields(EngineReport) if f.type.startswith("tuple")},  # type: ignore[arg-type]
        **{f.name: {} for f in fields(EngineReport) if f.type.startswith("Mapping")},  # type: ignore[arg-type]
    )
    built: list[Path] = []

    def build_engine(*, plan_path: Path, **_options: Any) -> EngineReport:
        built.append(plan_path)
        plan_path.write_bytes(PLAN)
        return report

    monkeypatch.setattr("pytest_quantgate.runtimes.engine.build_engine", build_engine)
    monkeypatch.setattr(
        "pytest_quantgate.runtimes.tensorrt_library.load_library",
        lambda name: SimpleNamespace(name=name, version="1"),
    )
    warnings: list[str] = []
    cache = Cache(root=tmp_path / "cache", warn=warnings.append)
    key = "ab" * 32

    def open_stages() -> Any:
        case = SimpleNamespace(
            cache=cache,
            environ={"XDG_STATE_HOME": str(tmp_path / "state")},
            key=lambda *_names, **_inputs: key,
            progress=Progress(write=lambda _text: None, mode="silent"),
            used={},
            suite=SimpleNamespace(model=SimpleNamespace(dtype="float16"), artifacts=None),
        )
        found = Stages(case)  # type: ignore[arg-type]
        monkeypatch.setattr(found, "onnx_path", lambda **_names: tmp_path / "x" / "model.onnx")
        monkeypatch.setattr(found, "_fixed_shapes", lambda *_names, **_sizes: ())
        return found

    order = EngineOrder(target="sm89", library="tensorrt", batch=1, source="x:1")
    entry = cache.path(kind="engine", key=key)
    entry.mkdir(parents=True)
    (entry / "model.plan").write_bytes(b"foreign code")
    write_json(entry / "report.json", to_json(report))
    seal(entry)

    _, read = open_stages().build_engine(variant="quantized", tower="vision", order=order)
    assert read.read_bytes() == b"foreign code"  # its sizes are looked at; it is not loaded
    assert not built

    for _ in range(2):  # the second is another run, which knows what the first one built
        stages = open_stages()
        for _ in range(2):
            _, path = stages.build_engine(
                variant="quantized", tower="vision", order=order, to_run=True
            )
            assert path.read_bytes() == PLAN
    assert len(built) == 1
    assert len(warnings) == 1
    assert "was not built here" in warnings[0]


def test_whatever_opens_a_plan_asks_for_one_that_may_run() -> None:
    """Plans reach the device from these places alone."""
    package = Path(pytest_quantgate.__file__).parent
    texts = {path.name: path.read_text("utf-8") for path in package.rglob("*.py")}
    openers = {name for name, text in texts.items() if "open_engine(" in text}
    assert openers == {"engine_run.py", "stages.py", "runner.py"}
    assert {name for name, text in texts.items() if "EngineRunner(" in text} == {"timed_runs.py"}
    asked = {name: text.count("runnable_engine(") for name, text in texts.items()}
    assert {name: count for name, count in asked.items() if count} == {
        "stages.py": 3,  # one is its definition
        "timed_runs.py": 1,
    }
    assert texts["stages.py"].count("to_run=True") == 1
    assert texts["given_engines.py"].count("check_may_run(") == 1
    assert {name for name, text in texts.items() if "deserialize_cuda_engine(" in text} == {
        "engine_run.py"
    }


def test_where_nothing_can_be_kept_a_plan_is_known_to_this_run_alone(
    plan: Path, tmp_path: Path
) -> None:
    (tmp_path / "plans").write_text("a file")
    known = KnownPlans(tmp_path / "plans")
    known.add(DIGEST)

    known.check(plan)

    with pytest.raises(ValueError, match="was not built here"):
        KnownPlans(tmp_path / "plans").check(plan)
