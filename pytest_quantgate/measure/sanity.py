"""What must be true before any limit means something: a pair runs through, prompts tell classes
apart, and the text tower pools the end token.

What cannot run at all is an error with a code of its own, raised where it is met.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import ModelError, QuantGateError
from pytest_quantgate.measure.embeddings import list_prompts
from pytest_quantgate.measurement import Sanity, TaskSanity, TextReading, Twins
from pytest_quantgate.models.clip import ClipModel, describe_error
from pytest_quantgate.models.loading import quiet_libraries
from pytest_quantgate.tasks.samples import Samples

if TYPE_CHECKING:
    import torch

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


def measure_sanity(
    fp16: ClipModel, *, pairs: Samples, tasks: Iterable[tuple[str, Samples]]
) -> Sanity:
    """Return what is true of a model on its first pairs, and of the texts of its tasks.

    Raises ModelError or DataError where a pair cannot be decoded, prepared, tokenized or encoded.
    """
    import torch

    texts = [pairs.text(index) for index in range(len(pairs))]
    with quiet_libraries():
        tokens = fp16.tokenize(texts)
        pixels = fp16.preprocess(list(pairs.images[: len(pairs)]))
        images = _encode("an image", lambda: fp16.encode_image(pixels), model=fp16)
        captions = _encode("a text", lambda: fp16.encode_text(tokens), model=fp16)
    read = _Reader(fp16)
    return Sanity(
        data=pairs.name,
        pairs=len(pairs),
        reading=read.read(texts),
        nonfinite_images=int((~torch.isfinite(images).all(dim=1)).sum()),
        nonfinite_texts=int((~torch.isfinite(captions).all(dim=1)).sum()),
        tasks=tuple(_examine(task, samples, read=read) for task, samples in tasks),
    )


def _examine(task: str, samples: Samples, *, read: _Reader) -> TaskSanity:
    if samples.captions is not None:
        texts = [text for captions in samples.captions for text in captions]
        return TaskSanity(task=task, data=samples.name, classes=0, reading=read.read(texts))
    prompts = list_prompts(samples)
    heard = read.as_heard(prompts)
    templates = samples.templates or ("{c}",)
    by_class = [
        tuple(heard[start : start + len(templates)])
        for start in range(0, len(heard), len(templates))
    ]
    names = samples.class_names
    return TaskSanity(
        task=task,
        data=samples.name,
        classes=len(names),
        reading=read.read(prompts),
        templates=len(templates),
        without_class=tuple((i, text) for i, text in enumerate(templates) if "{c}" not in text),
        same_name=find_twins(names, names=names),
        same_prompt=find_twins(by_class, names=names),
    )


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


class _Reader:
    """Reads texts as one model's tokenizer and text tower do; each only once."""

    def __init__(self, model: ClipModel) -> None:
        module: Any = model.module
        tokenizer, config = model.tokenizer, module.config.text_config
        self.model = model
        self.pooling = Pooling(
            end_id=tokenizer.eos_token_id,
            config_end_id=config.eos_token_id,
            special_ids=frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id},
        )
        self._ids: dict[str, tuple[int, ...]] = {}

    def _tokenize(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        with quiet_libraries():
            for start in range(0, len(new), CHUNK):
                chunk = new[start : start + CHUNK]
                ids = self.model.tokenize(chunk)["input_ids"].tolist()
                self._ids.update(zip(chunk, map(tuple, ids), strict=True))
        return [self._ids[text] for text in texts]

    def as_heard(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each text up to the pooled one: the tower is causal."""
        return [ids[: self.pooling.find(ids) + 1] for ids in self._tokenize(texts)]

    def read(self, texts: Sequence[str]) -> TextReading:
        tokenizer = self.model.tokenizer
        heard = Counter(self.as_heard(texts))
        ids = self._tokenize(texts)
        wanted = self.pooling.end_id
        without = [i for i, found in enumerate(ids) if wanted is not None and wanted not in found]
        elsewhere = [i for i, found in enumerate(ids) if not self.pooling.is_sound(found)]
        first = next(iter(without or elsewhere), None)
        place = 0 if first is None else self.pooling.find(ids[first])
        return TextReading(
            count=len(texts),
            distinct=len(heard),
            commonest=heard.most_common(1)[0][1],
            end_token=str(tokenizer.eos_token or ""),
            without_end=len(without),
            pooled_elsewhere=len(elsewhere),
            example="" if first is None else texts[first],
            pooled=""
            if first is None
            else str(tokenizer.convert_ids_to_tokens(int(ids[first][place]))),
            position=place,
        )


def _encode(what: str, encode: Any, *, model: ClipModel) -> torch.Tensor:
    try:
        found: torch.Tensor = encode()
    except QuantGateError:
        raise
    except Exception as error:  # whatever transformers and torch raise for a wrong config
        raise ModelError(
            f"{model.description}: FP16 cannot encode {what}: {describe_error(error)}: compare "
            f"config.json with the files beside it",
            code="sanity.encoding",
        ) from error
    return found
