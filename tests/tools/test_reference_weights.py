"""The shipped checkpoint is what its training made, and as good as its card says."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from pytest_quantgate.reference import digits, scenes, weights_dir
from tools.reference import words
from tools.reference.embed import normalised
from tools.reference.evaluate import evaluate, quantize
from tools.reference.outliers import OutlierPlan


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(weights_dir(), dtype=torch.float32).eval()


def test_the_weights_have_the_outliers(model: Any) -> None:
    plan = OutlierPlan()
    for tower in (model.text_model, model.vision_model):
        for layer in tower.encoder.layers:
            for norm in (layer.layer_norm1, layer.layer_norm2):
                gains = norm.weight.detach().abs().sort(descending=True).values
                assert gains[plan.channels - 1] > 4 * gains[plan.channels]


def test_auto_classes_load_it_and_the_tokenizer_is_ours() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights_dir())
    texts = [
        "a red circle",
        "An outlined orange crescent left of a striped blue square",
        "a photo of the number 7",
        "a zebra " + "a " * 30,
        *scenes.render_scenes(split="test", kind="mixed", count=64).captions,
    ]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np")["input_ids"]
    assert np.array_equal(ids, words.encode(texts, known=words.vocabulary()))
    assert (ids.max(axis=1) < len(tokenizer)).all()
    assert ((ids == words.EOS_ID).sum(axis=1) == 1).all()


def test_no_caption_nor_prompt_is_cut_or_unknown() -> None:
    known = words.vocabulary()
    prompts = [
        template.replace("{c}", name)
        for room in (scenes, digits)
        for template in room.TEMPLATES
        for name in room.CLASS_NAMES
    ]
    captions = scenes.render_scenes(split="train", kind="mixed", count=400).captions
    for text in (*prompts, *captions):
        assert len(text.split()) <= words.CONTEXT_LENGTH - 2, text
        assert all(word in known for word in text.split()), text


def test_the_image_processor_does_what_training_did() -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(weights_dir())
    images = scenes.render_scenes(split="test", count=4).images
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels, normalised(images), atol=1e-6)


def test_a_text_means_the_same_with_more_padding(model: Any) -> None:
    ids = torch.from_numpy(words.encode(["a red circle"], known=words.vocabulary()))
    with torch.no_grad():
        whole = model.text_model(input_ids=ids).pooler_output
        cut = model.text_model(input_ids=ids[:, :5]).pooler_output
    assert torch.allclose(whole, cut, atol=1e-5)


def test_the_figures_hold_on_a_part(model: Any) -> None:
    figures = evaluate(model, scene_count=1000, retrieval_count=300)
    assert 0.70 < figures.scenes_acc1 < 0.97
    assert figures.digits_acc1 >= 0.90
    assert figures.image_retrieval_recall5 > 0.40
    assert figures.text_retrieval_recall5 > 0.40
    assert figures.digits_count == 596


# ModelOpt's plugins import parts of torch that are on their way out.
@pytest.mark.filterwarnings("ignore")
def test_careless_int8_hurts_and_fp8_does_not(model: Any) -> None:
    pytest.importorskip("modelopt")
    top1 = {}
    for recipe in ("none", "int8", "fp8"):
        quantized = quantize(deepcopy(model), recipe=recipe)
        top1[recipe] = evaluate(quantized, scene_count=500, retrieval_count=1).scenes_acc1
    assert top1["none"] - top1["int8"] > 0.01
    assert top1["none"] - top1["fp8"] < 0.02


def test_wrong_arguments_are_named(model: Any) -> None:
    with pytest.raises(ValueError, match="counts must be positive, got 0 and 1"):
        evaluate(model, scene_count=0, retrieval_count=1)
    with pytest.raises(ValueError, match="'int4' is not a recipe; recipes: none, fp8"):
        quantize(model, recipe="int4")
