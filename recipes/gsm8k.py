"""The whole chain on real text, small: labelled steps out of GSM8K, cold start, a DPO round, and the classifier.

On two CPU cores, in about an hour; and on one GPU:

    python recipes/gsm8k.py --gsm8k DATA/gsm8k_train/train.jsonl --output runs/gsm8k
    python recipes/gsm8k.py --gsm8k ... --output runs/gsm8k-gpu --size gpu --processbench DATA/processbench

Every stage is a command of the package, and each goes on from where a kill left it: begin the script again. Only the
teacher is this file's own. No strong model is at hand here, so a program takes its place (`Calculator`): it works out
the calculation that a step states and looks up where its numbers come from. It never sees the label, and it errs: it
knows nothing of what the words mean. What it gets wrong is dropped when the cold start compares verdicts with labels,
as with any teacher.

What 135M parameters can learn from a few hundred rows on a CPU is the form: an analysis that reaches a verdict. Whether
the verdict is right is another matter; the table at the end says how it stands, with intervals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from rprm.api import RPRM
from rprm.data.analyses import sample_analyses
from rprm.data.gsm8k import evaluate
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.engines.base import Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.engines.transformers import smollm2_model
from rprm.prompts import Prompt, load_template
from rprm.records import LabelledStep
from rprm.runs import read_json_lines, read_manifest


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        num_steps: labelled steps to train on (a fifth of their problems is for validation).
        num_test: labelled steps to measure on, of other problems.
        engine_options: of the engine that samples and judges.
        num_analyses: sampled of each step, for the pairs.
        num_sampled: steps that a DPO round samples.
        train: options of SFT and DPO.
        sft, dpo, classifier: options of each.
    """

    num_steps: int
    num_test: int
    engine_options: str
    num_analyses: int
    num_sampled: int
    judge_analyses: int
    rounds: int
    train: tuple[str, ...]
    sft: tuple[str, ...]
    dpo: tuple[str, ...]
    classifier: tuple[str, ...]


SIZES = {
    "cpu": Size(
        num_steps=300,
        num_test=100,
        engine_options="num_threads=2",
        num_analyses=4,
        num_sampled=100,
        judge_analyses=2,
        rounds=1,
        train=("--preset", "cpu", "--lora-rank", "16", "--batch-size", "8"),
        sft=("--learning-rate", "5e-4", "--epochs", "3"),
        dpo=("--learning-rate", "5e-5", "--epochs", "1", "--beta", "0.1"),
        classifier=(
            "--lora-rank",
            "16",
            "--batch-size",
            "8",
            "--no-gradient-checkpointing",
            "--learning-rate",
            "5e-4",
            "--epochs",
            "3",
        ),
    ),
    "gpu": Size(
        num_steps=20_000,
        num_test=2_000,
        engine_options="dtype=bfloat16&max_rows=256&concurrency=256",
        num_analyses=8,
        num_sampled=6_000,
        judge_analyses=10,
        rounds=2,
        train=("--precision", "bf16", "--batch-size", "64", "--device-batch-size", "32"),
        sft=("--learning-rate", "1e-4", "--epochs", "2"),
        dpo=("--learning-rate", "1e-6", "--epochs", "1", "--beta", "0.1"),
        classifier=(
            "--precision",
            "bf16",
            "--batch-size",
            "64",
            "--device-batch-size",
            "32",
            "--learning-rate",
            "1e-4",
            "--epochs",
            "2",
        ),
    ),
}

#: The prompt that the student reads.
PROMPT = str(Path(__file__).with_name("gsm8k_prompt.toml"))


# --- the teacher ----------------------------------------------------------------------------------------------------

#: A calculation as a step states it: `40/100 * 80 = 32`, with money signs and thousands commas.
_STATED = re.compile(r"(?P<left>[\d(.$][\d\s+\-*/x×().,$%]*?)\s*=\s*\$?\s*(?P<right>-?[\d,]*\.?\d+)")
_NUMBER = re.compile(r"\d[\d,]*\.?\d*|\.\d+")
#: Numbers that a step may use without a source: of units, halves, percents.
_COMMON = {Fraction(number) for number in (1, 2, 3, 4, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000)}
_SPELLED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_WORDS = {word: Fraction(number) for number, word in enumerate(_SPELLED.split())}
_WORDS |= {
    "twice": Fraction(2),
    "double": Fraction(2),
    "half": Fraction(2),
    "thirty": Fraction(30),
    "dozen": Fraction(12),
}


