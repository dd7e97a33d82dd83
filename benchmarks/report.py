"""What a report of ImageNet's size costs: time to write it, its size, time to open it.

    python benchmarks/report.py

The run is made up (50,000 samples, 1,000 classes, 608 quantizers that are on); the verdicts are the
gates' own, and the evidence is read from a real cache. Opening needs playwright and a Chromium
(QUANTGATE_CHROMIUM, or one on the path).
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from pytest_quantgate.report.files import replace_file  # noqa: E402
from pytest_quantgate.report.html import render_html  # noqa: E402
from pytest_quantgate.report.json_report import render_json  # noqa: E402
from pytest_quantgate.report.markdown import render_markdown  # noqa: E402
from pytest_quantgate.report.previews import to_data_uri  # noqa: E402
from tests.report_builder import Run, make_audit, make_outcomes, make_run  # noqa: E402

SAMPLES, CLASSES, BLOCKS, PICTURES = 50_000, 1_000, 19, 12
OPENINGS = 5


def build_run(root: Path) -> Run:
    names = [f"class number {n}, of a name as long as ImageNet's" for n in range(CLASSES)]
    audit = make_audit(blocks=BLOCKS)
    outcomes = make_outcomes(samples=SAMPLES, class_names=names, lost=1_200, won=900)
    run = make_run(
        root, audit=audit, outcomes=outcomes, max_drop=Fraction(1, 100), pictures=PICTURES
    )
    photographs = {
        name: {"image": to_data_uri(draw_noise(seed))}
        for seed, name in enumerate(run.cache.read(kind="previews", key="e" * 64))
    }
    key = "f" * 64
    run.cache.get_or_measure(kind="previews", key=key, measure=lambda: photographs)
    (evidence,) = run.evidence.values()
    used = tuple(replace(u, key=key) if u.about[0] == "previews" else u for u in evidence.used)
    return replace(run, evidence={evidence.suite: replace(evidence, used=used)})


def draw_noise(seed: int) -> object:
    """Return a picture that no format makes small."""
    from PIL import Image

    return Image.frombytes("RGB", (96, 96), random.Random(seed).randbytes(96 * 96 * 3))


def measure_opening(path: Path) -> list[float]:
    """Return how long it takes until the page is loaded, charts and all, in s."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("QUANTGATE_CHROMIUM") or shutil.which("chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for _ in range(OPENINGS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            started = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_load_state()
            times.append(time.perf_counter() - started)
            context.close()
        browser.close()
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = build_run(root / "cache")
        started = time.perf_counter()
        report = run.collect()
        collected = time.perf_counter()
        pages = {
            "html": (root / "index.html", render_html),
            "json": (root / "report.json", render_json),
            "markdown": (root / "report.md", render_markdown),
        }
        for kind, (path, render) in pages.items():
            replace_file(path, render(report), kind=kind, option="benchmark")  # type: ignore[arg-type]
        written = time.perf_counter()
        assert report.suites[0].audit is not None
        on = sum(facts.state == "on" for facts in report.suites[0].audit.quantizers)
        print(f"{SAMPLES} samples, {CLASSES} classes, {on} quantizers on")
        print(f"collected from the cache  {collected - started:.2f} s")
        print(f"rendered and written      {written - collected:.2f} s")
        for path, _ in pages.values():
            print(f"{path.name:<25} {path.stat().st_size / 1e6:.2f} MB")
        times = measure_opening(root / "index.html")
        shown = ", ".join(f"{seconds:.2f}" for seconds in times)
        print(f"opened, charts drawn      {statistics.median(times):.2f} s (median of {shown})")


if __name__ == "__main__":
    main()
