"""How a text tower reads texts: which token it pools, and which prompts it cannot tell apart.

Neither torch nor a model: a tokenizer and three numbers of the config are enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_quantgate.evidence.sanity import NO_TEXTS, TaskSanity, TextReading, Twins
from pytest_quantgate.tasks.samples import fill

#: Texts of a task that are tokenized at most: a fast tokenizer takes half a second for them.
MOST_TEXTS = 5000

#: Texts that are tokenized at once.
CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """Which token of a text the text tower pools, as transformers' CLIP does it.

    `end_id` is the tokenizer's end token, None where it names none. `config_end_id` is the
    model's: 2 is a mistake of old configs, for which the largest id is pooled
    (huggingface/transformers, pull request 24773).
    """

    end_id: int | None
    config_end_id: Any
    special_ids: frozenset[int]

    def find(self, ids: Sequence[int]) -> int:
        """Return the position that is pooled."""
        if self.config_end_id == 2:
            return max(range(len(ids)), key=lambda place: (ids[place], -place))
        try:
            return ids.index(self.config_end_id)
        except ValueError:
            return 0

    def is_sound(self, ids: Sequence[int]) -> bool:
        """Return whether the pooled token is the end token, and stands behind the whole text."""
        place = self.find(ids)
        wanted = self.config_end_id if self.end_id is None else self.end_id
        return ids[place] == wanted and all(i in self.special_ids for i in ids[place:])


@dataclass(frozen=True, kw_only=True)
class TextReader:
    """Reads texts as one model's tokenizer and text tower do, each once.

    `tokenize` gives the ids of each text, padded to the model's length; `name_token` the token of
    an id. `pooling` is None for a tower that takes in every position, padding too, and pools no end
    token.
    """

    tokenize: Callable[[list[str]], list[list[int]]]
    name_token: Callable[[int], str]
    end_token: str
    pooling: Pooling | None
    _ids: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def read(self, texts: Sequence[str]) -> TextReading:
        """Return what becomes of texts."""
        heard = Counter(self.as_heard(texts))
        found = TextReading(
            count=len(texts),
            given=len(set(texts)),
            distinct=len(heard),
            commonest=max(heard.values(), default=0),
            end_token=self.end_token,
            pools_end=self.pooling is not None,
        )
        if self.pooling is None:
            return found
        ids = self._read(texts)
        wanted = self.pooling.end_id
        without = [i for i, row in enumerate(ids) if wanted is not None and wanted not in row]
        elsewhere = [i for i, row in enumerate(ids) if not self.pooling.is_sound(row)]
        first = next(iter(without or elsewhere), None)
        place = 0 if first is None else self.pooling.find(ids[first])
        return replace(
            found,
            without_end=len(without),
            pooled_elsewhere=len(elsewhere),
            example="" if first is None else texts[first],
            pooled="" if first is None else self.name_token(ids[first][place]),
            position=place,
        )

    def as_heard(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each text that the tower takes in.

        A tower that pools the end token is causal: up to that one.
        """
        read = self._read(texts)
        pooling = self.pooling
        return read if pooling is None else [ids[: pooling.find(ids) + 1] for ids in read]

    def count_read(self, texts: Sequence[str]) -> int | None:
        """Return how many tokens the tower takes in of the longest text; None: the padding, too."""
        return None if self.pooling is None else max(map(len, self.as_heard(texts)))

    def _read(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            self._ids.update(zip(chunk, map(tuple, self.tokenize(chunk)), strict=True))
        return [self._ids[text] for text in texts]


def order_templates(templates: Sequence[str]) -> list[str]:
    """Return the templates that are filled, those that name the class and are short first."""
    return sorted(templates or ("{c}",), key=lambda text: ("{c}" not in text, len(text)))


def examine_prompts(
    task: str,
    *,
    data: str,
    class_names: Sequence[str],
    templates: Sequence[str],
    reader: TextReader | None,
) -> TaskSanity:
    """Return what is true of the class names and the templates of a classification task.

    Without a reader, what is true of them as texts.
    """
    templates = templates or ("{c}",)
    found = TaskSanity(
        task=task,
        data=data,
        classes=len(class_names),
        reading=NO_TEXTS,
        templates=len(templates),
        without_class=tuple((i, text) for i, text in enumerate(templates) if "{c}" not in text),
        same_name=find_twins(class_names, names=class_names),
    )
    if reader is None:
        return found
    ordered = order_templates(templates)
    read = ordered[: max(1, MOST_TEXTS // len(class_names))]
    # Every template once: one that is too long is cut off before the class name.
    texts = [fill(text, name) for text in read for name in class_names]
    texts += [fill(text, class_names[0]) for text in ordered[len(read) :]]
    reading = reader.read(texts)
    heard = [tuple(reader.as_heard([fill(text, name) for text in read])) for name in class_names]
    return replace(found, reading=reading, same_prompt=find_twins(heard, names=class_names))


def find_twins(values: Sequence[Any], *, names: Sequence[str]) -> Twins | None:
    """Return the first two classes of one value; None where each has its own."""
    first: dict[Any, int] = {}
    found: list[tuple[int, int]] = []
    for index, value in enumerate(values):
        if value in first:
            found.append((first[value], index))
        else:
            first[value] = index
    if not found:
        return None
    one, other = found[0]
    return Twins(first=one, second=other, names=(names[one], names[other]), pairs=len(found))
