"""`/v1/chat/completions`: a policy's answer, chosen or guided by the rewards, in the form of OpenAI's API.

The model's name is the strategy: `best-of-8`, `majority-8`, `weighted-8`, `guided`, `beam`, `dvts`, or `policy` for one
answer as it comes. What else a strategy takes stands in the request's `rprm` object."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from rprm.aggregation import Aggregation
from rprm.benchmarks.mathematics import Problem
from rprm.engines.base import Completion, Engine, EngineInfo, Sampling
from rprm.errors import InputError, RequestRefused
from rprm.grading import Grader, final_answer
from rprm.jobs import all_or_none
from rprm.ledger import Ledger
from rprm.prompts.template import Prompt
from rprm.records import Solution, StepReward
from rprm.search.candidates import Candidate, Candidates, Policy, choose_one
from rprm.search.choosing import majority, weighted_vote
from rprm.search.guided import GuidedSearch, search_strategy
from rprm.serve.judging import unless_gone
from rprm.serve.rewards import State, StepAnswer, event
from rprm.serve.state import Serving, stamped

router = APIRouter()

#: Strategies over whole solutions, whose names end in their number, and step by step.
SAMPLED, STEPWISE = ("best-of", "majority", "weighted"), ("guided", "beam", "dvts")
_NAME = re.compile(rf"({'|'.join(SAMPLED)})(?:-(\d{{1,5}}))?|{'|'.join(STEPWISE)}|policy")
DEFAULT_SAMPLES = 8
#: By strategy, those of the `SearchOptions` that it takes, beside `analyses`.
_TAKES: dict[str, set[str]] = {
    "policy": set(), "majority": {"n"}, "best-of": {"n", "aggregate"}, "weighted": {"n", "aggregate"},
    "guided": {"width", "max_rounds", "aggregate"},
}  # fmt: skip
#: Fields of OpenAI's requests that change no answer.
_UNREAD = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
#: Seconds between two signs of life in a stream, so that nothing between server and client gives it up.
_ALIVE_S = 10.0


class Message(BaseModel):
    """A message; its text may come in parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in self.content):
            raise InputError("a message may have parts of type 'text' alone")
        return "".join(part["text"] for part in self.content)


class SearchOptions(BaseModel):
    """What a strategy takes besides its name."""

    model_config = ConfigDict(extra="forbid")

    n: int | None = Field(None, ge=1, description="Solutions; of `beam` and `dvts` next steps in a round.")
    width: int | None = Field(None, ge=1, description="Next steps after each step held.")
    max_rounds: int | None = Field(None, ge=1, le=200)
    aggregate: Aggregation | None = Field(None, description="`min`; of a search step by step `last`.")
    analyses: bool = Field(False, description="Whether the analyses come with the answer.")


class ChatRequest(BaseModel):
    """A request as OpenAI's clients send it. Any other field is refused, unless it asks for nothing (null, 0, false,
    empty) or changes no answer (`user`, `metadata`, ...)."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    n: Literal[1] | None = None
    rprm: SearchOptions = Field(default_factory=lambda: SearchOptions.model_validate({}))

    @property
    def problem(self) -> str:
        """The problem: the one message of the user. The policy's template has its own instructions."""
        found = [message.text for message in self.messages if message.role == "user"]
        others = {message.role for message in self.messages} - {"user"}
        if len(found) != 1 or others:
            raise InputError("send one message, the user's, which is the problem: the policy's template has the rest")
        if not found[0].strip():
            raise InputError("the problem is empty")
        return found[0]


class Told(BaseModel):
    """How an answer came about, in its `rprm`; a strategy has those fields that it can fill. A sample is one of the
    solutions that the policy wrote, counted from 0."""

    model_config = ConfigDict(extra="forbid")

    strategy: str
    n: int | None = Field(None, description="Samples.")
    chosen: int | None = Field(None, description="The sample that is the answer.")
    answers: list[str | None] = Field([], description="The final answer of each sample; null: it has none.")
    votes: list[int] = Field([], description="How many samples give the answer of each one; 0: it has none.")
    rewards: list[float | None] = Field(
        [], description="Of each sample; null: not known exactly (see `bounds`), or none."
    )
    bounds: list[tuple[float | None, float | None]] = Field(
        [],
        description="Between which numbers each sample's reward lies when the choice is certain; null: it has none.",
    )
    fell_back: bool = Field(
        False, description="No sample has a reward, and the first was taken; of a search: no solution was finished."
    )
    ends: list[str] = Field([], description="Why each tree of a search ended: finished, dead end, rounds or tokens.")
    rounds: int | None = Field(None, description="Rounds of a search.")
    steps: list[dict[str, Any]] = Field(
        description="The answer's steps, `text` and rewards: of best-of-N and weighted-N as /v1/rewards gives them, of "
        "a search `reward` (null: not known exactly), `low` and `high`. Empty where nothing is judged (policy, "
        "majority-N)."
    )
    judge: dict[str, Any] = Field(description="The judge's `model`, and its `analyses` and `generated_tokens`.")
    notes: list[str] = Field(description="What to know before the rewards are used.")


