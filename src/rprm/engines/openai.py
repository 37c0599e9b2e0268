"""Any OpenAI-compatible endpoint: vLLM, llama.cpp, SGLang, hosted services.

`openai:MODEL@URL`. Chat prompts go to `URL/chat/completions`, prompts that are continued as they stand to
`URL/completions`. What a server refuses (log-probabilities, seeds, the name of the length limit) is learned from one
short request of our own at `start`, never from a user's prompt. `docs/endpoints.md` says what was measured where.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import pydantic

from rprm import ranges
from rprm.engines.base import MIN_ROOM, Completion, EngineInfo, Sampling, clipped
from rprm.engines.endpoint import Endpoint, Json, Refusal, Timeout, context_length_of, count, harmless, listed
from rprm.engines.openai_answers import (
    Stream,
    ends_thinking_alone,
    first_choice,
    first_tokens,
    probe_answer,
    read_completions,
)
from rprm.errors import EngineError, EngineUnavailable, RequestRefused, Unsupported
from rprm.plugins import check_options
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

logger = logging.getLogger(__name__)
T = TypeVar("T")

_TARGET = re.compile(r"(.+)@(https?://(?:\[[\da-fA-F:.]+\]|[^/?#@:\s\[\]]+)(?::\d{1,5})?(?:/[^?#@\s]*)?)")
#: The request from which a server's abilities are learned: a few tokens, all features at once, no value the default.
_PROBE = Prompt((Message("user", "Reply with one word: Yes"),))
_PROBE_SAMPLING = Sampling(temperature=0.9, top_p=0.9, max_tokens=4, seed=1, verdict=VerdictFormat())
_MORE_TOKENS = 1024  # of the probe, for servers that take no fewer, or whose models think first
_PROBE_TRIES = 3  # answers without log-probabilities, or refusals that name nothing: then that is how the server is
#: A beginning of the reply that one token cannot repeat: tells whether answers begin with the reply that was given.
_PROBE_REPLY = "The one word that was asked for, and nothing else, is this:"
#: A text that begins with the spelled begin-of-text token: Llama's, Mistral's, Gemma's, DeepSeek's.
_BOS = re.compile(r"<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>")
_TOP_LOGPROBS_STEPS = (20, 5, 0)  # to try, from the most that vLLM and OpenAI give to the most some others do
_OPTIONAL = ("seed", "stream_options", "top_p", "temperature", "add_special_tokens")  # a server may do without
#: Request fields that the engine sets: none of them may come from `extra`, where it would belie the manifest.
_OUR_FIELDS = re.compile(
    "model|messages|prompt|temperature|top_p|max_tokens|max_completion_tokens|seed|stop|logprobs|top_logprobs|n|"
    "logprob_token_ids|stream|stream_options|add_special_tokens|add_generation_prompt|continue_final_message|echo"
)
#: OpenAI's refusal of a length that the model does not write.
_COMPLETION_LIMIT = re.compile(r"at most (\d+) completion tokens")
_ROOMS = 1024  # prompts whose room is remembered


@dataclass(eq=False)
class Route:
    """Chat completions or plain ones, and what has been learned about them from requests of our own."""

    engine: OpenAIEngine
    path: str
    top_logprobs: int
    takes_ids: bool = False  # the answers' tokens are asked for by their ids (vLLM)
    ids: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # by the words of the answers; none: untold
    length_field: str | None = "max_tokens"  # what the request calls it; None where no name is taken
    left_out: set[str] = field(default_factory=set)  # fields that the server does not take
    opens_thinking: bool = False  # the chat template does: a lone </think> was seen
    echoes: bool | None = None  # answers begin with the reply that was given
    learned: bool = False
    probe_tokens: int = _PROBE_SAMPLING.max_tokens
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def where(self) -> str:
        return self.engine.endpoint.where(self.path)

    def ids_of(self, verdict: VerdictFormat | None) -> list[int]:
        """The ids to ask for; none where the likeliest tokens are asked for."""
        return self.ids.get((verdict.yes, verdict.no), []) if self.takes_ids and verdict is not None else []

    async def ask(
        self, prompt: Prompt, sampling: Sampling, read: Callable[[Json], T], n: int = 1, top_logprobs: int = 0
    ) -> T:
        """What `read` makes of the answer to one request for `n` completions, with the likeliest tokens at each place
        where their number or a verdict is given; raises what `Endpoint.post` does."""
        temperature, top_p, stop = sampling.temperature, sampling.top_p, list(sampling.stop) or None
        body: dict[str | None, Any] = {"model": self.engine.model, "temperature": temperature, "top_p": top_p}
        body |= {self.length_field: sampling.max_tokens, "seed": sampling.seed, "stop": stop, "n": n if n > 1 else None}
        if prompt.chat:
            messages = [*prompt.messages, *([Message("assistant", prompt.reply)] if prompt.reply else [])]
            body["messages"] = [{"role": message.role, "content": harmless(message.content)} for message in messages]
            if prompt.reply:
                body |= {"add_generation_prompt": False, "continue_final_message": True}
        else:
            contents = [harmless(message.content, message.records) for message in prompt.messages]
            body["prompt"] = "\n\n".join(contents) + harmless(prompt.reply)
            if prompt.messages == _PROBE.messages or _BOS.match(prompt.text):
                body["add_special_tokens"] = False  # the server would put another one before it
        top_logprobs = top_logprobs or (self.top_logprobs if sampling.verdict is not None else 0)
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs} if prompt.chat else {"logprobs": top_logprobs}
            # A server that does not know the field lists the likeliest tokens.
            body["logprob_token_ids"] = self.ids_of(sampling.verdict) or None
        if self.engine.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        sent: Json = {key: one for key, one in body.items() if key and one is not None and key not in self.left_out}
        # Bytes that an honest answer stays below: so many for a token, as streamed, and for each alternative.
        limit = (1 << 20) + n * (sampling.max_tokens if self.length_field else 1 << 17) * (1024 + 256 * top_logprobs)
        # No verdict is final while the thinking that the template opened may go on.
        verdict = sampling.verdict if prompt.reply or not self.opens_thinking else None
        sent |= self.engine.extra or {}
        return await self.engine.endpoint.post(self.path, sent, read, limit, lambda: Stream(verdict, n))

    async def learn(self, verdict: VerdictFormat | None = None) -> Route:
        """This, once it is known what the server takes (what it refuses by name is given up), and the answers' ids.

        One answer without log-probabilities, or one refusal that names nothing, decides nothing.
        """
        async with self.lock:
            num_bad, probe = 0, replace(_PROBE, chat=self.path.startswith("/chat"))
            while not self.learned:
                sampling = replace(_PROBE_SAMPLING, max_tokens=self.probe_tokens)
                num_ids = len(await self.learn_ids(sampling.verdict))
                try:
                    # Read as a whole, so that garbled answers are tried again.
                    data, (completion,) = await self.ask(
                        probe, sampling, lambda data: (data, read_completions(data, _PROBE_SAMPLING, 1))
                    )
                except Refusal as refusal:
                    num_bad += not self._give_up(refusal.said.lower())
                    if num_bad == _PROBE_TRIES:
                        raise EngineError(f"{self.where} refuses even a short request: {refusal.said}") from None
                    continue
                has_logprobs, lists_ids = probe_answer(data, VerdictFormat(), num_ids)
                self.opens_thinking |= ends_thinking_alone([completion])
                self.takes_ids = num_ids > 0 and lists_ids
                is_cut = completion.finish_reason == "length" and "yes" not in completion.text.lower()
                if probe.chat and is_cut and self.probe_tokens < _MORE_TOKENS:
                    # Cut off before the word that was asked for: more of it tells how thinking ends.
                    self.probe_tokens = _MORE_TOKENS
                    continue
                num_bad += not has_logprobs
                self.learned = has_logprobs or not self.top_logprobs or num_bad == _PROBE_TRIES
                if self.learned and not has_logprobs:
                    self.top_logprobs = 0
            await self.learn_ids(verdict)
        return self

    def _give_up(self, said: str) -> bool:
        """Stop using the feature that the server's refusal of the probe names; False where it names none."""
        named = (name for name in _OPTIONAL if name not in self.left_out and re.search(rf"\b{name}\b", said))
        is_length = re.search(r"output limit|(higher|minimum).*tokens|tokens.*>=", said)
        if "logprob" in said and self.takes_ids:
            self.takes_ids = False
        elif "logprob" in said and self.top_logprobs:
            self.top_logprobs = next(step for step in _TOP_LOGPROBS_STEPS if step < self.top_logprobs)
        elif is_length and self.probe_tokens < _MORE_TOKENS:
            self.probe_tokens = _MORE_TOKENS
        elif self.length_field and re.search(r"max_(completion_)?tokens", said):
            self.length_field = "max_completion_tokens" if self.length_field == "max_tokens" else None
        elif name := next(named, None):
            self.left_out.add(name)
        else:
            return False
        return True

    async def learn_ids(self, verdict: VerdictFormat | None) -> list[int]:
        """The ids of all forms of the answers, or none, from one text (vLLM's `/tokenize`, beside `/v1`)."""
        if self.takes_ids and verdict is not None and (key := (verdict.yes, verdict.no)) not in self.ids:
            answers = [dict.fromkeys(map(str.strip, verdict.forms(answer))) for answer in key]
            # Sentencepiece has its tokens without a space only after a line end or a sign.
            text = "".join(f"\n{word} {word} *{word}" for words in answers for word in words)
            body = {"model": self.engine.model, "prompt": text, "add_special_tokens": False, "return_token_strs": True}
            data = await self.engine.endpoint.ask("/../tokenize", 1 << 16, body)
            spelled = zip(listed(data, "tokens"), listed(data, "token_strs"), strict=False)
            named = [(id_, str(text).strip("\u0120\u2581 ")) for id_, text in spelled if isinstance(id_, int)]
            found = [{id_ for id_, word in named if word in words} for words in answers]
            self.ids[key] = sorted(set().union(*found)) if all(found) else []
        return self.ids_of(verdict)

    async def echo(self, prompt: Prompt) -> str:
        """What the text of every answer begins with: the given reply, where the server repeats it (llama.cpp does)."""
        if not (prompt.chat and prompt.reply):
            return ""
        async with self.lock:
            if self.echoes is None:
                asked, sampling = replace(_PROBE, reply=_PROBE_REPLY), Sampling(temperature=0.0, max_tokens=1)
                try:
                    (answer,) = await self.ask(asked, sampling, lambda data: read_completions(data, sampling, 1))
                except Refusal as refusal:
                    raise Unsupported(f"{self.where} does not continue a given reply: {refusal.said}") from None
                self.echoes = answer.text.startswith(_PROBE_REPLY)
        return harmless(prompt.reply) if self.echoes else ""


