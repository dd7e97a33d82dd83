"""New processes that run a module of ours: of this code, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def start_module(module: str, *arguments: str, cwd: Path, **streams: Any) -> subprocess.Popen[str]:
    """Start `python -m module` in `cwd`; `streams` are those of `subprocess.Popen`, as text.

    It finds the code that runs here, also where that is on sys.path alone. `-P` keeps `cwd` off its
    path: a file that lies there, such as a `json.py`, is never imported.
    """
    package_root = str(Path(__file__).parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        **streams,
    )
