"""What other families call the parts of a model, and of its suite, that entries name in the words
of the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: By the class of a model. Earlier words come first: a later one may stand in what they gave.
NAMES: Mapping[str, Mapping[str, str]] = {
    "SiglipModel": {
        "exclude: [": 'exclude: ["*head.attention*", ',
    },
    "CustomTextCLIP": {
        "*transformer.resblocks*": "*encoder.of_another*",
        "exclude: [": 'exclude: ["visual.proj*", "text.text_projection*", ',
        "patch_embedding": "conv1",
        "patch_embeding": "convv1",
        "vision_model.encoder.layers": "visual.transformer.resblocks",
        "vision_model.post_layernorm": "visual.ln_post",
        "vision_model": "visual",
        "vision*.": "visual*.",
        "*text_model*": "text*",
        "text_*": "text.*",
        "layers.": "resblocks.",
        "self_attn": "attn.core",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    },
    "Dinov2Model": {
        ', "*visual*"': "",
        "*text_model*": "*encoder*",
        "patch_embedding": "patch_embeddings",
        "vision_model.encoder.layers": "encoder.layer",
        "vision_model.post_layernorm": "layernorm",
        "vision_model": "encoder",
        "vision*.": "encoder.layer.",
        "layers.": "layer.",
        "self_attn.q_proj": "attention.attention.query",
        "self_attn": "attention.attention",
    },
    "CLIPVisionModel": {
        ', "*visual*"': "",
        "*text_model*": "*encoder*",
        "vision_model.encoder.layers": "encoder.layers",
        "vision_model.post_layernorm": "pre_layrnorm",
        "vision_model": "encoder",
        "vision*.": "encoder.layers.",
    },
    "BertModel": {
        ', exclude: ["*patch_embedding*"]': "",
        "*text_model*": "encoder.layer*",
        "text_*": "encoder.*",
        "vision_model.encoder.layers": "encoder.layer",
        "vision_model.post_layernorm": "embeddings.LayerNorm",
        "vision_model": "encoder",
        "vision*.": "encoder.layer.",
        "layers.": "layer.",
        "self_attn.q_proj": "attention.self.query",
        "self_attn": "attention.self",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
}


def rename(text: str, names: Mapping[str, str], *, regex: bool = False) -> str:
    """Return a text, or a regular expression, with the words of another family."""
    for old, new in names.items():
        forms = {old, re.escape(old)} if regex else {old}
        pattern = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        put = re.escape(new) if regex else new
        text = re.sub(pattern, put.replace("\\", "\\\\"), text)
    return text
