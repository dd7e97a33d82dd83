"""The reader of safetensors files: every type as torch reads it, and damage refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pytest_quantgate.artifacts.safetensors_file import read_header
from pytest_quantgate.errors import ArtifactError

FLOATS = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float_type_is_read_as_torch_reads_it(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.5, 0.001, 300.0, 1e-8, -57344.0]).to(dtype)
    save_file({"x": values.reshape(2, 4), "odd": torch.ones(3)}, tmp_path / "m.safetensors")

    tensor = read_header(tmp_path / "m.safetensors")["x"]

    assert tensor.shape == (2, 4)
    assert tensor.bytes == values.numel() * values.element_size()
    numpy.testing.assert_array_equal(tensor.values(), values.double().numpy())
    numpy.testing.assert_array_equal(tensor.values(2, 5), values.double().numpy()[2:5])


def test_all_bytes_of_e4m3_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    save_file({"x": every}, tmp_path / "m.safetensors")

    found = read_header(tmp_path / "m.safetensors")["x"].values()

    numpy.testing.assert_array_equal(found, every.double().numpy())


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool])
def test_integers_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([0, 1, 1, 0]).to(dtype)
    save_file({"x": values}, tmp_path / "m.safetensors")

    assert read_header(tmp_path / "m.safetensors")["x"].values().tolist() == [0, 1, 1, 0]


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "its header says 0 bytes, the file has 0"),
        (b"\xff" * 16, "the file has 16"),
        ((4).to_bytes(8, "little") + b"nope", "its header is not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "its header is no mapping"),
        (header(x={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}), "ends beyond the file"),
        (
            header(x={"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}) + b"1234",
            "another size",
        ),
        (header(x={"dtype": "F99", "shape": [], "data_offsets": [0, 4]}), "type 'F99'"),
        (header(x={"shape": []}), "tensor 'x' is not described"),
        (header(x={"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}), "another size"),
        (header(x={"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}), "type ['F32']"),
        (header(x={"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}), "another size"),
        (header(x={"dtype": "F32", "shape": [1], "data_offsets": [0, None]}), "another size"),
        (
            header(x={"dtype": "F32", "shape": [10**300] * 20_000, "data_offsets": [0, 4]}),
            "another",
        ),
        (header(**{"x" * 9000: {}}), f"tensor '{'x' * 79} is not described"),
    ],
    ids=lambda value: ascii(value[-40:]),
)
def test_damaged_file_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)

    with pytest.raises(ArtifactError) as caught:
        read_header(path)

    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    os.mkfifo(path)

    with pytest.raises(ArtifactError, match="is no regular file"):
        read_header(path)


@pytest.mark.parametrize("end", [b"", b"\x00" * 7], ids=["a gap", "bytes behind the last one"])
def test_tensors_that_do_not_fill_the_file_are_refused(tmp_path: Path, end: bytes) -> None:
    """As safetensors itself does: what lies between and behind is nobody's."""
    at = 4 if end else 8
    one = {"dtype": "F32", "shape": [1]}
    path = tmp_path / "m.safetensors"
    path.write_bytes(
        header(a={**one, "data_offsets": [0, 4]}, b={**one, "data_offsets": [at, at + 4]})
        + bytes(at + 4)
        + end
    )

    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(ArtifactError, match="do not fill the file one behind the other"):
        read_header(path)
