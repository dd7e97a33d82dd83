"""Every task of the registry from the suite file to the report: at PyTorch, at ONNX, and stored.

One suite has them all, written from what each task says of itself, so that a new one is in it.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pytest_quantgate.reference import scenes
from pytest_quantgate.tasks.kind import BUILTIN, find_task
from tests.fork_server import ForkServer

pytestmark = pytest.mark.slow

#: Each colour with a shape of its own.
CLASSES = tuple(scenes.CLASS_NAMES[10 * place + place] for place in range(10))
COLUMNS = ("file_name", "label", "caption", "language", "light")

HEAD = """\
quantgate: 1
model: {source: reference}
datasets:
  photos: {dataset: imagefolder, root: photos, columns: {keep: [language, light]}}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}
gates:
"""
REGRESSION = (
    "max_fp16_drop: 45pp, max_drop: 45pp, max_drop_since_first: 45pp, "
    "slices: {by: [light, language], max_drop: 60pp}"
)


def write_photos(folder: Path, *, split: str, count: int) -> None:
    """Write scenes with a label, a caption and two further columns each."""
    folder.mkdir(parents=True)
    found = scenes.render_scenes(split=split, count=count * 14, kind="single")  # type: ignore[arg-type]
    rows: list[tuple[str, ...]] = []
    for image, label, caption in zip(found.images, found.labels, found.captions, strict=True):
        name, number = scenes.CLASS_NAMES[int(label)], len(rows)
        if name not in CLASSES or number == count:
            continue
        Image.fromarray(image).save(folder / f"{number:04d}.png")
        language, light = ("en", "de")[number % 2], ("day", "night", "day")[number % 3]
        rows.append((f"{number:04d}.png", name, caption, language, light))
    assert len(rows) == count
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])


def write_suite(path: Path) -> None:
    def list_gates(rest: str) -> str:
        lines = []
        for name in BUILTIN:
            kind = find_task(f"photos/{name}")
            asked = ["bank: photos/train"] if kind.bank != "never" else []
            if kind.names_positive:
                asked.append(f"positive: [{', '.join(CLASSES[:3])}]")
            for metric in kind.proposed:
                said = [f"task: photos/{name}", f"metric: {metric}", *asked, rest]
                lines.append(f"    - {{{', '.join(said)}}}\n")
        return "".join(lines)

    path.write_text(
        f"{HEAD}  accuracy:\n{list_gates('max_drop: 45pp')}"
        f"{list_gates('max_drop: 45pp, stage: onnx')}"
        f"  regression:\n{list_gates(REGRESSION)}"
    )


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What two runs of the suite say, and what the commands say of it."""

    folder: Path
    created: dict[str, Any]
    again: dict[str, Any]
    plan: list[dict[str, Any]]
    difference: str

    def gates(self, name: str, *, kind: str, report: dict[str, Any]) -> list[dict[str, Any]]:
        (suite,) = report["suites"]
        return [
            gate
            for gate in suite["gates"]
            if gate["kind"] == kind and gate["key"].startswith(f"photos/{name}-")
        ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Ran:
    folder = tmp_path_factory.mktemp("tasks")
    for split, count in (("test", 240), ("train", 200)):
        write_photos(folder / "photos" / split, split=split, count=count)
    write_suite(folder / "tasks.quantgate.yaml")

    def run(module: str, *arguments: str, status: int = 0) -> str:
        done = fork_server.run(module, *arguments, cwd=folder)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    options = ("tasks.quantgate.yaml", "--quantgate-cache-dir=cache", "-p", "no:cacheprovider")
    run("pytest", *options, "--quantgate-baselines=create", "--quantgate-json=1.json")
    run("pytest", *options, "--quantgate-json=2.json")
    planned = run(
        *("pytest_quantgate", "plan", "tasks.quantgate.yaml", "--baselines", "baselines", "--json")
    )
    return Ran(
        folder=folder,
        created=json.loads((folder / "1.json").read_text()),
        again=json.loads((folder / "2.json").read_text()),
        plan=json.loads(planned),
        difference=run("pytest_quantgate", "diff", "1.json", "2.json"),
    )


@pytest.mark.parametrize("name", BUILTIN)
def test_a_task_is_judged_at_every_stage_and_against_its_baseline(ran: Ran, name: str) -> None:
    metrics = find_task(f"photos/{name}").proposed

    for report in (ran.created, ran.again):
        accuracy = ran.gates(name, kind="accuracy", report=report)
        assert len(accuracy) == 2 * len(metrics)
        assert {gate["key"].endswith("-onnx") for gate in accuracy} == {True, False}
        regression = ran.gates(name, kind="regression", report=report)
        assert len(regression) == len(metrics)
        for gate in (*accuracy, *regression):
            assert gate["status"] == "PASS", gate["headline"]
    for gate in regression:
        assert gate["figures"]["accepted_drop_points"] == 0
        assert gate["figures"]["fp16_drop_points"] == 0
        assert gate["figures"]["accepted_slices_over"] == 0
        assert gate["figures"]["accepted_worst_slice"].startswith(("light=", "language="))


@pytest.mark.parametrize("name", BUILTIN)
def test_a_task_is_planned_by_what_was_measured(ran: Ran, name: str) -> None:
    (suite,) = ran.plan
    rows = [row for row in suite["limits"] if f"[photos/{name}-" in row["gate"]]
    by_torch = [row for row in rows if not row["gate"].endswith("-onnx]")]
    assert by_torch
    assert {row["rates"] for row in by_torch} <= {"measured", "no drift"}


def test_two_runs_are_the_same(ran: Ran) -> None:
    assert "no difference" in ran.difference
