"""The routes that reward: `/v1/rewards`, `/v1/score_step`, and `/pooling` in vLLM's form for clients of classifiers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from rprm.errors import InputError
from rprm.integrations.answers import RewardForm, enclosed
from rprm.integrations.openrlhf import respond
from rprm.jobs import all_or_none
from rprm.reading import solution_of
from rprm.records import Solution, SolutionReward, StepReward
from rprm.serve.judging import JudgedStep, unless_gone
from rprm.serve.state import Serving, merged, serving, stamped

router = APIRouter()
State = Annotated[Serving, Depends(serving)]


#: The tags that end a step in the texts of discriminative PRMs: Qwen2.5-Math-PRM's, and Math-Shepherd's.
_TAGS = ("<extra_0>", " ки")
#: What begins and what ends a turn in the texts of Qwen's chat template; the role stands on its first line.
_TURNS = {"<|im_start|>": "<|im_end|>"}


class RewardsRequest(BaseModel):
    """Solutions to reward."""

    model_config = ConfigDict(extra="forbid")

    solutions: list[dict[str, Any]] = Field(
        min_length=1, description="`{problem, steps[] | solution, id?}` each, as `rprm judge` reads them."
    )
    rewards: Literal["full", "first-errors"] = Field(
        "full", description="`full`: every step, all analyses. `first-errors`: no more than the first error needs."
    )
    analyses: bool = Field(False, description="Whether the analyses come too.")
    stream: bool = Field(False, description="Each step as it is judged, as server-sent events.")
    model: str | None = Field(None, description="The served model's name, or none.")


class StepRequest(BaseModel):
    """A step to reward, given the problem and the steps before it."""

    model_config = ConfigDict(extra="forbid")

    problem: str
    steps: list[str] = Field(min_length=1)
    step_index: int = Field(-1, description="Counted from 0; -1 is the last one.")
    analyses: bool = False
    model: str | None = None


class PoolingRequest(BaseModel):
    """What clients of discriminative PRMs send to vLLM: a conversation whose assistant message has a tag at the end of
    every step; or such conversations as texts, as Qwen's chat template writes them."""

    input: str | list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None


class StepAnswer(BaseModel):
    """The reward of one step. A step without one says why (`failure`)."""

    step_index: int
    reward: float | None = Field(description="From 0 (wrong) to 1 (correct).")
    verdict: bool | None = Field(
        description="Whether the reward reaches the threshold; of a critic, whether the step stands before the first "
        "error (null: after it)."
    )
    vote: float | None = Field(description="The share of analyses that say Yes.")
    num_analyses: int
    settled_early: bool = Field(description="Early stopping ended the analyses: the reward is not their full mean.")
    failure: str | None = None
    analyses: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, step: StepReward, verdict: bool | None, analyses: bool) -> StepAnswer:
        shown = [one.model_dump(mode="json") for one in step.analyses] if analyses else None
        return cls(
            step_index=step.step_index, reward=step.reward, verdict=verdict, vote=step.vote,
            num_analyses=len(step.analyses), settled_early=step.settled_early, failure=step.failure, analyses=shown,
        )  # fmt: skip


_NOTES: list[str] = Field(
    [], description="What to know before the rewards are used, such as that the model knows other problems."
)


class LoneStepAnswer(StepAnswer):
    notes: list[str] = _NOTES


class RewardsAnswer(BaseModel):
    """The rewards of one solution."""

    object: Literal["solution.rewards"] = "solution.rewards"
    index: int = Field(description="Its place in the request.")
    id: str
    first_error: int | None = Field(description="-1: none; null: a step up to there has no reward.")
    rewards: list[float | None]
    steps: list[StepAnswer]
    notes: list[str] = _NOTES

    @classmethod
    def of(
        cls, index: int, result: SolutionReward, threshold: float, analyses: bool, notes: list[str]
    ) -> RewardsAnswer:
        judged = zip(result.steps, result.verdicts(threshold), strict=True)
        steps = [StepAnswer.of(step, verdict, analyses) for step, verdict in judged]
        return cls(
            index=index, id=result.id, first_error=result.first_error, rewards=result.rewards, steps=steps, notes=notes
        )


class RewardsList(BaseModel):
    object: Literal["list"] = "list"
    id: str
    created: int
    model: str
    threshold: float
    data: list[RewardsAnswer]
    usage: dict[str, int]


@router.post("/v1/rewards", response_model=RewardsList, summary="Reward the steps of solutions.")
async def rewards(body: RewardsRequest, request: Request, state: State) -> Any:
    state.check_model(body.model)
    limits = state.limits
    if len(body.solutions) > limits.solutions:
        raise InputError(f"there are {len(body.solutions)} solutions; send at most {limits.solutions} at once")
    solutions = []
    for index, value in enumerate(body.solutions):
        try:
            solutions.append(state.checked(solution_of(value, default_id=str(index))))
        except InputError as error:
            raise InputError(f"solutions[{index}]: {error}") from None
    if body.stream:
        events = _events(state, solutions, body)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    judging = all_or_none(state.judging.solution(one, body.rewards) for one in solutions)
    results = await state.within_time(unless_gone(request, judging))
    found = [
        RewardsAnswer.of(index, result, state.judging.threshold, body.analyses, state.judging.notes(solution))
        for index, (solution, result) in enumerate(zip(solutions, results, strict=True))
    ]
    told: dict[str, Any] = {"model": state.name, "threshold": state.judging.threshold}
    return RewardsList(**stamped("rewards"), **told, data=found, usage=_usage(results))


