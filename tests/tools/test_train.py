"""The training script runs from nothing to a shipped checkpoint, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tools.reference import outliers, train

FEW = (
    *("--single-scenes", "300", "--relation-scenes", "100", "--threads", "1"),
    *("--render-processes", "1", "--checkpoint-every", "1"),
)


# torch's checkpoint functions warn of what they will refuse one day.
@pytest.mark.filterwarnings("ignore")
def test_two_steps_and_a_third_give_a_model_that_ships(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    trained, shipped = tmp_path / "trained", tmp_path / "shipped"
    try:
        train.main(["--out", str(trained), "--steps", "2", *FEW])
        first = json.loads((trained / "training.json").read_text("utf-8"))
        train.main(["--out", str(trained), "--steps", "3", "--resume", *FEW])
        second = json.loads((trained / "training.json").read_text("utf-8"))
        outliers.main(["--model", str(trained), "--out", str(shipped)])
    finally:
        torch.set_num_threads(threads)

    assert (first["step"], second["step"]) == (2, 3)
    spec = ModelSpec(where=Where(file="tests", line=0), source="transformers", id=str(shipped))
    model = load_fp16(spec)
    embedded = model.encode_text(model.tokenize(["a red circle"]))
    assert embedded.shape == (1, 128)
    assert bool(torch.isfinite(embedded).all())


def test_the_rate_falls_with_the_clock_where_the_machine_is_slow() -> None:
    plan = train.TrainingPlan(steps=1000, warmup_steps=100)

    on_time = [train._learning_rate(plan, step, late=0.0) for step in (0, 99, 100, 999)]
    late = train._learning_rate(plan, 200, late=0.99)

    assert on_time[0] < on_time[1] <= plan.learning_rate
    assert on_time[3] == pytest.approx(0.01 * plan.learning_rate, rel=0.05)
    assert late == pytest.approx(on_time[3], rel=0.1)
