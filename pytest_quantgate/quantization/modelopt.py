"""The one door to ModelOpt: imported late, quietly, and named where it is not installed."""

from __future__ import annotations

import importlib
import re
import sys
from importlib import metadata
from typing import Any

from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import MissingPackage


def read_version() -> tuple[int, ...]:
    """Return the first two numbers of ModelOpt's version. Raises MissingPackage without it."""
    try:
        version = metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError:
        raise MissingPackage(
            "nvidia-modelopt", extra="clip", purpose="quantizing a model"
        ) from None
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def import_modelopt(name: str, *, purpose: str = "quantizing a model") -> Any:
    """Return a module of ModelOpt by its full name.

    ModelOpt warns while it is imported (of torch.jit, of a missing CUDA), which under
    `filterwarnings = error` would stop the import half-way. Raises MissingPackage, naming the
    package that is not installed: ModelOpt itself, or one that this part of it needs.
    """
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    with quiet_libraries():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            package = (error.name or "nvidia-modelopt").partition(".")[0]
            if package == "modelopt":
                package = "nvidia-modelopt"
            raise MissingPackage(package, extra="clip", purpose=purpose) from error
