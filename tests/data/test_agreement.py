"""Labels that a second opinion shares: which are kept, which are dropped and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rprm.data.agreement import ELSEWHERE, FOUND_NONE, FOUND_ONE, NO_LABEL, SPLIT, UNDECIDED, keep_agreeing, open_labels
from rprm.data.steps import gathered_source, read_steps
from rprm.errors import InputError, RunError
from rprm.reading import Source
from rprm.records import Analysis, SolutionReward, StepReward
from rprm.runs import LineWriter, Run

#: Of a critic each critique's first error; of a judge each step's verdicts.
Said = list[int | None] | list[list[bool]]


def reward(name: str, num_steps: int, first_error: int | None, said: Said, *, requested: int | None = None) -> str:
    def one(verdict: bool | None, **more: Any) -> Analysis:
        return Analysis(
            text="t", verdict=verdict, p_yes=None if verdict is None else float(verdict), num_tokens=1,
            p_yes_source=None if verdict is None else "vote", finish_reason="stop", **more,
        )  # fmt: skip

    analyses: list[tuple[Analysis, ...]]
    if said and not isinstance(said[0], list):
        critiques = tuple(one(None if at is None else at == -1, first_error=at) for at in said)  # type: ignore[arg-type]
        analyses = [()] * (num_steps - 1) + [critiques]
    else:
        analyses = [tuple(map(one, verdicts)) for verdicts in said]  # type: ignore[arg-type]
    steps = tuple(
        StepReward(step_index=at, reward=0.5, vote=0.5, analyses=some, num_requested=requested or len(some) or None)
        for at, some in enumerate(analyses)
    )
    return SolutionReward(id=name, num_steps=num_steps, first_error=first_error, steps=steps).model_dump_json()


def judged(folder: Path, *rows: str) -> Path:
    with Run(folder, stage="judge", settings={"row_format": 2, "rewarder": "critic"}) as run:
        writer = LineWriter(run.results_path, checksums=run.checksums)
        for row in rows:
            writer.write(row)
        writer.close()
        run.complete({}, {})
    return folder


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def solution(name: str, label: int | None, **more: Any) -> dict[str, Any]:
    return {"id": name, "problem": "p", "steps": ["a", "b", "c"], "label": label, **more}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_labels_are_kept_where_the_first_error_is_the_same(tmp_path: Path) -> None:
    found = {"both": 1, "none": -1, "later": 2, "clean": -1, "blamed": 0, "silent": None, "new": 1}
    labels = {"both": 1, "none": -1, "later": 1, "clean": 1, "blamed": -1, "silent": 1, "new": None}
    rows = [solution(name, label, soft=[1.0, 0.0, None], source="rollouts") for name, label in labels.items()]
    opinion = judged(tmp_path / "judged", *(reward(name, 3, at, [at]) for name, at in found.items()))
    summary = keep_agreeing(open_labels(write(tmp_path / "s.jsonl", *rows)), opinion, tmp_path / "kept")
    assert summary["kept"] == {"wrong": 1, "right": 1}
    assert summary["dropped"] == {
        UNDECIDED: {"wrong": 1}, SPLIT: {}, NO_LABEL: {"unlabelled": 1}, FOUND_NONE: {"wrong": 1},
        FOUND_ONE: {"right": 1}, ELSEWHERE: {"wrong": 1},
    }  # fmt: skip
    kept = lines(tmp_path / "kept" / "solutions.jsonl")
    assert [(row["id"], row["label"], row["soft"]) for row in kept] == [
        ("both", 1, [1.0, 0.0, None]), ("none", -1, [1.0, 0.0, None])
    ]  # fmt: skip
    assert [(row["id"], row["label"], row["found"]) for row in lines(tmp_path / "kept" / "dropped.jsonl")] == [
        ("later", 1, 2), ("clean", 1, -1), ("blamed", -1, 0), ("silent", 1, None), ("new", None, 1)
    ]  # fmt: skip
    card = (tmp_path / "kept" / "README.md").read_text()
    assert "| kept | 1 | 1 | 0 |" in card
    assert f"| dropped: {FOUND_NONE} | 0 | 1 | 0 |" in card
    # What is kept goes on to labelled steps, with its shares.
    steps = [step for row in read_steps(gathered_source(tmp_path / "kept")) for step in row.steps]  # type: ignore[union-attr]
    assert [(step.id, step.label, step.soft) for step in steps][:2] == [("both-0", True, 1.0), ("both-1", False, 0.0)]


def test_the_same_bytes_again(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", solution("x", 1), solution("y", -1))
    opinion = judged(tmp_path / "judged", reward("x", 3, 1, [1]), reward("y", 3, -1, [-1]))
    kept = [keep_agreeing(open_labels(path), opinion, tmp_path / "kept") for _ in range(2)]
    assert kept[0] == kept[1]
    assert len(lines(tmp_path / "kept" / "solutions.jsonl")) == 2


def test_every_sample_must_agree_where_that_is_asked(tmp_path: Path) -> None:
    labels = {"all": 1, "most": 1, "mute": 1, "new": None, "split": None}
    path = write(tmp_path / "s.jsonl", *(solution(name, label) for name, label in labels.items()))
    opinion = judged(
        tmp_path / "judged", reward("all", 3, 1, [1, 1, 1]), reward("most", 3, 1, [1, 1, -1]),
        reward("mute", 3, 1, [1, None, 1]), reward("new", 3, 2, [2, 2, 2]), reward("split", 3, 0, [0, 0, 1]),
    )  # fmt: skip
    summary = keep_agreeing(open_labels(path), opinion, tmp_path / "kept", unanimous=True)
    assert summary["dropped"][SPLIT] == {"wrong": 2, "unlabelled": 1}
    # What the samples alone say becomes the label.
    assert [(row["id"], row["label"], row["source"]) for row in lines(tmp_path / "kept" / "solutions.jsonl")] == [
        ("all", 1, None), ("new", 2, "agree")
    ]  # fmt: skip


def test_a_judges_samples_agree_step_by_step(tmp_path: Path) -> None:
    opinion = judged(
        tmp_path / "judged",
        reward("yes", 3, 1, [[True, True], [False, False]]),
        reward("no", 3, 1, [[True, False], [False, False]]),
        reward("clean", 3, -1, [[True, True]] * 3),
    )
    labels = open_labels(write(tmp_path / "s.jsonl", solution("yes", 1), solution("no", 1), solution("clean", -1)))
    keep_agreeing(labels, opinion, tmp_path / "kept", unanimous=True)
    assert [row["id"] for row in lines(tmp_path / "kept" / "solutions.jsonl")] == ["yes", "clean"]


@pytest.mark.parametrize(("said", "requested"), [([1], None), ([1, 1], 3)])
def test_too_few_samples_are_refused(tmp_path: Path, said: Said, requested: int | None) -> None:
    opinion = judged(tmp_path / "judged", reward("x", 3, 1, said, requested=requested))
    with pytest.raises(InputError, match="-k 2 or more and --stopping none"):
        keep_agreeing(
            open_labels(write(tmp_path / "s.jsonl", solution("x", 1))), opinion, tmp_path / "kept", unanimous=True
        )


def test_labelled_steps_stay_labelled_steps(tmp_path: Path) -> None:
    step = {"problem": "p", "previous_steps": ["a"], "step": "b", "soft": 0.25}
    path = write(
        tmp_path / "s.jsonl", {"id": "x", **step, "label": True}, "{broken", {"id": "y", **step, "label": False}
    )
    labels = open_labels(path)
    assert [row.steps for row in labels.solutions() if hasattr(row, "steps")] == [("a", "b")] * 2
    # Of a step judged alone: -1 where it is right, else its own index.
    opinion = judged(tmp_path / "judged", reward("x", 2, 1, [[], [False]]), reward("y", 2, 1, [[], [False]]))
    summary = keep_agreeing(labels, opinion, tmp_path / "kept")
    assert (summary["num_rejected"], summary["num_kept"]) == (1, 1)
    assert lines(tmp_path / "kept" / "rejected.jsonl")[0]["line"] == 2
    (kept,) = lines(tmp_path / "kept" / "steps.jsonl")
    assert (kept["id"], kept["label"], kept["soft"]) == ("y", False, 0.25)
    (row,) = read_steps(gathered_source(tmp_path / "kept"))
    assert [one.id for one in row.steps] == ["y"]  # type: ignore[union-attr]
    with pytest.raises(InputError, match="line 2"):
        keep_agreeing(labels, opinion, tmp_path / "strict", strict=True)


def test_a_run_over_other_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", solution("x", 1), solution("y", 1))
    rows = [reward("x", 3, 1, [1]), reward("z", 3, 1, [1])]
    for name, some, wrong in [("other", rows, "'z' there"), ("short", rows[:1], "no more rows")]:
        with pytest.raises(InputError, match=wrong):
            keep_agreeing(open_labels(path), judged(tmp_path / name, *some), tmp_path / f"{name}-kept")
    long = judged(tmp_path / "long", rows[0], reward("y", 3, 1, [1]), rows[1])
    with pytest.raises(InputError, match="it has 'z' after the last"):
        keep_agreeing(open_labels(path), long, tmp_path / "long-kept")
    # Of as many rows as were judged.
    first = judged(tmp_path / "first", rows[0])
    assert keep_agreeing(open_labels(path, 1), first, tmp_path / "first-kept")["num_kept"] == 1
    with Run(tmp_path / "half", stage="judge", settings={}):
        pass
    with pytest.raises(RunError, match="not complete"):
        keep_agreeing(open_labels(path), tmp_path / "half", tmp_path / "half-kept")


def test_what_a_file_holds_is_told_by_its_first_row(tmp_path: Path) -> None:
    assert isinstance(open_labels(write(tmp_path / "s.jsonl", solution("x", 1))).source, Source)
    assert not open_labels(tmp_path / "s.jsonl").are_steps
    assert open_labels(write(tmp_path / "t.jsonl", "{", {"problem": "p", "step": "s", "label": True})).are_steps
    assert not open_labels(write(tmp_path / "empty.jsonl")).are_steps
