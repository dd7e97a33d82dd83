"""A few channels that take the levels of one range from all others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pytest_quantgate.evidence.sensitivity import OutlierChannels
from pytest_quantgate.measure.outliers import find_outliers, set_apart
from pytest_quantgate.quantization.modelopt import import_modelopt

NAME = "vision_model.encoder.layers.3.mlp.fc1.input_quantizer"
CHANNELS = 64


def make_quantizer(num_bits: Any = 8, *, amax: Any = None, **changes: Any) -> Any:
    make = import_modelopt("modelopt.torch.quantization.config").QuantizerAttributeConfig
    kind = import_modelopt("modelopt.torch.quantization.nn").TensorQuantizer
    quantizer = kind(make(**{"num_bits": num_bits, "axis": None, **changes}))
    if amax is not None:
        quantizer.amax = torch.as_tensor(amax)
    return quantizer


def make_values(*, times: float = 50.0, channels: tuple[int, ...] = (17, 40)) -> torch.Tensor:
    """Values in [-1, 1] of [2, 30, 64], some channels many times larger, the first the largest."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 30, CHANNELS, generator=generator) * 2 - 1
    values[0, 0, :] = 1.0
    for place, channel in enumerate(channels):
        values[..., channel] *= times * (1 - 0.1 * place)
    return values


def find(
    quantizer: Any, value: torch.Tensor, *, name: str = NAME, owner: nn.Module | None = None
) -> OutlierChannels | None:
    return find_outliers(name, quantizer, value, owner=owner or nn.Linear(CHANNELS, 4))


def test_channels_far_above_the_others_are_found_with_what_they_leave() -> None:
    found = find(make_quantizer(amax=50.0), make_values())

    assert found is not None
    assert (found.quantizer, found.place, found.format) == (NAME, "mlp.fc1", "INT8")
    assert found.channels == (17, 40)
    assert found.channels_count == CHANNELS
    assert found.largest_ratio == pytest.approx(50)
    assert found.smallest_ratio == pytest.approx(45)
    assert found.range_ratio == pytest.approx(1 / 50)
    assert (found.levels, found.levels_count) == (3, 127)  # 127 / 50 = 2.54


def test_equal_outliers_stand_in_the_order_of_their_index() -> None:
    values = make_values(channels=(40, 17, 3))
    values[..., 3] = values[..., 17] = values[..., 40]
    found = find(make_quantizer(amax=50.0), values)

    assert found is not None
    assert found.channels == (3, 17, 40)


@pytest.mark.parametrize(
    "values",
    [
        make_values(times=1.0),
        make_values(times=3.9),
        make_values(channels=tuple(range(5))),  # 5 of 64 are not few
        make_values(times=math.inf),
        make_values(times=0.0, channels=tuple(range(CHANNELS))),
        torch.ones(CHANNELS),
    ],
    ids=["even", "not far", "many", "Inf", "all zero", "one dimension"],
)
def test_other_inputs_have_none(values: torch.Tensor) -> None:
    assert find(make_quantizer(amax=50.0), values) is None


