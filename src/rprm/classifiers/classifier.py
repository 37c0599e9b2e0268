"""A discriminative PRM as a `StepRewarder`: one forward pass rewards every step of a solution.

A worker thread batches what is asked for at once: solutions of similar length together, as many as a budget of tokens
allows, padded to the longest. Padding is masked and positions are counted per row, so that a reward does not depend on
what runs beside it, up to the floating-point noise of batched arithmetic.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rprm.classifiers.layouts import LAYOUTS, QWEN_SYSTEM, QWEN_TAG, Layout, LayoutName, QwenLayout, Rendered
from rprm.engines.files import find_file, identity, read_object
from rprm.engines.worker import Job, ModelWorker, placement
from rprm.errors import EngineError, RequestRefused
from rprm.records import Solution, SolutionReward, StepReward
from rprm.rewarder import Ledger, first_error

if TYPE_CHECKING:
    from rprm.classifiers.network import StepNetwork

#: Beside the weights of a classifier that this project trained.
SETTINGS_FILE = "rprm_classifier.json"


@dataclass(frozen=True)
class ClassifierSettings:
    """What `rprm_classifier.json` says of a classifier.

    Attributes:
        layout: how solutions are laid out.
        step_tag, system: of the qwen layout.
        threshold: chosen on validation data; a step whose reward is below it is called wrong.
    """

    layout: LayoutName
    step_tag: str = QWEN_TAG
    system: str = QWEN_SYSTEM
    threshold: float = 0.5

    @classmethod
    def parse(cls, value: dict[str, Any], name: str) -> ClassifierSettings:
        """Check what was read from a file. Fields that are not known are ignored.

        Raises:
            EngineError: a field has no sensible value.
        """
        known = {key: value[key] for key in ("layout", "step_tag", "system", "threshold") if key in value}
        if known.get("layout") not in LAYOUTS:
            raise EngineError(f"{name}: layout is {known.get('layout')!r}; it must be one of {', '.join(LAYOUTS)}")
        settings = cls(**known)
        if not isinstance(settings.step_tag, str) or not settings.step_tag or not isinstance(settings.system, str):
            raise EngineError(f"{name}: step_tag and system must be texts")
        _check_threshold(settings.threshold, name)
        return settings

    def to_json(self, **further: Any) -> str:
        return json.dumps({**asdict(self), **further}, indent=2, ensure_ascii=False) + "\n"


class Classifier:
    """A discriminative PRM in this process. No code of a checkpoint is run.

    Args:
        target: a folder or a hub id.
        layout: "qwen", "math-shepherd", "skywork" or "rlhflow"; recognised from the checkpoint by default.
        dtype: of the backbone; "auto" is bfloat16 on a GPU and float32 on a CPU. The head is computed in float32.
        device: "auto" takes a GPU where there is one; or a torch name such as "cuda:1".
        revision: of the hub repository; a tag or commit.
        threshold: a step whose reward is below it is called wrong; the classifier's own by default, else 0.5.
        max_batch_tokens: tokens, padding included, in one forward pass. A longer solution has a pass of its own.
        context_length: a longer solution is refused; the model's own by default.
        num_threads: of torch on a CPU; torch's own choice by default.
        concurrency: solutions to keep under way.

    Raises:
        EngineError: an option has no sensible value.
    """

    def __init__(
        self,
        target: str,
        *,
        spec: str = "",
        layout: LayoutName | None = None,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        threshold: float | None = None,
        max_batch_tokens: int = 16384,
        context_length: int | None = None,
        num_threads: int | None = None,
        concurrency: int = 64,
    ) -> None:
        if max_batch_tokens < 1 or concurrency < 1:
            raise EngineError(f"max_batch_tokens={max_batch_tokens} and concurrency={concurrency} must be at least 1")
        self.spec = spec or f"classifier:{target}"
        self.target = target
        self.concurrency = concurrency
        self.max_batch_tokens = max_batch_tokens
        if threshold is not None:
            _check_threshold(threshold, self.spec)
        elif Path(target).is_dir() and (settings := read_settings(target)) is not None:
            # Known before the model is loaded: callers plan with it.
            threshold = settings.threshold
        self._threshold = threshold
        self._layout = layout
        self._dtype = dtype
        self._device = device
        self._revision = revision
        self._context_length = context_length
        self._num_threads = num_threads
        self._described: dict[str, Any] | None = None
        self._starting: asyncio.Lock | None = None
        self._worker: _Worker | None = None

    @property
    def threshold(self) -> float:
        """What was given, else the classifier's own (of a hub model: once it is started), else 0.5."""
        return 0.5 if self._threshold is None else self._threshold

    async def start(self) -> dict[str, Any]:
        """Load the model; returns the settings that rewards depend on.

        Raises:
            EngineError: the model cannot be loaded, or its layout is not recognised.
        """
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._described is None:
                self._described = await asyncio.to_thread(self._load)
        return self._described

    async def judge(self, solution: Solution, ledger: Ledger | None = None) -> SolutionReward:
        """Reward every step of one solution, in one pass.

        Raises:
            EngineUnavailable: the model failed.
        """
        steps = await self._reward(solution.problem, solution.steps, ledger) if solution.steps else ()
        return SolutionReward(
            id=solution.id,
            num_steps=len(solution.steps),
            first_error=first_error([step.reward for step in steps], self.threshold),
            steps=tuple(steps),
            label=solution.label,
        )

    async def judge_step(
        self, problem: str, steps: Sequence[str], step_index: int, ledger: Ledger | None = None
    ) -> StepReward:
        """Reward the step `steps[step_index]`; what comes after it is not read."""
        return (await self._reward(problem, steps[: step_index + 1], ledger))[step_index]

    def is_wrong(self, step: StepReward) -> bool:
        """Whether the step is called wrong. A step without a reward is not: nothing is known of it."""
        return step.reward is not None and step.reward < self.threshold

    async def aclose(self) -> None:
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)
            self._worker = None
        self._described = None

    async def _reward(self, problem: str, steps: Sequence[str], ledger: Ledger | None) -> list[StepReward]:
        key = f"steps.{len(steps)}"
        rewards: list[float] | None = ledger.get(key) if ledger is not None else None
        if rewards is None:
            try:
                rewards = await self._compute(problem, steps)
            except RequestRefused as error:
                return [
                    StepReward(step_index=index, reward=None, vote=None, failure=str(error))
                    for index in range(len(steps))
                ]
            if ledger is not None:
                ledger.put(key, rewards)
        return [StepReward(step_index=index, reward=reward, vote=None) for index, reward in enumerate(rewards)]

    async def _compute(self, problem: str, steps: Sequence[str]) -> list[float]:
        if self._worker is None or self._described is None:
            raise EngineError(f"{self.spec}: the classifier is not started")
        rendered = self.layout.render(problem, steps)
        limit: int = self._described["context_length"]
        if len(rendered.ids) > limit:
            raise RequestRefused(
                f"the solution has {len(rendered.ids)} tokens with its problem; the context length is {limit}"
            )
        rewards: list[float] = await self._worker.submit(_Job(rendered))
        if any(reward != reward for reward in rewards):
            raise RequestRefused("the model's scores are no numbers (NaN); load it with dtype=float32")
        return rewards

    def _load(self) -> dict[str, Any]:
        device, dtype, torch_dtype = placement(self.spec, self._device, self._dtype)
        import torch
        import transformers

        if self._num_threads:
            torch.set_num_threads(self._num_threads)
        transformers.utils.logging.disable_progress_bar()
        try:
            settings, network = self._load_network(torch_dtype)
        except ImportError as error:
            raise EngineError(f'{self.spec}: {error}; pip install "rprm[local]" brings all of it') from None
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineError(
                f"{self.spec}: cannot load the model: {reason} (give a folder with a step classifier, or a hub id that "
                "this machine can reach)"
            ) from error
        network.to(device).eval()
        text_config = network.backbone.config.get_text_config()
        if self._threshold is None:
            self._threshold = settings.threshold
        self._worker = _Worker(network, self.max_batch_tokens)
        return {
            "rewarder": "classifier",
            "layout": settings.layout,
            "engine": {
                "kind": "classifier",
                "model": self.target,
                "revision": identity(self.target, self._revision),
                "dtype": dtype,
                "device": torch.device(device).type,
            },
            "threshold": self.threshold,
            "context_length": self._context_length or getattr(text_config, "max_position_embeddings", None) or 4096,
        }

    def _load_network(self, dtype: Any) -> tuple[ClassifierSettings, StepNetwork]:
        from transformers import AutoTokenizer

        from rprm.classifiers.network import load_network

        # First: where there is no such model, this says so.
        tokenizer = AutoTokenizer.from_pretrained(self.target, revision=self._revision, trust_remote_code=False)
        settings = read_settings(self.target, self._revision)
        if settings is not None:
            if self._layout not in (None, settings.layout):
                raise EngineError(
                    f"{self.spec}: the model was trained in the {settings.layout} layout; leave out layout="
                )
        else:
            settings = ClassifierSettings(self._layout or self._recognise())
        self.layout = make_layout(settings, tokenizer, self.spec)
        return settings, load_network(self.target, self.layout, dtype=dtype, revision=self._revision)

    def _recognise(self) -> LayoutName:
        """The layout of a released model: by the tensors of its head, or by its name where it has none."""
        from rprm.classifiers.network import HEAD_TENSORS, tensor_names

        names = tensor_names(self.target, revision=self._revision)
        if names.issuperset(HEAD_TENSORS["two-way"]):
            return "qwen"
        if names.issuperset(HEAD_TENSORS["value"]):
            return "skywork"
        name = self.target.lower()
        if "math-shepherd" in name:
            return "math-shepherd"
        if "rlhflow" in name or "llama3.1-8b-prm" in name:
            return "rlhflow"
        raise EngineError(
            f"{self.spec}: the layout is not recognised; name it, as in classifier:{self.target}?layout=rlhflow "
            f"(one of {', '.join(LAYOUTS)})"
        )


