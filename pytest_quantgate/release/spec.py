"""`release.quantgate.yaml`: which suites a release needs, and which machines must have answered.

Its keys are declared as those of a suite; see `suite/keys.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pytest_quantgate.report.model import JoinedResult
from pytest_quantgate.suite.keys import (
    BadKey,
    choice_key,
    count_key,
    declare,
    named,
    read_section,
    sections_key,
    text_key,
)
from pytest_quantgate.suite.names import RELEASE, SUFFIX, name_suite
from pytest_quantgate.suite.nodes import Place, compose, read_text
from pytest_quantgate.suite.schema import section_schema
from pytest_quantgate.suite.specs import kinds_key
from pytest_quantgate.suite.where import Where

#: The version of the format of release files.
VERSION = 1

Tier = Literal["blocking", "advisory"]


@dataclass(frozen=True, kw_only=True)
class ReleasedSuite:
    """A suite of a release, by its path below the root, as pytest shows it."""

    where: Where
    suite: str = field(metadata=text_key(help="path of the suite below the root of its runs"))
    tier: Tier = field(
        default="blocking",
        metadata=choice_key(
            "blocking", "advisory", help="advisory: shown, and decides nothing; default: blocking"
        ),
    )
    allow_unmeasured: tuple[str, ...] = field(
        default=(), metadata=kinds_key(help="kinds of its gates that no result has to answer")
    )

    def check(self) -> None:
        if not self.suite.endswith(SUFFIX):
            raise BadKey("suite", f"{self.suite!r} is no suite: name a file *{SUFFIX}")

    @property
    def name(self) -> str:
        """What the suite is called in results."""
        return name_suite(Path(self.suite), relative_to=None)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine that must have answered, by what results say of where they were measured.

    Texts are patterns with `*` and `?`; whoever fits all that are given is such a machine.
    """

    where: Where
    name: str = field(metadata=text_key(help="what messages call it"))
    device: Literal["cpu", "cuda"] | None = field(
        default=None, metadata=choice_key("cpu", "cuda", help="what the suite's model ran on")
    )
    gpu: str | None = field(default=None, metadata=text_key(help="a GPU's name, `NVIDIA H200*`"))
    processor: str | None = field(default=None, metadata=text_key(help="the processor's name"))
    system: str | None = field(default=None, metadata=text_key(help="`Linux x86_64`"))
    gates: tuple[str, ...] = field(
        default=(),
        metadata=kinds_key(
            help="kinds of gates that it must have answered, of every blocking suite that has "
            "them; in any case it must have answered one gate of every blocking suite"
        ),
    )

    def check(self) -> None:
        if not (self.device or self.gpu or self.processor or self.system):
            raise BadKey("", "says nothing of the machine: give device, gpu, processor or system")

    def fits(self, result: JoinedResult, *, suite: str) -> bool:
        """Return whether a suite's part of a result is of such a machine."""
        about = result.environment
        wanted = (
            (self.device, (result.devices.get(suite, ""),)),
            (self.gpu, about.gpus),
            (self.processor, (about.processor,)),
            (self.system, (about.system,)),
        )
        return all(
            pattern is None or any(fnmatchcase(each, pattern) for each in there)
            for pattern, there in wanted
        )


@dataclass(frozen=True, kw_only=True)
class Release:
    """What one release is decided by. Its word on what may be unmeasured is the only one."""

    path: Path
    where: Where = field(default=Where(file="", line=0), compare=False)
    version: int = field(
        metadata=named(
            "release",
            declare(
                count_key(help="")["key"].read,
                schema={"const": VERSION},
                help="version of this format",
            ),
        )
    )
    suites: tuple[ReleasedSuite, ...] = field(
        metadata=sections_key(ReleasedSuite, help="the suites of the release", single=False)
    )
    machines: tuple[Machine, ...] = field(
        default=(),
        metadata=sections_key(Machine, help="machines that must have answered", single=False),
    )
    allow_unmeasured: tuple[str, ...] = field(
        default=(), metadata=kinds_key(help="kinds of gates of any suite that nobody has to answer")
    )

    def check(self) -> None:
        if self.version != VERSION:
            raise BadKey(
                "release", f"version {self.version} is not supported: this release reads {VERSION}"
            )
        names = [suite.name for suite in self.suites]
        for place, suite in enumerate(self.suites):
            if suite.name in names[:place]:
                raise BadKey("suites", f"{suite.suite} stands twice")
        if all(suite.tier == "advisory" for suite in self.suites):
            raise BadKey("suites", "none of them is blocking, so that nothing would be decided")

    def find(self, name: str) -> ReleasedSuite | None:
        """Return the suite of a name, None for one that is no part of the release."""
        return next((suite for suite in self.suites if suite.name == name), None)


def load_release(path: Path) -> Release:
    """Return the release in a file; raises SuiteError, which starts with `file:line:`."""
    name = path.as_posix()
    root = compose(read_text(path, name=name), name=name)
    return read_section(Release, Place(file=name, key=""), root, path=path)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of release files, for editors and other tools."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"pytest-quantgate release ({RELEASE})",
        **section_schema(Release),
    }