@router.post("/v1/score_step", response_model=LoneStepAnswer, summary="Reward one step.")
async def score_step(body: StepRequest, request: Request, state: State) -> Any:
    state.check_model(body.model)
    solution = state.checked(solution_of({"problem": body.problem, "steps": body.steps}, default_id="0"))
    judging = state.judging.step(solution.problem, solution.steps, solution.place(body.step_index))
    step = await state.within_time(unless_gone(request, judging))
    found = StepAnswer.of(step, step.verdict(state.judging.threshold), body.analyses)
    return LoneStepAnswer(**dict(found), notes=state.judging.notes(solution))


@router.post("/pooling", summary="Step rewards in the form of vLLM's pooling endpoint.")
async def pooling(body: PoolingRequest, request: Request, state: State) -> dict[str, Any]:
    state.check_model(body.model)
    if (body.input is None) == (body.messages is None):
        raise InputError("give either `messages` or `input`")
    texts = [body.input] if isinstance(body.input, str) else body.input
    conversations = [body.messages or []] if texts is None else [_messages_of(text) for text in texts]
    if not 1 <= len(conversations) <= state.limits.solutions:
        raise InputError(f"`input` must have 1 to {state.limits.solutions} texts")
    solutions = [state.checked(_tagged_solution(index, one)) for index, one in enumerate(conversations)]
    judging = all_or_none(state.judging.solution(one, "full") for one in solutions)
    results = await state.within_time(unless_gone(request, judging))
    if (unscored := next((step for one in results for step in one.steps if step.reward is None), None)) is not None:
        raise InputError(f"a step has no reward, which this form cannot tell: {unscored.failure}")
    data = [
        {"index": index, "object": "pooling", "data": [[1.0 - one, one] for one in result.rewards if one is not None]}
        for index, result in enumerate(results)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": _usage(results)["generated_tokens"]}
    return {**stamped("pool"), "object": "list", "model": state.name, "data": data, "usage": usage}


@dataclass(frozen=True)
class _Scorer:
    """The server's judge, within its limits, as `rprm.integrations` asks it."""

    state: Serving

    async def score_async(self, solutions: Iterable[Solution | dict[str, Any]]) -> list[SolutionReward]:
        checked = [self.state.checked(one) for one in solutions if isinstance(one, Solution)]
        return await all_or_none(self.state.judging.solution(one, "full") for one in checked)


@router.post("/openrlhf", summary="Rewards of responses, as OpenRLHF asks for them (`--reward.remote_url`).")
async def openrlhf(body: dict[str, Any], request: Request, state: State, form: RewardForm = "min") -> dict[str, Any]:
    queries = body.get("query")
    if isinstance(queries, list) and len(queries) > state.limits.solutions:
        raise InputError(f"there are {len(queries)} queries; send at most {state.limits.solutions} at once")
    return await state.within_time(unless_gone(request, respond(_Scorer(state), body, form=form)))


async def _events(state: Serving, solutions: Sequence[Solution], body: RewardsRequest) -> AsyncGenerator[str, None]:
    """Server-sent events: the steps that a solution was cut into, the reward of each as soon as it stands, a solution
    once it is whole, an error in place of the rest."""
    results = []
    for index, solution in enumerate(solutions):
        told = {"id": solution.id, "steps": solution.steps, "notes": state.judging.notes(solution)}
        yield event({"object": "solution.started", "index": index, **told})
    try:
        async for index, found in state.in_time(_judged(state, solutions, body.rewards)):
            if isinstance(found, SolutionReward):
                results.append(found)
                notes = state.judging.notes(solutions[index])
                whole = RewardsAnswer.of(index, found, state.judging.threshold, body.analyses, notes)
                yield event(whole.model_dump())
            else:
                step = StepAnswer.of(*found, body.analyses)
                yield event({"object": "step.reward", "index": index, **step.model_dump()})
        yield event({"object": "done", "model": state.name, "usage": _usage(results)})
    except Exception as error:
        yield event(state.error_of(error)[1])
    yield "data: [DONE]\n\n"


async def _judged(
    state: Serving, solutions: Sequence[Solution], question: str
) -> AsyncGenerator[tuple[int, JudgedStep | SolutionReward], None]:
    """Steps of all solutions as they stand, each with the place of its solution."""
    streams = [state.judging.in_steps(solution, question) for solution in solutions]
    async with aclosing(merged(streams)) as found:
        async for one in found:
            yield one


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(results: Sequence[SolutionReward]) -> dict[str, int]:
    analyses = [one for result in results for step in result.steps for one in step.analyses]
    return {"analyses": len(analyses), "generated_tokens": sum(one.num_tokens for one in analyses)}


def _messages_of(text: str) -> list[dict[str, Any]]:
    """The messages of a conversation that Qwen's chat template wrote."""
    turns = (turn.partition("\n") for _, turn in enclosed(text, _TURNS))
    found = [{"role": role, "content": content} for role, _, content in turns]
    if not found:
        raise InputError("`input` must be a conversation as Qwen's chat template writes it; or send `messages`")
    return found


def _tagged_solution(index: int, messages: list[dict[str, Any]]) -> Solution:
    """The solution that a conversation holds: the user's message is the problem, the assistant's the tagged steps."""
    contents: dict[str, Any] = {}
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant") or message["role"] in contents:
            raise InputError("a conversation must have one message of the user, one of the assistant, and no others")
        contents[message["role"]] = message.get("content")
    text = contents.get("assistant")
    tag = next((tag for tag in _TAGS if isinstance(text, str) and text.rstrip().endswith(tag.strip())), None)
    if not isinstance(text, str) or tag is None:
        raise InputError("the assistant's message must end every step with <extra_0> (or ки)")
    steps = [step.strip() for step in text.rstrip().removesuffix(tag.strip()).split(tag.strip())]
    return solution_of({"problem": contents.get("user"), "steps": steps}, default_id=str(index))
