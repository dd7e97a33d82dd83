"""Evaluation that measures something else, and baselines of something else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import released
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.evidence.outcomes import Outcomes, StoredOutcomes
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.measured import Drawn
from pytest_quantgate.selftest.outcomes import (
    drop_samples,
    exchange_outcomes,
    trade_answers,
    with_correct,
)
from pytest_quantgate.selftest.sabotage import exchange
from pytest_quantgate.store.baselines import Store, store_outcomes
from pytest_quantgate.store.records import Record
from pytest_quantgate.tasks.samples import Samples

TASKS = ("sanity", "accuracy", "regression")


class ShiftedTokenizer:
    """The tokenizer of another vocabulary: every word is another one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        encoded = self.tokenizer(texts, **options)
        ids = encoded["input_ids"]
        special = [
            self.tokenizer.bos_token_id,
            self.tokenizer.eos_token_id,
            self.tokenizer.pad_token_id,
        ]
        plain = ~torch.isin(ids, torch.tensor(special))
        encoded["input_ids"] = torch.where(plain, (ids * 7 + 11) % len(self.tokenizer), ids)
        return encoded


class OtherPixels(Encoder):
    """A variant that is fed by another loader than FP16."""

    def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name == "vision":
            inputs = {"pixel_values": self.reload(inputs["pixel_values"])}
        return super().encode(name, inputs)

    def reload(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.flip(1)


class SmallPixels(OtherPixels):
    def reload(self, pixel_values: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(pixel_values, scale_factor=0.25, mode="area")
        return torch.nn.functional.interpolate(small, size=pixel_values.shape[-1], mode="nearest")


def fed_by(kind: type[Encoder]) -> Callable[[Bench], Case]:
    def make(bench: Bench) -> Case:
        def finish(model: Encoder) -> Encoder:
            return kind(**vars(model))

        return released(bench, kind.__name__, Pipeline(finish=finish))

    return make


def evaluated(name: str, **values: Callable[[Case], Any]) -> Callable[[Bench], Case]:
    """Return the maker of a case that evaluates both variants otherwise."""

    def make(bench: Bench) -> Case:
        good = bench.good
        case = exchange(good, variant_key=digest_of([name, good.variant_key]), _values={})
        vars(case).pop("sanity", None)  # that of the good one, where it was asked already
        images = Drawn(
            name="scenes/test", count=bench.samples, purpose="classification", first=False
        )
        vars(case)["_image_embeddings"] = lambda _drawn, stage: good._image_embeddings(
            images, stage
        )
        vars(case).update({key: value(good) for key, value in values.items()})
        vars(case)["_data_key"] = data_key_of(name, good)
        return case

    return make


def other_samples(change: Callable[[Samples], Samples]) -> Callable[[Case], Any]:
    def wrap(good: Case) -> Any:
        def samples(name: str, count: int | None, *, purpose: Any, first: bool = False) -> Samples:
            found = good.samples(name, count, purpose=purpose, first=first)
            return change(found) if purpose == "classification" else found

        return samples

    return wrap


def data_key_of(name: str, good: Case) -> Any:
    """The suite's data key is that of the files; the loader's own change is not in it."""

    def data_key(data: str, count: int | None, *, purpose: Any, first: bool = False) -> str:
        key: str = good._data_key(data, count, purpose=purpose, first=first)
        return digest_of(["changed", name, key]) if purpose == "classification" else key

    return data_key


def shuffle_labels(samples: Samples) -> Samples:
    assert samples.labels is not None
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    return replace(samples, labels=tuple(samples.labels[i] for i in order))


def bare_templates(samples: Samples) -> Samples:
    return replace(samples, templates=("it is what it is",))


def other_template(samples: Samples) -> Samples:
    return replace(samples, templates=("{c}",))


def rotate_classes(samples: Samples) -> Samples:
    return replace(samples, class_names=(*samples.class_names[1:], samples.class_names[0]))


def on_quantized(change: Callable[[Outcomes], Outcomes]) -> Callable[[Bench], Case]:
    return lambda bench: exchange_outcomes(bench.good, quantized=change)


def on_both(change: Callable[[Outcomes], Outcomes]) -> Callable[[Bench], Case]:
    return lambda bench: exchange_outcomes(bench.good, fp16=change, quantized=change)


def lose(share: float) -> Callable[[Outcomes], Outcomes]:
    """Return outcomes in which so many of the right answers are wrong, spread over all."""

    def change(outcomes: Outcomes) -> Outcomes:
        right = [i for i, good in enumerate(outcomes.correct) if good]
        count = round(share * len(outcomes.ids))
        lost = {right[i * len(right) // count] for i in range(count)}
        return with_correct(
            outcomes,
            correct=tuple(good and i not in lost for i, good in enumerate(outcomes.correct)),
        )

    return change


def lose_a_class(outcomes: Outcomes) -> Outcomes:
    """All of one class is lost; among so many classes the average hardly shows it."""
    lost = {i for i, label in enumerate(outcomes.labels) if label == 5 and outcomes.correct[i]}
    others = [i for i, good in enumerate(outcomes.correct) if not good and outcomes.labels[i] != 5]
    won = set(others[: len(lost)])
    return with_correct(
        outcomes,
        correct=tuple(
            (good or i in won) and i not in lost for i, good in enumerate(outcomes.correct)
        ),
    )


def keep_easy(outcomes: Outcomes) -> Outcomes:
    """The hard samples crashed the loader and were skipped."""
    return outcomes.select([i for i, good in enumerate(outcomes.correct) if good or i % 3])


def few(outcomes: Outcomes) -> Outcomes:
    return outcomes.select(range(min(40, len(outcomes.ids))))


def twice(outcomes: Outcomes) -> Outcomes:
    return replace(
        outcomes,
        ids=(*outcomes.ids[:-1], outcomes.ids[0]),
    )


EVALUATIONS = (
    Entry(
        name="tokenizer of another vocabulary",
        theme="evaluation",
        make=evaluated(
            "tokenizer",
            fp16=lambda good: replace(good.fp16, tokenizer=ShiftedTokenizer(good.fp16.tokenizer)),
        ),
        gates=("sanity",),
        code="sanity.prompts-equal",
        judged=TASKS,
    ),
    Entry(
        name="templates without the class name",
        theme="evaluation",
        make=evaluated("templates", samples=other_samples(bare_templates)),
        gates=("sanity",),
        code="sanity.template-without-class",
        judged=TASKS,
    ),
    Entry(
        name="another template than the baseline's",
        theme="evaluation",
        make=evaluated("template", samples=other_samples(other_template)),
        gates=("regression",),
        cause="evaluation data differ",
        judged=TASKS,
    ),
    Entry(
        name="labels shuffled",
        theme="evaluation",
        make=evaluated("labels", samples=other_samples(shuffle_labels)),
        gates=("sanity",),
        code="sanity.fp16-at-chance",
        judged=TASKS,
    ),
    Entry(
        name="class names in another order",
        theme="evaluation",
        make=evaluated("classes", samples=other_samples(rotate_classes)),
        gates=("sanity",),
        code="sanity.fp16-at-chance",
        judged=TASKS,
    ),
    Entry(
        name="BGR images for the quantized variant",
        theme="evaluation",
        make=fed_by(OtherPixels),
        gates=("accuracy", "fidelity"),
        cause="over max_drop|under min_cosine",
    ),
    Entry(
        name="images of another size for the quantized variant",
        theme="evaluation",
        make=fed_by(SmallPixels),
        gates=("accuracy", "fidelity"),
        cause="over max_drop|under min_cosine",
    ),
    Entry(
        name="quantized evaluated on half of the samples",
        theme="evaluation",
        make=on_quantized(drop_samples),
        gates=("accuracy",),
        cause="sample ids differ",
        judged=TASKS,
    ),
    Entry(
        name="samples that failed were skipped",
        theme="evaluation",
        make=on_quantized(keep_easy),
        gates=("accuracy",),
        cause="sample ids differ",
        judged=TASKS,
    ),
    Entry(
        name="one sample counted twice",
        theme="evaluation",
        make=on_quantized(twice),
        gates=("accuracy",),
        cause="more than once",
        judged=TASKS,
    ),
    Entry(
        name="forty samples, and a claim of no loss",
        theme="evaluation",
        make=on_both(few),
        gates=("accuracy",),
        cause="(?s)40 samples of .* of 100 classes do not stand.*not decided against max_drop",
        judged=("accuracy",),
    ),
    Entry(
        name="six points lost",
        theme="evaluation",
        make=on_quantized(lose(0.06)),
        gates=("accuracy",),
        cause="over max_drop",
        judged=TASKS,
    ),
    Entry(
        name="losses hidden by gains",
        theme="evaluation",
        make=on_quantized(trade_answers),
        gates=("accuracy",),
        cause="(?s)over max_flips.*the average hides it",
        judged=TASKS,
    ),
    Entry(
        name="one class lost",
        theme="evaluation",
        make=on_quantized(lose_a_class),
        gates=("accuracy",),
        cause="(?s)worst class .*over max_class_drop",
        judged=TASKS,
    ),
    Entry(
        name="NaN embeddings counted as wrong answers",
        theme="evaluation",
        make=on_quantized(lambda outcomes: replace(outcomes, nonfinite=2)),
        gates=("accuracy",),
        cause="NaN or Inf",
        judged=TASKS,
    ),
    Entry(
        name="the reported value is rounded up",
        theme="evaluation",
        make=on_quantized(lambda outcomes: replace(outcomes, value=0.8)),
        gates=("accuracy",),
        cause="is not what its .* samples say",
        judged=TASKS,
    ),
)


# -- baselines -----------------------------------------------------------------------------------


def baseline(name: str, change: Callable[[Bench, Record], Record]) -> Callable[[Bench], Case]:
    """Return the maker of the good case before a baseline that was changed."""

    def make(bench: Bench) -> Case:
        record = change(bench, bench.record(bench.good))
        return exchange(bench.good, store=bench.store_of(name, record))

    return make


def edited_file(name: str, change: Callable[[Any], Any]) -> Callable[[Bench], Case]:
    """Return the maker of the good case before a file that was edited by hand."""

    def make(bench: Bench) -> Case:
        record = bench.record(bench.good)
        store: Store = bench.store_of(name, record)
        path: Path = store.path(record.suite, record.key)
        text = change(path.read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")
        return exchange(bench.good, store=store)

    return make


def in_json(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edit


def set_value(data: dict[str, Any]) -> None:
    data["accepted"]["value"] = round(data["accepted"]["value"] - 0.05, 4)


def set_schema(data: dict[str, Any]) -> None:
    data["schema"] = 0


def set_verdict(data: dict[str, Any]) -> None:
    data["verdicts"] = {"coverage": "PASS"}


def drop_first(data: dict[str, Any]) -> None:
    del data["first"]


def fp16_is_quantized(_bench: Bench, record: Record) -> Record:
    return replace(record, fp16=record.accepted)


def quantized_is_fp16(_bench: Bench, record: Record) -> Record:
    return replace(record, accepted=record.fp16, first=record.fp16)


def other_data(_bench: Bench, record: Record) -> Record:
    fingerprint = replace(record.fingerprint, data="1" * 64)
    return replace(record, fingerprint=fingerprint)


def other_model(_bench: Bench, record: Record) -> Record:
    fingerprint = replace(record.fingerprint, model="2" * 64)
    return replace(record, fingerprint=fingerprint)


def of_a_red_run(_bench: Bench, record: Record) -> Record:
    """The obtained file of a run in which half of the gates were red, copied by hand."""
    return replace(record, verdicts={"sanity": "PASS", "coverage": "FAIL", "calibration": "FAIL"})


def other_recipe(_bench: Bench, record: Record) -> Record:
    """The recipe's name is the same: a release of ModelOpt, or of ours, changed what it does."""
    before = record.fingerprint.recipe_entries
    entries = tuple(line.replace("q_bmm_quantizer", "qkv_quantizer") for line in before)
    assert entries != before
    return replace(record, fingerprint=replace(record.fingerprint, recipe_entries=entries))


def other_settings(**changes: str) -> Callable[[Bench, Record], Record]:
    def change(_bench: Bench, record: Record) -> Record:
        settings = {**record.fingerprint.settings, **changes}
        assert settings.keys() == record.fingerprint.settings.keys()
        return replace(record, fingerprint=replace(record.fingerprint, settings=settings))

    return change


def fp16_with_more_right(bench: Bench, record: Record, *, more: int) -> StoredOutcomes:
    fp16, _ = bench.good.outcomes(task=record.task, metric=record.metric, samples=bench.samples)
    wrong = {i for i, good in enumerate(fp16.correct) if not good}
    won = set(sorted(wrong)[:more])
    correct = tuple(good or i in won for i, good in enumerate(fp16.correct))
    return store_outcomes(with_correct(fp16, correct=correct))


def better_first(bench: Bench, record: Record) -> Record:
    """Many small accepted drops: the first variant was four points better than the last."""
    return replace(record, first=fp16_with_more_right(bench, record, more=50))


def better_fp16(bench: Bench, record: Record) -> Record:
    """A library changed what FP16 computes: it was two points better."""
    return replace(record, fp16=fp16_with_more_right(bench, record, more=30))


def better_first_fp16(bench: Bench, record: Record) -> Record:
    """Small drifts of FP16, each accepted: its slot is replaced at each update."""
    return replace(record, first_fp16=fp16_with_more_right(bench, record, more=50))


def of_a_namesake(name: str) -> Callable[[Bench], Case]:
    """Return the maker of the good case before the file of another suite of its name."""

    def make(bench: Bench) -> Case:
        record = bench.record(bench.good)
        store = bench.store_of(name, replace(record, suite=f"other/{record.suite}"))
        place = store.path(record.suite, record.key)
        place.parent.mkdir(parents=True, exist_ok=True)
        store.path(f"other/{record.suite}", record.key).replace(place)
        return exchange(bench.good, store=store)

    return make


def no_baseline(bench: Bench) -> Case:
    return exchange(bench.good, store=Store(bench.root / "no-baselines"))


def entry(name: str, make: Callable[[Bench], Case], cause: str, **more: Any) -> Entry:
    return Entry(
        name=name,
        theme="baseline",
        make=make,
        gates=("regression",),
        cause=cause,
        judged=("accuracy", "regression"),
        **more,
    )


BASELINES: tuple[Entry, ...] = (
    entry("there is no baseline", no_baseline, "no baseline of"),
    entry("baseline of another data set", baseline("data", other_data), "evaluation data differ"),
    entry("baseline of another model", baseline("model", other_model), "model weights .* differ"),
    entry(
        "baseline of other recipe content under its name",
        baseline("recipe", other_recipe),
        r"recipe content differs: now without \*qkv_quantizer.*, with \*q_bmm_quantizer",
    ),
    entry(
        "baseline made with bfloat16 and eager attention",
        baseline("settings", other_settings(dtype="bfloat16", attention="eager")),
        "(?s)dtype bfloat16 -> float16.*attention eager -> sdpa",
    ),
    entry(
        "baseline made on a GPU",
        baseline("device", other_settings(device="cuda")),
        "device cuda -> cpu",
    ),
    entry(
        "baseline of another suite of the same name",
        of_a_namesake("namesake"),
        "holds other/reference .*, expected reference",
    ),
    entry(
        "the result of a red run, put there by hand",
        baseline("red", of_a_red_run),
        "calibration is FAIL, coverage is FAIL",
    ),
    entry("verdicts edited by hand", edited_file("verdict", in_json(set_verdict)), "by hand"),
    entry("value edited by hand", edited_file("value", in_json(set_value)), "damaged baseline"),
    entry("older schema", edited_file("schema", in_json(set_schema)), "schema 0 is not supported"),
    entry(
        "a field is missing",
        edited_file("field", in_json(drop_first)),
        "(?i)first.*missing|missing.*first",
    ),
    entry("file cut short", edited_file("cut", lambda text: text[: len(text) // 2]), "damaged"),
    entry(
        "the FP16 slot holds the FP8 results",
        baseline("fp16-slot", fp16_is_quantized),
        "slot of FP16 holds the outcomes of fp8-attention",
    ),
    entry(
        "the variant's slot holds the FP16 results",
        baseline("accepted-slot", quantized_is_fp16),
        "slot of fp8-attention holds the outcomes of FP16",
    ),
    entry(
        "small accepted drops have added up",
        baseline("first", better_first),
        "(?s)over max_drop_since_first.*added up",
    ),
    entry(
        "small accepted drifts of FP16 have added up",
        baseline("first-fp16", better_first_fp16),
        "(?s)FP16 when the first variant was accepted.*over max_drop_since_first.*added up",
    ),
    entry(
        "a library moved FP16",
        baseline("fp16", better_fp16),
        "(?s)over max_fp16_drop.*(library|the baseline moved)",
    ),
)
