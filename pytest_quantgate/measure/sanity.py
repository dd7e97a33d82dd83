"""What must be true before any limit means something: a pair runs through, prompts tell classes
apart, a text tower that pools the end token finds it, and FP16 answers better than chance.

What cannot run at all is an error with a code of its own, raised where it is met. Forwards are
bounded by what they cost, not by the size of a data set: a gate that runs first must be cheap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders import faults
from pytest_quantgate.encoders.encoder import Encoder, describe_error
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.outcomes import Outcomes, Score
from pytest_quantgate.evidence.sanity import NO_TEXTS, Answers, Fault, Sanity, TaskSanity, Twins
from pytest_quantgate.measure.embeddings import embed_images, embed_texts
from pytest_quantgate.measure.texts import (
    MOST_TEXTS,
    Pooling,
    TextReader,
    examine_prompts,
    order_templates,
)
from pytest_quantgate.tasks.classification import average_templates
from pytest_quantgate.tasks.drawing import order_draw
from pytest_quantgate.tasks.kind import TaskKind, find_task
from pytest_quantgate.tasks.samples import Samples, fill

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.evidence.audit import TowerName

#: Samples, and texts, that are embedded at once.
BATCH_SIZE = 64

#: Floating-point operations that all images and all prompts of a suite may cost: some five images
#: at ViT-L/14 size, the pairs' among them; all of a data set at that of the reference model. A task
#: takes one image and four texts at least: what they leave open its own gates decide.
IMAGE_BUDGET = 8e11
TEXT_BUDGET = 1.4e11
FEWEST_IMAGES = 1
FEWEST_TEXTS = 4

#: How many samples the first look at the answers takes.
FIRST_LOOK = 5

#: Classes, or captions, that a look at a part of the samples chooses from.
MOST_CHOICES = 64

#: How many confusions a verdict shows.
CONFUSIONS = 4

#: Each look at the answers is at so many times the samples of the one before.
LOOK_FACTOR = 4

#: Layers of a tower, weights of a layer and rows of it that are looked at for a rounding.
LAYERS_LOOKED_AT, MOST_WEIGHTS, ROWS_LOOKED_AT = 8, 1 << 16, 16

#: What tells rounded weights from others takes so many of a layer, or so many of a row.
FEWEST_WEIGHTS, FEWEST_OF_A_ROW = 4096, 512

#: The magnitudes that numbers of 8 bits have.
MAGNITUDES = 128

#: Relative distance up to which two embeddings are one, by the arithmetic.
SAME = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as its gate asks for it, and its samples."""

    name: str
    count: int | None
    first: bool
    samples: Samples

    @cached_property
    def kind(self) -> TaskKind:
        return find_task(self.name)

    @cached_property
    def captions(self) -> Sequence[Sequence[str]] | None:
        """The captions, where the task asks with them; samples may have labels as well."""
        samples = self.samples
        asks = self.kind.purpose == "retrieval" or samples.labels is None
        return samples.captions if asks else None

    @cached_property
    def labels(self) -> Sequence[int]:
        """The class of each sample; for retrieval each image is a class of its own."""
        labels = self.samples.labels if self.captions is None else None
        return range(len(self.samples)) if labels is None else labels

    @cached_property
    def class_names(self) -> Sequence[str]:
        """The classes; for retrieval the first caption of each image."""
        if self.captions is None:
            return self.samples.class_names
        return [texts[0] for texts in self.captions]

    @cached_property
    def templates(self) -> Sequence[str]:
        """The templates, those that name the class and are short first."""
        return order_templates(self.samples.templates if self.captions is None else ())


