"""An encoder: a model of one or more towers, and what prepares images and texts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders import faults
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import DataError, ModelError
from pytest_quantgate.evidence.audit import TowerName

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One variant. `module` is in eval mode on `device`; `towers` say how it is used.

    `weights_digest` is the SHA-256 of the FP16 weights that the variant was made from,
    `weight_dtype` the type they were rounded to, `compute_dtype` the type of the arithmetic.
    `tokenizer` is None without a text tower, `image_processor` without a vision tower.
    Every forward runs inside a `forward_context`.
    """

    module: torch.nn.Module
    towers: tuple[TowerSpec, ...]
    tokenizer: Any
    image_processor: Any
    weights_digest: str
    description: str
    weight_dtype: str
    compute_dtype: str
    device: str
    notes: tuple[str, ...] = ()
    forward_context: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def tower_names(self) -> tuple[TowerName, ...]:
        return tuple(tower.name for tower in self.towers)

    def tower(self, name: TowerName) -> TowerSpec:
        """Return one tower; raises ModelError for one that the model does not have."""
        found = next((tower for tower in self.towers if tower.name == name), None)
        if found is None:
            raise ModelError(
                f"{self.description} has no {name} tower: it has {', '.join(self.tower_names)}"
            )
        return found

    def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for the inputs of one tower by their names.

        Floating-point inputs are computed with in `compute_dtype`, ids as they are.
        """
        import torch

        with torch.inference_mode():
            return self.embed(name, inputs)

    def embed(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return what `encode` does, with the gradients that are switched on."""
        tower = self.tower(name)
        with self.forward_context():
            return tower.embed(self.module, self._place(tower, inputs)).float()

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for pixel values [N, 3, H, W]."""
        return self.encode("vision", {"pixel_values": pixel_values})

    def encode_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for what `tokenize` gives."""
        return self.encode("text", tokens)

    def _place(
        self, tower: TowerSpec, inputs: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        placed = {}
        for name in tower.inputs:
            value = inputs[name]
            dtype = self._dtype if value.is_floating_point() else value.dtype
            placed[name] = value.to(device=self.device, dtype=dtype)
        return placed

    def preprocess(self, images: Iterable[Image | np.ndarray[Any, Any]]) -> torch.Tensor:
        """Return float32 pixel values [N, 3, H, W] as the checkpoint's own processor makes them.

        `images` may be decoded one by one: no more of them are held at once than have
        `bounds.PIXELS` pixels. Raises DataError for an image that is far too long, ModelError for
        what the processor cannot prepare, and for a size that the vision tower does not take.
        """
        import torch

        edge = dict(self.image_processor.size or {}).get("shortest_edge") or 0
        parts = [self._preprocess(group) for group in group_images(images, edge=edge)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _preprocess(self, images: Sequence[Any]) -> torch.Tensor:
        import torch

        try:
            pixels = self.image_processor(images=images, return_tensors="pt")["pixel_values"]
            assert isinstance(pixels, torch.Tensor)
        except Exception as error:  # whatever transformers and Pillow raise for a wrong processor
            fault = faults.preprocessing(describe_error(error))
            raise faults.fault_error(fault, model=self.description) from error
        wanted = tuple(self.tower("vision").inputs["pixel_values"])
        if tuple(pixels.shape[1:]) != wanted:
            fault = faults.image_size(made=pixels.shape[1:], taken=wanted)
            raise faults.fault_error(fault, model=self.description)
        return pixels.float()

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the inputs of the text tower, `input_ids` among them, [N, T] each.

        Padded to the model's full length: the length of the longest text in a batch must not
        change a number. Where the tower takes a mask and the tokenizer gives none, a causal tower,
        in which no token sees the padding behind it, gets one of ones, another one a mask of what
        is no padding. Raises ModelError for
        a tokenizer without a padding token, and for a token that the embedding table has no row of.
        """
        import torch

        tower = self.tower("text")
        assert tower.text is not None  # it is a text tower
        if self.tokenizer.pad_token is None:
            raise faults.fault_error(faults.no_padding_token(), model=self.description)
        try:
            encoded = self.tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=tower.tokens,
                return_tensors="pt",
            )
            ids: torch.Tensor = encoded["input_ids"]
        except Exception as error:  # whatever transformers and tokenizers raise
            fault = faults.tokenizing(describe_error(error), text=texts[0])
            raise faults.fault_error(fault, model=self.description) from error
        beyond = (ids >= tower.text.vocabulary).nonzero()
        if len(beyond):
            row, position = beyond[0].tolist()
            number = int(ids[row, position])
            fault = faults.token_beyond(
                token=self.tokenizer.convert_ids_to_tokens(number),
                number=number,
                rows=tower.text.vocabulary,
                text=texts[row],
            )
            raise faults.fault_error(fault, model=self.description)
        mask = encoded.get("attention_mask")
        if mask is None:
            plain = torch.ones_like(ids)
            mask = plain if tower.text.pools_end else plain * (ids != self.tokenizer.pad_token_id)
        found = {"input_ids": ids, "attention_mask": mask}
        return {name: found[name] for name in tower.inputs}

    @property
    def _dtype(self) -> torch.dtype:
        import torch

        dtype = getattr(torch, self.compute_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples by their ids, and the inputs that each tower gets of them, [N, ...] by name."""

    ids: tuple[str, ...]
    inputs: Mapping[TowerName, Mapping[str, torch.Tensor]]

    @classmethod
    def of_pairs(
        cls, *, pixel_values: torch.Tensor, tokens: Mapping[str, torch.Tensor], ids: tuple[str, ...]
    ) -> Batch:
        """Return images and texts that belong together as a batch for both towers."""
        return cls(ids=ids, inputs={"vision": {"pixel_values": pixel_values}, "text": tokens})

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Return the samples of all batches in a row; raises IndexError for none."""
        return cls(
            ids=tuple(name for batch in batches for name in batch.ids),
            inputs={tower: join_inputs(batches, tower=tower) for tower in batches[0].inputs},
        )

    @property
    def pixel_values(self) -> torch.Tensor:
        """The images, [N, 3, H, W]; raises KeyError for a batch without a vision tower's inputs."""
        return self.inputs["vision"]["pixel_values"]

    @property
    def tokens(self) -> Mapping[str, torch.Tensor]:
        """The texts, [N, T] each; raises KeyError for a batch without a text tower's inputs."""
        return self.inputs["text"]

    def with_inputs(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> Batch:
        """Return the same samples with other inputs of one tower."""
        return replace(self, inputs={**self.inputs, name: inputs})

    def take(self, chosen: Any) -> Batch:
        """Return the samples that a slice or a mask of booleans [N] chooses."""
        places = range(len(self.ids))
        kept = places[chosen] if isinstance(chosen, slice) else [p for p in places if chosen[p]]
        return Batch(
            ids=tuple(self.ids[place] for place in kept),
            inputs={
                tower: {name: value[chosen] for name, value in named.items()}
                for tower, named in self.inputs.items()
            },
        )


def join_inputs(batches: Sequence[Batch], *, tower: TowerName) -> dict[str, torch.Tensor]:
    """Return the inputs of one tower of all batches in a row."""
    import torch

    names = batches[0].inputs[tower]
    return {name: torch.cat([batch.inputs[tower][name] for batch in batches]) for name in names}


class ImageTransform:
    """A function of one image, [3, H, W], with what an image processor of transformers has.

    `edge` is how long the shorter side of an image becomes in it, 0 where nothing says.
    """

    def __init__(self, transform: Callable[[Image], torch.Tensor], *, edge: int = 0) -> None:
        self.transform = transform
        self.size = {"shortest_edge": edge}

    def __call__(self, images: Sequence[Any], **_: Any) -> dict[str, torch.Tensor]:
        import torch
        from PIL import Image

        plain = [i if isinstance(i, Image.Image) else Image.fromarray(i) for i in images]
        return {"pixel_values": torch.stack([self.transform(image) for image in plain])}


def group_images(images: Iterable[Any], *, edge: int) -> Iterator[list[Any]]:
    """Yield the images in lists of at most `bounds.PIXELS` pixels, or one image.

    What counts is how large they are, or will be with `edge` pixels on the shorter side. Raises
    DataError for an image of which one side is more than `bounds.IMAGE_RATIO` times the other:
    resized by the shorter one it would fill the memory.
    """
    group: list[Any] = []
    held = 0
    for image in images:
        height, width = image.shape[:2] if hasattr(image, "shape") else image.size[::-1]
        short, long = sorted((height, width))
        if long > bounds.IMAGE_RATIO * short:
            raise DataError(
                f"an image has {width} x {height} pixels: one side may be at most "
                f"{bounds.IMAGE_RATIO} times the other; remove it"
            )
        pixels = max(height * width, edge * edge * long // short)
        if group and held + pixels > bounds.PIXELS:
            yield group
            group, held = [], 0
        group.append(image)
        held += pixels
    if group:
        yield group


def describe_error(error: Exception) -> str:
    """Return one line of what a library raised, with its kind."""
    text = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