class Calculator:
    """A teacher that calculates. It reads what a model would read: the problem, the steps before, the step."""

    def __init__(self, steps: list[LabelledStep]) -> None:
        template = load_template(PROMPT)
        self.steps = {template.render(one.problem, one.steps, one.step_index).text: one for one in steps}

    def reply(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        step = self.steps[prompt.text]
        analysis, is_right = analyse(step.problem, step.previous_steps, step.step)
        # It slips now and then, another time in each sample: it reads a number wrongly and comes to the other verdict.
        if random.Random(f"{sampling.seed}").random() < 0.1:
            is_right = not is_right
        return ScriptedReply(analysis, 0.97 if is_right else 0.03, len(analysis.split()))


def analyse(problem: str, previous_steps: tuple[str, ...], step: str) -> tuple[str, bool]:
    """An analysis of the step's stated calculation and of where its numbers come from; and whether all is right."""
    known = _COMMON | _numbers(" ".join((problem, *previous_steps)))
    stated = [match for match in _STATED.finditer(step) if _value(match["left"]) is not None]
    if not stated:
        return "The step states no calculation, and nothing in it contradicts the problem.", True
    lines = []
    for match in stated:
        left = " ".join(match["left"].split())
        without_source = [number for number in _NUMBER.findall(left) if _number(number) not in known]
        value = _value(match["left"])
        assert value is not None
        if without_source:
            lines.append(f"The step calculates {left}. But {without_source[0]} comes from nowhere.")
            return " ".join(lines), False
        result = _number(match["right"])
        lines.append(f"{left} = {_shown(value)}. The step says {match['right']}.")
        if result is None or abs(value - result) > Fraction(1, 100):
            lines.append("These differ.")
            return " ".join(lines), False
        lines.append("These agree.")
        known = known | {value}
    return " ".join(lines), True


def _value(left: str) -> Fraction | None:
    text = re.sub(r"[$,]", "", left).replace("x", "*").replace("×", "*").strip()
    if not re.search(r"[+\-*/%]", text.lstrip("-")):
        return None
    try:
        return evaluate(text)
    except ValueError:
        return None


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text.replace(",", "").rstrip("."))
    except ValueError:
        return None


def _numbers(text: str) -> set[Fraction]:
    found = {value for number in _NUMBER.findall(text) if (value := _number(number)) is not None}
    return found | {_WORDS[word] for word in re.findall("[a-z]+", text.casefold()) if word in _WORDS}


def _shown(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}".rstrip("0").rstrip(".")


# --- the chain ------------------------------------------------------------------------------------------------------


