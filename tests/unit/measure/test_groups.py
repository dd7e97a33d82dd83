"""Quantizers in groups by block and kind, and patterns that match exactly one group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.evidence.audit import Audit, Module, Quantizer
from pytest_quantgate.measure.groups import (
    block_prefix,
    exclude_patterns,
    group_quantizers,
)
from pytest_quantgate.measure.quantizers import matches
from pytest_quantgate.quantization.quantizers import block_of, owner_of, slot_of, tower_of


def match(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def make_quantizer(name: str, *, enabled: bool = True) -> Quantizer:
    module = owner_of(name)
    return Quantizer(
        name=name,
        module=module,
        module_class="Linear",
        slot=slot_of(name),
        tower=tower_of(module),
        block=block_of(name),
        enabled=enabled,
        format="E4M3",
        granularity="per-tensor",
        dynamic=False,
        amax_min=1.0,
        amax_max=1.0,
        amax_finite=True,
        amax_count=1,
        tower_calls={"vision": 1},
        changed=True,
    )


def make_audit(*names: str, off: tuple[str, ...] = (), attentions: tuple[str, ...] = ()) -> Audit:
    modules: Any = tuple(
        Module(
            name=name, class_name="X", kind="attention", tower="vision", block=0, weights_count=0
        )
        for name in attentions
    )
    return Audit(
        towers=("vision", "text"),
        modules=modules,
        quantizers=tuple(make_quantizer(name, enabled=name not in off) for name in names),
        operations=(),
        excludes=(),
        intended=names,
        disabled_by=(),
        recipe_name="fp8",
        formats=("E4M3",),
    )


def layer(name: str) -> tuple[str, str]:
    return f"{name}.input_quantizer", f"{name}.weight_quantizer"


def hugging_face_names(blocks: int = 12) -> list[str]:
    names = [*layer("vision_model.embeddings.patch_embedding"), *layer("visual_projection")]
    for tower in ("vision", "text"):
        for index in range(blocks):
            block = f"{tower}_model.encoder.layers.{index}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names += layer(f"{block}.self_attn.{part}")
            names += [f"{block}.self_attn.{slot}_bmm_quantizer" for slot in "qkv"]
            names += [f"{block}.self_attn.bmm2_output_quantizer"]
            names += [*layer(f"{block}.mlp.fc1"), *layer(f"{block}.mlp.fc2")]
    return names


def open_clip_names() -> list[str]:
    names = [*layer("visual.conv1"), "token_embedding.weight_quantizer"]
    for tower in ("visual.transformer", "transformer"):
        for index in range(2):
            block = f"{tower}.resblocks.{index}"
            names += [*layer(f"{block}.attn.out_proj"), *layer(f"{block}.mlp.c_fc")]
            names += [*layer(f"{block}.mlp.c_proj"), f"{block}.attn.q_bmm_quantizer"]
    return names


def timm_names() -> list[str]:
    names = []
    for index in range(2):
        block = f"visual.trunk.blocks.{index}"
        names += [*layer(f"{block}.attn.qkv"), *layer(f"{block}.attn.proj")]
        names += [*layer(f"{block}.mlp.fc1"), f"{block}.norm1.input_quantizer"]
    return [*names, *layer("visual.trunk.attn_pool.q"), *layer("visual.trunk.attn_pool.proj")]


def test_a_clip_has_a_group_for_each_block_and_kind() -> None:
    groups = group_quantizers(make_audit(*hugging_face_names(blocks=2)))

    assert [group.label for group in groups] == [
        "vision patch_embedding",
        "vision visual_projection",
        *(
            f"{tower} block {block} {kind}"
            for tower in ("vision", "text")
            for block in (0, 1)
            for kind in ("attention qkv", "attention output", "attention matmuls", "mlp")
        ),
    ]
    qkv = next(group for group in groups if group.label == "text block 1 attention qkv")
    assert len(qkv.quantizers) == 6
    assert (qkv.tower, qkv.block, qkv.kind) == ("text", 1, "attention qkv")


def test_names_of_other_models_are_grouped_by_the_same_rules() -> None:
    open_clip = [group.label for group in group_quantizers(make_audit(*open_clip_names()))]
    timm = [group.label for group in group_quantizers(make_audit(*timm_names()))]

    assert open_clip[:5] == [
        "vision conv1",
        "text token_embedding",
        "vision block 0 attention output",
        "vision block 0 mlp",
        "vision block 0 attention matmuls",
    ]
    assert "text block 1 mlp" in open_clip
    assert timm == [
        "vision block 0 attention qkv",
        "vision block 0 attention output",
        "vision block 0 mlp",
        "vision block 0 norm1",
        "vision block 1 attention qkv",
        "vision block 1 attention output",
        "vision block 1 mlp",
        "vision block 1 norm1",
        "vision q",
        "vision proj",
    ]


def test_an_attention_module_is_known_by_its_kind_too() -> None:
    names = layer("text.layers.0.mixer.query") + layer("text.layers.0.mixer.dense")
    by_name = group_quantizers(make_audit(*names))
    by_kind = group_quantizers(make_audit(*names, attentions=("text.layers.0.mixer",)))

    assert [group.kind for group in by_name] == ["mixer"]
    assert [group.kind for group in by_kind] == ["attention qkv", "attention output"]


def test_equal_labels_say_where_they_are() -> None:
    names = layer("vision.stem.layers.0.fc") + layer("vision.head.layers.0.fc")
    labels = [group.label for group in group_quantizers(make_audit(*names))]

    assert labels == [
        "vision block 0 fc (vision.stem.layers.0)",
        "vision block 0 fc (vision.head.layers.0)",
    ]


def test_what_is_off_is_in_no_group() -> None:
    names = layer("visual_projection")
    groups = group_quantizers(make_audit(*names, off=names[:1]))

    assert [group.quantizers for group in groups] == [names[1:]]


@pytest.mark.parametrize("names", [hugging_face_names(), open_clip_names(), timm_names()])
def test_patterns_match_their_group_and_no_other_quantizer(names: list[str]) -> None:
    groups = group_quantizers(make_audit(*names))

    assert sorted(n for group in groups for n in group.quantizers) == sorted(names)
    for group in groups:
        assert set(match(group.patterns, names)) == set(group.quantizers), group.label
        assert len(group.patterns) <= 2, group.patterns


def test_patterns_are_short() -> None:
    found = {g.label: g.patterns for g in group_quantizers(make_audit(*hugging_face_names()))}
    block = "vision_model.encoder.layers.1"

    assert found["vision patch_embedding"] == ("*patch_embedding*",)
    assert found["vision block 1 mlp"] == (f"{block}.mlp.*",)
    assert found["vision block 1 attention qkv"] == (f"{block}.self_attn.[kqv]_proj.*",)
    assert found["vision block 1 attention matmuls"] == (f"{block}.self_attn.*bmm*",)


def test_parts_of_a_two_step_format_are_matched_as_one() -> None:
    names = ["a.fc.weight_quantizer.0", "a.fc.weight_quantizer.1", "a.fc.input_quantizer"]

    assert exclude_patterns(names[:2], among=names) == ("a.fc.weight_quantizer",)
    assert match(("a.fc.weight_quantizer",), names) == names[:2]


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("vision_model.encoder.layers.11.mlp.fc1", "vision_model.encoder.layers.11"),
        ("transformer.resblocks.3", "transformer.resblocks.3"),
        ("layers.0.blocks.1.attn", "layers.0"),
        ("h.2.attn", "h.2"),
        ("vision_model.encoder.layers", None),
        ("visual_projection", None),
    ],
)
def test_a_block_is_the_outermost_numbered_one(name: str, prefix: str | None) -> None:
    assert block_prefix(name) == prefix


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_choice_of_quantizers_is_matched_exactly(data: Any) -> None:
    names = data.draw(
        st.lists(
            st.builds(
                "{}.layers.{}.{}.{}".format,
                st.sampled_from(("a", "ab")),
                st.integers(0, 12),
                st.sampled_from(("q_proj", "k_proj", "fc", "fc.fc")),
                st.sampled_from(("input_quantizer", "weight_quantizer", "q_bmm_quantizer")),
            ),
            unique=True,
            min_size=1,
            max_size=20,
        )
    )
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    patterns = exclude_patterns(chosen, among=names)

    assert set(match(patterns, names)) == set(chosen)