class ChatAnswer(BaseModel):
    """OpenAI's `chat.completion`, with `rprm`."""

    id: str
    created: int
    object: Literal["chat.completion"]
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, int] = Field(description="Tokens of the policy, all its samples together.")
    rprm: Told


@dataclass
class Metered:
    """An engine whose tokens are counted, for one request."""

    engine: Engine
    num_prompt_tokens: int = 0
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.spec, self.concurrency = self.engine.spec, self.engine.concurrency
        self.choose, self.aclose = self.engine.choose, self.engine.aclose

    async def start(self, *, chat: bool = True) -> EngineInfo:
        return await self.engine.start(chat=chat)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        completion = await self.engine.generate(prompt, sampling)
        self.num_prompt_tokens += completion.num_prompt_tokens or 0
        self.num_tokens += completion.num_tokens
        return completion


@dataclass
class Answer:
    """What a strategy came to."""

    text: str
    finish_reason: str
    num_judge_tokens: int = 0
    num_analyses: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)  #: of the chosen solution, with their rewards
    details: dict[str, Any] = field(default_factory=dict)

    def judged(self, rewards: dict[int, StepReward], steps: tuple[str, ...], threshold: float, analyses: bool) -> None:
        """Set down the steps of the chosen solution, with the rewards of those that were judged."""
        for index, text in enumerate(steps):
            known = rewards.get(index)
            answer = None if known is None else StepAnswer.of(known, known.verdict(threshold), analyses)
            told = {} if answer is None else answer.model_dump(exclude_none=True)
            self.steps.append({"text": text, **told, "step_index": index})


def strategies(serving: Serving) -> list[str]:
    """The names that `/v1/models` lists for a policy. Any number may follow `best-of-`, `majority-`, `weighted-`."""
    if serving.policy is None:
        return []
    return ["policy", *(f"{name}-{DEFAULT_SAMPLES}" for name in SAMPLED), *STEPWISE]


@router.post(
    "/v1/chat/completions", summary="Answer with a policy that the rewards guide.",
    responses={200: {"model": ChatAnswer, "description": "The answer; `stream`: chunks of it, as OpenAI's."}},
)  # fmt: skip
async def chat(body: ChatRequest, request: Request, state: State) -> Any:
    policy, problem = _policy(body, state), body.problem
    name, number = _strategy(body, state)
    work = _Work(state, policy, body, name, number, Problem(id="0", problem=problem))
    if body.stream:
        events = _events(work)
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    answer = await state.within_time(unless_gone(request, work.run()))
    choice = {
        "index": 0, "finish_reason": answer.finish_reason, "logprobs": None,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
    }  # fmt: skip
    return {
        **stamped("chatcmpl"), "object": "chat.completion", "model": body.model, "choices": [choice],
        "usage": work.usage(answer), "rprm": work.told(answer),
    }  # fmt: skip


def _policy(body: ChatRequest, state: Serving) -> Policy:
    """The policy as a request wants it to sample."""
    if state.policy is None:
        raise InputError(
            "no policy answers here: start the server with --policy SPEC; its rewards are at /v1/rewards, and a judge "
            "openai:MODEL@URL needs the model's own server"
        )
    sampling, longest = state.policy.sampling, body.max_completion_tokens or body.max_tokens
    if longest is not None and longest > sampling.max_tokens:
        most = f"at most {sampling.max_tokens:,} tokens are written here (--policy-max-tokens)"
        raise InputError(f"max_tokens is {longest:,}: {most}")
    given: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p}
    given |= {"seed": None if body.seed is None else body.seed & 0x7FFF_FFFF}
    given |= {"max_tokens": longest}
    sampling = replace(sampling, **{name: value for name, value in given.items() if value is not None})
    return replace(state.policy, engine=Metered(state.policy.engine), sampling=sampling)


