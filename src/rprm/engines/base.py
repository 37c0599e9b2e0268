"""The engine protocol: what a language model is to the rest of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from rprm.errors import EngineError, RequestRefused
from rprm.prompts.template import Prompt
from rprm.ranges import Temperature, Tokens, TopP, check
from rprm.verdict import VerdictChoice, VerdictFormat

MIN_ROOM = 64  # tokens that the context must leave to a completion that may take more: in fewer nothing is said
WITHHELD = ("content_filter", "refusal")  # finish reasons of a completion that a server kept back


def clipped(num_prompt_tokens: int, max_tokens: int, context_length: int) -> int:
    """`max_tokens`, or what the context leaves; refused where it leaves fewer than these and than `MIN_ROOM`."""
    room, needed = context_length - num_prompt_tokens, min(MIN_ROOM, max_tokens)
    if room < needed:
        raise RequestRefused(
            f"the prompt has {num_prompt_tokens} tokens, which leaves {max(room, 0)} of the context length of "
            f"{context_length}; a completion needs {needed}: use a shorter prompt template, or a longer context "
            "(context_length=) where the model allows it"
        )
    return min(max_tokens, room)


def num_alike(first: Sequence[str], second: Sequence[str]) -> int:
    """How many characters of two texts, or words of two lists, are the same before the first that differ."""
    unlike = (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(unlike, min(len(first), len(second)))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion."""

    temperature: Temperature = 1.0  # 0 is greedy
    top_p: TopP = 1.0
    max_tokens: Tokens = 1024  # or what the context leaves (`clipped`)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    verdict: VerdictFormat | None = None  # report the choice at each of its answers; the first verdict may end it
    num_steps: int | None = None  # of a solution whose earliest wrong step is asked for, by its index

    def __post_init__(self) -> None:
        check(self, EngineError)  # 5 microseconds a request


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation of a prompt, and of the reply that it begins."""

    text: str  # what was generated, after the `<think>` with which a chat template may open it; offsets count in it
    num_tokens: int
    finish_reason: str  # "stop", "length" (of max_tokens or context), "verdict" (ended there), or what a server said
    num_prompt_tokens: int | None = None
    num_cached_prompt_tokens: int | None = None  # those computed for an earlier request; None: not known
    choices: tuple[VerdictChoice, ...] = ()
    ended: bool | None = None  # whether the model ended the reply itself, by its end token; None: not known


@dataclass(frozen=True)
class EngineInfo:
    """What the engine is and can do, recorded in every manifest."""

    kind: str
    model: str
    revision: str | None = None  # a hub commit or a fingerprint of a local model; None: a server does not tell
    context_length: int | None = None
    has_logprobs: bool = True
    has_seeds: bool = True
    has_second_pass: bool = True
    shares_prompts: bool = True
    continues_replies: bool = True  # `generate` continues the reply that a chat prompt begins
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@runtime_checkable
class Engine(Protocol):
    """A language model. It batches inside itself: thousands of calls are awaited at once, and equal prompts (the K
    analyses of one step) or beginnings (the steps of one solution) are computed once."""

    spec: str  # names it, as given to `load_engine`
    concurrency: int  # calls of `generate` under way that fill it

    async def start(self, *, chat: bool = True) -> EngineInfo:
        """Load or reach the model, or raise an `EngineError`. What it tells is about chat prompts, or others."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """One completion. Cancelling gives up the sample.

        Raises `Unsupported` (the engine cannot continue the reply that the prompt begins), `RequestRefused` (this
        prompt can never be served) or `EngineUnavailable` (the engine stopped answering, retries included).
        """

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        """A second forward pass: Yes or No after `prompt` and `text`, without the space before the answer word."""

    async def aclose(self) -> None:
        """Release what the engine holds. Safe to call twice."""


@runtime_checkable
class TokenLister(Protocol):
    """An optional capability of an engine: what may follow a text."""

    async def next_tokens(self, prompt: Prompt, text: str) -> Mapping[str, float]:
        """The likeliest tokens after `prompt` and `text`, as text, with their probabilities at temperature 1, which are
        the model's own. `RequestRefused` where they cannot be told for this prompt."""
