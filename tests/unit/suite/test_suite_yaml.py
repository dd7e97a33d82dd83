"""What is no YAML, or more than a suite needs; any text is a suite or one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_quantgate import bounds
from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.suite.load import load_suite
from tests.suite_texts import EXPORTED, FILE, SMALL, VALID, Load, Refusal, swap


def test_empty_file_is_refused(refusal: Refusal) -> None:
    words = f"{FILE}:1: the suite is empty: it needs quantgate, model, gates, ..."

    assert refusal("") == words
    assert refusal("# a comment\n---\n") != words
    assert refusal("# a comment\n") == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a, b]", "1: expected a mapping (key: value), found a list"),
        ("hello", "1: expected a mapping (key: value), found 'hello'"),
        ("quantgate: [1\nmodel: x\n", "2: not YAML: expected ',' or ']', but got ':'"),
        (
            "quantgate: 1\n\tmodel: x\n",
            "2: not YAML: found character '\\t' that cannot start any token",
        ),
        ('quantgate: "1\n', "2: not YAML: found unexpected end of stream"),
        (
            "%YAML 3.0\n---\na: 1\n",
            "1: not YAML: found incompatible YAML document (version 1.* is required)",
        ),
        (f"%YAML {'9' * 5000}.1\n---\na: 1\n", "1: not YAML: a number is out of range"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "2: not YAML: a number is out of range"),
        ('a: 1\nb: "\\U00110000"\n', "2: not YAML: a number is out of range"),
        ("a: 1\n---\nb: 1\n", "2: a second document starts: a suite is one"),
        ("a: 1\nb: &x 1\n", "2: anchors and aliases are not part of a suite: write the value out"),
        ("a: &x [1]\n", "1: anchors and aliases are not part of a suite: write the value out"),
        ("a: 1\nb: *x\n", "2: anchors and aliases are not part of a suite: write the value out"),
        ("a: 1\nb: !!bool maybe\n", "2: tags (!...) are not part of a suite"),
        ("a: !!python/object/apply:os.system [x]\n", "1: tags (!...) are not part of a suite"),
        ("a: !x {}\n", "1: tags (!...) are not part of a suite"),
        ("a: 1\nb: \x07\n", "2: the character U+0007 is not allowed in a suite"),
        ("a: 1\nb: \x00", "2: the character U+0000 is not allowed in a suite"),
        ('a: 1\nb: "x\\0"\n', "2: the character U+0000 is not allowed in a suite"),
        ('a: 1\n"\\e[31m": 1\n', "2: the character U+001B is not allowed in a suite"),
        ('a: 1\nb: "\\ud800"\n', "2: the character U+D800 is not allowed in a suite"),
        (b"a: 1\nb: \xff\n", "2: not UTF-8 (byte 8): save it as UTF-8"),
        ("a: ä".encode("utf-16"), "1: not UTF-8 (byte 0): save it as UTF-8"),
        ("[" * 100_000, "1: nested deeper than 20 levels"),
        ("{" * 100_000, "1: nested deeper than 20 levels"),
        ("- " * 10_000, "1: nested deeper than 20 levels"),
        ("".join(f"{' ' * i}a:\n" for i in range(500)), "21: nested deeper than 20 levels"),
        (
            "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 99)),
            "1: anchors and aliases are not part of a suite: write the value out",
        ),
    ],
    ids=lambda value: ascii(value[:30]),
)
def test_what_is_no_plain_yaml_is_refused(refusal: Refusal, text: str | bytes, words: str) -> None:
    assert refusal(text) == f"{FILE}:{words}"


def test_nesting_that_a_quant_cfg_may_need_is_taken(load: Load) -> None:
    recipe = "{a: " * 15 + "1" + "}" * 15

    assert load(swap("{recipe: fp8}", f"{{recipe: {recipe}}}", text=SMALL)).quantize.recipe  # type: ignore[union-attr]


def test_depth_counts_what_is_open_and_not_what_was(load: Load) -> None:
    recipe = "[" + ", ".join(["[1]"] * 50) + "]"

    assert load(swap("{recipe: fp8}", f"{{recipe: {recipe}}}", text=SMALL)).quantize.recipe == (  # type: ignore[union-attr]
        ([1],) * 50
    )


def test_file_of_a_gigabyte_is_not_parsed(refusal: Refusal) -> None:
    text = SMALL + "#" * (bounds.SUITE_BYTES - len(SMALL) + 1)

    assert refusal(text) == (
        f"{FILE}:1: cannot read the suite: it is larger than {bounds.SUITE_BYTES} bytes"
    )


# -- whatever stands in the file, the answer is a suite or one line -------------------------------

NASTY = [
    "", ":", ": ", "-", "- ", "?", "? ", "!", "!!int", "!!null ", "&a", "*a", "<<", "|", ">", "%",
    "@", "`", "#", "[", "]", "{", "}", ",", "'", '"', "\\", '"\\x00"', '"\\ud800"', '"\\UFFFFFFFF"',
    "\t", "\n", "\n\n", "\r", "  ", "---", "...", "%YAML 9.9", "~", "null", "true", "off", ".nan",
    ".inf", "-0", "0x1F", "0o7", "1_000", "1:30", "1e9999", "9" * 400, "0.0000000000000000000001",
    "٥pp", "½", "pp", "%", "dB", "${", "${A}", "$", "\u202e", "\u2028", "\x85", "\ufeff", "\x00",
    "\x1b[31m", "\U0001f600", "é", "e\u0301", "a" * 300, "[" * 25, "{a: " * 25, "2027-02-30",
]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz.quantgate.yaml"


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Take a valid suite and cut, double or overwrite parts of it."""
    text = draw(st.sampled_from([VALID, SMALL, EXPORTED]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 12, 60])))
        part = draw(
            st.one_of(
                st.sampled_from(NASTY),
                st.text(max_size=6),
                st.just(text[start:end] * 2),
            )
        )
        text = text[:start] + part + text[end:]
    return text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=mutated())
