"""The figures that README and docs/lab.md state, from the archived rewards of three seeds."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from rprm_lab.findings import Findings, find
from rprm_lab.running import read_settings

pytest.importorskip("math_verify")
pytestmark = pytest.mark.slow

ARCHIVE = Path(__file__).parents[1] / "results" / "2026-11.tar.xz"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    return find(folder, read_settings(folder))


@pytest.mark.parametrize(
    ("effect", "interval"),
    [
        ("R-PRM over classifier, 250 steps", (29.5, 22.1, 36.9)),
        ("R-PRM over classifier, 1,000 steps", (14.4, 6.3, 22.5)),
        ("R-PRM over classifier, 4,000 steps", (15.0, 6.1, 23.8)),
        ("R-PRM over classifier, out of distribution", (-38.2, -46.8, -29.6)),
        ("preference rounds over cold start", (7.0, 1.9, 12.1)),
        ("preference rounds over cold start, K = 1", (20.4, 15.5, 25.4)),
        ("K = 32 over 1", (18.8, 13.4, 24.1)),
        ("student over teacher, K = 10", (29.5, 20.6, 38.5)),
        ("guided search (8 steps a round, last), R-PRM over pass@1", (26.4, 17.6, 35.1)),
        ("guided search (8 steps a round, last), R-PRM over majority@8", (19.3, 7.9, 30.8)),
    ],
)
def test_effects(found: Findings, effect: str, interval: tuple[float, float, float]) -> None:
    estimate = found.effects[effect]
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(interval, abs=0.051)


def test_an_eighth_of_the_labels_suffices(found: Findings) -> None:
    # The classifier's best of five sizes is 66.8, of 4,000 steps; R-PRM has 67.4 of 500: 500 / 4,000.
    assert found.label_share == 12.5


def test_wrong_calculations_are_found(found: Findings) -> None:
    by_model = {model: round(row["calculation"].value) for model, row in found.tables["types"].items()}
    assert by_model == {"R-PRM": 95, "classifier": 31}
