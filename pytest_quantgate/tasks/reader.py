"""What a reader of data sets is: one value, of this package or of another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pytest_quantgate.evidence.sanity import TextPlaces
from pytest_quantgate.suite.specs import DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.samples import Samples


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a data set as a suite declares it: `name` is what the suite calls both.

    `root` is the folder of the data set, `split` what its files call the split.
    """

    name: str
    spec: DatasetSpec
    root: Path
    split: str

    @classmethod
    def of_folder(cls, root: Path, *, split: str, dataset: str = "wds/data") -> Source:
        """Return a split of a folder that no suite declares."""
        spec = DatasetSpec(where=Where(file=str(root), line=0), dataset=dataset)
        return cls(name=f"{root.name}/{split}", spec=spec, root=root, split=split)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How much a split holds: images, texts that describe them, and the sizes of its classes.

    `columns` are the class and the kept values of each image, as texts.
    """

    images: int
    captions: int = 0
    classes: tuple[int, ...] = ()
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _know_no_texts(_source: Source) -> tuple[list[str], list[str]]:
    return [], []


@dataclass(frozen=True, kw_only=True)
class DatasetReader:
    """How data sets of one kind are read; `dataset:` of a suite names it.

    `load` returns the drawn samples, whose images are decoded on access; it raises NotMeasured
    where the data is not on this machine, DataError where it is damaged or not what was said.
    `digest` returns a digest of all that `load` would read; without it, that takes loading.
    `read_texts` returns class names and templates where files of the user hold them,
    `locate_texts` the `file:line` of each, `count` how much there is without decoding (None: that
    is only known after it was loaded). `takes_columns` says that its rows have columns that a suite
    may name, `keeps_columns` that samples may have further ones, which a suite may `keep`.
    `package` is what must be installed for it, and `extra` what brings that.
    """

    load: Callable[[Source, Draw], Samples]
    digest: Callable[[Source], str] | None = None
    read_texts: Callable[[Source], tuple[list[str], list[str]]] = _know_no_texts
    locate_texts: Callable[[Source], TextPlaces] = lambda _source: TextPlaces()
    count: Callable[[Source], Counted] | None = None
    takes_columns: bool = False
    keeps_columns: bool = False
    package: str = ""
    extra: str = ""
