"""What sanity measures: the pooled token, texts as the tower reads them, a few answers."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.sanity import Sanity, TaskSanity
from pytest_quantgate.gates.chance import is_left_open, is_settled
from pytest_quantgate.measure.sanity import (
    MAGNITUDES,
    Task,
    count_magnitudes,
    count_operations,
    find_rounded,
    measure_sanity,
    read_texts_of,
    tokenize_short,
)
from pytest_quantgate.measure.texts import Pooling, find_twins
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples

pytestmark = pytest.mark.slow

BOS, END, PAD = 1, 3, 0
SPECIAL = frozenset({BOS, END, PAD})

Load = Callable[..., Encoder]


def pooling(config_end_id: int = END, *, end_id: int | None = END) -> Pooling:
    return Pooling(end_id=end_id, config_end_id=config_end_id, special_ids=SPECIAL)


@pytest.mark.parametrize(
    ("ids", "config", "place", "sound"),
    [
        ((1, 7, 8, 3, 0, 0), 3, 3, True),
        ((1, 7, 8, 3, 3, 3), 3, 3, True),  # padded with the end token, as OpenAI's
        ((1, 7, 8, 9, 5, 3), 3, 5, True),  # cut off at the full length
        ((1, 7, 8, 0, 0, 0), 3, 0, False),  # no end token: the first position
        ((1, 7, 8, 3, 0, 0), 6, 0, False),  # another end token in the config
        ((1, 7, 8, 3, 0, 0), 2, 2, False),  # the largest id is a word's
        ((0, 0, 1, 7, 8, 3), 3, 5, True),  # padded at the left
        ((3, 3, 1, 7, 8, 3), 3, 0, False),  # the first end token is padding
    ],
)
def test_what_is_pooled(ids: tuple[int, ...], config: int, place: int, sound: bool) -> None:
    assert pooling(config).find(ids) == place
    assert pooling(config).is_sound(ids) is sound


def test_a_legacy_config_is_sound_where_the_end_token_is_the_largest() -> None:
    legacy = Pooling(end_id=99, config_end_id=2, special_ids=frozenset({98, 99}))

    assert legacy.find((98, 7, 8, 99, 99)) == 3
    assert legacy.is_sound((98, 7, 8, 99, 99))


def test_without_an_end_token_of_the_tokenizer_the_configs_counts() -> None:
    assert pooling(END, end_id=None).is_sound((1, 7, 3, 0))
    assert not pooling(6, end_id=None).is_sound((1, 7, 3, 0))


@pytest.fixture(scope="module")
def reference() -> Encoder:
    return load_fp16(ModelSpec(where=Where(file="s", line=1), source="reference"))


def round_weights(model: Encoder, to: Callable[[torch.Tensor], torch.Tensor]) -> Encoder:
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                layer.weight.copy_(to(layer.weight))
    return replace(model, module=module)


def to_e4m3(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().max() / 448
    return (weight / scale).to(torch.float8_e4m3fn).to(weight.dtype) * scale


def to_int8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().max() / 127
    return (weight / scale).round() * scale


@pytest.mark.parametrize("to", [to_e4m3, to_int8])
def test_weights_that_were_rounded_before_are_found(
    reference: Encoder, to: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Such an FP16 has lost already what its quantized variant loses."""
    found = find_rounded(round_weights(reference, to))

    assert [fault.finding for fault in found] == ["fp16-rounded"] * 2
    assert [tower in fault.text for tower, fault in zip(reference.tower_names, found, strict=True)]
    assert all(fault.certain for fault in found)


def test_weights_of_any_floating_type_are_no_rounded_ones(reference: Encoder) -> None:
    assert find_rounded(reference) == ()
    for to in (torch.Tensor.half, torch.Tensor.bfloat16):
        assert find_rounded(round_weights(reference, to)) == ()
    # One layer alone may be made of few values.
    module = copy.deepcopy(reference.module)
    with torch.no_grad():
        module.get_parameter("vision_model.encoder.layers.0.mlp.fc1.weight").fill_(0.5)
    assert find_rounded(replace(reference, module=module)) == ()


