"""A discriminative PRM behind vLLM's `/pooling`: `classifier:MODEL@URL`.

The layout is ours and goes over as token ids, so that what a text says can no more move a score than in this process.
What comes back is a row of two probabilities, wrong and correct, for each token (a token classifier) or for each step
tag (vLLM's step pooler: Qwen2.5-Math-PRM): told apart by their number.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

from rprm.engines.endpoint import Endpoint, Transient, context_length_of
from rprm.engines.files import identity
from rprm.engines.loading import load_tokenizer, plain_errors
from rprm.errors import EngineError, RequestRefused
from rprm.rewarders.discriminative import StepClassifier, construct_layout, layout_by_name
from rprm.rewarders.layouts import LayoutName, Separator
from rprm.rewarders.rendering import Rendered

#: Layouts whose models vLLM serves: Qwen2ForProcessRewardModel and Qwen2ForTokenClassification. Of a model that rewards
#: with its output layer, `/pooling` gives hidden states (0.32).
_SERVED: tuple[LayoutName, ...] = ("qwen", "trl")

#: Bytes of an answer: a row takes about 50, and a context at most some 100,000 tokens.
_ANSWER_BYTES = 1 << 25

_TARGET = re.compile(r"(?P<model>.+?)@(?P<url>https?://[^/?#@\s]+(?:/[^?#@\s]*)?)")


class ServedClassifier(StepClassifier):
    """A discriminative PRM that a server runs.

    Args:
        target: `MODEL@URL`, the name that the server has for the model and the server's root, as in
            `Qwen/Qwen2.5-Math-PRM-7B@http://localhost:8000`.
        layout: recognised from the name by default.
        tokenizer: folder or hub id of the model's tokenizer; the name of the model by default.
        revision: of the tokenizer on the hub.
        context_length: what the server says by default.
        separator, threshold, concurrency: see `StepClassifier`.
        timeout, max_retries, key_env, send_key_over_http: see `Endpoint`.

    Raises:
        EngineError: an option has no sensible value.
    """

    def __init__(
        self,
        target: str,
        *,
        spec: str = "",
        layout: LayoutName | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        separator: Separator | None = None,
        threshold: float | None = None,
        context_length: int | None = None,
        concurrency: int = 32,
        timeout: float = 600.0,
        max_retries: int = 6,
        key_env: str = "OPENAI_API_KEY",
        send_key_over_http: bool = False,
    ) -> None:
        spec = spec or f"classifier:{target}"
        match = _TARGET.fullmatch(target)
        if match is None:
            raise EngineError(f"{spec}: write MODEL@URL, as in Qwen/Qwen2.5-Math-PRM-7B@http://localhost:8000")
        super().__init__(
            match["model"],
            spec,
            threshold=threshold,
            context_length=context_length,
            concurrency=concurrency,
            options={"separator": separator},
        )
        found = layout or layout_by_name(self.target)
        if found not in _SERVED:
            problem = "the layout is not recognised" if found is None else f"no server of {found} models is known"
            raise EngineError(f"{spec}: {problem}; vLLM serves layout={', '.join(_SERVED)}")
        self._layout_name: LayoutName = found
        self._tokenizer = tokenizer or self.target
        self._revision = revision
        self._slots = asyncio.Semaphore(concurrency)
        self.endpoint = Endpoint(
            re.sub(r"(/v1)?/*$", "", match["url"]),
            self.target,
            timeout=timeout,
            max_retries=max_retries,
            key_env=key_env,
            send_key_over_http=send_key_over_http,
        )

    async def aclose(self) -> None:
        await self.endpoint.aclose()
        await super().aclose()

    async def _open(self) -> dict[str, Any]:
        with plain_errors(self.spec, "it, and name it with tokenizer=", what="the tokenizer of the served model"):
            tokenizer = await asyncio.to_thread(load_tokenizer, self._tokenizer, self._revision)
        self.layout = construct_layout(self._layout_name, tokenizer, self.spec, **self._layout_options)
        self.endpoint.open()
        if self._context_length is None:
            self._context_length = await self._served_context()
        return {
            "url": self.endpoint.url,
            "tokenizer": self._tokenizer,
            "tokenizer_revision": await asyncio.to_thread(identity, self._tokenizer, self._revision),
        }

    async def _served_context(self) -> int | None:
        """What the server says of the model's context (vLLM's `max_model_len`)."""
        served = await self.endpoint.models("/v1/models")
        return context_length_of(served.get(self.target, {}))

    async def _score(self, rendered: Rendered) -> list[float]:
        body = {
            "model": self.target,
            "input": rendered.ids,
            "encoding_format": "float",
            "task": "token_classify",
        }
        async with self._slots:
            rows = await self.endpoint.post("/pooling", body, _rows, _ANSWER_BYTES)
        return [rows[place] for place in self._places(rendered, len(rows))]

    def _places(self, rendered: Rendered, num_rows: int) -> list[int]:
        """The rows of the steps: of all tokens, or of all tokens that are the step's tag.

        Raises:
            EngineError: there are as many rows as neither would give.
        """
        if num_rows == len(rendered.ids):
            return rendered.positions
        tag_id = getattr(self.layout, "tag_id", None)
        num_tags = sum(id_ == tag_id for id_ in rendered.ids)
        if num_rows == len(rendered.positions) == num_tags:
            return list(range(num_rows))
        raise EngineError(
            f"{self.spec}: the server answered {num_rows} rows for {len(rendered.ids)} tokens and "
            f"{num_tags} step tags; serve the model with `--runner pooling`, or with `step_tag_id` "
            f"{tag_id} if it has another (docs/classifiers.md)"
        )


def _rows(answer: dict[str, Any]) -> list[float]:
    """P(correct) of each row of an answer.

    Raises:
        Transient: it is no answer of `/pooling`.
        RequestRefused: the scores are no numbers.
        EngineError: the rows are no probabilities of two classes.
    """
    try:
        (item,) = answer["data"]
        rows = [[float(value) for value in row] for row in item["data"]]
    except (KeyError, TypeError, ValueError):
        raise Transient("no answer of /pooling: `data` is not one list of rows of numbers") from None
    if any(not math.isfinite(value) for row in rows for value in row):
        raise RequestRefused("the model's scores are no numbers (NaN)")
    # Sums of probabilities in bfloat16 are off by less than a hundredth.
    if any(len(row) != 2 or min(row) < 0.0 or abs(sum(row) - 1.0) > 0.02 for row in rows):
        raise EngineError(
            "the server's rows are not the probabilities of two classes: serve a model with two labels, and leave its "
            "activation on"
        )
    return [row[1] / sum(row) for row in rows]
