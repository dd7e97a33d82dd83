"""What `test_faults.py` lets die at every step; imported by a small process of its own too."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pytest_quantgate.store.baselines import Store, accept_obtained, write_obtained
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.store.records import Record, parse_record

KEY = "ab" * 32


def make_record(reason: str) -> Record:
    side = {
        "samples": 8,
        "ids_digest": "1" * 64,
        "correct_bits": base64.b64encode(b"\xff").decode(),
        "value": 1.0,
        "data_digest": "2" * 64,
    }
    plain = {
        "schema": 1,
        "suite": "demo",
        "key": "scenes/classification-acc1",
        "task": "scenes/classification",
        "metric": "acc1",
        "fp16": side,
        "accepted": side,
        "first": side,
        "fingerprint": dict.fromkeys(("model", "data", "calibration", "recipe"), "3" * 64),
        "versions": {},
        "created": "2026-11-21",
        "updated": "2026-11-21",
        "reason": reason,
        "first_accepted": "2026-11-21",
        "first_reason": "why",
    }
    return replace(parse_record(json.dumps(plain)), verdicts={"sanity": "PASS"})


def store_old(folder: Path) -> None:
    Store(folder / "baselines").write(make_record("old"))


def update(folder: Path) -> None:
    Store(folder / "baselines").write(make_record("new"))


def store_old_and_propose(folder: Path) -> None:
    store_old(folder)
    write_obtained(folder / "obtained", make_record("proposed"))


def accept(folder: Path) -> None:
    accept_obtained(folder / "obtained", store=Store(folder / "baselines"), reason="new")


def build(folder: Path) -> None:
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "weights").write_bytes(b"w" * 100_000)
    (folder / "value.json").write_text("{}", encoding="utf-8")


def build_entry(folder: Path) -> None:
    Cache(root=folder / "cache").get_or_build(kind="variant", key=KEY, build=build)


def build_and_damage(folder: Path) -> None:
    build_entry(folder)
    entry = Cache(root=folder / "cache").path(kind="variant", key=KEY)
    (entry / "checkpoint" / "weights").write_bytes(b"w" * 50_000)


Action = tuple[Callable[[Path], None], Callable[[Path], None]]

#: What comes before, and what dies.
ACTIONS: dict[str, Action] = {
    "update": (store_old, update),
    "accept": (store_old_and_propose, accept),
    "build": (lambda _folder: None, build_entry),
    "repair": (build_and_damage, build_entry),
}
