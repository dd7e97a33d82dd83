"""Every gate of the product on every family of encoders, on tiny models with random weights.

    python -m benchmarks.families [--folder DIR] [--skip latency load]     # writes docs/families.md

One suite a family, all in one pytest run: a cell says what was measured, or why it was not. With
`--folder`, a run that ended there is read, and none begun. Needs every extra of the tests. Exits
with 1 where a gate ended without a verdict.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.formats import describe_machine
from pytest_quantgate.suite.gates import list_names
from tests.llava_models import save_llava
from tests.open_clip_models import save_open_clip
from tests.siglip_models import save_siglip
from tests.text_encoders import save_text_encoder
from tests.tower_models import save_tower_model
from tests.vision_encoders import save_vision_encoder

PAGE = Path(__file__).parents[1] / "docs" / "families.md"

HEAD = """\
# Families, gate by gate

Made by `python -m benchmarks.families`: a tiny model of each family of the registry, with random
weights, in FP8 with attention, before every gate of the product. *yes* is a gate that measured and
passed. A number is that of what the gate said, below, where it is not green or measured nothing.
"""

SUITE = """\
quantgate: 1
trust: true
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 64, batch_size: 32, held_out_samples: 64}}
quantize: {{recipe: fp8-attention, exclude: [{exclude}]}}
gates:
  coverage: {{attention: [q, k, v, output]}}
  calibration: {{max_clipped: 10%}}
  fidelity: {{data: scenes/test, samples: 32, min_sqnr: 5dB}}
  accuracy:
    - {{task: scenes/{task}, metric: overlap@3, samples: 200, max_drop: 60pp}}
  regression:
    - {{task: scenes/{task}, metric: overlap@3, samples: 200, max_fp16_drop: 60pp, max_drop: 60pp,
       max_drop_since_first: 60pp}}
  roundtrip: {{}}
  serves: {{runtime: vllm, python: "${{QUANTGATE_VLLM_PYTHON}}"}}
  export: {{allow: [softmax]}}
  parity: {{samples: 16}}
  engine: {{target: sm89, min_fp8_gemms: 1}}
  memory: {{target: sm89, max_weights_ratio: 1.0x}}
  trace: {{target: sm89}}
  latency: {{tower: {tower}, batch: 4, max_ratio: 1000x, rounds: 10}}
  load: {{tower: {tower}, rate: 20, queries: 40, rounds: 5, p99_ratio: 1000x}}
