"""A judge for the adapters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stated_judge import Judge


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as prm:
        yield prm
