"""Arrays are rounded as single values are, in every format of the table and beyond it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.artifacts.operands import Operand, largest_of
from pytest_quantgate.artifacts.rounding import round_to
from pytest_quantgate.formats.table import TABLE, find_format

numpy = pytest.importorskip("numpy")

NAMES = [*(kind.name for kind in TABLE), "UINT8", "UINT4", "E2M1", "INT3"]


@given(name=st.sampled_from(NAMES), values=st.lists(st.floats(-1e5, 1e5, width=32), min_size=1))
def test_arrays_round_as_values_do(name: str, values: list[float]) -> None:
    kind = find_format(name)
    assert kind is not None

    rounded = round_to(numpy.asarray(values, dtype="f4"), format=name)

    assert rounded.tolist() == [kind.round_value(value) for value in values]


def test_what_is_no_format_rounds_nothing() -> None:
    with pytest.raises(ValueError, match="'float32' is no number format"):
        round_to(numpy.zeros(3, dtype="f4"), format="float32")
    assert largest_of("float32") == 1.0


@pytest.mark.parametrize(
    ("stored", "packed"),
    [("F8_E4M3", True), ("U8", True), ("I32", True), ("INT4", True), ("E2M1", True), ("", False)]
    + [(name, False) for name in ("F16", "BF16", "float16", "float32", "int64")],
)
def test_types_that_hold_codes(stored: str, packed: bool) -> None:
    operand = Operand(layer="fc", tower="text", kind="linear", slot="weight", stored=stored)

    assert operand.is_packed == packed
