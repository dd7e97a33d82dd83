"""A CLIP with its tokenizer and image processor: what every measuring room works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        """Return float32 pixel values [N, 3, H, W] as the checkpoint's own processor makes them."""
        import torch

        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        assert isinstance(pixels, torch.Tensor)
        return pixels.float()

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask` [N, T].

        Padded to the model's full length: the length of the longest text in a batch must not
        change a number.
        """
        module: Any = self.module
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=module.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

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
