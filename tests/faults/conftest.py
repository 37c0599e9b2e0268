"""The fault suite: everything around the core misbehaves, and nothing is lost, invented or hung.

A short form of each test runs in `make test`; the long forms are marked slow, and so `long` too: they run in
`make test-all`, which prints what they counted, and not at every change. A test reports its counts by
`figures(kills=200, resumed_to_the_same_bytes=200)`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("slow"):
            item.add_marker("long")


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Report the counts of a test, for the table at the end of the run."""

    def report(**counts: int) -> None:
        record_property("faults", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))

    return report
