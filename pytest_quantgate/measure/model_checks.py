"""Checks of a checkpoint's files against one another, in seconds: no torch, and no weight is loaded
but those of the embeddings.

What transformers makes of the same files is checked by the sanity gate; here stands what can be
said before. A file that is damaged is said by `encoders/loading.py`: no fault here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.safetensors_file import Tensor, read_header
from pytest_quantgate.encoders import faults
from pytest_quantgate.encoders.families import (
    KIND,
    describe_settings,
    find_config,
    find_pretrained,
    read_settings,
)
from pytest_quantgate.encoders.family import Pretrained, TokenizerClass
from pytest_quantgate.encoders.source import find_files, refuse_pipeline, stays_inside
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import ArtifactError, MissingPackage, ModelError, UnsupportedModel
from pytest_quantgate.evidence.sanity import Fault
from pytest_quantgate.measure.texts import Pooling, TextReader
from pytest_quantgate.untrusted import parse_json, read_regular

#: A folder with none of these has no tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")

#: A tokenizer's length that means that it has none.
NO_LENGTH = 10**9

FLOAT16_MAX = 65504.0

#: A vocabulary holds at least so many tokens that are not special.
FEWEST_WORDS = 3


def inspect_checkpoint(directory: Path, *, dtype: str = "float16") -> tuple[Fault, ...]:
    """Return what is wrong with the files of a checkpoint of a known family, causes first.

    Empty for a folder that `find_unknown` has something to say of. What can only be told by
    tokenizing is left out where the package tokenizers is not installed.
    """
    files = CheckpointFiles(directory)
    if not files.towers:
        return ()
    found = [*_check_processor(files), *_check_tokenizer(files)]
    if dtype == "float16":
        found += _check_range(files)
    return tuple(found)


def find_unknown(directory: Path) -> Fault | None:
    """Return why `inspect_checkpoint` has nothing to say of a folder; None where it looked."""
    try:
        refuse_pipeline(directory, where=directory.name)
        settings = read_settings(directory)
    except UnsupportedModel as error:
        return faults.unsupported(str(error))
    except ModelError as error:
        return faults.unknown(str(error))
    known = find_pretrained(settings)
    assert known is not None  # read_settings refuses others
    name, usual = known
    try:
        describe_settings(settings)
    except UnsupportedModel as error:
        return faults.unsupported(f"{find_config(directory)}: {error}")
    except ModelError as error:
        if usual.settings:
            return faults.unknown(f"{find_config(directory)}: {error}")
        return faults.unsaid(name)
    if usual.image_processor and not usual.processing:
        return faults.unsaid(name)
    return None


def read_texts_of_files(directory: Path) -> TextReader | None:
    """Return what reads texts as the model in a folder would; None where its files do not say."""
    files = CheckpointFiles(directory)
    tokenizer = files.tokenizer
    pad_token = files.special("pad_token")
    tower = files.tower("text")
    if tower is None or tokenizer is None or pad_token is None:
        return None
    positions = tower.tokens
    tokenizer.enable_truncation(max_length=positions)
    padding = tokenizer.token_to_id(pad_token) or 0
    left = files.padding_side == "left"

    def tokenize(texts: list[str]) -> list[list[int]]:
        found = []
        for encoding in tokenizer.encode_batch(texts):
            spare = [padding] * (positions - len(encoding.ids))
            found.append([*spare, *encoding.ids] if left else [*encoding.ids, *spare])
        return found

    return TextReader(
        tokenize=tokenize,
        name_token=lambda number: str(tokenizer.id_to_token(number)),
        end_token=files.special("eos_token") or "",
        pooling=files.pooling,
    )


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one folder that say how a model is fed; what is not there is None or empty."""

    directory: Path

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """All that makes the model; None where whoever loads it says why."""
        if not stays_inside(find_config(self.directory), directory=self.directory):
            return None
        try:
            return read_settings(self.directory)
        except ModelError:
            return None

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """The files that change an embedding, by their names."""
        return find_files(self.directory)

    @cached_property
    def usual(self) -> Pretrained | None:
        """What holds where these files say nothing; None for a model of no family."""
        known = find_pretrained(self.config or {})
        return None if known is None else known[1]

    @cached_property
    def towers(self) -> Mapping[str, TowerSpec]:
        """The towers by their names; none for a model of no family, and for odd sizes."""
        try:
            return {tower.name: tower for tower in describe_settings(self.config or {})}
        except ModelError:
            return {}  # whoever loads it says so

    def tower(self, name: str) -> TowerSpec | None:
        return self.towers.get(name)

    @cached_property
    def processor(self) -> Mapping[str, Any] | None:
        """What the image processor does; as in transformers, that of the processor comes first."""
        inner = (self._read("processor_config.json") or {}).get("image_processor")
        return inner if isinstance(inner, dict) else self._read("preprocessor_config.json")

    @cached_property
    def tokenizer_config(self) -> Mapping[str, Any]:
        return {
            **(self._read("special_tokens_map.json") or {}),
            **(self._read("tokenizer_config.json") or {}),
        }

    @cached_property
    def has_tokenizer(self) -> bool:
        return any(name in self.files for name in TOKENIZER_FILES)

    @cached_property
    def own_tokenizer(self) -> TokenizerClass | None:
        """The family's own class where it reads the texts, None where another one does."""
        if self.usual is None:
            return None
        named = str(self.tokenizer_config.get("tokenizer_class") or "")
        return self.usual.tokenizer if named in ("", *self.usual.tokenizer.names) else None

    def special(self, name: str) -> str | None:
        """Return a special token by the name of its key; None where nothing names one."""
        found = self.tokenizer_config.get(name)
        if isinstance(found, Mapping):
            found = found.get("content")
        if isinstance(found, str):
            return found
        return self.own_tokenizer.special.get(name) if self.own_tokenizer else None

    @cached_property
    def tokenizer(self) -> Any | None:
        """The tokenizer of tokenizer.json, unpadded.

        None where it or the package is not there, and where its class reads in another way.
        """
        found = self._stored_tokenizer
        return None if found is None else found[0]

    @cached_property
    def padding_side(self) -> str:
        """The side on which short texts are filled up."""
        stored = "right" if self._stored_tokenizer is None else self._stored_tokenizer[1]
        return str(self.tokenizer_config.get("padding_side") or stored)

    @cached_property
    def _stored_tokenizer(self) -> tuple[Any, str] | None:
        """What `tokenizer` gives, and the side on which tokenizer.json pads."""
        try:
            from tokenizers import Tokenizer
        except ImportError:
            return None
        path = self.files.get("tokenizer.json")
        if path is None or not stays_inside(path, directory=path.parent):
            return None
        own = self.own_tokenizer
        if own is not None and not own.from_file:
            return None
        content = read_regular(path, max_bytes=bounds.JSON_BYTES)
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        side = str((tokenizer.padding or {}).get("direction", "right"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ends = [self.special(name) for name in ("bos_token", "eos_token")]
        known = [(token, tokenizer.token_to_id(token)) for token in ends if token]
        if own and own.finish and len(known) == 2 and None not in dict(known).values():
            own.finish(tokenizer, begin=known[0], end=known[1])
        return tokenizer, side

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of every token, as far as the files say."""
        if self.tokenizer is not None:
            found: Mapping[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
            return found
        plain = self._read("vocab.json") or {}
        return {token: number for token, number in plain.items() if _integer(number) is not None}

    @cached_property
    def pooling(self) -> Pooling | None:
        """Which token the text tower pools; None without one, and where it pools no end token."""
        tower = self.tower("text")
        if tower is None or tower.text is None or not tower.text.pools_end:
            return None
        names = ("bos_token", "eos_token", "pad_token")
        ids = {name: self.vocabulary.get(self.special(name) or "") for name in names}
        return Pooling(
            end_id=ids["eos_token"],
            config_end_id=tower.text.end_id,
            special_ids=frozenset(number for number in ids.values() if number is not None),
        )

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            if stays_inside(path, directory=self.directory):
                found |= read_header(path)
        return found

    def _read(self, name: str) -> Mapping[str, Any] | None:
        path = self.files.get(name)
        if path is None or not stays_inside(path, directory=path.parent):
            return None  # whoever loads it says so
        try:
            found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
        except (OSError, ValueError):
            return None  # and so too
        return found if isinstance(found, dict) else None


def _check_processor(files: CheckpointFiles) -> Iterator[Fault]:
    tower, usual = files.tower("vision"), files.usual
    if tower is None or usual is None or not usual.processing:
        return
    if files.processor is None:
        if not any(name in files.files for name in PROCESSOR_FILES):
            yield faults.no_image_processor()
        return
    processor = {**usual.processing, **files.processor}
    taken = tower.inputs["pixel_values"]
    made = _size_made(processor)
    if made is not None and made != tuple(taken[1:]) and not usual.any_size:
        yield faults.image_size(made=(taken[0], *made), taken=taken)
    for key in ("do_rescale", "do_normalize"):
        if processor.get(key) is False:
            yield faults.unusable_normalization(f"{key} is false")
    mean, std = (_numbers(processor.get(key)) for key in ("image_mean", "image_std"))
    if not mean or not std or min(std) <= 0:
        yield faults.unusable_normalization(
            f"image_mean is {json.dumps(processor.get('image_mean'))[:60]} and image_std "
            f"{json.dumps(processor.get('image_std'))[:60]}"
        )
        return
    known = tuple(_numbers(usual.processing.get(key)) for key in ("image_mean", "image_std"))
    pairs = zip((*mean, *std), (*known[0], *known[1]), strict=False)
    if any(abs(value - expected) > 1e-3 for value, expected in pairs):
        config = files.config or {}
        model_type = str(config.get("model_type") or config.get(KIND))  # of a tower in a larger one
        yield faults.other_normalization(mean=mean, std=std, usual=known, model_type=model_type)


def _size_made(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width that a processor makes of every image; None where they vary."""
    if processor.get("do_center_crop"):
        return _height_and_width(processor.get("crop_size"))
    if processor.get("do_resize"):
        size = processor.get("size")
        return _height_and_width(size) if isinstance(size, Mapping) else None
    return None


def _height_and_width(size: Any) -> tuple[int, int] | None:
    both = (size, size)
    if isinstance(size, Mapping):
        both = (size.get("height"), size.get("width"))
    height, width = (_integer(side) for side in both)
    return None if height is None or width is None else (height, width)


def _check_tokenizer(files: CheckpointFiles) -> Iterator[Fault]:
    tower = files.tower("text")
    if tower is None or tower.text is None:
        return
    if files.usual is not None and files.usual.tokenizer.is_packaged:
        return
    if not files.has_tokenizer:
        yield faults.no_tokenizer(TOKENIZER_FILES[:2])
        return
    try:
        vocabulary = files.vocabulary
    except Exception as error:  # noqa: BLE001 (tokenizers raises a bare Exception)
        yield faults.tokenizing(" ".join(str(error).split())[:200])
        return
    if files.special("pad_token") is None:
        yield faults.no_padding_token()
    if files.padding_side != tower.text.padding:
        yield faults.padding_side(side=files.padding_side, trained=tower.text.padding)
    rows = tower.text.vocabulary
    beyond = sorted((n, t) for t, n in vocabulary.items() if n >= rows)
    if beyond:
        number, token = beyond[0]
        yield faults.token_beyond(token=token, number=number, rows=rows, others=len(beyond) - 1)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    words = len(set(vocabulary) - {files.special(name) for name in names})
    if vocabulary and words < FEWEST_WORDS:
        yield faults.tokenizer_empty(words=words)
    elif vocabulary and files.pooling is not None:
        yield from _check_end_token(files, pooling=files.pooling)
    longest = _integer(files.tokenizer_config.get("model_max_length"))
    if longest is not None and tower.tokens < longest < NO_LENGTH:
        yield faults.too_long(tokenizer=longest, positions=tower.tokens)


def _check_end_token(files: CheckpointFiles, *, pooling: Pooling) -> Iterator[Fault]:
    end = files.special("eos_token")
    end_id, configured = pooling.end_id, pooling.config_end_id
    if end is None:
        return  # the model's own counts, and texts show whether it is there
    if end_id is None:
        yield faults.end_token_unknown(end)
        return
    tokenizer = files.tokenizer
    if tokenizer is not None and end_id not in tokenizer.encode("a photo of a cat").ids:
        yield faults.end_token_not_appended(end, certain=files.own_tokenizer is None)
    if configured == 2:
        above = sorted((n, t) for t, n in files.vocabulary.items() if n > end_id)
        if above:
            number, token = above[0]
            yield faults.token_above_end(token=token, number=number, end=end, end_id=end_id)
    elif configured != end_id and _integer(configured) is not None:
        yield faults.other_end_token(token=end, number=end_id, configured=configured)


def _check_range(files: CheckpointFiles) -> Iterator[Fault]:
    """Yield what the embeddings give beyond float16 for plain inputs, or could for some.

    For an image the patch embedding is linear in the pixels, so its largest value is known, and
    that for a patch half black and half white, as any photograph has, is what it really gives.
    """
    try:
        import numpy

        vision, text = (_embeddings(files, tower=name) for name in ("vision", "text"))
    except (ArtifactError, ImportError, MissingPackage):
        return
    if "token_embedding" in text and "position_embedding" in text:
        largest = sum(float(numpy.abs(part).max(initial=0)) for part in text.values())
        if largest > FLOAT16_MAX:
            layer = "the sum of token and position embedding"
            yield faults.overflow(layer=layer, largest=largest, of="some text", certain=True)
    weight = vision.get("patch_embedding")
    usual = files.usual
    processor = {**(usual.processing if usual else {}), **(files.processor or {})}
    mean, std = (_numbers(processor.get(key)) for key in ("image_mean", "image_std"))
    if weight is None or weight.ndim != 4 or not mean or not std or min(std) <= 0:
        return
    channels = weight.shape[1]
    if len(mean) != channels or len(std) != channels or weight.size == 0:
        return
    black = (-numpy.array(mean) / std)[:, None, None]
    white = ((1 - numpy.array(mean)) / std)[:, None, None]
    dark, light = (numpy.einsum("dchw,cij->dhw", weight, colour) for colour in (black, white))
    height, width = weight.shape[2] // 2, weight.shape[3] // 2
    halves = [
        first[half].reshape(len(weight), -1).sum(1) + rest
        for half, other in (
            (numpy.s_[:, :height], numpy.s_[:, height:]),
            (numpy.s_[:, :, :width], numpy.s_[:, :, width:]),
        )
        for first, second in ((dark, light), (light, dark))
        for rest in [second[other].reshape(len(weight), -1).sum(1)]
    ]
    plain = float(numpy.abs(halves).max())
    each = numpy.stack([weight * black, weight * white])
    extremes = (each.max(0).sum((1, 2, 3)), each.min(0).sum((1, 2, 3)))
    most = float(numpy.abs(extremes).max())
    layer = "the patch embedding"
    if plain > FLOAT16_MAX:
        of = "a patch that is half black and half white"
        yield faults.overflow(layer=layer, largest=plain, of=of, certain=True)
    elif most > FLOAT16_MAX:
        of = "the worst patch that there can be"
        yield faults.overflow(layer=layer, largest=most, of=of, certain=False)


def _embeddings(files: CheckpointFiles, *, tower: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    spec = files.tower(tower)
    if spec is None:
        return found
    for name in ("patch_embedding", "token_embedding", "position_embedding"):
        tensor = files.tensors.get(f"{spec.embeddings}.{name}.weight")
        if tensor is not None:
            found[name] = tensor.values().reshape(tensor.shape)
    return found


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers, or none where it is anything else."""
    if not isinstance(value, (list, tuple)):
        return ()
    plain = [v for v in value if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return tuple(map(float, plain)) if len(plain) == len(value) else ()