"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What stands for a family: a `model_type`, how a tiny model of it gets into a folder, its
    towers, and what no recipe quantizes."""

    model_type: str
    save: Callable[[Path], object]
    towers: tuple[str, ...] = ("vision",)
    exclude: tuple[str, ...] = ()

    def write_suite(self, path: Path, *, model: Path) -> None:
        tower = self.towers[0]
        path.write_text(
            SUITE.format(
                model=model,
                exclude=", ".join(f'"{pattern}"' for pattern in self.exclude),
                task="neighbours" if tower == "vision" else "text_neighbours",
                tower=tower,
            ),
            encoding="utf-8",
        )


def save_clip(folder: Path) -> None:
    """A whole CLIP of transformers, as small as the others."""
    import torch
    import transformers

    from tests.text_encoders import LIKE_ROBERTA, SIZES, TOKENS, list_words, save_tokenizer

    torch.manual_seed(0)
    words = (*LIKE_ROBERTA[:3], *list_words(), LIKE_ROBERTA[3])
    ids = {word: index for index, word in enumerate(words)}
    text = {**SIZES, "vocab_size": len(ids), "max_position_embeddings": TOKENS}
    text |= {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    module: Any = transformers.CLIPModel(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    module.half().save_pretrained(folder)
    save_tokenizer(folder, ids=ids)
    size = {"height": 32, "width": 32}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor.save_pretrained(folder)


BOTH = ("vision", "text")
PATCHES = ("*patch_embed*",)

#: By the name of a family, in the order of the registry.
KINDS: Mapping[str, Kind] = {
    "clip": Kind(model_type="clip", save=save_clip, towers=BOTH, exclude=PATCHES),
    "siglip": Kind(
        model_type="siglip", save=save_siglip, towers=BOTH, exclude=(*PATCHES, "*head.attention*")
    ),
    "vit": Kind(model_type="dinov2", save=partial(save_vision_encoder, "dinov2"), exclude=PATCHES),
    "text": Kind(model_type="bert", save=partial(save_text_encoder, "bert"), towers=("text",)),
    "open_clip": Kind(
        model_type="open_clip",
        save=save_open_clip,
        towers=BOTH,
        exclude=("*conv1*", "visual.proj*", "text.text_projection*"),
    ),
    "llava": Kind(model_type="llava", save=save_llava, exclude=PATCHES),
    "internvl": Kind(
        model_type="internvl", save=partial(save_tower_model, "internvl"), exclude=PATCHES
    ),
    "qwen_vl": Kind(model_type="qwen2_5_vl", save=partial(save_tower_model, "qwen2_5_vl")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="run here, or read what ended here")
    parser.add_argument("--skip", nargs="+", choices=list_names(), default=(), metavar="GATE")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantgate-families-") as temporary:
        found = measure(arguments.folder or Path(temporary), skipped=arguments.skip)
    arguments.page.write_text("\n".join(render(found)) + "\n", encoding="utf-8")
    codes = [gate["code"] for gates in found.values() for gate in gates]
    return 1 if any(code.endswith(".no-verdict") for code in codes) else 0


def measure(folder: Path, *, skipped: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Return the gates of each family, as the JSON report of a run has them."""
    result = folder / "report.json"
    if not result.exists():
        (folder / "suites").mkdir(parents=True, exist_ok=True)
        for kind in KINDS.values():
            model = folder / kind.model_type
            model.mkdir(exist_ok=True)
            kind.save(model)
            kind.write_suite(
                folder / "suites" / f"{kind.model_type}.quantgate.yaml", model=model.resolve()
            )
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no"]
        command += [f"--rootdir={folder}", f"--quantgate-json={result}"]
        command += ["--quantgate-baselines=create", "suites"]
        if skipped:
            command += ["-k", " and ".join(f"not {name}" for name in skipped)]
        subprocess.run(command, check=False, cwd=folder, stdout=sys.stderr)
    suites = json.loads(result.read_text(encoding="utf-8"))["suites"]
    found = {suite["name"]: suite["gates"] for suite in suites}
    return {name: found.get(kind.model_type, []) for name, kind in KINDS.items()}


def render(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Yield the lines of the page."""
    columns, reasons = list_names(), dict[str, str]()
    yield from HEAD.splitlines()
    yield ""
    yield describe_machine()
    yield ""
    yield f"| family | `model_type` | {' | '.join(columns)} |"
    yield "|---" * (2 + len(columns)) + "|"
    for name, gates in found.items():
        by_kind = {gate["kind"]: gate for gate in gates}
        cells = [describe(by_kind.get(column), reasons) for column in columns]
        yield f"| {name} | `{KINDS[name].model_type}` | {' | '.join(cells)} |"
    yield ""
    for reason, number in reasons.items():
        yield from textwrap.wrap(f"- **{number}**: {reason}", 100, subsequent_indent="  ")


def describe(gate: Mapping[str, Any] | None, reasons: dict[str, str]) -> str:
    """Return `yes`, or the number of what a gate said that measured nothing or is not green."""
    if gate is not None and gate["status"] == "PASS":
        return "yes"
    words = "not run when this page was made (`--skip`, or a run that was cut off)"
    if gate is not None:
        code = f", `{gate['code']}`" if gate["code"] else ""
        words = f"{gate['status']}{code}: {_plain(gate['headline'])}"
    return f"**{reasons.setdefault(words, str(len(reasons) + 1))}**"


def _plain(headline: str) -> str:
    """Return what a gate said without the place in the suite."""
    headline = re.sub(r" \(\S*\.quantgate\.yaml:\d+\)", "", headline)
    return re.sub(r"\S*\.quantgate\.yaml:\d+: ", "", headline)


if __name__ == "__main__":
    sys.exit(main())
