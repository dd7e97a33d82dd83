"""Trains the weights of the tests' tiny CLIP: `python tests/train_tiny_clip.py`.

A random model answers by chance, which the sanity gate rightly refuses. This one, two layers of 32
channels a tower, sees about one scene in five right. Training
takes three minutes on one core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ASSET = Path(__file__).parent / "assets" / "tiny_clip.safetensors"

SCENES = 12_000
STEPS = 4_000
BATCH = 128


def make_tiny_clip() -> tuple[Any, Any, Any]:
    """Return the untrained model with the reference model's tokenizer and image processor."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    from pytest_quantgate.reference import weights_dir

    tokenizer = AutoTokenizer.from_pretrained(weights_dir())
    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={
            **common,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**common, "image_size": 48, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    return CLIPModel(config), tokenizer, CLIPImageProcessor.from_pretrained(weights_dir())


def save_tiny_clip(folder: Path) -> Path:
    """Write the trained model into a folder as a checkpoint, and return the folder."""
    from safetensors.torch import load_file

    module, tokenizer, processor = make_tiny_clip()
    module.half().load_state_dict(load_file(ASSET))
    for part in (module, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def train() -> Any:
    """Return the model after a contrastive training on the calibration split of the scenes."""
    import torch
    from torch.nn import functional

    from pytest_quantgate.tasks.registry import load_samples

    module, tokenizer, processor = make_tiny_clip()
    scenes = load_samples("scenes/calibration", datasets={}, samples=SCENES, environ={})
    pixels = torch.cat(
        [
            processor(images=list(scenes.images[i : i + 500]), return_tensors="pt")["pixel_values"]
            for i in range(0, SCENES, 500)
        ]
    )
    labels = torch.tensor(scenes.labels)
    texts = [f"the {name}" for name in scenes.class_names]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        chosen = torch.randint(SCENES, (BATCH,), generator=generator)
        images = module.visual_projection(
            module.vision_model(pixel_values=pixels[chosen]).pooler_output
        )
        classes = module.text_projection(module.text_model(**tokens).pooler_output)
        logits = 20 * functional.normalize(images, dim=-1) @ functional.normalize(classes, dim=-1).T
        loss = functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(step, f"{float(loss.detach()):.3f}", flush=True)
    return module


if __name__ == "__main__":
    from safetensors.torch import save_file

    ASSET.parent.mkdir(exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in train().state_dict().items()}
    save_file(weights, ASSET, metadata={"format": "pt"})