@example(text=VALID)
@example(text=EXPORTED)
@example(text=SMALL.replace("reference", '"\\UFFFFFFFF"'))
@example(text=f"%YAML {'9' * 5000}.1\n---\n{SMALL}")
def test_any_text_is_a_suite_or_one_readable_line(scratch: Path, text: str) -> None:
    scratch.write_bytes(text.encode("utf-8", "surrogatepass"))

    try:
        suite = load_suite(scratch, relative_to=scratch.parent)
    except QuantGateError as error:
        message = str(error)
        assert re.match(r"fuzz\.quantgate\.yaml:[1-9]\d*: ", message)
        message.encode("utf-8")  # a report can hold it
    else:
        assert suite.name == "fuzz"


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)

    with pytest.raises(SuiteError, match=r"^fuzz\.quantgate\.yaml:[1-9]\d*: "):
        load_suite(scratch, relative_to=scratch.parent)


@pytest.mark.parametrize(
    "key",
    ["samples: 512", "max_drop: 0.5pp", "min_cosine: .99", "min_sqnr: 15dB", "floor: 50%",
     "recipe: fp8-attention", "towers: [vision]", "until: 2027-03-01", "dataset: wds/photos",
     "dtype: bfloat16", "metric: acc1", "task: photos/retrieval", "data: photos/train",
     "stage: onnx", "allow: [softmax]", "max_size_ratio: 0.6x", "max_error: 0.2%",
     "max_sqnr_change: 1.5dB", "target: sm120", "batch: 8", "attention: fused-fp8",
     "max_plan: 512MiB"],
)  # fmt: skip
def test_any_value_of_a_key_is_a_suite_or_one_line(load: Load, key: str) -> None:
    text = VALID if key in VALID else EXPORTED
    messages = []
    for value in NASTY:
        try:
            load(swap(key, f"{key.partition(':')[0]}: {value}", text=text))
        except SuiteError as error:
            messages.append(str(error))

    assert messages
    for message in messages:
        assert re.match(rf"{FILE}:[1-9]\d*: ", message)
