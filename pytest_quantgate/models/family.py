"""One family of encoders: which checkpoints are of it, and what their towers are.

A family is one file. Those of other packages register the entry point `pytest_quantgate.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.models.towers import TowerSpec


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Names of transformers' classes, and of the towers that such a model has.

    `image_processor` is empty for a model without images. `options` are given to the model when it
    is made, `unused` are beginnings of names of weights that then have no place, on purpose.
    `any_size` is whether the model takes images of the size that its processor makes, whatever its
    config says: positions are interpolated.
    """

    towers: tuple[TowerName, ...]
    config: str
    model: str
    image_processor: str
    options: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    any_size: bool = False


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A family: its classes by the `model_type` of config.json.

    `describe_towers` takes the configuration object that transformers makes of it.
    """

    name: str
    pretrained: Mapping[str, Pretrained]
    describe_towers: Callable[[Any], tuple[TowerSpec, ...]]
