"""Data sets to train on, as folders made whole or not at all: cold-start rows, preference pairs, published rows."""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Self

from rprm.data.analyses import AnalysesFile
from rprm.data.cards import table
from rprm.data.stage_options import ColdStartOptions, PairOptions, is_held_out, order_key
from rprm.errors import InputError
from rprm.prompts import Prompt, PromptTemplate
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.reading import Rejected, SourceInfo
from rprm.records import Analysis, LabelledStep, StepAnalyses
from rprm.runs import LineWriter, Run, versions, write_atomically
from rprm.thinking import without_thinking
from rprm.verdict import VerdictFormat

TRAIN, VALIDATION = "train.jsonl", "validation.jsonl"
PARTS = {"train": TRAIN, "validation": VALIDATION}

#: Rows of each verdict in the sample, and the card's length classes in characters.
_NUM_SHOWN, _LENGTHS = 3, (250, 500, 1000, 2000, 4000, 8000)
_CLASSES = (*(f"up to {limit}" for limit in _LENGTHS), f"over {_LENGTHS[-1]}")


def listed(dropped: Mapping[str, int]) -> str:
    """The reasons that cost something, with their counts."""
    return ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count) or "there were none"


@dataclass
class Dataset:
    """Writes such a folder, as a context manager; see `Run` for what it refuses."""

    folder: Path
    stage: str  #: the command: `cold-start`, `pairs` or `import`
    source: SourceInfo
    template: PromptTemplate
    settings: Mapping[str, Any]
    rows: str  #: what the card calls the rows

    def __enter__(self) -> Self:
        prompt = {"name": self.template.name, "digest": self.template.digest}
        settings = {"input": self.source.digest, "prompt": prompt, **self.settings}
        session = {"input": self.source.name, "versions": versions()}
        with ExitStack() as stack:
            run = Run(self.folder, stage=self.stage, settings=settings, session=session)
            self._run = stack.enter_context(run)
            paths = run.rejected_path, *(self.folder / f"{name}.partial" for name in PARTS.values())
            self._rejected, *writers = (stack.enter_context(closing(LineWriter(path, fresh=True))) for path in paths)
            self._open = stack.pop_all()
        self._writers = dict(zip(PARTS, writers, strict=True))
        self._labels: Counter[tuple[str, bool]] = Counter()
        self._problems: dict[str, set[bytes]] = {part: set() for part in PARTS}
        self._positions, self._lengths, self._num_rejected = Counter[int](), Counter[str](), 0
        self._shown: dict[bool, list[tuple[str, dict[str, str]]]] = {True: [], False: []}
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def reject(self, row: Rejected) -> None:
        for line in row.listed(self._num_rejected):
            self._rejected.write(line)
        self._num_rejected += 1

    def write(self, identifier: str, step: LabelledStep, prompt: Prompt, replies: Sequence[str], part: str) -> None:
        """A row: the prompt about a labelled step, and its completion, or its chosen and its rejected analysis."""
        names = ("completion",) if len(replies) == 1 else ("chosen", "rejected")
        # Of a plain text, replies begin with the space that it leaves off.
        glue = "" if prompt.chat or prompt.text[-1:].isspace() or not prompt.text else " "
        texts = {name: glue + reply for name, reply in zip(names, replies, strict=True)}
        columns: dict[str, Any] = {"prompt": prompt.text, **texts}
        if prompt.chat:
            question = [{"role": message.role, "content": message.content} for message in prompt.messages]
            replied = {name: [{"role": "assistant", "content": text}] for name, text in texts.items()}
            columns = {"prompt": question, **replied}
        self._writers[part].write(json.dumps({"id": identifier, "label": step.label, **columns}, ensure_ascii=False))
        self._labels[part, step.label] += 1
        self._problems[part].add(hashlib.blake2b(step.problem.encode(), digest_size=8).digest())
        self._positions[step.step_index] += 1
        self._lengths[_CLASSES[bisect_left(_LENGTHS, len(texts[names[0]]))]] += 1
        if part == "train" and len(self._shown[step.label]) < _NUM_SHOWN:
            self._shown[step.label].append((identifier, {"prompt": prompt.text, **texts}))

    def finish(self, counts: Mapping[str, int], dropped: Mapping[str, int], made_from: Any) -> dict[str, Any]:
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
        summary = {
            "parts": parts,
            "counts": dict(counts),
            "dropped": dict(dropped),
            "rejected": self._num_rejected,
            "positions": {str(place): number for place, number in sorted(self._positions.items())},
            "characters": {name: self._lengths[name] for name in _CLASSES if self._lengths[name]},
        }
        write_atomically(self.folder / MODEL_TEMPLATE, self.template.to_toml())
        write_atomically(self.folder / "sample.md", self._sample())
        write_atomically(self.folder / "README.md", self._card(summary, made_from))
        self._run.complete(summary, {})
        return summary

    def _card(self, summary: Mapping[str, Any], made_from: Any) -> str:
        parts, num_rejected = summary["parts"], summary["rejected"]
        validation = f"\n  - split: validation\n    path: {VALIDATION}" if parts["validation"]["rows"] else ""
        num_shared = len(self._problems["train"] & self._problems["validation"])
        shared = f"{num_shared:,} problems stand" if num_shared else "No problem stands"
        rejected = f"Rejected input rows (`rejected.jsonl`): {num_rejected:,}.\n\n" if num_rejected else ""
        settings = json.dumps({**self._run.settings, "made_from": made_from}, indent=2, ensure_ascii=False)
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

