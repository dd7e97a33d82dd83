"""Trains the reference CLIP from nothing: ``python -m tools.reference.train --out DIR``.

The loss is CLIP's contrastive loss over captions of changing detail. A caption such as "a red
circle" may be true of several images of a batch; every true pair is a positive. Linear heads that
read shape, colour, size, texture, position and relation off the pooled image features speed the
image tower up; they are thrown away at the end. DIR always holds a usable model: it is rewritten at
every checkpoint from the averaged weights.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pytest_quantgate.reference import digits, scenes
from pytest_quantgate.reference.scenes import SceneAttributes
from tools.reference import words
from tools.reference.embed import (
    IMAGE_MEAN,
    IMAGE_STD,
    embed_classes,
    embed_images,
    normalised,
    text_features,
)

_COLUMNS: tuple[tuple[str, int], ...] = (
    ("shape", len(scenes.SHAPES)),
    ("colour", len(scenes.COLOURS)),
    ("size", len(scenes.SIZES)),
    ("texture", len(scenes.TEXTURES)),
    ("position", len(scenes.POSITIONS)),
    ("relation", len(scenes.RELATIONS)),
    ("other_shape", len(scenes.SHAPES)),
    ("other_colour", len(scenes.COLOURS)),
    ("other_texture", len(scenes.TEXTURES)),
    ("digit", 10),
)
_DIGIT_COLUMN = 9
_LEADS = ("", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Everything that decides the outcome, apart from library versions and threads."""

    steps: int = 4700
    batch_size: int = 256
    single_scenes: int = 160_000
    relation_scenes: int = 80_000
    digits_per_batch: int = 12
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 300
    average_decay: float = 0.998
    head_weight: float = 0.5
    seed: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    images: NDArray[np.uint8]  # [N, 48, 48, 3]
    attributes: SceneAttributes
    columns: NDArray[np.int16]  # [N, 10]
    digits: digits.Digits


