"""Hard2Verify: rows, encrypted or not; its three tasks on hand-worked counts; the command."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rprm.benchmarks import (
    HARD2VERIFY,
    BenchmarkItems,
    Hard2VerifyItem,
    Scores,
    compare,
    measure,
    read_hard2verify,
    tally_hard2verify,
)
from rprm.benchmarks.hard2verify import decrypted
from rprm.cli.app import app
from rprm.errors import InputError, MissingPredictions
from rprm.records import Solution

#: The first byte of its SHA-256 is 0x2d, the second 0x71.
CANARY = "x"


def row(name: str = "a", labels: tuple[int, ...] = (1, 0), **changes: Any) -> dict[str, Any]:
    first = labels.index(0) if 0 in labels else -1
    steps = [f"{name}, step {number}: $\\alpha$ é" for number in range(len(labels))]
    return {
        "unique_id": name, "question": f"Prove {name}.", "model_response_by_step": steps, "human_labels": list(labels),
        "human_labels_first_error_idx": first, "canary": CANARY, **changes,
    }  # fmt: skip


def encrypted(found: dict[str, Any]) -> dict[str, Any]:
    """As the rows of the hub are: texts as they are, all else as JSON, XOR the digest again and again, in base64."""
    key = hashlib.sha256(CANARY.encode()).digest() * 1000
    hidden = {}
    for name in ("question", "model_response_by_step", "human_labels", "human_labels_first_error_idx"):
        text = found[name] if isinstance(found[name], str) else json.dumps(found[name])
        content = bytes(one ^ other for one, other in zip(text.encode(), key, strict=False))
        hidden[name] = base64.b64encode(content).decode()
    return {**found, **hidden}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows))
    return path


def test_a_row_is_bounded_in_what_it_decrypts_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commas are those of all its fields, before any is read as JSON."""
    monkeypatch.setattr("rprm.benchmarks.hard2verify.MAX_COMMAS", 6)
    # 3 steps and 3 labels have 2 commas each; then "a, b" one more, and 4 steps and 4 labels 3 each, and one.
    few, many = row("a", (1, 1, 0)), row("b", (1, 1, 1, 0))
    few["model_response_by_step"], many["model_response_by_step"] = ["s"] * 3, ["s"] * 4
    few["question"], many["question"] = "a, b", "a, b"
    items = read_hard2verify(write(tmp_path / "x.jsonl", encrypted(few), encrypted(many)))
    assert [item.id for item in items.items] == ["a"]
    assert [one.reason for one in items.rejected] == ["the decrypted row has more than 6 commas"]


def items_of(**labels: tuple[int, ...]) -> BenchmarkItems[Hard2VerifyItem]:
    found = []
    for name, each in labels.items():
        first = each.index(0) if 0 in each else -1
        solution = Solution(id=name, problem="p", steps=("s",) * len(each), label=first)
        found.append(Hard2VerifyItem(solution, tuple(map(bool, each)), first))
    return BenchmarkItems(tuple(found))


def values(items: BenchmarkItems[Hard2VerifyItem], scores: Scores, **options: Any) -> dict[str, float | None]:
    return tally_hard2verify(items, scores, **options).by_name


class TestRows:
    def test_encrypted_and_decrypted_rows_are_the_same_items(self, tmp_path: Path) -> None:
        rows = [row("a", (1, 1, 0, 1)), row("b", (1, 1)), row("3", (0,))]
        plain = read_hard2verify(write(tmp_path / "plain.jsonl", *rows)).items
        (tmp_path / "hub").mkdir()
        write(tmp_path / "hub" / "test.jsonl", *map(encrypted, rows))
        assert read_hard2verify(tmp_path / "hub").items == plain
        assert [(item.id, item.labels, item.label) for item in plain] == [
            ("a", (True, True, False, True), 2), ("b", (True, True), -1), ("3", (False,), 0)
        ]  # fmt: skip
        assert plain[0].solution.steps[1] == "a, step 1: $\\alpha$ é"

    def test_a_field_by_hand(self) -> None:
        """`-1` is the bytes 2d 31; XOR 2d 71 they are 00 40, in base64 AEA=."""
        found = decrypted({"model_response_by_step": "", "human_labels_first_error_idx": "AEA=", "canary": "x"})
        assert found["human_labels_first_error_idx"] == -1

    def test_a_question_that_is_a_number_stays_a_text(self, tmp_path: Path) -> None:
        path = write(tmp_path / "h.jsonl", encrypted(row(question="2025")))
        assert read_hard2verify(path).items[0].solution.problem == "2025"

    def test_a_bad_row_costs_itself(self, tmp_path: Path) -> None:
        hidden = encrypted(row("hidden"))
        bad = {
            "has no 'canary'": {name: value for name, value in hidden.items() if name != "canary"},
            "'question' cannot be decrypted": hidden | {"canary": "another"},
            "a label for each of 2 steps; there are 1": row("c") | {"human_labels": [1]},
            "must be true or false, not 2": row("d") | {"human_labels": [1, 2]},
            "calls wrong, 1 (-1: none); not 2": row("e") | {"human_labels_first_error_idx": 2},
            "calls wrong, 1 (-1: none); not -1": row("h") | {"human_labels_first_error_idx": -1},
            "calls wrong, -1 (-1: none); not 1": row("i", (1, 1)) | {"human_labels_first_error_idx": 1},
            "a list of at least one": row("f") | {"model_response_by_step": [], "human_labels": []},
            "'unique_id' is missing": {name: value for name, value in row("g").items() if name != "unique_id"},
            "stands in an earlier row already": row("a"),
            "not JSON": "{",
            "must be a JSON object": "[1]",
        }
        found = read_hard2verify(write(tmp_path / "h.jsonl", row("a"), *bad.values(), row("z")))
        assert [item.id for item in found.items] == ["a", "z"]
        assert [rejected.line for rejected in found.rejected] == list(range(2, 2 + len(bad)))
        for reason, rejected in zip(bad, found.rejected, strict=True):
            assert reason in rejected.reason

    def test_without_an_index_the_first_wrong_step_is_it(self, tmp_path: Path) -> None:
        bare = {name: value for name, value in row().items() if not name.endswith("idx")}
        assert read_hard2verify(write(tmp_path / "h.jsonl", bare)).items[0].label == 1

    def test_nothing_that_can_be_used_is_an_error_with_its_first_reason(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"none of 1 rows .* line 1: .*canary"):
            read_hard2verify(write(tmp_path / "h.jsonl", encrypted(row()) | {"canary": None}))