@pytest.mark.parametrize(("columns", "found"), [(768, True), (128, False)])
def test_rows_with_a_scale_of_their_own_are_told_where_they_are_long(
    columns: int, found: bool
) -> None:
    rows = torch.randn(64, columns, generator=torch.Generator().manual_seed(0))
    rounded = torch.stack([to_int8(row) for row in rows])

    several, plain = (count_magnitudes(w) for w in (rounded, rows.bfloat16().float()))
    assert several is not None
    assert plain is not None
    assert (several <= MAGNITUDES) is found
    assert plain > MAGNITUDES
    assert count_magnitudes(rows[:4, :128]) is None
    assert count_magnitudes(rows.to("meta")) is None


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_the_legacy_position_is_that_of_torch(ids: list[int]) -> None:
    import torch

    assert pooling(2).find(ids) == int(torch.tensor(ids).argmax())
    assert pooling(END).find(ids) == int((torch.tensor(ids) == END).int().argmax())


def test_twins_are_the_first_two_and_all_are_counted() -> None:
    names = ("cat", "dog", "owl", "cow")

    assert find_twins((1, 2, 3, 4), names=names) is None
    found = find_twins((1, 2, 2, 1), names=names)
    assert found is not None
    assert (found.first, found.second, found.names, found.pairs) == (1, 2, ("dog", "owl"), 2)


def test_a_forward_of_vit_l_costs_what_is_published() -> None:
    """162 GFLOP an image at 224 pixels (Radford et al. 2021 give 175 with the projections)."""

    class VisionL:
        hidden_size, intermediate_size, num_hidden_layers = 1024, 4096, 24

    assert count_operations(VisionL(), tokens=257) == pytest.approx(1.62e11, rel=0.01)


# -- on the tiny CLIP ----------------------------------------------------------------------------


@pytest.fixture
def load_damaged(tiny_clip: Path, tmp_path: Path, model_spec: Callable[..., ModelSpec]) -> Load:
    """Load a copy of the tiny CLIP; `<file>=change` edits one of its JSON files."""

    def load(**changes: Callable[[dict[str, Any]], Any]) -> Encoder:
        folder = tmp_path / "clip"
        shutil.copytree(tiny_clip, folder)
        for name, change in changes.items():
            path = folder / f"{name}.json"
            data = json.loads(path.read_text("utf-8"))
            change(data)
            path.write_text(json.dumps(data), encoding="utf-8")
        return load_fp16(model_spec(folder), environ={})

    return load


def scenes(count: int = 200, **changes: Any) -> Samples:
    return replace(load_samples("scenes/test", datasets={}, samples=count, environ={}), **changes)


def measure(model: Encoder, samples: Samples, *, kind: str = "classification") -> Sanity:
    pairs = load_samples("scenes/calibration", datasets={}, samples=2, environ={}, purpose="pairs")
    task = Task(name=f"scenes/{kind}", count=None, first=False, samples=samples)
    return measure_sanity(model, pairs=pairs, tasks=[task], is_settled=is_settled)


def measure_task(model: Encoder, samples: Samples, **options: Any) -> TaskSanity:
    (task,) = measure(model, samples, **options).tasks
    return task


def test_a_sound_model_needs_few_samples(tiny_fp16: Encoder) -> None:
    sanity = measure(tiny_fp16, scenes())

    (task,) = sanity.tasks
    assert sanity.reading.without_end == sanity.reading.pooled_elsewhere == 0
    assert sanity.nonfinite_images == sanity.nonfinite_texts == 0
    assert task.reading.distinct == task.reading.count == 500
    assert task.same_name is task.same_prompt is task.same_embedding is None
    assert task.without_class == ()
    assert is_settled(task.answers)  # type: ignore[arg-type]
    assert not task.answers.whole  # type: ignore[union-attr]


def test_samples_with_labels_and_captions_are_asked_for_what_their_task_is_of(
    tiny_fp16: Encoder,
) -> None:
    """They were asked for captions under the numbers of classes, and looked like chance."""
    samples = scenes(60)
    both = replace(samples, captions=tuple((f"picture {n}",) for n in range(60)))

    labelled, captioned = (
        measure_task(tiny_fp16, both, kind=kind) for kind in ("classification", "retrieval")
    )

    assert labelled == measure_task(tiny_fp16, samples)
    bare = replace(both, labels=None)
    assert captioned == measure_task(tiny_fp16, bare, kind="retrieval")
    assert labelled.answers != captioned.answers


