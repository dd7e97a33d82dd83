"""What must be true of a model and its data before any limit means something."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_quantgate.evidence.audit import TOWERS, TowerName


@dataclass(frozen=True, kw_only=True)
class TextReading:
    """How the text tower reads `count` texts, of which `given` differ as they are written, and
    `distinct` as far as it looks.

    Where the tower `pools_end`, what stands behind that token is not read. `without_end` texts have
    no end token; of `pooled_elsewhere` another token is pooled than the end token behind the text.
    `example` is the first such text, `pooled` the token that is pooled instead, at `position`.
    `end_token` is the tokenizer's (empty where it names none), `commonest` the number of texts
    that read like the most frequent one.
    """

    count: int
    distinct: int
    commonest: int
    end_token: str
    pools_end: bool = True
    without_end: int = 0
    pooled_elsewhere: int = 0
    example: str = ""
    pooled: str = ""
    position: int = 0
    given: int = 0


NO_TEXTS = TextReading(count=0, distinct=0, commonest=0, end_token="")


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two classes that cannot be told apart, by index and name; `pairs` says how many are so."""

    first: int
    second: int
    names: tuple[str, str]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a checkpoint's files, and the edit that mends it.

    `finding` is the second half of a verdict's code. Not `certain` is what harms some users only,
    or may be meant so.
    """

    finding: str
    text: str
    fix: str
    certain: bool = True


@dataclass(frozen=True, kw_only=True)
class TextPlaces:
    """Where the class names and the templates of a data set stand, `file:line` by index.

    Empty where they come with a package. `empty_templates` is a file of templates without any.
    """

    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    empty_templates: str = ""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """How often FP16 is right on `samples` of a task, each with as many answers to choose from.

    For retrieval an image's first caption is its class. `chance` is the share that answers like
    these hit without looking: the sum over all classes of the share of answers times the share of
    samples, and at least one in `classes`. `seen` classes have samples. `whole` says that these
    are all samples of the task. `confused` are (label, answer, times, of) where another answer is
    commoner than the right one; where `swapped` they are a ring of classes, each answered with
    the next one: their names or labels are exchanged.
    """

    samples: int
    right: int
    chance: float
    classes: int
    seen: int
    whole: bool
    confused: tuple[tuple[str, str, int, int], ...] = ()
    swapped: bool = False


@dataclass(frozen=True, kw_only=True)
class TaskSanity:
    """What must be true of a task whatever its limits are.

    `samples` and `first` are how many the task takes, as in its gate. `without_class` are the
    indices and texts of templates without `{c}`. `same_name`, `same_prompt` and `same_embedding`
    are classes with one name, with prompts that read alike, and with FP16 embeddings that are equal
    up to rounding. `images_alike` is the number of different images that FP16 embedded, all to one
    embedding, else 0; `nonfinite` of the `images` that were embedded hold NaN or Inf. `answers` is
    None where no model ran, and where the task's own gate judges them all.
    """

    task: str
    data: str
    classes: int
    reading: TextReading
    samples: int | None = None
    first: bool = False
    answers: Answers | None = None
    images: int = 0
    images_alike: int = 0
    nonfinite: int = 0
    templates: int = 0
    without_class: tuple[tuple[int, str], ...] = ()
    same_name: Twins | None = None
    same_prompt: Twins | None = None
    same_embedding: Twins | None = None


@dataclass(frozen=True, kw_only=True)
class Sanity:
    """What must be true of a model, its tokenizer and its data before any limit means something.

    `data` is what calibrates; `reading` is of the texts of its first `pairs` pairs, which FP16
    embedded, and the first `images` of their images: `nonfinite_images` and
    `nonfinite_texts` of them to NaN or Inf. Their pixels lie
    between `lowest_pixel` and `highest_pixel` after the image processor. `faults` are those of the
    checkpoint's files. `towers` are what the model has: one without images takes the texts alone.
    """

    data: str
    pairs: int
    reading: TextReading
    images: int = 0
    faults: tuple[Fault, ...] = ()
    lowest_pixel: float = 0.0
    highest_pixel: float = 0.0
    nonfinite_images: int = 0
    nonfinite_texts: int = 0
    towers: tuple[TowerName, ...] = TOWERS
    tasks: tuple[TaskSanity, ...] = ()
