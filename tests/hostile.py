"""What somebody would plant who means harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def update(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file, which is made where it is not there."""
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")
