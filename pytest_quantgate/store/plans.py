"""Which TensorRT plans may be loaded: those that this user's runs built on this machine.

A plan holds code for the device, and a cache may come from elsewhere: from a CI service, from
another machine. So a plan out of the cache is loaded only where its SHA-256 is known here, in a
folder that no cache is restored to. Who was handed a plan and trusts it adds its digest by hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantgate.errors import CacheError
from pytest_quantgate.store.private import open_private
from pytest_quantgate.untrusted import hash_file


def default_plans_root(environ: Mapping[str, str]) -> Path:
    """Return the user's folder of known plans (`$XDG_STATE_HOME` or `~/.local/state`)."""
    base = environ.get("XDG_STATE_HOME") or ""
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state"
    return root / "pytest-quantgate" / "plans"


@dataclass(frozen=True)
class KnownPlans:
    """The SHA-256 of every known plan: an empty file each below `root`, and those of this run."""

    root: Path
    _built: set[str] = field(default_factory=set)

    def add(self, digest: str) -> None:
        """Remember a plan that this run built."""
        self._built.add(digest)

    def _keep(self, digest: str) -> None:
        try:
            with open_private(self.root, make=True, option="XDG_STATE_HOME=DIR") as folder:
                os.close(os.open(digest, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, dir_fd=folder))
        except (OSError, CacheError):
            return  # it is built again next time

    def check(self, plan: Path) -> None:
        """Raise ValueError for a plan that is not known here; OSError where it cannot be read."""
        digest = hash_file(plan)
        if digest in self._built:
            self._keep(digest)
            return
        try:
            with open_private(self.root, option="XDG_STATE_HOME=DIR") as folder:
                os.stat(digest, dir_fd=folder, follow_symlinks=False)
        except (OSError, CacheError) as error:
            raise ValueError(
                f"its plan {digest[:12]} was not built here and is not among those in {self.root}"
            ) from error