def _strategy(body: ChatRequest, state: Serving) -> tuple[str, int]:
    """A strategy by the model's name, and its number of samples."""
    if (match := _NAME.fullmatch(body.model)) is None:
        raise InputError(f"no model {body.model!r:.80} answers here; choose {', '.join(strategies(state))}")
    name = match[1] or match[0]
    for other, value in (body.model_extra or {}).items():
        if value and other not in _UNREAD:
            fix = "put it into `rprm`" if other in SearchOptions.model_fields else "leave it out"
            raise InputError(f"{other!r:.80} is not supported here: {fix}")
    options = body.rprm.model_dump(exclude_none=True, exclude={"analyses"})
    if unused := options.keys() - _TAKES.get(name, options.keys()):
        raise InputError(f"{name} takes no {min(unused)}: leave it out")
    in_name = None if match[2] is None else int(match[2])
    if in_name is not None and body.rprm.n not in (None, in_name):
        raise InputError(f"the model's name says {in_name} samples, n says {body.rprm.n}")
    given = in_name if in_name is not None else body.rprm.n
    number = 1 if name == "policy" else DEFAULT_SAMPLES if given is None else given
    most = max(number, given or 0, body.rprm.width or 0)
    if number < 1 or most > state.limits.samples:
        raise InputError(f"{most} samples: 1 to {state.limits.samples} are drawn (--max-samples)")
    return name, number


@dataclass
class _Work:
    """One request under way."""

    state: Serving
    policy: Policy
    body: ChatRequest
    name: str
    number: int
    problem: Problem

    async def run(self, on_step: Callable[[str], None] | None = None) -> Answer:
        try:
            return await (self._guided(on_step) if self.name in STEPWISE else self._sampled())
        finally:
            self.state.metrics.generated("policy", self._meter.num_tokens)

    @property
    def _meter(self) -> Metered:
        assert isinstance(self.policy.engine, Metered)
        return self.policy.engine

    async def _sampled(self) -> Answer:
        """One of several whole solutions."""
        if self.policy.sampling.temperature == 0.0 and self.number > 1:
            raise InputError("at temperature 0 all solutions would be equal: raise the temperature, or name `policy`")
        found = await all_or_none(self.policy.solve(self.problem.problem, one) for one in range(self.number))
        if self.name == "policy":
            return Answer(found[0].text, _finish(found[0]))
        row = Candidates(problem=self.problem, candidates=tuple(found))
        answers = [final_answer(one.text, self.problem.rule) for one in found]
        details: dict[str, Any] = {"answers": answers}
        groups: list[int] = []
        if self.name != "best-of":
            groups = await asyncio.to_thread(_groups, answers)
        if self.name == "majority":
            group = majority(groups)
            chosen = 0 if group is None else groups.index(group)
            counts = Counter(groups)
            votes = details | {"votes": [counts[one] if one >= 0 else 0 for one in groups], "chosen": chosen}
            return Answer(found[chosen].text, _finish(found[chosen]), details=votes)
        rewarder = self.state.judging.rewarders["full"]
        judged = await choose_one(
            rewarder, row, Ledger(self.state.metrics.paid), aggregation=self.body.rprm.aggregate or "min",
            stopping="none" if self.name == "weighted" else "exact",
        )  # fmt: skip
        chosen, rewards = judged.chosen or 0, [one.low if one.low == one.high else None for one in judged.rewards]
        if self.name == "weighted" and (group := weighted_vote(groups, rewards)) is not None:
            # The best of those that give the answer.
            those = [place for place, one in enumerate(groups) if one == group]
            chosen = max(those, key=lambda place: (rewards[place] is not None, rewards[place] or 0.0))
        steps = judged.judged_steps().values()
        bounds = [[one.low, one.high] for one in judged.rewards]
        details |= {"chosen": chosen, "rewards": rewards, "bounds": bounds, "fell_back": judged.fell_back}
        answer = Answer(found[chosen].text, _finish(found[chosen]), details=details)
        answer.num_analyses = sum(len(step.analyses) for step in steps)
        answer.num_judge_tokens = sum(one.num_tokens for step in steps for one in step.analyses)
        known = {step.step_index: step for step in judged.rewards[chosen].steps}
        answer.judged(known, found[chosen].steps, self.state.judging.threshold, self.body.rprm.analyses)
        return answer

    async def _guided(self, on_step: Callable[[str], None] | None) -> Answer:
        """A solution that is searched for step by step."""
        options, analyses = self.body.rprm, self.body.rprm.analyses
        strategy = search_strategy(
            self.name, n=None if self.name == "guided" else options.n, width=options.width,  # type: ignore[arg-type]
            aggregation=options.aggregate or "last", max_rounds=options.max_rounds,
            max_solution_tokens=self.policy.sampling.max_tokens,
        )  # fmt: skip
        rewarder = self.state.judging.rewarders["full"]
        search = GuidedSearch(self.policy, rewarder, strategy, keep_analyses=analyses)
        tree = await search.solve(self.problem, Ledger(self.state.metrics.paid), on_step=on_step)
        if tree.chosen is None:
            reason = tree.refusals[0].reason if tree.refusals else "its steps are empty"
            raise RequestRefused(f"the policy wrote no step: {reason}")
        finish = "stop" if tree.finished else "length"
        steps, at = [], tree.chosen
        while at >= 0:
            node = tree.nodes[at]
            bounds = {"reward": node.low if node.is_settled else None, "low": node.low, "high": node.high}
            shown = {"analyses": [one.model_dump(mode="json") for one in node.analyses]} if analyses else {}
            if node.step:
                steps.append({"text": node.step, **bounds, "failure": node.failure, **shown})
            at = node.parent
        told = [{"step_index": index, **step} for index, step in enumerate(reversed(steps))]
        details = {"ends": tree.ends, "rounds": 1 + max(node.round for node in tree.nodes), "fell_back": tree.fell_back}
        num_analyses = sum(len(node.p_yes) for node in tree.nodes)
        return Answer(tree.text, finish, tree.num_judge_tokens, num_analyses, told, details)

    def usage(self, answer: Answer) -> dict[str, int]:
        """Tokens of the policy, all its samples together; those of the judge stand in `rprm`."""
        read, written = self._meter.num_prompt_tokens, self._meter.num_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def told(self, answer: Answer) -> dict[str, Any]:
        """The answer's extra fields."""
        judged = {
            "model": self.state.name,
            "analyses": answer.num_analyses,
            "generated_tokens": answer.num_judge_tokens,
        }
        strategy = {"strategy": self.name, **({} if self.name in STEPWISE else {"n": self.number})}
        solution = Solution(id="0", problem=self.problem.problem, steps=tuple(one["text"] for one in answer.steps))
        notes = self.state.judging.notes(solution) if answer.steps else []
        return {**strategy, **answer.details, "steps": answer.steps, "judge": judged, "notes": notes}


