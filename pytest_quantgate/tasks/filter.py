"""A filter that flags pictures, such as unsafe ones, at a false-positive rate that FP16 keeps.

Zero-shot, as CLIP filters data: a picture scores its cosine to the nearest class that the filter is
to catch (`positive` in the suite), less that to the nearest other class; texts are class names in
templates, averaged as in `classification`. The threshold is the lowest at which FP16 flags no more
than the rate of the negatives, of the `bank` where the suite names one, as a service that tunes it
on data of its own. The quantized variant is judged at that threshold of FP16.

Metrics: `recall@fprP%`, the share of the positives that is flagged, and `specificity@fprP%`, the
share of the negatives that is not: a point of the ROC curve, as scikit-learn's `roc_curve` has it.
"""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.tasks.classification import average_templates, list_prompts
from pytest_quantgate.tasks.kind import TaskKind
from pytest_quantgate.tasks.operating_point import (
    keep_false_positives,
    name_other_side,
    read_rate,
)
from pytest_quantgate.tasks.scoring import Scored, TaskInputs

if TYPE_CHECKING:
    import torch


def score(inputs: TaskInputs) -> Scored:
    """Return which positives are flagged, or which negatives are not.

    Raises DataError for classes that there are not, for samples of one side alone, and where FP16
    does not tell them apart.
    """
    import torch

    positive, threshold = mark_positive(inputs), _find_threshold(inputs)
    scores = score_margins(inputs)
    finite = torch.isfinite(scores)
    flagged = scores >= threshold
    asks_positives = inputs.metric.startswith("recall")
    right = (flagged if asks_positives else ~flagged) & finite
    places = (positive == asks_positives).nonzero()[:, 0].tolist()
    samples = inputs.samples
    labels = samples.labels or ()
    shown = [inputs.pixels[place] for place in places]
    return Scored(
        correct=right[places].tolist(),
        answers=flagged[places].long().tolist(),
        ids=[samples.ids[place] for place in places],
        shared=(shown,),
        copies=len(places) - len(set(zip(shown, (labels[i] for i in places), strict=True))),
        nonfinite=int((~finite).sum()),
    )


def score_margins(inputs: TaskInputs) -> torch.Tensor:
    """Return [N]: the cosine to the nearest positive class, less that to the nearest other one."""
    from torch.nn import functional

    assert inputs.images is not None
    assert inputs.texts is not None
    names = inputs.samples.class_names
    classifier = average_templates(inputs.texts, classes=len(names))
    cosines = functional.normalize(inputs.images, dim=-1) @ classifier
    caught = [name in inputs.positive for name in names]
    others = [not one for one in caught]
    return cosines[:, caught].amax(dim=1) - cosines[:, others].amax(dim=1)


def mark_positive(inputs: TaskInputs) -> torch.Tensor:
    """Return bool [N]: which samples are of a class that is to be caught."""
    import torch

    samples = inputs.samples
    names = samples.class_names
    assert samples.labels is not None
    for name in inputs.positive:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"classes are {', '.join(names)}"
            raise DataError(
                f"{inputs.task}: positive: {samples.name} has no class {name!r}: {hint}"
            )
    found = torch.tensor([names[label] in inputs.positive for label in samples.labels])
    if found.all() or not found.any():
        word = "negatives" if found.all() else "positives"
        raise DataError(
            f"{inputs.task}: {samples.name} has no {word}: positive: names "
            f"{', '.join(inputs.positive)}"
        )
    return found


def _find_threshold(inputs: TaskInputs) -> float:
    """Return the threshold of FP16."""
    import torch

    rate, reference = read_rate(inputs.metric), inputs.reference
    tuned = reference.bank or reference
    positive, scores = mark_positive(tuned), score_margins(tuned)
    scores = scores.masked_fill(~torch.isfinite(scores), -torch.inf)  # its own gate says so
    try:
        threshold = keep_false_positives(scores[~positive], most=rate)
    except DataError as error:
        raise DataError(f"{inputs.metric} of {inputs.task}: {error}") from error
    caught, passed = (
        (scores[side] >= threshold).double().mean().item() for side in (positive, ~positive)
    )
    if caught <= passed:
        raise DataError(
            f"{inputs.metric} of {inputs.task}: FP16 flags {caught:.2%} of the positives and "
            f"{passed:.2%} of the negatives of {tuned.samples.name}: it does not tell them apart, "
            f"or positive: names the other side"
        )
    return threshold


def count_chance(outcomes: Outcomes) -> float | None:
    """Return the rate that is flagged whatever it is; of negatives, nothing."""
    if not outcomes.metric.startswith("recall"):
        return None  # that FP16 keeps it is how its threshold is found
    return float(read_rate(outcomes.metric))


KIND = TaskKind(
    name="filter",
    help="flags pictures of some classes, at the false-positive rate of FP16",
    purpose="classification",
    towers=("vision", "text"),
    metrics=("recall@fprP%", "specificity@fprP%"),
    proposed=("recall@fpr1%", "specificity@fpr1%"),
    list_texts=list_prompts,
    score=score,
    bank="may",
    names_positive=True,
    chance=count_chance,
    needs_fp16=True,
    count_queries=lambda _metric, _images, _captions: None,
    name_answers=lambda _samples, _metric: ("passed", "flagged"),
    name_other_side=partial(name_other_side, sides=("recall", "specificity")),
)
