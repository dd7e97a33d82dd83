"""Stored results: one small canonical JSON file a gate, reviewed like code.

The record of a regression gate holds the outcome of every sample as one bit, so that tomorrow's
run is compared with yesterday's sample by sample; that of a timed gate with a limit in ms holds
the machine on which the limit is meant. Files are replaced whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from pytest_quantgate import bounds
from pytest_quantgate.errors import BaselineError
from pytest_quantgate.evidence.codec import shorten
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.latency import LatencyRun
from pytest_quantgate.evidence.outcomes import Outcomes, StoredOutcomes, pack_scores
from pytest_quantgate.store.acceptance import needs_passing, refuse_unfit
from pytest_quantgate.store.disk import WRITING, describe_write_error, refuse_links, write_whole
from pytest_quantgate.store.owners import (
    Orphan,
    Owned,
    check_only_owner,
    is_below_root,
    is_plain,
    judge_orphan,
    old_name,
    suite_file,
    walk_files,
)
from pytest_quantgate.store.records import (
    OLD_SCHEMA,
    AnyKind,
    AnyRecord,
    Chain,
    Kind,
    Record,
    TimedRecord,
    canonical_text,
    find_timed,
    parse_any_record,
    parse_record,
    parse_text,
    read_as,
)
from pytest_quantgate.text.words import listed
from pytest_quantgate.untrusted import parse_json, read_regular

if TYPE_CHECKING:
    from pytest_quantgate.statistics.pairing import Pairs

#: More looks at its data than this no baseline remembers.
MAX_LOOKS = 50
MAX_SLUG = 200  # file systems end at 255
#: A temporary file that is older than this belongs to a run that was killed.
LEFTOVER_SECONDS = 3600

Value = TypeVar("Value")
AnyTimed = TypeVar("AnyTimed", bound=TimedRecord)


@dataclass(frozen=True)
class Store:
    """The baselines under one folder: `<root>/<suite>/<kind>-<key>.json`.

    A suite is named by its path below `project`, the root of the run, without its ending. Without
    a project nothing that version 0.1 wrote is found, and there are no orphans. `read`,
    `regression` files alone, is what compares results; `read_timed` reads the others.
    """

    root: Path
    project: Path | None = None

    def folder(self, suite: str) -> Path:
        """Return where the files of a suite live; raises BaselineError as `path`."""
        return self.root / _folder_of(suite)

    def path(self, suite: str, key: str, *, kind: Kind = "regression") -> Path:
        """Return where a record lives; raises BaselineError for what is not below the root."""
        return self.folder(suite) / _file_of(key, kind=kind)

    def path_of(self, record: AnyRecord) -> Path:
        """Return where a record belongs; raises as `path`."""
        return self.path(record.suite, record.key, kind=record.kind)

    def read(self, suite: str, key: str) -> Record | None:
        """Return a record, or None where there is none.

        Where the suite has none, and version 0.1 left one that is its and no other suite's, it is
        that one. Raises BaselineError, naming the file and the fix, for one that is damaged, of
        another format, of another suite or key, that may be another suite's, or that leads out of
        the store.
        """
        return self._read(suite, key, kind="regression", parse=parse_record)

    def read_timed(self, suite: str, key: str, *, kind: type[AnyTimed]) -> AnyTimed | None:
        """Return the record of a timed gate, or None where there is none; raises as `read`."""
        return self._read(
            suite, key, kind=kind.kind, parse=lambda text: read_as(kind, parse_text(text))
        )

    def _read(
        self, suite: str, key: str, *, kind: Kind, parse: Callable[[str], AnyKind]
    ) -> AnyKind | None:
        path, owner = self.path(suite, key, kind=kind), suite
        if self.project is not None:
            old = self.find_old(suite, key, kind=kind)
            if old is not None:
                check_only_owner(old, suite=suite, project=self.project)
                path, owner = old.path, old.suite
        record = _read_file(path, root=self.root, parse=parse)
        if record is None:
            left = self.root / old_name(suite) / path.name
            if self.project is not None and os.path.lexists(left) and self._peek(left) is None:
                _read_file(left, root=self.root, parse=parse)  # raises where it is damaged
            return None
        if (record.suite, record.key) != (owner, key):
            raise BaselineError(
                f"{path}: holds {record.suite} {record.key}, expected {suite} {key}: "
                f"restore the file with git checkout -- {path}"
            )
        return replace(record, suite=suite)

    def find_old(self, suite: str, key: str, *, kind: Kind = "regression") -> Owned | None:
        """Return what version 0.1 left for a gate that has no record of today, or None."""
        place, name = self.path(suite, key, kind=kind), old_name(suite)
        if not is_plain(name):
            return None
        old = self.root / name / place.name
        if old != place and os.path.lexists(place):
            return None
        found = self._peek(old)
        return found if found is not None and found.is_old else None

    def find(self, suite: str, key: str, *, kind: Kind = "regression") -> Owned | None:
        """Return what stands in the place of a gate's record, by what it says of itself."""
        return self._peek(self.path(suite, key, kind=kind))

    def read_file(self, owned: Owned) -> AnyRecord:
        """Return the record in a file that was found; raises BaselineError."""
        record = read_any_record(owned.path, root=self.root)
        if record is None:
            raise BaselineError(f"{owned.path}: it is gone")
        return record

    def write(self, record: AnyRecord, *, instead_of: Owned | None = None) -> Path:
        """Write a record atomically, return its path; raises BaselineError, the old one whole.

        What could not be read back, such as a reason with an escape sequence, is not written.
        `instead_of` is deleted then, or what version 0.1 kept for the same gate elsewhere.
        """
        path = self.path_of(record)
        text = canonical_text(record)
        try:
            parse_any_record(text)
        except BaselineError as error:
            raise BaselineError(f"cannot write {path}: {error}") from error
        old = instead_of
        if old is None and self.project is not None:
            old = self.find_old(record.suite, record.key, kind=record.kind)
            if old is not None:
                check_only_owner(old, suite=record.suite, project=self.project)
        write_atomically(path, text, root=self.root, project=self.project)
        if old is not None and old.path != path:
            self._delete(old.path)
        return path

    def list_files(self) -> tuple[Owned, ...]:
        """Return the baselines below the root that stand in their own place.

        Other files, such as those of somebody else where the root is a larger folder, are none.
        """
        starts = tuple(f"{kind}-" for kind in get_args(Kind))
        peeked = (
            self._peek(path)
            for path in walk_files(self.root)
            if path.name.startswith(starts) and path.suffix == ".json"
        )
        return tuple(owned for owned in peeked if owned is not None)

    def orphans(self) -> tuple[Orphan, ...]:
        """Return the baselines that no gate names, told by the suite files below the project."""
        if self.project is None:
            return ()
        found = []
        for owned in self.list_files():

            def has_other(suite: str, owned: Owned = owned) -> bool:
                place = self.path(suite, owned.key, kind=owned.kind)
                return place != owned.path and place.exists()

            orphan = judge_orphan(owned, project=self.project, has_other=has_other)
            if orphan is not None:
                found.append(orphan)
        return tuple(found)

    def prune(self) -> tuple[Orphan, ...]:
        """Delete the orphans and return what was deleted."""
        orphans = self.orphans()
        for orphan in orphans:
            self._delete(orphan.path)
        return orphans

    def _peek(self, path: Path) -> Owned | None:
        """Return whose a file says it is; None for what is no baseline, or not in its place."""
        if path.is_symlink():
            return None
        try:
            data = parse_json(read_regular(path, max_bytes=bounds.BASELINE_BYTES))
            schema, suite, key = data["schema"], data["suite"], data["key"]
            kind = (find_timed(data) or Record).kind
            place = self.path(suite, key, kind=kind)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, BaselineError):
            return None  # who reads it as a baseline is told what is wrong with it
        is_old = schema == OLD_SCHEMA
        return (
            Owned(path=path, suite=suite, key=key, kind=kind, is_old=is_old)
            if path == place
            else None
        )

    def _delete(self, path: Path) -> None:
        try:
            refuse_links(path.parent, root=self.project)
            path.unlink()
            folder = path.parent
            while folder != self.root and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        except OSError as error:
            raise BaselineError(f"cannot delete {path}: {error.strerror or error}") from error


