"""Options of the plugin: declared once, resolved once to a frozen `Settings`.

No option can loosen a limit: limits live in suites alone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.report.files import check_targets, find_step_summary
from pytest_quantgate.store.baseline_mode import BaselineMode, check_write_allowed, find_ci
from pytest_quantgate.store.settings import Settings, Targets, default_cache_root
from pytest_quantgate.text.printable import printable

DEVICES = ("auto", "cpu", "cuda")
CACHES = ("on", "off")
STEP_SUMMARY = ("auto", "off")

#: What a worker is told by the controller: the folder of the run's cache.
CACHE_INPUT = "quantgate_cache_dir"

#: A report with more pictures than this would be too large to send around.
MAX_REPORT_IMAGES = 200


@dataclass(frozen=True)
class Option:
    """An option with a value: `--quantgate-NAME`, or `quantgate_name` in the configuration file."""

    name: str
    metavar: str
    help: str
    default: str = ""


OPTIONS = (
    Option(
        "baselines",
        "MODE",
        "check (default), create, update or prune the stored baselines",
        default="check",
    ),
    Option(
        "allow-unmeasured",
        "KINDS",
        "kinds of gates that may be missing in CI and in strict runs, with commas: "
        "engine,latency (tests: your own)",
    ),
    Option("device", "DEVICE", "auto (default), cpu or cuda", default="auto"),
    Option(
        "cache",
        "MODE",
        "on (default), or off: read and write no cache, measure everything (release jobs)",
        default="on",
    ),
    Option("cache-dir", "DIR", "where built variants and embeddings are kept"),
    Option(
        "workers",
        "N",
        "processes that embed samples (default 1: this one), or gpu: one on each GPU here; "
        "every number stays the same",
        default="1",
    ),
    Option("baselines-dir", "DIR", "where baselines live; default: baselines", default="baselines"),
    Option(
        "obtained-dir", "DIR", "where differing results go; default: obtained", default="obtained"
    ),
    Option("suite", "FILE", "the suite that the fixtures of hand-written tests use"),
    Option(
        "report",
        "DIR",
        "write DIR/index.html and DIR/report.json, and DIR/manifest.json where the run passes",
    ),
    Option("markdown", "FILE", "write the report as Markdown"),
    Option("json", "FILE", "write the report as JSON"),
    Option(
        "manifest",
        "FILE",
        "where the run passes, write the SHA-256 of every file that was judged, as an in-toto "
        "statement (for quantgate verify)",
    ),
    Option(
        "model-card",
        "FILE",
        "write the verdict and its model-index into a Hugging Face model card (README.md)",
    ),
    Option(
        "report-images",
        "N",
        "pictures of flipped samples in the report, for each task (default: 12; 0: none)",
        default="12",
    ),
    Option(
        "step-summary",
        "MODE",
        "auto (default: Markdown into GITHUB_STEP_SUMMARY where that is set) or off",
        default="auto",
    ),
)


def add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("quantgate", "quantized-model gates")
    for option in OPTIONS:
        group.addoption(f"--quantgate-{option.name}", metavar=option.metavar, help=option.help)
        ini = f"quantgate_{option.name.replace('-', '_')}"
        parser.addini(ini, option.help, default=option.default)
    strict = (
        "everything that was collected must be measured, and no baseline be orphaned (release jobs)"
    )
    group.addoption("--quantgate-strict", action="store_true", default=None, help=strict)
    parser.addini("quantgate_strict", strict, type="bool", default=False)
    group.addoption(
        "--quantgate-reason",
        metavar="TEXT",
        default="",
        help="why the baselines change; required by update, kept in the record",
    )
    group.addoption(
        "--quantgate-new-data",
        action="store_true",
        help="update although the evaluation data changed: the first accepted variant starts anew, "
        "what was lost so far stays in the record",
    )
    group.addoption(
        "--quantgate-allow-ci-write",
        action="store_true",
        help="allow a writing mode although CI or BUILD_NUMBER is set",
    )
    group.addoption(
        "--quantgate-env",
        metavar="NAMES",
        help="environment variables that suites may use in paths beside QUANTGATE_..., with "
        "commas: MODELS,DATA",
    )
    group.addoption(
        "--quantgate-selftest",
        action="store_true",
        help="plant known damage and prove that each gate turns red on it",
    )
    parser.addini(
        "quantgate_suites",
        "not needed any more: a baseline names its suite by its path below the root",
        type="args",
        default=[],
    )


def _pick(config: pytest.Config, name: str) -> str:
    """Return an option's value: that of the command line, else of the configuration file."""
    value = config.getoption(f"quantgate_{name}")
    return str(config.getini(f"quantgate_{name}") if value is None else value)


def _choose(config: pytest.Config, name: str, *, of: Sequence[str], noun: str = "modes") -> str:
    """Return an option's value; raises pytest.UsageError for one that is not `of` these."""
    value = _pick(config, name)
    if value not in of:
        raise pytest.UsageError(
            f"{value!r} is not a valid quantgate {name.replace('_', ' ')}. "
            f"Valid {noun}: {', '.join(of)}."
        )
    return value


def refuse_odd_arguments(arguments: Iterable[str | os.PathLike[str]]) -> None:
    """Raise pytest.UsageError for the name of a file that cannot be shown.

    A shell writes whatever names `suites/*` has, and pytest prints what it does not find.
    """
    for argument in (os.fspath(each) for each in arguments):
        shown = printable(argument)
        if shown != argument and os.path.lexists(argument):
            raise pytest.UsageError(f"{shown}: this name cannot be shown as it is: rename it")


