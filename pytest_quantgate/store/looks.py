"""Which variants were judged on which evaluation data, and how often: the ledger of looks.

A limit holds with its confidence for one look. Who raises `samples` until a gate is green looks
again at the samples that were there before, and who calibrates again until it is green picks the
best of several variants. Both are seen here: in a folder beside the cache, and in baselines, where
CI finds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quantgate import bounds
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.store.disk import write_whole
from pytest_quantgate.store.private import open_private
from pytest_quantgate.store.records import Look
from pytest_quantgate.untrusted import parse_json, read_regular

#: So many of the smallest digests stand for a set of samples: what two sets share is among them.
SKETCH_SIZE, DIGITS = 48, 8


@dataclass(frozen=True, kw_only=True)
class Looks:
    """The how many-th look `now` is, those of its variant before, and how many variants had any.

    Only data that shares samples with this look counts. `recorded` says that it was taken before.
    """

    now: Look
    earlier: tuple[Look, ...] = ()
    variants: int = 1
    recorded: bool = False


@dataclass(frozen=True)
class Ledger:
    """The looks of this machine: one small file each, below the folder of its question."""

    root: Path

    def read(self, question: str) -> tuple[Look, ...]:
        """Return all looks of a question; what is damaged says nothing.

        Raises CacheError where the folder is not this user's alone.
        """
        found = []
        try:
            self._check(question)
        except OSError:
            return ()  # nothing was kept so far
        for path in sorted(self._folder(question).glob("*.json")):
            try:
                found.append(
                    from_json(Look, parse_json(read_regular(path, max_bytes=bounds.LOOK_BYTES)))
                )
            except (OSError, ValueError):
                continue
        return tuple(found)

    def add(self, question: str, look: Look) -> None:
        """Keep a look; the first of its kind stays.

        Raises OSError where nothing can be written, CacheError as `read` does.
        """
        self._check(question, make=True)
        path = self._folder(question) / f"{_short_digest(look.variant + look.data_digest)}.json"
        if not path.exists():
            text = json.dumps(to_json(look), sort_keys=True)
            write_whole(path, text.encode())

    def _check(self, question: str, *, make: bool = False) -> None:
        with open_private(self.root.parent, self.root.name, _short_digest(question), make=make):
            pass

    def _folder(self, question: str) -> Path:
        return self.root / _short_digest(question)


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sketch(contents: Iterable[str]) -> str:
    """Return the smallest digests of some samples: a sample of them that knows each other's.

    Broder's bottom-k sketch (Compression and Complexity of Sequences (1997) 21-29): of two sets
    that share a tenth of all their samples about a tenth of these are the same.
    """
    digests = {hashlib.sha256(content.encode()).hexdigest()[:DIGITS] for content in contents}
    return "".join(sorted(digests)[:SKETCH_SIZE])


def share_samples(one: Look, other: Look) -> bool:
    """Return whether two looks are at some of the same samples."""
    if one.data_digest == other.data_digest:
        return True
    mine, theirs = (
        {text[at : at + DIGITS] for at in range(0, len(text), DIGITS)}
        for text in (one.sketch, other.sketch)
    )
    return bool(mine & theirs)


def count_looks(now: Look, before: Sequence[Look]) -> Looks:
    """Return the how many-th look this is; the same variant on the same data is the same look."""
    related = [look for look in before if share_samples(now, look)]
    mine = {look.data_digest: look for look in related if look.variant == now.variant}
    same = mine.pop(now.data_digest, None)
    earlier = [look for look in mine.values() if same is None or look.number < same.number]
    earlier.sort(key=lambda look: (look.number, look.day))
    now = replace(now, number=len(earlier) + 1)
    return Looks(
        # What was spent then is spent, whatever is planned by now.
        now=now if same is None else replace(now, spent=same.spent),
        earlier=tuple(earlier),
        variants=len({now.variant, *(look.variant for look in related)}),
        recorded=same is not None,
    )
