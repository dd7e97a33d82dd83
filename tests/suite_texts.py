"""Suites as texts that the tests of suite files cut, change and load."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pytest_quantgate.suite.gates import Gates, GateSection
from pytest_quantgate.suite.specs import QuantizeSpec, Suite

Section = TypeVar("Section", bound=GateSection)

FILE = "suites/demo.quantgate.yaml"

# One key a line, so that a message with another line than its key's own is seen.
VALID = """\
quantgate: 1
model:
  source: transformers
  id: "${QUANTGATE_CLIP}"
  dtype: bfloat16
  attn_implementation: eager
datasets:
  photos:
    dataset: wds/photos
    root: "${QUANTGATE_DATA}/photos"
    language: de
calibration:
  data: photos/train
  samples: 512
  batch_size: 64
  held_out_samples: 32
quantize:
  recipe: fp8-attention
  exclude: "*patch_embedding*"
gates:
  coverage:
    attention: [q, k, v, output]
    towers: [vision]
    waive:
      - modules: "*visual_projection*"
        reason: the kernel comes in March
        until: 2027-03-01
      - modules: [a, b]
        reason: "why: this"
        until: "2027-04-01"
  calibration:
    max_clipped: 0.2%
  fidelity:
    data: photos/test
    samples: 256
    min_cosine: .99
    min_worst_cosine: 0.1
    min_sqnr: 15dB
    min_worst_sqnr: 3.5 dB
  accuracy:
    - task: photos/classification
      metric: acc1
      max_drop: 0.5pp
      confidence: 99%
      floor: 50%
      max_flips: 3%
      max_class_drop: 20pp
      samples: 1000
    - task: photos/retrieval
      metric: image_retrieval_recall@5
      max_drop: 3pp
  regression:
    - task: photos/classification
      metric: mean_per_class_recall
      max_fp16_drop: 0.25pp
      max_drop: 1pp
      max_drop_since_first: 1.5pp
  roundtrip: {}
"""

SMALL = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates: {roundtrip: {}}
"""

# One key a line here too.
EXPORTED = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8-attention}
gates:
  accuracy:
    - task: scenes/classification
      metric: acc1
      max_drop: 1pp
    - task: scenes/classification
      metric: acc1
      max_drop: 2pp
      stage: onnx
  export:
    allow: [softmax]
    max_size_ratio: 0.6x
  parity:
    samples: 32
    max_error: 0.2%
    max_sqnr_change: 1.5dB
  engine:
    - target: sm89
      library: tensorrt
      towers: [vision]
      batch: 8
      min_fp8_gemms: 25
      attention: fused-fp8
      max_plan_ratio: 0.7x
      max_weights_ratio: 0.65 x
      max_activation_ratio: 1X
      max_plan: 512MiB
      max_weights: 0.5 GiB
      max_activation: 100MB
    - target: sm120
      attention: fused
"""

Load = Callable[[str | bytes], Suite]
Refusal = Callable[[str | bytes], str]


def swap(old: str, new: str, *, text: str = VALID) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
    return text.replace(old, new)


def line_of(part: str, *, text: str = VALID) -> int:
    assert text.count(part) == 1, f"{part!r} stands {text.count(part)} times"
    return text[: text.index(part)].count("\n") + 1


def section_of(gates: Gates, kind: type[Section]) -> Section:
    """The one section of this kind."""
    found = gates.one(kind)
    assert found is not None
    return found


def quantize_of(suite: Suite) -> QuantizeSpec:
    """What the suite quantizes with."""
    assert suite.quantize is not None
    return suite.quantize
