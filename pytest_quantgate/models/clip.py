"""A CLIP with its tokenizer and image processor: what every measuring room works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError
from pytest_quantgate.models import faults

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class ClipModel:
    """One variant. `module` is a transformers `CLIPModel` in eval mode on `device`.

    `weights_digest` is the SHA-256 of the FP16 weights that the variant was made from,
    `weight_dtype` the type they were rounded to, `compute_dtype` the type of the arithmetic.
    """

    module: torch.nn.Module
    tokenizer: Any
    image_processor: Any
    weights_digest: str
    description: str
    weight_dtype: str
    compute_dtype: str
    device: str
    notes: tuple[str, ...] = ()

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for pixel values [N, 3, H, W]."""
        import torch

        module: Any = self.module
        with torch.inference_mode():
            pixels = pixel_values.to(device=self.device, dtype=self._dtype)
            pooled = module.vision_model(pixel_values=pixels).pooler_output
            features: torch.Tensor = module.visual_projection(pooled)
            return features.float()

    def encode_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for token ids and attention mask [N, T]."""
        import torch

        module: Any = self.module
        with torch.inference_mode():
            pooled = module.text_model(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            ).pooler_output
            features: torch.Tensor = module.text_projection(pooled)
            return features.float()

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
        module: Any = self.module
        vision = module.config.vision_config
        wanted = (vision.num_channels, vision.image_size, vision.image_size)
        if tuple(pixels.shape[1:]) != wanted:
            fault = faults.image_size(made=pixels.shape[1:], taken=wanted)
            raise faults.fault_error(fault, model=self.description)
        return pixels.float()

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask` [N, T].

        Padded to the model's full length: the length of the longest text in a batch must not
        change a number. A tokenizer without a mask gets one of ones, which is what CLIP's causal
        text tower does without one: no token sees the padding behind it. Raises ModelError for
        a tokenizer without a padding token, and for a token that the embedding table has no row of.
        """
        import torch

        module: Any = self.module
        text = module.config.text_config
        if self.tokenizer.pad_token is None:
            raise faults.fault_error(faults.no_padding_token(), model=self.description)
        try:
            encoded = self.tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=text.max_position_embeddings,
                return_tensors="pt",
            )
            ids: torch.Tensor = encoded["input_ids"]
        except Exception as error:  # whatever transformers and tokenizers raise
            fault = faults.tokenizing(describe_error(error), text=texts[0])
            raise faults.fault_error(fault, model=self.description) from error
        beyond = (ids >= text.vocab_size).nonzero()
        if len(beyond):
            row, position = beyond[0].tolist()
            number = int(ids[row, position])
            fault = faults.token_beyond(
                token=self.tokenizer.convert_ids_to_tokens(number),
                number=number,
                rows=text.vocab_size,
                text=texts[row],
            )
            raise faults.fault_error(fault, model=self.description)
        mask = encoded.get("attention_mask")
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}

    @property
    def _dtype(self) -> torch.dtype:
        import torch

        dtype = getattr(torch, self.compute_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Images and texts that belong together: pixel values [N, 3, H, W], tokens [N, T], ids."""

    pixel_values: torch.Tensor
    tokens: Mapping[str, torch.Tensor]
    ids: tuple[str, ...]


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
