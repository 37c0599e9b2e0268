"""A discriminative PRM behind vLLM's `/pooling`: `classifier:MODEL@URL`.

Token ids go over. What comes back is a row of two probabilities, wrong and correct, for each token (a token classifier)
or for each step tag (vLLM's step pooler: Qwen2.5-Math-PRM): told apart by their number.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any, Unpack

from rprm.engines.endpoint import Endpoint, Transient
from rprm.engines.files import identity
from rprm.engines.loading import load_tokenizer, plain_errors
from rprm.engines.openai_route import context_length_of, served_models
from rprm.errors import EngineError, RequestRefused
from rprm.rewarders.classifier import ClassifierOptions, ClassifierSettings, StepClassifier, layout_by_name, make_layout
from rprm.rewarders.layouts import LayoutName, Rendered

#: Layouts whose models vLLM serves: Qwen2ForProcessRewardModel and Qwen2ForTokenClassification. Of a model that rewards
#: with its output layer, `/pooling` gives hidden states (0.32).
_SERVED: tuple[LayoutName, ...] = ("qwen", "trl")
#: Bytes of an answer: a row takes about 50, and a context at most some 100,000 tokens.
_ANSWER_BYTES, _MODELS_BYTES = 1 << 25, 1 << 20
_TARGET = re.compile(r"(?P<model>.+?)@(?P<url>https?://[^/?#@\s]+(?:/[^?#@\s]*)?)")


class ServedClassifier(StepClassifier):
    """A discriminative PRM that a server runs.

    Args:
        target: `MODEL@URL`, the name that the server has for the model and the server's root, as in
            `Qwen/Qwen2.5-Math-PRM-7B@http://localhost:8000`.
        timeout, max_retries, key_env, send_key_over_http: see `Endpoint`.
        options: see `ClassifierOptions`. The model's name tells the layout and is the tokenizer's hub id by default;
            `revision` is the tokenizer's.

    Raises:
        EngineError: an option has no sensible value.
    """

    def __init__(
        self,
        target: str,
        *,
        spec: str = "",
        timeout: float = 600.0,
        max_retries: int = 6,
        key_env: str = "OPENAI_API_KEY",
        send_key_over_http: bool = False,
        **options: Unpack[ClassifierOptions],
    ) -> None:
        spec = spec or f"classifier:{target}"
        if (match := _TARGET.fullmatch(target)) is None:
            raise EngineError(f"{spec}: write MODEL@URL, as in Qwen/Qwen2.5-Math-PRM-7B@http://localhost:8000")
        super().__init__(match["model"], spec, {"concurrency": 32, **options})
        found = options.get("layout") or layout_by_name(self.target)
        if found not in _SERVED:
            problem = "the layout is not recognised" if found is None else f"no server of {found} models is known"
            raise EngineError(f"{spec}: {problem}; vLLM serves layout={', '.join(_SERVED)}")
        self._settings = ClassifierSettings(found)
        self._tokenizer = options.get("tokenizer") or self.target
        self._slots = asyncio.Semaphore(self.concurrency)
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
        revision = self.options.get("revision")
        with plain_errors(self.spec, "it, and name it with tokenizer=", what="the tokenizer of the served model"):
            tokenizer = await asyncio.to_thread(load_tokenizer, self._tokenizer, revision)
        self.layout = make_layout(self._settings, tokenizer, self.spec, **self._layout_options)
        self.endpoint.open()
        if self._context_length is None:
            # What vLLM says of it (`max_model_len`).
            served = served_models(await self.endpoint.ask("/v1/models", _MODELS_BYTES) or {})
            self._context_length = context_length_of(served.get(self.target, {}))
        return {
            "url": self.endpoint.url,
            "tokenizer": self._tokenizer,
            "tokenizer_revision": await asyncio.to_thread(identity, self._tokenizer, revision),
        }

    async def _score(self, rendered: Rendered) -> list[float]:
        body = {"model": self.target, "input": rendered.ids, "encoding_format": "float", "task": "token_classify"}
        async with self._slots:
            rows = await self.endpoint.post("/pooling", body, _rows, _ANSWER_BYTES)
        if len(rows) == len(rendered.ids):
            return [rows[place] for place in rendered.positions]
        tag_id = rendered.ids[-1]
        num_tags = rendered.ids.count(tag_id)
        if self.layout.name == "qwen" and len(rows) == len(rendered.positions) == num_tags:
            return rows
        raise EngineError(
            f"{self.spec}: the server answered {len(rows)} rows for {len(rendered.ids)} tokens and {num_tags} step "
            f"tags; serve the model with `--runner pooling`, or with `step_tag_id` {tag_id} if it has another "
            "(docs/classifiers.md)"
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
