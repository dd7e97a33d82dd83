"""Make docs/screenshots from real runs: one green, one red, one without its model.

    python docs/make_screenshots.py [FOLDER_WITH_EARLIER_REPORTS]

Runs the default suite, the same model with ModelOpt's own preset, and a suite whose weights are
not there, each with a report, and opens those in a headless Chromium (QUANTGATE_CHROMIUM, or one
on the path) on a desktop and a phone, light and dark. Needs playwright and pillow.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SCREENSHOTS = Path(__file__).parent / "screenshots"

#: What ModelOpt's preset does to a CLIP: accuracy is fine, and the vision tower is not quantized.
RED = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: FP8_DEFAULT_CFG}
gates:
  coverage: {}
  calibration: {max_clipped: 0.1%}
  fidelity: {data: scenes/test, samples: 512, min_cosine: 0.99}
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 1pp, floor: 70%}
    - {task: digits/classification, metric: acc1, max_drop: 0.1pp, floor: 80%}
"""

#: Where each report is looked at: the top of the page, and what is worth a picture of its own.
SECTIONS = {"green": ("accuracy", "flips", "coverage", "layers"), "red": ("coverage",)}
SCREENS: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def write_reports(folder: Path) -> None:
    """Run the three suites, each with a report in `folder/<name>`."""
    red = folder / "clip_preset.quantgate.yaml"
    red.write_text(RED, encoding="utf-8")
    suites = {
        "green": REPOSITORY / "suites" / "clip_reference.quantgate.yaml",
        "red": red,
        "unmeasured": REPOSITORY / "suites" / "clip_cifar10.quantgate.yaml",
    }
    environ = {k: v for k, v in os.environ.items() if not k.startswith("QUANTGATE_C")}
    environ |= {"PYTEST_ADDOPTS": "", "CI": ""}
    for name, suite in suites.items():
        own = folder if name == "red" else REPOSITORY  # the red suite is none of this repository's
        subprocess.run(
            [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider",
             f"--rootdir={own}",
             f"--quantgate-report={folder / name}",
             f"--quantgate-baselines-dir={own / 'baselines'}"],
            cwd=REPOSITORY, env=environ, check=False,
        )  # fmt: skip


def take_pictures(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    SCREENSHOTS.mkdir(exist_ok=True)
    chromium = os.environ.get("QUANTGATE_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for report in ("green", "red", "unmeasured"):
            for screen, options in SCREENS.items():
                for scheme in ("light", "dark"):
                    context = browser.new_context(color_scheme=scheme, **options)
                    page = context.new_page()
                    page.goto((folder / report / "index.html").as_uri())
                    save(page.screenshot(), name=f"{report}-{screen}-{scheme}")
                    if (screen, scheme) == ("desktop", "light"):
                        page.evaluate("document.querySelector('nav').style.position = 'static'")
                        for section in SECTIONS.get(report, ()):
                            card = page.locator(f"section:has(h3[id$='/{section}'])")
                            save(card.screenshot(), name=f"{report}-{section}")
                    context.close()
        browser.close()


def save(png: bytes, *, name: str) -> None:
    """Write a picture, at most 2,000 pixels high, with 256 colours: half of its size."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.height > 2000:
        picture = picture.crop((0, 0, picture.width, 2000))
    # Of the rarer colours, too: a limit is a few red pixels.
    picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(SCREENSHOTS / f"{name}.png", optimize=True)


def main() -> None:
    if len(sys.argv) > 1:
        take_pictures(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_reports(Path(folder))
        take_pictures(Path(folder))


if __name__ == "__main__":
    main()
