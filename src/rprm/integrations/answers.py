"""Answers as other libraries hand them over, texts or chat messages, and their rewards."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, TypeVar, get_args

from rprm.api import RPRM
from rprm.errors import InputError
from rprm.reading import solution_of
from rprm.records import Solution, SolutionReward
from rprm.rewarders.base import StepRewarder
from rprm.splitting import split_steps
from rprm.thinking import without_thinking

T = TypeVar("T")

#: How step rewards become the reward of an answer: an aggregation of them, or "progress", the share of its steps
#: before the first that is called wrong (1 where none is).
RewardForm = Literal["min", "last", "product", "mean", "progress"]


class Scorer(Protocol):
    """Gives rewards in full: an `RPRM`, or a server's judge."""

    async def score_async(self, solutions: Iterable[Solution | dict[str, Any]]) -> list[SolutionReward]: ...


def checked_form(form: str) -> RewardForm:
    """The form; an InputError where there is no such form."""
    if form not in get_args(RewardForm):
        raise InputError(f"there is no form {form!r} of a reward; forms are {', '.join(get_args(RewardForm))}")
    return form  # type: ignore[return-value]


def text_of(content: Any) -> str:
    """The text of a message's content: itself, or its parts of type "text", a line each; "" of None."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(_field(part, "text") for part in content if _field(part, "type") == "text")


def problem_of(prompt: Any) -> str:
    """The problem of a prompt: itself, or the last user message. What stands before that are instructions, examples."""
    if isinstance(prompt, str):
        return prompt
    texts = [text_of(_field(message, "content")) for message in prompt if _field(message, "role") == "user"]
    if not texts:
        raise InputError("the prompt has no user message, so that there is no problem")
    return texts[-1]


def answer_of(completion: Any) -> str:
    """The answer of a completion: itself, or the texts of its assistant messages."""
    if isinstance(completion, str):
        return completion
    replies = [message for message in completion if _field(message, "role") == "assistant"]
    return "\n\n".join(text_of(_field(message, "content")) for message in replies)


def enclosed(text: str, ends: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What stands in a text between each beginning and the end that belongs to it, with the beginning, from the left,
    none in another. It is one pass, whatever the text: an end that stands nowhere is looked for once."""
    begins, at, missing = re.compile("|".join(map(re.escape, ends))), 0, set[str]()
    while begin := begins.search(text, at):
        at = begin.end()
        if begin[0] in missing:
            continue
        if (end := text.find(ends[begin[0]], at)) < 0:
            missing.add(begin[0])
            continue
        yield begin[0], text[at:end]
        at = end + len(ends[begin[0]])


def steps_of(answer: str, separator: str | None = None) -> list[str]:
    """The steps of an answer without its thinking: by `rprm.splitting`, or what stands between separators."""
    if separator is None:
        return split_steps(answer)
    return [step for part in without_thinking(answer).split(separator) if (step := part.strip())]


async def judged(prm: Scorer, answers: Sequence[tuple[str, str]]) -> list[SolutionReward | None]:
    """The rewards in full of answers, each after its problem; None of one without steps. Equal ones are judged once.

    Raises:
        InputError: a problem is empty; the message has its place in the list.
        EngineError: as `RPRM.score`.
    """
    solutions = {}
    for index, (problem, answer) in enumerate(answers):
        if (problem, answer) not in solutions and (steps := steps_of(answer)):
            try:
                row = solution_of({"problem": problem, "steps": steps}, default_id=str(index))
            except InputError as error:
                raise InputError(f"answer {index}: {error}") from None
            solutions[problem, answer] = row
    rewards = await prm.score_async(solutions.values()) if solutions else []
    found = dict(zip(solutions, rewards, strict=True))
    return [found.get(answer) for answer in answers]


def value_of(reward: SolutionReward | None, form: RewardForm) -> float | None:
    """The reward of an answer, from 0 to 1; None where a step that it depends on has none, or there are no steps."""
    if reward is None:
        return None
    if form != "progress":
        return reward.aggregate(form)
    if reward.first_error is None:
        return None
    return 1.0 if reward.first_error == -1 else reward.first_error / reward.num_steps


def filled(values: Sequence[float | None], unscored: float) -> list[float]:
    """The values for a library that takes numbers only: `unscored` stands for None, and a warning counts them."""
    if missing := sum(value is None for value in values):
        text = "%d of %d rewards are missing; %s stands for them"
        logging.getLogger(__name__).warning(text, missing, len(values), unscored)
    return [unscored if value is None else value for value in values]


#: What rewards, by any name: an `RPRM`, what `load_rewarder` made, or a model's spec.
AnyRewarder = RPRM | StepRewarder | str


def rewarder_of(given: AnyRewarder) -> RPRM:
    """It as an `RPRM`; of a spec, the same one all through a process."""
    if isinstance(given, str):
        return loaded(given)
    return given if hasattr(given, "score_async") else RPRM(given)  # type: ignore[return-value]


_LOADED: dict[tuple[str, str], RPRM] = {}


def loaded(model: str, **options: Any) -> RPRM:
    """The rewarder of a spec, once a process: for libraries that are configured by texts."""
    key = model, repr(sorted(options.items()))
    # Of threads that ask at once, all get the one that was kept first: a model is loaded when it is used.
    return _LOADED.get(key) or _LOADED.setdefault(key, RPRM(model, **options))


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, waited for; also where an event loop runs in this thread, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    tasks: list[asyncio.Task[Any]] = []

    async def noted() -> T:
        tasks.extend(filter(None, [asyncio.current_task()]))
        return await work

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(asyncio.run, noted()).result()
        except BaseException:
            # Ctrl-C in this thread: the work in the other must end too.
            for task in tasks:
                if not task.done():
                    task.get_loop().call_soon_threadsafe(task.cancel)
            raise


def _field(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
