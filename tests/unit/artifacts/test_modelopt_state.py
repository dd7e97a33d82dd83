"""The reader of ModelOpt's state: reads it without torch, and runs nothing that is in it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.artifacts.modelopt_state import read_state
from pytest_quantgate.errors import ArtifactError

STATE: dict[str, Any] = {
    "modelopt_version": "0.47.0",
    "modelopt_state_dict": [
        (
            "quantize",
            {
                "config": {"quant_cfg": [{"quantizer_name": "*"}], "algorithm": "max"},
                "metadata": {"quantizer_state": {"a.input_quantizer": {"_disabled": True}}},
            },
        ),
        (
            "max_calibrate",
            {
                "config": {"method": "max"},
                "metadata": {
                    "quantizer_state": {
                        "a.input_quantizer": {
                            "_disabled": False,
                            "_pytorch_state_metadata": {
                                "buffers": {
                                    "_amax": {"dtype": torch.float32, "shape": torch.Size([])}
                                }
                            },
                        }
                    }
                },
            },
        ),
    ],
}


class Runs:
    """A pickle of this creates a file when it is loaded by pickle itself."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


def test_last_state_counts(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "s.pth")

    found = read_state(tmp_path / "s.pth")

    assert found.quantizers["a.input_quantizer"]["_disabled"] is False
    assert found.quant_cfg == ({"quantizer_name": "*"},)
    assert (found.algorithm, found.version) == ("max", "0.47.0")
    assert found.modes == ("quantize", "max_calibrate")
    assert found.foreign == ()


def test_tensors_in_a_state_are_passed_over(tmp_path: Path) -> None:
    torch.save({**STATE, "extra": torch.ones(3)}, tmp_path / "s.pth")

    assert read_state(tmp_path / "s.pth").foreign == ()


def test_code_in_a_state_is_named_and_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    torch.save({**STATE, "extra": [Runs(target)]}, tmp_path / "s.pth")

    found = read_state(tmp_path / "s.pth")

    assert found.foreign == ("posix.mkdir",)
    assert found.quantizers
    assert not target.exists()
    with zipfile.ZipFile(tmp_path / "s.pth") as archive:  # the same bytes do run elsewhere
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        plain = pickle.dumps(Runs(target))
        assert b"mkdir" in archive.read(name)
    pickle.loads(plain)
    assert target.exists()


def test_state_that_is_only_code_is_named(tmp_path: Path) -> None:
    torch.save(Runs(tmp_path / "made"), tmp_path / "s.pth")

    assert read_state(tmp_path / "s.pth").foreign == ("posix.mkdir",)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not written by torch.save"),
        (b"PK\x03\x04 and no more", "not written by torch.save"),
        (pickle.dumps({}), "not written by torch.save"),
    ],
)
def test_other_files_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "s.pth").write_bytes(data)

    with pytest.raises(ArtifactError, match=words):
        read_state(tmp_path / "s.pth")


@pytest.mark.parametrize("content", [b"\x80\x04.", b"cnowhere\n", b"\x80\x04]q\x00(K\x01"])
def test_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.pth", "w") as archive:
        archive.writestr("s/data.pkl", content)

    with pytest.raises(ArtifactError, match="is damaged"):
        read_state(tmp_path / "s.pth")


def test_other_content_is_no_state(tmp_path: Path) -> None:
    torch.save({"weights": [1]}, tmp_path / "s.pth")

    with pytest.raises(ArtifactError, match="holds no ModelOpt state"):
        read_state(tmp_path / "s.pth")


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "s.pth")
    code = (
        "import sys; from pathlib import Path;"
        "from pytest_quantgate.artifacts.modelopt_state import read_state;"
        "assert read_state(Path(sys.argv[1])).quantizers; assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.pth")], check=True)


def put(path: Path, *entries: tuple[str, bytes], before: bytes = b"", comment: bytes = b"") -> None:
    with path.open("wb") as out:
        out.write(before)
        with zipfile.ZipFile(out, "w") as archive:
            archive.comment = comment
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of doubles
                for name, content in entries:
                    archive.writestr(name, content)


def state_of(*, disabled: bool) -> bytes:
    state = {"a.input_quantizer": {"_disabled": disabled}}
    entry = ("quantize", {"config": {}, "metadata": {"quantizer_state": state}})
    return pickle.dumps({"modelopt_state_dict": [entry]}, protocol=2)


REAL, DECOY = state_of(disabled=True), state_of(disabled=False)


@pytest.mark.parametrize(
    "entries",
    [
        [("decoy/data.pkl", DECOY), ("s/data.pkl", REAL)],
        [("s/version", b"3"), ("decoy/data.pkl", DECOY), ("s/data.pkl", REAL)],
        [("s/x/data.pkl", DECOY), ("s/data.pkl", REAL), ("data.pkl", DECOY)],
        [("s/data.pkl", DECOY), ("s/data.pkl", REAL)],
        [("s/data.pkl", DECOY), ("s/DATA.PKL", REAL)],
        [("s/data.pkl", DECOY), ("S/data.pkl", REAL)],
    ],
)
def test_a_decoy_beside_the_pickle_is_refused(
    entries: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    put(tmp_path / "s.pth", *entries)

    with pytest.raises(ArtifactError, match=r"could be taken for another one|holds no data\.pkl"):
        read_state(tmp_path / "s.pth")


@pytest.mark.parametrize("options", [{"before": b"x" * 40}, {"comment": b"PK\x05\x06"}])
def test_an_archive_inside_other_bytes_is_refused(
    options: dict[str, bytes], tmp_path: Path
) -> None:
    put(tmp_path / "s.pth", ("s/data.pkl", REAL), **options)

    with pytest.raises(ArtifactError, match=r"bytes before or behind the archive|is damaged"):
        read_state(tmp_path / "s.pth")


def test_where_one_pickle_is_meant_torch_reads_the_same(tmp_path: Path) -> None:
    """A second data.pkl in a folder of its own is an entry like any other to torch."""
    put(
        tmp_path / "s.pth",
        ("s/byteorder", b"little"),
        ("s/x/data.pkl", DECOY),
        ("s/data.pkl", REAL),
        ("s/version", b"3"),
    )

    loaded = torch.load(tmp_path / "s.pth", weights_only=True)
    found = read_state(tmp_path / "s.pth")

    (entry,) = loaded["modelopt_state_dict"]
    assert found.quantizers == entry[1]["metadata"]["quantizer_state"]
    assert found.quantizers["a.input_quantizer"]["_disabled"] is True
