"""The same photographs in every form give the same outcomes and verdicts, to the byte.

The data is not part of the project. QUANTGATE_TEST_DATA names the folder (`clip-cifar10-tiny/`,
`cifar10-heldout/`); by default it is looked for beside the checkout, in `shared/data`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.run.case import Case
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.suite.load import load_suite
from tests.data_forms import FORMS, by_class, read_shard, write_form

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
MODEL = DATA / "clip-cifar10-tiny"
PHOTOS = DATA / "cifar10-heldout"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (MODEL.is_dir() and PHOTOS.is_dir()),
        reason=f"{MODEL.name} or {PHOTOS.name} not in {DATA}: set QUANTGATE_TEST_DATA",
    ),
]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  photos: {{dataset: {dataset}, root: "{root}"}}
calibration: {{data: photos/train, samples: 32, batch_size: 32, held_out_samples: 16}}
quantize: {{recipe: fp8-attention}}
gates:
  calibration: {{max_clipped: 5%}}
  accuracy:
    - {{task: photos/classification, metric: acc1, max_drop: 10pp, samples: {samples}}}
"""

KEY = "photos/classification-acc1"


def judge(case: Case, *, samples: int) -> dict[str, Any]:
    """Return all that a run says of the data, as JSON would hold it."""
    asked: dict[str, Any] = {"task": "photos/classification", "metric": "acc1", "samples": samples}
    judged = [case.judge(kind="calibration", key=""), case.judge(kind="accuracy", key=KEY)]
    return {
        "verdicts": [to_json(one.verdict) for one in judged],
        "notes": [one.notes for one in judged],
        "outcomes": to_json(case.outcomes(**asked)),
        "calibration": to_json(case.calibration_run),
        "digest": case.samples("photos/test", samples, purpose="classification").digest,
    }


def test_every_form_gives_the_same_outcomes_and_verdicts(
    tmp_path: Path, make_case: Callable[..., Case]
) -> None:
    classes = (PHOTOS / "classnames.txt").read_text().split()
    splits = {
        split: by_class(
            read_shard(PHOTOS / split / "0.tar", classes=classes, count=count), classes=classes
        )
        for split, count in (("test", 120), ("train", 48))
    }
    path = tmp_path / "photos.quantgate.yaml"
    found: dict[str, str] = {}
    for form, dataset in FORMS.items():
        root = write_form(form, tmp_path / form, splits=splits, classes=classes)
        text = SUITE.format(model=MODEL, dataset=dataset, root=root, samples=100)
        path.write_text(text, encoding="utf-8")
        case = make_case(load_suite(path))
        case.cache = Cache(root=tmp_path / f"cache-{form}", warn=pytest.fail)  # shares nothing
        found[form] = json.dumps(judge(case, samples=100), sort_keys=True)

    assert json.loads(found["wds"])["verdicts"][1]["status"] in ("PASS", "INCONCLUSIVE")
    assert len(json.loads(found["wds"])["outcomes"][0]["ids"]) == 100
    assert {form for form, said in found.items() if said != found["wds"]} == set()