@pytest.mark.parametrize("kind", ["knn", "neighbours"])
def test_of_a_task_without_texts_a_few_images_are_looked_at(
    tiny_fp16: Encoder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = measure_task(tiny_fp16, scenes(40), kind=kind)
    assert (sound.images, sound.images_alike, sound.nonfinite) == (5, 0, 0)
    assert sound.answers is None

    import torch

    def embed(models: Any, samples: Samples, **_: Any) -> list[torch.Tensor]:
        return [torch.ones(len(samples), 4)]

    monkeypatch.setattr("pytest_quantgate.measure.sanity.embed_images", embed)
    assert measure_task(tiny_fp16, scenes(40), kind=kind).images_alike == 5


def test_labels_of_another_colour_are_asked_for_on_all_samples(tiny_fp16: Encoder) -> None:
    samples = scenes(400)
    assert samples.labels is not None
    task = measure_task(
        tiny_fp16,
        replace(
            samples, labels=tuple(label // 10 * 10 + (label + 5) % 10 for label in samples.labels)
        ),
    )

    assert task.answers.whole, "at 1 % chance no part shows that it is under it"  # type: ignore[union-attr]
    assert task.answers.right <= 4  # type: ignore[union-attr]


def test_templates_without_class_and_doubled_names_are_found(tiny_fp16: Encoder) -> None:
    samples = scenes()
    names = (*samples.class_names[:-1], samples.class_names[0])
    braces = measure_task(tiny_fp16, replace(samples, templates=("the {}", "a photo of the {c}")))
    doubled = measure_task(tiny_fp16, replace(samples, class_names=names))

    assert braces.without_class == ((0, "the {}"),)
    assert braces.same_prompt is None, "the other template tells them apart"
    assert doubled.same_name is not None
    assert (doubled.same_name.first, doubled.same_name.second) == (0, 99)


def test_one_template_is_enough_and_an_empty_one_is_none(tiny_fp16: Encoder) -> None:
    one = measure_task(tiny_fp16, scenes(templates=("the {c}",)))
    none = measure_task(tiny_fp16, scenes(templates=()))

    assert one.same_prompt is none.same_prompt is None
    assert (one.templates, none.templates) == (1, 1)


def test_a_template_that_cuts_the_class_off_is_found(tiny_fp16: Encoder) -> None:
    long = "a photo of the " * 10 + "{c}"
    cut = measure_task(tiny_fp16, scenes(templates=(long,)))
    long_and_short = measure_task(tiny_fp16, scenes(templates=("the {c}", long)))

    assert cut.same_prompt is not None
    assert cut.same_prompt.pairs == 99
    assert cut.reading.pooled_elsewhere == 0, "what is cut off still ends with the end token"
    assert long_and_short.same_prompt is None


def test_retrieval_is_asked_for_captions(tiny_fp16: Encoder) -> None:
    pairs = load_samples("scenes/test", datasets={}, samples=40, environ={}, purpose="retrieval")
    task = measure_task(tiny_fp16, pairs, kind="retrieval")
    alike = measure_task(
        tiny_fp16, replace(pairs, captions=(("the red circle",),) * 40), kind="retrieval"
    )

    assert (task.classes, task.templates) == (0, 0)
    assert task.reading.commonest == 1
    assert alike.reading.commonest == 40
    assert not is_settled(alike.answers)  # type: ignore[arg-type]


def test_a_constant_tower_is_found(load_damaged: Load) -> None:
    import torch

    texts, images = load_damaged(), None
    module: Any = texts.module
    with torch.no_grad():
        module.text_model.final_layer_norm.weight.zero_()
    task = measure_task(texts, scenes())
    assert task.same_embedding is not None
    assert task.same_embedding.pairs == task.answers.classes - 1  # type: ignore[union-attr]
    assert task.images_alike == 0

    with torch.no_grad():
        module.vision_model.post_layernorm.weight.zero_()
    images = measure_task(texts, scenes())
    assert images.images_alike == images.answers.samples  # type: ignore[union-attr]


def test_prompts_are_embedded_without_the_padding_behind_them(tiny_fp16: Encoder) -> None:
    """A causal tower that pools the end token reads none of it: the embeddings stay the same."""
    import torch

    texts = ["red", "a photo of the red circle", "a photo of the large green square"]
    reader = read_texts_of(tiny_fp16)

    short = tokenize_short(texts, model=tiny_fp16, reader=reader)

    whole = tiny_fp16.tokenize(texts)
    ends = [ids.index(tiny_fp16.tokenizer.eos_token_id) for ids in whole["input_ids"].tolist()]
    assert short["input_ids"].shape == (3, max(ends) + 1)
    assert short["input_ids"].shape[1] < whole["input_ids"].shape[1]
    torch.testing.assert_close(
        tiny_fp16.encode("text", short), tiny_fp16.encode("text", whole), rtol=1e-5, atol=1e-5
    )


def test_of_a_costly_model_each_task_shows_one_image(
    tiny_fp16: Encoder, load_damaged: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside that of a pair it still shows a tower that is blind; the answers are left open."""
    import torch

    monkeypatch.setattr("pytest_quantgate.measure.sanity.IMAGE_BUDGET", 1.0)
    sound = measure(tiny_fp16, scenes())
    blind = load_damaged()
    module: Any = blind.module
    with torch.no_grad():
        module.vision_model.post_layernorm.weight.zero_()

    (task,) = sound.tasks
    assert (sound.pairs, sound.images) == (2, 1)
    assert (task.images, task.images_alike) == (1, 0)
    assert task.answers is not None
    assert is_left_open(task.answers)
    assert measure_task(blind, scenes()).images_alike == 2


def test_different_images_that_are_one_to_a_costly_model_are_found(
    tiny_fp16: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide pictures of which the processor leaves only the middle, which is black."""
    import numpy as np

    monkeypatch.setattr("pytest_quantgate.measure.sanity.IMAGE_BUDGET", 1.0)
    pictures = []
    for shade in range(40):
        picture = np.zeros((64, 192, 3), dtype=np.uint8)
        picture[:, :16] = shade * 6
        pictures.append(picture)

    assert measure_task(tiny_fp16, scenes(40, images=pictures)).images_alike == 2


def test_a_tower_that_gives_nan_is_counted(load_damaged: Load) -> None:
    model = load_damaged()
    module: Any = model.module
    module.visual_projection.weight.data[0, 0] = float("nan")
    sanity = measure(model, scenes())

    assert sanity.nonfinite_images == 2
    assert sanity.tasks[0].nonfinite == sanity.tasks[0].answers.samples  # type: ignore[union-attr]


def test_a_tokenizer_without_end_token(load_damaged: Load) -> None:
    def cut(tokenizer: dict[str, Any]) -> None:
        tokenizer["post_processor"]["single"].pop()

    sanity = measure(load_damaged(tokenizer=cut), scenes())

    assert sanity.reading.without_end == 2
    assert (sanity.reading.pooled, sanity.reading.position) == ("<|startoftext|>", 0)
    assert sanity.tasks[0].same_prompt is not None
    assert sanity.tasks[0].same_prompt.pairs == 99


def test_a_tokenizer_without_mask_works_as_with_one(load_damaged: Load, tiny_fp16: Encoder) -> None:
    """CLIP's text tower is causal: no token sees the padding behind it."""
    import torch

    maskless = load_damaged(
        tokenizer_config=lambda config: config.update(model_input_names=["input_ids"])
    )
    texts = ["the red circle", "a photo of the blue square"]
    tokens = maskless.tokenize(texts)

    assert bool((tokens["attention_mask"] == 1).all())
    torch.testing.assert_close(
        maskless.encode_text(tokens), tiny_fp16.encode_text(tiny_fp16.tokenize(texts))
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"tokenizer_config": lambda config: config.pop("pad_token")},
            "sanity.no-padding-token",
            "clip: its tokenizer has no padding token: set pad_token in tokenizer_config.json",
        ),
        (
            {"tokenizer": lambda data: data["model"]["vocab"].update(circle=500)},
            "sanity.token-beyond-table",
            "token 500 ('circle') of 'the red circle' lies behind the embedding table of 70 rows",
        ),
        (
            {
                "preprocessor_config": lambda config: config.update(
                    size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
                )
            },
            "sanity.image-size",
            "its image processor makes images of 3 x 224 x 224 (channels, height, width), the "
            "vision tower takes 3 x 48 x 48: set size and crop_size in preprocessor_config.json",
        ),
    ],
)
def test_what_cannot_run_has_one_message(
    load_damaged: Load, changes: dict[str, Any], code: str, words: str
) -> None:
    model = load_damaged(**changes)
    samples = scenes(templates=("the red circle",))

    with pytest.raises(ModelError) as caught:
        measure(model, samples)

    assert caught.value.code == code
    assert words in str(caught.value)