def _folder_of(suite: str) -> Path:
    """Return the folder of a suite's baselines below the root; raises BaselineError."""
    if not is_below_root(suite):
        raise BaselineError(
            f"suite {suite!r} is not below the root of this run, so its baselines have no place: "
            f"run pytest with --rootdir=FOLDER, a folder above the suite"
        )
    names = (part if is_plain(part) else _plain_name(part) for part in suite.split("/"))
    return Path(*names)


def _plain_name(name: str) -> str:
    """Return another name by which a folder can be called everywhere; no two names share one."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-")[:80]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


def _file_of(key: str, *, kind: Kind) -> str:
    if kind != "regression" and not is_plain(key):  # a gate's key is a plain name
        raise BaselineError(f"key {shorten(key)} is of no {kind} gate: no plain name")
    return f"{kind}-{slug(key) if kind == 'regression' else key}.json"


def slug(key: str) -> str:
    """Return a key as part of a file name: readable, and no two keys share one.

    Letters, digits, `.`, `_`, `-` stay; `/` becomes `--`; other keys get a digest at the end.
    """
    plain = re.sub(r"[^A-Za-z0-9._@-]", "-", key.replace("/", "--")).replace("@", "-at-")
    exact = re.fullmatch(r"[A-Za-z0-9._]+(?:/[A-Za-z0-9._]+)+-[A-Za-z0-9_]+", key)
    if exact and "--" not in key and len(plain) <= MAX_SLUG:
        return plain
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain[:80]}-{digest[:8]}"


def read_record(path: Path, *, root: Path) -> Record | None:
    """Return the record in a file below `root`, None where there is none; raises BaselineError."""
    return _read_file(path, root=root, parse=parse_record)


def read_any_record(path: Path, *, root: Path) -> AnyRecord | None:
    """Return the record in a file below `root`, of whatever kind; as `read_record` otherwise."""
    return _read_file(path, root=root, parse=parse_any_record)


#: What mends a record that is no baseline yet.
_OBTAIN = "run the suite again to obtain it anew"


def _read_file(
    path: Path, *, root: Path, parse: Callable[[str], Value], fix: str = ""
) -> Value | None:
    fix = fix or (
        f"restore it with git checkout -- {path}, or make it anew with --quantgate-baselines=update"
    )
    try:
        if path.is_symlink() or (
            path.exists() and not path.resolve().is_relative_to(root.resolve())
        ):
            raise BaselineError(f"{path}: leads out of {root}: replace the link by the file itself")
        if not path.exists():
            return None
        if path.stat().st_size > bounds.BASELINE_BYTES:
            raise BaselineError(
                f"{path}: larger than {bounds.BASELINE_BYTES} bytes, no baseline is: {fix}"
            )
        text = read_regular(path, max_bytes=bounds.BASELINE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BaselineError(f"{path}: damaged baseline: not UTF-8: {fix}") from error
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return parse(text)
    except BaselineError as error:
        raise BaselineError(f"{path}: damaged baseline: {error}: {fix}") from error


def write_atomically(path: Path, text: str, *, root: Path, project: Path | None = None) -> None:
    """Replace a file by `text` as a whole; raises BaselineError and leaves what was there."""
    try:
        if not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink():
            raise BaselineError(f"{path}: leads out of {root}: replace the link by the file itself")
        refuse_links(path, root=project)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        write_whole(path, text.encode(), durable=True, root=project)
    except OSError as error:
        reason = describe_write_error(error, folder=path.parent)
        raise BaselineError(
            f"cannot write {path}: {reason}; what was there is unchanged"
        ) from error
    # The file is in its place already: where a folder cannot be synced, nothing has failed.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(folder: Path) -> None:
    """Delete what killed runs left in a folder of baselines; a run that still writes is younger."""
    for path in folder.glob(f"{WRITING}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def store_outcomes(outcomes: Outcomes) -> StoredOutcomes:
    """Return outcomes in the form that a baseline keeps: sorted by sample id."""
    order = sorted(range(len(outcomes.ids)), key=outcomes.ids.__getitem__)
    ids = "\n".join(outcomes.ids[i] for i in order)
    return StoredOutcomes(
        samples=len(order),
        ids_digest=hashlib.sha256(ids.encode()).hexdigest(),
        correct_bits=pack_scores([outcomes.correct[i] for i in order]),
        value=outcomes.value,
        data_digest=outcomes.data_digest,
    )


def next_record(
    record: Record | None,
    *,
    suite: str,
    key: str,
    task: str,
    metric: str,
    fp16: Outcomes,
    quantized: Outcomes,
    fingerprint: Fingerprint,
    versions: Mapping[str, str],
    today: date,
    reason: str,
    pairs: Pairs | None = None,
) -> Record:
    """Return the record that accepting these outcomes would make.

    `pairs` are the same outcomes paired; what they say beyond each alone is kept for `plan`.

    `first` and `first_fp16` stay what they were as long as the data is the same; on other data a
    comparison with them means nothing: the chain ends, is kept in `chains`, and starts anew.
    """
    day = today.isoformat()
    before, after = store_outcomes(fp16), store_outcomes(quantized)
    if pairs is not None:
        worth = pairs.worth
        before = replace(before, effective_samples=worth.right if worth else None)
        after = replace(
            after,
            effective_samples=worth.drop if worth else None,
            answers_changed=pairs.changed,
        )
    sizes = Counter(Counter(quantized.labels).values()) if quantized.class_names else Counter()
    now = Record(
        suite=suite,
        key=key,
        task=task,
        metric=metric,
        fp16=before,
        accepted=after,
        first=after,
        first_fp16=before,
        fingerprint=fingerprint,
        versions=dict(versions),
        created=day,
        updated=day,
        reason=reason,
        first_accepted=day,
        first_reason=reason,
        class_sizes={str(size): times for size, times in sorted(sizes.items())},
    )
    return now if record is None else follow(record, now)


def follow(before: Record, now: Record) -> Record:
    """Return what accepting `now`, a record by itself, makes of the record that is there."""
    looks = (*before.looks, *(look for look in now.looks if look not in before.looks))
    now = replace(now, created=before.created, looks=looks[-MAX_LOOKS:])
    if is_of_other_data(before, now):
        return replace(now, chains=(*before.chains, end_chain(before, now)))
    return replace(
        now,
        first=before.first,
        first_fp16=before.first_fp16,
        first_accepted=before.first_accepted,
        first_reason=before.first_reason,
        chains=before.chains,
    )


def is_of_other_data(before: Record, now: Record) -> bool:
    """Return whether a comparison with the first accepted variant ends here."""
    return before.first.data_digest != now.accepted.data_digest


def end_chain(before: Record, now: Record) -> Chain:
    """Return what stays of a record's accepted variants when `now` is on other data."""
    return Chain(
        first_accepted=before.first_accepted,
        first_reason=before.first_reason,
        ended=now.updated,
        reason=now.reason,
        samples=before.first.samples,
        data_digest=before.first.data_digest,
        first_fp16_value=before.first_fp16.value,
        first_value=before.first.value,
        last_fp16_value=before.fp16.value,
        last_value=before.accepted.value,
    )


