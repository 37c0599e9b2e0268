"""Discriminative PRMs: one forward pass rewards every step of a solution, here or behind vLLM's `/pooling`."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypedDict, Unpack, cast

from pydantic import Field, TypeAdapter, ValidationError

from rprm import ranges
from rprm.engines.endpoint import Endpoint, Timeout, Transient, context_length_of
from rprm.engines.loading import find_file, identity, load_tokenizer, placement, plain_errors
from rprm.errors import EngineError, RequestRefused
from rprm.ledger import Ledger, paid_for
from rprm.plugins import options_of, typed
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarders.base import Steps, solution_reward
from rprm.rewarders.layouts import LAYOUTS, QWEN_SYSTEM, QWEN_TAG, Decision, Layout, LayoutName, Rendered, Separator

if TYPE_CHECKING:
    from rprm.rewarders.network import Scorer

SETTINGS_FILE = "rprm_classifier.json"  #: beside the weights of a classifier that this project trained
#: Layouts whose models vLLM serves; of one that rewards with its output layer, `/pooling` gives hidden states (0.32).
_SERVED: tuple[LayoutName, ...] = ("qwen", "trl")
_ANSWER_BYTES = 1 << 25  #: a row takes about 50, and a context at most some 100,000 tokens
_TARGET = re.compile(r"(?P<model>.+?)@(?P<url>https?://[^/?#@\s]+(?:/[^?#@\s]*)?)")


@dataclass(frozen=True)
class ClassifierSettings:
    """What `rprm_classifier.json` says of a classifier."""

    layout: LayoutName
    step_tag: Annotated[str, Field(min_length=1)] = QWEN_TAG  #: of the qwen layout, as is `system`
    system: str = QWEN_SYSTEM
    threshold: ranges.Threshold = 0.5  #: chosen on validation data

    def to_json(self, **further: Any) -> str:
        return json.dumps({**asdict(self), **further}, indent=2, ensure_ascii=False) + "\n"


def read_settings(target: str, revision: str | None = None) -> ClassifierSettings | None:
    """What a classifier trained here says of itself, None of any other; `EngineError` where the file is damaged."""
    if (path := find_file(target, SETTINGS_FILE, revision)) is None:
        return None
    try:
        return TypeAdapter(ClassifierSettings).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = (first["loc"] or ("it",))[-1]
        raise EngineError(f"{path}: {name} is {first['input']!r:.80}: {first['msg']}") from None


def make_layout(
    settings: ClassifierSettings, tokenizer: Any, spec: str, options: ClassifierOptions | None = None
) -> Layout:
    """The layout that the settings name, over a tokenizer; its errors name the `spec`."""
    given: dict[str, Any] = {name: (options or {}).get(name) for name in ("lines", "separator", "decision")}
    if settings.layout == "qwen":
        given |= {"tag": settings.step_tag, "system": settings.system}
    try:
        return Layout(settings.layout, tokenizer, **given)
    except EngineError as error:
        raise EngineError(f"{spec}: {error}") from None


def layout_by_name(model: str) -> LayoutName | None:
    """The layout of a released model by its name; None where the name says nothing."""
    return next((name for name, kind in LAYOUTS.items() if any(part in model.lower() for part in kind.models)), None)


class ClassifierOptions(TypedDict, total=False):
    """Options of every classifier; see docs/classifiers.md."""

    layout: LayoutName | None
    lines: bool | None
    separator: Separator | None
    decision: Decision | None
    tokenizer: str | None
    revision: str | None
    threshold: ranges.Threshold | None
    context_length: ranges.Tokens | None
    concurrency: ranges.Width


class Classifier:
    """A discriminative PRM in this process, from a folder or hub id; its options are in docs/classifiers.md."""

    layout: Layout  #: once it is started

    def __init__(
        self, target: str, *, spec: str = "",
        dtype: str = "auto", device: str = "auto", device_map: str | None = None,
        num_threads: ranges.Width | None = None, adapter: str | None = None, max_batch_tokens: ranges.Tokens = 16384,
        **options: Unpack[ClassifierOptions],
    ) -> None:  # fmt: skip
        self.target, self.spec = target, spec or f"classifier:{target}"
        numbers = {"num_threads": num_threads, "max_batch_tokens": max_batch_tokens}
        given = typed(options_of(Classifier), {**numbers, **options}, self.spec)
        self.options = cast(ClassifierOptions, given)
        if device_map is not None and device != "auto":
            raise EngineError(f"{self.spec}: give either device or device_map")
        self.concurrency, self._context_length = given.get("concurrency", 64), given.get("context_length")
        threshold = given.get("threshold")
        if threshold is None and Path(target).is_dir() and (settings := read_settings(target)) is not None:
            threshold = settings.threshold
        #: If not given, its own (of a hub model: once it is started).
        self.threshold: float = 0.5 if threshold is None else threshold
        self._placement, self._device_map, self._adapter = (device, dtype, given["num_threads"]), device_map, adapter
        self.max_batch_tokens = given["max_batch_tokens"]
        self._worker: Scorer | None = None
        self._described: dict[str, Any] | None = None
        self._starting = asyncio.Lock()

    def in_full(self) -> Self:
        return self

    async def start(self) -> dict[str, Any]:
        async with self._starting:
            if self._described is None:
                engine = {"kind": "classifier", "model": self.target, **await self._open()}
                layout: dict[str, Any] = {"layout": self.layout.name}
                layout |= {"layout_options": self.layout.options} if self.layout.options else {}
                further = {"threshold": self.threshold, "context_length": self._context_length}
                self._described = {"rewarder": "classifier", **layout, "engine": engine, **further}
        return self._described

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        steps = await self._reward(solution.problem, solution.steps, ledger) if solution.steps else []
        return solution_reward(solution, steps, self.threshold)

    async def judge_step(self, problem: str, steps: Steps, step_index: int, ledger: Ledger | None = None) -> StepReward:
        return (await self._reward(problem, steps[: step_index + 1], ledger))[step_index]

    async def aclose(self) -> None:
        self._described = None
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)
            self._worker = None

    async def _reward(self, problem: str, steps: Steps, ledger: Ledger | None) -> list[StepReward]:
        key = f"steps.{len(steps)}"

        def rewards_of(scores: Sequence[float | None], failure: str | None = None) -> list[StepReward]:
            if len(scores) != len(steps):
                raise ValueError(f"it has {len(scores)} rewards for {len(steps)} steps")
            found = enumerate(scores)
            return [StepReward(step_index=index, reward=one, vote=None, failure=failure) for index, one in found]

        if (paid := paid_for(ledger, key, rewards_of)) is not None:
            return paid
        if self._described is None:
            raise EngineError(f"{self.spec}: the classifier is not started")
        try:
            ends = [len(steps)] if self.layout.kind.one_pass else range(1, len(steps) + 1)
            sequences = [self.layout.render(problem, steps[:end]) for end in ends]
            longest, limit = max(len(one.ids) for one in sequences), self._context_length
            if limit is not None and longest > limit:
                raise RequestRefused(f"the solution has {longest} tokens; the context length is {limit}")
            scores = [score for scored in await asyncio.gather(*map(self._score, sequences)) for score in scored]
            if any(map(math.isnan, scores)):
                raise RequestRefused("the model's scores are no numbers (NaN); load it with dtype=float32")
        except RequestRefused as error:
            return rewards_of([None] * len(steps), str(error))
        if ledger is not None:
            ledger.put(key, scores)
        return rewards_of(scores)

    async def _open(self) -> dict[str, Any]:
        """Load what is needed and set `layout`; returns what the manifest says of the model."""
        return await asyncio.to_thread(self._load)

    async def _score(self, rendered: Rendered) -> list[float]:
        """Rewards at the positions of one sequence."""
        assert self._worker is not None
        return await self._worker.score(rendered)

    def _load(self) -> dict[str, Any]:
        device, dtype, torch_dtype = placement(self.spec, *self._placement)
        from rprm.rewarders.network import Scorer, load_network

        options = self.options
        revision, layout, elsewhere = options.get("revision"), options.get("layout"), options.get("tokenizer")
        with plain_errors(self.spec, "a step classifier"):
            # First: where there is no such model, this says so.
            tokenizer = load_tokenizer(elsewhere or self.target, None if elsewhere else revision)
            settings = read_settings(self.target, revision)
            if settings is None:
                settings = ClassifierSettings(layout or self._recognise(revision))
            elif layout not in (None, settings.layout):
                raise EngineError(f"{self.spec}: it was trained in the {settings.layout} layout; leave out layout=")
            self.layout = make_layout(settings, tokenizer, self.spec, options)
            weights = {"dtype": torch_dtype, "revision": revision, "device_map": self._device_map}
            network = load_network(self.target, self.layout, adapter=self._adapter, **weights)
        (network if self._device_map is None else network.score).to(device)  # accelerate has placed the backbone
        network.eval()
        if options.get("threshold") is None:
            self.threshold = settings.threshold
        longest = getattr(network.backbone.config.get_text_config(), "max_position_embeddings", None)
        self._context_length = self._context_length or longest or 4096
        self._worker = Scorer(network, self.max_batch_tokens)
        described = {"revision": identity(self.target, revision), "dtype": dtype, "device": device.partition(":")[0]}
        further = {"tokenizer": elsewhere, "device_map": self._device_map, "adapter": self._adapter}
        further["adapter_revision"] = self._adapter and identity(self._adapter, None)
        return described | {name: value for name, value in further.items() if value is not None}

    def _recognise(self, revision: str | None) -> LayoutName:
        """The layout of a released model: by the tensors of its head, or by its name where they do not tell it."""
        from rprm.rewarders.network import HEAD_LAYERS, recognised_heads

        named, heads = layout_by_name(self.target), recognised_heads(self.target, revision=revision)
        found = [name for name, kind in LAYOUTS.items() if kind.head in heads]
        # The name decides between a one-way and a two-way head, whose tensors have the same names.
        if named in found or (not found and named is not None and LAYOUTS[named].head not in HEAD_LAYERS):
            return named
        if found:
            return found[0]
        raise EngineError(f"{self.spec}: the layout is not recognised; name it: ?layout= one of {', '.join(LAYOUTS)}")


class ServedClassifier(Classifier):
    """A discriminative PRM behind vLLM's `/pooling`: `MODEL@URL`, the server's name for the model, and its root. Rows
    of two probabilities come back, wrong and correct, for each token (a token classifier) or each step tag (vLLM's step
    pooler: Qwen2.5-Math-PRM)."""

    def __init__(
        self, target: str, *, spec: str = "", timeout: Timeout = 600.0, max_retries: ranges.Retries = 6,
        key_env: str = "OPENAI_API_KEY", send_key_over_http: bool = False, **options: Unpack[ClassifierOptions],
    ) -> None:  # fmt: skip
        spec = spec or f"classifier:{target}"
        if (match := _TARGET.fullmatch(target)) is None:
            raise EngineError(f"{spec}: write MODEL@URL, as in Qwen/Qwen2.5-Math-PRM-7B@http://localhost:8000")
        options.setdefault("concurrency", 32)
        super().__init__(match["model"], spec=spec, **options)
        found = options.get("layout") or layout_by_name(self.target)
        if found not in _SERVED:
            problem = "the layout is not recognised" if found is None else f"no server of {found} models is known"
            raise EngineError(f"{spec}: {problem}; vLLM serves layout={', '.join(_SERVED)}")
        self._settings = ClassifierSettings(found)
        self._tokenizer = options.get("tokenizer") or self.target
        self._slots = asyncio.Semaphore(self.concurrency)
        own = {"timeout": timeout, "max_retries": max_retries, "key_env": key_env}
        own |= {"send_key_over_http": send_key_over_http}
        checked = typed(options_of(ServedClassifier), own, spec)
        self.endpoint = Endpoint(re.sub(r"(/v1)?/*$", "", match["url"]), self.target, **checked)

    async def aclose(self) -> None:
        await self.endpoint.aclose()
        await super().aclose()

    async def _open(self) -> dict[str, Any]:
        revision = self.options.get("revision")
        try:
            tokenizer = await asyncio.to_thread(load_tokenizer, self._tokenizer, revision)
        except EngineError as error:
            raise EngineError(f"{self.spec}: of the served model {error}; name it with tokenizer=") from None
        self.layout = make_layout(self._settings, tokenizer, self.spec, self.options)
        self.endpoint.open()
        if self._context_length is None:
            served = await self.endpoint.models("/v1/models")
            self._context_length = context_length_of(served.get(self.target, {}))
        found = await asyncio.to_thread(identity, self._tokenizer, revision)
        return {"url": self.endpoint.url, "tokenizer": self._tokenizer, "tokenizer_revision": found}

    async def _score(self, rendered: Rendered) -> list[float]:
        body = {"model": self.target, "input": rendered.ids, "encoding_format": "float", "task": "token_classify"}
        async with self._slots:
            rows = await self.endpoint.post("/pooling", body, _rows, _ANSWER_BYTES)
        if len(rows) == len(rendered.ids):
            return [rows[place] for place in rendered.positions]
        tag_id, num_tags = rendered.ids[-1], rendered.ids.count(rendered.ids[-1])
        if self.layout.name == "qwen" and len(rows) == len(rendered.positions) == num_tags:
            return rows
        fix = f"serve the model with `--runner pooling`, or `step_tag_id` {tag_id} (docs/classifiers.md)"
        counts = f"{len(rows)} rows for {len(rendered.ids)} tokens and {num_tags} tags"
        raise EngineError(f"{self.spec}: the server answered {counts}; {fix}")


def _rows(answer: dict[str, Any]) -> list[float]:
    """P(correct) of each row of an answer."""
    try:
        (item,) = answer["data"]
        rows = TypeAdapter(list[list[float]]).validate_python(item["data"], strict=True)
    except (KeyError, TypeError, ValueError):
        raise Transient("no answer of /pooling: `data` is not one list of rows of numbers") from None
    # A row with a number that is not finite passes as NaN: its solution is refused.
    rows = [row if math.isfinite(sum(row)) else [math.nan, math.nan] for row in rows]
    # Sums of probabilities in bfloat16 are off by less than a hundredth.
    if any(len(row) != 2 or min(row) < 0.0 or abs(sum(row) - 1.0) > 0.02 for row in rows):
        raise EngineError("the server's rows are not the probabilities of two classes: leave its activation on")
    return [row[1] / sum(row) for row in rows]
