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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rprm.engines.base import MIN_ROOM, Completion, EngineInfo, Sampling, check_least, clipped
from rprm.engines.endpoint import Endpoint, Refusal
from rprm.engines.openai_route import (
    MORE_PROBE_TOKENS,
    PROBE_TOKENS,
    Route,
    context_length_of,
    model_card,
    parse_extra,
    parse_target,
)
from rprm.engines.openai_wire import (
    Watch,
    ends_thinking_alone,
    first_choice,
    harmless,
    has_alternatives,
    lists_answers,
    prompt_length,
    read_completions,
    served_models,
)
from rprm.errors import EngineError, EngineUnavailable, RequestRefused, Unsupported
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

logger = logging.getLogger(__name__)

#: The request from which a server's abilities are learned: a few tokens, all features at once, no value the default.
_PROBE = Prompt((Message("user", "Reply with one word: Yes"),))
_PROBE_VERDICT = VerdictFormat()
_PROBE_SAMPLING = Sampling(temperature=0.9, top_p=0.9, max_tokens=PROBE_TOKENS, seed=1, verdict=_PROBE_VERDICT)
#: Answers without log-probabilities, or refusals that name nothing, after which that is how the server is.
_PROBE_TRIES = 3
#: A beginning of the reply that one token cannot repeat: tells whether answers begin with the reply that was given.
_PROBE_REPLY = "The one word that was asked for, and nothing else, is this:"
#: A text that begins with the spelled begin-of-text token: Llama's, Mistral's, Gemma's, DeepSeek's.
_BOS = re.compile(r"<s>|<bos>|<\|begin_of_text\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>")
#: OpenAI's refusal of a length that the model does not write.
_COMPLETION_LIMIT = re.compile(r"at most (\d+) completion tokens")
#: Prompts whose room is remembered.
_ROOMS = 1024