def next_timed_record(
    record: AnyTimed | None,
    *,
    kind: type[AnyTimed],
    suite: str,
    key: str,
    run: LatencyRun,
    versions: Mapping[str, str],
    today: date,
    reason: str,
) -> AnyTimed:
    """Return the record that accepting this run and its machine would make."""
    day = today.isoformat()
    return kind(
        suite=suite,
        key=key,
        runtime=f"{run.runtime} {run.runtime_version}".strip(),
        machine=run.machine,
        rounds=run.rounds,
        fp16_ms=run.fp16.median_ms,
        quantized_ms=run.quantized.median_ms,
        versions=dict(versions),
        created=record.created if record is not None else day,
        updated=day,
        reason=reason,
    )


def write_obtained(directory: Path, record: AnyRecord) -> Path:
    """Write a proposed record below `directory` and return its path; `accept_obtained` takes it."""
    return Store(directory).write(record)


def discard_obtained(directory: Path, record: AnyRecord) -> None:
    """Delete what an earlier run proposed in a record's place; raises BaselineError."""
    path = Store(directory).path_of(record)
    try:
        refuse_links(path.parent)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BaselineError(f"cannot delete {path}: {error.strerror or error}") from error


def accept_obtained(
    directory: Path, *, store: Store, reason: str, new_data: bool = False
) -> tuple[Path, ...]:
    """Make every record below `directory` a baseline and return the files written.

    What is there is followed as an update would. All are read and checked before the first is
    written: one that is damaged or unfit leaves everything as it was. Raises BaselineError.
    """
    _check_reason(reason)
    records = [
        prepare_obtained(
            read_obtained(path, directory=directory),
            path=path,
            store=store,
            reason=reason,
            new_data=new_data,
        )
        for path in list_obtained(directory)
    ]
    return tuple(store.write(record) for record in records)


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise BaselineError("accepting needs a reason: it is kept in the baseline")


