"""Takes every kind of measurement once, cold, and writes down what that opened, loaded and read.

    python tests/integration/recorded_run.py FOLDER

What is recorded is what happens while an entry of the cache is built: names of files that are
opened, packages that are loaded by the end, fields of the suite that are read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import mended

opened: set[tuple[str, str]] = set()
read: set[str] = set()
building: list[str] = []


def note_files(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and building and isinstance(arguments[0], str | bytes):
        opened.add((os.fsdecode(arguments[0]), building[-1]))


def note_fields(kind: type) -> None:
    """Write down which fields of a dataclass of suites are read."""
    names = {field.name for field in dataclasses.fields(kind)}
    plain = kind.__getattribute__

    def recording(self: object, name: str) -> Any:
        if building and name in names:
            read.add(f"{kind.__name__}.{name}")
        return plain(self, name)  # type: ignore[arg-type, call-arg]

    kind.__getattribute__ = recording  # type: ignore[method-assign, assignment]


def note_builds() -> None:
    from pytest_quantgate.store.cache import Cache

    plain = Cache._build

    def recording(self: Cache, *, kind: str, **named: Any) -> Path:
        building.append(kind)
        try:
            return plain(self, kind=kind, **named)
        finally:
            building.pop()

    Cache._build = recording  # type: ignore[method-assign]


def main(folder: Path) -> None:
    mended.prepare(folder)
    from pytest_quantgate.suite import specs
    from pytest_quantgate.suite.gates import list_kinds

    sections = {kind for kind in vars(specs).values() if dataclasses.is_dataclass(kind)}
    for section in sections | {kind.section for kind in list_kinds()}:
        note_fields(section)  # type: ignore[arg-type]
    note_builds()
    sys.addaudithook(note_files)
    found = mended.measure(list(mended.KINDS), folder=folder)
    record = {
        "built": sorted(set(found["built"])),
        "opened": sorted(opened),
        "read": sorted(read),
        "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    }
    (folder / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
