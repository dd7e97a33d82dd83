"""E4M3 on a CPU: bit for bit ModelOpt's own, and only what it is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.quantization.arithmetic import ARITHMETIC, read_arithmetic
from pytest_quantgate.quantization.e4m3 import can_round, round_e4m3
from pytest_quantgate.quantization.modelopt import import_modelopt

tensor_quant = import_modelopt("modelopt.torch.quantization.tensor_quant")

LEAST = read_arithmetic().least_range

#: What stands behind the 16 bits in which a tie of E4M3 can be seen.
TAILS = (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)


def read_bits(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits; every NaN has the same."""
    return torch.where(values.isnan(), torch.nan, values).view(torch.int32)


def make_every_pattern(tail: int) -> torch.Tensor:
    """Return a float32 for each sign, exponent and first seven bits of the mantissa."""
    return ((torch.arange(1 << 16, dtype=torch.int32) << 16) | tail).view(torch.float32)


@pytest.mark.parametrize(
    "amax", [448.0, 3.0, 0.037, 1e-30, 1.3e-36, 1e-36, 1e-40, 0.0, 2.0**-24, 3e38, torch.inf]
)
def test_every_exponent_and_every_tie_is_rounded_as_modelopt_does(amax: float) -> None:
    values = torch.cat([make_every_pattern(tail) for tail in TAILS])
    limit = torch.tensor(amax)

    found = round_e4m3(values, limit, least_range=LEAST)

    assert torch.equal(read_bits(found), read_bits(tensor_quant.fp8_eager(values, limit)))


@pytest.mark.parametrize(
    ("version", "amax", "expected"),
    [
        ((0, 47), 2.0**-24, 0.0),
        ((0, 47), 2.0**-23, 2.0**-23),
        ((0, 48), 2.0**-24, 2.0**-24),
        ((0, 48), 2.0**-119, 2.0**-119),
        ((0, 48), 2.0**-120, 0.0),
    ],
)
def test_a_range_that_counts_as_none_rounds_to_nothing(
    version: tuple[int, int], amax: float, expected: float
) -> None:
    found = round_e4m3(
        torch.tensor([amax]),
        torch.tensor(amax),
        least_range=ARITHMETIC[version].least_range,
    )

    assert found.tolist() == pytest.approx([expected], rel=1e-6, abs=0)


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40),
    amax=st.floats(min_value=0, width=32),
    shape=st.sampled_from([(), (1,), (1, 1)]),
)
def test_any_value_under_any_range(
    values: list[float], amax: float, shape: tuple[int, ...]
) -> None:
    given_values = torch.tensor(values)
    limit = torch.full(shape, amax)
    before = given_values.clone()

    found = round_e4m3(given_values, limit, least_range=LEAST)

    theirs = tensor_quant.fp8_eager(given_values, limit).reshape(-1)
    assert torch.equal(read_bits(found), read_bits(theirs))
    assert torch.equal(read_bits(given_values), read_bits(before))


@pytest.mark.parametrize("shape", [(0,), (), (3, 5, 7), (2, 3, 1 << 14), ((1 << 16) + 1,)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    limit = torch.tensor(2.0)

    found = round_e4m3(values, limit, least_range=LEAST)

    assert found.shape == values.shape
    assert torch.equal(read_bits(found), read_bits(tensor_quant.fp8_eager(values, limit)))


def test_what_it_is_not_for() -> None:
    values, one = torch.ones(4, 6), torch.ones(())

    assert can_round(values, one)
    assert not can_round(values, torch.ones(4, 1))
    assert not can_round(values, torch.ones(1, 1, 1)), "the result would have three dimensions"
    assert not can_round(values.half(), one)
    assert not can_round(values.T, one)
    assert not can_round(values.to("meta"), one)
