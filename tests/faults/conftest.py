"""The fault suite: everything around the core misbehaves, and nothing is lost, invented or hung.

A short form of each test runs in `make test`; the long forms are marked slow and run in `make test-all`, which prints
what they counted. A test reports its counts by `figures(kills=200, resumed_to_the_same_bytes=200)`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Report the counts of a test, for the table at the end of the run."""

    def report(**counts: int) -> None:
        record_property("faults", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))

    return report
