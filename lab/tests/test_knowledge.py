"""What the embedded judge of `rprm` is said to know is the world that it was trained in."""

from __future__ import annotations

from pathlib import Path

import pytest

from rprm.embedded import WORDS, outside_world
from rprm.reading import Source, read_solutions
from rprm.records import Solution
from rprm_lab.language import UNSEEN_WORK, WORK, vocabulary
from rprm_lab.world import WorldSettings, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab") / "world"
    write_world(folder, WorldSettings(num_train=1_000, num_test=300, seed=7))
    return folder


def reasons(path: Path) -> list[str | None]:
    rows = [row for row in read_solutions(Source(str(path))) if isinstance(row, Solution)]
    assert len(rows) >= 300
    return [outside_world(solution) for solution in rows]


def test_the_words_are_those_of_the_wordings() -> None:
    # The tables have units of time in the singular; their wordings add the s.
    times = {f"{time}s" for _, _, time in (*WORK, *UNSEEN_WORK)}
    assert set(WORDS.read_text().split()) == times | {word.lower() for word in vocabulary()}


@pytest.mark.parametrize("split", ["test", "train"])
def test_no_solution_of_the_world_lies_outside(world: Path, split: str) -> None:
    assert set(reasons(world / split / "solutions.jsonl")) == {None}


def test_out_of_distribution_only_numbers_lie_outside(world: Path) -> None:
    """A wrong step of a long chain may come to more than 9,999: 2% of the solutions at most."""
    found = reasons(world / "ood" / "solutions.jsonl")
    outside = [reason for reason in found if reason is not None]
    assert all(reason.startswith("the number ") for reason in outside)
    assert len(outside) <= 0.02 * len(found)
