"""A folder of training rows: `train.jsonl`, `validation.jsonl`, the prompt template, a card, and a sample to read.

    FOLDER/
      train.jsonl, validation.jsonl   rows as TRL takes them (conversational, or plain text for a raw template)
      rprm_prompt.toml                the template that every prompt was rendered with
      README.md                       the card: what it was made from, every count
      sample.md                       a few rows to read
      manifest.json, summary.json     settings and counts, for programs

The stage is quick and deterministic. It is made whole or not at all: a killed one is begun again, and ends the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from rprm.data.analyses import AnalysesFile, provenance
from rprm.data.options import ColdStartOptions, PairOptions
from rprm.data.splits import is_held_out, order_key
from rprm.errors import InputError
from rprm.prompts import Prompt, PromptTemplate
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.reading import Rejected, SourceInfo
from rprm.records import LabelledStep, StepAnalyses
from rprm.runs import LineWriter, Run, versions, write_atomically

TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"
CARD = "README.md"
SAMPLE = "sample.md"

#: Rows of each verdict shown in the sample.
_NUM_SHOWN = 3

#: Length classes of the card's table, in characters.
_LENGTHS = (250, 500, 1000, 2000, 4000, 8000)


class ChosenTexts(NamedTuple):
    """A row to write: what tells it from other rows of its step, and its analyses as a training row has them."""

    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class RowStage:
    """How a stage makes rows of analysed steps.

    Attributes:
        name: the command.
        rows: what the rows are, for the card.
        noun, count: one row, and what their number is called in the summary.
        columns: of the analyses in a row.
        reasons: to drop something, in the order of the card.
        advice: where nothing is left.
        choose: the rows of a step, the same ones each time. It counts in `counts` and `dropped`.
    """

    name: str
    rows: str
    noun: str
    count: str
    columns: tuple[str, ...]
    reasons: tuple[str, ...]
    advice: str
    choose: Callable[[StepAnalyses, Counter[str], Counter[str]], list[ChosenTexts]]


def write_chosen(
    analyses: AnalysesFile,
    output: str | Path,
    template: PromptTemplate,
    options: ColdStartOptions | PairOptions,
    stage: RowStage,
) -> dict[str, Any]:
    """Make a data set of the rows that a stage chooses from analysed steps, balanced and split by problem.

    Args:
        analyses: read twice, a row at a time: memory holds an id for each row, not its text.
        output: the data set's folder; see `Dataset`.
        template: the prompt that the student will read.
        options: the settings.
        stage: chooses the rows.

    Returns:
        The counts, as in `summary.json`.

    Raises:
        InputError: nothing is left to train on, or an option makes no sense.
        RunError: the folder cannot be used.
    """
    settings = asdict(options)
    with Dataset(output, stage.name, analyses.source.inspect(), template, settings, rows=stage.rows) as dataset:
        counts, dropped = Counter[str](), Counter[str]()
        groups: dict[tuple[bool, bool], list[str]] = {}
        for row in analyses.rows():
            if isinstance(row, Rejected):
                dataset.reject(row)
                continue
            counts.update({"steps": 1, "analyses": len(row.analyses)})
            held_out = is_held_out(row.step.problem, options.validation_share, options.seed)
            ids = [row.id + one.name for one in stage.choose(row, counts, dropped)]
            groups.setdefault((held_out, row.step.label), []).extend(ids)
        chosen = _balanced(groups, options.seed) if options.balance else set[str]().union(*groups.values())
        thinned = f"{'' if stage.noun == 'analysis' else stage.count + ' '}thinned out for balance"
        dropped[thinned] = sum(map(len, groups.values())) - len(chosen)
        if not chosen:
            raise InputError(
                f"{analyses.source.name}: no {stage.noun} is left to train on ({listed(dropped)}); {stage.advice}"
            )
        for row in analyses.rows():
            if isinstance(row, Rejected):
                continue
            for name, texts in stage.choose(row, Counter(), Counter()):
                if row.id + name in chosen:
                    prompt = template.render(row.step.problem, row.step.steps, row.step.step_index)
                    question, *replies = messages_of(prompt, *texts)
                    columns = dict(zip(stage.columns, replies, strict=True))
                    dataset.write(
                        {"id": row.id + name, "label": row.step.label, "prompt": question, **columns},
                        step=row.step,
                        held_out=is_held_out(row.step.problem, options.validation_share, options.seed),
                    )
        return dataset.finish(
            counts={**counts, stage.count: len(chosen)},
            dropped={why: dropped[why] for why in (*stage.reasons, *sorted(set(dropped) - set(stage.reasons)))},
            made_from=provenance(analyses),
        )


def _balanced(groups: Mapping[tuple[bool, bool], Sequence[str]], seed: int) -> set[str]:
    """Ids of as many rows with Yes as with No, in each part; of the more frequent verdict a random choice."""
    chosen: set[str] = set()
    for held_out in (False, True):
        sides = [groups.get((held_out, label), ()) for label in (True, False)]
        for side in sides:
            chosen.update(sorted(side, key=lambda identifier: order_key(identifier, seed))[: min(map(len, sides))])
    return chosen


def messages_of(prompt: Prompt, *replies: str) -> list[Any]:
    """A prompt and replies as TRL takes them: lists of messages, or plain texts where the prompt is no chat.

    A raw reply begins with the space or line end that the prompt leaves off.
    """
    if not prompt.chat:
        glue = "" if prompt.text[-1:].isspace() or not prompt.text else " "
        return [prompt.text, *(glue + reply for reply in replies)]
    question = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return [question, *([{"role": "assistant", "content": reply}] for reply in replies)]


def listed(dropped: Mapping[str, int]) -> str:
    """The reasons that cost something, with their counts."""
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count) or "there were none"


class Dataset:
    """Writes such a folder. Use as a context manager.

    Args:
        folder: made if missing; one begun with other settings is refused.
        stage: the command: `cold-start`, `pairs` or `import`.
        source: what it is made from.
        template: the prompt of every row.
        settings: that the rows depend on.
        rows: what the rows are, for the card.

    Raises:
        RunError: the folder cannot be used, as for `Run`.
    """

    def __init__(
        self,
        folder: str | Path,
        stage: str,
        source: SourceInfo,
        template: PromptTemplate,
        settings: Mapping[str, Any],
        *,
        rows: str,
    ) -> None:
        self.folder = Path(folder)
        self.stage = stage
        self.template = template
        self.rows = rows
        resolved = {
            "input": source.digest,
            "prompt": {"name": template.name, "digest": template.digest},
            **settings,
        }
        self._run = Run(folder, stage=stage, settings=resolved, session={"input": source.name, "versions": versions()})
        self._labels: Counter[tuple[bool, bool]] = Counter()
        self._problems: dict[bool, set[bytes]] = {False: set(), True: set()}
        self._positions: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()
        self._shown: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        self._num_rejected = 0

    def __enter__(self) -> Self:
        self._run.__enter__()
        self._rejected = LineWriter(self._run.rejected_path, fresh=True)
        self._writers = {
            held_out: LineWriter(self.folder / f"{name}.partial", fresh=True)
            for held_out, name in ((False, TRAIN), (True, VALIDATION))
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (*self._writers.values(), self._rejected):
            writer.close()
        self._run.__exit__(kind, error, trace)

    def reject(self, row: Rejected) -> None:
        """Record an input row that cannot be used."""
        self._rejected.write(row.model_dump_json())
        self._num_rejected += 1

    def write(self, row: dict[str, Any], *, step: LabelledStep, held_out: bool) -> None:
        self._writers[held_out].write(json.dumps(row, ensure_ascii=False))
        self._labels[held_out, step.label] += 1
        self._problems[held_out].add(hashlib.blake2b(step.problem.encode(), digest_size=8).digest())
        self._positions[step.step_index] += 1
        text = _text_of(row["completion"] if "completion" in row else row["chosen"])
        self._lengths[next((limit for limit in _LENGTHS if len(text) <= limit), 0)] += 1
        if not held_out and len(self._shown[step.label]) < _NUM_SHOWN:
            self._shown[step.label].append(row)

    def finish(
        self, *, counts: Mapping[str, int], dropped: Mapping[str, int], made_from: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put the files in place and write card, sample and summary; returns the summary."""
        for held_out, name in ((False, TRAIN), (True, VALIDATION)):
            self._writers[held_out].close()
            partial = self.folder / f"{name}.partial"
            if partial.stat().st_size or not held_out:
                os.replace(partial, self.folder / name)
            else:
                partial.unlink()
                (self.folder / name).unlink(missing_ok=True)
        summary = {
            "parts": {
                name: {
                    "rows": self._labels[held_out, True] + self._labels[held_out, False],
                    "yes": self._labels[held_out, True],
                    "no": self._labels[held_out, False],
                    "problems": len(self._problems[held_out]),
                }
                for held_out, name in ((False, "train"), (True, "validation"))
            },
            "counts": dict(counts),
            "dropped": dict(dropped),
            "rejected": self._num_rejected,
            "positions": {str(place): self._positions[place] for place in sorted(self._positions)},
            "characters": {
                (f"up to {limit}" if limit else f"over {_LENGTHS[-1]}"): self._lengths[limit]
                for limit in (*_LENGTHS, 0)
                if self._lengths[limit]
            },
        }
        write_atomically(self.folder / MODEL_TEMPLATE, self.template.to_toml())
        write_atomically(self.folder / SAMPLE, self._sample())
        write_atomically(self.folder / CARD, self._card(summary, made_from))
        self._run.complete(summary, {})
        return summary

    def _card(self, summary: Mapping[str, Any], made_from: Mapping[str, Any]) -> str:
        parts = [
            (name, *(part[key] for key in ("rows", "yes", "no", "problems"))) for name, part in summary["parts"].items()
        ]
        validation = (
            f"\n  - split: validation\n    path: {VALIDATION}" if summary["parts"]["validation"]["rows"] else ""
        )
        num_shared = len(self._problems[False] & self._problems[True])
        rejected = (
            f"Rejected input rows (`rejected.jsonl`): {summary['rejected']:,}.\n\n" if summary["rejected"] else ""
        )
        settings = json.dumps({**self._run.settings, "made_from": dict(made_from)}, indent=2, ensure_ascii=False)
        return f"""---
tags: [process-reward-model, r-prm]
configs:
- config_name: default
  data_files:
  - split: train
    path: {TRAIN}{validation}
---

# {self.folder.resolve().name}

Training rows of a reasoning-driven process reward model: {self.rows}. Made by `rprm data {self.stage}`.

Prompt template: `{self.template.name}` ({self.template.digest}), in `{MODEL_TEMPLATE}`. Every prompt was \
rendered with it.

{_table("part", "rows", "Yes", "No", "problems", rows=parts)}
{f"{num_shared:,}" if num_shared else "No"} problem{"s stand" if num_shared else " stands"} in both parts.

## What became of the {"rows" if self.stage == "import" else "analyses"}

{_table("", "number", rows=summary["counts"].items())}
{_table("dropped because", "number", rows=summary["dropped"].items())}
{rejected}## Place of the step in its solution (0: first), and length of the analysis

{_table("place", "rows", rows=summary["positions"].items())}
{_table("characters", "rows", rows=summary["characters"].items())}
## Settings

```json
{settings}
```
"""

    def _sample(self) -> str:
        lines = [f"# A sample of {self.folder.resolve().name}, to read", ""]
        for label in (True, False):
            for row in self._shown[label]:
                lines += [f"## {row['id']} ({'Yes' if label else 'No'})", ""]
                for name in ("prompt", "completion", "chosen", "rejected"):
                    if name in row:
                        text = _text_of(row[name])
                        # Nothing in the text can close the block.
                        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                        lines += [f"**{name}**", "", f"{fence}text", text, fence, ""]
        return "\n".join(lines)


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "\n\n".join(message["content"] for message in value)


def _table(*head: str, rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1))]
    lines += [tuple(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) for row in rows]
    rule = "|".join(lines[1])
    return "".join(f"|{rule}|\n" if line is lines[1] else f"| {' | '.join(line)} |\n" for line in lines)
