"""Small pictures of the samples that flipped, kept in the cache beside their outcomes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.codec import from_json
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.store.keys import OUTCOMES, PREVIEWS

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.tasks.samples import Samples

#: The longer side of a picture, in pixels.
MAX_SIDE = 96

#: Data that is not in memory already is read for its pictures up to this many samples.
MAX_SAMPLES = 10_000


def list_flips(fp16: Outcomes, quantized: Outcomes) -> tuple[int, ...]:
    """Return the indices of samples that one variant has right, or more right, than the other.

    What was lost comes first, then what changed most: in its score where samples are graded, in
    its margin where there is one, else in the order of the data. Both must be of the same ids.
    """
    gains = [now - was for was, now in zip(fp16.correct, quantized.correct, strict=True)]
    moves = [now - was for was, now in zip(fp16.margins, quantized.margins, strict=False)]
    flipped = (index for index, gain in enumerate(gains) if gain)

    def rank(index: int) -> tuple[bool, float, float]:
        move = abs(moves[index]) if moves else 0.0
        return gains[index] > 0, -abs(gains[index]), -move

    return tuple(sorted(flipped, key=rank))


def keep_previews(case: Case, *, images: int, warn: Callable[[str], None]) -> None:
    """Keep up to `images` pictures of flipped samples for every task that the case has measured.

    What cannot be read is a warning, never an error: the verdict does not need it.
    """
    if images == 0:
        return
    for about, outcomes_key in tuple(case.used.items()):
        kind, *of = about
        if kind != "outcomes" or ("previews", *of) in case.used:
            continue
        try:
            key = _keep(case, task=of[0], count=of[3], outcomes_key=outcomes_key, images=images)
        except (QuantGateError, OSError, ValueError, ImportError) as error:
            warn(f"the report shows no pictures of {of[0]}: {error}")
            continue
        if key is not None:
            case.used["previews", *of] = key


def _keep(case: Case, *, task: str, count: str, outcomes_key: str, images: int) -> str | None:
    """Return the key of the pictures of one task; None where reading its data takes too long."""
    from pytest_quantgate.tasks.registry import evaluation_data

    key = case.key(PREVIEWS, outcomes=outcomes_key, images=images)
    if case.cache.read(kind=PREVIEWS.kind, key=key) is not None:
        return key
    fp16, quantized = (
        from_json(Outcomes, item)
        for item in case.cache.read(kind=OUTCOMES.kind, key=outcomes_key) or ()
    )
    name, purpose = evaluation_data(task)
    is_first, number = count.startswith("first "), int(count.rpartition(" ")[2] or 0) or None
    known = case.has_samples(name, number, purpose=purpose, first=is_first)
    if len(fp16.ids) > MAX_SAMPLES and not known:
        return None

    def measure() -> Any:
        samples = case.samples(name, number, purpose=purpose, first=is_first)
        return draw_previews(fp16, quantized, samples=samples, images=images)

    case.cache.get_or_measure(kind=PREVIEWS.kind, key=key, measure=measure)
    return key


def draw_previews(
    fp16: Outcomes, quantized: Outcomes, *, samples: Samples, images: int
) -> dict[str, dict[str, str]]:
    """Return by sample id the picture (a data URI) of the first flips, and where a task has no
    classes the text that was asked with and what came first."""
    from pytest_quantgate.tasks.kind import find_task

    kind = find_task(fp16.task)
    place = {name: index for index, name in enumerate(samples.ids)}
    queries = kind.name_queries(samples, fp16.metric)
    names = kind.name_answers(samples, fp16.metric)
    found = {}
    for index in list_flips(fp16, quantized)[:images]:
        name = fp16.ids[index]
        preview = {"image": to_data_uri(samples.images[place[_find_sample(name, place)]])}
        if queries:
            preview["text"] = queries[index]
        if not fp16.class_names:
            for variant, of in (("fp16", fp16), ("quantized", quantized)):
                answer = of.answers[index]
                preview[f"{variant}_answer"] = names[answer] if 0 <= answer < len(names) else ""
        found[name] = preview
    return found


def _find_sample(name: str, samples: Container[str]) -> str:
    """Return the id of the sample that an outcome is of: outcomes of one have a number behind #."""
    while name not in samples:
        name = name.rpartition("#")[0]
        if not name:
            raise ValueError("an outcome is of no sample of the data")
    return name


def to_data_uri(image: Any) -> str:
    """Return a PIL image or a uint8 array [H, W, 3] as a small WebP (or PNG) data URI."""
    from PIL import Image, features

    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture = picture.convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    kind = "webp" if features.check("webp") else "png"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind.upper(), quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
