"""The reader of ModelOpt's state: reads it without torch, and runs nothing that is in it."""

from __future__ import annotations

import contextlib
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
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.artifacts.modelopt_state import read_saved, read_state
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


# -- the one file of mto.save ------------------------------------------------------------------

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.arange(4, dtype=torch.bfloat16),
    "eight": torch.tensor([1.0, -448.0]).to(torch.float8_e4m3fn),
    "codes": torch.tensor([[-128, 127]], dtype=torch.int8),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
}


def save(path: Path, **tensors: torch.Tensor) -> Path:
    torch.save({"modelopt_state": STATE, "model_state_dict": tensors}, path)
    return path


def test_tensors_of_a_saved_file_are_those_of_torch(tmp_path: Path) -> None:
    part = torch.arange(10.0)[2:6]  # lies in the storage of a larger one

    state, tensors = read_saved(save(tmp_path / "m.pth", part=part, **TENSORS))

    assert state.version == "0.47.0"
    assert set(tensors) == {*TENSORS, "part"}
    for name, expected in {**TENSORS, "part": part}.items():
        found = torch.from_numpy(tensors[name].values()).reshape(tensors[name].shape)
        assert torch.equal(found, expected.double()), name


def test_a_tensor_in_another_order_is_left_out(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T

    _, tensors = read_saved(save(tmp_path / "m.pth", turned=turned, whole=torch.ones(2)))

    assert set(tensors) == {"whole"}


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "m.pth")

    with pytest.raises(ArtifactError, match="is a pickle, and none of ModelOpt's"):
        read_saved(tmp_path / "m.pth")


def test_a_tensor_beyond_its_entry_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", a=torch.ones(4))
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content[:8] if name.endswith("data/0") else content)

    with pytest.raises(ArtifactError, match="tensor 'a' ends beyond it"):
        read_saved(path)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_saved_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int
) -> None:
    path = save(tmp_path_factory.mktemp("damaged") / "m.pth", **TENSORS)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] = byte
    path.write_bytes(content)

    with contextlib.suppress(ArtifactError):
        _, tensors = read_saved(path)
        for tensor in tensors.values():
            tensor.values()
