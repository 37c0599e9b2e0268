"""A folder of training rows: `train.jsonl`, `validation.jsonl`, the prompt template, a card, and a sample to read.

    FOLDER/
      train.jsonl, validation.jsonl   rows as TRL takes them (conversational, or plain text for a raw template)
      rprm_prompt.toml                the template that every prompt was rendered with
      README.md                       the card: what it was made from, every count
      sample.md                       a few rows to read
      manifest.json, summary.json     settings and counts, for programs

It is made whole or not at all: a killed stage is begun again, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rprm.prompts import Prompt, PromptTemplate
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.reading import Rejected, SourceInfo
from rprm.records import LabelledStep
from rprm.runs import LineWriter, Run, versions, write_atomically

TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"
PARTS = {"train": TRAIN, "validation": VALIDATION}

#: Rows of each verdict shown in the sample.
_NUM_SHOWN = 3

#: Length classes of the card's table, in characters.
_LENGTHS = (250, 500, 1000, 2000, 4000, 8000)


def listed(dropped: Mapping[str, int]) -> str:
    """The reasons that cost something, with their counts."""
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count) or "there were none"


class Dataset:
    """Writes such a folder, as a context manager; see `Run` for what it refuses.

    `stage` is the command (`cold-start`, `pairs` or `import`); `rows` says on the card what the rows are.
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
        self.folder, self.stage, self.template, self.rows = Path(folder), stage, template, rows
        prompt = {"name": template.name, "digest": template.digest}
        settings = {"input": source.digest, "prompt": prompt, **settings}
        self._run = Run(folder, stage=stage, settings=settings, session={"input": source.name, "versions": versions()})
        self._labels: Counter[tuple[str, bool]] = Counter()
        self._problems: dict[str, set[bytes]] = {part: set() for part in PARTS}
        self._positions: Counter[int] = Counter()
        self._lengths: Counter[str] = Counter()
        self._shown: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        self._num_rejected = 0

    def __enter__(self) -> Self:
        self._run.__enter__()
        self._rejected = LineWriter(self._run.rejected_path, fresh=True)
        self._writers = {part: LineWriter(self.folder / f"{name}.partial", fresh=True) for part, name in PARTS.items()}
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in (*self._writers.values(), self._rejected):
            writer.close()
        self._run.__exit__(*error)

    def reject(self, row: Rejected) -> None:
        """Record an input row that cannot be used."""
        self._rejected.write(row.model_dump_json())
        self._num_rejected += 1

    def write(self, identifier: str, step: LabelledStep, prompt: Prompt, replies: Sequence[str], part: str) -> None:
        """A row: the prompt about a labelled step, and its completion, or its chosen and its rejected analysis."""
        names = ("prompt", "completion") if len(replies) == 1 else ("prompt", "chosen", "rejected")
        columns = dict(zip(names, _as_trl_takes_them(prompt, replies), strict=True))
        row = {"id": identifier, "label": step.label, **columns}
        self._writers[part].write(json.dumps(row, ensure_ascii=False))
        self._labels[part, step.label] += 1
        self._problems[part].add(hashlib.blake2b(step.problem.encode(), digest_size=8).digest())
        self._positions[step.step_index] += 1
        length = len(_text_of(row[names[1]]))
        self._lengths[next((f"up to {limit}" for limit in _LENGTHS if length <= limit), f"over {_LENGTHS[-1]}")] += 1
        if part == "train" and len(self._shown[step.label]) < _NUM_SHOWN:
            self._shown[step.label].append(row)

    def finish(
        self, *, counts: Mapping[str, int], dropped: Mapping[str, int], made_from: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put the files in place and write card, sample and summary; returns the summary."""
        parts = {}
        for part, name in PARTS.items():
            self._writers[part].close()
            yes, no = self._labels[part, True], self._labels[part, False]
            parts[part] = {"rows": yes + no, "yes": yes, "no": no, "problems": len(self._problems[part])}
            if yes + no or part == "train":
                os.replace(self._writers[part].path, self.folder / name)
            else:
                self._writers[part].path.unlink()
                (self.folder / name).unlink(missing_ok=True)
        classes = (*(f"up to {limit}" for limit in _LENGTHS), f"over {_LENGTHS[-1]}")
        summary = {
            "parts": parts,
            "counts": dict(counts),
            "dropped": dict(dropped),
            "rejected": self._num_rejected,
            "positions": {str(place): self._positions[place] for place in sorted(self._positions)},
            "characters": {name: self._lengths[name] for name in classes if self._lengths[name]},
        }
        write_atomically(self.folder / MODEL_TEMPLATE, self.template.to_toml())
        write_atomically(self.folder / "sample.md", self._sample())
        write_atomically(self.folder / "README.md", self._card(summary, made_from))
        self._run.complete(summary, {})
        return summary

    def _card(self, summary: Mapping[str, Any], made_from: Mapping[str, Any]) -> str:
        parts, num_rejected = summary["parts"], summary["rejected"]
        validation = f"\n  - split: validation\n    path: {VALIDATION}" if parts["validation"]["rows"] else ""
        num_shared = len(self._problems["train"] & self._problems["validation"])
        shared = f"{num_shared:,} problems stand" if num_shared else "No problem stands"
        rejected = f"Rejected input rows (`rejected.jsonl`): {num_rejected:,}.\n\n" if num_rejected else ""
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

{_table("part", "rows", "Yes", "No", "problems", rows=((name, *part.values()) for name, part in parts.items()))}
{shared} in both parts.

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
        for row in (*self._shown[True], *self._shown[False]):
            lines += [f"## {row['id']} ({'Yes' if row['label'] else 'No'})", ""]
            for name in list(row)[2:]:
                text = _text_of(row[name])
                # Nothing in the text can close the block.
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                lines += [f"**{name}**", "", f"{fence}text", text, fence, ""]
        return "\n".join(lines)


def _as_trl_takes_them(prompt: Prompt, replies: Iterable[str]) -> list[Any]:
    """A prompt and replies: lists of messages, or plain texts where the prompt is no chat.

    A raw reply begins with the space or line end that the prompt leaves off.
    """
    if not prompt.chat:
        glue = "" if prompt.text[-1:].isspace() or not prompt.text else " "
        return [prompt.text, *(glue + reply for reply in replies)]
    question = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return [question, *([{"role": "assistant", "content": reply}] for reply in replies)]


def _text_of(value: Any) -> str:
    return value if isinstance(value, str) else "\n\n".join(message["content"] for message in value)


def _table(*head: str, rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for row in rows:
        lines.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |")
    return "\n".join(lines) + "\n"