def measure_sanity(
    fp16: Encoder,
    *,
    pairs: Samples,
    tasks: Sequence[Task],
    is_settled: Callable[[Answers], bool],
    known: tuple[Fault, ...] = (),
) -> Sanity:
    """Return what is true of a model on its first pairs, and on the texts and samples of its tasks.

    `is_settled` says of the answers on a part of a task's samples that they show enough, `known`
    are the faults of its files. Raises ModelError or DataError where a pair cannot be decoded,
    prepared, tokenized or encoded.
    """
    import torch

    sees, reads = ("vision" in fp16.tower_names, "text" in fp16.tower_names)
    texts = [pairs.text(index) for index in range(len(pairs))] if reads else []
    lowest, highest, bad_images, bad_texts = (0.0, 0.0, 0, 0)
    images: torch.Tensor | None = None
    shown = _count_pairs_to_see(fp16, pairs=len(pairs), tasks=len(tasks)) if sees else 0
    with quiet_libraries():
        if sees:
            pixels = fp16.preprocess(pairs.images[index] for index in range(shown))
            images = _encode("an image", lambda: fp16.encode_image(pixels), model=fp16)
            lowest, highest = (float(pixels.min()), float(pixels.max()))
            bad_images = int((~torch.isfinite(images).all(dim=1)).sum())
        if reads:
            tokens = fp16.tokenize(texts)
            captions = _encode("a text", lambda: fp16.encode_text(tokens), model=fp16)
            bad_texts = int((~torch.isfinite(captions).all(dim=1)).sum())
    reader = read_texts_of(fp16) if reads else None
    return Sanity(
        data=pairs.name,
        pairs=len(pairs),
        images=shown,
        reading=reader.read(texts) if reader else NO_TEXTS,
        faults=(*known, *find_rounded(fp16)),
        lowest_pixel=lowest,
        highest_pixel=highest,
        nonfinite_images=bad_images,
        nonfinite_texts=bad_texts,
        towers=fp16.tower_names,
        tasks=tuple(
            _examine(
                task,
                model=fp16,
                reader=reader,
                is_settled=is_settled,
                affordable=_count_affordable(fp16, tasks=len(tasks), pairs=shown),
                beside=_Beside(hashes=pairs.hashes[:shown], embedded=images),
            )
            for task in tasks
            if set(task.kind.towers) <= set(fp16.tower_names)  # else the task's gate says so
        ),
    )


def find_rounded(fp16: Encoder) -> tuple[Fault, ...]:
    """Return what says that weights of FP16 were quantized before, and made wide again.

    Of the largest layers of a tower some weights are looked at: 8 bits have at most 128 magnitudes
    under one scale, a tensor's or a row's. In bfloat16, the coarsest type that is none of these
    formats, a row of 512 weights has twice as many and a tensor more.
    """
    from torch import nn

    found = []
    for tower in fp16.tower_names:
        parts = [fp16.module.get_submodule(part) for part in fp16.tower(tower).parts]
        modules = [module for part in parts for module in part.modules()]
        layers = [m for m in modules if isinstance(m, (nn.Linear, nn.Conv2d))]
        layers.sort(key=lambda layer: -layer.weight.numel())
        counts = [count_magnitudes(layer.weight.detach()) for layer in layers[:LAYERS_LOOKED_AT]]
        known = [number for number in counts if number is not None]
        if known and max(known) <= MAGNITUDES:
            found.append(faults.fp16_rounded(tower=tower, layers=len(known), most=max(known)))
    return tuple(found)


def count_magnitudes(weight: torch.Tensor) -> int | None:
    """Return how many magnitudes a weight has, or a row of it that has most; None for too few
    values to tell."""
    if weight.numel() < FEWEST_WEIGHTS or weight.is_meta:  # of ONNX files alone nothing is loaded
        return None
    rows = weight.flatten(1)
    whole = _count_distinct(rows.flatten()[:MOST_WEIGHTS].abs())
    if whole <= MAGNITUDES or rows.shape[1] < FEWEST_OF_A_ROW:
        return whole
    return max(_count_distinct(row.abs()) for row in rows[:ROWS_LOOKED_AT])


