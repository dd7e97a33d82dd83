"""What a data set of a million images costs to open, and whether memory stays flat in reading it.

    python benchmarks/many_rows.py [ROWS] [PART] [FOLDER]

Writes ROWS distinct JPEG images of 32 px into one Parquet file (row groups of 10,000, labels and
captions beside them) and into a folder of `save_to_disk`. Each step runs in a process of its own:
opening the split (labels, captions, and the SHA-256 of each image), `quantgate data show`, a draw
of 1,000, and decoding the first PART images in order, with the peak of memory after each fifth.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GROUP = 10_000
CLASSES = 1_000

SUITE = """\
quantgate: 1
model: {{source: reference}}
datasets:
  many: {{dataset: {dataset}, root: "{root}"}}
calibration: {{data: many/test, samples: 8, batch_size: 8, held_out_samples: 8}}
quantize: {{recipe: fp8-attention}}
gates:
  accuracy: [{{task: many/classification, metric: acc1, max_drop: 1pp}}]
"""


def make_groups(rows: int) -> Iterator[Any]:
    """Yield record batches of images that all differ: a random one with the row's number in it."""
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    noise = np.random.default_rng(0)
    base = noise.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
    for start in range(0, rows, GROUP):
        numbers = range(start, min(start + GROUP, rows))
        cells = []
        for number in numbers:
            pixels = base[number % 256].copy()
            bits = np.unpackbits(np.array([number], dtype=">u4").view(np.uint8))
            pixels[:4, :] = np.where(np.repeat(bits[:32], 1)[None, :, None], 255, 0)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG", quality=60)
            cells.append({"bytes": stream.getvalue(), "path": f"{number:07d}.jpg"})
        yield pa.table(
            {
                "image": pa.array(cells),
                "label": [f"class {number % CLASSES}" for number in numbers],
                "caption": [f"picture {number} of class {number % CLASSES}" for number in numbers],
            }
        )


def write_data(folder: Path, *, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    saved = folder / "datasets" / "test"
    saved.mkdir(parents=True)
    (folder / "parquet").mkdir()
    name = "data-00000-of-00001.arrow"
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    table = None
    for table in make_groups(rows):
        if not (folder / "parquet" / "test.parquet").exists():
            columns = parquet.ParquetWriter(folder / "parquet" / "test.parquet", table.schema)
            stream = pa.OSFile(str(saved / name), "wb")
            batches = pa.ipc.new_stream(stream, table.schema)
        columns.write_table(table, row_group_size=GROUP)
        batches.write_table(table, max_chunksize=1000)
    columns.close()
    batches.close()
    stream.close()


def peak_megabytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has started and that have ended."""
    return sum(os.times()[:4])


def open_split(root: Path, dataset: str, *, samples: int | None) -> Any:
    from pytest_quantgate.suite.specs import DatasetSpec
    from pytest_quantgate.suite.where import Where
    from pytest_quantgate.tasks.registry import load_samples

    spec = DatasetSpec(where=Where(file="x", line=1), dataset=dataset, root=str(root))
    return load_samples("many/test", datasets={"many": spec}, samples=samples, environ={})


def step(what: str, dataset: str, root: Path, *, part: int) -> None:
    import pyarrow.parquet  # noqa: F401

    before = peak_megabytes()
    started, worked = time.perf_counter(), cpu_seconds()
    said = ""
    if what == "open":
        said = f"{len(open_split(root, dataset, samples=None))} samples"
    elif what == "draw":
        said = f"{len(open_split(root, dataset, samples=1000))} samples"
    elif what == "show":
        from pytest_quantgate.commands.cli import main

        suite = root.parent / f"{dataset}.quantgate.yaml"
        suite.write_text(SUITE.format(dataset=dataset, root=root))
        status = main(["data", "show", str(suite), "--json"])
        assert status == 0
    else:
        from PIL import Image  # noqa: F401

        found = open_split(root, dataset, samples=None).take(part)
        started, worked = time.perf_counter(), cpu_seconds()
        peaks = []
        for index in range(len(found)):
            found.images[index].load()
            if (index + 1) % (part // 5) == 0:
                peaks.append(str(peak_megabytes()))
        said = f"peaks {' '.join(peaks)} MB"
    taken, worked = time.perf_counter() - started, cpu_seconds() - worked
    memory = f"{before:6} MB before{peak_megabytes():6} MB peak"
    print(
        f"{dataset:<10}{what:<8}{taken:7.1f} s{worked:7.1f} s CPU{memory}  {said}", file=sys.stderr
    )


def main(rows: int, part: int, folder: Path) -> None:
    if not (folder / "parquet").exists():
        write_data(folder, rows=rows)
    for dataset in ("parquet", "datasets"):
        size = sum(p.stat().st_size for p in (folder / dataset).rglob("*") if p.is_file())
        print(f"{rows} rows as {dataset}: {size >> 20} MB", file=sys.stderr)
        for what in ("open", "show", "draw", "decode"):
            subprocess.run(
                [sys.executable, __file__, "step", what, dataset, str(folder / dataset), str(part)],
                check=True,
                stdout=subprocess.DEVNULL,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        step(sys.argv[2], sys.argv[3], Path(sys.argv[4]), part=int(sys.argv[5]))
    else:
        given = sys.argv[1:]
        rows = int(given[0]) if given else 1_000_000
        part = int(given[1]) if len(given) > 1 else 50_000
        if len(given) > 2:
            main(rows, part, Path(given[2]))
        else:
            with tempfile.TemporaryDirectory() as folder:
                main(rows, part, Path(folder))