class TestTasks:
    def test_by_hand(self) -> None:
        """Called right (r) or wrong (w), where 0.5 is right: a rrr, b rwr, c rwwr, d r.

        Steps: of 3 + 1 + 2 = 6 right ones 3 + 1 + 1 = 5 are called right, of 2 + 2 + 1 = 5 wrong ones 1 + 1 + 0 = 2
        wrong: balanced accuracy (5/6 + 2/5) / 2 = 37/60, F1 = 2 * 5/6 * 2/5 / (37/30) = 20/37.
        Responses: the right one is called right, of the 3 wrong ones b and c wrong: (1 + 2/3) / 2 = 5/6, F1 = 4/5.
        First errors: -1 of a; of the wrong ones 1 of b, not 1 of c (it is 2), nor -1 of d: (1 + 1/3) / 2, F1 = 1/2.
        """
        items = items_of(a=(1, 1, 1), b=(1, 0, 0), c=(1, 1, 0, 0), d=(0,))
        scores = Scores({"a": (0.9, 0.5, 0.9), "b": (0.9, 0.2, 0.8), "c": (0.9, 0.4, 0.3, 0.9), "d": (0.7,)})
        assert values(items, scores) == pytest.approx({
            "step.tpr": 100 * 5 / 6, "step.tnr": 40, "step.balanced_acc": 100 * 37 / 60,
            "step.balanced_f1": 100 * 20 / 37,
            "response.tpr": 100, "response.tnr": 200 / 3, "response.balanced_acc": 500 / 6, "response.balanced_f1": 80,
            "error_id.tpr": 100, "error_id.tnr": 100 / 3, "error_id.balanced_acc": 200 / 3, "error_id.balanced_f1": 50,
        })  # fmt: skip

    def test_what_is_not_known_is_never_right(self) -> None:
        """a, all right: a step is lost, 2 of 3 are called right, and it is not known whether all are. b errs at 1,
        which is lost; 2 is called wrong: 1 of 2 wrong steps; a wrong response, whose first error is not known."""
        items = items_of(a=(1, 1, 1), b=(1, 0, 0))
        found = tally_hard2verify(items, Scores({"a": (0.9, None, 0.9), "b": (0.9, None, 0.2)}))
        assert found.by_name == pytest.approx({
            "step.tpr": 75, "step.tnr": 50, "step.balanced_acc": 62.5, "step.balanced_f1": 60,
            "response.tpr": 0, "response.tnr": 100, "response.balanced_acc": 50, "response.balanced_f1": 0,
            "error_id.tpr": 0, "error_id.tnr": 0, "error_id.balanced_acc": 0, "error_id.balanced_f1": 0,
        })  # fmt: skip
        total = found.total_coverage
        assert (total.num_items, total.num_missing, total.num_unjudged) == (2, 0, 2)
        assert (total.steps_needed, total.steps_scored) == (6, 4)

    def test_a_wrong_response_with_a_lost_step_is_not_called_wrong_for_it(self) -> None:
        found = values(items_of(a=(1, 0)), Scores({"a": (0.9, None)}))
        assert (found["response.tnr"], found["error_id.tnr"], found["step.tnr"]) == (0, 0, 0)

    def test_solutions_that_are_all_right_leave_the_balance_undefined(self) -> None:
        """Of 4 right steps 3 are called right, of 2 right responses one; nothing is told of wrong ones."""
        found = values(items_of(a=(1, 1), b=(1, 1)), Scores({"a": (0.9, 0.9), "b": (0.9, 0.1)}))
        assert (found["step.tpr"], found["response.tpr"], found["error_id.tpr"]) == (75, 50, 50)
        assert {value for name, value in found.items() if not name.endswith("tpr")} == {None}

    def test_items_without_a_score_are_refused_or_wrong(self) -> None:
        items, scores = items_of(a=(1,), b=(1, 0)), Scores({"a": (0.9,)})
        with pytest.raises(MissingPredictions, match="1 of 2 items have no prediction: b"):
            values(items, scores)
        found = tally_hard2verify(items, scores, allow_missing=True)
        # Of 2 right steps one is called right; of the one wrong step none.
        assert (found.by_name["step.tpr"], found.by_name["step.tnr"], found.missing) == (50, 0, ("b",))
        with pytest.raises(MissingPredictions, match="no score of any item"):
            values(items, Scores({}), allow_missing=True)

    def test_scores_that_end_early_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"a \(1 scores, 2 steps\).*first error"):
            values(items_of(a=(0, 1)), Scores({"a": (0.1,)}))

    def test_a_critic_names_first_errors_and_its_shares_call_the_steps(self) -> None:
        """Votes -1, 0, 1 tie for -1, which came first; the shares of later errors are 2/3 and 1/3: step 1 is wrong."""
        items = items_of(a=(1, 1))
        found = values(items, Scores({"a": (2 / 3, 1 / 3)}, first_errors={"a": -1}))
        assert (found["step.tpr"], found["response.tpr"], found["error_id.tpr"]) == (50, 0, 100)

    def test_two_runs_differ_on_the_steps(self) -> None:
        """b finds the wrong step of both items, a that of one. Of the first right step of each: both call it right."""
        items = items_of(x=(1, 0), y=(1, 0))
        first = tally_hard2verify(items, Scores({"x": (0.9, 0.1), "y": (0.9, 0.9)}))
        second = tally_hard2verify(items, Scores({"x": (0.9, 0.1), "y": (0.9, 0.1)}))
        found = compare(first, second, num_resamples=20)
        assert found.num_discordant == 1
        # F1 of 1 and 1/2 is 2/3.
        assert found.differences["step.balanced_f1"].value == pytest.approx(100 - 200 / 3)
        assert found.differences["error_id.tnr"].value == 50

    def test_position_alone(self) -> None:
        """In each of many items the last of three steps is wrong: its index tells it."""
        items = items_of(**{f"i{number}": (1, 1, 0) for number in range(12)})
        scores = Scores({item.id: (0.9, 0.9, 0.9) for item in items.items})
        measured = measure(HARD2VERIFY.tally, items, scores, right=HARD2VERIFY.right, num_resamples=10)
        assert measured.figures["step.balanced_f1"].value == 0
        assert measured.position["step.balanced_f1"] == 100