def list_obtained(directory: Path) -> list[Path]:
    """Return the files of obtained results, sorted; raises BaselineError where there is none."""
    if not directory.is_dir():
        raise BaselineError(f"{directory} is no directory: nothing to accept")
    paths = sorted(directory.rglob("*.json"))
    if not paths:
        raise BaselineError(f"{directory} holds no obtained results: nothing to accept")
    return paths


def read_obtained(path: Path, *, directory: Path) -> AnyRecord:
    """Return an obtained result; raises BaselineError for one that is damaged or lies elsewhere."""
    record = _read_file(path, root=directory, parse=parse_any_record, fix=_OBTAIN)
    assert record is not None
    if path.resolve() != Store(directory).path_of(record).resolve():
        raise BaselineError(
            f"{path}: holds {record.suite} {record.key}, which belongs elsewhere: {_OBTAIN}"
        )
    return record


def prepare_obtained(
    record: AnyRecord, *, path: Path, store: Store, reason: str, new_data: bool = False
) -> AnyRecord:
    """Return the baseline that a result becomes, after what is there; nothing is written.

    Raises BaselineError for one that must not become a baseline.
    """
    _check_reason(reason)
    try:
        refuse_unfit(record)
        _check_gates(record, project=store.project)
        return _accept(record, store=store, reason=reason.strip(), new_data=new_data)
    except BaselineError as error:
        raise BaselineError(f"{path}: {error}") from error


