"""Engines and rewarders of other distributions: one file and an entry point each."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rprm.engines.openai import OpenAIEngine
from rprm.engines.scripted import ScriptedEngine
from rprm.engines.transformers import TransformersEngine
from rprm.engines.vllm import VLLMEngine
from rprm.errors import EngineError
from rprm.rewarders.classifier import Classifier, ServedClassifier

ENGINE = """
from rprm.engines import Completion, EngineInfo
from rprm.verdict import VerdictChoice


class Parrot:
    def __init__(self, target, *, spec="", word: str = "Yes", concurrency: int = 4):
        self.spec, self.target, self.word, self.concurrency = spec, target, word, concurrency

    async def start(self, *, chat=True):
        return EngineInfo("parrot", self.target)

    async def generate(self, prompt, sampling):
        text = f"{self.target} says: {sampling.verdict.marker} {self.word}"
        return Completion(text, 5, "stop", 9)

    async def choose(self, prompt, text, verdict):
        return VerdictChoice(len(text), -1.0, -1.0)

    async def aclose(self):
        pass
"""

REWARDER = """
from rprm.records import SolutionReward, StepReward
from rprm.rewarders.base import first_error


class Length:
    concurrency = 4

    def __init__(self, target, *, spec="", threshold: float = 0.5, scale: float = 10.0):
        self.target, self.threshold, self.scale = target, threshold, scale

    def in_full(self):
        return self

    async def start(self):
        return {"rewarder": "length", "threshold": self.threshold}

    async def judge_step(self, problem, steps, step_index, ledger=None):
        return StepReward(step_index=step_index, reward=min(1.0, len(steps[step_index]) / self.scale), vote=None)

    async def judge(self, solution, ledger=None):
        steps = [await self.judge_step(solution.problem, solution.steps, i) for i in range(len(solution.steps))]
        return SolutionReward(
            id=solution.id,
            num_steps=len(steps),
            first_error=first_error([step.reward for step in steps], self.threshold),
            steps=tuple(steps),
        )

    async def aclose(self):
        pass
"""


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (ScriptedEngine, "concurrency", 0),
        (ScriptedEngine, "context_length", 0),
        (ScriptedEngine, "yes_rate", 2),
        (TransformersEngine, "max_rows", 0),
        (TransformersEngine, "concurrency", 0),
        (TransformersEngine, "context_length", -1),
        (TransformersEngine, "num_threads", -1),
        (VLLMEngine, "concurrency", 0),
        (OpenAIEngine, "max_retries", -1),
        (OpenAIEngine, "timeout", 0),
        (Classifier, "threshold", 0),
        (Classifier, "threshold", 2),
        (Classifier, "num_threads", 0),
        (ServedClassifier, "timeout", math.nan),
        (ServedClassifier, "concurrency", 0),
    ],
)
def test_options_are_checked_where_an_engine_is_made_from_python(make: Any, option: str, value: float) -> None:
    target = "Qwen2.5-Math-PRM-7B@http://localhost:1"
    with pytest.raises(EngineError, match=rf"(scripted:|{target}).*: option {option}={value}: "):
        make(*([] if make is ScriptedEngine else [target]), **{option: value})


def install(folder: Path, name: str, code: str, entry_points: str) -> None:
    """As pip leaves a distribution of one module."""
    (folder / f"{name}.py").write_text(code)
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(entry_points)


def judge(folder: Path, model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "solutions.jsonl").write_text(json.dumps({"id": "s", "problem": "1 + 1?", "steps": ["It is 2.", "So 2"]}))
    return subprocess.run(
        [sys.executable, "-m", "rprm", "judge", "solutions.jsonl", "--json", "--model", model, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])},
    )


def rewards(done: subprocess.CompletedProcess[str]) -> list[float]:
    assert done.returncode == 0, done.stderr
    return [step["reward"] for step in json.loads(done.stdout)["steps"]]


def test_an_engine_of_ones_own(tmp_path: Path) -> None:
    install(tmp_path, "parrots", ENGINE, "[rprm.engines]\nparrot = parrots:Parrot\n")
    # The hard vote: it gives no log-probabilities.
    assert rewards(judge(tmp_path, "parrot:Polly", "--all-steps")) == [1.0, 1.0]
    assert rewards(judge(tmp_path, "parrot:Polly?word=No", "--all-steps")) == [0.0, 0.0]
    refused = judge(tmp_path, "parrot:Polly?colour=green")
    assert refused.returncode == 1
    assert "unknown option 'colour'; options are concurrency, word" in refused.stderr


def test_a_rewarder_of_ones_own(tmp_path: Path) -> None:
    install(tmp_path, "lengths", REWARDER, "[rprm.rewarders]\nlength = lengths:Length\n")
    # 8 and 4 characters, of 10 and of 16.
    assert rewards(judge(tmp_path, "length:any")) == [0.8, 0.4]
    assert rewards(judge(tmp_path, "length:any?scale=16", "--threshold", "0.2")) == [0.5, 0.25]
    refused = judge(tmp_path, "length:any", "-k", "3")
    assert refused.returncode == 1
    assert "leave out num_analyses (-k)" in refused.stderr


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ("[rprm.engines]\nscripted = parrots:Parrot\n", ("two are called 'scripted'", "parrots")),
        ("[rprm.rewarders]\nclassifier = parrots:Parrot\n", ("two are called 'classifier'", "parrots")),
        ("[rprm.rewarders]\nscripted = parrots:Parrot\n", ("'scripted' is an engine and a rewarder", "parrots")),
        ("[rprm.engines]\nparrot = parrots:Macaw\n", ("parrot (parrots:Macaw) cannot be imported",)),
    ],
)
def test_what_cannot_be_told_apart_or_imported_is_an_error(tmp_path: Path, points: str, words: tuple[str, ...]) -> None:
    install(tmp_path, "parrots", ENGINE, points)
    done = judge(tmp_path, "parrot:x" if "Macaw" in points else "scripted:")
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_a_clash_between_two_others(tmp_path: Path) -> None:
    for name in ("one", "other"):
        install(tmp_path, name, ENGINE, f"[rprm.engines]\nparrot = {name}:Parrot\n")
    done = judge(tmp_path, "parrot:x")
    assert done.returncode == 1
    assert "one:Parrot of one and other:Parrot of other" in done.stderr or "other:Parrot of other and" in done.stderr
