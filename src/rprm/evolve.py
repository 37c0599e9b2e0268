"""Training in rounds, of which the better model is kept: preference optimisation (R-PRM, section 3.2: sample, pair,
train, measure), or GRPO, which samples as it trains. Each stage is a command of this package in a folder of its own,
`round-N/{analyses,pairs,dpo,measure}` or `round-N/{grpo,measure}`; `results.jsonl` has a row for each round, and
`model` is a link to the best model so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.benchmarks import Tally, compare, step_scores, tally_steps
from rprm.benchmarks.labelled_steps import StepItems
from rprm.data.stage_options import is_held_out
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.errors import CorruptRun, InputError, PromptError
from rprm.prompts import load_template
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.reading import Rejected, Source
from rprm.records import LabelledStep, ResultRow, SolutionReward
from rprm.runs import (
    LineWriter,
    Run,
    read_json_lines,
    read_results,
    read_summary,
    versions,
    write_atomically,
)
from rprm.subcommands import Subcommand, is_done
from rprm.training.handover import MODEL
from rprm.training.settings import RoundSettings


class RoundResult(ResultRow):
    """What a round came to: `model` is what it trained (round 0: the first model), `best` the one that goes on. Figures
    are in percent; `difference` is the change in F1 against the best model before, with its paired 95% interval."""

    round: int
    model: str
    best: str
    kept: bool
    num_pairs: int | None
    f1: float
    wrong_acc: float
    correct_acc: float
    wellformed: float | None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    seconds: float


def evolve(
    steps: str,
    model: str,
    output: str | Path,
    settings: RoundSettings,
    *,
    launcher: Sequence[str] = (),
    prompt: str | None = None,
    on_stage: Callable[[int, str], None] = lambda number, stage: None,
    on_round: Callable[[RoundResult], None] = lambda result: None,
) -> list[RoundResult]:
    """Run the rounds; killed at any moment, the same call resumes at the stage it was in. Returns their results.

    Args:
        steps: labelled steps: a run folder of `rprm data steps`, or a file.
        model: the folder (or hub id) of the model to begin with, usually after the cold start.
        launcher: what starts a training process in place of this Python, such as `accelerate launch --config_file F`.
        prompt: the template; by default the one that the first model's folder carries.
        on_stage, on_round: called when a stage begins, and with each round's result, those of earlier sessions too.

    Raises:
        InputError, PromptError: there is nothing to train or to measure on; no template is given or carried.
        RunError: the folder cannot be used, or a stage failed; the message has its command and its last words.
    """
    source, carried = steps_source(steps), Path(model) / MODEL_TEMPLATE
    if prompt is None and not carried.is_file():
        raise PromptError(f"{model} carries no {MODEL_TEMPLATE}: give the template it was trained with (--prompt)")
    # What samples, trains and measures must read the same prompt.
    template = load_template(prompt or carried)
    prompted = {"name": template.name, "digest": template.digest}
    resolved = {"input": source.inspect().digest, "model": model, "prompt": prompted, **settings.resolved()}
    session = {"input": source.name, "launcher": list(launcher), "versions": versions()}
    with Run(output, stage="evolve", settings=resolved, session=session) as run:
        write_atomically(run.folder / MODEL_TEMPLATE, template.to_toml())
        rounds = _Rounds(run.folder, model, settings, launcher, on_stage)
        rounds.split(source)
        done = list(read_json_lines(run.results_path, RoundResult.model_validate, run.checksums))
        if [result.round for result in done] != list(range(len(done))):
            raise CorruptRun(f"{run.results_path} does not hold the rounds in order; begin a new folder")
        with closing(LineWriter(run.results_path, checksums=run.checksums)) as writer:
            for number in range(settings.num_rounds + 1):
                if number == len(done):
                    done.append(rounds.run(number, done[-1] if done else None))
                    writer.write(done[-1].model_dump_json())
                link(run.folder, done[-1].best)
                on_round(done[number])
        run.complete({"num_rounds": settings.num_rounds, "best": done[-1].best}, {})
    return done


def link(folder: Path, model: str) -> None:
    """Let `model` in a folder lead to a model; to nothing where that is no folder of this machine."""
    path, target, root = folder / MODEL, Path(model).resolve(), folder.resolve()
    # Where links are for administrators alone, the results alone name the model.
    with suppress(OSError):
        path.unlink(missing_ok=True)
        if target.is_dir():
            # From within the folder, so that it can be moved whole.
            path.symlink_to(target.relative_to(root) if target.is_relative_to(root) else target)


@dataclass
class _Rounds:
    folder: Path
    first_model: str
    settings: RoundSettings
    launcher: Sequence[str]
    on_stage: Callable[[int, str], None]

    def __post_init__(self) -> None:
        self.train, self.validation = (self.folder / "steps" / f"{part}.jsonl" for part in ("train", "validation"))

    def split(self, source: Source) -> None:
        """Write the steps of training and validation problems to their files, as they were where they are there."""
        share, seed = self.settings.validation_share, self.settings.seed
        train, validation = parts = list[str](), list[str]()
        for step in _steps(source):
            parts[is_held_out(step.problem, share, seed)].append(step.model_dump_json() + "\n")
        if not train or not validation:
            numbers = f"{len(train)} steps to train on and {len(validation)} to measure on"
            share_of = f"with {share:.0%} of the problems held out; give more steps, or another share"
            raise InputError(f"{source.name}: {numbers}, {share_of}")
        write_atomically(self.train, "".join(train))
        write_atomically(self.validation, "".join(validation))

    def run(self, number: int, before: RoundResult | None) -> RoundResult:
        """A round: the first measures, the others train too."""
        started, settings = time.monotonic(), self.settings
        model = best = before.best if before else self.first_model
        found: dict[str, Any] = {"num_pairs": None}
        if before:
            asked: list[Any] = []
            if settings.method == "grpo":
                asked = ["--validation", self.validation, "--judge", "step", "--prompt", self.folder / MODEL_TEMPLATE]
                rows, asked = self.sampled(number), [*asked, "--seed", settings.seed + number]
            else:
                rows = self._pairs(number, best)
                found["num_pairs"] = read_summary(rows)["parts"]["train"]["rows"]
            trained = "train", settings.method, rows, "--model", best, *asked, *settings.train_options
            self._stage(number, settings.method, *trained, launcher=self.launcher)
            model = self._model_of(number)
        judged = "-k", settings.judge_analyses, *self._asking(model, 0), "--stopping", "none", "--allow-missing"
        self._stage(number, "measure", "bench", "steps", self.validation, *judged)
        tally, kept = self._tally(number), True
        if before:
            best_round = next(row for row in range(number) if self._model_of(row) == best)
            change = compare(self._tally(best_round), tally).differences["f1"]
            found |= {"difference": change.value, "difference_low": change.low, "difference_high": change.high}
            kept = (change.value or 0.0) > 0.0
        found |= {name: tally.by_name[name] for name in ("wrong_acc", "correct_acc", "wellformed")}
        found |= {"f1": tally.by_name["f1"] or 0.0, "seconds": round(time.monotonic() - started, 1)}
        return RoundResult(round=number, model=model, best=model if kept else best, kept=kept, **found)

    def _pairs(self, number: int, best: str) -> Path:
        """Preference pairs of what the best model so far says of a round's steps."""
        settings = self.settings
        asked = "-n", settings.num_analyses, *self._asking(best, number)
        analyses = self._stage(number, "analyses", "data", "analyses", self.sampled(number), *asked)
        # The problems to measure on are none of these: nothing more is held out.
        chosen = "--validation", 0, "--seed", settings.seed, *settings.resolved()["pair_options"]
        return self._stage(number, "pairs", "data", "pairs", analyses, *chosen)

    def sampled(self, number: int) -> Path:
        """The steps that a round samples: all, or so many, round by round from where the last one ended."""
        size, path = self.settings.num_sampled_steps, self.folder / f"round-{number}" / "steps.jsonl"
        if size is None:
            return self.train
        # As bytes: a line ends at a line feed alone, not at what else Unicode takes for a line end.
        lines = self.train.read_bytes().splitlines(keepends=True)
        chosen = [lines[((number - 1) * size + place) % len(lines)] for place in range(min(size, len(lines)))]
        write_atomically(path, b"".join(chosen).decode())
        return path

    def _asking(self, model: str, number: int) -> list[Any]:
        """Options of the stages that ask a model."""
        settings = self.settings
        # The scripted engine has no model: what it says of a round's is made up, what is trained is real.
        options = f"?{settings.engine_options}" if settings.engine_options else ""
        spec = f"{settings.engine}:{'' if settings.engine == 'scripted' else model}{options}"
        return [
            "--model", spec, "--prompt", self.folder / MODEL_TEMPLATE, "--temperature", settings.temperature,
            "--top-p", settings.top_p, "--max-tokens", settings.max_tokens, "--seed", settings.seed + number,
        ]  # fmt: skip

    def _model_of(self, number: int) -> str:
        return self.first_model if number == 0 else str(self.folder / f"round-{number}" / self.settings.method / MODEL)

    def _tally(self, number: int) -> Tally:
        rows = read_results(self.folder / f"round-{number}" / "measure", SolutionReward.model_validate)
        scores = step_scores(list(rows))
        return tally_steps(StepItems(tuple(_steps(Source(str(self.validation))))), scores, allow_missing=True)

    def _stage(self, number: int, name: str, *arguments: Any, launcher: Sequence[str] = ()) -> Path:
        """Run a command of this package into `round-N/NAME`, unless it is complete there."""
        folder = self.folder / f"round-{number}" / name
        words = [str(argument) for argument in arguments]
        if not is_done(folder, words):
            self.on_stage(number, name)
            Subcommand(folder, words, launcher=launcher, attached=True).wait()
        return folder


def _steps(source: Source) -> Iterator[LabelledStep]:
    for row in read_labelled_steps(source):
        if isinstance(row, Rejected):
            raise InputError(f"{row.file}, line {row.line}: {row.reason}; make the file with `rprm data steps`")
        yield row
