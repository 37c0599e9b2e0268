"""What the lab's runs come to, from runs made by hand, with the arithmetic beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rprm.benchmarks import BenchmarkItems, ProcessBenchItem, Scores, Tally, tally_processbench
from rprm.cli.app import app
from rprm.errors import RunError
from rprm.records import Analysis, Solution, SolutionReward, StepReward
from rprm.runs import LineWriter, Run
from rprm_lab.findings import CLASSIFIER, RPRM, Estimate, estimate, find
from rprm_lab.page import claims, page
from rprm_lab.plan import TINY

SETTINGS = replace(TINY, num_seeds=2, world_steps=100)


def items(labels: Sequence[int]) -> BenchmarkItems[ProcessBenchItem]:
    return BenchmarkItems(
        tuple(
            ProcessBenchItem("lab", Solution(id=f"lab-{place}", problem="p", steps=("a", "b")), label)
            for place, label in enumerate(labels)
        )
    )


def tally(labels: Sequence[int], predictions: Sequence[int]) -> Tally:
    """Of a judge that predicts these first errors."""
    p_yes = {
        f"lab-{place}": tuple(0.0 if step == prediction else 1.0 for step in range(2))
        for place, prediction in enumerate(predictions)
    }
    return tally_processbench(items(labels), Scores(p_yes))


LABELS = [-1, -1, 0, 1]


def test_the_mean_over_seeds() -> None:
    # Right: both, and one of two errors: F1 = 2 * 100 * 50 / 150 = 66.7; and all: 100. The mean is 83.3.
    first, second = tally(LABELS, [-1, -1, 0, 0]), tally(LABELS, [-1, -1, 0, 1])
    found = estimate([[(1.0, first)], [(1.0, second)]])
    assert found.by_seed == pytest.approx((200 / 3, 100.0))
    assert found.value == pytest.approx(250 / 3)
    # Seeds alone: variance (100/6)^2 * 2 of two values, halved for the mean: 1.96 * 16.7 on either side, at least.
    assert found.value - found.low >= 1.96 * 100 / 6 - 1e-9
    assert found.high == 100.0


def test_a_run_against_itself_differs_by_nothing() -> None:
    one = tally(LABELS, [-1, 0, 0, -1])
    assert estimate([[(1.0, one), (-1.0, one)]]) == Estimate(0.0, 0.0, 0.0, (0.0,))


def test_differences_are_paired() -> None:
    labels = [-1, 0] * 40
    # Both miss the same 20 items; one misses another 4 of each kind besides.
    predictions = [label if place % 80 >= 20 else -1 - label for place, label in enumerate(labels)]
    worse = [label if place % 80 >= 28 else -1 - label for place, label in enumerate(labels)]
    first, second = tally(labels, predictions), tally(labels, worse)
    paired = estimate([[(1.0, first), (-1.0, second)]])
    assert paired.value == pytest.approx(75.0 - 65.0)
    alone = [estimate([[(1.0, one)]]) for one in (first, second)]
    widths = [one.high - one.low for one in alone]
    assert paired.high - paired.low < 0.8 * float(np.hypot(*widths))


def test_replicates_are_averaged() -> None:
    first, second = tally(LABELS, [-1, -1, 0, 0]), tally(LABELS, [-1, -1, 0, 1])
    assert estimate([[(0.5, first), (0.5, second)]]).value == pytest.approx(250 / 3)


def test_runs_on_other_items_are_refused() -> None:
    with pytest.raises(RunError, match="not on the same solutions"):
        estimate([[(1.0, tally(LABELS, LABELS))], [(1.0, tally(LABELS[:3], LABELS[:3]))]])


def analysis(p_yes: float | None) -> Analysis:
    verdict = None if p_yes is None else p_yes >= 0.5
    source = None if p_yes is None else "logprobs"
    return Analysis(text="", verdict=verdict, p_yes=p_yes, p_yes_source=source, num_tokens=1, finish_reason="stop")


def write_run(folder: Path, rows: Sequence[SolutionReward], threshold: float = 0.5) -> None:
    with Run(folder, stage="judge", settings={"threshold": threshold}, session={}) as run:
        writer = LineWriter(run.results_path, checksums=run.checksums)
        for row in rows:
            writer.write(row.model_dump_json())
        writer.close()
        run.complete({}, {})


def rewards(
    values: Sequence[Sequence[float | None]], analyses: Sequence[Sequence[Sequence[float | None]]] | None = None
) -> list[SolutionReward]:
    return [
        SolutionReward(
            id=f"lab-{place}",
            num_steps=2,
            first_error=-1,
            steps=tuple(
                StepReward(
                    step_index=index,
                    reward=reward,
                    vote=None,
                    analyses=tuple(map(analysis, analyses[place][index])) if analyses else (),
                )
                for index, reward in enumerate(row)
            ),
        )
        for place, row in enumerate(values)
    ]  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    folder = tmp_path / "lab"
    with Run(folder, stage="lab run", settings=SETTINGS.as_dict(), session={}) as run:
        run.complete({}, {})
    test = folder / "world" / "test"
    test.mkdir(parents=True)
    with (test / "solutions.jsonl").open("w") as stream:
        for place, label in enumerate(LABELS):
            row = {"id": f"lab-{place}", "problem": "p", "steps": ["a", "b"], "label": label}
            stream.write(json.dumps({**row, "generator": "lab", "final_answer_correct": label < 0}) + "\n")
    return folder


RIGHT = [[1.0, 1.0], [1.0, 1.0], [0.0], [1.0, 0.0]]
HALF = [[1.0, 1.0], [1.0, 1.0], [0.0], [1.0, 1.0]]


def test_an_empty_lab_has_nothing_to_report(lab: Path) -> None:
    found = find(lab, SETTINGS)
    assert found.curves == {}
    assert found.effects == {}
    assert "not run" in page(found, SETTINGS)


def test_data_scaling(lab: Path) -> None:
    for seed in range(2):
        for size, student in ((20, HALF), (40, RIGHT)):
            write_run(lab / f"seed-{seed}" / f"size-{size}" / "judged", rewards(student))
            # The classifier's rewards tell right from wrong between 0.8 and 0.95 alone: that it was measured at 0.5
            # is not held against it.
            raised = [[0.95 if value else 0.8 for value in (*row, 1.0)[:2]] for row in HALF]
            write_run(lab / f"seed-{seed}" / f"size-{size}" / "classifier-judged", rewards(raised))
    found = find(lab, SETTINGS)
    assert found.num_seeds == {"data": 2}
    assert found.curves["data"][RPRM][40].value == 100.0
    assert found.curves["data"][CLASSIFIER][40].value == pytest.approx(200 / 3)
    assert found.effects["R-PRM over classifier, 20 steps"] == Estimate(0.0, 0.0, 0.0, (0.0, 0.0))
    assert found.effects["R-PRM over classifier, 40 steps"].value == pytest.approx(100 / 3)
    # Its best is 66.7, first at 20 steps, where R-PRM has as much: 100%.
    assert found.label_share == 100.0


def critic(predictions: Sequence[int], num_tokens: int) -> list[SolutionReward]:
    """Solutions of two steps, each with two critiques of so many tokens that name the same step."""

    def critique(index: int) -> Analysis:
        vote = {"verdict": index < 0, "p_yes": float(index < 0), "p_yes_source": "vote", "first_error": index}
        return Analysis.model_validate({"text": "", "num_tokens": num_tokens, "finish_reason": "stop", **vote})

    return [
        SolutionReward(
            id=f"lab-{place}",
            num_steps=2,
            first_error=index,
            steps=tuple(
                StepReward(step_index=at, reward=float(index < 0), vote=None, analyses=(critique(index),) * (2 * at))
                for at in range(2)
            ),
        )
        for place, index in enumerate(predictions)
    ]


def test_a_critic_beside_the_judge(lab: Path) -> None:
    # HALF has every solution right but the last (F1 66.7), and 7 steps with two analyses of a token each. The critic
    # has with one critique one right solution of two and one error of two (F1 50), and with four all of them in one
    # seed, in the other what the judge has.
    twice = [[(value, value) for value in row] for row in HALF]
    for seed in range(2):
        folder = lab / f"seed-{seed}"
        for run in ("size-40/judged-once", "size-40/judged-4"):
            write_run(folder / run, rewards(HALF, twice))
        write_run(folder / "critic" / "judged-1", critic([-1, 0, 0, -1], 10))
        write_run(folder / "critic" / "judged-4", critic(LABELS if seed else [-1, -1, 0, 0], 30 + 10 * seed))
    found = find(lab, replace(SETTINGS, scaling_analyses=4))
    table = found.tables["critic"]
    assert list(table)[:4] == [f"{RPRM}, K = 1", f"{RPRM}, K = 4", "critic, K = 1", "critic, K = 4"]
    assert [table[row]["F1"].value for row in list(table)[:4]] == pytest.approx([200 / 3, 200 / 3, 50.0, 250 / 3])
    # 7 steps of 4 solutions, 2 tokens each: 3.5. Of the critic two critiques each: 20; and 60 and 80 by seed.
    assert table[f"{RPRM}, K = 4"]["tokens of a solution"].value == 3.5
    assert table["critic, K = 1"]["tokens of a solution"].value == 20.0
    assert table["critic, K = 4"]["tokens of a solution"].by_seed == (60.0, 80.0)
    assert table["critic, K = 4"][f"F1 over {RPRM}, K = 4"].by_seed == pytest.approx((0.0, 100 / 3))
    assert found.effects[f"critic, K = 1 over {RPRM}, K = 4"].value == pytest.approx(-50 / 3)
    assert "the place of a step alone" in page(found, SETTINGS)


def write_rounds(seed: Path, *, kept: bool = True) -> None:
    """A seed's runs before and after its one preference round."""
    with Run(seed / "rounds", stage="evolve", settings={}, session={}) as run:
        writer = LineWriter(run.results_path, checksums=run.checksums)
        for round_, best in ((0, 0), (1, int(kept))):
            writer.write(json.dumps({"round": round_, "model": f"model-{round_}", "best": f"model-{best}"}))
        writer.close()
        run.complete({}, {})
    for run, student in (
        ("size-40/judged", RIGHT),
        ("size-40/judged-once", HALF),
        ("judged-1", RIGHT),
        ("judged-1-once", RIGHT),
    ):
        write_run(seed / run, rewards(student))


