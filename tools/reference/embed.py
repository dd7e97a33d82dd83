"""Features from a CLIPModel: pictures and texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tools.reference import words

IMAGE_MEAN = (0.45, 0.45, 0.45)
IMAGE_STD = (0.25, 0.25, 0.25)


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """Returns float32 [N, 3, H, W], as the saved image processor makes it, from uint8 NHWC."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGE_STD).view(1, 3, 1, 1)
    return ((pixels - mean) / std).contiguous()


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Returns [N, D] of unit length for pixel values [N, 3, H, W]."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return nn.functional.normalize(model.visual_projection(pooled), dim=-1)


def text_features(model: Any, ids: Tensor) -> Tensor:
    """Returns [N, D] of unit length for padded token ids [N, T]."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return nn.functional.normalize(model.text_projection(pooled), dim=-1)


@torch.no_grad()
def embed_images(model: Any, images: NDArray[np.uint8], *, batch_size: int = 250) -> Tensor:
    """Returns float32 [N, D] of unit length for uint8 [N, H, W, 3]."""
    parts = [
        image_features(model, normalised(images[start : start + batch_size]).to(model.dtype))
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts).float()


@torch.no_grad()
def embed_texts(model: Any, texts: Sequence[str], *, batch_size: int = 250) -> Tensor:
    """Returns float32 [N, D] of unit length."""
    ids = torch.from_numpy(words.encode(texts, known=words.vocabulary()))
    parts = [
        text_features(model, ids[start : start + batch_size])
        for start in range(0, len(ids), batch_size)
    ]
    return torch.cat(parts).float()


def embed_classes(model: Any, *, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Returns float32 [C, D] of unit length: each class's mean over the templates."""
    mean = sum(
        embed_texts(model, [template.replace("{c}", name) for name in names])
        for template in templates
    )
    assert isinstance(mean, Tensor)
    return nn.functional.normalize(mean, dim=-1)