_Caller = tuple[Sampling, "asyncio.Future[Completion]"]  # of a request that is shared


@dataclass(eq=False, repr=False)
class OpenAIEngine:
    """An engine behind an OpenAI-compatible HTTP endpoint; docs/endpoints.md has its options.

    `target` is `MODEL@URL`, the URL up to and including `/v1`; `MODEL` alone is one of OpenAI's.
    """

    share_window: ClassVar[float] = 0.005  # seconds that a call waits for others with the same prompt

    target: str
    _: KW_ONLY
    spec: str = ""
    concurrency: ranges.Width = 32
    top_logprobs: ranges.Retries = 20
    stream: bool = False
    share_prompts: bool = False
    continue_final_message: bool = False
    context_length: ranges.Tokens | None = None
    extra: Json | pydantic.Json[Json] | None = None
    timeout: Timeout = 600.0
    max_retries: ranges.Retries = 6
    key_env: str = "OPENAI_API_KEY"
    send_key_over_http: bool = False

    def __post_init__(self) -> None:
        match = _TARGET.fullmatch(self.target)
        if match is None and ("@" in self.target or "://" in self.target):
            raise EngineError(
                "openai: write MODEL@http://HOST:8000/v1: the name of a model, then the URL of its server, without a "
                "user name, a password (it would be recorded; see key_env) or a query"
            )
        self.model, url = match.groups() if match else (self.target, "https://api.openai.com/v1")
        self.url = url.rstrip("/")
        self.spec = self.spec or f"openai:{self.target}"
        check_options(self)
        self.extra = self.extra or {}
        if taken := sorted(filter(_OUR_FIELDS.fullmatch, self.extra)):
            raise EngineError(f"{self.spec}: extra may not set {', '.join(taken)}: the engine sets them itself")
        options = {name: getattr(self, name) for name in ("timeout", "max_retries", "key_env", "send_key_over_http")}
        self.endpoint = Endpoint(self.url, self.model, **options)
        paths = {True: "/chat/completions", False: "/completions"}
        self._routes = {is_chat: Route(self, path, self.top_logprobs) for is_chat, path in paths.items()}
        self._slots = asyncio.Semaphore(self.concurrency)
        self._infos: dict[bool, EngineInfo] = {}  # what is said of the server, by whether prompts are chat prompts
        self._rooms: dict[Prompt, int] = {}  # tokens that the context leaves, where fewer than were asked for
        self._batches: dict[tuple[Prompt, Sampling], tuple[list[_Caller], asyncio.Task[None]]] = {}  # being gathered
        self._tasks: set[asyncio.Task[None]] = set()
        self._max_n = 128  # completions of one request

    async def start(self, *, chat: bool = True) -> EngineInfo:
        if chat in self._infos:
            return self._infos[chat]
        if not self._infos:
            self.endpoint.open()
            # Made anew at each start, which may be in another event loop than the one before.
            self._slots = asyncio.Semaphore(self.concurrency)
            for route in self._routes.values():
                route.lock = asyncio.Lock()
        try:
            served = await self.endpoint.models("/models")
            # A server of one model (llama.cpp) takes any name for it.
            card = served.get(self.model) or (next(iter(served.values())) if len(served) == 1 else {})
            for route in self._routes.values():
                route.takes_ids |= self.top_logprobs > 0 and card.get("owned_by") == "vllm" and not route.learned
            route = await (self._learn(sorted(served)) if chat else self._routes[False].learn())
        except BaseException:
            await self.aclose()
            raise
        details: Json = {"url": self.url, "api": route.path[1:], "top_logprobs": route.top_logprobs}
        if not_sent := sorted(route.left_out - {"stream_options", "add_special_tokens"}):
            details["not_sent"] = not_sent
            logger.warning("%s: takes no %s: its own defaults apply", route.where, not_sent)
        if route.length_field != "max_tokens":
            details["length_field"] = route.length_field
        details |= {name: value for name in ("extra", "share_prompts") if (value := getattr(self, name))}
        has_logprobs, continues = route.top_logprobs > 0, self.continue_final_message or route is self._routes[False]
        if self.top_logprobs and not has_logprobs:
            logger.warning("%s: gives no log-probabilities: each analysis counts as a vote, 0 or 1", route.where)
        # Which calls meet in one request, and so share its seed, depends on what runs beside them.
        has_seeds = "seed" not in route.left_out and not self.share_prompts
        self._infos[chat] = EngineInfo(
            "openai", self.model, None, self.context_length or context_length_of(card), has_logprobs, has_seeds,
            has_second_pass=has_logprobs and continues, shares_prompts=self.share_prompts, continues_replies=continues,
            details=details,
        )  # fmt: skip
        return self._infos[chat]

    async def _learn(self, names: list[str]) -> Route:
        """The chat route, or, where the server has none (a base model), that of plain completions."""
        try:
            return await self._routes[True].learn()
        except EngineUnavailable:
            raise
        except EngineError as error:
            with suppress(EngineError):
                return await self._routes[False].learn()
            offers = f"; the server offers: {self.endpoint.clean(', '.join(names))}"
            raise EngineError(f"{error}{offers if names and self.model not in names else ''}") from None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if prompt.reply:
            self._check_continues(prompt)
        if self.share_prompts:
            answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
            self._join((prompt, replace(sampling, seed=None)), (sampling, answer))
            completion = await answer
        else:
            async with self._slots:
                (completion,) = await self._complete(prompt, sampling, 1)
        # Of a server that counts no tokens, they are an estimate.
        prompt_tokens, num_tokens, verdict = completion.num_prompt_tokens, completion.num_tokens, sampling.verdict
        is_cut = completion.finish_reason == "length" and num_tokens < min(MIN_ROOM, sampling.max_tokens)
        if prompt_tokens is None or not is_cut or (verdict and verdict.find(completion.text)):
            return completion
        raise RequestRefused(
            f"after a prompt of {prompt_tokens} tokens the server stopped at {num_tokens} of max_tokens="
            f"{sampling.max_tokens}: its context is full; serve the model with a longer one"
        )

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        self._check_continues(prompt)
        route = await self._routes[prompt.chat].learn(verdict)
        if not route.top_logprobs:
            raise Unsupported(f"{self.spec}: the server gives no log-probabilities, so there is no second pass")
        asked, sampling = replace(prompt, reply=prompt.reply + text), Sampling(0.0, max_tokens=1, verdict=verdict)
        num_ids = len(route.ids_of(verdict))
        async with self._slots:
            choice = await route.ask(asked, sampling, lambda data: first_choice(data, len(text), verdict, num_ids))
        if choice is None:
            most = f"the {route.top_logprobs} most likely tokens after the given text"
            raise RequestRefused(f"{verdict.yes!r} and {verdict.no!r} are not both among {most}")
        return choice

    async def next_tokens(self, prompt: Prompt, text: str) -> dict[str, float]:
        self._check_continues(prompt)
        route, asked = await self._routes[prompt.chat].learn(), replace(prompt, reply=prompt.reply + text)
        if not route.top_logprobs:
            raise Unsupported(f"{self.spec}: the server gives no log-probabilities, so there is no second pass")
        async with self._slots:
            one = Sampling(0.0, max_tokens=1)
            return await route.ask(asked, one, first_tokens, top_logprobs=route.top_logprobs)

    def _check_continues(self, prompt: Prompt) -> None:
        if prompt.chat and not self.continue_final_message:
            raise Unsupported(
                f"{self.spec}: a chat server may not continue a given reply; if this one does (vLLM, SGLang and "
                "llama.cpp do), add continue_final_message=true to the model's options"
            )

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._batches.clear()
        self._infos.clear()
        await self.endpoint.aclose()

    async def _complete(self, prompt: Prompt, sampling: Sampling, n: int) -> list[Completion]:
        """The answer to one request for `n` completions, of what the context leaves; the caller holds a slot."""
        route = await self._routes[prompt.chat].learn(sampling.verdict)
        echo = await route.echo(prompt)

        def read(data: Json) -> list[Completion]:
            num_ids = len(route.ids_of(sampling.verdict)) if route.top_logprobs else None
            opens_thinking = route.opens_thinking and not prompt.reply
            completions = read_completions(data, sampling, n, echo, opens_thinking, num_ids)
            if opens_thinking or prompt.reply or not ends_thinking_alone(completions):
                return completions
            route.opens_thinking = True
            return read(data)

        while True:
            room = min(sampling.max_tokens, self._rooms.get(prompt, sampling.max_tokens))
            try:
                return await route.ask(prompt, replace(sampling, max_tokens=room), read, n)
            except Refusal as refusal:
                if refusal.code in ("unsupported_parameter", "unsupported_value"):
                    # Every request of the run would fare the same.
                    raise EngineError(f"{route.where} takes no such setting: {refusal.said}") from None
                left = await self._room(route, prompt, sampling.max_tokens, refusal)
                if left >= room:
                    raise
                if len(self._rooms) >= _ROOMS:
                    self._rooms.clear()
                self._rooms[prompt] = left

    async def _room(self, route: Route, prompt: Prompt, max_tokens: int, refusal: Refusal) -> int:
        """How many tokens a completion may have by the server's refusal: all, where it tells nothing."""
        if match := _COMPLETION_LIMIT.search(refusal.said):
            return int(match[1])
        num_prompt_tokens, context_length = refusal.context or (None, None)
        context_length = context_length or next((info.context_length for info in self._infos.values()), None)
        if refusal.context is None or context_length is None:
            return max_tokens
        if num_prompt_tokens is None:
            one = Sampling(max_tokens=1)
            num_prompt_tokens = await route.ask(prompt, one, lambda data: count(data, "usage", "prompt_tokens"))
        return max_tokens if num_prompt_tokens is None else clipped(num_prompt_tokens, max_tokens, context_length)

    def _join(self, key: tuple[Prompt, Sampling], caller: _Caller) -> None:
        """Let a call share the request that is being gathered for its prompt, or a new one."""
        callers, task = self._batches.get(key, ([], None))
        if task is None or len(callers) >= self._max_n or all(answer.done() for _, answer in callers):
            callers = []
            task = asyncio.create_task(self._serve(key, callers))
            self._batches[key] = callers, task
            self._tasks.add(task)
            task.add_done_callback(partial(self._forget, key, callers))
        callers.append(caller)
        # With nobody left, the request is given up.
        caller[1].add_done_callback(lambda _: all(answer.done() for _, answer in callers) and task.cancel())

    def _forget(self, key: tuple[Prompt, Sampling], callers: list[_Caller], task: asyncio.Task[None]) -> None:
        """A request has ended, perhaps before it began: who is still without an answer gets none."""
        self._tasks.discard(task)
        self._close(key, callers)
        for _, answer in callers:
            answer.cancel()

    def _close(self, key: tuple[Prompt, Sampling], callers: list[_Caller]) -> None:
        """Let no more calls share a request."""
        if (batch := self._batches.get(key)) and batch[0] is callers:
            del self._batches[key]

    async def _serve(self, key: tuple[Prompt, Sampling], callers: list[_Caller]) -> None:
        """One request for all callers, or, where several completions are refused, for one; the rest share another."""
        try:
            await asyncio.sleep(self.share_window)
            self._close(key, callers)
            async with self._slots:
                # Who is cancelled from here on keeps his place.
                callers[:] = [caller for caller in callers if not caller[1].done()]
                n, prompt, sampling = len(callers), key[0], callers[0][0]
                try:
                    completions = await self._complete(prompt, sampling, n)
                    self._max_n = min(self._max_n, len(completions)) if len(completions) < n else self._max_n
                except RequestRefused:
                    if n == 1:
                        raise
                    # The prompt, or the number of completions? Asking for one tells.
                    completions = await self._complete(prompt, sampling, 1)
                    self._max_n = min(self._max_n, n // 2)
            for caller, completion in zip(callers, completions, strict=False):
                if not caller[1].done():
                    caller[1].set_result(completion)
            for caller in callers[len(completions) :]:
                self._join(key, caller)
            del callers[len(completions) :]
        except Exception as error:
            for _, answer in callers:
                if not answer.done():
                    answer.set_exception(copy.copy(error))