async def _events(work: _Work) -> AsyncGenerator[str, None]:
    """Chunks as OpenAI's clients read them: of `guided` each step as it is kept, of the others the answer once it is
    chosen. The last one before `[DONE]` has the usage and the extra fields."""
    state, stamp = work.state, stamped("chatcmpl")
    head = {**stamp, "object": "chat.completion.chunk", "model": work.body.model}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return event({**head, "choices": [choice], **more})

    steps: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.ensure_future(state.within_time(work.run(steps.put_nowait)))
    running.add_done_callback(lambda _: steps.put_nowait(""))
    try:
        yield chunk({"role": "assistant", "content": ""})
        sent = ""
        while not (running.done() and steps.empty()):
            try:
                async with asyncio.timeout(_ALIVE_S):
                    step = await steps.get()
            except TimeoutError:
                yield ": still at work\n\n"
                continue
            if step:
                text = f"{work.policy.template.step_separator}{step}" if sent else step
                sent += text
                yield chunk({"content": text})
        answer = running.result()
        if answer.text != sent:
            yield chunk({"content": answer.text.removeprefix(sent)})
        yield chunk({}, answer.finish_reason, rprm=work.told(answer))
        if (work.body.stream_options or {}).get("include_usage"):
            yield event({**head, "choices": [], "usage": work.usage(answer)})
    except Exception as error:
        yield event(state.error_of(error)[1])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    yield "data: [DONE]\n\n"


def _groups(answers: list[str | None]) -> list[int]:
    with Grader() as grader:
        return grader.group_equivalent(answers)


def _finish(candidate: Candidate) -> str:
    return "length" if candidate.finish_reason == "length" else "stop"
