"""The engine protocol: what a language model is to the rest of the package.

`generate` makes one completion. An engine batches inside itself: thousands of calls are awaited at once, and calls
whose prompts are equal (the K analyses of one step) or share a beginning (the steps of one solution) share its
computation. Cancelling the call gives up the sample. What an engine cannot do it says in `EngineInfo`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from rprm.errors import EngineError, RequestRefused
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

#: Tokens that the context must leave to a completion that may take more: in fewer nothing is said.
MIN_ROOM = 64
#: Finish reasons of a completion that a server kept back.
WITHHELD = ("content_filter", "refusal")


def clipped(num_prompt_tokens: int, max_tokens: int, context_length: int) -> int:
    """The most tokens that a completion can have: `max_tokens`, or what the context leaves beside the prompt.

    Raises:
        RequestRefused: it leaves fewer than `MIN_ROOM` tokens, and fewer than were asked for.
    """
    room, needed = context_length - num_prompt_tokens, min(MIN_ROOM, max_tokens)
    if room < needed:
        raise RequestRefused(
            f"the prompt has {num_prompt_tokens} tokens, which leaves {max(room, 0)} of the context length of "
            f"{context_length}; a completion needs {needed}: use a shorter prompt template, or a longer context "
            "(context_length=) where the model allows it"
        )
    return min(max_tokens, room)


def check_least(spec: str, least: float = 1, **options: float | None) -> None:
    """Raise an `EngineError` where an option (None: not given) is below `least`, or no number at all (NaN)."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise EngineError(f"{spec}: {name}={value} is too small; it must be at least {least}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample one completion.

    With `verdict` set, the engine reports a `VerdictChoice` wherever the sampled token reads as one of its answers, and
    may end the completion right after the first verdict (finish reason "verdict"): nothing later is ever read.
    `temperature` 0 is greedy. Of `max_tokens` counts what the context has room for (`clipped`). `seed` makes the sample
    reproducible where the engine has seeds.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()
    verdict: VerdictFormat | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled continuation of a prompt, and of the reply that it begins.

    Attributes:
        text: what was generated, without the reply that the prompt begins. Where the chat template itself opens the
            model's thinking, and no reply is begun, this opening (`<think>`) stands before it; offsets count in it.
        finish_reason: "stop" (the model ended it, or a stop string), "length" (max_tokens, or the end of the context),
            "verdict" (the engine ended it after the verdict), or what a server said.
        num_cached_prompt_tokens: those whose computation was shared with an earlier request; None: not known.
        ended: whether the model ended the reply itself, by its end token; None: not known.
    """

    text: str
    num_tokens: int
    finish_reason: str
    num_prompt_tokens: int | None = None
    num_cached_prompt_tokens: int | None = None
    choices: tuple[VerdictChoice, ...] = ()
    ended: bool | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What the engine is and can do, recorded in every manifest.

    `revision` is a hub commit or a content fingerprint of a local model, None where a server does not tell.
    `continues_replies`: `generate` continues the reply that a chat prompt begins.
    """

    kind: str
    model: str
    revision: str | None = None
    context_length: int | None = None
    has_logprobs: bool = True
    has_seeds: bool = True
    has_second_pass: bool = True
    shares_prompts: bool = True
    continues_replies: bool = True
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@runtime_checkable
class Engine(Protocol):
    """A language model.

    Attributes:
        spec: the text that names it, as given to `load_engine`.
        concurrency: how many `generate` calls to keep under way to fill it.
    """

    spec: str
    concurrency: int

    async def start(self, *, chat: bool = True) -> EngineInfo:
        """Load or reach the model, before anything else; safe to call again.

        Args:
            chat: whether most prompts will be chat prompts: what the engine says of itself is about those.

        Raises:
            EngineError: the model cannot be loaded or reached; the message says how to mend it.
        """

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """One completion; it ends with "length" where the context ends (`clipped`).

        Raises:
            Unsupported: the engine cannot continue the reply that the prompt begins.
            RequestRefused: this prompt can never be served (it leaves too little of the context, it is rejected).
            EngineUnavailable: the engine stopped answering, retries included.
        """

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        """A second forward pass: the choice between Yes and No right after `prompt` and then `text`.

        `text` begins the reply, or follows the one that the prompt begins, up to the answer word (the space before it
        not included). Raises as `generate` does.
        """

    async def aclose(self) -> None:
        """Release what the engine holds. Safe to call twice."""
