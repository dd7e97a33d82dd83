"""Every recipe of the product from its name to an engine, on the reference model, without a GPU.

    python benchmarks/formats.py [--recipe nvfp4 ...]     # writes docs/formats.md

One suite a recipe, all in one pytest run, with limits that no format misses: a cell says what was
measured, or why there is nothing. Exits with 1 where a gate ended without a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pytest_quantgate.formats.recipes import RECIPES

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"

#: Small on purpose: what becomes of a format is asked here, and not how good the model is.
SUITE = """\
quantgate: 1
model: {{source: reference}}
calibration: {{data: scenes/calibration, samples: 128, batch_size: 64, held_out_samples: 64}}
quantize: {{recipe: {recipe}}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 20%}}
  fidelity: {{data: scenes/test, samples: 64, min_cosine: 0.01}}
  export: {{}}
  parity: {{samples: 16}}
  engine:
    - {{target: sm89, max_plan_ratio: 9x}}
    - {{target: sm120, max_plan_ratio: 9x}}
"""

HEAD = """\
# Formats, stage by stage

Made by `python benchmarks/formats.py`: each recipe of the product on the reference model, from its
name to an engine, on a CPU. What stands in a cell was measured; a letter says below why there is
nothing.

- **coverage**: the share of matrix weights that is quantized and ran
- **calibration**: the ranges that were found, called and fit held-out data
- **fidelity**: SQNR of image / text embeddings against FP16, in dB
- **export**: Q/DQ pairs of both towers, and the size of the files against FP16's
- **parity**: the largest error of the graph in ONNX Runtime against fake quantization; with a
  letter, in ONNX's reference evaluator, as the gate says which is then not measured
- **sm89, sm120**: linear layers by what multiplies them in an engine of TensorRT for RTX, and the
  weights of the image tower against FP16's
"""

#: A recipe that is no row of the table: its formats are searched layer by layer.
MIXED = {"auto: 6 bits of nvfp4, fp8": "{auto: {bits: 6, formats: [nvfp4, fp8]}}"}

_AROUND = (
    r"^\w+: |^\S+\.quantgate\.yaml:\d+: |\S+ cannot become a Q/DQ pair: | \([^()]*\)$"
    r"|: \"Cannot compile .*"
)

PACKAGES = ("torch", "nvidia-modelopt", "onnx", "onnxruntime", "tensorrt-rtx-cu12")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", nargs="+", default=[*RECIPES, *MIXED])
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantgate-formats-") as name:
        found = run(Path(name), arguments.recipe)
    write_page(arguments.page, found=found)
    codes = [gate["code"] for gates in found.values() for gate in gates]
    return 1 if any(code.endswith(".no-verdict") for code in codes) else 0


def run(folder: Path, recipes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the gates of every recipe, as the JSON report of a run has them."""
    names = {recipe: f"recipe-{number}" for number, recipe in enumerate(recipes)}
    for recipe, name in names.items():
        text = SUITE.format(recipe=MIXED.get(recipe, recipe))
        (folder / f"{name}.quantgate.yaml").write_text(text)
    result = folder / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no"]
    command += [f"--rootdir={folder}", f"--quantgate-json={result}", str(folder)]
    subprocess.run(command, check=False, stdout=sys.stderr)
    suites = json.loads(result.read_text(encoding="utf-8"))["suites"]
    found = {suite["name"]: suite["gates"] for suite in suites}
    return {recipe: found[name] for recipe, name in names.items()}


def write_page(path: Path, *, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    reasons: dict[str, str] = {}
    columns = ("coverage", "calibration", "fidelity", "export", "parity", "sm89", "sm120")
    lines = [
        HEAD,
        describe_machine(),
        "",
        f"| recipe | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for recipe, gates in found.items():
        by_name = {gate["key"] or gate["kind"]: gate for gate in gates}
        cells = [describe(by_name, column, reasons) for column in columns]
        lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    lines.append("")
    for reason, letter in reasons.items():
        lines += textwrap.wrap(f"- **{letter}**: {reason}", 100, subsequent_indent="  ")
    lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")


def describe(gates: Mapping[str, Mapping[str, Any]], name: str, reasons: dict[str, str]) -> str:
    """Return what a cell says: what a gate found, or the letter of the reason why it did not."""
    gate = gates[name]
    measured = gate["status"] == "PASS" or gate["code"] in ("calibration.clipping-open",)
    by_reference = name == "parity" and "vision_parity_error" in gate["figures"] and not measured
    if not measured and not by_reference:
        root = gates["export"] if "export" in gate["headline"] else gate
        # Without the place in the suite, what a library printed, and what to do.
        return _cite(re.sub(_AROUND, "", root["headline"]), reasons)
    figures, text = gate["figures"], gate["headline"]
    if name == "coverage":
        return f"{figures['weights_covered_share']:.1%}"
    if name == "calibration":
        text = text.removeprefix("calibration: ")
        return re.sub(r" with a finite.*| whether.*|.*; (?=\d+ quantizer)|, all called$", "", text)
    if name == "fidelity":
        return " / ".join(re.findall(r"SQNR ([-\d.]+) dB", text))
    if name == "export":
        return f"{figures['onnx_pairs']}, {figures['onnx_size_ratio']:.2f}x"
    if name == "parity":
        error = f"{max(figures['vision_parity_error'], figures['text_parity_error']):.0e}"
        reason = text.removeprefix("parity: ").partition(", which")[0]
        return f"{error} {_cite(reason, reasons)}" if by_reference else error
    layers = re.search(r"(\d+ of \d+) linear layers in (\w+)((?:, \d+ in \w+)*)", text)
    assert layers is not None
    narrow = f"{layers[1]} in {layers[2]}{layers[3]}" if layers[1][0] != "0" else "half precision"
    return f"{narrow}; {figures['vision_weights_ratio']:.2f}x"


def _cite(reason: str, reasons: dict[str, str]) -> str:
    """Return the letter that stands for a reason, a new one for a new reason."""
    return f"**{reasons.setdefault(reason, chr(ord('a') + len(reasons)))}**"


def describe_machine() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU, Python "
        f"{platform.python_version()}, {versions}."
    )


if __name__ == "__main__":
    sys.exit(main())
