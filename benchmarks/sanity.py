"""Shows what the sanity checks, `quantgate doctor` and `quantgate validate --deep` cost.

    python -m benchmarks.sanity             # about two minutes; writes benchmarks/sanity.md

For the reference model and for a random CLIP in the sizes of ViT-L/14, on the three tasks of the
reference suite, in seconds of processor time on one thread: what else runs on the machine counts
little. Loading the model and reading the data are shown and not counted, as the gates that follow
need both. Fails where the checks take more than 2 s, or 10 s at ViT-L/14 size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from benchmarks import random_clip

SIZES = {"reference model": 2.0, "ViT-L/14": 10.0}
TASKS = ("scenes/classification", "scenes/retrieval", "digits/classification")
SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 16, batch_size: 16, held_out_samples: 4}}
quantize: {{recipe: fp8}}
gates:
  coverage: {{}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checks", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    if arguments.checks:
        print(json.dumps(measure_checks(arguments.checks)))
        return 0
    from pytest_quantgate.reference import weights_dir

    with tempfile.TemporaryDirectory(prefix="quantgate-sanity-") as temporary:
        large = Path(temporary) / "clip"
        tokenizer = json.loads((weights_dir() / "tokenizer.json").read_text("utf-8"))
        words = tokenizer["model"]["vocab"]
        random_clip.WORDS = tuple(word for word in words if not word.startswith("<"))
        random_clip.make_checkpoint(large, size="L/14")
        folders = dict(zip(SIZES, (weights_dir(), large), strict=True))
        rows = {name: measure(folder) for name, folder in folders.items()}
    write_report(arguments.report, rows=rows)
    return int(any(rows[name]["sanity checks"] > most for name, most in SIZES.items()))


def measure(folder: Path) -> dict[str, float]:
    """Return the seconds of each part, and of each command, for a checkpoint."""
    checks = [sys.executable, __file__, "--checks", str(folder)]
    found: dict[str, float] = json.loads(run(checks)[1])
    with tempfile.TemporaryDirectory() as place:
        suite = Path(place) / "clip.quantgate.yaml"
        suite.write_text(SUITE.format(model=folder), encoding="utf-8")
        for arguments in (("doctor", folder), ("doctor", suite), ("validate", "--deep", suite)):
            command = [sys.executable, "-m", "pytest_quantgate", *map(str, arguments)]
            given = "FOLDER" if arguments[-1] == folder else "SUITE"
            name = " ".join(("quantgate", *map(str, arguments[:-1]), given))
            found[name] = run(command)[0]
    return found


def run(command: list[str]) -> tuple[float, str]:
    """Return the processor time of a command in seconds, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def measure_checks(folder: Path) -> dict[str, float]:
    import torch

    from pytest_quantgate.encoders.loading import load_fp16
    from pytest_quantgate.gates.chance import is_settled
    from pytest_quantgate.measure.model_checks import inspect_checkpoint
    from pytest_quantgate.measure.sanity import Task, measure_sanity
    from pytest_quantgate.suite.specs import ModelSpec
    from pytest_quantgate.suite.where import Where
    from pytest_quantgate.tasks.registry import evaluation_data, load_samples

    torch.set_num_threads(1)
    times = [time.process_time()]
    where = Where(file="benchmarks/sanity.py", line=1)
    fp16 = load_fp16(ModelSpec(where=where, source="transformers", id=str(folder)))
    times.append(time.process_time())
    tasks = []
    for name in TASKS:
        data, purpose = evaluation_data(name)
        samples = load_samples(data, datasets={}, samples=None, environ={}, purpose=purpose)
        tasks.append(Task(name=name, count=None, first=False, samples=samples))
    pairs = load_samples("scenes/calibration", datasets={}, samples=2, environ={}, purpose="pairs")
    times.append(time.process_time())
    faults = inspect_checkpoint(folder)
    found = measure_sanity(fp16, pairs=pairs, tasks=tasks, is_settled=is_settled, known=faults)
    times.append(time.process_time())
    load, data_seconds, checks = (b - a for a, b in pairwise(times))
    return {
        "load the model (not counted)": load,
        "read the data (not counted)": data_seconds,
        "sanity checks": checks,
        "images embedded for the tasks": sum(t.answers.samples for t in found.tasks if t.answers),
    }


def write_report(path: Path, *, rows: dict[str, dict[str, float]]) -> None:
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers"))
    names = list(rows)
    lines = [
        "# What the sanity checks cost",
        "",
        "Made by `python -m benchmarks.sanity`: seconds of processor time on one thread, on the",
        f"three tasks of the reference suite ({platform.machine()}, Python "
        f"{platform.python_version()}, {versions}).",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
        *(
            f"| {part} | {' | '.join(f'{rows[name][part]:.3g}' for name in names)} |"
            for part in rows[names[0]]
        ),
        "",
        "A fault of the files is named before torch is imported, in the time of `doctor`. Where",
        "there is none, one pair runs through FP16, which takes the import of torch and",
        "transformers.",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