class Chain:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder = Path(arguments.output)
        self.arguments = arguments
        self.size: Size = SIZES[arguments.size]
        self.base = arguments.model or str(self._export())
        self.seconds: dict[str, float] = {}

    def _export(self) -> Path:
        """SmolLM2 as a folder that can be trained."""
        folder = self.folder / "base"
        if not (folder / "tokenizer_config.json").exists():
            from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

            file = smollm2_model()
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype="float32"
            )
            vars(model.config).pop("quantization_config", None)
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
        return folder

    def stage(self, name: str, *arguments: str) -> Path:
        """Run a command of the package into a folder of that name, unless it is complete there."""
        output = self.folder / name
        if (output / "manifest.json").exists() and read_manifest(output).get("status") == "complete":
            return output
        print(f"--- {name}: rprm {' '.join(arguments)}", file=sys.stderr, flush=True)
        started = time.monotonic()
        # What stands after `--` belongs to another command: the folder goes before it.
        command = [sys.executable, "-m", "rprm", *arguments[:2], "--output", str(output), *arguments[2:]]
        done = subprocess.run(command, stdout=sys.stderr)
        if done.returncode not in (0, 3):
            sys.exit(f"{name} failed with exit code {done.returncode}; mend it and begin the script again")
        self.seconds[name] = round(time.monotonic() - started, 1)
        return output

    def run(self) -> dict[str, Any]:
        size = self.size
        excluded = [f"--exclude-benchmark={name}" for name in self.arguments.exclude]
        steps = self.stage("steps", "data", "steps", self.arguments.gsm8k, "--seed", "0", *excluded)
        train, test = self._subsets(steps / "results.jsonl")
        self._teach(train)
        cold = self.stage(
            "cold-start", "data", "cold-start", str(self.folder / "teacher"), "--prompt", PROMPT, "--validation", "0.2"
        )
        sft = self.stage("sft", "train", "sft", str(cold), "--model", self.base, *size.train, *size.sft) / "model"
        evolved = self.stage(
            "rounds", "evolve", str(train), "--model", str(sft), "--rounds", str(size.rounds), "--validation", "0.2",
            "--engine-options", size.engine_options, "-n", str(size.num_analyses), "-k", str(size.judge_analyses),
            "--sampled-steps", str(size.num_sampled), "--max-tokens", "96", "--", *size.train, *size.dpo,
        )  # fmt: skip
        best = json.loads((evolved / "summary.json").read_text())["best"]
        last = str(evolved / f"round-{size.rounds}" / "dpo" / "model")
        classifier = self.stage(
            "classifier", "train", "classifier", str(train), "--model", self.base, "--validation-share", "0.2",
            *size.classifier,
        )  # fmt: skip
        sampling = ("-k", str(size.judge_analyses), "--stopping", "none", "--max-tokens", "96", "--allow-missing")
        rows = {}
        for name, spec, options in (
            ("base", self._spec(self.base), ("--prompt", PROMPT, *sampling)),
            ("SFT", self._spec(str(sft)), sampling),
            (f"DPO, round {size.rounds}", self._spec(last), sampling),
            ("classifier", f"classifier:{classifier / 'model'}", ()),
        ):
            folder = self.stage(
                f"test-{name.split(',')[0].lower()}", "bench", "steps", str(test), "--model", spec, *options
            )
            rows[name] = json.loads((folder / "measurement.json").read_text())["figures"]
        found: dict[str, Any] = {"test": rows, "best of the rounds": best, "seconds": self.seconds}
        if self.arguments.processbench:
            found["processbench gsm8k"] = {}
            data = ("--data", str(Path(self.arguments.processbench) / "gsm8k.jsonl"))
            judged = ("-k", str(size.judge_analyses), "--max-tokens", "96", "--allow-missing")
            limit = ("--limit", str(self.arguments.limit)) if self.arguments.limit else ()
            for name, spec, options in (
                ("SFT", self._spec(str(sft)), judged),
                (f"DPO, round {size.rounds}", self._spec(last), judged),
                ("classifier", f"classifier:{classifier / 'model'}", ()),
            ):
                folder = self.stage(
                    f"processbench-{name.split(',')[0].lower()}", "bench", "processbench", *data, "--model", spec,
                    *options, *limit,
                )  # fmt: skip
                figures = json.loads((folder / "measurement.json").read_text())["figures"]
                found["processbench gsm8k"][name] = figures["gsm8k"]
        return found

    def _spec(self, model: str) -> str:
        return f"transformers:{model}?{self.size.engine_options}"

    def _subsets(self, steps: Path) -> tuple[Path, Path]:
        """Steps to train on, and steps of other problems to measure on; whole problems, in the order of the file."""
        train, test = self.folder / "train.jsonl", self.folder / "test.jsonl"
        if train.exists() and test.exists():
            return train, test
        chosen: dict[Path, list[str]] = {train: [], test: []}
        problems: dict[Path, set[str]] = {train: set(), test: set()}
        for row in read_json_lines(steps):
            part = next(
                (part for part in (train, test) if row["problem"] in problems[part]),
                train if len(chosen[train]) < self.size.num_steps else test,
            )
            if part is test and len(chosen[test]) >= self.size.num_test and row["problem"] not in problems[test]:
                break
            problems[part].add(row["problem"])
            chosen[part].append(json.dumps(row, ensure_ascii=False))
        for part, rows in chosen.items():
            partial = part.with_suffix(".partial")
            partial.write_text("\n".join(rows) + "\n")
            shutil.move(partial, part)
        return train, test

    def _teach(self, train: Path) -> None:
        source = steps_source(train)
        steps = [row for row in read_labelled_steps(source) if isinstance(row, LabelledStep)]
        engine = ScriptedEngine(reply=Calculator(steps).reply)
        judge = RPRM(engine, num_analyses=3, stopping="none", prompt=PROMPT, temperature=0.4).rewarder
        totals = asyncio.run(
            sample_analyses(
                judge,
                iter(steps),
                source=source.inspect(),
                output=self.folder / "teacher",
                settings={"teacher": "calculator"},
            )
        )
        print(f"--- teacher: {totals.as_dict()}", file=sys.stderr)


def _table(found: dict[str, Any]) -> str:
    def shown(figure: dict[str, Any] | None) -> str:
        if figure is None or figure["value"] is None:
            return ""
        return f"{figure['value']:.1f} [{figure['low']:.1f}, {figure['high']:.1f}]"

    lines = ["| on labelled steps | wrong acc | correct acc | F1 | well-formed |", "|---|---|---|---|---|"]
    for name, figures in found["test"].items():
        cells = (shown(figures.get(key)) for key in ("wrong_acc", "correct_acc", "f1", "wellformed"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if "processbench gsm8k" in found:
        lines += ["", "| on ProcessBench gsm8k | error acc | correct acc | F1 |", "|---|---|---|---|"]
        for name, figures in found["processbench gsm8k"].items():
            cells = (shown(figures.get(key)) for key in ("error_acc", "correct_acc", "f1"))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", required=True, help="GSM8K's training rows {question, answer}, as JSON Lines")
    parser.add_argument("--output", required=True)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--model", help="the base model; SmolLM2-135M-Instruct from its package by default")
    parser.add_argument("--exclude", action="append", default=[], help="as `rprm data steps --exclude-benchmark`")
    parser.add_argument("--processbench", help="folder with ProcessBench's subsets, to measure there too")
    parser.add_argument("--limit", type=int, help="items of ProcessBench to measure on")
    arguments = parser.parse_args()
    chain = Chain(arguments)
    found = chain.run()
    (chain.folder / "found.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(_table(found))


if __name__ == "__main__":
    main()
