"""Peak memory of a run at 1,000 images and at 50,000, both variants: is it flat?

    OMP_NUM_THREADS=1 python benchmarks/memory.py CHECKPOINT ARCHIVE [--counts 1000,50000]

ARCHIVE is a WebDataset shard of labelled photographs (`<key>.jpg`, `<key>.cls`); its images are
repeated, each time shifted and turned, in shards of 5,000. Each count is one run of pytest in a
process of its own, whose largest resident set (of it, or of its largest worker) is read from the
kernel.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops

REPOSITORY = Path(__file__).parents[1]
SHARD = 5_000


SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{checkpoint}"}}
datasets: {{photos: {{dataset: wds/photos, root: "{root}"}}}}
calibration: {{data: scenes/calibration, samples: 512, batch_size: 64}}
quantize: {{recipe: fp8-attention, exclude: ["*patch_embedding*"]}}
gates:
  accuracy: {{task: photos/classification, metric: acc1, max_drop: 20pp, samples: {count}}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--counts", default="1000,50000")
    parser.add_argument("--workers", type=int, default=1)
    parsed = parser.parse_args()
    counts = [int(count) for count in parsed.counts.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        print("| images | largest process, MiB | seconds |\n|---|---|---|", flush=True)
        peaks = []
        for count in counts:
            root = Path(folder) / f"photos{count}"
            write_photos(root, archive=parsed.archive, count=count)
            peaks.append(measure(Path(folder), parsed=parsed, root=root, count=count))
    print(f"\n{peaks[-1] / peaks[0]:.3f}x from {counts[0]:,} to {counts[-1]:,} images")
    return 0


def measure(folder: Path, *, parsed: argparse.Namespace, root: Path, count: int) -> float:
    """Run a suite on so many images, print a row and return the peak in MiB."""
    suite = folder / f"s{count}.quantgate.yaml"
    suite.write_text(SUITE.format(checkpoint=parsed.checkpoint.absolute(), root=root, count=count))
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider"]
    command += [f"--rootdir={folder}", f"--quantgate-cache-dir={folder / f'cache{count}'}"]
    command += [f"--quantgate-workers={parsed.workers}"] if parsed.workers > 1 else []
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=sys.stderr)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
    )
    status, peak = map(int, done.stdout.split())
    if status:
        sys.exit(done.stderr[-4000:])
    print(f"| {count:,} | {peak / 1024:,.0f} | {time.monotonic() - start:,.0f} |", flush=True)
    return peak / 1024


def write_photos(root: Path, *, archive: Path, count: int) -> None:
    """Write so many photographs in shards, none twice the same."""
    folder = root / "test"
    folder.mkdir(parents=True)
    photos = list(read_photos(archive))
    draw = random.Random("memory")
    shards = -(-count // SHARD)
    for number in range(shards):
        with tarfile.open(folder / f"{number}.tar", "w") as out:
            for place in range(min(SHARD, count - number * SHARD)):
                image, label = photos[(number * SHARD + place) % len(photos)]
                moved = ImageChops.offset(image, draw.randrange(-6, 7), draw.randrange(-6, 7))
                if draw.random() < 0.5:
                    moved = moved.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                stream = io.BytesIO()
                moved.save(stream, "JPEG", quality=draw.randrange(80, 96))
                for suffix, content in (("jpg", stream.getvalue()), ("cls", label)):
                    info = tarfile.TarInfo(f"{place:05d}.{suffix}")
                    info.size = len(content)
                    out.addfile(info, io.BytesIO(content))
    (folder / "nshards.txt").write_text(str(shards))
    names = (archive.parents[1] / "classnames.txt").read_text("utf-8")
    (root / "classnames.txt").write_text(names, encoding="utf-8")


def read_photos(archive: Path) -> Iterator[tuple[Image.Image, bytes]]:
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(archive) as source:
        for member in source:
            key, _, suffix = member.name.partition(".")
            stream = source.extractfile(member)
            assert stream is not None
            parts.setdefault(key, {})[suffix] = stream.read()
    for found in parts.values():
        yield Image.open(io.BytesIO(found["jpg"])).convert("RGB"), found["cls"]


if __name__ == "__main__":
    sys.exit(main())
