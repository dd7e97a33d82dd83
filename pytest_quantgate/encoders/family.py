"""One family of encoders: which checkpoints are of it, and what their towers are.

A family is one file. Those of other packages register the entry point `pytest_quantgate.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.evidence.audit import TowerName


@dataclass(frozen=True, kw_only=True)
class TokenizerClass:
    """The class that reads texts where the files of a checkpoint name none, by its `names`.

    `special` are its special tokens by their keys in tokenizer_config.json. `from_file` is whether
    it reads as tokenizer.json says; `finish(tokenizer, begin=, end=)` puts right, in a tokenizer of
    the package tokenizers, what the class does not take from that file (None: nothing).
    """

    names: tuple[str, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    from_file: bool = True
    finish: Callable[..., None] | None = None


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Names of transformers' classes, of the towers that such a model has, and what these classes
    take where a file says nothing: without them a checkpoint's files are not looked at.

    `image_processor` is empty for a model without images. `settings` are the configuration's, by
    the name of the section ("" for the top), `processing` those of preprocessor_config.json, whose
    `image_mean` and `image_std` are the ones that most such models were trained with.

    `options` are given to the model when it is made, `unused` are beginnings of names of weights
    that then have no place, on purpose. `any_size` is whether the model takes images of the size
    that its processor makes, whatever its config says: positions are interpolated.
    """

    towers: tuple[TowerName, ...]
    config: str
    model: str
    image_processor: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    any_size: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    processing: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerClass = TokenizerClass()


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A family: its classes by the `model_type` of config.json.

    `describe_towers` takes the configuration object that transformers makes of it, and raises
    ValueError for a model that is no encoder.
    """

    name: str
    pretrained: Mapping[str, Pretrained]
    describe_towers: Callable[[Any], tuple[TowerSpec, ...]]
