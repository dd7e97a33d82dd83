"""The case of a suite outside of pytest, as commands measure it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.threads import let_threads_sleep

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.run.progress import Progress
    from pytest_quantgate.run.workers import Embeds
    from pytest_quantgate.suite.specs import Suite


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add what a command takes that measures: where, and where that is kept."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="as --quantgate-cache-dir")


def open_case(
    parsed: argparse.Namespace,
    *,
    environ: Mapping[str, str],
    suite: Suite | None = None,
    workers: Embeds | None = None,
) -> Case:
    """Return the case of a suite outside of pytest; nothing but the cache is written."""
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.store.baseline_mode import BaselineMode
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.cache import Cache
    from pytest_quantgate.store.settings import Settings, default_cache_root
    from pytest_quantgate.suite.load import load_suite
    from pytest_quantgate.text.wrapping import say

    let_threads_sleep(os.environ)
    root = Path.cwd()
    settings = Settings(
        baselines=BaselineMode.CHECK,
        baselines_dir=root / "baselines",
        obtained_dir=root / "obtained",
        cache_dir=parsed.cache_dir or default_cache_root(environ),
        reason="",
        strict=False,
        device=parsed.device,
        suite=str(parsed.suite),
        root=root,
    )

    def warn(message: str) -> None:
        say(f"warning: {message}", error=True)

    return Case(
        suite=suite or load_suite(parsed.suite, relative_to=root),
        settings=settings,
        store=Store(settings.baselines_dir, project=root),
        cache=Cache(root=settings.cache_dir, warn=warn),
        progress=show_progress(),
        environ=environ,
        workers=workers,
    )


def show_progress() -> Progress:
    """Return progress on stderr: one line that is redrawn on a terminal, else a line a stage."""
    import shutil

    from pytest_quantgate.run.progress import Progress

    stream = sys.stderr  # by now: libraries are silenced by redirecting the name

    def put(text: str) -> None:
        stream.write(text)
        stream.flush()

    live = stream.isatty()
    width = shutil.get_terminal_size().columns
    return Progress(mode="live" if live else "log", write=put, width=width)