def read_settings(target: str, revision: str | None = None) -> ClassifierSettings | None:
    """What a classifier that this project trained says of itself; None of any other.

    Raises:
        EngineError: the file is damaged.
    """
    path = find_file(target, SETTINGS_FILE, revision)
    return None if path is None else ClassifierSettings.parse(read_object(path), str(path))


def make_layout(settings: ClassifierSettings, tokenizer: Any, spec: str) -> Layout:
    """The layout that the settings name, over a tokenizer.

    Raises:
        EngineError: the tokenizer does not fit it.
    """
    try:
        if settings.layout == "qwen":
            return QwenLayout(tokenizer, tag=settings.step_tag, system=settings.system)
        return cast(Layout, LAYOUTS[settings.layout](tokenizer))
    except EngineError as error:
        raise EngineError(f"{spec}: {error}") from None


def _check_threshold(threshold: Any, name: str) -> None:
    if not isinstance(threshold, (int, float)) or not 0.0 < threshold < 1.0:
        raise EngineError(f"{name}: threshold is {threshold}; give a number between 0 and 1")


@dataclass(eq=False)
class _Job(Job):
    rendered: Rendered


class _Worker(ModelWorker[_Job]):
    """Owns the network: one thread, one batch after the other."""

    def __init__(self, network: StepNetwork, max_batch_tokens: int) -> None:
        super().__init__("rprm-classifier", hint="lower max_batch_tokens")
        self.network = network
        self.max_batch_tokens = max_batch_tokens
        self.start()

    def work(self) -> None:
        if batch := self._take():
            for job, rewards in zip(batch, self._forward(batch), strict=True):
                job.resolve(rewards)

    def _take(self) -> list[_Job]:
        """The job that waits longest, and those closest to it in length, as many as the budget allows."""
        if not self.waiting:
            return []
        oldest = len(self.waiting[0].rendered.ids)
        # Sorting is stable: of equal lengths the oldest comes first, and the oldest of all is always taken.
        nearest = sorted(self.waiting, key=lambda job: abs(len(job.rendered.ids) - oldest))
        batch: list[_Job] = []
        longest = 0
        for job in nearest:
            longest = max(longest, len(job.rendered.ids))
            if batch and longest * (len(batch) + 1) > self.max_batch_tokens:
                break
            batch.append(job)
        taken = set(batch)
        self.waiting = [job for job in self.waiting if job not in taken]
        return batch

    def _forward(self, batch: Sequence[_Job]) -> list[list[float]]:
        """Rewards of each job: one pass over rows padded on the right."""
        import torch

        shape = len(batch), max(len(job.rendered.ids) for job in batch)
        input_ids = torch.zeros(shape, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        wanted = torch.zeros(shape, dtype=torch.bool)
        for row, job in enumerate(batch):
            rendered = job.rendered
            input_ids[row, : len(rendered.ids)] = torch.tensor(rendered.ids)
            attention_mask[row, : len(rendered.ids)] = 1
            wanted[row, rendered.positions] = True
        device = self.network.backbone.device
        logits = self.network(input_ids.to(device), attention_mask.to(device), wanted.to(device))  # [steps, 2]
        rewards = iter(logits.double().softmax(-1)[:, 1].tolist())
        return [[next(rewards) for _ in job.rendered.positions] for job in batch]
