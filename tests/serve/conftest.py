"""Servers of this process, for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from serving import Serve, served


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(served(**options))
