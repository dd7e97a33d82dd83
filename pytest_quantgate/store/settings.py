"""What a run was asked to do, as plain values: light, since every start of pytest reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantgate.store.baseline_mode import BaselineMode


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which reports a run writes; None: not this one. `step_summary` is appended to, and
    `model_card` is a file of somebody else, of which a section is written."""

    directory: Path | None = None
    markdown: Path | None = None
    json: Path | None = None
    manifest: Path | None = None
    model_card: Path | None = None
    step_summary: Path | None = None
    images: int = 12

    def __bool__(self) -> bool:
        files = (self.markdown, self.json, self.manifest, self.model_card)
        return any((self.directory, *files, self.step_summary))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run was asked to do: the command line first, then the ini file, then the default.

    `ci` is the variable that says that this is a CI job, empty elsewhere. `must_judge` is whether
    the run was started for its gates: `--quantgate-strict` on the command line. `workers` says how
    many processes embed samples: a number, or `gpu`.
    """

    baselines: BaselineMode
    baselines_dir: Path
    obtained_dir: Path
    cache_dir: Path
    reason: str
    strict: bool
    device: str
    suite: str
    root: Path
    new_data: bool = False
    selftest: bool = False
    cache: str = "on"
    reports: Targets = field(default_factory=Targets)
    ci: str = ""
    allow_unmeasured: tuple[str, ...] = ()
    must_judge: bool = False
    env: tuple[str, ...] = ()
    workers: str = "1"

    def read_environment(self, environ: Mapping[str, str]) -> Mapping[str, str]:
        """Return the environment as suites of this run see it: with the names that it allows."""
        from pytest_quantgate.suite.where import ALLOWED_VARIABLES

        known = filter(None, environ.get(ALLOWED_VARIABLES, "").split(","))
        return {**environ, ALLOWED_VARIABLES: ",".join((*known, *self.env))}

    @property
    def demands_all(self) -> bool:
        """Whether what was not measured fails the run."""
        return self.strict or bool(self.ci and not self.selftest)

    def may_be_missing(self, kind: str, *, suite: Collection[str] = ()) -> bool:
        """Return whether a gate of a kind may stay unmeasured; `suite` are the kinds it allows."""
        return not self.demands_all or kind in {*self.allow_unmeasured, *suite}


def default_cache_root(environ: Mapping[str, str]) -> Path:
    """Return the user's cache folder for this product (`$XDG_CACHE_HOME` or `~/.cache`)."""
    base = environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "pytest-quantgate"
