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
from dataclasses import replace
from typing import Any

from rprm.engines.base import MIN_ROOM, Completion, EngineInfo, Sampling, check_least, clipped
from rprm.engines.endpoint import Endpoint, Refusal
from rprm.engines.openai_answers import ends_thinking_alone, first_choice, prompt_length, read_completions
from rprm.engines.openai_route import Route, context_length_of, parse_extra, parse_target, served_models
from rprm.errors import EngineError, EngineUnavailable, RequestRefused, Unsupported
from rprm.prompts.template import Prompt
from rprm.verdict import VerdictChoice, VerdictFormat

logger = logging.getLogger(__name__)

#: OpenAI's refusal of a length that the model does not write.
_COMPLETION_LIMIT = re.compile(r"at most (\d+) completion tokens")
#: Prompts whose room is remembered.
_ROOMS = 1024

#: One of the calls that share a prompt.
_Caller = tuple[Sampling, asyncio.Future[Completion]]


class OpenAIEngine:
    """An engine behind an OpenAI-compatible HTTP endpoint.

    Args:
        target: `MODEL@URL`, the URL up to and including `/v1`; `MODEL` alone is one of OpenAI's.
        concurrency: requests under way at once, each on a connection of its own.
        timeout: seconds that an answer may take to begin, and as many for the rest of it.
        max_retries: further attempts after a failure that may pass; Retry-After is honoured up to two minutes.
        key_env: the environment variable that holds the API key, which is sent as a bearer token and shown nowhere.
        send_key_over_http: send the key even unencrypted (`http:`) to another machine.
        top_logprobs: alternatives to ask for at each token; 0 asks for none and leaves the hard vote.
        stream: read tokens as they come, and hang up at the verdict. llama.cpp notices that only as it writes.
        share_prompts: equal prompts asked for at once are one request for `n` completions, which share its seed.
        continue_final_message: the server continues an unfinished assistant message (vLLM, SGLang, llama.cpp).
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
        self.share_prompts = share_prompts
        self.continue_final_message = continue_final_message
        self.context_length = context_length
        self.extra = parse_extra(self.spec, extra)
        self.endpoint = Endpoint(
            self.url,
            self.model,
            timeout=timeout,
            max_retries=max_retries,
            key_env=key_env,
            send_key_over_http=send_key_over_http,
        )
        self._wants_logprobs = top_logprobs > 0
        self._chat, self._plain = (
            Route(self.endpoint, self.model, path, top_logprobs, stream, self.extra)
            for path in ("/chat/completions", "/completions")
        )
        self._slots = asyncio.Semaphore(concurrency)
        #: What is said of the server, by whether prompts are chat prompts.
        self._infos: dict[bool, EngineInfo] = {}
        self._groups: dict[tuple[Prompt, Sampling], list[_Caller]] = {}
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
            # A server of one model (llama.cpp) takes any name for it.
            card = served.get(self.model) or (next(iter(served.values())) if len(served) == 1 else {})
            for route in (self._chat, self._plain):
                route.takes_ids |= self._wants_logprobs and card.get("owned_by") == "vllm" and not route.learned
            route = await self._learn_first(sorted(served)) if chat else self._plain
            await route.learn()
        except BaseException:
            await self.aclose()
            raise
        details = {"url": self.url, **route.details()}
        if not_sent := details.get("not_sent"):
            logger.warning("%s: takes no %s: its own defaults apply", route.where, not_sent)
        if self.extra:
            details["extra"] = self.extra
        if self.share_prompts:
            details["share_prompts"] = True
        has_logprobs = route.top_logprobs > 0
        if self._wants_logprobs and not has_logprobs:
            logger.warning("%s: gives no log-probabilities: each analysis counts as a vote, 0 or 1", route.where)
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

    async def _learn_first(self, names: Sequence[str]) -> Route:
        """The chat route, or, where the server has none (a base model), that of plain completions."""
        try:
            await self._chat.learn()
            return self._chat
        except EngineUnavailable:
            raise
        except EngineError as error:
            try:
                await self._plain.learn()
                return self._plain
            except EngineError:
                if names and self.model not in names:
                    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                    raise EngineError(f"{error}; the server offers: {self.endpoint.clean(shown)}") from None
                raise error from None

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        if prompt.reply:
            self._check_continues(prompt)
        if self.share_prompts:
            completion = await self._join(prompt, sampling)
        else:
            async with self._slots:
                (completion,) = await self._complete(prompt, sampling, 1)
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
        route = await self._route(prompt, verdict)
        if not route.top_logprobs:
            raise Unsupported(f"{self.spec}: the server gives no log-probabilities, so there is no second pass")
        num_ids = len(route.ids_of(verdict))
        async with self._slots:
            choice = await route.ask(
                replace(prompt, reply=prompt.reply + text),
                Sampling(temperature=0.0, max_tokens=1, verdict=verdict),
                lambda data: first_choice(data, len(text), verdict, num_ids),
                stream=False,
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

    async def _route(self, prompt: Prompt, verdict: VerdictFormat | None) -> Route:
        route = self._chat if prompt.chat else self._plain
        await route.learn(verdict)
        return route

    async def _complete(self, prompt: Prompt, sampling: Sampling, n: int) -> list[Completion]:
        """Send one request for `n` completions; the caller holds a slot. Some servers return fewer.

        Where they refuse `max_tokens` because the context is shorter, what it leaves is asked for.
        """
        route = await self._route(prompt, sampling.verdict)
        echo = await route.echo(prompt)
        num_ids = len(route.ids_of(sampling.verdict))

        def read(data: dict[str, Any]) -> list[Completion]:
            route.opens_thinking |= not prompt.reply and ends_thinking_alone(data)
            opens_thinking = route.opens_thinking and not prompt.reply
            return read_completions(data, sampling, n, echo, opens_thinking=opens_thinking, num_ids=num_ids)

        while True:
            asked = replace(sampling, max_tokens=min(sampling.max_tokens, self._rooms.get(prompt, sampling.max_tokens)))
            try:
                return await route.ask(prompt, asked, read, n)
            except Refusal as refusal:
                if refusal.code in ("unsupported_parameter", "unsupported_value"):
                    # Every request of the run would fare the same.
                    raise EngineError(f"{route.where} takes no such setting: {refusal.said}") from None
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
        if context_length is None:
            return None
        if num_prompt_tokens is None:
            try:
                num_prompt_tokens = await route.ask(prompt, Sampling(max_tokens=1), prompt_length, stream=False)
            except Refusal:
                return None
        return None if num_prompt_tokens is None else clipped(num_prompt_tokens, max_tokens, context_length)

    # Equal prompts in one request

    async def _join(self, prompt: Prompt, sampling: Sampling) -> Completion:
        key = (prompt, replace(sampling, seed=None))
        if key not in self._groups:
            self._groups[key] = []
            task = asyncio.create_task(self._serve_group(key))
            self._group_tasks.add(task)
            task.add_done_callback(self._group_tasks.discard)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._groups[key].append((sampling, future))
        return await future

    async def _serve_group(self, key: tuple[Prompt, Sampling]) -> None:
        await asyncio.sleep(self.share_window)
        await self._serve(key[0], self._groups.pop(key))

    async def _serve(self, prompt: Prompt, callers: Sequence[_Caller]) -> None:
        """Serve the callers in as few requests as the server allows, at once."""
        parts = [callers[start : start + self._max_n] for start in range(0, len(callers), self._max_n)]
        await asyncio.gather(*(self._serve_part(prompt, part) for part in parts))

    async def _serve_part(self, prompt: Prompt, callers: Sequence[_Caller]) -> None:
        """Serve the callers with one request, and those for whom it gave too few completions with more."""
        completions: list[Completion] = []
        try:
            async with self._slots:
                callers = [(sampling, future) for sampling, future in callers if not future.done()]
                if callers:
                    request = asyncio.create_task(self._complete_some(prompt, callers[0][0], len(callers)))
                    # It goes on while anyone waits for it.
                    waiting = asyncio.gather(*(future for _, future in callers), return_exceptions=True)
                    waiting.add_done_callback(lambda _: request.cancel())
                    completions = await request
        except asyncio.CancelledError:
            for _, future in callers:
                future.cancel()
            return
        except Exception as error:
            for _, future in callers:
                if not future.done():
                    future.set_exception(copy.copy(error))
            return
        for (_, future), completion in zip(callers, completions, strict=False):
            if not future.done():
                future.set_result(completion)
        await self._serve(prompt, callers[len(completions) :])

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
