"""Judging through an endpoint that misbehaves: nothing lost, invented, paid for twice, or hung."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

import pytest
from misbehaving import KEY

from rprm.cli import main

pytestmark = pytest.mark.usefixtures("impatient_client")


@pytest.fixture
def impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setenv("RPRM_TEST_KEY", KEY)


def rprm(*arguments: object) -> tuple[int | str | None, str]:
    """A command in this process: its exit code, and all that it printed."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", ["rprm", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    if isinstance(code, str):
        printed.write(code)
        code = 1
    return code or 0, printed.getvalue()


if __name__ == "__main__":
    pass