def test_channels_that_are_always_zero_do_not_count_for_the_median() -> None:
    values = make_values(times=3.0, channels=(17,))
    values[..., CHANNELS // 4 :] = 0
    values[..., 1::2] *= 1e-3  # most of what is left
    assert find(make_quantizer(amax=3.0), values) is None

    dead = make_values(channels=(0,))
    dead[..., CHANNELS // 4 :] = 0
    found = find(make_quantizer(amax=50.0), dead)
    assert found is not None
    assert found.largest_ratio == pytest.approx(50)


@pytest.mark.parametrize(
    ("num_bits", "times", "levels"),
    [
        ((4, 3), 50.0, None),
        ((4, 3), 448.0, None),
        ((4, 3), 400_000.0, (1, 126)),  # 448 / 400000 = 0.57 of the smallest subnormal, 2^-9
        (8, 400_000.0, (0, 127)),
        (4, 20.0, (0, 7)),
    ],
)
def test_fp8_is_not_blamed_before_small_values_underflow(
    num_bits: Any, times: float, levels: tuple[int, int] | None
) -> None:
    found = find(make_quantizer(num_bits, amax=times), make_values(times=times))

    assert (None if found is None else (found.levels, found.levels_count)) == levels


def test_a_range_too_wide_by_itself_is_no_outlier_s() -> None:
    # 448 / (50 * 1000) is a subnormal of E4M3: the range is why, with an outlier or without.
    assert find(make_quantizer((4, 3), amax=50_000.0), make_values()) is None

    stale = find(make_quantizer(8, amax=500.0), make_values())
    assert stale is not None
    assert stale.range_ratio == pytest.approx(1 / 50)  # still ten times too wide
    assert stale.levels == 0  # 127 / 500 = 0.25


@pytest.mark.parametrize(("amax", "ratio"), [(0.5, 1.0), (10.0, 0.1)])
def test_a_range_that_clips_is_not_made_to_clip_more(amax: float, ratio: float) -> None:
    found = find(make_quantizer(amax=amax), make_values())

    if amax < 1:
        assert found is None
    else:
        assert found is not None
        assert found.range_ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"amax": math.nan},
        {"amax": 0.0},
        {"num_bits": (4, 3), "use_constant_amax": True},
        {"amax": torch.full((1, 1, CHANNELS), 50.0), "axis": -1},
    ],
    ids=["no range", "NaN", "zero", "constant", "per channel"],
)
def test_without_one_static_range_there_are_none(settings: dict[str, Any]) -> None:
    assert find(make_quantizer(**settings), make_values()) is None


def test_a_range_that_is_there_and_not_used_has_none() -> None:
    quantizer = make_quantizer(amax=50.0)
    quantizer._dynamic = True

    assert find(quantizer, make_values()) is None


@pytest.mark.parametrize("slot", ["weight", "output", "softmax"])
def test_only_what_has_channels_is_looked_at(slot: str) -> None:
    assert find(make_quantizer(amax=50.0), make_values(), name=f"a.{slot}_quantizer") is None


def test_a_convolution_has_its_channels_in_the_second_dimension() -> None:
    values = make_values().movedim(-1, 1).unsqueeze(2)
    quantizer = make_quantizer(amax=50.0)
    found = find(quantizer, values, name="stem.input_quantizer", owner=nn.Conv2d(64, 2, 1))

    assert found is not None
    assert (found.channels, found.place, found.smoothable) == ((17, 40), "stem", False)
    assert find(quantizer, values) is None


def test_smoothquant_scales_before_and_so_does_the_look() -> None:
    quantizer, owner = make_quantizer(amax=50.0), nn.Linear(CHANNELS, 4)
    owner.weight_quantizer = make_quantizer()
    assert find(quantizer, make_values(), owner=owner) is not None
    scale = torch.ones(CHANNELS)
    scale[[17, 40]] = 1 / 50
    quantizer.pre_quant_scale = scale
    assert find(quantizer, make_values(), owner=owner) is None

    quantizer.pre_quant_scale = torch.full((CHANNELS,), 2.0)
    quantizer.amax = torch.tensor(100.0)
    found = find(quantizer, make_values(), owner=owner)
    assert found is not None
    assert found.levels == 3
    assert not found.smoothable


@pytest.mark.parametrize(
    ("bits", "weight_bits", "name", "smoothable"),
    [
        (8, 8, NAME, True),
        (8, (4, 3), NAME, False),
        (4, 8, NAME, False),
        (8, 8, "h.0.attn.k_bmm_quantizer", False),
    ],
)
def test_smoothquant_is_for_linear_layers_in_int8(
    bits: Any, weight_bits: Any, name: str, smoothable: bool
) -> None:
    owner = nn.Linear(CHANNELS, 4)
    owner.weight_quantizer = make_quantizer(weight_bits)
    found = find(make_quantizer(bits, amax=50.0), make_values(), name=name, owner=owner)

    assert found is not None
    assert found.smoothable is smoothable
    assert found.place == ("mlp.fc1" if name == NAME else "attn.k_bmm")


