"""Baselines that stand where another release, or another name of their suite, put them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.store.owners import Owned, check_only_owner, list_baselines, suite_file
from pytest_quantgate.suite.specs import Suite

if TYPE_CHECKING:
    from pytest_quantgate.store.baselines import Store

#: A file, and the suite that gets what it holds.
Move = tuple[Owned, Suite]


def plan_moves(
    store: Store, suites: Iterable[Suite], *, named: Collection[str] = (), source: str = ""
) -> tuple[Move, ...]:
    """Return the files to move; raises BaselineError where one may be of several suites.

    `named` suites own what version 0.1 left under their name, whoever else may. `source` is the
    name from which a suite was moved: what stands there is its own.
    """
    assert store.project is not None
    moves = []
    for suite in suites:
        for kind, key in list_baselines(suite):
            if source:
                old = store.find(source, key, kind=kind)
                if old is None:
                    continue
                if (store.project / suite_file(source)).exists():
                    raise BaselineError(
                        f"{old.path}: {suite_file(source)} is still there and owns it: delete that "
                        f"suite, or make a baseline for {suite_file(suite.name)} with "
                        f"--quantgate-baselines=create"
                    )
                if store.path(suite.name, key, kind=kind).exists():
                    raise BaselineError(
                        f"{store.path(suite.name, key, kind=kind)} is there already, so {old.path} "
                        f"is not moved: delete one of them"
                    )
            else:
                old = store.find_old(suite.name, key, kind=kind)
                if old is None:
                    continue
                if suite.name not in named:
                    check_only_owner(old, suite=suite.name, project=store.project)
            moves.append((old, suite))
    return tuple(moves)


def move_records(store: Store, moves: Iterable[Move]) -> Iterator[tuple[Path, Path]]:
    """Write each record where it belongs, delete the file it was in, and yield both paths.

    All are read before the first is written. Raises BaselineError for one that is damaged.
    """
    read = [(old, replace(store.read_file(old), suite=suite.name)) for old, suite in moves]
    for old, record in read:
        yield old.path, store.write(record, instead_of=old)