def test_the_command_judges_reads_again_and_compares(tmp_path: Path) -> None:
    data = write(tmp_path / "test.jsonl", *(encrypted(row(f"r{n}", ((1, 1, 0), (1, 1, 1))[n % 2])) for n in range(8)))

    def bench(*arguments: object) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["bench", *map(str, arguments), "--resamples", "20", "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    judge = ("hard2verify", "--data", data, "-k", 2, "--model")
    found = bench(*judge, "scripted:?yes_rate=0.7", "-o", tmp_path / "run")
    assert set(found["figures"]) == {"step", "response", "error_id", "false_alarm_rate"}
    # Every step is judged, also after the first error.
    assert (found["items"], found["steps_needed"], found["usage"]["steps"]) == (8, 24, 24)
    assert set(found["position_only"]) == set(found["figures"])
    again = bench("hard2verify", "--scores", tmp_path / "run")
    assert {name: again[name] for name in ("figures", "usage", "time")} == {
        name: found[name] for name in ("figures", "usage", "time")
    }
    # Another session pays for nothing; its seconds are added.
    resumed = bench(*judge, "scripted:?yes_rate=0.7", "-o", tmp_path / "run")
    assert (resumed["figures"], resumed["usage"]) == (found["figures"], found["usage"])
    assert (found["time"]["sessions"], resumed["time"]["sessions"]) == (1, 2)
    assert resumed["time"]["seconds"] >= found["time"]["seconds"] > 0
    bench("hard2verify", "--data", data, "-k", 2, "--model", "critic:scripted:?noise=0.6", "-o", tmp_path / "critic")
    compared = bench("compare", tmp_path / "run", tmp_path / "critic")
    assert compared["headline"] == "step.balanced_f1"
    assert "false_alarm_rate" in compared["difference"]