def _check_gates(record: AnyRecord, *, project: Path | None) -> None:
    """Raise BaselineError where the suite has gates, by now, of which the record says nothing."""
    file = project / suite_file(record.suite) if project is not None else None
    if file is None or not file.exists():
        return
    from pytest_quantgate.suite.load import load_suite

    gates = load_suite(file, relative_to=project).gates
    new = [g.name for g in gates if needs_passing(g.kind) and g.name not in record.verdicts]
    if new:
        raise BaselineError(
            f"{suite_file(record.suite)} has gates that its run did not know ({listed(new)}): "
            f"{_OBTAIN}"
        )


def _accept(record: AnyRecord, *, store: Store, reason: str, new_data: bool) -> AnyRecord:
    record = replace(record, reason=reason)
    if isinstance(record, TimedRecord):
        machine = store.read_timed(record.suite, record.key, kind=type(record))
        return replace(record, created=machine.created) if machine is not None else record
    before = store.read(record.suite, record.key)
    if before is None:
        is_first = record.first == record.accepted
        return replace(record, first_reason=reason) if is_first else record
    if is_of_other_data(before, record) and not new_data:
        raise BaselineError(
            f"its evaluation data is not that on which the first variant was accepted "
            f"({end_chain(before, before).describe()}), so what it has lost since could not be "
            f"seen any more: if that is meant, add --new-data"
        )
    return follow(before, record)
