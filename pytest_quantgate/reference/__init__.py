"""The reference model: a small CLIP that ships with the package, and all that made it.

``weights/`` is a Hugging Face CLIP checkpoint; ``scenes`` draws its pictures, ``digits`` brings
real ones, ``train`` and ``outliers`` made the weights, ``evaluate`` prints the figures of
``MODEL_CARD.md``. Importing this package imports neither NumPy nor torch.
"""

from __future__ import annotations

from pathlib import Path


def weights_dir() -> Path:
    """Returns the directory of the shipped checkpoint, for ``CLIPModel.from_pretrained``."""
    return Path(__file__).resolve().parent / "weights"
