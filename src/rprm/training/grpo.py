"""Reinforcement learning (GRPO) of a step judge or a critic: it answers labelled questions, and learns from what its
answers are worth (`rewards`); with TRL's trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from rprm.data.stage_options import is_held_out
from rprm.data.steps import steps_source
from rprm.engines.base import Sampling
from rprm.engines.tokens import detokenizer, encode_prompt, thinking_opening
from rprm.errors import InputError, RequestRefused
from rprm.files import LineWriter, read_json
from rprm.reading import Rejected
from rprm.training.handover import whole_folder
from rprm.training.language import LanguageRun
from rprm.training.lifecycle import ROWS, RunArguments, TrainingResult
from rprm.training.questions import (
    JudgeKind,
    LabelledSolution,
    Question,
    Reading,
    find_asker,
    judged_reward,
    read_solutions,
)
from rprm.training.rewards import RewardName, form_reward, overlong_reward
from rprm.training.rows import MAX_SHARE_TOO_LONG
from rprm.training.settings import GRPOSettings

_COUNTS = "counts.json"


class GRPORun(LanguageRun):
    """Reinforcement learning of a judge or a critic; see `train_grpo`."""

    kind = "grpo"
    does = "It was trained by GRPO on what its verdicts are worth."
    best_by = "eval_f1"
    settings: GRPOSettings = GRPOSettings()

    def __init__(
        self, data: str | Path, validation: str | Path | None, judge: JudgeKind | None, prompt: str | Path | None,
        **arguments: Unpack[RunArguments],
    ) -> None:  # fmt: skip
        given = {"train": data, "validation": validation}
        self.sources = {part: str(source) for part, source in given.items() if source is not None}
        for source in self.sources.values():
            if source == "-" or Path(source).is_fifo():
                raise InputError(f"{source}: a pipe can be read once, and training reads its rows again; give a file")
        first = next((row for row in read_solutions(data) if isinstance(row, LabelledSolution)), None)
        if first is None:
            raise InputError(f"{data} has no row that can be used; {self._first_fault(data)}")
        self.judge: JudgeKind = judge or ("step" if first.is_step else "critic")
        self.asker = find_asker(self.judge, prompt, arguments["model"])
        self.carried_as = self.asker.carried_as
        super().__init__(str(data), self.asker.template, arguments)
        default: RewardName = "verdict" if self.judge == "step" else "distance"
        self.reward: RewardName = self.settings.reward or ("outcome" if isinstance(first.label, bool) else default)
        if self.judge == "step" and self.reward == "distance":
            raise InputError("a step judge names no step that is near to another: the reward distance is of critics")
        self.settings = replace(self.settings, reward=self.reward)  # as it is carried out
        self.validation: list[Question] = []
        self.num_rejected = 0
        if self.judge == "critic":
            self.runs_as = "critic:transformers"  # type: ignore[misc]
            self.title = "A critic of whole solutions (GRPO)"
            self.about = f"It reads a problem and a whole solution, and names the earliest wrong step. {self.does}"

    @staticmethod
    def _first_fault(data: str | Path) -> str:
        return next((f"line {row.line}: {row.reason}" for row in read_solutions(data) if isinstance(row, Rejected)), "")

    @property
    def has_validation(self) -> bool:
        return "validation" in self.sources or self.settings.validation_share > 0

    def identity(self) -> dict[str, Any]:
        digests = {part: steps_source(source).inspect().digest for part, source in self.sources.items()}
        data = {"input": digests["train"], "validation": digests.get("validation"), "judge": self.judge}
        return {**data, **super().identity()}

    # --- questions -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read and encode the questions; what cannot be used is refused, or noted. Those to train on are written to
        disk: a folder that is there is whole."""
        rows = self._read()
        # Of the held-out ones all that labels tell, also where the outcome alone is trained on.
        by_steps: RewardName = "verdict" if self.judge == "step" else "distance"
        self.validation = self._questions("validation", rows["validation"], by_steps)
        questions = {"train": self._questions("train", rows["train"], self.reward), "validation": self.validation}
        self._refuse_one_sided(questions)
        self.callbacks.on_stage("tokenising")
        if not (folder := self.folder / ROWS).is_dir():
            self._encode(questions["train"], folder)
        self.counts = read_json(folder / _COUNTS)
        num_rows = self.counts["train"]["num_rows"]
        needed = self.settings.batch_size * self.settings.updates_per_sampling
        if num_rows < needed:
            fix = "lower --batch-size or --updates-per-sampling, or give more"
            raise InputError(
                f"{self.sources['train']}: {num_rows:,} questions, and {needed:,} are asked at once; {fix}"
            )

    def _read(self) -> dict[str, list[LabelledSolution]]:
        rows: dict[str, list[LabelledSolution]] = {"validation": []}
        with closing(LineWriter(self.run.rejected_path, fresh=True)) as writer:
            for part, source in self.sources.items():
                rows[part] = []
                for row in read_solutions(source):
                    if isinstance(row, LabelledSolution):
                        rows[part].append(row)
                        continue
                    for line in row.listed(self.num_rejected):
                        writer.write(line)
                    self.num_rejected += 1
        if self.num_rejected:
            self.callbacks.on_note(f"{self.num_rejected:,} rows cannot be used: see {self.run.rejected_path}")
        share, seed, total = self.settings.validation_share, self.settings.split_seed, len(rows["train"])
        if "validation" not in self.sources and share:
            rows["validation"] = [row for row in rows["train"] if is_held_out(row.solution.problem, share, seed)]
        # Case and spacing do not matter, as in `is_held_out`.
        held_out = {_key(row) for row in rows["validation"]}
        rows["train"] = [row for row in rows["train"] if _key(row) not in held_out]
        if "validation" in self.sources and (num_shared := total - len(rows["train"])):
            self.callbacks.on_note(f"{num_shared:,} rows are of problems to validate on, and not trained on")
        return rows

    def _questions(self, part: str, rows: Sequence[LabelledSolution], reward: RewardName) -> list[Question]:
        found, source = list[Question](), self.sources.get(part, self.sources["train"])
        for row in rows:
            try:
                found += row.questions(self.judge, reward)
            except InputError as error:
                fix = "train by another --reward"
                if part == "validation":
                    fix = "give --validation with labels of steps, or --validation-share 0 (which keeps the last)"
                raise InputError(f"{source}, row {row.solution.id!r}: {error}; {fix}") from None
        return found

    def _refuse_one_sided(self, questions: Mapping[str, Sequence[Question]]) -> None:
        """Of labels of one kind nothing is learnt, and F1 is none."""
        for part, asked in questions.items():
            if not asked and (part == "train" or self.has_validation):
                what = "no question to train on" if part == "train" else "no question to validate on"
                raise InputError(f"{self.sources.get(part, self.sources['train'])}: {what}; give more rows")
            # True says right, and so does -1.
            if asked and len({one.label is True or one.label == -1 for one in asked}) == 1:
                only = "right" if asked[0].label is True or asked[0].label == -1 else "wrong"
                where = self.sources.get(part, f"the held-out rows of {self.sources['train']}")
                raise InputError(f"{where}: all {len(asked):,} questions are labelled {only}; add others")

    def _encode(self, questions: Sequence[Question], folder: Path) -> None:
        import pyarrow as pa
        from datasets.arrow_writer import ArrowWriter

        fields = {"prompt": pa.list_(pa.int32()), "begun": pa.string(), "num_steps": pa.int32(), "label": pa.int32()}
        most = self.settings.max_length - self.settings.max_tokens
        counts = dict.fromkeys(("num_rows", "num_too_long", "num_right", "num_wrong", "num_tokens", "longest"), 0)
        with whole_folder(folder) as partial:
            with ArrowWriter(schema=pa.schema(list(fields.items())), path=str(partial / "train.arrow")) as writer:
                for one in questions:
                    prompt = self.asker.prompt(one)
                    try:
                        ids = encode_prompt(self.tokenizer, prompt)
                    except RequestRefused as error:
                        raise InputError(f"{self.sources['train']}, row {one.id!r}: {error}") from None
                    if len(ids) > most:
                        counts["num_too_long"] += 1
                        continue
                    # A critique is read with what was given of it, an analysis with the thinking that is opened.
                    given = prompt.reply if self.judge == "critic" else ""
                    begun = given or ("" if prompt.reply else thinking_opening(self.tokenizer, prompt, ids))
                    writer.write({"prompt": ids, "begun": begun, "num_steps": len(one.steps), "label": int(one.label)})
                    counts["num_rows"] += 1
                    counts["num_right" if one.label is True or one.label == -1 else "num_wrong"] += 1
                    counts["num_tokens"] += len(ids)
                    counts["longest"] = max(counts["longest"], len(ids))
                writer.finalize()
            too_long, total = counts["num_too_long"], len(questions)
            what = f"{self.sources['train']}: {too_long:,} of {total:,} questions are longer than {most:,} tokens"
            if too_long > MAX_SHARE_TOO_LONG * total:
                raise InputError(f"{what}, more than {MAX_SHARE_TOO_LONG:.0%}; raise --max-length (none is cut)")
            if too_long:
                self.callbacks.on_note(f"{what} and left out")
            found = {"train": counts, "validation": {"num_rows": len(self.validation)}}
            (partial / _COUNTS).write_text(json.dumps(found))

    # --- rewards -------------------------------------------------------------------------------------------------

    def reading(self, prompt: Sequence[int], ids: Sequence[int], begun: str, num_steps: int) -> Reading:
        """What a reply says, as a text that is what an engine makes of its tokens."""
        stop, read = self.template.stop, detokenizer(self.tokenizer, prompt[-32:])
        text = begun + "".join(map(read, ids))
        ended = ids[-1] in (self.end, self.tokenizer.eos_token_id, *self.base.stops)
        if stop and stop in text[len(begun) :]:
            text, ended = text[: text.index(stop, len(begun))], True
        return self.asker.read(text, num_steps, ended=ended)

    def judged(
        self, prompts: Any, completion_ids: Any, begun: Any, num_steps: Any, label: Any, log_metric: Any = None,
        **_: Any,
    ) -> list[float]:  # fmt: skip
        """What the verdicts are worth, a reward function as TRL calls it: lists of so many replies."""
        rewards, num_right = list[float](), 0
        for prompt, ids, begin, steps, answer in zip(prompts, completion_ids, begun, num_steps, label, strict=True):
            found = self.reading(prompt, ids, begin, steps)
            rewards.append(judged_reward(self.reward, found, answer, steps))
            told = found.calls_right if self.reward == "outcome" else found.told
            num_right += told is not None and told == answer
        if log_metric is not None:
            log_metric("right", num_right / len(rewards))
        return rewards

    def form(self, prompts: Any, completion_ids: Any, begun: Any, num_steps: Any, **_: Any) -> list[float]:
        """Likewise, of their form."""
        replies = zip(prompts, completion_ids, begun, num_steps, strict=True)
        return [form_reward(self.reading(*reply).is_wellformed) for reply in replies]

    def length(self, completion_ids: Any, **_: Any) -> list[float]:
        """Likewise, of their lengths."""
        settings = self.settings
        return [overlong_reward(len(ids), settings.max_tokens, settings.overlong_tokens) for ids in completion_ids]

    # --- TRL -----------------------------------------------------------------------------------------------------

    def trl(self) -> tuple[Any, Any, dict[str, Any]]:
        from trl import GRPOConfig

        from rprm.training.group_trainer import GroupTrainer

        settings = self.settings
        same = "temperature", "beta", "epsilon", "epsilon_high", "scale_rewards"
        num_batches = settings.accumulation(self.num_processes)
        further = {name: getattr(settings, name) for name in same} | {
            "num_generations": settings.num_samples,
            "steps_per_generation": num_batches * settings.updates_per_sampling,
            "max_completion_length": settings.max_tokens,
            # The mean over tokens.
            "loss_type": "dapo",
            "reward_weights": [1.0, settings.form_weight, 1.0],
            # Of an evaluation by TRL, of which there is none.
            "num_generations_eval": 1,
        }
        if settings.vllm is not None:
            further |= {"use_vllm": True, "vllm_mode": settings.vllm, "vllm_max_model_length": settings.max_length}
            further |= {"vllm_server_base_url": settings.vllm_url} if settings.vllm == "server" else {}
            further |= {"generation_kwargs": {"stop": [self.template.stop]}} if self.template.stop else {}
        return GroupTrainer, GRPOConfig, further

    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        from datasets import Dataset

        settings, rows = self.settings, Dataset.from_file(str(self.folder / ROWS / "train.arrow"))
        stop = (self.template.stop,) if self.template.stop else ()
        trainer: Any = self.trl()[0](
            sampling=Sampling(settings.temperature, max_tokens=settings.max_tokens, stop=stop),
            max_rows=settings.max_rows,
            measure=lambda engine: self.asker.measure(engine, self.validation, settings.max_tokens),
            reward_funcs=[self.judged, self.form, self.length],
            train_dataset=rows,
            # Asked for, and not read: evaluations are ours.
            eval_dataset=rows,
            **self.how(config, callbacks),
        )
        return trainer

    def hand_over(self, checkpoint: Path, folder: Path) -> dict[str, Any]:
        return {**super().hand_over(checkpoint, folder), "num_rejected": self.num_rejected}

    def figures(self, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        from rprm.training.group_trainer import SKIPPED

        of_training = [row for row in rows if "reward" in row] or [{}]
        totals = {name: sum(row.get(name, 0) for row in of_training) for name in SKIPPED}
        return super().figures(rows, step) | {"reward": of_training[-1].get("reward"), **totals}


def train_grpo(
    data: str | Path, *, validation: str | Path | None = None, judge: JudgeKind | None = None,
    prompt: str | Path | None = None, **arguments: Unpack[RunArguments],
) -> TrainingResult:  # fmt: skip
    """Train a judge of steps or a critic of whole solutions by rewards of its own replies; or resume where an earlier
    session on the same folder was killed.

    Args:
        data: labelled steps (a run of `rprm data steps`, or rows `{problem, previous_steps[], step, label}`), or
            solutions, rows `{problem, steps[], label}` whose label is the index of the earliest wrong step (-1: none),
            or true or false for the whole.
        validation: the same of other problems; by default a share of the problems. The process F1 on them says which
            checkpoint is handed over.
        judge: `step` or `critic`; by default `step` for labelled steps.
        prompt: the template; by default the one that the model's folder carries, or the built-in critic.
        arguments: see `RunArguments`; the settings are `GRPOSettings`.

    Raises: see `TrainingRun.work`; a `PromptError` where there is no template.
    """
    return GRPORun(data, validation, judge, prompt, **arguments).work()


def _key(row: LabelledSolution) -> str:
    return " ".join(row.solution.problem.casefold().split())
