"""One family of encoders: which checkpoints are of it, and what their towers are.

A family is one file. Those of other packages register the entry point `pytest_quantgate.encoders`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.evidence.audit import TowerName

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TokenizerClass:
    """The class that reads texts where the files of a checkpoint name none, by its `names`.

    `special` are its special tokens by their keys in tokenizer_config.json. `from_file` is whether
    it reads as tokenizer.json says; `finish(tokenizer, begin=, end=)` puts right, in a tokenizer of
    the package tokenizers, what the class does not take from that file (None: nothing).
    `is_packaged` is whether it comes with a package, and no file of a checkpoint is read.
    """

    names: tuple[str, ...] = ()
    special: Mapping[str, str] = field(default_factory=dict)
    from_file: bool = True
    is_packaged: bool = False
    finish: Callable[..., None] | None = None


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One kind of model of a family: names of transformers' classes, the towers that it has, and
    what these classes take where a file says nothing.

    `describe_towers` takes the configuration object, and raises ValueError for a model that is no
    encoder. `image_processor` is empty for a model without images. `settings` are the
    configuration's, by the name of the section ("" for the top), `processing` those of
    preprocessor_config.json, whose `image_mean` and `image_std` are the ones that most such models
    were trained with.

    `options` are given to the model when it is made, `unused` are beginnings of names of weights
    that then have no place, on purpose. `inside` is what other files put in front of each name: the
    name of this model in a larger one. `any_size` is whether the model takes images of the size
    that its processor makes, whatever its config says: positions are interpolated. `size_is_area`
    is whether `size` in its files counts the pixels of an image, and not those of a side.

    `since` is the first release of transformers that was seen to have the parts of `model` under
    the names that are read here.

    A kind whose model is another one than config.json names, or whose files are others, overrides
    the methods.
    """

    towers: tuple[TowerName, ...]
    describe_towers: Callable[[Any], tuple[TowerSpec, ...]]
    config: str = ""
    model: str = ""
    image_processor: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    inside: str = ""
    any_size: bool = False
    size_is_area: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    processing: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerClass = TokenizerClass()
    since: tuple[int, int] = (5, 9)

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        """Return all that makes the model, of config.json and of what else its folder says.

        Raises UnsupportedModel for what this kind cannot do, with what to do instead.
        """
        del directory
        return settings

    def list_notes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what was taken for granted because no file of the folder says it."""
        del settings
        return ()

    def place(self, name: str, *, settings: Mapping[str, Any]) -> str | None:
        """Return the name in the model of a stored tensor, None for one that is not read."""
        del settings
        return name.removeprefix(f"{self.inside}.") if self.inside else name

    def make_config(self, settings: Mapping[str, Any]) -> Any:
        """Return the configuration object, whose `to_dict` gives what is needed to make it."""
        import transformers

        return getattr(transformers, self.config).from_dict(dict(settings))

    def make_module(self, config: Any, *, attention: str) -> torch.nn.Module:
        """Return a model without its weights, in the default type of torch."""
        import transformers

        kind: Any = getattr(transformers, self.model)
        module: torch.nn.Module = without_patch(kind, "_from_config")(
            config, attn_implementation=attention, **self.options
        )
        return module

    def load(
        self, config: Any, *, state: dict[str, torch.Tensor], dtype: torch.dtype, attention: str
    ) -> Loaded:
        """Return the model with its weights in `dtype`."""
        import transformers

        kind: Any = getattr(transformers, self.model)
        module, info = without_patch(kind, "from_pretrained")(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            **self.options,
        )
        missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
        return Loaded(
            module=module, missing=tuple(missing), unused=tuple(sorted(info["unexpected_keys"]))
        )

    def read_tokenizer(self, folder: Path, *, config: Any) -> Any:
        """Return what reads texts, as a tokenizer of transformers does; None without texts."""
        import transformers

        del config
        if "text" not in self.towers:
            return None
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )

    def read_processor(self, folder: Path, *, config: Any) -> Any:
        """Return what prepares images, as one of transformers does; None without images."""
        import transformers

        del config
        if not self.image_processor:
            return None
        made_by: Any = getattr(transformers, self.image_processor)
        return made_by.from_pretrained(folder, local_files_only=True)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its weights; what it lacks of them, and names of those that have no place."""

    module: torch.nn.Module
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def without_patch(kind: Any, name: str) -> Callable[..., Any]:
    """Return a class method of a model of transformers, as it is without ModelOpt's patch.

    With `mto.enable_huggingface_checkpointing()`, which anything in the process may have called, it
    would unpickle a state that lies where the config points to, and fail without a path.
    """
    method: Callable[..., Any] = getattr(kind, name)
    function: Any = getattr(method, "__func__", method)
    if not function.__module__.startswith("modelopt."):
        return method
    return MethodType(kind._modelopt_cache[name].__func__, kind)


def load_strictly(module: torch.nn.Module, *, state: Mapping[str, torch.Tensor]) -> Loaded:
    """Put weights into a module, rounded to its type; those of another shape are missing."""
    kinds = {name: tensor.shape for name, tensor in module.state_dict().items()}
    fitting = {n: t for n, t in state.items() if n not in kinds or kinds[n] == t.shape}
    found = module.load_state_dict(fitting, strict=False)
    return Loaded(
        module=module,
        missing=tuple(sorted(found.missing_keys)),
        unused=tuple(sorted(found.unexpected_keys)),
    )


@dataclass(frozen=True, kw_only=True)
class Composed(Pretrained):
    """A model that transformers has no class of its own for: its family makes it, part by part."""

    def load(
        self, config: Any, *, state: dict[str, torch.Tensor], dtype: torch.dtype, attention: str
    ) -> Loaded:
        return load_strictly(self.make_module(config, attention=attention).to(dtype), state=state)


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """A family: its kinds of models by the `model_type` of config.json.

    A kind of which others share the `model_type` goes by the class in `architectures`, which
    counts first. `refused` says of others why they are none yet, and what to do.
    """

    name: str
    pretrained: Mapping[str, Pretrained]
    refused: Mapping[str, str] = field(default_factory=dict)
