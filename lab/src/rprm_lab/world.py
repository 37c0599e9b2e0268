"""The lab's data: problems, solutions and labelled steps of a small world, as files in the formats of real sets.

    WORLD/
      world.json               settings and counts
      prompt.toml, policy.toml the templates of judge and policy
      SPLIT/problems.jsonl     {id, problem, answer, set}: for a policy (`--problems`)
      SPLIT/solutions.jsonl    ProcessBench's records, with the type of the first error
      SPLIT/steps.jsonl        labelled steps, as many right as wrong; `source` names the error
      SPLIT/truth.jsonl        what is true of the labelled steps, and, of what is measured, of every step up to
                               the first error: what the teacher writes from

SPLIT is `train`, `test` or `ood`. No problem stands in two of them. `ood` has longer chains, larger numbers, and
wordings, names and things that no other split has.
"""

from __future__ import annotations

import json
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rprm.errors import InputError, RunError
from rprm.prompts import PolicyTemplate, PromptTemplate
from rprm.records import LabelledStep, Record
from rprm.runs import LineWriter, write_atomically
from rprm_lab.solutions import ERROR_TYPES, Check, ErrorType, LabSolution, solve
from rprm_lab.stories import Story, tell

#: Written last: a folder that has it is whole.
CARD = "world.json"
STEPS = "steps.jsonl"
JUDGE_PROMPT = "prompt.toml"
POLICY_PROMPT = "policy.toml"

