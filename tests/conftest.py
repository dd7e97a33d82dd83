"""Shared by all tests: a tiny CLIP checkpoint, a suite text that uses it, one cache a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.store.surroundings import Surroundings
    from pytest_quantgate.suite.specs import Suite

pytest_plugins = ["pytester"]

REPOSITORY = Path(__file__).parents[1]

# The same examples in every run, and no test that fails because the machine was busy.
hypothesis.settings.register_profile(
    "quantgate",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("quantgate")


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the width that pytest-xdist gives its workers: a log has none."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _no_ci_variables() -> None:
    """The tests decide themselves when they run "under CI"."""
    for name in ("CI", "BUILD_NUMBER", "GITHUB_STEP_SUMMARY"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer CLIP with the reference model's tokenizer, saved as a checkpoint.

    Trained a little (`train_tiny_clip.py`): the sanity gate refuses a random one.
    """
    from tests.train_tiny_clip import save_tiny_clip

    return save_tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of a session that may share built variants."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def surroundings() -> Surroundings:
    """What every measurement of a session runs in, looked at once."""
    from pytest_quantgate.store.surroundings import Surroundings

    return Surroundings()


@pytest.fixture
def make_case(
    tmp_path: Path, shared_cache: Path, pytestconfig: pytest.Config, surroundings: Surroundings
) -> Callable[..., Case]:
    """Make the case of a suite with the session's cache, without a run of pytest around it."""
    from pytest_quantgate.plugin.options import resolve_settings
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.run.progress import silent
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.cache import Cache

    settings = replace(resolve_settings(pytestconfig), baselines_dir=tmp_path / "baselines")

    def make(suite: Suite, *, environ: Mapping[str, str] = {}, **changes: Any) -> Case:
        return Case(
            suite=suite,
            settings=replace(settings, **changes),
            store=Store(tmp_path / "baselines"),
            cache=Cache(root=shared_cache, warn=pytest.fail),
            progress=silent(),
            environ=environ,
            surroundings=surroundings,
        )

    return make


@pytest.fixture
def assume_sane() -> Callable[[Case], Case]:
    """Take a case's model and data for sane: what is judged may be noise with any labels."""
    from pytest_quantgate.evidence.sanity import NO_TEXTS, Sanity

    def assume(case: Case) -> Case:
        vars(case)["sanity"] = Sanity(data="noise", pairs=1, reading=NO_TEXTS)
        return case

    return assume


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that only code which nobody may run would create."""
    return tmp_path / "canary"


TINY_SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 20%}}
  fidelity: {{data: scenes/test, samples: 32, min_cosine: 0.5}}
  accuracy:
    - {{task: scenes/classification, metric: acc1, max_drop: 50pp, samples: 64}}
  regression:
    - {{task: scenes/classification, metric: acc1, samples: 64,
       max_fp16_drop: 20pp, max_drop: 20pp, max_drop_since_first: 20pp}}
  roundtrip: {{}}
"""


@pytest.fixture
def write_suite(pytester: pytest.Pytester, tiny_clip: Path) -> Callable[..., Path]:
    """Write `suites/<name>.quantgate.yaml` for the tiny CLIP; `replace` maps old text to new."""

    def write(
        *, name: str = "tiny", recipe: str = "fp8-attention", replace: dict[str, str] | None = None
    ) -> Path:
        text = TINY_SUITE.format(model=tiny_clip, recipe=recipe)
        for old, new in (replace or {}).items():
            assert old in text, f"{old!r} is not in the suite"
            text = text.replace(old, new)
        path = pytester.path / "suites" / f"{name}.quantgate.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def _libraries() -> None:
    """Import what gates import once and for all: pytester forgets the modules of an inner run.

    An extension module such as onnx's ends the process when it is imported a second time, and one
    of our own would be there twice: a test would patch the one that nobody uses any more.
    """
    import importlib
    import pkgutil

    import pytest_quantgate
    from pytest_quantgate.quantization.modelopt import import_modelopt

    for module in pkgutil.walk_packages(pytest_quantgate.__path__, "pytest_quantgate."):
        importlib.import_module(module.name)

    import_modelopt("modelopt.torch.quantization.plugins.diffusion.diffusers")
    import_modelopt("modelopt.torch.opt")
    # A class whose module is forgotten has no source, which ModelOpt reads of attention.
    for name in ("bert", "roberta", "llava", "siglip", "vit", "dinov2", "dinov2_with_registers"):
        importlib.import_module(f"transformers.models.{name}.modeling_{name}")


@pytest.fixture
def run_gates(
    pytester: pytest.Pytester, shared_cache: Path, _libraries: None
) -> Callable[..., pytest.RunResult]:
    """Run pytest in this process on `suites/` with the session's cache."""

    def run(*arguments: str, path: str = "suites") -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            path, f"--quantgate-cache-dir={shared_cache}", "-p", "no:randomly", *arguments
        )

    return run


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as `make docs` builds it: any warning fails."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the documentation needs pytest-quantgate[docs]")
    out = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(REPOSITORY / "docs"), str(out / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"
