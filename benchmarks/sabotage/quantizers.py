"""Short words for what nearly every sabotage of a model does."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.sabotage.bench import Bench
from benchmarks.sabotage.names import NAMES, rename
from benchmarks.sabotage.pipeline import Pipeline, PipelineCase
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.quantization.quantizers import find_quantizers, plain_class_name
from pytest_quantgate.run.case import Case


def names_of(model: Encoder) -> Mapping[str, str]:
    """Return the words of a model's family for those of the reference."""
    return NAMES.get(plain_class_name(model.module), {})


def choose(model: Encoder, pattern: str) -> list[Any]:
    """Return the quantizers whose names match, in the words of the model's family; at least one."""
    pattern = rename(pattern, names_of(model))
    found = [
        q for name, q in find_quantizers(model.module).items() if fnmatch.fnmatch(name, pattern)
    ]
    if not found:
        raise ValueError(f"{pattern!r} matches no quantizer")
    return found


def released(
    bench: Bench,
    name: str,
    pipeline: Pipeline | None = None,
    *,
    edits: dict[str, str] | None = None,
    finish: Callable[[Encoder], None] | None = None,
) -> Case:
    """Return the case of a pipeline; `finish` changes the finished model in place."""

    def changed(model: Encoder) -> Encoder:
        assert finish is not None
        finish(model)
        return model

    steps = pipeline or Pipeline()
    if finish is not None:
        steps = replace(steps, finish=changed)
    suite_case = bench.load(edits=edits)
    return PipelineCase(good=bench.good, suite_case=suite_case, name=name, pipeline=steps)