{table("part", "rows", "Yes", "No", "problems", rows=((name, *part.values()) for name, part in parts.items()))}
{shared} in both parts.

## What became of the {"rows" if self.stage == "import" else "analyses"}

{table("", "number", rows=summary["counts"].items())}
{table("dropped because", "number", rows=summary["dropped"].items())}
{rejected}## Place of the step in its solution (0: first), and length of the analysis

{table("place", "rows", rows=summary["positions"].items())}
{table("characters", "rows", rows=summary["characters"].items())}
## Settings

```json
{settings}
```
"""

    def _sample(self) -> str:
        lines = [f"# A sample of {self.folder.resolve().name}, to read", ""]
        for label, verdict in ((True, "Yes"), (False, "No")):
            for identifier, texts in self._shown[label]:
                lines += [f"## {identifier} ({verdict})", ""]
                for name, text in texts.items():
                    # Nothing in the text can close the block.
                    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                    lines += [f"**{name}**", "", f"{fence}text", text, fence, ""]
        return "\n".join(lines)


#: No text: after an answer, before the marker on its line, and after the answer of a training row.
_TAIL = " \t\r\n*_`'\"$)}].!"
_OPENERS = " \t\r*_#>`-"
_AFTER_VERDICT = re.compile(r"[^\w]{0,16}\Z")

#: Reasons to drop an analysis, in the order in which they are looked for.
REASONS = NO_VERDICT, FORCED, SEVERAL, NOT_LAST, EMPTY, DISAGREES, REPEATED = (
    "no verdict", "verdict had to be asked for", "the verdict line stands more than once", "text follows the verdict",
    "nothing but the verdict", "verdict disagrees with the label", "repeats another analysis of the step",
)  # fmt: skip


def wellformed(analysis: Analysis, written: VerdictFormat, trained: VerdictFormat) -> tuple[str, str]:
    """The text to train on, with the verdict line `trained` in place of `written`: `(text, "")`, or `("", reason)`."""
    answer = without_thinking(analysis.text)
    markers = list(written.marker_pattern.finditer(answer))
    verdict = written.find(answer)
    if analysis.forced and analysis.verdict is not None:
        return "", FORCED
    if analysis.verdict is None or verdict is None:
        return "", NO_VERDICT
    if len(markers) > 1:
        return "", SEVERAL
    if answer[verdict.end :].strip(_TAIL):
        return "", NOT_LAST
    body = answer[: markers[0].start()]
    before, _, lead = body.rpartition("\n")
    if not lead.strip(_OPENERS):
        # Markdown that opens on the verdict line belongs to it, and would be left open.
        body = before
    body = body.strip()
    if not any(character.isalnum() for character in body):
        return "", EMPTY
    return f"{body}\n{trained.marker} {trained.yes if verdict.yes else trained.no}", ""


def verdict_fault(reply: str, verdict: VerdictFormat, wanted: bool) -> str | None:
    """What is wrong with the verdict of a reply; None where it stands once, at the end, and is the wanted one."""
    found = verdict.find_all(reply)
    if len(found) != 1:
        return "no verdict" if not found else f"{len(found)} verdicts"
    if not _AFTER_VERDICT.match(reply, found[0].end):
        return "text after the verdict"
    if found[0].yes is not wanted:
        return f"verdict {verdict.yes if found[0].yes else verdict.no}, against the label"
    return None


def rejected_fault(reply: str, verdict: VerdictFormat, label: bool) -> str | None:
    """Why a reply cannot be the rejected one of a pair: it says what the label says. A reply may have no verdict."""
    if any(found.yes is label for found in verdict.find_all(reply)):
        return f"verdict {verdict.yes if label else verdict.no}, which agrees with the label"
    return None


#: Well-formed texts, each with the numbers of the step's samples that read like it.
Sides = dict[str, list[int]]
Tally = Counter[str]
#: Rows of a step: what tells each from the others, and its analyses as a training row has them.
Chosen = list[tuple[str, tuple[str, ...]]]


def _first(step: StepAnalyses, agreeing: Sides, other: Sides, options: ColdStartOptions, tally: Tally) -> Chosen:
    """The first analyses whose verdict is the label."""
    tally["steps without any analysis"] += not step.analyses
    tally["steps with an agreeing analysis"] += bool(agreeing)
    tally[DISAGREES] += sum(map(len, other.values()))
    tally[REPEATED] += sum(map(len, agreeing.values())) - len(agreeing)
    tally["more than were asked for of one step"] += max(0, len(agreeing) - options.per_step)
    return [(f"#{samples[0]}", (text,)) for text, samples in islice(agreeing.items(), options.per_step)]


#: Why a step gives no pair; the first that holds is counted.
_UNPAIRED = (
    "steps without a well-formed analysis",
    "steps whose analyses all agree with the label",
    "steps whose analyses all disagree with the label",
    "steps outside the accuracy band",
    "steps whose agreeing analyses repeat too rarely",
    "steps without analyses of like length",
)


def _pairs(step: StepAnalyses, agreeing: Sides, other: Sides, options: PairOptions, tally: Tally) -> Chosen:
    """The most often sampled pairs, or the closest in length; no analysis in more pairs than it was sampled."""
    num_agreeing, num_other = (sum(map(len, some.values())) for some in (agreeing, other))
    accuracy = num_agreeing / max(1, num_agreeing + num_other)
    outside = not options.min_accuracy <= accuracy <= options.max_accuracy
    often = {text: samples for text, samples in agreeing.items() if len(samples) >= options.min_repeats}
    limit, possible = options.max_length_ratio, []
    for texts in product(often, other):
        samples = often[texts[0]], other[texts[1]]
        shorter, longer = sorted(max(1, step.analyses[first].num_tokens) for first, *_ in samples)
        ratio = longer / shorter if limit else 0.0
        if ratio <= (limit or 0.0):
            name = f"#{samples[0][0]}>{samples[1][0]}"
            place = (ratio, -len(samples[0]), -len(samples[1]), order_key(step.id + name, options.seed))
            possible.append((place, samples, name, texts))
    applies = (not agreeing and not other, not other, not agreeing, outside, not often, not possible)
    why = next((reason for reason, holds in zip(_UNPAIRED, applies, strict=True) if holds), None)
    tally[why or "steps with a pair"] += 1
    tally[REPEATED] += num_agreeing + num_other - len(agreeing) - len(other)
    pairs, uses = list[tuple[Any, str, tuple[str, str]]](), Counter[str]()
    for _, samples, name, texts in [] if why else sorted(possible):
        if len(pairs) < options.per_step and all(uses[text] < len(of) for text, of in zip(texts, samples, strict=True)):
            pairs.append((samples, name, texts))
            uses.update(texts)
    return [(name, texts) for _, name, texts in sorted(pairs)]


#: How a stage makes rows of analysed steps, by its options: its name, what a row is made of, what the card says of the
#: rows, what is counted, why analyses are dropped (both end with what the balance leaves and drops), and its choice.
_STAGES: dict[type, tuple[str, str, str, tuple[str, ...], tuple[str, ...], Callable[..., Chosen]]] = {
    ColdStartOptions: (
        "cold-start", "analysis", "analyses whose verdict agrees with the label of the step (cold start, SFT)",
        ("steps without any analysis", "steps with an agreeing analysis", "kept"),
        (*REASONS, "more than were asked for of one step", "thinned out for balance"), _first,
    ),
    PairOptions: (
        "pairs", "pair", "pairs of an agreeing and a disagreeing analysis of one step (preferences, DPO)",
        ("steps with a pair", "pairs"), (*REASONS, *_UNPAIRED, "pairs thinned out for balance"), _pairs,
    ),
}  # fmt: skip


def write_rows(
    analyses: AnalysesFile, output: str | Path, template: PromptTemplate, options: ColdStartOptions | PairOptions
) -> dict[str, Any]:
    """Make a data set out of analyses: cold-start rows for `rprm train sft`, or pairs for `rprm train dpo`.

    Verdict lines are rewritten for the template of the student. The first pass keeps the ids of the chosen rows, the
    second writes them. Returns the counts, as in `summary.json`; an InputError where nothing is left to train on.
    """
    name, noun, what, counted, reasons, choose = _STAGES[type(options)]
    source, tally = analyses.source, Tally()
    written = (analyses.template or template).verdict

    def chosen(step: StepAnalyses) -> Chosen:
        sides: dict[bool, Sides] = {True: {}, False: {}}
        for sample, analysis in enumerate(step.analyses):
            text, reason = wellformed(analysis, written, template.verdict)
            if reason:
                tally[reason] += 1
            else:
                sides[analysis.verdict is step.step.label].setdefault(text, []).append(sample)
        rows = choose(step, sides[True], sides[False], options, tally)
        return [(step.id + end, texts) for end, texts in rows]

    def part(step: StepAnalyses) -> str:
        held_out = is_held_out(step.step.problem, options.validation_share, options.seed)
        return "validation" if held_out else "train"

    with Dataset(Path(output), name, source.inspect(), template, asdict(options), what) as dataset:
        groups: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in PARTS}
        for row in analyses.rows():
            if isinstance(row, Rejected):
                dataset.reject(row)
                continue
            tally.update({"steps": 1, "analyses": len(row.analyses)})
            groups[part(row)][row.step.label].extend(identifier for identifier, _ in chosen(row))
        num_rows = sum(len(ids) for sides in groups.values() for ids in sides)
        kept = set[str]()
        for sides in groups.values():
            # Of the more frequent verdict a random choice.
            fewest = min(map(len, sides)) if options.balance else None
            for ids in sides:
                kept.update(sorted(ids, key=lambda identifier: order_key(identifier, options.seed))[:fewest])
        tally.update({counted[-1]: len(kept), reasons[-1]: num_rows - len(kept)})
        dropped = {reason: tally[reason] for reason in reasons}
        if not kept:
            advice = "sample more analyses of each step (-n), choose less strictly, or leave out the balance"
            raise InputError(f"{source.name}: no {noun} is left to train on ({listed(dropped)}); {advice}")
        counts = {count: tally[count] for count in ("steps", "analyses", *counted)}
        for row in analyses.rows():
            if not isinstance(row, Rejected):
                prompt = template.render(row.step.problem, row.step.steps, row.step.step_index)
                for identifier, texts in chosen(row):
                    if identifier in kept:
                        dataset.write(identifier, row.step, prompt, texts, part(row))
        return dataset.finish(counts, dropped, analyses.provenance)
