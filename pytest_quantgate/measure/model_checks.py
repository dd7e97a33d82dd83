"""Checks of a checkpoint's files against one another, in seconds: no torch, and no weight is loaded
but those of the embeddings.

What transformers makes of the same files is checked by the sanity gate; here stands what can be
said before. A file that is missing or damaged is said by `models/loading.py` and is no fault here.
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
from pytest_quantgate.errors import ArtifactError, MissingPackage
from pytest_quantgate.evidence.sanity import Fault
from pytest_quantgate.measure.texts import Pooling, TextReader
from pytest_quantgate.models import faults
from pytest_quantgate.models.source import stays_inside
from pytest_quantgate.untrusted import parse_json, read_regular

#: A folder with none of these has no tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")

#: What transformers' CLIPTextConfig and CLIPVisionConfig are where a config.json says nothing.
TEXT_DEFAULTS = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
VISION_DEFAULTS = {"image_size": 224, "num_channels": 3}

#: Classes whose special tokens are CLIP's where no file names them, and that append the end token.
CLIP_TOKENIZERS = ("", "CLIPTokenizer", "CLIPTokenizerFast")

#: OpenAI's, which nearly all CLIP models were trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: A tokenizer's length that means that it has none.
NO_LENGTH = 10**9

FLOAT16_MAX = 65504.0

#: A vocabulary holds at least so many tokens that are not special.
FEWEST_WORDS = 3


def inspect_checkpoint(directory: Path, *, dtype: str = "float16") -> tuple[Fault, ...]:
    """Return what is wrong with the files of a CLIP checkpoint, causes first.

    Empty for a folder that holds no such checkpoint. What can only be told by tokenizing is left
    out where the package tokenizers is not installed.
    """
    files = CheckpointFiles(directory)
    if (files.config or {}).get("model_type") != "clip":
        return ()
    found = [*_check_processor(files), *_check_tokenizer(files)]
    if dtype == "float16":
        found += _check_range(files)
    return tuple(found)


def read_texts_of_files(directory: Path) -> TextReader | None:
    """Return what reads texts as the model in a folder would; None where its files do not say."""
    files = CheckpointFiles(directory)
    tokenizer = files.tokenizer
    pad_token = files.special("pad_token")
    if files.config is None or tokenizer is None or pad_token is None:
        return None
    tokenizer.enable_truncation(max_length=files.positions)
    padding = tokenizer.token_to_id(pad_token) or 0
    left = files.tokenizer_config.get("padding_side") == "left"

    def tokenize(texts: list[str]) -> list[list[int]]:
        found = []
        for encoding in tokenizer.encode_batch(texts):
            spare = [padding] * (files.positions - len(encoding.ids))
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
        return self._read("config.json")

    @cached_property
    def text(self) -> Mapping[str, Any]:
        return {**TEXT_DEFAULTS, **_section(self.config, "text_config")}

    @cached_property
    def vision(self) -> Mapping[str, Any]:
        return {**VISION_DEFAULTS, **_section(self.config, "vision_config")}

    @cached_property
    def processor(self) -> Mapping[str, Any] | None:
        return self._read("preprocessor_config.json")

    @cached_property
    def tokenizer_config(self) -> Mapping[str, Any]:
        return {
            **(self._read("special_tokens_map.json") or {}),
            **(self._read("tokenizer_config.json") or {}),
        }

    @cached_property
    def has_tokenizer(self) -> bool:
        return any((self.directory / name).exists() for name in TOKENIZER_FILES)

    @cached_property
    def positions(self) -> int:
        found = _integer(self.text.get("max_position_embeddings"))
        return found or TEXT_DEFAULTS["max_position_embeddings"]

    @cached_property
    def is_clip_tokenizer(self) -> bool:
        return str(self.tokenizer_config.get("tokenizer_class") or "") in CLIP_TOKENIZERS

    def special(self, name: str) -> str | None:
        """Return a special token by the name of its key; None where nothing names one."""
        found = self.tokenizer_config.get(name)
        if isinstance(found, Mapping):
            found = found.get("content")
        if isinstance(found, str):
            return found
        known = {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        }
        return known.get(name) if self.is_clip_tokenizer else None

    @cached_property
    def tokenizer(self) -> Any | None:
        """The tokenizer of tokenizer.json, unpadded; None where it or the package is not there."""
        try:
            from tokenizers import Tokenizer
            from tokenizers.processors import RobertaProcessing
        except ImportError:
            return None
        path = self.directory / "tokenizer.json"
        if not path.exists() or not stays_inside(path, directory=self.directory):
            return None
        content = read_regular(path, max_bytes=bounds.JSON_BYTES)
        tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ends = [self.special(name) for name in ("eos_token", "bos_token")]
        known = [(token, tokenizer.token_to_id(token)) for token in ends if token]
        if self.is_clip_tokenizer and len(known) == 2 and None not in dict(known).values():
            # transformers' CLIPTokenizer puts this in the place of what the file says.
            tokenizer.post_processor = RobertaProcessing(*known, add_prefix_space=False)
        return tokenizer

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of every token, as far as the files say."""
        if self.tokenizer is not None:
            found: Mapping[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
            return found
        plain = self._read("vocab.json") or {}
        return {token: number for token, number in plain.items() if _integer(number) is not None}

    @cached_property
    def pooling(self) -> Pooling:
        names = ("bos_token", "eos_token", "pad_token")
        ids = {name: self.vocabulary.get(self.special(name) or "") for name in names}
        return Pooling(
            end_id=ids["eos_token"],
            config_end_id=self.text.get("eos_token_id"),
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
        path = self.directory / name
        if not stays_inside(path, directory=self.directory):
            return None  # whoever loads it says so
        try:
            found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
        except (OSError, ValueError):
            return None  # and so too
        return found if isinstance(found, dict) else None


def _check_processor(files: CheckpointFiles) -> Iterator[Fault]:
    processor = files.processor
    if processor is None:
        return
    size, channels = (_integer(files.vision.get(key)) for key in ("image_size", "num_channels"))
    made = _size_made(processor)
    if made is not None and size is not None and made != (size, size):
        yield faults.image_size(made=(channels or 3, *made), taken=(channels or 3, size, size))
    for key in ("do_rescale", "do_normalize"):
        if processor.get(key) is False:
            yield faults.unusable_normalization(f"{key} is false")
    mean = _numbers(processor.get("image_mean", CLIP_MEAN))
    std = _numbers(processor.get("image_std", CLIP_STD))
    if not mean or not std or min(std) <= 0:
        yield faults.unusable_normalization(
            f"image_mean is {json.dumps(processor.get('image_mean'))[:60]} and image_std "
            f"{json.dumps(processor.get('image_std'))[:60]}"
        )
        return
    usual = zip((*mean, *std), (*CLIP_MEAN, *CLIP_STD), strict=False)
    if any(abs(value - known) > 1e-3 for value, known in usual):
        yield faults.other_normalization(mean=mean, std=std)


def _size_made(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width that a processor makes of every image; None where they vary."""
    if processor.get("do_center_crop", True):
        return _height_and_width(processor.get("crop_size", 224))
    if processor.get("do_resize", True):
        size = processor.get("size", {"shortest_edge": 224})
        return _height_and_width(size) if isinstance(size, Mapping) else None
    return None


def _height_and_width(size: Any) -> tuple[int, int] | None:
    both = (size, size)
    if isinstance(size, Mapping):
        both = (size.get("height"), size.get("width"))
    height, width = (_integer(side) for side in both)
    return None if height is None or width is None else (height, width)


def _check_tokenizer(files: CheckpointFiles) -> Iterator[Fault]:
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
    rows = _integer(files.text.get("vocab_size"))
    beyond = sorted((n, t) for t, n in vocabulary.items() if rows is not None and n >= rows)
    if beyond and rows is not None:
        number, token = beyond[0]
        yield faults.token_beyond(token=token, number=number, rows=rows, others=len(beyond) - 1)
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    words = len(set(vocabulary) - {files.special(name) for name in names})
    if vocabulary and words < FEWEST_WORDS:
        yield faults.tokenizer_empty(words=words)
    elif vocabulary:
        yield from _check_end_token(files)
    longest = _integer(files.tokenizer_config.get("model_max_length"))
    if longest is not None and files.positions < longest < NO_LENGTH:
        yield faults.too_long(tokenizer=longest, positions=files.positions)


def _check_end_token(files: CheckpointFiles) -> Iterator[Fault]:
    end = files.special("eos_token")
    end_id, configured = files.pooling.end_id, files.pooling.config_end_id
    if end is None:
        return  # the model's own counts, and texts show whether it is there
    if end_id is None:
        yield faults.end_token_unknown(end)
        return
    tokenizer = files.tokenizer
    if tokenizer is not None and end_id not in tokenizer.encode("a photo of a cat").ids:
        yield faults.end_token_not_appended(end, certain=not files.is_clip_tokenizer)
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

        vision, text = (_embeddings(files, tower) for tower in ("vision_model", "text_model"))
    except (ArtifactError, ImportError, MissingPackage):
        return
    if "token_embedding" in text and "position_embedding" in text:
        largest = sum(float(numpy.abs(part).max(initial=0)) for part in text.values())
        if largest > FLOAT16_MAX:
            layer = "the sum of token and position embedding"
            yield faults.overflow(layer=layer, largest=largest, of="some text", certain=True)
    weight = vision.get("patch_embedding")
    processor = files.processor or {}
    mean = _numbers(processor.get("image_mean", CLIP_MEAN))
    std = _numbers(processor.get("image_std", CLIP_STD))
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


def _embeddings(files: CheckpointFiles, tower: str) -> dict[str, Any]:
    found = {}
    for name in ("patch_embedding", "token_embedding", "position_embedding"):
        tensor = files.tensors.get(f"{tower}.embeddings.{name}.weight")
        if tensor is not None:
            found[name] = tensor.values().reshape(tensor.shape)
    return found


def _section(config: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    found = (config or {}).get(name)
    return found if isinstance(found, Mapping) else {}


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers, or none where it is anything else."""
    if not isinstance(value, (list, tuple)):
        return ()
    plain = [v for v in value if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return tuple(map(float, plain)) if len(plain) == len(value) else ()
