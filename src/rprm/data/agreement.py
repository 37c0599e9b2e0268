"""Labels that a second opinion shares: of completions those with which a critic agrees about the first error (consensus
filtering, arXiv 2501.07301), of a critic those that all its samples give (FAPO, arXiv 2510.22543, appendix B)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from rprm.data.cards import table
from rprm.data.solutions import AGREE, SOLUTIONS, STEPS, LabelledSolution, labelled_solution_of
from rprm.data.steps import gathered_source, labelled_step_of
from rprm.errors import InputError
from rprm.reading import Rejected, Row, Rows, Source
from rprm.records import LabelledStep, Solution, SolutionReward
from rprm.rewarders.base import read_rewards
from rprm.runs import RESULTS, LineWriter, Run, finished_manifest, versions, write_atomically

#: What was dropped, with the reason.
DROPPED = "dropped.jsonl"

#: Why a label is dropped; the first that holds.
REASONS = UNDECIDED, SPLIT, NO_LABEL, FOUND_NONE, FOUND_ONE, ELSEWHERE = (
    "the second opinion comes to no conclusion", "its samples disagree", "there is no label to agree with",
    "it finds no error where the label has one", "it finds an error where the label has none",
    "it finds the first error at another step",
)  # fmt: skip


class Labels(NamedTuple):
    """Rows with labels: whole solutions, or labelled steps."""

    source: Source
    are_steps: bool
    limit: int | None = None

    def rows(self) -> Rows[LabelledSolution | LabelledStep]:
        def read(row: Row) -> LabelledSolution | LabelledStep:
            name = f"line-{row.line}"
            of_step, of_solution = labelled_step_of, labelled_solution_of
            return of_step(row.value, name) if self.are_steps else of_solution(row.value, default_id=name)

        return Rows(self.source, read, self.limit)

    def solutions(self) -> Iterator[Solution | Rejected]:
        """What is to be judged; of labelled steps the last step alone."""
        return (row if isinstance(row, Rejected) else row.solution for row in self.rows())


def open_labels(name: str | Path, limit: int | None = None) -> Labels:
    """The first `limit` rows of solutions or steps with labels: of a run of `rprm data rollouts`, `steps`, `agree` or
    `inject`, of a file or hub data set. Its first row says which they are."""
    source = gathered_source(name)
    first = next((row for row in source.rows() if isinstance(row, Row) and isinstance(row.value, dict)), None)
    return Labels(source, first is not None and "step" in first.value, limit)


def keep_agreeing(
    labels: Labels, judged: str | Path, output: str | Path, *, unanimous: bool = False, strict: bool = False
) -> dict[str, Any]:
    """Write the rows whose label a run of judged solutions shares to `solutions.jsonl` (or `steps.jsonl`), the others
    with the reason to `dropped.jsonl`, and a card. Returns the counts, as in `summary.json`.

    Args:
        judged: a complete run of `rprm judge` over the same rows, in their order.
        unanimous: whether every one of its samples must say the same. Rows without a label get theirs then.
        strict: raise an `InputError` at the first row that cannot be used.

    `InputError` where the run is of other rows, or has too few samples to tell.
    """
    opinion = finished_manifest(judged, stage="judge", command="rprm judge")
    settings = {
        "input": labels.source.inspect().digest,
        "opinion": {**opinion["settings"], "rows": opinion.get("files", {}).get(RESULTS)},
        "unanimous": unanimous,
        **({} if labels.limit is None else {"limit": labels.limit}),
    }
    session = {"input": labels.source.name, "opinion": str(judged), "versions": versions()}
    name = STEPS if labels.are_steps else SOLUTIONS
    kept, dropped, num_rejected = Counter[str](), {reason: Counter[str]() for reason in REASONS}, 0
    with Run(output, stage=AGREE, settings=settings, session=session) as run, ExitStack() as stack:
        paths = (run.folder / f"{file}.partial" for file in (name, DROPPED, "rejected.jsonl"))
        files = [stack.enter_context(closing(LineWriter(path, fresh=True))) for path in paths]
        for row, reward in _paired(labels, read_rewards(judged), judged):
            if isinstance(row, Rejected):
                if strict:
                    raise InputError(f"{row.file}, line {row.line}: {row.reason}")
                for line in row.listed(num_rejected):
                    files[2].write(line)
                num_rejected += 1
                continue
            found, label = reward.first_error, row.solution.label
            if (reason := _why_dropped(label, reward, unanimous=unanimous)) is None:
                if isinstance(row, LabelledSolution) and label is None:
                    row = row.model_copy(update={"label": found, "source": row.source or AGREE})
                kept[_kind(found)] += 1
                files[0].write(row.model_dump_json())
            else:
                dropped[reason][_kind(label)] += 1
                told = {"id": row.id, "label": label, "found": found, "reason": reason}
                files[1].write(json.dumps(told, ensure_ascii=False))
        stack.close()
        for file in files:
            file.path.replace(file.path.with_name(file.path.name.removesuffix(".partial")))
        summary = {
            "kept": dict(kept),
            "dropped": {reason: dict(counts) for reason, counts in dropped.items()},
            "num_kept": kept.total(),
            "num_rejected": num_rejected,
        }
        write_atomically(run.folder / "README.md", _card(run, summary, name))
        run.complete(summary, {})
    return summary


def _kind(label: int | None) -> str:
    return "unlabelled" if label is None else "right" if label == -1 else "wrong"


def _paired(
    labels: Labels, rewards: Iterator[SolutionReward], judged: str | Path
) -> Iterator[tuple[LabelledSolution | LabelledStep | Rejected, Any]]:
    """Each row and its reward; rejected rows have none."""
    for row in labels.rows():
        reward = None if isinstance(row, Rejected) else next(rewards, None)
        if not isinstance(row, Rejected) and (reward is None or reward.id != row.id):
            has = "no more rows" if reward is None else f"{reward.id!r} there"
            raise InputError(f"{judged} judged other rows: it should have {row.id!r}, and has {has}")
        yield row, reward
    if (more := next(rewards, None)) is not None:
        raise InputError(f"{judged} judged other rows: it has {more.id!r} after the last of {labels.source.name}")


def _why_dropped(label: int | None, reward: SolutionReward, *, unanimous: bool) -> str | None:
    found = reward.first_error
    if found is None:
        return UNDECIDED
    if unanimous and not _is_unanimous(reward):
        return SPLIT
    if label is None:
        return None if unanimous else NO_LABEL
    if label == found:
        return None
    return FOUND_NONE if found == -1 else FOUND_ONE if label == -1 else ELSEWHERE


def _is_unanimous(reward: SolutionReward) -> bool:
    """Whether every sample says what all come to; an `InputError` where there are too few, or not all were drawn."""
    drawn = [step for step in reward.steps if step.analyses]
    if any(step.settled_early or len(step.analyses) < 2 for step in drawn) or not drawn:
        raise InputError(
            f"{reward.id!r}: whether all samples agree is not known: judge with -k 2 or more and --stopping none"
        )
    if any(one.first_error is not None for step in drawn for one in step.analyses):
        return all(one.first_error == reward.first_error for step in drawn for one in step.analyses)
    return all(one.verdict is (step.step_index != reward.first_error) for step in drawn for one in step.analyses)


def told(summary: dict[str, Any]) -> dict[str, int]:
    """The counts in words: kept and dropped, by reason, each with how many labels are right and wrong."""

    def named(what: str, counts: dict[str, int]) -> tuple[str, int]:
        return f"{what} ({', '.join(f'{count:,} {kind}' for kind, count in counts.items())})", sum(counts.values())

    found = [named("kept", summary["kept"])] if summary["kept"] else [("kept", 0)]
    found += [named(f"dropped: {reason}", counts) for reason, counts in summary["dropped"].items() if counts]
    return dict(found)


def _card(run: Run, summary: dict[str, Any], name: str) -> str:
    kinds = ("right", "wrong", "unlabelled")
    every: Iterable[tuple[str, dict[str, int]]] = [("kept", summary["kept"])]
    every = [*every, *((f"dropped: {reason}", counts) for reason, counts in summary["dropped"].items())]
    rows = ((what, *(counts.get(kind, 0) for kind in kinds)) for what, counts in every)
    settings = json.dumps(run.settings, indent=2, ensure_ascii=False)
    return f"""# {run.folder.resolve().name}

Labels that a second opinion shares (`{name}`), made by `rprm data agree`; the others are in `{DROPPED}`. A label is \
right where a solution has no error, or a step is correct.

{table("", *kinds, rows=rows)}
Rejected input rows (`rejected.jsonl`): {summary["num_rejected"]:,}.

## Settings

```json
{settings}
```
"""
