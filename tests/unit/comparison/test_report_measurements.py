"""Fidelity, round trip, parity and times of two reports: what stands out of the noise."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from pytest_quantgate.comparison.changes import Change
from pytest_quantgate.comparison.report_measurements import (
    compare_fidelity,
    compare_latency,
    compare_parity,
    compare_roundtrip,
)
from pytest_quantgate.evidence.fidelity import Fidelity, TowerFidelity
from pytest_quantgate.evidence.parity import BlockParity, Parity, Roundtrip, TowerParity
from pytest_quantgate.report.model import LatencyFacts

VISION = TowerFidelity(
    tower="vision",
    samples=64,
    cosine_mean=0.9987,
    cosine_worst=0.99,
    cosine_worst_id="a",
    sqnr_mean_db=25.8,
    sqnr_worst_db=20.0,
    sqnr_worst_id="a",
    nonfinite=0,
)
LAYERS = (("vision_model.encoder.layers.0.mlp.fc1", 20.0), ("vision_model.post", 30.0))
FIDELITY = Fidelity(
    data="scenes/test", towers=(VISION, replace(VISION, tower="text")), worst_layers=LAYERS
)


def fidelity(**changes: Any) -> Fidelity:
    return replace(FIDELITY, towers=(replace(VISION, **changes), FIDELITY.towers[1]))


def texts(changes: list[Change]) -> list[str]:
    return [change.text for change in changes]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            fidelity(cosine_mean=0.7344, sqnr_mean_db=3.1),
            "clip: vision embeddings against FP16's: cosine 0.9987, SQNR 25.8 dB -> "
            "cosine 0.7344, SQNR 3.1 dB; text as before",
        ),
        (
            fidelity(cosine_mean=0.9985, sqnr_mean_db=25.78),
            "clip: vision embeddings against FP16's: cosine 0.9987, SQNR 25.8 dB -> "
            "cosine 0.9985, SQNR 25.8 dB; text as before",
        ),
        (
            fidelity(sqnr_mean_db=25.5),
            "clip: vision embeddings against FP16's: cosine 0.9987, SQNR 25.8 dB -> "
            "cosine 0.9987, SQNR 25.5 dB; text as before",
        ),
        (
            fidelity(nonfinite=3),
            "clip: vision embeddings against FP16's: cosine 0.9987, SQNR 25.8 dB -> "
            "cosine 0.9987, SQNR 25.8 dB, NaN or Inf in 3 of 64; text as before",
        ),
        (
            replace(FIDELITY, worst_layers=((LAYERS[0][0], 2.5), LAYERS[1])),
            "clip: 1 layer noisier by itself, most vision_model.encoder.layers.0.mlp.fc1: "
            "SQNR 20.0 -> 2.5 dB",
        ),
        (
            replace(FIDELITY, worst_layers=((LAYERS[0][0], float("nan")), LAYERS[1])),
            "clip: 1 layer noisier by itself, most vision_model.encoder.layers.0.mlp.fc1: "
            "SQNR 20.0 -> nan dB",
        ),
    ],
)
def test_fidelity_that_moved_is_named(after: Fidelity, words: str) -> None:
    assert texts(compare_fidelity(FIDELITY, after, suite="clip")) == [words]
    assert len(compare_fidelity(after, FIDELITY, suite="clip")) == 1


@pytest.mark.parametrize(
    "after",
    [
        FIDELITY,
        fidelity(cosine_mean=0.99875, sqnr_mean_db=25.85),
        replace(FIDELITY, worst_layers=((LAYERS[0][0], 19.5), LAYERS[1])),
        replace(fidelity(cosine_mean=0.1), data="scenes/other"),
        None,
    ],
)
def test_fidelity_within_the_noise_or_of_other_data_is_no_change(after: Fidelity | None) -> None:
    assert compare_fidelity(FIDELITY, after, suite="clip") == []


ROUNDTRIP = Roundtrip(
    saved_bytes=1,
    equal={"vision": True, "text": True},
    max_abs_difference=0.0,
    amax_count=3,
    amax_different=(),
    refused=("x",),
    accepted=(),
)


def test_round_trip_that_loses_is_named() -> None:
    after = replace(
        ROUNDTRIP,
        equal={"vision": False, "text": True},
        amax_different=("q",),
        accepted=("state file missing",),
    )

    assert texts(compare_roundtrip(ROUNDTRIP, after, suite="clip")) == [
        "clip: round trip: vision outputs: as before the save -> others after the restore",
        "clip: round trip: ranges that differ: none -> q",
        "clip: round trip: damage that was loaded: none -> state file missing",
    ]
    assert compare_roundtrip(ROUNDTRIP, ROUNDTRIP, suite="clip") == []
    assert compare_roundtrip(ROUNDTRIP, None, suite="clip") == []


BLOCK = BlockParity(module="vision_model.encoder.layers.0", error=1e-4, floor=2e-3)
TOWER = TowerParity(
    tower="vision",
    samples=16,
    error=0.02,
    floor=0.05,
    quantization_error=0.05,
    sqnr_torch_db=25.0,
    sqnr_onnx_db=25.0,
    nonfinite=0,
    optimization="all",
    blocks=(BLOCK,),
)


def parity(**changes: Any) -> Parity:
    return Parity(towers=(replace(TOWER, **changes),), runtime="ONNX Runtime 1")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (
            parity(blocks=(replace(BLOCK, error=0.9),)),
            ["clip: vision_model.encoder.layers.0 in ONNX Runtime 1 against PyTorch's: error "
             "1.00e-04 -> 9.00e-01"],
        ),
        (
            parity(error=0.9),
            ["clip: vision embeddings in ONNX Runtime 1 against PyTorch's: error "
             "2.00e-02 -> 9.00e-01"],
        ),
        (parity(nonfinite=2), ["clip: vision in ONNX: samples with NaN or Inf: 0 -> 2"]),
        (parity(error=0.045), []),  # more than twice as far, and within what PyTorch moves itself
        (parity(error=0.03), []),
        (parity(blocks=(replace(BLOCK, error=1e-3),)), []),
    ],
)  # fmt: skip
def test_parity_is_compared_over_its_floor(after: Parity, words: list[str]) -> None:
    assert texts(compare_parity(parity(), after, suite="clip")) == words
    assert len(compare_parity(after, parity(), suite="clip")) == len(words)


def times(
    median_ms: float, *, seed: int, noise: float = 0.01, rounds: int = 30
) -> tuple[float, ...]:
    stream = random.Random(seed)
    return tuple(median_ms * (1 + stream.gauss(0, noise)) for _ in range(rounds))


def latency(
    *, quantized_ms: float = 60.0, seed: int = 0, noise: float = 0.01, rounds: int = 30
) -> LatencyFacts:
    return LatencyFacts(
        gate="latency[x]",
        runtime="onnxruntime",
        tower="vision",
        batch=8,
        system="Linux",
        processor="a",
        cores=8,
        threads=1,
        device="cpu",
        fp16_ms=times(100.0, seed=3 * seed, noise=noise, rounds=rounds),
        quantized_ms=times(quantized_ms, seed=3 * seed + 1, noise=noise, rounds=rounds),
        fp16_again_ms=times(100.0, seed=3 * seed + 2, noise=noise, rounds=rounds),
    )


GOOD = latency()


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (latency(quantized_ms=130.0), ": slower"),
        (latency(quantized_ms=20.0), ": faster"),
        (latency(rounds=3), "rounds: 30 -> 3"),
        (
            replace(GOOD, quantized_ms=GOOD.quantized_ms[3:]),
            "rounds: 30 -> fp16 30, quantized 27, fp16 again 30",
        ),
        (replace(GOOD, quantized_ms=(0.0,) * 30), "rounds without a valid time: 0 -> 30"),
        (replace(GOOD, cold=("fp16",)), "not warmed up: none -> fp16"),
        (replace(GOOD, batch=1), "batch: 8 -> 1"),
        (replace(GOOD, processor="b"), "machine: Linux, a, 8 cores, 1 threads, cpu -> Linux, b,"),
        (latency(noise=0.25), "(FP16 against itself): under 5 % -> over 5 %"),
    ],
)
def test_times_that_changed_are_named(after: LatencyFacts, words: str) -> None:
    there, _ = compare_latency([GOOD], [after], suite="clip")
    back, _ = compare_latency([after], [GOOD], suite="clip")

    assert any(words in text for text in texts(there)), texts(there)
    assert sorted(c.subjects for c in there) == sorted(c.subjects for c in back)


@pytest.mark.parametrize("seed", range(5))
def test_times_of_another_run_are_no_change(seed: int) -> None:
    changes, same = compare_latency([GOOD], [latency(seed=seed + 1)], suite="clip")

    assert changes == []
    (line,) = same
    assert line.startswith("clip: latency[x]: FP16 ")
    assert line.endswith("]): no change that the rounds can show")


def test_times_of_one_report_alone_are_not_compared() -> None:
    assert compare_latency([GOOD], [], suite="clip") == ([], [])
