"""An encoder that code of one's own makes: the door for models that no family knows.

A suite names a function, `model: {source: factory, factory: package.module:function}`. It is
imported where a measurement needs the model, and nowhere else, and only with `trust: true`. The
function gets the paths of `files`, in their order, and returns a `PlainEncoder`.

What the key of a measurement holds of it is the package that the function is in and these files:
so it may open no other ones. Files that Python code or safetensors open are seen here, and modules
that were imported before and that the function's module names; files that other native code opens,
or that code opens when the model runs, are not.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Encoder, ImageTransform, describe_error
from pytest_quantgate.encoders.source import CheckpointSource, FactoryCode, pin_model
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec
from pytest_quantgate.errors import ModelError, QuantGateError
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.suite.specs import ModelSpec

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

#: How far an embedding may move where attention is split, of its largest value.
SPLIT_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class PlainEncoder:
    """What a factory returns: a module for each tower, and what prepares its inputs.

    `vision` makes embeddings [N, D] of pixel values [N, 3, H, W], which `preprocess` makes of one
    image each, [3, H, W]. `text` makes them of what `tokenize` makes of texts: ids [N, T] (int64),
    all texts filled up to one length T, or a mapping of `input_ids` and `attention_mask`, which the
    module then takes by these names. Each module holds what its tower runs through, and no more.
    """

    vision: nn.Module | None = None
    text: nn.Module | None = None
    preprocess: Callable[[Image], torch.Tensor] | None = None
    tokenize: Callable[[list[str]], torch.Tensor | Mapping[str, torch.Tensor]] | None = None


class FactoryConfig(SimpleNamespace):
    """Stands where models of transformers have their configuration; `model` says what made it."""

    def to_dict(self) -> dict[str, Any]:
        return {"factory": self.model["factory"]}


class FunctionTokenizer:
    """A function of texts with the names that a tokenizer of transformers has."""

    pad_token, pad_token_id = "", 0
    unk_token, unk_token_id, eos_token, eos_token_id = None, None, None, None
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, tokenize: Callable[[list[str]], Any]) -> None:
        self.tokenize = tokenize

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, torch.Tensor]:
        found = self.tokenize(list(texts))
        return dict(found) if isinstance(found, Mapping) else {"input_ids": found}

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(number)


def load_factory(spec: ModelSpec, *, source: CheckpointSource, device: str) -> Encoder:
    """Return the encoder that a suite's factory makes, its weights rounded to `spec.dtype`.

    Runs its code. Raises ModelError for what fails in it, for files that it opens and the suite
    does not name, and for a module that is no tower of an encoder.
    """
    import torch

    code = source.code
    assert code is not None  # the source is a factory's
    where = f"{spec.where.of('factory')}: {code.name}"
    made = _call(code, where=where)
    modules: dict[TowerName, nn.Module | None] = {"vision": made.vision, "text": made.text}
    given: tuple[TowerName, ...] = tuple(
        name for name, module in modules.items() if module is not None
    )
    if given != spec.towers:
        raise ModelError(
            f"{where} returns the towers {', '.join(given) or 'none'}, and the suite says "
            f"towers: [{', '.join(spec.towers)}]"
        )
    for name, needed in (("vision", made.preprocess), ("text", made.tokenize)):
        if name in given and needed is None:
            what = "preprocess" if name == "vision" else "tokenize"
            raise ModelError(f"{where} returns a {name} tower and no {what}")
    whole: Any = torch.nn.Module()
    whole.config = FactoryConfig(model=pin_model(spec, source=source), _attn_implementation="sdpa")
    for name in given:
        whole.add_module(name, modules[name])
    whole.float().eval().requires_grad_(False)
    _refuse_shared(whole, where=where)
    specs = []
    for name in given:
        feeds = (
            {"pixel_values": _run(lambda: _show(made), what="preprocess", where=where)}
            if name == "vision"
            else _run(lambda: _read(made), what="tokenize", where=where)
        )
        specs.append(_examine(whole, name, feeds, where=f"{where}: the {name} tower"))
    whole = whole.to(getattr(torch, spec.dtype))
    compute_dtype = "float32" if device == "cpu" else spec.dtype
    whole = whole.to(device=device, dtype=getattr(torch, compute_dtype)).requires_grad_(False)
    return Encoder(
        module=whole,
        towers=tuple(specs),
        tokenizer=FunctionTokenizer(made.tokenize) if made.tokenize else None,
        image_processor=ImageTransform(made.preprocess) if made.preprocess else None,
        weights_digest=source.digest,
        description=source.description,
        weight_dtype=spec.dtype,
        compute_dtype=compute_dtype,
        device=device,
    )


def _call(code: FactoryCode, *, where: str) -> PlainEncoder:
    module, _, attribute = code.name.partition(":")
    opened: set[Path] = set()
    # Python reads the source of what is loaded already for a warning or a traceback.
    loaded = {getattr(known, "__file__", None) for known in list(sys.modules.values())}
    with _watch_files(opened):
        function = _run(
            lambda: getattr(importlib.import_module(module), attribute), what="import", where=where
        )
        made = _run(lambda: function(*code.files), what="the call", where=where)
    if not isinstance(made, PlainEncoder):
        raise ModelError(f"{where} returns {type(made).__name__}, a PlainEncoder is needed")
    known = _list_known(code)
    earlier = {Path(os.path.realpath(path)) for path in loaded if path}
    strange = _leave_known(opened - earlier, known=known)
    if strange:
        raise ModelError(
            f"{where} reads {strange[0]}, which is in no key of its measurements: add it to "
            f"model.files, and take the path that the function is given"
        )
    strange = _leave_known(_list_used(sys.modules[module]), known=known)
    if strange:
        raise ModelError(
            f"{where} uses {strange[0]}, which was imported before, and what it may have read then "
            f"is in no key of its measurements: move it into the package of the function, or add "
            f"it and what it reads to model.files"
        )
    return made


def _leave_known(paths: Iterable[Path], *, known: Sequence[Path]) -> list[Path]:
    """Return the files that are none of those that a factory may read."""
    return sorted(
        path for path in paths if path.is_file() and not any(map(path.is_relative_to, known))
    )


def _list_used(module: ModuleType) -> set[Path]:
    """Return the files of the modules that a module, and what it names, has names of.

    A module that was imported before is not opened again. One that is only imported within a
    function, or named by nothing, is not seen.
    """
    found: dict[Path, ModuleType] = {}
    waiting = [module]
    while waiting:
        for value in list(vars(waiting.pop()).values()):
            owner = (
                value
                if isinstance(value, ModuleType)
                else sys.modules.get(str(getattr(value, "__module__", "")))
            )
            path = getattr(owner, "__file__", None)
            if owner is None or not path or (place := Path(os.path.realpath(path))) in found:
                continue
            found[place] = owner
            if not _is_installed(place):
                waiting.append(owner)
    return set(found)


def _is_installed(path: Path) -> bool:
    return any(map(path.is_relative_to, _list_installed()))


def _list_known(code: FactoryCode) -> tuple[Path, ...]:
    """Return the files and folders that a factory may read: in the key, or part of the system."""
    named = [Path(os.path.realpath(path)) for path in code.list_files()]
    return (*named, Path(os.path.realpath(code.package)), *_list_installed())


def _list_installed() -> tuple[Path, ...]:
    """Return the folders of the system, of Python, of installed packages, and of this one."""
    sites = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = {*map(sysconfig.get_path, names), *sites}
    system = ("/dev", "/etc", "/proc", "/sys", "/usr/lib", "/usr/share", *installed)
    return (Path(__file__).parents[1], *(Path(os.path.realpath(path)) for path in system))


@contextmanager
def _watch_files(opened: set[Path]) -> Iterator[None]:
    """Put the real path of every file into `opened` that Python, or safetensors, opens to read."""
    import torch

    watching = True

    def note(path: Any) -> None:
        if isinstance(path, (str, bytes, os.PathLike)):
            opened.add(Path(os.path.realpath(os.fsdecode(path))))

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and not str(arguments[1] or "r").startswith(("w", "x")):
            note(arguments[0])

    def map_file(path: Any, *rest: Any, **options: Any) -> Any:
        note(path)
        return from_file(path, *rest, **options)

    sys.addaudithook(hear)  # it stays, deaf
    storage: Any = torch.UntypedStorage
    from_file = storage.from_file
    storage.from_file = staticmethod(map_file)
    try:
        yield
    finally:
        watching = False
        storage.from_file = from_file


def _run(function: Callable[[], Any], *, what: str, where: str) -> Any:
    try:
        return function()
    except QuantGateError:
        raise
    except Exception as error:  # whatever the team's code raises
        raise ModelError(f"{where}: {what} failed: {describe_error(error)}") from error


def _show(made: PlainEncoder) -> torch.Tensor:
    """Return the pixel values of an image of noise, [1, 3, H, W]."""
    import numpy
    from PIL import Image

    assert made.preprocess is not None
    noise = numpy.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=numpy.uint8)
    return made.preprocess(Image.fromarray(noise)).unsqueeze(0).float()


def _read(made: PlainEncoder) -> dict[str, torch.Tensor]:
    assert made.tokenize is not None
    tokenizer = FunctionTokenizer(made.tokenize)
    short, long = (tokenizer([text]) for text in ("a", "a photo of a small red cat on a sofa"))
    shapes = [tuple(inputs["input_ids"].shape) for inputs in (short, long)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"tokenize makes {shapes[0][-1]} tokens of one text and {shapes[1][-1]} of another: "
            f"fill every text up to one length, so that no batch changes another's numbers"
        )
    return long


def _examine(
    whole: nn.Module, name: TowerName, feeds: Mapping[str, torch.Tensor], *, where: str
) -> TowerSpec:
    """Return the spec of one tower of the model, whose attention is split where it must be."""
    import torch

    from pytest_quantgate.encoders.split_attention import split_attention

    module = whole.get_submodule(name)
    spec = TowerSpec(
        name=name,
        parts=(name,),
        inputs={key: tuple(value.shape[1:]) for key, value in feeds.items()},
        embeddings=name,
        attention=(),
        tokens=1,
        config=SimpleNamespace(hidden_size=1, num_hidden_layers=1),
        embed=partial(_embed, name=name),
        example=feeds,
    )

    def run() -> Any:
        with torch.no_grad():
            return spec.embed(whole, dict(feeds))

    before = _run(run, what="its forward", where=where)
    if not isinstance(before, torch.Tensor) or before.ndim != 2 or len(before) != 1:
        shown = tuple(getattr(before, "shape", ())) or type(before).__name__
        raise ModelError(f"{where} gives {shown} for one sample, embeddings [1, D] are needed")
    if not torch.equal(before, _run(run, what="its forward", where=where)):
        raise ModelError(
            f"{where} gives two answers to one input: something in it is random, such as dropout "
            f"that does not follow eval()"
        )
    _run(lambda: split_attention(module), what="splitting its attention", where=where)
    sites: list[tuple[nn.Module, tuple[int, ...]]] = []
    read: set[int] = set()
    with _recording(module, sites=sites, read=read):
        after = _run(run, what="its forward", where=where)
    moved = float((after - before).abs().max()) / max(float(before.abs().max()), 1e-12)
    if not moved <= SPLIT_TOLERANCE:
        raise ModelError(
            f"{where}: with its nn.MultiheadAttention split into layers its embedding moves by "
            f"{moved:.1e} of its largest value: it uses attention in a way that is not known here"
        )
    _refuse_unread(module, read=read, where=where)
    shape = max((shape for _, shape in sites), default=(1, 1, 1, 1))
    config = SimpleNamespace(hidden_size=shape[-3] * shape[-1], num_hidden_layers=len(sites) or 1)
    text = None
    if name == "text":
        tables = [m.num_embeddings for m in module.modules() if isinstance(m, torch.nn.Embedding)]
        text = TextSpec(
            vocabulary=max(tables, default=2**31), end_id=None, begin_id=None, pools_end=False
        )
    return TowerSpec(
        **{
            **vars(spec),
            "attention": tuple(sorted({type(site).__name__ for site, _ in sites})),
            "tokens": feeds["input_ids"].shape[1] if text else shape[-2],
            "config": config,
            "text": text,
        }
    )


def _embed(whole: Any, inputs: Mapping[str, torch.Tensor], *, name: str) -> torch.Tensor:
    module = whole.get_submodule(name)
    found: torch.Tensor = module(*inputs.values()) if len(inputs) == 1 else module(**inputs)
    return found


@contextmanager
def _recording(
    module: nn.Module, *, sites: list[tuple[nn.Module, tuple[int, ...]]], read: set[int]
) -> Iterator[None]:
    """Record who calls `scaled_dot_product_attention` by its name in torch.nn.functional, with the
    shape of the queries, and the addresses of all tensors that anything is computed of."""
    import torch
    from torch.nn import functional
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    mode: Any = TorchDispatchMode  # it has no types

    class Reads(mode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            leaves = tree_leaves((args, kwargs))
            read.update(leaf.data_ptr() for leaf in leaves if isinstance(leaf, torch.Tensor))
            return func(*args, **(kwargs or {}))

    stack = [module]
    fused = functional.scaled_dot_product_attention

    def attend(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        sites.append((stack[-1], tuple(query.shape)))
        return fused(query, *rest, **options)

    with ExitStack() as exits:
        for part in module.modules():
            hooks = (
                part.register_forward_pre_hook(lambda m, _: stack.append(m)),
                part.register_forward_hook(lambda *_: stack.pop() and None, always_call=True),
            )
            for hook in hooks:
                exits.callback(hook.remove)
        exits.enter_context(Reads())
        functional.scaled_dot_product_attention = attend
        try:
            yield
        finally:
            functional.scaled_dot_product_attention = fused


def _refuse_unread(module: nn.Module, *, read: set[int], where: str) -> None:
    """Raise ModelError for a layer that no forward reads: its weights would count as covered."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    idle = [
        name
        for name, part in module.named_modules()
        if isinstance(part, kinds) and part.weight.data_ptr() not in read
    ]
    if idle:
        raise ModelError(
            f"{where}: {len(idle)} layers run in no forward, first {idle[0]}: the tower of a "
            f"larger model must stand alone, or they would count as covered; delete them"
        )


def _refuse_shared(whole: nn.Module, *, where: str) -> None:
    """Raise ModelError for weights that stand in the model under two names."""
    names: dict[int, str] = {}
    for name, tensor in whole.state_dict().items():
        other = names.setdefault(tensor.data_ptr(), name) if tensor.numel() else name
        if other != name:
            raise ModelError(
                f"{where}: {other} and {name} are one tensor: give each tower what it runs "
                f"through alone, or its own copy (copy.deepcopy)"
            )
