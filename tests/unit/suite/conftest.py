"""Load a suite from its text, or get the message that refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import Suite
from tests.suite_texts import FILE, Load, Refusal


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a text as `suites/demo.quantgate.yaml` of a project."""

    def load_text(text: str | bytes) -> Suite:
        path = tmp_path / FILE
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return load_suite(path, relative_to=tmp_path)

    return load_text


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """Return the message with which a text is refused."""

    def refuse(text: str | bytes) -> str:
        with pytest.raises(SuiteError) as caught:
            load(text)
        return str(caught.value)

    return refuse
