"""The round trip: a new process really runs, and every difference and damage is seen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import ModelError
from pytest_quantgate.measure import roundtrip
from pytest_quantgate.measure.roundtrip import measure_roundtrip, plant_damage, restore_here
from pytest_quantgate.own_process import start_module
from pytest_quantgate.quantization.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
PLANTED = ("state file missing", "one amax missing", "one amax times ten")


@pytest.fixture(scope="module")
def quantized(make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized("fp8-attention")


def test_restored_in_a_new_process(
    quantized: Encoder, make_pairs: MakePairs, tmp_path: Path
) -> None:
    found = measure_roundtrip(quantized, batches=make_pairs(seed=5), directory=tmp_path)
    assert found.equal == {"vision": True, "text": True}
    assert found.max_abs_difference == 0.0
    assert found.amax_count > 30
    assert found.amax_different == ()
    assert found.refused == PLANTED
    assert found.accepted == ()
    assert found.saved_bytes == sum(
        path.stat().st_size for path in (tmp_path / "checkpoint").iterdir()
    )
    assert load_file(tmp_path / "outputs.safetensors")["vision"].shape[0] == 8  # both batches


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, *, change: Callable[[Path], None] = lambda _folder: None
) -> None:
    """Restore here (the new process is shown above) and then change what it found."""

    @contextmanager
    def restoring(folder: Path) -> Iterator[Callable[[], None]]:
        def restore() -> None:
            restore_here(folder)
            change(folder)

        yield restore

    monkeypatch.setattr(roundtrip, "_restoring_elsewhere", restoring)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_one_bit_of_difference_is_seen(
    tower: str,
    quantized: Encoder,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(folder: Path) -> None:
        outputs = load_file(folder / "outputs.safetensors")
        outputs[tower][0, 0] = torch.nextafter(outputs[tower][0, 0], torch.tensor(9e9))
        save_file(outputs, folder / "outputs.safetensors")

    in_this_process(monkeypatch, change=change)
    found = measure_roundtrip(quantized, batches=make_pairs(), directory=tmp_path)
    assert found.equal == {name: tower != name for name in ("vision", "text")}
    assert 0 < found.max_abs_difference < 1e-4


def test_amax_that_comes_back_different_is_named(
    quantized: Encoder,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import json

    def change(folder: Path) -> None:
        amax = json.loads((folder / "amax.json").read_text(encoding="utf-8"))
        amax["text_projection.input_quantizer"] = "0"
        del amax["text_projection.weight_quantizer"]
        (folder / "amax.json").write_text(json.dumps(amax), encoding="utf-8")

    in_this_process(monkeypatch, change=change)
    found = measure_roundtrip(quantized, batches=make_pairs(), directory=tmp_path)
    assert found.amax_different == (
        "text_projection.input_quantizer",
        "text_projection.weight_quantizer",
    )


def test_damage_that_is_not_refused_is_told(
    quantized: Encoder,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_checkpoint(quantized, tmp_path / "checkpoint")
    manifest = roundtrip.verify_checkpoint(tmp_path / "checkpoint")  # type: ignore[attr-defined]
    monkeypatch.setattr(roundtrip, "verify_checkpoint", lambda _folder: manifest)
    refused, accepted = plant_damage(tmp_path / "checkpoint", scratch=tmp_path)
    assert refused == ()
    assert accepted == PLANTED


def test_the_good_checkpoint_is_not_harmed_by_the_damage(
    quantized: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_args: object) -> None:
        raise OSError("hard links are not supported")

    save_checkpoint(quantized, tmp_path / "checkpoint")
    assert plant_damage(tmp_path / "checkpoint", scratch=tmp_path) == (PLANTED, ())
    roundtrip.verify_checkpoint(tmp_path / "checkpoint")  # type: ignore[attr-defined]
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    assert plant_damage(tmp_path / "checkpoint", scratch=tmp_path) == (PLANTED, ())
    roundtrip.verify_checkpoint(tmp_path / "checkpoint")  # type: ignore[attr-defined]


def test_dynamic_quantizers_have_no_amax_to_damage(
    make_quantized: Callable[..., Encoder],
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_quantized(
        (
            {"quantizer_name": "*", "enable": False},
            {
                "quantizer_name": "*weight_quantizer",
                "parent_class": "nn.Linear",
                "cfg": {"num_bits": [4, 3], "type": "dynamic"},
            },
        )
    )
    in_this_process(monkeypatch)
    found = measure_roundtrip(model, batches=make_pairs(), directory=tmp_path)
    assert found.amax_count == 0
    assert found.refused == ("state file missing",)
    assert found.equal == {"vision": True, "text": True}


def test_new_process_that_fails(
    quantized: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "x is missing: quantize again"

    program = f"import sys; sys.exit('warning\\n{message}')"

    def fail(module: str, *_arguments: str, **options: Any) -> subprocess.Popen[str]:
        assert module == "pytest_quantgate.measure.restore"
        return subprocess.Popen([sys.executable, "-c", program], text=True, **options)

    monkeypatch.setattr(roundtrip, "start_module", fail)
    with pytest.raises(ModelError) as caught, roundtrip._restoring_elsewhere(tmp_path) as restore:
        restore()
    assert str(caught.value) == (
        f"the saved checkpoint cannot be restored in a new process: {message}"
    )


def test_what_cannot_be_saved_is_restored_by_nobody(
    quantized: Encoder,
    make_pairs: MakePairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[str]] = []
    start = start_module

    def note(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        started.append(start(module, *arguments, **options))
        return started[-1]

    def fail(model: Encoder, folder: Path) -> int:
        raise ModelError("no room")

    monkeypatch.setattr(roundtrip, "start_module", note)
    monkeypatch.setattr(roundtrip, "save_checkpoint", fail)
    with pytest.raises(ModelError, match=r"^no room$"):
        measure_roundtrip(quantized, batches=make_pairs(), directory=tmp_path)
    assert [process.returncode for process in started] == [0], "told nothing, it has ended"
    assert not any(tmp_path.iterdir())


def test_no_batches(quantized: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least one batch"):
        measure_roundtrip(quantized, batches=[], directory=tmp_path)
