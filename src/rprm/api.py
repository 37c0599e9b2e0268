"""The library's face: `RPRM("vllm:MODEL").score(solutions)`, in scripts and in notebooks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

from rprm.classifiers import is_classifier, load_classifier
from rprm.engines import Engine, Sampling, load_engine
from rprm.errors import RprmError
from rprm.judge import Judge
from rprm.judging import in_order
from rprm.models import template_for
from rprm.presets import JudgeSettings, judge_settings
from rprm.prompts import PromptTemplate, load_template
from rprm.reading import solution_of
from rprm.records import Solution, SolutionReward
from rprm.rewarder import StepRewarder
from rprm.stopping import Stopping, StoppingRule

T = TypeVar("T")

#: The default probability of `stopping="confident"`.
_CONFIDENCE = 0.99


class RPRM:
    """A reasoning-driven process reward model.

    Everything left None takes the paper's value (`rprm.presets.PAPER`), for "embedded" and "smollm2" that model's own.

    Args:
        model: an engine, or its spec: "vllm:MODEL", "transformers:MODEL", "openai:MODEL@URL", "embedded".
        num_analyses: K, the most analyses a step gets.
        threshold: a step whose reward is below it is called wrong.
        stopping: "none", "exact" (changes no decision) or "confident".
        confidence: for "confident": how probable a decision must be.
        first_error_exit: stop at the first step called wrong.
        force_verdict: where an analysis ends without a verdict, ask for one.
        prompt: a template, its built-in name, or its file; by default the one that the model's folder carries, or
            that a known model was released with.
        temperature, top_p, max_tokens, seed: how analyses are sampled.

    Example:
        >>> with RPRM("scripted:") as prm:
        ...     reward = prm.score([{"problem": "1 + 1 = ?", "steps": ["1 + 1 = 2."]}])[0]
        >>> len(reward.steps)
        1
    """

    def __init__(
        self,
        model: str | Engine = "embedded",
        *,
        num_analyses: int | None = None,
        threshold: float | None = None,
        stopping: Stopping | None = None,
        confidence: float = _CONFIDENCE,
        first_error_exit: bool | None = None,
        force_verdict: bool | None = None,
        prompt: str | PromptTemplate | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        given: dict[str, Any] = {
            "num_analyses": num_analyses,
            "threshold": threshold,
            "stopping": stopping,
            "first_error_exit": first_error_exit,
            "force_verdict": force_verdict,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
        }
        engine = load_engine(model) if isinstance(model, str) else model
        settings = replace(
            judge_settings(engine.spec), **{name: value for name, value in given.items() if value is not None}
        )
        _check(settings)
        if not isinstance(prompt, PromptTemplate):
            prompt = load_template(prompt) if prompt else template_for(engine.spec, settings.prompt)
        self.settings = settings
        self.judge = Judge(
            engine,
            prompt,
            StoppingRule(settings.num_analyses, settings.threshold, settings.stopping, confidence),
            Sampling(temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=seed),
            first_error_exit=settings.first_error_exit,
            force_verdict=settings.force_verdict,
        )
        self._thread: _LoopThread | None = None

    def score(
        self,
        solutions: Iterable[Solution | dict[str, Any]],
        *,
        on_result: Callable[[SolutionReward], None] | None = None,
    ) -> list[SolutionReward]:
        """Reward the steps of solutions, in their order.

        Args:
            solutions: records, or dicts `{problem, steps[] | solution, id?, label?}`.
            on_result: called with each result in order, as soon as it stands (from another thread).

        Raises:
            InputError: a record cannot be used; the message has its place in the list.
            EngineError: the model cannot be loaded, or stopped answering.
        """
        checked = [_solution(solution, index) for index, solution in enumerate(solutions)]
        return self._run(self._score(checked, on_result))

    async def score_async(self, solutions: Iterable[Solution | dict[str, Any]]) -> list[SolutionReward]:
        """`score` for code that has an event loop. Use one of the two on one object: the engine lives in its loop."""
        return await self._score([_solution(solution, index) for index, solution in enumerate(solutions)], None)

    async def _score(
        self, solutions: list[Solution], on_result: Callable[[SolutionReward], None] | None
    ) -> list[SolutionReward]:
        await self.judge.start()
        results = []
        async for _, result in in_order(iter(solutions), self.judge.judge, width=self.judge.concurrency):
            results.append(result)
            if on_result is not None:
                on_result(result)
        return results

    def close(self) -> None:
        """Release the engine. Safe to call twice."""
        if self._thread is not None:
            self._run(self.judge.aclose())
            self._thread.close()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        # A loop of its own, in a thread of its own: a notebook's loop is already running, and an engine must find the
        # same loop at every call.
        if self._thread is None:
            self._thread = _LoopThread()
        return self._thread.run(coroutine)


#: Options of `RPRM` that say how analyses are sampled: a classifier writes none.
_OF_ANALYSES = ("num_analyses", "force_verdict", "prompt", "temperature", "top_p", "max_tokens")


def load_rewarder(model: str = "embedded", *, threshold: float | None = None, **options: Any) -> StepRewarder:
    """Make what rewards steps from a model's spec: the one place that tells classifiers from reasoning judges.

    Args:
        model: "classifier:PATH_OR_ID" for a discriminative PRM (`rprm.classifiers`); every other spec is an engine's,
            and the rewarder is the judge of `RPRM(model, ...)`.
        threshold: a step whose reward is below it is called wrong; None is the classifier's own, or the paper's.
        options: as for `RPRM`. A classifier takes none that say how analyses are sampled or when to stop.

    Raises:
        RprmError: an option that makes no sense for a classifier was given; the message names it.
        EngineError: unknown kind or option of the spec, or a value that does not fit.
    """
    if not is_classifier(model):
        return RPRM(model, threshold=threshold, **options).judge
    given = [name for name in _OF_ANALYSES if options.get(name) is not None]
    if options.get("stopping") not in (None, "none"):
        given.append("stopping")
    if options.get("confidence", _CONFIDENCE) != _CONFIDENCE:
        given.append("confidence")
    if options.get("first_error_exit"):
        given.append("first_error_exit")
    if given:
        raise RprmError(
            f"{model}: a classifier rewards all steps in one pass and writes no analyses: leave out {', '.join(given)}"
        )
    return load_classifier(model, **({} if threshold is None else {"threshold": threshold}))


class _LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rprm-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C in the caller's thread: the work in the loop's must end too.
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _check(settings: JudgeSettings) -> None:
    if not settings.temperature >= 0.0:
        raise RprmError(f"temperature is {settings.temperature}; give 0 or more")
    if not 0.0 < settings.top_p <= 1.0:
        raise RprmError(f"top_p is {settings.top_p}; give a number above 0, at most 1")
    if settings.max_tokens < 1:
        raise RprmError(f"max_tokens is {settings.max_tokens}; give at least 1")


def _solution(value: Solution | dict[str, Any], index: int) -> Solution:
    if isinstance(value, Solution):
        return value
    from rprm.errors import InputError

    try:
        return solution_of(value, default_id=str(index))
    except InputError as error:
        raise InputError(f"solution {index}: {error}") from None
