"""What families share whose vision tower takes a grid of patches that each image sets by its shape.

An engine has one grid. So every image is brought to one square, whose side the preprocessor's files
say, and the grid is a constant of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders.source import find_files, stays_inside
from pytest_quantgate.errors import ModelError
from pytest_quantgate.untrusted import parse_json, read_regular

#: Where settings keep the side in pixels of the square that every image is brought to.
SIDE = "quantgate_side"

#: Files that say how images are prepared, the first one first, and where in them.
PROCESSORS = (("processor_config.json", "image_processor"), ("preprocessor_config.json", ""))


def read_processor_settings(directory: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return what the files say of the image processor, and the one that says it."""
    files = find_files(directory)
    for name, key in PROCESSORS:
        path = files.get(name)
        if path is None or not stays_inside(path, directory=path.parent):
            continue
        try:
            found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is missing or unreadable: {error}") from error
        found = found.get(key) if key and isinstance(found, dict) else found
        if isinstance(found, dict):
            return path, found
    return directory / PROCESSORS[-1][0], {}


def check_side(side: int, *, path: Path) -> int:
    """Return the side; raises ModelError for images that are larger than any model takes."""
    most = bounds.MODEL_SIZES["image_size"]
    if side > most:
        raise ModelError(f"{path}: images of {side} x {side} pixels: at most {most} a side")
    return side


def note_grid(settings: Mapping[str, Any], *, patch: int) -> str:
    """Return what a run says of a model whose images are all brought to one square."""
    side = settings[SIDE]
    return (
        f"every image is brought to {side} x {side} pixels whatever its shape: one grid of "
        f"{side // patch} x {side // patch} patches, as an engine has; other grids are not judged"
    )


def make_processor(own: Any, *, side: int) -> Any:
    """Return an image processor that brings every image to one square, and does the rest as `own`
    does; of a square image it makes the pixels that `own` cuts into patches."""
    import transformers

    names = ("do_rescale", "do_normalize", "rescale_factor", "image_mean", "image_std", "resample")
    return transformers.ViTImageProcessor(
        size={"height": side, "width": side},
        do_convert_rgb=own.do_convert_rgb,
        **{name: getattr(own, name) for name in names},
    )