class OpenAIEngine:
    """An engine behind an OpenAI-compatible HTTP endpoint.

    Args:
        target: `MODEL@URL`, the URL up to and including `/v1`; `MODEL` alone is one of OpenAI's.
        concurrency: requests under way at once, each on a connection of its own.
        timeout: seconds that one request may take from its first byte sent to its last byte received.
        max_retries: further attempts after 429, 5xx, timeouts, lost connections and garbled answers, at growing random
            intervals that honour Retry-After.
        key_env: name of the environment variable that holds the API key. The key is sent as a bearer token and shown
            nowhere.
        send_key_over_http: send the key even unencrypted (`http:`) to another machine.
        top_logprobs: alternatives to ask for at each token; 0 asks for none and leaves the hard vote.
        stream: read tokens as they come. Hangs up right after the verdict, and lets servers that notice a closed
            connection only when they write to it (llama.cpp) stop when a request is cancelled.
        share_prompts: send equal prompts that are asked for at the same time as one request with `n` completions. Cheap
            where the prompt is billed per request; samples are then not reproducible one by one.
        continue_final_message: the server continues an unfinished assistant message (vLLM, SGLang, llama.cpp). Gives
            chat prompts a second pass, and replies that are begun.
        context_length: in tokens, where the server does not tell.
        extra: a JSON object of further request fields, such as `{"top_k": 0, "min_p": 0}`.

    Raises:
        EngineError: a malformed target or option.
    """

    #: Seconds that a call waits for others with the same prompt (`share_prompts`).
    share_window = 0.005

    def __init__(
        self,
        target: str,
        *,
        spec: str = "",
        concurrency: int = 32,
        timeout: float = 600.0,
        max_retries: int = 6,
        key_env: str = "OPENAI_API_KEY",
        send_key_over_http: bool = False,
        top_logprobs: int = 20,
        stream: bool = False,
        share_prompts: bool = False,
        continue_final_message: bool = False,
        context_length: int | None = None,
        extra: str = "",
    ) -> None:
        self.model, self.url = parse_target(target)
        self.spec = spec or f"openai:{self.model}@{self.url}"
        check_least(self.spec, concurrency=concurrency, context_length=context_length)
        check_least(self.spec, 0, max_retries=max_retries, top_logprobs=top_logprobs)
        check_least(self.spec, 0.001, timeout=timeout)
        self.concurrency = concurrency
        self.stream = stream
        self.share_prompts = share_prompts
        self.continue_final_message = continue_final_message
        self.context_length = context_length
        self.extra = parse_extra(self.spec, extra)
        self.endpoint = Endpoint(
            self.url,
            self.model,
            connections=concurrency + 1,
            timeout=timeout,
            max_retries=max_retries,
            key_env=key_env,
            send_key_over_http=send_key_over_http,
        )
        self._wants_logprobs = top_logprobs > 0
        self._chat = Route("/chat/completions", top_logprobs)
        self._plain = Route("/completions", top_logprobs)
        self._slots = asyncio.Semaphore(concurrency)
        #: What is said of the server, by whether prompts are chat prompts.
        self._infos: dict[bool, EngineInfo] = {}
        self._groups: dict[tuple[Prompt, Sampling], _Group] = {}
        self._group_tasks: set[asyncio.Task[None]] = set()
        self._max_n = 128
        #: How many tokens the context leaves beside a prompt, where that is fewer than were asked for.
        self._rooms: dict[Prompt, int] = {}

    async def start(self, *, chat: bool = True) -> EngineInfo:
        if chat in self._infos:
            return self._infos[chat]
        if not self._infos:
            self.endpoint.open()
            # Made anew at each start, which may be in another event loop than the one before.
            self._slots = asyncio.Semaphore(self.concurrency)
            self._chat.lock, self._plain.lock = asyncio.Lock(), asyncio.Lock()
        try:
            served = served_models(await self.endpoint.ask("/models", 1 << 24) or {})
            card = model_card(self.model, served)
            for route in (self._chat, self._plain):
                route.takes_ids |= self._wants_logprobs and card.get("owned_by") == "vllm" and not route.learned
            route = await (self._learn_first(sorted(served)) if chat else self._learned(self._plain))
        except BaseException:
            await self.aclose()
            raise
        details = {"url": self.url, **route.details()}
        if not_sent := details.get("not_sent"):
            logger.warning("%s: takes no %s: its own defaults apply", self.endpoint.where(route.path), not_sent)
        if self.extra:
            details["extra"] = self.extra
        if self.share_prompts:
            details["share_prompts"] = True
        has_logprobs = route.top_logprobs > 0
        if self._wants_logprobs and not has_logprobs:
            logger.warning(
                "%s: gives no log-probabilities: each analysis counts as a vote, 0 or 1",
                self.endpoint.where(route.path),
            )
        continues_replies = self.continue_final_message or route is self._plain
        self._infos[chat] = EngineInfo(
            kind="openai",
            model=self.model,
            context_length=self.context_length or context_length_of(card),
            has_logprobs=has_logprobs,
            # Which calls meet in one request, and so share its seed, depends on what runs beside them.
            has_seeds="seed" not in route.left_out and not self.share_prompts,
            has_second_pass=has_logprobs and continues_replies,
            shares_prompts=self.share_prompts,
            continues_replies=continues_replies,
            details=details,
        )
        return self._infos[chat]

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if prompt.reply:
            self._check_continues(prompt)
        if self.share_prompts:
            completion = await self._join(prompt, sampling)
        else:
            async with self._slots:
                (completion, *_) = await self._complete(prompt, sampling, 1)
        is_short = completion.finish_reason == "length" and completion.num_tokens < min(MIN_ROOM, sampling.max_tokens)
        # Of a server that counts no tokens, they are an estimate.
        if not is_short or completion.num_prompt_tokens is None:
            return completion
        if sampling.verdict is not None and sampling.verdict.find(completion.text):
            return completion
        raise RequestRefused(
            f"after a prompt of {completion.num_prompt_tokens} tokens the server stopped at {completion.num_tokens} of "
            f"max_tokens={sampling.max_tokens}: its context is full; serve the model with a longer one"
        )

    async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
        self._check_continues(prompt)
        route = await self._learned(self._chat if prompt.chat else self._plain, verdict)
        if not route.top_logprobs:
            raise Unsupported(f"{self.spec}: the server gives no log-probabilities, so there is no second pass")
        prompt = replace(prompt, reply=prompt.reply + text)
        sampling = Sampling(temperature=0.0, max_tokens=1, verdict=verdict)
        body = self._body(route, prompt, sampling, 1, stream=False)
        num_ids = len(route.ids_of(verdict))
        async with self._slots:
            choice = await self.endpoint.post(
                route.path, body, lambda data: first_choice(data, len(text), verdict, num_ids), route.limit(sampling, 1)
            )
        if choice is None:
            raise RequestRefused(
                f"{verdict.yes!r} and {verdict.no!r} are not both among the {route.top_logprobs} most likely tokens "
                "after the given text"
            )
        return choice

    def _check_continues(self, prompt: Prompt) -> None:
        if prompt.chat and not self.continue_final_message:
            raise Unsupported(
                f"{self.spec}: a chat server may not continue a given reply; if this one does (vLLM, SGLang and "
                "llama.cpp do), add continue_final_message=true to the model's options"
            )

    async def aclose(self) -> None:
        tasks, self._group_tasks = self._group_tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._groups.clear()
        self._infos.clear()
        await self.endpoint.aclose()

    # Learning what the server can do

    async def _learn_first(self, names: Sequence[str]) -> Route:
        """Learn the chat route, or, where the server has none (a base model), that of plain completions."""
        try:
            return await self._learned(self._chat)
        except EngineUnavailable:
            raise
        except EngineError as error:
            try:
                return await self._learned(self._plain)
            except EngineError:
                if names and self.model not in names:
                    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                    raise EngineError(f"{error}; the server offers: {self.endpoint.clean(shown)}") from None
                raise error from None

    async def _learned(self, route: Route, verdict: VerdictFormat | None = None) -> Route:
        async with route.lock:
            while not route.learned:
                await self._probe(route)
            await route.learn_ids(self.endpoint, self.model, verdict)
        return route

    async def _probe(self, route: Route) -> None:
        """One short request. Where the server refuses a feature, that is given up for the next one.

        One answer without log-probabilities, or one refusal that names nothing, decides nothing.
        """
        ids = await route.learn_ids(self.endpoint, self.model, _PROBE_VERDICT)
        route.takes_ids = bool(ids)

        def read(data: dict[str, Any]) -> tuple[bool, Completion]:
            # Read as a whole, so that garbled answers are tried again.
            (completion, *_) = read_completions(data, _PROBE_SAMPLING, 1)
            route.opens_thinking |= ends_thinking_alone(data)
            route.takes_ids = route.takes_ids and lists_answers(data, _PROBE_VERDICT, len(ids))
            return has_alternatives(data), completion

        prompt = replace(_PROBE, chat=route is self._chat)
        sampling = replace(_PROBE_SAMPLING, max_tokens=route.probe_tokens)
        body = self._body(route, prompt, sampling, 1)
        try:
            has_logprobs, completion = await self.endpoint.post(route.path, body, read, route.limit(sampling, 1))
        except Refusal as refusal:
            if route.give_up(refusal.said):
                return
            route.num_bad += 1
            if route.num_bad == _PROBE_TRIES:
                route.num_bad = 0
                where = self.endpoint.where(route.path)
                raise EngineError(f"{where} refuses even a short request: {refusal.said}") from None
        else:
            # Cut off before the word that was asked for: more of it tells how thinking ends.
            may_think = completion.finish_reason == "length" and "yes" not in completion.text.lower()
            if prompt.chat and may_think and route.probe_tokens < MORE_PROBE_TOKENS:
                route.probe_tokens = MORE_PROBE_TOKENS
                return
            route.num_bad += not has_logprobs
            route.learned = has_logprobs or not route.top_logprobs or route.num_bad == _PROBE_TRIES
            if route.learned:
                route.top_logprobs *= has_logprobs

    async def _echo(self, route: Route, prompt: Prompt) -> str:
        """What the text of every answer begins with: the given reply, where the server repeats it (llama.cpp does)."""
        if not (prompt.chat and prompt.reply):
            return ""
        async with route.lock:
            if route.echoes is None:
                sampling = Sampling(temperature=0.0, max_tokens=1)
                body = self._body(route, replace(_PROBE, reply=_PROBE_REPLY), sampling, 1)
                try:
                    answer = await self.endpoint.post(
                        route.path, body, lambda data: read_completions(data, sampling, 1)[0], route.limit(sampling, 1)
                    )
                except Refusal as refusal:
                    where = self.endpoint.where(route.path)
                    raise Unsupported(f"{where} does not continue a given reply: {refusal.said}") from None
                route.echoes = answer.text.startswith(_PROBE_REPLY)
        return harmless(prompt.reply) if route.echoes else ""

    # Requests

    def _body(
        self, route: Route, prompt: Prompt, sampling: Sampling, n: int, *, stream: bool | None = None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model}
        if prompt.chat:
            begun = (Message("assistant", prompt.reply),) if prompt.reply else ()
            messages = (*prompt.messages, *begun)
            body["messages"] = [{"role": message.role, "content": harmless(message.content)} for message in messages]
            if begun:
                body |= {"add_generation_prompt": False, "continue_final_message": True}
        else:
            contents = [harmless(message.content, message.records) for message in prompt.messages]
            body["prompt"] = "\n\n".join(contents) + harmless(prompt.reply)
            if prompt == replace(_PROBE, chat=False) or _BOS.match(prompt.text):
                # The server would put another one before it.
                body["add_special_tokens"] = False
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if route.length_field is not None:
            body[route.length_field] = sampling.max_tokens
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.verdict is not None and route.top_logprobs:
            if prompt.chat:
                body |= {"logprobs": True, "top_logprobs": route.top_logprobs}
            else:
                body["logprobs"] = route.top_logprobs
            if ids := route.ids_of(sampling.verdict):
                # A server that does not know the field lists the likeliest tokens.
                body["logprob_token_ids"] = ids
        if n > 1:
            body["n"] = n
        if self.stream if stream is None else stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in body.items() if name not in route.left_out} | self.extra

    async def _complete(self, prompt: Prompt, sampling: Sampling, n: int) -> list[Completion]:
        """Send one request for `n` completions; the caller holds a slot. Some servers return fewer.

        Where they refuse `max_tokens` because the context is shorter, what it leaves is asked for.
        """
        route = await self._learned(self._chat if prompt.chat else self._plain, sampling.verdict)
        echo = await self._echo(route, prompt)
        num_ids = len(route.ids_of(sampling.verdict))

        def read(data: dict[str, Any]) -> list[Completion]:
            route.opens_thinking |= not prompt.reply and ends_thinking_alone(data)
            opens_thinking = route.opens_thinking and not prompt.reply
            return read_completions(data, sampling, n, echo, opens_thinking=opens_thinking, num_ids=num_ids)

        while True:
            asked = replace(sampling, max_tokens=min(sampling.max_tokens, self._rooms.get(prompt, sampling.max_tokens)))
            try:
                return await self.endpoint.post(
                    route.path,
                    self._body(route, prompt, asked, n),
                    read,
                    route.limit(sampling, n),
                    Watch(sampling.verdict, n, route.opens_thinking and not prompt.reply),
                )
            except Refusal as refusal:
                if refusal.code in ("unsupported_parameter", "unsupported_value"):
                    # Every request of the run would fare the same.
                    where = self.endpoint.where(route.path)
                    raise EngineError(f"{where} takes no such setting: {refusal.said}") from None
                room = await self._room(route, prompt, sampling.max_tokens, refusal)
                if room is None or room >= asked.max_tokens:
                    raise
                self._rooms[prompt] = room
                if len(self._rooms) > _ROOMS:
                    del self._rooms[next(iter(self._rooms))]

    async def _room(self, route: Route, prompt: Prompt, max_tokens: int, refusal: Refusal) -> int | None:
        """How many tokens a completion of the prompt may have by the server's refusal; None where that is not told.

        Raises:
            RequestRefused: too few.
        """
        if match := _COMPLETION_LIMIT.search(refusal.said):
            return int(match[1])
        if refusal.context is None:
            return None
        num_prompt_tokens, context_length = refusal.context
        context_length = context_length or next((info.context_length for info in self._infos.values()), None)
        if num_prompt_tokens is None and context_length is not None:
            body = self._body(route, prompt, Sampling(max_tokens=1), 1, stream=False)
            try:
                num_prompt_tokens = await self.endpoint.post(
                    route.path, body, prompt_length, route.limit(Sampling(), 1)
                )
            except Refusal:
                return None
        if num_prompt_tokens is None or context_length is None:
            return None
        return clipped(num_prompt_tokens, max_tokens, context_length)

    # Equal prompts in one request

    async def _join(self, prompt: Prompt, sampling: Sampling) -> Completion:
        key = (prompt, replace(sampling, seed=None))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
            task = group.task = asyncio.create_task(self._serve(key, group))
            self._group_tasks.add(task)
            task.add_done_callback(self._group_tasks.discard)
        caller = _Caller(sampling, asyncio.get_running_loop().create_future())
        group.callers.append(caller)
        try:
            return await caller.future
        except asyncio.CancelledError:
            # The request goes on while anyone waits for it.
            if all(other.future.done() for other in group.callers):
                if self._groups.get(key) is group:
                    del self._groups[key]
                group.task.cancel()
            raise

    async def _serve(self, key: tuple[Prompt, Sampling], group: _Group) -> None:
        await asyncio.sleep(self.share_window)
        del self._groups[key]
        await self._serve_callers(key[0], group.callers)

    async def _serve_callers(self, prompt: Prompt, callers: Sequence[_Caller]) -> None:
        """Serve the callers in as few requests as the server allows, at once."""
        parts = [callers[start : start + self._max_n] for start in range(0, len(callers), self._max_n)]
        await asyncio.gather(*(self._serve_part(prompt, part) for part in parts))

    async def _serve_part(self, prompt: Prompt, callers: Sequence[_Caller]) -> None:
        try:
            async with self._slots:
                callers = [caller for caller in callers if not caller.future.done()]
                completions = await self._complete_some(prompt, callers[0].sampling, len(callers)) if callers else []
        except asyncio.CancelledError:
            for caller in callers:
                caller.future.cancel()
            raise
        except Exception as error:
            for caller in callers:
                if not caller.future.done():
                    caller.future.set_exception(copy.copy(error))
            return
        for caller, completion in zip(callers, completions, strict=False):
            if not caller.future.done():
                caller.future.set_result(completion)
        await self._serve_callers(prompt, callers[len(completions) :])

    async def _complete_some(self, prompt: Prompt, sampling: Sampling, n: int) -> list[Completion]:
        """At least one of `n` completions; learns how many the server gives at once."""
        try:
            completions = await self._complete(prompt, sampling, n)
        except RequestRefused:
            if n == 1:
                raise
            # The prompt, or the number of completions? Asking for one tells.
            completions = await self._complete(prompt, sampling, 1)
            self._max_n = max(1, min(self._max_n, n // 2))
        else:
            if len(completions) < n:
                self._max_n = min(self._max_n, len(completions))
        return completions


@dataclass
class _Caller:
    sampling: Sampling
    future: asyncio.Future[Completion]


@dataclass(eq=False)
class _Group:
    """Calls that differ in nothing but their seeds."""

    task: asyncio.Task[None] = field(init=False)
    callers: list[_Caller] = field(default_factory=list)
