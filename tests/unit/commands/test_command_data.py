"""`quantgate data show`: what was read, what stands twice, what calibrates and is judged on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pytest_quantgate.commands.cli import main

SUITE = """\
quantgate: 1
model: {source: reference}
datasets:
  products: {dataset: imagefolder, root: "${QUANTGATE_DATASET}", columns: {keep: camera}}
calibration: {data: products/train, samples: 2, batch_size: 2, held_out_samples: 1}
quantize: {recipe: fp8-attention}
gates:
  accuracy:
    - {task: products/classification, metric: acc1, max_drop: 1pp}
"""


def image(value: int, *, mode: str = "RGB", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4 + value % 2), (value, 2, 3)).convert(mode).save(stream, kind)
    return stream.getvalue()


#: Number 3 is in both splits, as another file in `train`; `b` and `c` are one file twice.
TEST = {
    "a.png": image(1),
    "b.png": image(2, mode="RGBA"),
    "c.png": image(2, mode="RGBA"),
    "d.bmp": image(3, kind="BMP"),
    "e.png": image(4, mode="L"),
}
TRAIN = {"x.png": image(3), "y.png": image(1), "z.png": image(9)}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split, files in (("test", TEST), ("train", TRAIN)):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        rows = ["file_name,label,title,camera"]
        for number, (name, content) in enumerate(files.items()):
            (folder / name).write_bytes(content)
            rows.append(f"{name},{('cat', 'dog')[number % 2]},picture {number},{'xy'[number > 3]}")
        (folder / "metadata.csv").write_text("\n".join(rows))
    (tmp_path / "data" / "classnames.txt").write_text("cat\ndog\nbird\n")
    path = tmp_path / "products.quantgate.yaml"
    path.write_text(SUITE.replace("keep: camera", "captions: title, keep: camera"))
    monkeypatch.chdir(tmp_path)
    return path


Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def show(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    def run(*arguments: str, root: str = "data") -> tuple[int, str, str]:
        environ = {"QUANTGATE_DATASET": str(tmp_path / root)}
        status = main(["data", "show", str(suite), *arguments], environ=environ)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_what_was_read_is_shown(show: Show) -> None:
    status, out, err = show("products/test")

    assert (status, err) == (0, "")
    assert out == (
        "products/test: 5 samples (all)\n"
        "  classes   3: cat 3, dog 2, bird 0\n"
        "  no sample 1 class: bird\n"
        "  captions  5: 1 an image\n"
        "  column    camera: x 4, y 1\n"
        "  images    PNG 4, BMP 1; RGB 2, RGBA 2, L 1\n"
        "  sizes     2: 6x4 3, 6x5 2\n"
        "  decoding  changes RGBA made RGB: transparency dropped 2\n"
        "  copies    1, first c is b\n"
        '    a  6x5 PNG RGB  cat, "picture 0"\n'
        '    b  6x4 PNG RGBA  dog, "picture 1"\n'
        '    c  6x4 PNG RGBA  cat, "picture 2"\n'
        '    d  6x5 BMP RGB  dog, "picture 3"\n'
        '    e  6x4 PNG L  cat, "picture 4"\n'
        "\n"
    )


def test_what_calibration_and_tasks_share_is_shown(show: Show) -> None:
    status, out, _ = show()

    assert status == 0
    assert "products/train: 3 samples (3 drawn by seed)" in out
    assert "products/train and products/test share 1 image, by the bytes of their files" in out
    assert out.endswith("y is a\n")


def test_a_part_of_a_split_shares_nothing_with_it(show: Show, suite: Path, tmp_path: Path) -> None:
    """A gate on some samples of a split and one on all of them read one split."""
    (tmp_path / "data" / "train" / "y.png").write_bytes(image(7))
    gate = "gates:\n  fidelity: {data: products/test, samples: 3, min_cosine: 0.5}"
    suite.write_text(suite.read_text().replace("gates:", gate))

    _, out, _ = show()

    assert "products/test: 3 samples (3 drawn by seed)" in out
    assert "no image is in two of the 2 splits, by the bytes of their files" in out


def test_decoded_images_are_compared_where_that_is_asked_for(show: Show) -> None:
    status, out, _ = show("--pixels")

    assert status == 0
    assert "products/train and products/test share 2 images, by the pixels: " in out


def test_the_same_is_told_to_machines(show: Show) -> None:
    status, out, _ = show("products", "--json")
    found = json.loads(out)

    assert status == 0
    assert [one["data"] for one in found["data"]] == ["products/train", "products/test"]
    assert found["data"][1]["classes"] == {"cat": 3, "dog": 2, "bird": 0}
    assert found["data"][1]["copies"] == 1
    assert found["shared"][0]["images"] == 1


@pytest.mark.parametrize(
    ("arguments", "root", "message"),
    [
        (["other"], "data", "no gate reads 'other': they read products/test, products/train"),
        ([], "nowhere", "there is nothing at ${QUANTGATE_DATASET} on this machine"),
    ],
)
def test_what_cannot_be_read_is_said(
    show: Show, arguments: list[str], root: str, message: str
) -> None:
    status, _, err = show(*arguments, root=root)

    assert status == 1
    assert message in err


def test_what_ships_is_shown_too(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = suite.read_text().replace("products/", "digits/").split("datasets:")
    suite.write_text(text[0] + text[1][text[1].index("calibration:") :])

    assert main(["data", "show", str(suite), "digits/test"], environ={}) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits/test: 596 samples (all)\n  classes   10: ")
    assert "copies    none" in out
    assert "images" not in out