JUDGE_TEMPLATE = PromptTemplate(
    name="lab",
    chat=False,
    user="Problem: {{problem}}\n{{steps}}\nCheck step {{step_number}}.\n",
    step_separator="\n",
)
POLICY_TEMPLATE = PolicyTemplate(
    name="lab", chat=False, user="Problem: {{problem}}\nSolution:\n", step_separator="\n"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What stories a split is made of.

    Attributes:
        num_steps: calculations to the answer; drawn evenly.
        limit: the largest value.
        unseen: whether wordings, names and things kept for it are used.
        wide: whether stories are told in more wordings, and some in words at random.
    """

    num_steps: tuple[int, ...]
    limit: int
    unseen: bool = False
    wide: bool = False

    def tell(self, rng: random.Random) -> Story:
        num_steps = rng.choice(self.num_steps)
        return tell(rng, num_steps=num_steps, limit=self.limit, unseen=self.unseen, wide=self.wide)


IN_DISTRIBUTION = Difficulty(num_steps=(1, 2, 2, 3, 3, 4), limit=999)
#: Longer chains, larger numbers, more wordings and words at random to train on, but none of the wordings kept out.
WIDE = Difficulty(num_steps=(1, 2, 2, 3, 3, 4, 5, 6), limit=9999, wide=True)
OUT_OF_DISTRIBUTION = Difficulty(num_steps=(4, 5, 6), limit=9999, unseen=True)


class Truth(Record):
    """What is true of a labelled step."""

    id: str
    problem: str
    steps: tuple[str, ...]
    checks: tuple[Check, ...]
    error: ErrorType | None

    @property
    def labelled(self) -> LabelledStep:
        return LabelledStep(
            id=self.id,
            problem=self.problem,
            previous_steps=self.steps[:-1],
            step=self.steps[-1],
            label=self.error is None,
            source="lab" if self.error is None else f"lab:{self.error}",
        )


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """How large the world is. The same settings give the same bytes.

    Attributes:
        num_train: labelled steps to train on.
        num_test: solutions to judge in each of the splits `test` and `ood`, and labelled steps beside them.
        seed: of everything.
        wide: whether `train` has longer chains, larger numbers, more wordings and words at random: for a model that is
            to be good outside of `test`, and then only the wordings of `ood` are new to it.
    """

    num_train: int = 40_000
    num_test: int = 500
    seed: int = 0
    wide: bool = False

    @property
    def trained(self) -> Difficulty:
        """What the split `train` is made of."""
        return WIDE if self.wide else IN_DISTRIBUTION

    def __post_init__(self) -> None:
        if self.num_train < 2 or self.num_test < 2:
            raise InputError(f"num_train {self.num_train} and num_test {self.num_test} must be at least 2")


def stories(seed: int | str, difficulty: Difficulty, taken: set[str]) -> Iterator[tuple[random.Random, Story]]:
    """Stories without end, each with the stream for what is made of it; none whose problem is `taken` already."""
    place = 0
    while True:
        rng = random.Random(f"{seed}/{place}")
        place += 1
        story = difficulty.tell(rng)
        if story.problem not in taken:
            taken.add(story.problem)
            yield rng, story


def held_out_problems(settings: WorldSettings) -> set[str]:
    """Problems of the splits that are measured on: a base model must not have read them."""
    taken: set[str] = set()
    for split in ("test", "ood"):
        for _ in _measured(split, settings, taken):
            pass
    return taken


def read_card(folder: str | Path) -> WorldSettings:
    """The settings of a world that is written.

    Raises:
        InputError: the folder holds none.
    """
    path = Path(folder) / CARD
    try:
        return WorldSettings(**json.loads(path.read_bytes())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} holds no world; make one with `rprm lab world --output {folder}`") from None


def write_world(folder: str | Path, settings: WorldSettings) -> dict[str, Any]:
    """Write the world's files; returns its card.

    A folder with the same world is left as it is; one that a kill left unfinished is written anew.

    Raises:
        RunError: the folder holds another world.
    """
    folder = Path(folder)
    wanted = asdict(settings)
    card_file = folder / CARD
    if card_file.is_file():
        card: dict[str, Any] = json.loads(card_file.read_text(encoding="utf-8"))
        if card.get("settings") != wanted:
            raise RunError(f"{folder} holds a world of other settings, {card.get('settings')}; name a new folder")
        return card
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JUDGE_PROMPT, JUDGE_TEMPLATE.to_toml())
    write_atomically(folder / POLICY_PROMPT, POLICY_TEMPLATE.to_toml())
    taken: set[str] = set()
    counts = {}
    for split in ("test", "ood"):
        counts[split] = _write_split(folder / split, split, _measured(split, settings, taken), settings.num_test)
    counts["train"] = _write_split(folder / "train", "train", trained(settings, taken), settings.num_train)
    card = {"settings": wanted, "splits": counts}
    write_atomically(card_file, json.dumps(card, indent=2) + "\n")
    return card


def take_steps(world: str | Path, folder: str | Path, *, skip: int, count: int) -> Path:
    """Write some of a world's labelled steps for training to a file of their own, `FOLDER/steps.jsonl`.

    Args:
        world: the folder of `rprm lab world`.
        folder: where to.
        skip: steps to leave out first.
        count: steps to take; as many right as wrong, or one more.

    Raises:
        InputError: the world has not so many.
    """
    read_card(world)
    source = Path(world) / "train" / STEPS
    with source.open(encoding="utf-8") as stream:
        lines = list(islice(stream, skip, skip + count))
    if len(lines) < count:
        raise InputError(f"{source} has no {count} steps after the first {skip}; make a larger world (--steps)")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / STEPS, "".join(lines))
    return folder / STEPS


def _measured(split: str, settings: WorldSettings, taken: set[str]) -> Iterator[tuple[Story, LabSolution]]:
    """As many solutions with an error as without, as ProcessBench has them."""
    difficulty = IN_DISTRIBUTION if split == "test" else OUT_OF_DISTRIBUTION
    told = stories(f"{settings.seed}/{split}", difficulty, taken)
    for place, (rng, story) in zip(range(settings.num_test), told, strict=False):
        error = ERROR_TYPES[place // 2 % len(ERROR_TYPES)] if place % 2 else None
        yield story, solve(rng, story, error=error)


def trained(settings: WorldSettings, taken: set[str]) -> Iterator[tuple[Story, LabSolution]]:
    """The solutions of the split `train` without end, and their stories; none of a problem that is `taken`."""
    for rng, story in stories(f"{settings.seed}/train", settings.trained, taken):
        yield story, solve(rng, story, error=rng.choice((None, None, None, *ERROR_TYPES)))


def _write_split(
    folder: Path, split: str, solved: Iterator[tuple[Story, LabSolution]], num_steps: int
) -> dict[str, Any]:
    """Write solutions until there are enough labelled steps, and, of those that are measured, all solutions."""
    is_measured = split != "train"
    folder.mkdir(exist_ok=True)
    names = ("problems", "solutions", "steps", "truth")
    files = {name: LineWriter(folder / f"{name}.jsonl", fresh=True) for name in names}
    errors: Counter[str] = Counter()
    num_solutions = 0
    pairing = _Pairing()
    for number, (story, solution) in enumerate(solved):
        identifier = f"{split}-{number}"
        files["problems"].write(
            _line(id=identifier, problem=story.problem, answer=str(story.answer), set=f"lab-{split}")
        )
        files["solutions"].write(_line(**_processbench(identifier, story, solution)))
        num_solutions += 1
        truths = [_truth(identifier, story, solution, place) for place in range(_num_labelled(solution))]
        for truth in pairing.add(truths)[: num_steps - sum(errors.values())]:
            errors[truth.error or "none"] += 1
            files["steps"].write(truth.labelled.model_dump_json())
            if not is_measured:
                files["truth"].write(truth.model_dump_json())
        if is_measured:
            for truth in truths:
                files["truth"].write(truth.model_dump_json())
        elif sum(errors.values()) == num_steps:
            break
    for file in files.values():
        file.close()
    return {"problems": num_solutions, "steps": sum(errors.values()), "errors": dict(sorted(errors.items()))}


def _num_labelled(solution: LabSolution) -> int:
    """Steps of which there is something true to say: all, or those up to the first wrong one."""
    return len(solution.steps) if solution.first_error < 0 else solution.first_error + 1


class _Pairing:
    """Chooses the steps to label: each wrong one with a right one from the same place of another solution.

    Where a step stands, and whether it gives the answer, would tell right from wrong otherwise: first steps are seldom
    wrong, and an answer is right in a whole solution alone.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, bool], deque[Truth]] = {}

    def add(self, truths: Sequence[Truth]) -> list[Truth]:
        """The steps of another solution; returns a wrong and a right one in either order, or nothing yet."""
        rng = random.Random(f"{truths[0].id}/{truths[0].steps[0]}")
        right = [truth for truth in truths if truth.error is None]
        found = next((truth for truth in rng.sample(right, len(right)) if self._waiting.get(_place(truth))), None)
        pair = [] if found is None else [found, self._waiting[_place(found)].popleft()]
        if truths[-1].error is not None:
            self._waiting.setdefault(_place(truths[-1]), deque()).append(truths[-1])
        return rng.sample(pair, len(pair))


def _place(truth: Truth) -> tuple[int, bool]:
    return len(truth.steps), truth.checks[-1].kind == "answer"


def _truth(identifier: str, story: Story, solution: LabSolution, place: int) -> Truth:
    return Truth(
        id=f"{identifier}.{place}",
        problem=story.problem,
        steps=tuple(step.text for step in solution.steps[: place + 1]),
        checks=solution.steps[place].checks,
        error=solution.steps[place].error,
    )


def _processbench(identifier: str, story: Story, solution: LabSolution) -> dict[str, Any]:
    error = None if solution.first_error < 0 else solution.steps[solution.first_error].error
    return {
        "id": identifier,
        "generator": "lab",
        "problem": story.problem,
        "steps": [step.text for step in solution.steps],
        "final_answer_correct": solution.answer == story.answer,
        "label": solution.first_error,
        "error": error,
        "family": story.family,
    }


def _line(**values: Any) -> str:
    return json.dumps(values, ensure_ascii=False)
