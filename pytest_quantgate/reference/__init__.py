"""The reference model: a small CLIP that ships with the package, and its data.

``weights/`` is a Hugging Face CLIP checkpoint; ``scenes`` draws its pictures, ``digits`` brings
real ones. What made the weights and measured the figures of ``MODEL_CARD.md`` is no part of the
package: ``tools/reference/``. Importing this package imports neither NumPy nor torch.
"""

from __future__ import annotations

from pathlib import Path


def weights_dir() -> Path:
    """Returns the directory of the shipped checkpoint, for ``CLIPModel.from_pretrained``."""
    return Path(__file__).resolve().parent / "weights"
