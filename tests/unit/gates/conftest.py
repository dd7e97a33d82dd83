"""Every verdict that a test of a gate comes by bears the code of what its headline says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict

SIZES = "engine|memory"

#: Gates, what their headline says, and the finding that it is.
FINDINGS = [
    ("engine", "no (FP16 )?engine of the", "tower-missing"),
    ("engine", "was built from another ONNX file", "of-another-file"),
    ("engine", "are not of one library and target", "of-several-targets"),
    ("engine", ", min_fp8_gemms is", "too-few-fp8"),
    ("engine", "run in 8 bits: ", "excluded-in-8-bits"),
    ("engine", "no attention block was found", "no-attention"),
    ("engine", r"attention blocks of the \w+ engine are not", "attention-not-fused"),
    ("engine", "was run on no samples", "not-run"),
    ("engine", "engine gives NaN or Inf on", "nonfinite"),
    ("engine", r"over \S+ dB apart", "noise-changed"),
    (SIZES, "was not measured, and max_", "not-measured"),
    (SIZES, "which is no size", "no-size"),
    (SIZES, "over max_plan_ratio", "plan-ratio"),
    (SIZES, "over max_weights_ratio", "weights-ratio"),
    (SIZES, "over max_activation_ratio", "activation-ratio"),
    (SIZES, "over max_plan ", "plan-bytes"),
    (SIZES, "over max_weights ", "weights-bytes"),
    (SIZES, "over max_activation ", "activation-bytes"),
    ("fidelity", "the gate sets no limit", "without-limits"),
    ("fidelity", "tower were compared", "tower-missing"),
    ("fidelity", "hold NaN or Inf, first", "nonfinite"),
    ("fidelity", "mean cosine .* under", "cosine"),
    ("fidelity", "worst cosine .* under", "worst-cosine"),
    ("fidelity", "mean SQNR .* under", "sqnr"),
    ("fidelity", "worst SQNR .* under", "worst-sqnr"),
    ("roundtrip", "", "not-restored"),
    ("regression", "no baseline of", "no-baseline"),
    ("regression", "was made of something else", "baseline-of-other-things"),
    ("regression|accuracy", "needs classes", "no-classes"),
    ("regression|accuracy", "cannot be compared: ", "unpaired"),
    ("regression", "holds the outcomes of", "slot-of-other-model"),
    ("regression", "worst slice", "slice-drop"),
    ("regression", "against its own baseline", "fp16-drop"),
    ("regression", r"against the variant accepted last \d", "accepted-drop"),
    ("regression", r"against the first variant accepted \d", "first-drop"),
    ("regression", "against FP16 when the first", "first-fp16-drop"),
]


@pytest.fixture(autouse=True)
def _codes_say_what_headlines_say(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: dict[tuple[str, str, Status, str], None] = {}
    original = Verdict.__init__

    def remember(self: Verdict, **values: Any) -> None:
        original(self, **values)
        made[(self.gate, self.headline, self.status, self.code)] = None

    monkeypatch.setattr(Verdict, "__init__", remember)
    yield
    for gate, headline, status, code in made:
        if status is Status.PASS:
            assert code == "", headline
            continue
        for gates, words, finding in FINDINGS:
            if gate in gates.split("|") and re.search(words, headline):
                is_open = finding.endswith("-drop") and status is Status.INCONCLUSIVE
                assert code == f"{gate}.{finding}{'-open' if is_open else ''}", headline
