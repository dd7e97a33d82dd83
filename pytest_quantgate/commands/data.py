"""`quantgate data show`: what was read of the data that a suite uses, before anything runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.words import count, listed

if TYPE_CHECKING:
    from pytest_quantgate.suite.specs import Suite
    from pytest_quantgate.tasks.builtin import Purpose
    from pytest_quantgate.tasks.samples import Samples

EXAMPLES = """\
examples:
  quantgate data show suites/clip.quantgate.yaml             # all that its gates read
  quantgate data show suites/clip.quantgate.yaml photos      # one data set
  quantgate data show suites/clip.quantgate.yaml --pixels    # find copies in other files, too

Each set is shown as the suite takes it: drawn, first or whole. Copies are files with the same
bytes; with --pixels every image is decoded, and those that show the same are copies, as for the
calibration gate. The status is 0 where all of it could be read, else 1.
"""

#: So many headers of images are looked at, spread over all of them.
LOOKED_AT = 10_000

#: So many samples are shown, spread over all of them.
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Use:
    """Data as a suite takes it; `samples` None is all of it."""

    data: str
    purpose: Purpose
    samples: int | None
    first: bool

    @property
    def taken(self) -> str:
        if self.samples is None:
            return "all"
        return f"the first {self.samples}" if self.first else f"{self.samples} drawn by seed"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample: its name, what its image is, and what is said of it."""

    id: str
    image: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What was read of one set. Counts are by what they count; `looked_at` images were opened for
    `formats`, `modes`, `sizes` and `changes`. `copies` are samples that repeat another one."""

    data: str
    taken: str
    samples: int
    classes: Mapping[str, int]
    captions: Mapping[int, int]
    columns: Mapping[str, Mapping[str, int]]
    looked_at: int
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    sizes: Mapping[str, int]
    changes: Mapping[str, int]
    copies: int
    copied: str
    examples: Sequence[Example]
    notes: Sequence[str]


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "data",
        help="show what is read of the data that a suite uses",
        epilog=EXAMPLES,
    )
    parser.add_argument("action", choices=("show",), help="what to do with it")
    parser.add_argument("suite", type=Path, metavar="SUITE", help="suite file")
    parser.add_argument("name", nargs="?", metavar="NAME", help="data set, or <data set>/<split>")
    parser.add_argument("--pixels", action="store_true", help="compare decoded images, not files")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.suite.load import load_suite
    from pytest_quantgate.tasks.registry import load_samples

    suite = load_suite(parsed.suite, relative_to=Path.cwd())
    shown: list[Shown] = []
    known: list[tuple[str, Mapping[str, str]]] = []
    failed = 0
    for use in list_uses(suite, name=parsed.name):
        try:
            samples = load_samples(
                use.data,
                datasets=suite.datasets,
                samples=use.samples,
                environ=environ,
                purpose=use.purpose,
                first=use.first,
            )
            contents = list_contents(samples, pixels=parsed.pixels)
            shown.append(describe(samples, use=use, contents=contents))
        except QuantGateError as error:
            print(printable(f"quantgate: {error}"), file=sys.stderr)
            failed += 1
            continue
        known.append((use.data, dict(zip(reversed(contents), reversed(samples.ids), strict=True))))
    shared = list(find_shared(known))
    if parsed.json:
        plain = {"data": [asdict(one) for one in shown], "shared": [asdict(one) for one in shared]}
        print(json.dumps(plain, indent=2, ensure_ascii=False))
    else:
        lines = [line for one in shown for line in (*render(one), "")]
        splits = len({one.data for one in shown})
        if splits > 1:
            lines += render_shared(shared, splits=splits, pixels=parsed.pixels)
        for line in lines:
            print(printable(line))
    return 1 if failed else 0


def list_uses(suite: Suite, *, name: str | None = None) -> list[Use]:
    """Return the data that the gates of a suite read, and what calibrates; or what is of a name.

    Raises SuiteError for a name that no gate uses.
    """
    from pytest_quantgate.gates.fidelity import FidelityGate
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.tasks.registry import evaluation_data

    spec = suite.calibration
    uses = [
        Use(
            data=spec.data,
            purpose="pairs",
            samples=spec.samples + spec.held_out_samples,
            first=spec.first,
        )
    ]
    fidelity = suite.gates.one(FidelityGate)
    if fidelity is not None and fidelity.data:
        uses.append(
            Use(
                data=fidelity.data,
                purpose="pairs",
                samples=fidelity.samples,
                first=fidelity.first,
            )
        )
    gates: tuple[TaskGate, ...] = suite.gates.all(TaskGate)
    for gate in gates:
        data, purpose = evaluation_data(gate.task)
        uses.append(Use(data=data, purpose=purpose, samples=gate.samples, first=gate.first))
        if gate.bank is not None:
            uses.append(
                Use(data=gate.bank, purpose=purpose, samples=gate.bank_samples, first=False)
            )
    found = list(dict.fromkeys(uses))
    if name is None:
        return found
    named = [use for use in found if name in (use.data, use.data.rpartition("/")[0])]
    if not named:
        used = listed(sorted({use.data for use in found}))
        raise SuiteError(f"{suite.path}: no gate reads {name!r}: they read {used}")
    return named


def list_contents(samples: Samples, *, pixels: bool) -> Sequence[str]:
    """Return what tells the image of each sample from others: its bytes, or its decoded pixels."""
    from pytest_quantgate.tasks.contents import hash_pixels

    if not pixels:
        return samples.hashes
    return [hash_pixels(samples.images[index]) for index in range(len(samples))]


def describe(samples: Samples, *, use: Use, contents: Sequence[str]) -> Shown:
    """Return what there is to say of samples; `contents` tell their images apart."""
    looked_at = _spread(len(samples), most=LOOKED_AT)
    looks = [look for index in looked_at if (look := samples.look(index)) is not None]
    changes = Counter(
        change for look in looks for change in look.list_changes(rotated=bool(samples.decoding))
    )
    classes: Counter[str] = Counter(dict.fromkeys(samples.class_names, 0))
    classes.update(samples.class_names[label] for label in samples.labels or ())
    seen: dict[str, str] = {}
    copied = ""
    for name, content in zip(samples.ids, contents, strict=True):
        other = seen.setdefault(content, name)
        if other != name and not copied:
            copied = f"{name} is {other}"
    return Shown(
        data=use.data,
        taken=use.taken,
        samples=len(samples),
        classes=dict(classes),
        captions=dict(Counter(len(texts) for texts in samples.captions or ())),
        columns={
            name: dict(Counter(map(str, values)).most_common())
            for name, values in samples.columns.items()
        },
        looked_at=len(looks),
        formats=_sorted(look.format for look in looks),
        modes=_sorted(look.mode for look in looks),
        sizes=_sorted("{}x{}".format(*look.size) for look in looks),
        changes=dict(sorted(changes.items())),
        copies=len(contents) - len(seen),
        copied=copied,
        examples=[_show(samples, index) for index in _spread(len(samples), most=SHOWN)],
        notes=samples.notes,
    )


def _spread(total: int, *, most: int) -> list[int]:
    """Return at most so many indices, evenly over all."""
    return list(range(total)) if total <= most else [i * total // most for i in range(most)]


def _sorted(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _show(samples: Samples, index: int) -> Example:
    look = samples.look(index)
    if look is not None:
        image = "{}x{} {} {}".format(*look.size, look.format, look.mode)
    else:
        decoded = samples.images[index]  # a PIL image, or an array [H, W, 3]
        shape = getattr(decoded, "shape", None)
        image = "{}x{}".format(*(decoded.size if shape is None else (shape[1], shape[0])))
    said = samples.class_names[samples.labels[index]] if samples.labels is not None else ""
    texts = samples.captions[index] if samples.captions is not None else ()
    more = f" and {count(len(texts) - 1, 'more', 'more')}" if len(texts) > 1 else ""
    quoted = f'"{_cut(texts[0], 60)}"{more}' if texts else ""
    return Example(id=samples.ids[index], image=image, says=", ".join(filter(None, (said, quoted))))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


@dataclass(frozen=True, kw_only=True)
class Shared:
    """How many images of one set are in another one, and the first of them."""

    first: str
    second: str
    images: int
    example: str


def find_shared(known: Sequence[tuple[str, Mapping[str, str]]]) -> Iterator[Shared]:
    """Yield what two splits have in common; `known` are contents and their samples, by split."""
    for place, (name, contents) in enumerate(known):
        for other, others in known[place + 1 :]:
            both = [content for content in contents if content in others]
            if both and other != name:
                example = f"{contents[both[0]]} is {others[both[0]]}"
                yield Shared(first=name, second=other, images=len(both), example=example)


# -- text -----------------------------------------------------------------------------------------


def render(shown: Shown) -> Iterator[str]:
    """Yield the lines of one set."""
    yield f"{shown.data}: {count(shown.samples, 'sample')} ({shown.taken})"
    if shown.classes:
        yield f"  classes   {len(shown.classes)}: {_counts(_by_size(shown.classes))}"
        empty = [name for name, number in shown.classes.items() if not number]
        if empty:
            yield f"  no sample {count(len(empty), 'class', 'classes')}: {listed(empty)}"
    if shown.captions:
        total = sum(number * images for number, images in shown.captions.items())
        each = sorted(shown.captions)
        range_ = f"{each[0]}" if len(each) == 1 else f"{each[0]} to {each[-1]}"
        yield f"  captions  {total}: {range_} an image"
    for name, values in shown.columns.items():
        yield f"  column    {name}: {_counts(values)}"
    if shown.looked_at:
        of = "" if shown.looked_at == shown.samples else f" (of {shown.looked_at} looked at)"
        yield f"  images    {_counts(shown.formats)}; {_counts(shown.modes)}{of}"
        yield f"  sizes     {len(shown.sizes)}: {_counts(shown.sizes)}"
        changed = _counts(shown.changes) if shown.changes else "nothing"
        yield f"  decoding  changes {changed}"
    copies = f"{shown.copies}, first {shown.copied}" if shown.copies else "none"
    yield f"  copies    {copies}"
    for note in shown.notes:
        yield f"  note      {note}"
    width = max(len(example.id) for example in shown.examples)
    for example in shown.examples:
        yield f"    {example.id:<{width}}  {example.image}  {example.says}".rstrip()


def render_shared(shared: Sequence[Shared], *, splits: int, pixels: bool) -> Iterator[str]:
    """Yield what the splits have in common, a line a pair."""
    by = "pixels" if pixels else "bytes of their files (--pixels compares what they show)"
    if not shared:
        yield f"no image is in two of the {splits} splits, by the {by}"
    for one in shared:
        yield (
            f"{one.first} and {one.second} share {count(one.images, 'image')}, by the {by}: "
            f"{one.example}"
        )


def _by_size(classes: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(classes.items(), key=lambda item: (-item[1], item[0])))


def _counts(found: Mapping[str, int], *, most: int = 6) -> str:
    """Return counts as `RGB 12, L 3`, the first so many."""
    parts = [f"{name} {number}" for name, number in found.items()]
    if len(parts) > most:
        parts = [*parts[: most - 1], "...", parts[-1]]
    return ", ".join(parts)