def test_a_seed_that_is_not_done_is_left_out(lab: Path) -> None:
    write_rounds(lab / "seed-0")
    write_run(lab / "seed-1" / "size-40" / "judged", rewards(RIGHT))
    found = find(lab, SETTINGS)
    assert found.num_seeds == {"rounds": 1}
    assert found.curves["rounds"][RPRM][1].by_seed == (100.0,)
    # With one analysis, half is right before the round (F1 66.7), all after it.
    assert found.curves["rounds"][f"{RPRM}, K = 1"][0].value == pytest.approx(200 / 3)
    assert found.effects["preference rounds over cold start"].value == 0.0
    assert found.effects["preference rounds over cold start, K = 1"].value == pytest.approx(100 / 3)


def test_what_rounds_come_to_is_the_model_they_keep(lab: Path) -> None:
    write_rounds(lab / "seed-0")
    write_rounds(lab / "seed-1", kept=False)
    found = find(lab, SETTINGS)
    assert found.curves["rounds"][f"{RPRM}, K = 1"][1].by_seed == (100.0, 100.0)
    # 66.7 to 100 where the round's model is kept; where it is not, the cold start stays.
    assert found.effects["preference rounds over cold start, K = 1"].by_seed == pytest.approx((100 / 3, 0.0))


def test_k_from_one_run(lab: Path) -> None:
    # K = 2: the mean of both. Alone, the first analysis is right everywhere; the second calls the error of the last
    # solution right and says nothing of the second solution, which is not known then: both accuracies are 50, and so is
    # F1. K = 1 is the mean, 75; K = 2 has (0.1 + 0.7) / 2 = 0.4: right.
    both = [
        [[0.9, 0.9], [0.9, 0.9]],
        [[0.9, None], [0.9, 0.9]],
        [[0.1, 0.1], [0.9, 0.9]],
        [[0.9, 0.9], [0.1, 0.7]],
    ]
    for seed in range(2):
        write_run(lab / f"seed-{seed}" / "scaling", rewards([[0.9, 0.9]] * 4, both))
    found = find(lab, SETTINGS)
    line = found.curves["scaling"][RPRM]
    assert line[1].value == 75.0
    assert line[2].value == 100.0
    assert found.effects["K = 2 over 1"].value == 25.0


def test_the_page_names_every_claim_and_escapes(lab: Path) -> None:
    for seed in range(2):
        write_rounds(lab / f"seed-{seed}")
    done = CliRunner().invoke(app, ["lab", "report", str(lab)])
    assert done.exit_code == 0, done.output
    text = (lab / "report.html").read_text()
    for claim in claims(SETTINGS):
        assert claim.name.split(",")[0] in text
    assert "<svg" in text
    assert "&gt; 0" in text
    assert "2 seeds." in text
    assert json.loads(CliRunner().invoke(app, ["lab", "report", str(lab), "--json"]).stdout)["num_seeds"] == {
        "rounds": 2
    }


def test_a_folder_that_is_no_lab(tmp_path: Path) -> None:
    with Run(tmp_path / "run", stage="judge", settings={}, session={}) as run:
        run.complete({}, {})
    done = CliRunner().invoke(app, ["lab", "report", str(tmp_path / "run")])
    assert isinstance(done.exception, RunError)
    assert "holds no lab" in str(done.exception)