def resolve_settings(config: pytest.Config, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the frozen settings; raises pytest.UsageError with the valid choices."""

    def folder(name: str) -> Path:
        return config.rootpath / Path(_pick(config, name)).expanduser()

    try:
        mode = BaselineMode.parse(_pick(config, "baselines"))
        check_write_allowed(
            mode,
            environ=environ,
            allow_ci_write=bool(config.getoption("quantgate_allow_ci_write")),
        )
        allowed = _read_kinds(_pick(config, "allow_unmeasured"))
    except QuantGateError as error:
        raise pytest.UsageError(str(error)) from error
    device = _choose(config, "device", of=DEVICES, noun="devices")
    cache = _choose(config, "cache", of=CACHES)
    reason = str(config.getoption("quantgate_reason")).strip()
    if mode is BaselineMode.UPDATE and not reason:
        raise pytest.UsageError(
            "--quantgate-baselines=update needs --quantgate-reason='why': "
            "the reason is kept in the baseline and read in its review"
        )
    new_data = bool(config.getoption("quantgate_new_data"))
    if new_data and mode is not BaselineMode.UPDATE:
        raise pytest.UsageError(
            "--quantgate-new-data is for --quantgate-baselines=update: nothing else replaces what "
            "was accepted on the data so far"
        )
    selftest = bool(config.getoption("quantgate_selftest"))
    if selftest and mode is not BaselineMode.CHECK:
        raise pytest.UsageError(
            f"--quantgate-selftest plants damage: no baseline may be written in such a run "
            f"(--quantgate-baselines={mode.value})"
        )
    strict = config.getoption("quantgate_strict")
    cache_dir = _make_temporary(config) if cache == "off" else _pick(config, "cache_dir")
    return Settings(
        baselines=mode,
        baselines_dir=folder("baselines_dir"),
        obtained_dir=folder("obtained_dir"),
        cache_dir=(
            config.rootpath / Path(cache_dir).expanduser()
            if cache_dir
            else default_cache_root(environ)
        ),
        cache=cache,
        reason=reason,
        new_data=new_data,
        strict=bool(config.getini("quantgate_strict") if strict is None else strict),
        device=device,
        suite=_pick(config, "suite"),
        root=config.rootpath,
        selftest=selftest,
        reports=resolve_reports(config, environ=environ, selftest=selftest),
        ci=find_ci(environ),
        allow_unmeasured=allowed,
        must_judge=bool(strict),
        env=parse_names(config.getoption("quantgate_env") or ""),
        workers=parse_workers(_pick(config, "workers"), config=config),
    )


def _read_kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of gates that a run allows to be missing; raises QuantGateError."""
    if not text.strip():
        return ()
    from pytest_quantgate.suite.gates import parse_kinds  # reads YAML, and every key of a suite

    return parse_kinds(text, option="--quantgate-allow-unmeasured")


def parse_workers(text: str, *, config: pytest.Config) -> str:
    """Return a valid `--quantgate-workers`; raises pytest.UsageError for what is none."""
    from pytest_quantgate.run.workers import read_workers

    try:
        found = read_workers(text)
    except ValueError as error:
        raise pytest.UsageError(f"--quantgate-workers={text}: {error}") from error
    if found != "1" and config.getoption("numprocesses", None):  # xdist's
        raise pytest.UsageError(
            "--quantgate-workers and -n would start processes for processes: -n shares the "
            "gates of several suites, --quantgate-workers the samples of each; take one"
        )
    return found


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names of variables in an option; raises pytest.UsageError for what is none."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise pytest.UsageError(
                f"--quantgate-env={name!r} is no name of an environment variable: write their "
                f"names, with commas, and no values"
            )
    return names


def _make_temporary(config: pytest.Config) -> str:
    """Return a new folder that goes when the run ends; a worker's is the controller's."""
    given: dict[str, str] = getattr(config, "workerinput", {})  # set by xdist
    if given:
        return given[CACHE_INPUT]
    folder = tempfile.mkdtemp(prefix="quantgate-cache-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


def resolve_reports(
    config: pytest.Config, *, environ: Mapping[str, str], selftest: bool
) -> Targets:
    """Return which reports a run writes; raises pytest.UsageError for a place that will not do."""

    def place(name: str) -> Path | None:
        text = _pick(config, name)
        return config.rootpath / Path(text).expanduser() if text else None

    step_summary = _choose(config, "step_summary", of=STEP_SUMMARY)
    images = _pick(config, "report_images")
    if not images.isdecimal() or int(images) > MAX_REPORT_IMAGES:
        raise pytest.UsageError(
            f"--quantgate-report-images={images}: expected a number from 0 to {MAX_REPORT_IMAGES}"
        )
    if selftest:
        for name in ("report", "markdown", "json", "manifest", "model_card"):
            if config.getoption(f"quantgate_{name}"):
                option = f"--quantgate-{name.replace('_', '-')}"
                raise pytest.UsageError(
                    f"{option} shows what is true of a model, and --quantgate-selftest plants "
                    f"damage: run them one after the other"
                )
        return Targets()
    targets = Targets(
        directory=place("report"),
        markdown=place("markdown"),
        json=place("json"),
        manifest=place("manifest"),
        model_card=place("model_card"),
        step_summary=find_step_summary(environ) if step_summary == "auto" else None,
        images=int(images),
    )
    try:
        check_targets(targets, root=config.rootpath)
        if targets.model_card:
            from pytest_quantgate.report.model_card import check_card

            check_card(targets.model_card, option="--quantgate-model-card")
    except QuantGateError as error:
        raise pytest.UsageError(str(error)) from error
    return targets
