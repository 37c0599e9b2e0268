"""Beside every figure: false alarms on right solutions, tokens, seconds, and FLOPs where the model's size is known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rprm.benchmarks import (
    BenchmarkItems,
    PRMBenchItem,
    ProcessBenchItem,
    Scores,
    StepItems,
    measure_prmbench,
    measure_processbench,
    measure_steps,
    scores_of,
)
from rprm.benchmarks.cost import Cost, cost_of, num_parameters
from rprm.folders import fingerprint
from rprm.records import Analysis, LabelledStep, Solution, SolutionReward, StepReward
from rprm.runs import Run


def processbench(*labels: int) -> BenchmarkItems[ProcessBenchItem]:
    return BenchmarkItems(
        tuple(
            ProcessBenchItem("math", Solution(id=f"i{n}", problem="p", steps=("a", "b"), label=label), label)
            for n, label in enumerate(labels)
        )
    )


def alarms(measured: Any) -> tuple[float | None, int, int, int]:
    counts = measured.as_dict()["false_alarms"]
    rate = measured.figures["false_alarm_rate"].value
    return rate, counts["named"], counts["judged"], counts["right_solutions"]


class TestFalseAlarms:
    def test_the_share_of_judged_right_solutions_with_an_error_named(self) -> None:
        """Of four right solutions one is called wrong, and one cannot be judged (a step is lost, and none before it is
        called wrong): 1 of 3. The lost one is no alarm, and not right either. 0.5 calls a step right."""
        items = processbench(-1, -1, -1, -1, 1)
        scores = Scores({"i0": (0.9, 0.9), "i1": (0.9, 0.2), "i2": (0.5, 0.5), "i3": (0.9, None), "i4": (0.9, 0.1)})
        measured = measure_processbench(items, scores, num_resamples=200)
        assert alarms(measured) == (pytest.approx(100 / 3), 1, 3, 4)
        figure = measured.figures["false_alarm_rate"]
        assert figure.low is not None
        assert figure.high is not None
        assert 0 <= figure.low < 100 / 3 < figure.high <= 100

    def test_an_error_that_is_named_before_a_lost_step_is_known(self) -> None:
        measured = measure_processbench(processbench(-1), Scores({"i0": (0.1,)}), num_resamples=5)
        assert alarms(measured) == (100, 1, 1, 1)

    def test_where_none_could_be_judged_the_rate_is_undefined(self) -> None:
        measured = measure_processbench(
            processbench(-1, 1), Scores({"i0": (None, 0.1), "i1": (0.1, 0.9)}), num_resamples=5
        )
        assert alarms(measured) == (None, 0, 0, 1)

    def test_without_right_solutions_there_is_no_such_figure(self) -> None:
        measured = measure_processbench(processbench(1), Scores({"i0": (0.9, 0.1)}), num_resamples=5)
        assert "false_alarm_rate" not in measured.figures
        assert measured.as_dict()["false_alarms"] == {}

    def test_a_critics_are_those_of_its_majority(self) -> None:
        scores = Scores(
            {"i0": (0.4, 0.2), "i1": (0.9, 0.9), "i2": (None, None)}, first_errors={"i0": -1, "i1": 1, "i2": None}
        )
        measured = measure_processbench(processbench(-1, -1, -1), scores, allow_missing=True, num_resamples=5)
        assert alarms(measured) == (50, 1, 2, 3)

    def test_prmbench_has_its_right_solutions_and_the_originals(self) -> None:
        """Right are `multi_solutions` m and the original of a `redundency` item; an error is named in m, at the
        threshold where that does not count as right."""

        def item(name: str, *errors: int) -> PRMBenchItem:
            label = errors[0] - 1 if errors else -1
            solution = Solution(id=f"{name}_1", problem="p", steps=("a", "b"), label=label)
            return PRMBenchItem(name, "1", solution, errors)

        items = BenchmarkItems((item("redundency", 2), item("correct"), item("multi_solutions")))
        scores = Scores({"redundency_1": (0.9, 0.1), "correct_1": (0.9, 0.9), "multi_solutions_1": (0.5, 0.9)})
        assert alarms(measure_prmbench(items, scores, num_resamples=5)) == (0, 0, 2, 2)
        strict = measure_prmbench(items, scores, strictly_above=True, num_resamples=5)
        assert alarms(strict) == (50, 1, 2, 2)
        del scores.p_yes["correct_1"]  # type: ignore[attr-defined]
        assert alarms(measure_prmbench(items, scores, num_resamples=5)) == (0, 0, 1, 2)

    def test_a_labelled_step_is_the_last_of_a_solution_that_is_right_up_to_it(self) -> None:
        steps = [LabelledStep(id=f"s{n}", problem="p", step="s", label=n > 0) for n in range(4)]
        scores = Scores({f"s{n}": (score,) for n, score in enumerate((0.1, 0.9, 0.2, 0.3))})
        # Of three right steps two are called wrong.
        assert alarms(measure_steps(StepItems(tuple(steps)), scores, num_resamples=5)) == (
            pytest.approx(200 / 3), 2, 3, 3
        )  # fmt: skip


def analysis(num_tokens: int, num_prompt_tokens: int | None) -> Analysis:
    return Analysis(
        text="", verdict=True, p_yes=1.0, p_yes_source="vote", num_tokens=num_tokens,
        num_prompt_tokens=num_prompt_tokens, finish_reason="stop",
    )  # fmt: skip


def judged(name: str, *steps: tuple[float | None, list[Analysis]]) -> SolutionReward:
    rewards = tuple(
        StepReward(step_index=index, reward=reward, vote=reward, analyses=tuple(analyses))
        for index, (reward, analyses) in enumerate(steps)
    )
    return SolutionReward(id=name, num_steps=len(steps), first_error=-1, steps=rewards)


class TestTokens:
    def test_the_prompt_of_a_step_counts_once(self) -> None:
        """Prompts of 100 and 130 tokens, analysed twice each, and 80 of another solution; a step that was refused read
        nothing. Generated: 10 + 20 + 5 + 5 + 60 = 100. 2 operations x 1,000 weights x (310 + 100) tokens."""
        rewards = [
            judged("a", (1.0, [analysis(10, 100), analysis(20, 100)]), (1.0, [analysis(5, 130), analysis(5, None)])),
            judged("b", (1.0, [analysis(60, 80)]), (None, [])),
        ]
        scores = scores_of(rewards)
        assert scores.num_prompt_tokens == 310
        assert Scores({}, usage=scores.usage, num_prompt_tokens=310, cost=Cost(parameters=1000)).flops == 820_000
        assert scores.flops is None  # the size is not known

    def test_a_prompt_that_was_not_counted_leaves_all_unknown(self) -> None:
        scores = scores_of([judged("a", (1.0, [analysis(10, 100)])), judged("b", (1.0, [analysis(10, None)]))])
        assert (scores.num_prompt_tokens, scores.flops) == (None, None)

    def test_what_a_classifier_read_is_not_counted(self) -> None:
        assert scores_of([judged("a", (0.9, []), (0.8, []))]).num_prompt_tokens is None

    def test_a_critics_prompt_stands_with_its_last_step(self) -> None:
        assert scores_of([judged("a", (1.0, []), (1.0, [analysis(10, 90), analysis(9, 90)]))]).num_prompt_tokens == 90


def run_folder(folder: Path, *seconds: float | None, engine: Any = None) -> Path:
    """A run with a session of so many seconds each; None: it was killed before it could record them."""
    with Run(folder, stage="judge", settings={"engine": engine} if engine else {}) as run:
        run.complete({}, {"seconds": 0.0})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sessions"] = [{"started_at": "t"} | ({} if one is None else {"seconds": one}) for one in seconds]
    (folder / "manifest.json").write_text(
        json.dumps({name: it for name, it in manifest.items() if name not in ("crc", "files")})
    )
    return folder


class TestSeconds:
    def test_they_are_of_all_sessions(self, tmp_path: Path) -> None:
        cost = cost_of(run_folder(tmp_path / "run", 1.5, 20.25))
        assert cost.time_as_dict() == {"seconds": 21.75, "sessions": 2, "untimed_sessions": 0}
        assert cost.time == "21.8 seconds"

    def test_a_killed_session_makes_them_a_least(self, tmp_path: Path) -> None:
        cost = cost_of(run_folder(tmp_path / "run", None, 2.0, None))
        assert cost.time_as_dict() == {"seconds": 2.0, "sessions": 3, "untimed_sessions": 2}
        assert cost.time == "2.0 seconds at least, 2 of 3 sessions were killed untimed"

    @pytest.mark.parametrize("recorded", ["soon", True, -1.0, [1]])
    def test_what_is_no_time_is_not_known(self, tmp_path: Path, recorded: Any) -> None:
        cost = cost_of(run_folder(tmp_path / "run", recorded))
        assert (cost.seconds, cost.time) == (None, "seconds not known")


class TestParameters:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        """Two files of weights: 3 * 4 + 5 and 2 * 2 numbers."""
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        first = {"a": np.zeros((3, 4), np.float16), "b": np.zeros(5, np.float32)}
        save_file(first, folder / "model-00001-of-00002.safetensors")
        save_file({"c": np.zeros((2, 2), np.float32)}, folder / "model-00002-of-00002.safetensors")
        return folder

    def test_of_a_folder_they_are_counted(self, model: Path, tmp_path: Path) -> None:
        engine = {"kind": "transformers", "model": str(model), "revision": fingerprint(model)}
        assert num_parameters(engine) == 21
        assert cost_of(run_folder(tmp_path / "run", 1.0, engine=engine)).parameters == 21

    def test_a_folder_that_is_another_now_tells_nothing(self, model: Path) -> None:
        engine = {"model": str(model), "revision": fingerprint(model)}
        save_file({"c": np.zeros((9, 9), np.float32)}, model / "model-00002-of-00002.safetensors")
        assert num_parameters(engine) is None
        shutil.rmtree(model)
        assert num_parameters(engine) is None

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", '{"quantization_config": {}}'), ("config.json", "not JSON"),
            ("model-00002-of-00002.safetensors", "x" * 20),
        ],
    )  # fmt: skip
    def test_of_packed_or_damaged_weights_they_are_not_known(self, model: Path, name: str, content: str) -> None:
        (model / name).write_text(content)
        assert num_parameters({"model": str(model), "revision": fingerprint(model)}) is None

    def test_of_an_adapter_alone_they_are_not_known(self, model: Path) -> None:
        for file in model.glob("model*"):
            file.rename(model / f"adapter_{file.name}")
        assert num_parameters({"model": str(model), "revision": fingerprint(model)}) is None

    @pytest.mark.parametrize(
        ("name", "number"),
        [("kevinpro/R-PRM-7B-DPO", 7.6e9), ("qwen-prm-72b", 72.7e9), ("gpt-4o", None), (None, None), (7, None)],
    )
    def test_of_a_known_model_they_are_its_record(self, name: Any, number: float | None) -> None:
        assert num_parameters({"model": name}) == number
