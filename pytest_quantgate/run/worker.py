"""`python -m pytest_quantgate.run.worker`: embeds ranges of samples for another process.

It reads the suite, the data and the cache by itself, where it is. What it finds must be what the
process that asks has: the keys of the variants and the digest of the data are compared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.linked_process import serve

if TYPE_CHECKING:
    from pytest_quantgate.measure.embeddings import Encodes
    from pytest_quantgate.run.measured import Measured
    from pytest_quantgate.run.workers import Embedded
    from pytest_quantgate.tasks.samples import Samples


class Embedder:
    """Answers questions about one suite after another; what the last one asked for stays open."""

    def __init__(self, *, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._suite: Any = None
        self._case: Measured | None = None
        self._asked: Any = None
        self._compared: Any = None
        self._models: list[Encodes] = []
        self._opened = ExitStack()

    def embed(self, question: Mapping[str, Any], part: range) -> Embedded:
        """Return float32 [len(part), D] for each variant; see `Measured.describe_question`.

        Raises ModelError where something here is not what the question says.
        """
        from pytest_quantgate.measure.embeddings import embed_images, embed_texts
        from pytest_quantgate.run.variants import BATCH_SIZE
        from pytest_quantgate.tasks.kind import find_task

        case = self._open_case(question["suite"])
        samples = case.samples(**question["samples"])
        self._compare(case, samples, question)
        models = self._open_models(case, question)
        if question["task"] is None:
            embedded = embed_images(
                models,
                samples.take(part.start, part.stop),
                batch_size=BATCH_SIZE,
                preprocess=case.fp16.preprocess,
            )
        else:
            texts = find_task(question["task"]).list_texts(samples)
            embedded = embed_texts(
                models,
                texts[part.start : part.stop],
                batch_size=BATCH_SIZE,
                tokenize=case.fp16.tokenize,
            )
        return [each.numpy() for each in embedded]

    def close(self) -> None:
        self._opened.close()

    def _compare(self, case: Measured, samples: Samples, question: Mapping[str, Any]) -> None:
        """Raise ModelError where something here is not what the question says; asked once."""
        expected = question["expected"]
        if expected == self._compared:
            return
        seen = case.describe_embedding(samples, names=question["variants"], stage=question["stage"])
        if seen != expected:
            names = [name for name, key in seen.items() if key != expected[name]]
            raise ModelError(
                f"a worker has another {' and '.join(names)} than the process that asks: the "
                f"suite, its files or a package changed while it ran, or a conftest.py turned a "
                f"switch of PyTorch; run again, without --quantgate-workers if that does not help"
            )
        self._compared = expected

    def _open_case(self, asked: Mapping[str, Any]) -> Measured:
        if self._case is None or asked != self._suite:
            self._opened.close()
            self._case, self._suite, self._asked = None, asked, None
            self._compared = None
            self._case = open_case(asked, environ=self._environ)
        return self._case

    def _open_models(self, case: Measured, question: Mapping[str, Any]) -> list[Encodes]:
        asked = (question["variants"], question["stage"])
        if asked != self._asked:
            self._opened.close()
            self._asked = None
            self._models = self._opened.enter_context(case.encoders(*asked))
            self._asked = asked
        return self._models


def open_case(asked: Mapping[str, Any], *, environ: Mapping[str, str]) -> Measured:
    """Return the suite of a question, with the settings of the run that asks."""
    from pytest_quantgate.run.measured import Measured
    from pytest_quantgate.run.progress import silent
    from pytest_quantgate.run.sweep import vary_recipe
    from pytest_quantgate.store.baseline_mode import BaselineMode
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.cache import Cache
    from pytest_quantgate.store.settings import Settings
    from pytest_quantgate.suite.load import load_suite

    os.chdir(asked["working_dir"])  # what paths in variables are relative to; nothing is imported
    root = Path(asked["root"])
    settings = Settings(
        baselines=BaselineMode.CHECK,
        baselines_dir=root,
        obtained_dir=root,
        cache_dir=Path(asked["cache_dir"]),
        reason="",
        strict=False,
        device=asked["device"],
        suite="",
        root=root,
        env=tuple(asked["env"]),
    )
    suite = load_suite(Path(asked["path"]), relative_to=root)
    if "recipe" in asked:
        (suite,) = vary_recipe(suite, recipes=(asked["recipe"],))
    return Measured(
        suite=suite,
        settings=settings,
        store=Store(settings.baselines_dir, project=root),
        cache=Cache(root=settings.cache_dir, warn=lambda _message: None),
        progress=silent(),
        environ=settings.read_environment(environ),
    )


def main() -> None:
    """Answer until nothing more is asked; what is embedded is written into the working folder."""
    import numpy

    home = Path.cwd()
    embedder = Embedder(environ=os.environ)

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question["gpu"] is not None:
            import torch

            torch.cuda.set_device(question["gpu"])
        part = range(question["start"], question["stop"])
        names = []
        for number, each in enumerate(embedder.embed(question, part)):
            names.append(f"{number}.npy")
            numpy.save(home / names[-1], each, allow_pickle=False)
        return {"files": names}

    try:
        serve(answer)
    finally:
        embedder.close()


if __name__ == "__main__":
    main()