class Layer(nn.Module):
    """Quantizers where the names of a model lead to them."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(CHANNELS, 4)
        self.fc.input_quantizer = quantizer


def find_planted(quantizer: Any) -> OutlierChannels:
    found = find(quantizer, make_values(), name="fc.input_quantizer")
    assert found is not None
    return found


def test_the_others_are_rounded_in_a_range_of_their_own_and_outliers_as_before() -> None:
    quantizer, values = make_quantizer(amax=50.0), make_values()
    module, name = Layer(quantizer), "fc.input_quantizer"
    found = find(quantizer, values, name=name)
    assert found is not None
    plain = quantizer(values)

    with set_apart(module, {name: quantizer}, [found]):
        apart = quantizer(values)
        quantizer.disable()
        assert torch.equal(quantizer(values), values)
        quantizer.enable()

    own = make_quantizer(amax=1.0)(values)
    others = [channel for channel in range(CHANNELS) if channel not in found.channels]
    assert torch.equal(apart[..., others], own[..., others])
    assert torch.equal(apart[..., [17, 40]], plain[..., [17, 40]])
    assert torch.equal(quantizer(values), plain)
    assert float(quantizer.amax) == 50.0
    assert "forward" not in vars(quantizer)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("factor", [1.0, 1000.0, 0.5])
def test_the_weights_of_outliers_are_rounded_in_a_range_of_their_own(
    axis: int | None, factor: float
) -> None:
    weight = torch.rand(4, CHANNELS, generator=torch.Generator().manual_seed(1)) + 0.5
    weight[:, [17, 40]] /= 50
    weight[2] = 0
    whole, part = weight, weight[:, [17, 40]]
    dims = (0, 1) if axis is None else (1,)
    amax = whole.amax(dim=dims, keepdim=axis is not None) * factor
    amax[amax == 0] = 1
    weights = make_quantizer(axis=axis, amax=amax)
    plain = weights(weight)
    inputs = make_quantizer(amax=50.0)
    module = Layer(inputs)
    quantizers = {"fc.input_quantizer": inputs, "fc.weight_quantizer": weights}

    with set_apart(module, quantizers, [find_planted(inputs)]):
        apart = weights(weight)
        grouped = weights(weight[:, :32])

    # Too wide by as much as the range of all is; one that clips does so no less.
    own = part.amax(dim=dims, keepdim=axis is not None) * max(factor, 1.0)
    own[own == 0] = 1
    others = [channel for channel in range(CHANNELS) if channel not in (17, 40)]
    assert torch.equal(apart[:, others], plain[:, others])
    assert torch.allclose(apart[:, [17, 40]], make_quantizer(axis=axis, amax=own)(part))
    assert torch.equal(grouped, plain[:, :32])  # not the channels that were looked at
    assert torch.equal(weights(weight), plain)


def test_a_weight_that_is_clipped_is_clipped_as_before() -> None:
    weight = torch.rand(4, CHANNELS, generator=torch.Generator().manual_seed(1))
    weights, inputs = make_quantizer(amax=0.3), make_quantizer(amax=50.0)
    quantizers = {"fc.input_quantizer": inputs, "fc.weight_quantizer": weights}
    plain = weights(weight)

    with set_apart(Layer(inputs), quantizers, [find_planted(inputs)]):
        assert torch.equal(weights(weight), plain)


@pytest.mark.parametrize(
    "settings", [{}, {"amax": torch.ones(1, CHANNELS), "axis": 1}], ids=["no range", "by column"]
)
def test_weights_without_such_a_range_are_rounded_as_before(settings: dict[str, Any]) -> None:
    weight = torch.rand(4, CHANNELS, generator=torch.Generator().manual_seed(1))
    weight[:, [17, 40]] /= 50
    weights, inputs = make_quantizer(**settings), make_quantizer(amax=50.0)
    quantizers = {"fc.input_quantizer": inputs, "fc.weight_quantizer": weights}
    plain = weights(weight)

    with set_apart(Layer(inputs), quantizers, [find_planted(inputs)]):
        assert torch.equal(weights(weight), plain)


def test_looking_leaves_the_quantizer_as_it_was() -> None:
    quantizer = make_quantizer(amax=50.0)
    calls: list[int] = []
    quantizer.register_forward_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}

    assert find(quantizer, make_values()) is not None
    assert calls == []
    assert all(torch.equal(state[n], v) for n, v in quantizer.state_dict().items())
