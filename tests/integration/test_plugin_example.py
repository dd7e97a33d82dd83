"""The package of examples/plugin/ adds a gate, families and a task, by its entry points alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.fork_server import ForkServer
from tests.plugin_package import write_metadata
from tests.vision_encoders import save_vision_encoder

Run = Callable[..., tuple[int, str]]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 16, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8, exclude: ["*patch_embedding*"]}}
gates:
  coverage: {{}}
  headroom: {{max_share: {share}}}
"""

ENCODER_SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantize: {{recipe: fp8-attention, exclude: ["*patch_embed*"]}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 5%}}
  fidelity: {{min_sqnr: 10dB, samples: 32}}
  roundtrip: {{}}
  export: {{allow: [softmax]}}
  parity: {{samples: 16}}
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a machine that has the package installed."""
    path = os.pathsep.join(map(str, write_metadata(tmp_path / "site")))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def run(fork_server: ForkServer, tmp_path: Path) -> Run:
    """Run a module in a process of its own; returns its status and what it wrote."""

    def make(*command: str, environment: Mapping[str, str] = os.environ) -> tuple[int, str]:
        done = fork_server.run(*command, cwd=tmp_path, environ=environment)
        return done.returncode, done.stdout + done.stderr

    return make


def test_a_gate_of_another_package_is_judged_like_every_other(
    run: Run, tmp_path: Path, tiny_clip: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "wide.quantgate.yaml").write_text(SUITE.format(model=tiny_clip, share="90%"))
    (tmp_path / "tight.quantgate.yaml").write_text(SUITE.format(model=tiny_clip, share="0.0001%"))
    options = ("--quantgate-cache-dir", str(tmp_path / "cache"), "--quantgate-json=report.json")

    status, output = run("pytest", *options, environment=environment)

    assert status == 1, output
    assert "PASS  headroom" in output
    assert "FAIL  headroom" in output
    assert "over 0.0001% (tight.quantgate.yaml:7)" in output
    assert "tight: do not ship: headroom" in output
    assert "[headroom.little]" in output or "headroom.little" in output
    assert "wide: may ship: 3 gates passed" in output


def test_its_keys_are_checked_as_every_other_s(
    run: Run, tmp_path: Path, tiny_clip: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(SUITE.format(model=tiny_clip, share="0%"))

    status, output = run("pytest_quantgate", "validate", path.name, environment=environment)

    assert status != 0
    assert "clip.quantgate.yaml:7: headroom.max_share: is 0%: every activation" in output


def test_without_the_package_the_suite_is_refused_with_what_is_known(
    run: Run, tmp_path: Path, tiny_clip: Path
) -> None:
    path = tmp_path / "clip.quantgate.yaml"
    path.write_text(SUITE.format(model=tiny_clip, share="50%"))

    status, output = run("pytest_quantgate", "validate", path.name)

    assert status != 0
    assert "clip.quantgate.yaml:7: headroom: unknown key" in output


def test_an_encoder_of_another_package_goes_through_the_gates(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    save_vision_encoder("deit", tmp_path / "deit")
    path = tmp_path / "deit.quantgate.yaml"
    path.write_text(ENCODER_SUITE.format(model=tmp_path / "deit"))
    options = ("--quantgate-cache-dir", str(tmp_path / "cache"), "-p", "no:randomly")

    status, output = run("pytest", *options, environment=environment)

    assert status == 0, output
    assert "attention q k v output in 2 blocks" in output
    assert "deit: may ship: 7 gates passed" in output


def test_without_the_package_the_encoder_is_of_no_known_family(run: Run, tmp_path: Path) -> None:
    save_vision_encoder("deit", tmp_path / "deit")
    path = tmp_path / "deit.quantgate.yaml"
    path.write_text(ENCODER_SUITE.format(model=tmp_path / "deit"))

    status, output = run("pytest_quantgate", "validate", "--deep", path.name)

    assert status != 0
    assert "model_type is 'deit', a suite" in output


DATA_SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  tiles: {{dataset: npz, root: "{root}"}}
calibration: {{data: tiles/train, samples: 16, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: int8}}
gates:
  accuracy: [{{task: tiles/prototypes, metric: mrr, bank: tiles/train, max_drop: 60pp}}]
  regression: [{{task: tiles/prototypes, metric: mrr, bank: tiles/train, max_fp16_drop: 40pp,
    max_drop: 60pp, max_drop_since_first: 60pp}}]
"""


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    root = tmp_path / "tiles"
    root.mkdir()
    noise = np.random.default_rng(0)
    labels = np.arange(60) % 4
    for split in ("train", "test"):
        brightness = 50 * labels + noise.integers(0, 80, 60)
        images = brightness[:, None, None, None] + noise.integers(0, 20, (60, 48, 48, 3))
        np.savez(root / f"{split}.npz", images=images.astype(np.uint8), labels=labels)
    (root / "classnames.txt").write_text("black\nbrown\ngrey\nwhite\n")
    return root