def build_model() -> Any:
    """Returns an untrained ``transformers.CLIPModel`` of the reference's size, in FP32."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={
            "vocab_size": len(words.vocabulary()),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": words.CONTEXT_LENGTH,
            "hidden_act": "quick_gelu",
            "projection_dim": 128,
            "pad_token_id": words.PAD_ID,
            "bos_token_id": words.BOS_ID,
            "eos_token_id": words.EOS_ID,
        },
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": scenes.IMAGE_SIZE_PX,
            "patch_size": 8,
            "hidden_act": "quick_gelu",
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


def train(
    *,
    plan: TrainingPlan,
    out: Path,
    threads: int,
    device: str,
    render_processes: int,
    resume: bool,
    checkpoint_every: int,
    max_minutes: float,
) -> None:
    """Trains and leaves a Hugging Face checkpoint directory at ``out`` (FP32, without outliers).

    On a machine too slow for ``plan.steps`` in ``max_minutes`` the learning rate falls by the
    clock instead, and training ends there; ``training.json`` says how many steps were made.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    started_s = time.monotonic()
    data = _load(plan, processes=render_processes)
    print(f"rendered {len(data.images)} scenes in {time.monotonic() - started_s:.0f} s", flush=True)

    model = build_model().to(device)
    heads = nn.Linear(
        model.config.vision_config.hidden_size, sum(classes for _, classes in _COLUMNS)
    ).to(device)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    decayed = [p for p in [*model.parameters(), *heads.parameters()] if p.ndim >= 2]
    plain = [p for p in [*model.parameters(), *heads.parameters()] if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": plan.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=plan.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    first_step, trained_s = 0, 0.0
    state_path = out / "training_state.pt"
    if resume and state_path.is_file():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        average, first_step, trained_s = state["average"], state["step"], state["trained_s"]
    known = words.vocabulary()
    held_out = scenes.render_scenes(split="calibration", count=1000)
    started_s = time.monotonic() - trained_s
    seen_loss = 0.0
    for step in range(first_step, plan.steps):
        late = (time.monotonic() - started_s) / (60 * max_minutes)
        rate = _learning_rate(plan, step, late=late)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels, ids, wanted, columns = _batch(plan, data, step=step, known=known)
        pixels, ids = pixels.to(device), ids.to(device)
        wanted, columns = wanted.to(device), columns.to(device)
        vision = model.vision_model(pixel_values=pixels)
        image_unit = nn.functional.normalize(model.visual_projection(vision.pooler_output), dim=-1)
        logits = model.logit_scale.exp() * image_unit @ text_features(model, ids).T
        loss = _contrastive(logits, wanted)
        if plan.head_weight:
            loss = loss + plan.head_weight * _head_loss(heads(vision.pooler_output), columns)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*decayed, *plain], 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
            decay = min(plan.average_decay, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - decay)
        seen_loss += float(loss.detach())
        done = step + 1
        if done % 50 == 0:
            spent_s = time.monotonic() - started_s
            rate_per_s = (done * plan.batch_size) / spent_s
            print(
                f"step {done} loss {seen_loss / 50:.3f} lr {rate:.2e} "
                f"{spent_s:.0f} s {rate_per_s:.0f} samples/s",
                flush=True,
            )
            seen_loss = 0.0
        last = done == plan.steps or late >= 1
        if done % checkpoint_every == 0 or last:
            spent_s = time.monotonic() - started_s
            averaged = build_model()
            averaged.load_state_dict({name: value.cpu() for name, value in average.items()})
            averaged.eval()
            accuracy = _accuracy(averaged, held_out)
            print(f"step {done} held-out top-1 {accuracy:.2%}", flush=True)
            save_checkpoint(averaged, out)
            record = {
                "step": done,
                "samples": done * plan.batch_size,
                "training_seconds": round(spent_s),
                "threads": threads,
                "device": device,
                "torch": torch.__version__,
                "plan": {name: getattr(plan, name) for name in plan.__dataclass_fields__},
            }
            (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
            state = {
                "model": model.state_dict(),
                "heads": heads.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": done,
                "trained_s": spent_s,
            }
            part = state_path.with_suffix(".part")
            torch.save(state, part)
            part.replace(state_path)
        if last:
            break


def save_checkpoint(model: Any, directory: Path) -> None:
    """Writes weights, config, tokenizer and image processor; the weights keep their dtype."""
    from transformers import CLIPImageProcessor

    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # safetensors makes it private
    words.save_tokenizer(directory)
    size_px = scenes.IMAGE_SIZE_PX
    CLIPImageProcessor(
        do_resize=True,
        size={"shortest_edge": size_px},
        do_center_crop=True,
        crop_size={"height": size_px, "width": size_px},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
        do_convert_rgb=True,
    ).save_pretrained(directory)


def _render_part(part: tuple[str, int, int]) -> tuple[NDArray[np.uint8], SceneAttributes]:
    kind, start, count = part
    assert kind in ("single", "relation")
    rendered = scenes.render_scenes(
        split="train", kind="single" if kind == "single" else "relation", start=start, count=count
    )
    return rendered.images, rendered.attributes


def _load(plan: TrainingPlan, *, processes: int) -> _Data:
    chunk = 4096
    parts = [
        (kind, start, min(chunk, total - start))
        for kind, total in (("single", plan.single_scenes), ("relation", plan.relation_scenes))
        for start in range(0, total, chunk)
    ]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        rendered = pool.map(_render_part, parts, chunksize=1)
    attributes = SceneAttributes(
        **{
            name: np.concatenate([getattr(a, name) for _, a in rendered])
            for name, _ in _COLUMNS[:_DIGIT_COLUMN]
        }
    )
    columns = np.full((len(attributes.shape), len(_COLUMNS)), -1, dtype=np.int16)
    for index, (name, _) in enumerate(_COLUMNS[:_DIGIT_COLUMN]):
        columns[:, index] = getattr(attributes, name)
    return _Data(
        images=np.concatenate([images for images, _ in rendered]),
        attributes=attributes,
        columns=columns,
        digits=digits.load_digit_images(split="train"),
    )


def _batch(
    plan: TrainingPlan, data: _Data, *, step: int, known: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns pixels [B, 3, 48, 48], ids [B, T], true pairs [B, B] and columns [B, 10]."""
    stream = np.random.RandomState([plan.seed, step])
    count = plan.batch_size - plan.digits_per_batch
    chosen = stream.randint(0, len(data.images), size=count)
    captions: list[str] = []
    said = np.full((plan.batch_size, len(_COLUMNS)), -1, dtype=np.int16)
    for row, index in enumerate(chosen):
        size, texture, position, other = (stream.random_sample(4) < 0.7).tolist()
        if stream.random_sample() < 0.25:
            label = int(data.attributes.shape[index]) * 10 + int(data.attributes.colour[index])
            template = scenes.TEMPLATES[stream.randint(len(scenes.TEMPLATES))]
            captions.append(template.replace("{c}", scenes.CLASS_NAMES[label]))
            size = texture = position = other = False
        else:
            lead = _LEADS[stream.randint(len(_LEADS))]
            caption = scenes.describe_one(
                data.attributes,
                int(index),
                size=size,
                texture=texture,
                position=position,
                other=other,
            )
            captions.append(lead + caption)
        spoken = (
            True,
            True,
            size,
            texture,
            position,
            other,
            other,
            other,
            other and texture,
            False,
        )
        said[row] = np.where(spoken, data.columns[index], -1)
    is_digit = stream.randint(0, len(data.digits.labels), size=plan.digits_per_batch)
    drawn = _vary_digits(data.digits.images[is_digit], stream)
    labels = data.digits.labels[is_digit]
    for label in labels:
        template = digits.TEMPLATES[stream.randint(len(digits.TEMPLATES))]
        captions.append(template.replace("{c}", digits.CLASS_NAMES[label]))
    said[count:, _DIGIT_COLUMN] = labels
    columns = np.full((plan.batch_size, len(_COLUMNS)), -1, dtype=np.int16)
    columns[:count] = data.columns[chosen]
    columns[count:, _DIGIT_COLUMN] = labels
    wanted = ((said[None] == -1) | (said[None] == columns[:, None])).all(axis=2)
    ids = words.encode(captions, known=known)
    longest = int((ids != words.PAD_ID).sum(axis=1).max())
    return (
        normalised(np.concatenate([data.images[chosen], drawn])),
        torch.from_numpy(ids[:, :longest]),
        torch.from_numpy(wanted),
        torch.from_numpy(columns.astype(np.int64)),
    )


def _vary_digits(images: NDArray[np.uint8], stream: np.random.RandomState) -> NDArray[np.uint8]:
    """Moves each digit by up to 4 px and changes its light, its tint and its noise."""
    varied = np.empty_like(images)
    for row, image in enumerate(images):
        moved = np.roll(image, tuple(stream.randint(-4, 5, size=2)), axis=(0, 1)).astype(np.float64)
        light = stream.uniform(0.7, 1.1, size=(1, 1, 3)) + stream.uniform(-0.1, 0.1)
        noise = stream.normal(0, stream.uniform(0, 20), size=image.shape)
        varied[row] = np.clip(moved * light + noise, 0, 255).astype(np.uint8)
    return varied


def _contrastive(logits: Tensor, wanted: Tensor) -> Tensor:
    """Returns the mean of both directions; a row's true pairs share its probability evenly."""
    true = wanted.float()
    by_image = true / true.sum(dim=1, keepdim=True)
    by_text = true.T / true.T.sum(dim=1, keepdim=True)
    return (
        nn.functional.cross_entropy(logits, by_image)
        + nn.functional.cross_entropy(logits.T, by_text)
    ) / 2


def _head_loss(outputs: Tensor, columns: Tensor) -> Tensor:
    total = outputs.new_zeros(())
    for index, part in enumerate(torch.split(outputs, [classes for _, classes in _COLUMNS], dim=1)):
        known = columns[:, index] >= 0
        if bool(known.any()):
            total = total + nn.functional.cross_entropy(
                part, columns[:, index], ignore_index=-1, reduction="sum"
            ) / len(columns)
    return total


def _learning_rate(plan: TrainingPlan, step: int, *, late: float) -> float:
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    share = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    share = min(1.0, max(share, late))
    return plan.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


def _accuracy(model: Any, held_out: scenes.Scenes) -> float:
    classes = embed_classes(model, names=scenes.CLASS_NAMES, templates=scenes.TEMPLATES)
    answers = (embed_images(model, held_out.images) @ classes.T).argmax(dim=1).numpy()
    return float((answers == held_out.labels).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and trains."""
    plan = TrainingPlan()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--single-scenes", type=int, default=plan.single_scenes)
    parser.add_argument("--relation-scenes", type=int, default=plan.relation_scenes)
    parser.add_argument("--learning-rate", type=float, default=plan.learning_rate)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--render-processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/training_state.pt")
    parser.add_argument("--max-minutes", type=float, default=24 * 60.0, help="end training by then")
    given = parser.parse_args(arguments)
    train(
        plan=TrainingPlan(
            steps=given.steps,
            seed=given.seed,
            single_scenes=given.single_scenes,
            relation_scenes=given.relation_scenes,
            learning_rate=given.learning_rate,
        ),
        out=given.out,
        threads=given.threads,
        device=given.device,
        render_processes=given.render_processes,
        resume=given.resume,
        checkpoint_every=given.checkpoint_every,
        max_minutes=given.max_minutes,
    )


if __name__ == "__main__":
    main()
