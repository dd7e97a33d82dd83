"""Readers of data beside WebDataset shards: tables of image folders, Parquet, saved data sets."""

from __future__ import annotations

import io
import json
from pathlib import Path

from benchmarks.fuzz.target import Target
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import find_source, load_samples

WHERE = Where(file="x.quantgate.yaml", line=1)


def make_image(value: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 2, 3)).save(stream, ("PNG", "JPEG", "WEBP", "GIF")[value % 4])
    return stream.getvalue()


def read_whole(root: Path, dataset: str) -> None:
    """Load a split, decode its images and count it, as a run and `quantgate plan` do."""
    columns = ColumnsSpec(where=WHERE, keep=("lux",))
    spec = DatasetSpec(where=WHERE, dataset=dataset, root=str(root), columns=columns)
    datasets = {"photos": spec}
    samples = load_samples(
        "photos/test", datasets=datasets, samples=None, environ={}, purpose="images"
    )
    samples.digest  # noqa: B018  # every text of it must be one that UTF-8 holds
    for index in range(len(samples)):
        samples.look(index)
        samples.images[index]
    reader, source = find_source("photos/test", datasets=datasets, environ={})
    assert reader.count is not None
    reader.count(source)


def table_target(folder: Path) -> Target:
    """The metadata beside the images of a folder, as CSV and as JSON lines."""
    root = folder / "photos"
    (root / "test").mkdir(parents=True)
    rows = []
    for number in range(4):
        (root / "test" / f"{number}.png").write_bytes(make_image(number))
        label = ("cat", "dog")[number % 2]
        rows.append({"file_name": f"{number}.png", "label": label, "text": "a b", "lux": number})
    csv = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    lines = "\n".join(map(json.dumps, rows))

    def read(data: bytes) -> None:
        is_csv = not data.lstrip().startswith(b"{")
        for name, used in (("metadata.csv", is_csv), ("metadata.jsonl", not is_csv)):
            (root / "test" / name).unlink(missing_ok=True)
            if used:
                (root / "test" / name).write_bytes(data)
        read_whole(root, "imagefolder")

    return Target(
        name="image tables",
        seeds=(csv.encode(), lines.encode()),
        read=read,
        share=0.02,
        guided_share=0.02,
    )


def make_rows() -> dict[str, object]:
    return {
        "image": [{"bytes": make_image(number), "path": f"{number}.png"} for number in range(6)],
        "label": ["cat", "dog"] * 3,
        "text": [["a", "b"], ["c"]] * 3,
        "lux": list(range(6)),
    }


def parquet_target(folder: Path) -> Target:
    """A Parquet file: footer, pages, dictionaries, images."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = folder / "photos"
    root.mkdir()
    seeds = []
    for options in ({"row_group_size": 2}, {"compression": "zstd"}, {"use_dictionary": False}):
        stream = io.BytesIO()
        parquet.write_table(pa.table(make_rows()), stream, **options)
        seeds.append(stream.getvalue())

    def read(data: bytes) -> None:
        (root / "test.parquet").write_bytes(data)
        read_whole(root, "parquet")

    return Target(
        # Each case starts a process.
        name="Parquet files",
        seeds=tuple(seeds),
        read=read,
        share=0.003,
        guided_share=0.0005,
    )


def saved_target(folder: Path) -> Target:
    """The Arrow stream of a saved data set."""
    import pyarrow as pa

    root = folder / "photos" / "test"
    root.mkdir(parents=True)
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    stream = io.BytesIO()
    table = pa.table(make_rows())
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)

    def read(data: bytes) -> None:
        (root / "data.arrow").unlink(missing_ok=True)  # a map of the last one may still be held
        (root / "data.arrow").write_bytes(data)
        read_whole(root.parent, "datasets")

    return Target(
        name="saved data sets",
        seeds=(stream.getvalue(),),
        read=read,
        share=0.03,
        guided_share=0.02,
    )