def _count_distinct(values: torch.Tensor) -> int:
    ordered = values.sort().values
    return 1 + int((ordered[1:] != ordered[:-1]).sum())


def read_texts_of(model: Encoder) -> TextReader:
    """Return what reads texts as a model does."""
    tokenizer, text = model.tokenizer, model.tower("text").text
    assert text is not None  # it is a text tower

    def tokenize(texts: list[str]) -> list[list[int]]:
        with quiet_libraries():
            ids: list[list[int]] = model.tokenize(texts)["input_ids"].tolist()
        return ids

    return TextReader(
        tokenize=tokenize,
        name_token=lambda number: str(tokenizer.convert_ids_to_tokens(number)),
        end_token=str(tokenizer.eos_token or ""),
        pooling=Pooling(
            end_id=tokenizer.eos_token_id,
            config_end_id=text.end_id,
            special_ids=frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id},
        )
        if text.pools_end
        else None,
    )


def _examine(
    task: Task,
    *,
    model: Encoder,
    reader: TextReader | None,
    is_settled: Callable[[Answers], bool],
    affordable: _Affordable,
    beside: _Beside,
) -> TaskSanity:
    samples = task.samples
    if reader is None or not task.kind.is_zero_shot:
        return _look_at_images(task, model=model, affordable=affordable, beside=beside)
    if task.captions is None:
        found = examine_prompts(
            task.name,
            data=samples.name,
            class_names=samples.class_names,
            templates=samples.templates,
            reader=reader,
        )
    else:
        captions = [text for texts in task.captions for text in texts][:MOST_TEXTS]
        reading = reader.read(captions)
        found = TaskSanity(task=task.name, data=samples.name, classes=0, reading=reading)
    reading = found.reading
    fails = (
        found.without_class or found.same_prompt or reading.without_end or reading.pooled_elsewhere
    )
    # What fails already needs no answers, only a look at the embeddings.
    enough = (lambda _: True) if fails else is_settled
    asked = _ask(
        task, model=model, reader=reader, is_settled=enough, affordable=affordable, beside=beside
    )
    comparable = task.captions is None and not found.same_prompt
    return replace(
        found,
        samples=task.count,
        first=task.first,
        answers=asked.answers,
        images=asked.images.count,
        images_alike=asked.images.alike,
        nonfinite=asked.images.nonfinite,
        same_embedding=asked.same_embedding if comparable else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    answers: Answers
    same_embedding: Twins | None
    images: _Looked


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """The images of the pairs: what a single image of a task is compared with. None: no tower."""

    hashes: Sequence[str]
    embedded: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """How many images were embedded, of these different ones all to one embedding (else 0), and
    how many to NaN or Inf."""

    count: int
    alike: int
    nonfinite: int


def _look_at_images(
    task: Task, *, model: Encoder, affordable: _Affordable, beside: _Beside
) -> TaskSanity:
    """Return whether FP16 tells a few images of a task apart; its own gate judges the answers."""
    found = TaskSanity(
        task=task.name,
        data=task.samples.name,
        classes=0,
        reading=NO_TEXTS,
        samples=task.count,
        first=task.first,
    )
    if "vision" not in task.kind.towers:
        return found
    images = _Images(task.samples, model=model, beside=beside)
    images.embed(order_draw((0,) * len(task.samples))[: min(FIRST_LOOK, affordable.images)])
    looked = images.look()
    return replace(
        found, images=looked.count, images_alike=looked.alike, nonfinite=looked.nonfinite
    )


def _ask(
    task: Task,
    *,
    model: Encoder,
    reader: TextReader,
    is_settled: Callable[[Answers], bool],
    affordable: _Affordable,
    beside: _Beside,
) -> _Asked:
    """Return how FP16 answers a task on as few samples as show it, within the budget.

    A look takes one template and some classes to choose from, and more and more of their samples.
    Only the last one, where all samples are affordable, takes everything: what that does not show
    is not there.
    """
    order = order_draw(task.labels)
    whole = (
        len(order) <= affordable.images
        and len(task.class_names) * len(task.templates) <= affordable.texts
    )
    seen = dict.fromkeys(task.labels[index] for index in order)
    chosen = list(dict.fromkeys((*seen, *range(len(task.class_names)))))
    chosen = chosen[: min(MOST_CHOICES, affordable.texts)]
    taken = [index for index in order if task.labels[index] in set(chosen)]
    tokenize = partial(tokenize_short, model=model, reader=reader)
    classes = _embed_classes(
        task, chosen, templates=task.templates[:1], model=model, tokenize=tokenize
    )
    images = _Images(task.samples, model=model, beside=beside)
    for stop in _list_looks(min(len(taken), affordable.images)):
        answers = _count(task, taken[:stop], chosen=chosen, classes=classes, images=images)
        if is_settled(answers):
            break
    else:
        if whole:
            chosen = list(range(len(task.class_names)))
            classes = _embed_classes(
                task, chosen, templates=task.templates, model=model, tokenize=tokenize
            )
            answers = _count(task, order, chosen=chosen, classes=classes, images=images, whole=True)
    same = SAME[model.compute_dtype]
    return _Asked(
        answers=answers,
        same_embedding=_find_same(classes, tolerance=same, labels=chosen, names=task.class_names),
        images=images.look(),
    )


def _count(
    task: Task,
    indices: Sequence[int],
    *,
    chosen: Sequence[int],
    classes: torch.Tensor,
    images: _Images,
    whole: bool = False,
) -> Answers:
    from torch.nn import functional

    place = {label: index for index, label in enumerate(chosen)}
    best = (functional.normalize(images.embed(indices), dim=-1) @ classes.T).argmax(dim=1)
    sizes = Counter(place[label] for label in task.labels if label in place)
    return count_answers(
        [place[task.labels[index]] for index in indices],
        best.tolist(),
        names=[task.class_names[label] for label in chosen],
        sizes=sizes,
        whole=whole,
    )


def _embed_classes(
    task: Task,
    labels: Sequence[int],
    *,
    templates: Sequence[str],
    model: Encoder,
    tokenize: Callable[[list[str]], Mapping[str, torch.Tensor]],
) -> torch.Tensor:
    """Return the unit embedding of each class [C, D]."""
    prompts = [fill(text, task.class_names[label]) for label in labels for text in templates]
    (found,) = embed_texts((model,), prompts, batch_size=BATCH_SIZE, tokenize=tokenize)
    return average_templates(found, classes=len(labels)).T


def tokenize_short(
    texts: list[str], *, model: Encoder, reader: TextReader
) -> Mapping[str, torch.Tensor]:
    """Return the inputs of the text tower without what stands behind all tokens that are pooled.

    A causal tower does not read it, and of short prompts it is most of the work.
    """
    tokens, text = model.tokenize(texts), model.tower("text").text
    length = reader.count_read(texts) if text is not None and text.takes_short else None
    return tokens if length is None else {name: part[:, :length] for name, part in tokens.items()}


class _Images:
    """The embeddings of the samples of a task; each image is embedded once, when it is asked."""

    def __init__(self, samples: Samples, *, model: Encoder, beside: _Beside) -> None:
        self.samples = samples
        self.model = model
        self.beside = beside
        self.known: dict[int, torch.Tensor] = {}

    def embed(self, indices: Sequence[int]) -> torch.Tensor:
        """Return float32 [N, D] of the samples at `indices`."""
        import torch

        new = [index for index in indices if index not in self.known]
        if new:
            (found,) = embed_images(
                (self.model,),
                self.samples.select(new),
                batch_size=BATCH_SIZE,
                preprocess=self.model.preprocess,
            )
            self.known.update(zip(new, found, strict=True))
        return torch.stack([self.known[index] for index in indices])

    def look(self) -> _Looked:
        """Return what the embeddings of all images show that were asked for."""
        import torch

        embedded = torch.stack(list(self.known.values()))
        finite = torch.isfinite(embedded).all(dim=1)
        hashes = [self.samples.hashes[index] for index in self.known]
        compared = embedded
        if len(embedded) == 1 and self.beside.embedded is not None:
            compared = torch.cat([embedded, self.beside.embedded.float().cpu()])
            hashes += self.beside.hashes
        distances = (compared - compared[0]).norm(dim=1)
        tolerance = SAME[self.model.compute_dtype] * compared[0].norm()
        alike = len(set(hashes)) > 1 and bool((distances <= tolerance).all())
        found = len(compared) if alike else 0
        return _Looked(
            count=len(embedded),
            alike=found or self._count_same_pixels(),
            nonfinite=int((~finite).sum()),
        )

    def _count_same_pixels(self) -> int:
        """Return 2 where a single image and another one are the same for the model, else 0."""
        import torch

        (first, *more) = self.known
        known = self.samples.hashes[first]
        other = next((i for i, found in enumerate(self.samples.hashes) if found != known), None)
        if more or other is None:
            return 0
        pixels = self.model.preprocess(self.samples.images[index] for index in (first, other))
        return 2 if torch.equal(pixels[0], pixels[1]) else 0


def count_answers(
    labels: Sequence[int],
    answers: Sequence[int],
    *,
    names: Sequence[str],
    sizes: dict[int, int] | None = None,
    whole: bool,
) -> Answers:
    """Return how often answers are right, and how often that would be by chance.

    `sizes` are the samples of each class in the whole task, of which these may be a part that is
    spread over the classes; None: these are all.
    """
    shares = Counter(labels) if sizes is None else sizes
    total = sum(shares.values())
    given = Counter(answers)
    confused, swapped = _list_confused(labels, answers, names=names)
    alike = sum(times * shares.get(answer, 0) for answer, times in given.items())
    return Answers(
        samples=len(labels),
        right=sum(a == b for a, b in zip(answers, labels, strict=True)),
        chance=max(1 / len(names), alike / (len(answers) * total)),
        classes=len(names),
        seen=len(shares),
        whole=whole,
        confused=confused,
        swapped=swapped,
    )


def _list_confused(
    labels: Sequence[int], answers: Sequence[int], *, names: Sequence[str]
) -> tuple[tuple[tuple[str, str, int, int], ...], bool]:
    """Return the classes that mostly get one other answer, and whether they are a ring.

    A class counts where one other answer is so much commoner than the right one that the toss of
    a coin between them would not be in one of 1,000 tasks with that many classes (binomial tail
    bounded by Hoeffding's inequality). A model that is bad mistakes some classes for others; that
    each of some classes is taken for the next and the last for the first is no mistake of a model.
    """
    of = Counter(labels)
    pairs = Counter(zip(labels, answers, strict=True))
    following: dict[int, int] = {}
    for (label, answer), times in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        lead, together = times - pairs[label, label], times + pairs[label, label]
        clear = math.exp(-(lead**2) / (2 * together)) * len(names) <= 0.001
        if answer not in (label, -1) and lead > 0 and clear:
            following.setdefault(label, answer)
    ring = _find_ring(following)
    worst = sorted(following, key=lambda label: (-pairs[label, following[label]], label))
    shown = (ring or worst)[:CONFUSIONS]
    lines = tuple(
        (names[label], names[following[label]], pairs[label, following[label]], of[label])
        for label in shown
    )
    return lines, bool(ring)


def _find_ring(following: Mapping[int, int]) -> list[int]:
    """Return the first classes that lead back to themselves, the smallest first; or none."""
    for start in sorted(following):
        path = [start]
        while following.get(path[-1]) not in (None, *path):
            path.append(following[path[-1]])
        if following.get(path[-1]) == start:
            return path
    return []


def read_answers(
    outcomes: Outcomes, *, chance: Callable[[Outcomes], float | None] | None
) -> Answers | None:
    """Return the answers of a whole task out of its outcomes; None where chance is not known.

    Of a task without classes one outcome of a cluster counts: captions of one image are found
    together. `chance` is that of the task's kind. Of grades the whole numbers in their sum count:
    they vary less than true and false of the same mean.
    """
    if outcomes.class_names:
        return count_answers(
            outcomes.labels, outcomes.answers, names=outcomes.class_names, whole=True
        )
    clusters = outcomes.clusters or range(len(outcomes.ids))
    first: dict[int, Score] = {}
    for cluster, right in zip(clusters, outcomes.correct, strict=True):
        first.setdefault(cluster, right)
    share = chance(outcomes) if chance is not None else None
    if share is None:
        return None
    return Answers(
        samples=len(first),
        right=math.floor(math.fsum(first.values())),
        chance=share,
        classes=len(first),
        seen=len(first),
        whole=True,
    )


def _list_looks(most: int) -> Iterator[int]:
    look = min(FIRST_LOOK, most)
    while look <= most:
        yield look
        look *= LOOK_FACTOR


@dataclass(frozen=True, kw_only=True)
class _Affordable:
    images: int
    texts: int


def _count_affordable(model: Encoder, *, tasks: int, pairs: int) -> _Affordable:
    """Return how many images and texts the budgets allow each of so many tasks, by the operations
    of a forward; `pairs` images are embedded besides."""

    def count(name: TowerName, budget: float, fewest: int, *, spent: int = 0) -> int:
        if name not in model.tower_names:
            return 0
        return max(fewest, int((budget / _cost_of(model, name) - spent) / tasks))

    return _Affordable(
        images=count("vision", IMAGE_BUDGET, FEWEST_IMAGES, spent=pairs),
        texts=count("text", TEXT_BUDGET, FEWEST_TEXTS),
    )


def _count_pairs_to_see(model: Encoder, *, pairs: int, tasks: int) -> int:
    """Return how many images of the pairs are embedded: one at least, and what tasks leave."""
    left = int(IMAGE_BUDGET / _cost_of(model, "vision")) - FEWEST_IMAGES * tasks
    return min(pairs, max(1, left))


def _cost_of(model: Encoder, name: TowerName) -> float:
    tower = model.tower(name)
    return count_operations(tower.config, tokens=tower.tokens)


def count_operations(config: Any, *, tokens: int) -> float:
    """Return the floating-point operations of one tower's forward: its matrix products."""
    width = config.hidden_size
    # DINOv2 names it as a multiple of the width.
    inner = getattr(config, "intermediate_size", None) or width * getattr(config, "mlp_ratio", 4)
    weights = 4 * width * width + 2 * width * inner
    return float(config.num_hidden_layers * tokens * (2 * weights + 4 * tokens * width))


def _find_same(
    classes: torch.Tensor, *, tolerance: float, labels: Sequence[int], names: Sequence[str]
) -> Twins | None:
    """Return classes whose unit embeddings [C, D] are equal up to rounding."""
    import torch

    if not bool(torch.isfinite(classes).all()):
        return None
    found: list[tuple[int, int]] = []
    for index in range(1, len(classes)):
        distance = (classes[:index] - classes[index]).norm(dim=1)
        nearest = int(distance.argmin())
        if float(distance[nearest]) <= tolerance:
            found.append((labels[nearest], labels[index]))
    if not found:
        return None
    one, other = found[0]
    return Twins(first=one, second=other, names=(names[one], names[other]), pairs=len(found))


def _encode(what: str, encode: Any, *, model: Encoder) -> torch.Tensor:
    try:
        found: torch.Tensor = encode()
    except QuantGateError:
        raise
    except Exception as error:  # whatever transformers and torch raise for a wrong config
        raise faults.fault_error(
            faults.encoding(what, describe_error(error)), model=model.description
        ) from error
    return found
