"""Shared by all tests: a tiny CLIP checkpoint, a suite text that uses it, one cache a session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.fork_server import ForkServer

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
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def shared_cache(run_folder: Path) -> Path:
    """One cache for all tests, of whatever worker, that may share built variants."""
    folder = run_folder / "shared-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def surroundings() -> Surroundings:
    """What every measurement of a session runs in, looked at once."""
    from pytest_quantgate.store.surroundings import Surroundings

    return Surroundings()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Runs modules in processes that begin with the libraries imported."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def run_forked(
    pytester: pytest.Pytester, fork_server: ForkServer
) -> Callable[..., pytest.RunResult]:
    """Run pytest in a process of its own that begins with the libraries imported."""

    def run(*arguments: str) -> pytest.RunResult:
        done = fork_server.run("pytest", *arguments, cwd=pytester.path)
        return pytest.RunResult(
            done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), duration=0.0
        )

    return run


@pytest.fixture
def _forked_restores(monkeypatch: pytest.MonkeyPatch, fork_server: ForkServer) -> None:
    """Let round trips restore in a forked process."""
    from pytest_quantgate.errors import ModelError
    from pytest_quantgate.measure import roundtrip

    @contextmanager
    def restoring(folder: Path) -> Iterator[Callable[[], None]]:
        def restore() -> None:
            module = "pytest_quantgate.measure.restore"
            done = fork_server.run(module, str(folder), cwd=folder, said=roundtrip.GO)
            if done.returncode:
                raise ModelError(done.stderr)

        yield restore

    monkeypatch.setattr(roundtrip, "_restoring_elsewhere", restoring)


@pytest.fixture(scope="session")
def _all_imported() -> None:
    """Import every module of the package: one that a test imports first, with something else in
    the place of what it takes from another module, would keep that for all tests after it."""
    import importlib
    import pkgutil

    import pytest_quantgate

    for module in pkgutil.walk_packages(pytest_quantgate.__path__, "pytest_quantgate."):
        importlib.import_module(module.name)


@pytest.fixture
def make_case(
    tmp_path: Path,
    shared_cache: Path,
    pytestconfig: pytest.Config,
    surroundings: Surroundings,
    _all_imported: None,
    _forked_restores: None,
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
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a timed gate start and time what it compares once, and go by times that are given.

    For tests in which the times do not matter: real ones take fifteen processes, and are noise
    where the machine is busy.
    """
    from pytest_quantgate.measure import latency, rounds

    def interleave(
        runners: Mapping[str, Any], *, processes: int, rounds: int, **options: Any
    ) -> tuple[dict[str, list[float]], float]:
        taken, _ = measure(runners, processes=1, rounds=1, **options)
        return {name: [10.0] * processes * rounds for name in taken}, 0.0

    measure = rounds.interleave
    monkeypatch.setattr(latency, "interleave", interleave)


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
    - {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%, samples: 64}}
  regression:
    - {{task: scenes/classification, metric: acc1, samples: 64,
       max_fp16_drop: 20pp, max_drop: 12pp, max_drop_since_first: 20pp}}
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


class KeptModules:
    """What tests and their inner runs import, but for the modules that a test wrote.

    pytester forgets what was imported since it began. Libraries do not survive that: an extension
    module such as onnx's ends the process when it is imported a second time, a class of
    transformers without its module has no source for ModelOpt to read, and a module of our own
    would be there twice, so that a test patched the one that nobody uses any more.
    """

    def __init__(self, *, written: Path) -> None:
        self._written = str(written)
        self._modules: dict[str, ModuleType] = {}

    def pytest_unconfigure(self) -> None:
        """Remember what is imported now; a run that is given this plugin does so at its end."""
        self._modules |= {
            name: module
            for name, module in sys.modules.items()
            if module is not None
            and not str(getattr(module, "__file__", None)).startswith(self._written)
        }

    def put_back(self) -> None:
        for name, module in self._modules.items():
            sys.modules.setdefault(name, module)


@pytest.fixture
def _kept_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptModules]:
    kept = KeptModules(written=tmp_path_factory.getbasetemp())
    yield kept
    kept.put_back()  # pytester, made after this, has forgotten them by now


@pytest.fixture
def pytester(
    _kept_modules: KeptModules, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.Pytester]:
    run_inprocess = pytester.runpytest_inprocess

    def run(*arguments: str, **options: Any) -> pytest.RunResult:
        result = run_inprocess(*arguments, plugins=[_kept_modules], **options)
        _kept_modules.put_back()
        return result

    monkeypatch.setattr(pytester, "runpytest_inprocess", run)
    yield pytester
    _kept_modules.pytest_unconfigure()


@pytest.fixture
def run_gates(
    pytester: pytest.Pytester, shared_cache: Path, _all_imported: None, _forked_restores: None
) -> Callable[..., pytest.RunResult]:
    """Run pytest in this process on `suites/` with the session's cache."""

    def run(*arguments: str, path: str = "suites") -> pytest.RunResult:
        return pytester.runpytest_inprocess(
            path, f"--quantgate-cache-dir={shared_cache}", "-p", "no:randomly", *arguments
        )

    return run


@pytest.fixture(scope="session")
def site(run_folder: Path) -> Path:
    """The documentation as `make docs` builds it, once for all workers: any warning fails."""
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the documentation needs pytest-quantgate[docs]")
    from filelock import FileLock

    out = run_folder / "site"
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "doctrees")]
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *options,
        str(REPOSITORY / "docs"),
        str(out / "html"),
    ]
    with FileLock(out.with_suffix(".lock")):
        if not (out / "built").exists():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            (out / "built").touch()
    return out / "html"
