"""Outlier channels for the reference model, put in without changing what it computes.

Trained CLIPs have a few channels behind each LayerNorm that are many times larger than the
rest; they are what makes careless INT8 recipes fail. A model as small as the reference has none,
so they are put in here: gain and bias of a few channels of a norm are multiplied by a power of
two, the columns of the following weights that read these channels are divided by it. Both are
exact, in FP16 too, because columns are rounded first to what stays representable.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_NORM = re.compile(r"^(?P<block>.*encoder\.layers\.\d+\.)layer_norm(?P<place>[12])\.weight$")
_READERS: dict[str, tuple[str, ...]] = {
    "1": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "2": ("mlp.fc1.weight",),
}
_HALF_SMALLEST = 2.0**-24


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierPlan:
    """How many channels behind each norm of each block are made larger, and by what factor.

    ``factor`` is a power of two, at least 2.
    """

    channels: int = 3
    factor: int = 32

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        if self.factor < 2 or self.factor & (self.factor - 1):
            raise ValueError(f"factor must be a power of two, at least 2, got {self.factor}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSite:
    """One norm, the weights that read it, and the channels that carry the outliers."""

    norm: str
    readers: tuple[str, ...]
    channels: tuple[int, ...]


def find_sites(state: Mapping[str, Tensor], *, plan: OutlierPlan) -> tuple[NormSite, ...]:
    """Returns the two norms of every block, with the channels that the readers weigh most.

    ``state`` is the state dict of a ``transformers.CLIPModel``. Raises ValueError when it has no
    such norm, or fewer channels than the plan asks for.
    """
    sites = []
    for name, gain in state.items():
        match = _NORM.match(name)
        if match is None:
            continue
        if len(gain) < plan.channels:
            raise ValueError(f"{name} has {len(gain)} channels, fewer than {plan.channels}")
        readers = tuple(match["block"] + reader for reader in _READERS[match["place"]])
        columns = torch.cat([state[reader].double() for reader in readers])
        weight = gain.double().abs() * columns.norm(dim=0)
        chosen = weight.argsort(descending=True, stable=True)[: plan.channels]
        sites.append(
            NormSite(
                norm=name.removesuffix(".weight"),
                readers=readers,
                channels=tuple(sorted(int(channel) for channel in chosen)),
            )
        )
    if not sites:
        raise ValueError("no encoder.layers.N.layer_norm1.weight in this state dict")
    return tuple(sites)


def to_half(
    state: Mapping[str, Tensor], *, sites: Sequence[NormSite], plan: OutlierPlan
) -> dict[str, Tensor]:
    """Returns the floating tensors of ``state`` in FP16, ready for an exact `add_outliers`.

    The columns of the outlier channels are rounded to multiples of 2**-24 * factor, so that they
    are still FP16 numbers when divided by the factor.
    """
    half = {
        name: value.half() if value.is_floating_point() else value.clone()
        for name, value in state.items()
    }
    grid = _HALF_SMALLEST * plan.factor
    for site in sites:
        channels = list(site.channels)
        for reader in site.readers:
            columns = (half[reader][:, channels].double() / plan.factor).half().double()
            columns = (columns / _HALF_SMALLEST).round() * grid
            half[reader][:, channels] = columns.half()
    return half


def add_outliers(
    state: Mapping[str, Tensor], *, sites: Sequence[NormSite], plan: OutlierPlan
) -> dict[str, Tensor]:
    """Returns a copy of ``state`` with the outliers, in the same dtypes, computing the same.

    Raises ValueError where a division or multiplication would not be exact.
    """
    changed = {name: value.clone() for name, value in state.items()}
    for site in sites:
        channels = list(site.channels)
        for name in (f"{site.norm}.weight", f"{site.norm}.bias"):
            changed[name][channels] *= plan.factor
            if not torch.equal(changed[name][channels] / plan.factor, state[name][channels]):
                raise ValueError(f"{name}: times {plan.factor} is not exact in {state[name].dtype}")
        for reader in site.readers:
            changed[reader][:, channels] /= plan.factor
            back = changed[reader][:, channels] * plan.factor
            if not torch.equal(back, state[reader][:, channels]):
                raise ValueError(
                    f"{reader}: divided by {plan.factor} is not exact in {state[reader].dtype}; "
                    "use to_half first"
                )
    return changed


def main(arguments: Sequence[str] | None = None) -> None:
    """Turns a trained FP32 checkpoint into the FP16 one with outliers that ships."""
    from transformers import CLIPModel

    from tools.reference.train import save_checkpoint

    default = OutlierPlan()
    parser = argparse.ArgumentParser(description="FP32 checkpoint -> FP16 with outlier channels")
    parser.add_argument("--model", type=Path, required=True, help="directory that train wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--channels", type=int, default=default.channels)
    parser.add_argument("--factor", type=int, default=default.factor)
    given = parser.parse_args(arguments)
    plan = OutlierPlan(channels=given.channels, factor=given.factor)
    model = CLIPModel.from_pretrained(given.model, dtype=torch.float32)
    sites = find_sites(model.state_dict(), plan=plan)
    half = to_half(model.state_dict(), sites=sites, plan=plan)
    model.half().load_state_dict(add_outliers(half, sites=sites, plan=plan))
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.dtype = torch.float16
    save_checkpoint(model, given.out)
    for site in sites:
        print(f"{site.norm}: channels {', '.join(map(str, site.channels))} x {plan.factor}")


if __name__ == "__main__":
    main()
