"""A CLIP with its tokenizer and image processor: what every measuring room works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import ModelError

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

    def preprocess(self, images: Sequence[Image | np.ndarray[Any, Any]]) -> torch.Tensor:
        """Return float32 pixel values [N, 3, H, W] as the checkpoint's own processor makes them.

        Raises ModelError for what the processor cannot prepare, and for a size that the vision
        tower does not take.
        """
        import torch

        try:
            pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
            assert isinstance(pixels, torch.Tensor)
        except Exception as error:  # whatever transformers and Pillow raise for a wrong processor
            raise ModelError(
                f"{self.description}: its image processor cannot prepare an image: "
                f"{describe_error(error)}: compare its preprocessor_config.json with the model's",
                code="sanity.preprocessing",
            ) from error
        module: Any = self.module
        vision = module.config.vision_config
        wanted = (vision.num_channels, vision.image_size, vision.image_size)
        if tuple(pixels.shape[1:]) != wanted:
            raise ModelError(
                describe_size_mismatch(
                    self.description, made=tuple(pixels.shape[1:]), taken=wanted
                ),
                code="sanity.image-size",
            )
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
            raise ModelError(
                describe_missing_padding(self.description), code="sanity.no-padding-token"
            )
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
            raise ModelError(
                f"{self.description}: its tokenizer cannot read {texts[0]!r}: "
                f"{describe_error(error)}",
                code="sanity.tokenizing",
            ) from error
        beyond = (ids >= text.vocab_size).nonzero()
        if len(beyond):
            row, position = beyond[0].tolist()
            number = int(ids[row, position])
            raise ModelError(
                describe_token_beyond(
                    self.description,
                    token=self.tokenizer.convert_ids_to_tokens(number),
                    number=number,
                    rows=text.vocab_size,
                    text=texts[row],
                ),
                code="sanity.token-beyond-table",
            )
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


def describe_size_mismatch(description: str, *, made: Sequence[int], taken: Sequence[int]) -> str:
    """Return the message for pixel values [C, H, W] of another shape than the model takes."""
    sizes = [f"{shape[0]} x {shape[1]} x {shape[2]}" for shape in (made, taken)]
    return (
        f"{description}: its image processor makes images of {sizes[0]} (channels, height, "
        f"width), the vision tower takes {sizes[1]}: set size and crop_size in "
        f"preprocessor_config.json to the image_size of config.json ({taken[1]})"
    )


def describe_missing_padding(description: str) -> str:
    """Return the message for a tokenizer that cannot bring texts to one length."""
    return (
        f"{description}: its tokenizer has no padding token: set pad_token in "
        f"tokenizer_config.json to the one that the model was trained with"
    )


def describe_token_beyond(
    description: str, *, token: str, number: int, rows: int, text: str = ""
) -> str:
    """Return the message for a token without a row in the embedding table."""
    of = f" of {text!r}" if text else ""
    return (
        f"{description}: token {number} ({token!r}){of} lies behind the embedding table of {rows} "
        f"rows (text_config.vocab_size in config.json): the tokenizer is not this model's"
    )


def describe_error(error: Exception) -> str:
    """Return one line of what a library raised, with its kind."""
    text = " ".join(str(error).split())[:200]
    kind = type(error).__name__
    return f"{kind}: {text}" if text else kind
