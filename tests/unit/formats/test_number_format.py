"""A format's values, steps and sizes, against other people's: PyTorch, ml_dtypes, ModelOpt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import E4M3, E5M2, INT4, INT8, TABLE, find_format

ml_dtypes = pytest.importorskip("ml_dtypes")
numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

#: Every float of up to 8 bits of the OCP specifications, as ml_dtypes has it.
FLOATS = {
    "E4M3": "float8_e4m3fn",
    "E5M2": "float8_e5m2",
    "MXFP6": "float6_e3m2fn",
    "MXFP6 E2M3": "float6_e2m3fn",
    "NVFP4": "float4_e2m1fn",
}

ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)
NEAR = st.floats(min_value=-70000, max_value=70000, width=32)


def row(name: str) -> NumberFormat:
    found = find_format(name)
    assert found is not None
    return found


def levels(kind: NumberFormat) -> list[float]:
    return [kind.value_of(code) for code in range(kind.top_code + 1)]


@pytest.mark.parametrize(
    ("name", "largest"),
    [("E4M3", 448), ("E5M2", 57344), ("NVFP4", 6), ("MXFP6", 28), ("MXFP6 E2M3", 7.5)],
)
def test_largest_value_is_the_specifications(name: str, largest: float) -> None:
    kind = row(name)
    assert kind.largest == largest == float(ml_dtypes.finfo(FLOATS[name]).max)
    assert kind.lowest == -largest
    assert kind.value_of(1) == float(ml_dtypes.finfo(FLOATS[name]).smallest_subnormal)


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_every_code_is_the_number_that_it_is_to_others(name: str) -> None:
    kind = row(name)
    codes = numpy.arange(1 << (kind.bits - 1), dtype=numpy.uint8)
    theirs = codes.view(getattr(ml_dtypes, FLOATS[name])).astype(float)

    assert levels(kind) == theirs[: kind.top_code + 1].tolist()
    assert not numpy.isfinite(theirs[kind.top_code + 1 :]).any()


@pytest.mark.parametrize("name", sorted(FLOATS))
@given(value=st.one_of(ANY, NEAR))
def test_floats_round_as_others_round(name: str, value: float) -> None:
    kind = row(name)
    inside = min(max(value, kind.lowest), kind.largest)
    theirs = float(numpy.float32(inside).astype(getattr(ml_dtypes, FLOATS[name])))

    assert kind.round_value(value) == theirs


@given(bits=st.integers(2, 16), value=NEAR)
def test_integers_round_half_to_even_within_twos_complement(bits: int, value: float) -> None:
    kind = row(f"INT{bits}")
    half = 2 ** (bits - 1)

    assert (kind.lowest, kind.largest) == (-half, half - 1)
    assert kind.round_value(value) == min(max(float(numpy.rint(value)), -half), half - 1)


def test_what_is_no_number_or_beyond_all() -> None:
    assert math.isnan(E4M3.round_value(math.nan))
    assert E4M3.round_value(math.inf) == 448
    assert INT8.round_value(-math.inf) == -128


@given(kind=st.sampled_from(TABLE), share=st.floats(0, 1, width=32))
def test_rounding_gives_the_nearest_level(kind: NumberFormat, share: float) -> None:
    value = share * kind.largest
    nearest = min(abs(level - value) for level in levels(kind))

    assert abs(kind.round_value(value) - value) == pytest.approx(nearest, rel=1e-12, abs=1e-300)
    assert kind.round_value(kind.round_value(value)) == kind.round_value(value)


@given(kind=st.sampled_from(TABLE))
def test_half_a_step_above_the_largest_still_rounds_to_it(kind: NumberFormat) -> None:
    """The half step is where the next level would begin, if the grid went on."""
    *_, before, top = levels(kind)

    assert kind.half_step == (top - before) / 2 / top


def test_a_format_without_a_level_above_zero_clips_nothing() -> None:
    assert row("INT1").half_step == math.inf


@given(kind=st.sampled_from(TABLE), share=st.floats(0, 1, width=32))
def test_levels_are_counted_up_to_a_share_of_the_range(kind: NumberFormat, share: float) -> None:
    rounded = kind.round_value(share * kind.largest)

    assert kind.count_levels(share) == (
        sum(0 < level <= rounded for level in levels(kind)),
        len(levels(kind)) - 1,
    )


@pytest.mark.parametrize("kind", [E4M3, E5M2], ids=["E4M3", "E5M2"])
@given(share=st.floats(0, 1, width=32))
def test_levels_are_those_that_pytorch_counts(kind: NumberFormat, share: float) -> None:
    dtype = getattr(torch, FLOATS[kind.name])
    largest = torch.finfo(dtype).max
    codes = torch.tensor([share * largest, largest]).to(dtype).view(torch.uint8)

    assert kind.count_levels(share) == (int(codes[0]), int(codes[1]))


def test_an_unsigned_integer_has_twice_the_levels() -> None:
    assert INT8.count_levels(1.0) == (127, 127)
    for name, levels_ in (("UINT8", 255), ("UINT4", 15)):
        kind = row(name)
        assert kind.count_levels(1.0) == (levels_, levels_)
        assert (kind.lowest, kind.largest, kind.element) == (0, levels_, name)
    assert row("UINT4").count_levels(0.5) == (8, 15)
    assert row("UINT8").round_value(-3.0) == 0


# -- storage ------------------------------


SHAPES = st.lists(st.integers(1, 200), min_size=1, max_size=4)


@given(shape=SHAPES, full_bits=st.sampled_from([16, 32]))
def test_one_scale_for_all_is_not_counted(shape: Sequence[int], full_bits: int) -> None:
    for kind in (E4M3, E5M2, INT8, INT4):
        assert kind.count_bits(shape, full_bits=full_bits) == math.prod(shape) * kind.bits
        assert kind.count_bits(shape, blocks={}, full_bits=full_bits) == kind.bits * math.prod(
            shape
        )


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("NVFP4", 4.5),  # as ModelOpt's own `effective_bits`
        ("NVFP4 (block 32)", 4.25),
        ("MXFP4", 4.25),
        ("MXFP6", 6.25),
        ("MXFP6 E2M3", 6.25),
        ("MXFP8", 8.25),
        ("MXFP8 E5M2", 8.25),
        ("MXINT8", 8.25),
    ],
)
@given(rows=st.integers(1, 300), blocks=st.integers(1, 40), full_bits=st.sampled_from([16, 32]))
def test_bits_of_a_weight_with_its_scales(
    name: str, bits: float, rows: int, blocks: int, full_bits: int
) -> None:
    columns = 32 * blocks

    assert row(name).count_bits((rows, columns), full_bits=full_bits) == rows * columns * bits


@given(rows=st.integers(1, 300), columns=st.integers(1, 700), size=st.integers(1, 300))
def test_a_block_that_is_not_full_has_a_scale_too(rows: int, columns: int, size: int) -> None:
    scales = rows * sum(1 for _ in range(0, columns, size))

    assert INT4.count_bits((rows, columns), blocks={-1: size}, full_bits=16) == (
        4 * rows * columns + 16 * scales
    )


def test_blocks_of_two_axes() -> None:
    blocks = {-1: 128, -2: 128}

    assert E4M3.count_bits((256, 129), blocks=blocks, full_bits=32) == 8 * 256 * 129 + 32 * 2 * 2


# -- targets and amax ------------------------------


@pytest.mark.parametrize(
    ("kind", "first"),
    [(E4M3, 89), (INT8, 75), (INT4, 80), (row("NVFP4"), 100)],
    ids=lambda value: getattr(value, "name", value),
)
def test_targets_that_have_a_format(kind: NumberFormat, first: int) -> None:
    for number in (75, 80, 86, 89, 90, 100, 120, 121):
        assert kind.is_supported_on(f"sm{number}") == (number >= first)
    assert kind.is_supported_on("of a kind to come")


def test_a_format_that_no_builder_takes() -> None:
    assert not replace(E4M3, first_target="").is_supported_on("sm121")


def test_who_keeps_an_amax() -> None:
    kept = {kind.name: [kind.keeps_amax(dynamic=how) for how in (False, True)] for kind in TABLE}

    assert kept["E4M3"] == kept["INT8"] == kept["INT4"] == [True, False]
    assert kept["NVFP4"] == [True, True]
    assert all(keeps == [False, False] for name, keeps in kept.items() if name.startswith("MX"))