def test_data_and_a_metric_of_another_package_are_judged_as_every_other(
    run: Run, tmp_path: Path, tiny_clip: Path, tiles: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "tiles.quantgate.yaml"
    path.write_text(DATA_SUITE.format(model=tiny_clip, root=tiles))
    cache = ("--quantgate-cache-dir", str(tmp_path / "cache"), "-p", "no:randomly")
    options = (*cache, "--quantgate-json=report.json")

    _, shown = run("pytest_quantgate", "data", "show", path.name, environment=environment)
    _, plan = run("pytest_quantgate", "plan", path.name, environment=environment)
    create = (*cache, "--quantgate-baselines=create")
    created, _ = run("pytest", *create, environment=environment)
    status, output = run("pytest", *options, environment=environment)

    assert "tiles/test: 60 samples (all)" in shown
    assert "classes   4: black 15, brown 15, grey 15, white 15" in shown
    assert "60" in plan
    assert created == 0
    assert status == 0, output
    assert "PASS  accuracy[tiles/prototypes-mrr]" in output
    assert "PASS  regression[tiles/prototypes-mrr]" in output
    (report,) = json.loads((tmp_path / "report.json").read_text())["suites"]
    (task,) = report["tasks"]
    assert (task["metric"], task["samples"]) == ("mrr", 60)
    assert 0.5 < task["fp16"]["value"] < 1
    (baseline,) = (tmp_path / "baselines").rglob("*.json")
    kept = json.loads(baseline.read_text())
    assert kept["fp16"]["correct_bits"] == task["fp16"]["correct_bits"]
    assert kept["fp16"]["correct_bits"].startswith("float32:")
    _, plan = run("pytest_quantgate", "plan", path.name, environment=environment)
    assert "measured" in plan
    _, diff = run("pytest_quantgate", "diff", "report.json", "report.json", environment=environment)
    assert "no difference" in diff, diff


def test_without_the_package_its_data_is_unknown(run: Run, tmp_path: Path, tiny_clip: Path) -> None:
    path = tmp_path / "tiles.quantgate.yaml"
    path.write_text(DATA_SUITE.format(model=tiny_clip, root=tmp_path))

    status, output = run("pytest_quantgate", "data", "show", path.name)

    assert status != 0
    assert "unknown task 'tiles/prototypes'" in output


TASK_SUITE = """\
quantgate: 1
model: {{source: reference}}
{trust}calibration: {{data: digits/train, samples: 16, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8}}
gates:
  accuracy: {{task: "{task}", metric: acc1, samples: 200, max_drop: 5pp{bank}}}
  regression: {{task: "{task}", metric: acc1, samples: 200, max_fp16_drop: 5pp, max_drop: 5pp,
    max_drop_since_first: 5pp{bank}}}
"""
BANK = ", bank: digits/train, bank_samples: 200"


def test_a_task_of_another_package_is_judged_kept_and_planned(
    run: Run, tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "own.quantgate.yaml"
    path.write_text(TASK_SUITE.format(task="digits/prototypes", trust="", bank=BANK))
    options = ("--quantgate-cache-dir", str(tmp_path / "cache"), "-p", "no:randomly")

    status, output = run(
        "pytest", *options, "--quantgate-baselines=create", environment=environment
    )
    assert status == 0, output
    status, output = run("pytest", *options, environment=environment)
    assert status == 0, output
    assert "PASS  accuracy[digits/prototypes-acc1]" in output
    assert "PASS  regression[digits/prototypes-acc1]" in output
    status, output = run("pytest_quantgate", "plan", path.name, environment=environment)
    assert "accuracy[digits/prototypes-acc1]" in output
    assert "measured" in output
    path.write_text(TASK_SUITE.format(task="digits/prototypes", trust="", bank=""))
    status, output = run("pytest_quantgate", "validate", path.name, environment=environment)
    assert status != 0
    assert "accuracy.task: prototypes needs a bank, such as bank: <data set>/train" in output


OWN = """\
from pathlib import Path
from torch.nn.functional import normalize

Path("imported").touch()

def same_shelf(inputs):
    images = normalize(inputs.images, dim=1)
    cosines = images @ images.T
    cosines.fill_diagonal_(-1)
    labels = inputs.samples.labels
    return [{value} for near, label in zip(cosines.argmax(dim=1), labels)]
"""


def test_code_that_a_suite_names_is_only_run_with_trust(run: Run, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "our_tasks.py").write_text(OWN.format(value="labels[near] == label"))
    path, task = tmp_path / "own.quantgate.yaml", "digits/our_tasks:same_shelf"
    options = ("--quantgate-cache-dir", str(tmp_path / "cache"), "-p", "no:randomly")
    path.write_text(TASK_SUITE.format(task=task, trust="", bank=""))

    for command in (("pytest", *options), ("pytest_quantgate", "validate", path.name)):
        status, output = run(*command, environment=environment)
        assert status != 0
        assert (
            "own.quantgate.yaml:6: accuracy: our_tasks:same_shelf is code, which this suite would "
            "run: read it, then write trust: true" in output
        )
    path.write_text(TASK_SUITE.format(task=task, trust="trust: true\n", bank=""))
    for name in ("validate", "plan"):
        status, output = run("pytest_quantgate", name, path.name, environment=environment)
        assert "our_tasks" in output or status == 0, output
    assert not (tmp_path / "imported").exists()

    status, output = run(
        "pytest", *options, "--quantgate-baselines=create", environment=environment
    )
    assert status == 0, output
    assert "PASS  accuracy[digits/our_tasks:same_shelf-acc1]" in output

    # An edited function replays nothing: what it gives now is judged.
    (tmp_path / "our_tasks.py").write_text(OWN.format(value="1.5"))
    status, output = run("pytest", *options, environment=environment)
    assert status != 0
    assert "1.5 is no score in [0, 1]" in output
