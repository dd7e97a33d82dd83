"""What can be wrong with the files of a checkpoint, said the same wherever it is found."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.sanity import Fault


def fault_error(fault: Fault, *, model: str) -> ModelError:
    """Return the error that a fault of a model is where it is met."""
    return ModelError(f"{model}: {fault.text}: {fault.fix}", code=f"sanity.{fault.finding}")


def unsupported(reason: str) -> Fault:
    """A model that its family cannot do; the reason says what to do instead."""
    return Fault(finding="model-unsupported", text=reason, fix="")


def unknown(reason: str) -> Fault:
    """A folder that is no checkpoint of a known family: nothing in it can be looked at."""
    return Fault(
        finding="config",
        text=reason,
        fix="name a folder that save_pretrained of a model of transformers wrote",
    )


def unsaid(model_type: str) -> Fault:
    """A family that does not say what the files of its checkpoints leave out."""
    return Fault(
        finding="not-looked-at",
        text=f"its files were not held against one another: the family of model_type "
        f"{model_type!r} does not say what they leave out",
        fix="quantgate validate --deep runs a sample through FP16",
        certain=False,
    )


def absent() -> Fault:
    return Fault(
        finding="not-looked-at",
        text="its files are not on this machine: nothing of them was looked at",
        fix="run it where they are",
        certain=False,
    )


def made_by(code: str) -> Fault:
    """A model that code makes, which is run by a run alone."""
    return Fault(
        finding="not-looked-at",
        text=f"nothing of it was looked at: {code} makes it, which only a run calls",
        fix="run the suite with pytest",
        certain=False,
    )


def fp16_rounded(*, tower: str, layers: int, most: int) -> Fault:
    return Fault(
        finding="fp16-rounded",
        text=f"each of {layers} layers of its {tower} tower that were looked at has at most "
        f"{most} different magnitudes of weights: they were rounded to 8 bits or fewer before, and "
        f"what that lost is in FP16, too",
        fix="name the checkpoint from before it was quantized; for one that was trained so, say in "
        "an accuracy gate what it is known to score (published)",
    )


def image_size(*, made: Sequence[int], taken: Sequence[int]) -> Fault:
    """Pixel values [C, H, W] of another shape than the vision tower takes."""
    sizes = [f"{shape[0]} x {shape[1]} x {shape[2]}" for shape in (made, taken)]
    return Fault(
        finding="image-size",
        text=f"its image processor makes images of {sizes[0]} (channels, height, width), the "
        f"vision tower takes {sizes[1]}",
        fix=f"set size and crop_size in preprocessor_config.json to the image_size of config.json "
        f"({taken[1]})",
    )


def preprocessing(reason: str) -> Fault:
    return Fault(
        finding="preprocessing",
        text=f"its image processor cannot prepare an image: {reason}",
        fix="compare its preprocessor_config.json with the original's",
    )


def no_image_processor() -> Fault:
    return Fault(
        finding="preprocessing",
        text="its folder holds no image processor (preprocessor_config.json)",
        fix="save it too: image_processor.save_pretrained(FOLDER)",
    )


def tokenizing(reason: str, *, text: str = "") -> Fault:
    what = f"its tokenizer cannot read {text!r}" if text else "its tokenizer cannot be read"
    return Fault(
        finding="tokenizing",
        text=f"{what}: {reason}",
        fix="save the tokenizer that the model was trained with beside it",
    )


def encoding(what: str, reason: str) -> Fault:
    return Fault(
        finding="encoding",
        text=f"FP16 cannot encode {what}: {reason}",
        fix="compare config.json with the files beside it",
    )


def no_tokenizer(files: Sequence[str]) -> Fault:
    """A folder without a tokenizer, for which transformers makes one up."""
    return Fault(
        finding="no-tokenizer",
        text=f"its folder holds no tokenizer (none of {', '.join(files)}): transformers would make "
        f"one up, and every text read alike",
        fix="save the tokenizer too: tokenizer.save_pretrained(FOLDER)",
    )


def tokenizer_empty(*, words: int) -> Fault:
    return Fault(
        finding="tokenizer-empty",
        text=f"its tokenizer knows {words} tokens beside the special ones",
        fix="save the tokenizer that the model was trained with beside it",
    )


def no_padding_token() -> Fault:
    return Fault(
        finding="no-padding-token",
        text="its tokenizer has no padding token",
        fix="set pad_token in tokenizer_config.json to the one that the model was trained with",
    )


def padding_side(*, side: str, trained: str) -> Fault:
    return Fault(
        finding="padding-side",
        text=f"its tokenizer fills short texts up on the {side}, the text tower was trained with "
        f"padding on the {trained}: every token stands at another position",
        fix=f"set padding_side in tokenizer_config.json to {trained!r}",
    )


def token_beyond(*, token: str, number: int, rows: int, text: str = "", others: int = 0) -> Fault:
    """A token without a row in the embedding table."""
    of = f" of {text!r}" if text else ""
    more = f" (and {others} more)" if others else ""
    return Fault(
        finding="token-beyond-table",
        text=f"token {number} ({token!r}){more}{of} lies behind the embedding table of {rows} rows "
        f"(text_config.vocab_size in config.json)",
        fix="use the tokenizer of this model, or grow the table: "
        "model.resize_token_embeddings(len(tokenizer))",
    )


def end_token_unknown(token: str) -> Fault:
    return Fault(
        finding="end-token-absent",
        text=f"its tokenizer has no token {token!r}, which its tokenizer_config.json names as the "
        f"end token",
        fix="save the tokenizer that the model was trained with beside it",
    )


def end_token_not_appended(token: str, *, certain: bool) -> Fault:
    return Fault(
        finding="end-token-absent",
        text=f"its tokenizer appends no end token {token!r} to a text, and the text tower pools it",
        fix="mend post_processor in tokenizer.json, or save the tokenizer that the model was "
        "trained with",
        certain=certain,
    )


def other_end_token(*, token: str, number: int, configured: int) -> Fault:
    return Fault(
        finding="pooled-token",
        text=f"the text tower pools token {configured} (text_config.eos_token_id in config.json), "
        f"the tokenizer ends texts with {number} ({token!r})",
        fix=f"set text_config.eos_token_id to {number}",
    )


def token_above_end(*, token: str, number: int, end: str, end_id: int) -> Fault:
    """A token that an old config pools in place of the end token."""
    return Fault(
        finding="pooled-token",
        text=f"text_config.eos_token_id is 2, for which the text tower pools the largest id of a "
        f"text: {token!r} ({number}) is above the end token {end!r} ({end_id})",
        fix=f"set text_config.eos_token_id to {end_id}",
    )


def too_long(*, tokenizer: int, positions: int) -> Fault:
    return Fault(
        finding="max-length",
        text=f"its tokenizer makes texts of up to {tokenizer} tokens (model_max_length), the text "
        f"tower has {positions} positions (max_position_embeddings)",
        fix=f"set model_max_length in tokenizer_config.json to {positions}: whoever relies on it "
        f"gets an IndexError",
        certain=False,
    )


def other_normalization(
    *,
    mean: Sequence[float],
    std: Sequence[float],
    usual: Sequence[Sequence[float]],
    model_type: str,
) -> Fault:
    shown, known = (
        " and ".join(", ".join(f"{value:.4g}" for value in part) for part in parts)
        for parts in ((mean, std), usual)
    )
    return Fault(
        finding="normalization",
        text=f"image_mean and image_std ({shown}) are not the usual ones of {model_type} ({known})",
        fix="right only where the model was trained with them: compare preprocessor_config.json "
        "with the original's",
        certain=False,
    )


def unusable_normalization(what: str) -> Fault:
    return Fault(
        finding="pixel-range",
        text=f"{what} in preprocessor_config.json: pixels would not lie around 0",
        fix="set do_rescale and do_normalize to true, and image_mean and image_std to the model's",
    )


def overflow(*, layer: str, largest: float, of: str, certain: bool) -> Fault:
    return Fault(
        finding="float16-overflow",
        text=f"{layer} gives up to {largest:.3g} for {of}, and float16 ends at 65504",
        fix="ship it in bfloat16 (dtype: bfloat16), or scale these weights down",
        certain=certain,
    )
