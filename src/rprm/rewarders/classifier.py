"""A discriminative PRM as a `StepRewarder`: one forward pass rewards every step of a solution.

A worker thread batches what is asked for at once: solutions of similar length together, as many as a budget of tokens
allows, padded to the longest. Padding is masked and positions are counted per row, so that a reward does not depend on
what runs beside it, up to the floating-point noise of batched arithmetic.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from rprm.engines.base import check_least
from rprm.engines.files import find_file, identity, read_object
from rprm.engines.loading import load_tokenizer, plain_errors
from rprm.engines.worker import Job, ModelWorker, placement
from rprm.errors import EngineError
from rprm.rewarders.discriminative import StepClassifier, check_threshold, construct_layout, layout_by_name
from rprm.rewarders.layouts import LAYOUTS, QWEN_SYSTEM, QWEN_TAG, Decision, HeadKind, Layout, LayoutName, Separator
from rprm.rewarders.rendering import Rendered

if TYPE_CHECKING:
    from rprm.rewarders.network import StepNetwork

#: Beside the weights of a classifier that this project trained.
SETTINGS_FILE = "rprm_classifier.json"


#: Heads that tell a released model's layout.
_LAYOUT_OF_HEAD: dict[HeadKind, LayoutName] = {
    "two-way": "qwen",
    "value": "skywork",
    "labels": "trl",
    "validity": "reasoneval",
}


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
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        try:
            settings = TypeAdapter(cls).validate_json(json.dumps(known), strict=True)
        except ValidationError as error:
            (*_, field), message = error.errors()[0]["loc"], error.errors()[0]["msg"]
            raise EngineError(f"{name}: {field} is {known.get(str(field))!r}: {message}") from None
        if not settings.step_tag:
            raise EngineError(f"{name}: step_tag is empty")
        check_threshold(settings.threshold, name)
        return settings

    def to_json(self, **further: Any) -> str:
        return json.dumps({**asdict(self), **further}, indent=2, ensure_ascii=False) + "\n"


class Classifier(StepClassifier):
    """A discriminative PRM in this process. No code of a checkpoint is run.

    Args:
        target: a folder or a hub id.
        layout: one of `layouts.LAYOUTS`; recognised from the checkpoint by default.
        tokenizer: folder or hub id of a tokenizer that lies elsewhere.
        dtype: of the backbone; "auto" is bfloat16 on a GPU and float32 on a CPU. The head is computed in float32.
        device: "auto" takes a GPU where there is one; or a torch name such as "cuda:1".
        device_map: spreads the backbone over several devices instead: accelerate's "auto", "balanced", ...
        revision: of the hub repository; a tag or commit.
        adapter: a LoRA adapter (folder or hub id), merged into the model.
        threshold, context_length: the classifier's own by default.
        max_batch_tokens: tokens, padding included, in one forward pass. A longer solution has a pass of its own.
        num_threads: of torch on a CPU; torch's own choice by default.
        lines, separator, decision, concurrency: see `StepClassifier`.

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
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        revision: str | None = None,
        adapter: str | None = None,
        lines: bool | None = None,
        separator: Separator | None = None,
        decision: Decision | None = None,
        threshold: float | None = None,
        max_batch_tokens: int = 16384,
        context_length: int | None = None,
        num_threads: int | None = None,
        concurrency: int = 64,
    ) -> None:
        if threshold is None and Path(target).is_dir() and (settings := read_settings(target)) is not None:
            # Known before the model is loaded: callers plan with it.
            threshold = settings.threshold
        super().__init__(
            target,
            spec or f"classifier:{target}",
            threshold=threshold,
            context_length=context_length,
            concurrency=concurrency,
            options={"lines": lines, "separator": separator, "decision": decision},
        )
        check_least(self.spec, max_batch_tokens=max_batch_tokens)
        if device_map is not None and device != "auto":
            raise EngineError(f"{self.spec}: give either device or device_map")
        self.max_batch_tokens = max_batch_tokens
        self._layout = layout
        self._tokenizer = tokenizer
        self._revision = revision
        self._adapter = adapter
        self._device_map = device_map
        self._placement = (device, dtype, num_threads)
        self._worker: _Worker | None = None

    async def aclose(self) -> None:
        if self._worker is not None:
            await asyncio.to_thread(self._worker.stop)
            self._worker = None
        await super().aclose()

    async def _open(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._load)

    async def _score(self, rendered: Rendered) -> list[float]:
        assert self._worker is not None
        rewards: list[float] = await self._worker.submit(_Job(rendered))
        return rewards

    def _load(self) -> dict[str, Any]:
        device, dtype, torch_dtype = placement(self.spec, *self._placement)
        import torch

        from rprm.rewarders.network import load_network

        with plain_errors(self.spec, "a step classifier"):
            # First: where there is no such model, this says so.
            source = (self.target, self._revision) if self._tokenizer is None else (self._tokenizer, None)
            tokenizer = load_tokenizer(*source)
            settings = read_settings(self.target, self._revision)
            if settings is None:
                settings = ClassifierSettings(self._layout or self._recognise())
            elif self._layout not in (None, settings.layout):
                raise EngineError(
                    f"{self.spec}: the model was trained in the {settings.layout} layout; leave out layout="
                )
            self.layout = make_layout(settings, tokenizer, self.spec, **self._layout_options)
            network = load_network(
                self.target,
                self.layout,
                dtype=torch_dtype,
                revision=self._revision,
                device_map=self._device_map,
                adapter=self._adapter,
            )
        # Where accelerate put the backbone it stays.
        (network if self._device_map is None else network.score).to(device)
        network.eval()
        text_config = network.backbone.config.get_text_config()
        if self._threshold is None:
            self._threshold = settings.threshold
        self._context_length = self._context_length or getattr(text_config, "max_position_embeddings", None) or 4096
        self._worker = _Worker(network, self.max_batch_tokens)
        further = {
            "tokenizer": self._tokenizer,
            "device_map": self._device_map,
            "adapter": self._adapter,
            "adapter_revision": None if self._adapter is None else identity(self._adapter, None),
        }
        return {
            "revision": identity(self.target, self._revision),
            "dtype": dtype,
            "device": torch.device(device).type,
            **{name: value for name, value in further.items() if value is not None},
        }

    def _recognise(self) -> LayoutName:
        """The layout of a released model: by the tensors of its head, or by its name where they do not tell it."""
        from rprm.rewarders.network import recognised_heads

        named = layout_by_name(self.target)
        if named == "universal":
            # Its head has the tensors' names of a two-way one.
            return named
        heads = recognised_heads(self.target, revision=self._revision)
        if layout := next((_LAYOUT_OF_HEAD[head] for head in heads if head in _LAYOUT_OF_HEAD), None):
            return layout
        if named is not None and named not in _LAYOUT_OF_HEAD.values():
            return named
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


def make_layout(settings: ClassifierSettings, tokenizer: Any, spec: str, **options: Any) -> Layout:
    """The layout that the settings name, over a tokenizer.

    Raises:
        EngineError: the tokenizer does not fit it, or it has no such option.
    """
    if settings.layout == "qwen":
        options |= {"tag": settings.step_tag, "system": settings.system}
    return construct_layout(settings.layout, tokenizer, spec, **options)


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
        batch: list[_Job] = []
        longest = 0
        # Sorting is stable: of equal lengths the oldest comes first, and the oldest of all is always taken.
        for job in sorted(self.waiting, key=lambda job: abs(len(job.rendered.ids) - oldest)):
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
        if device.type == "meta":
            # Offloaded by accelerate, whose hooks bring the inputs to where they are needed.
            device = torch.device("cpu")
        logits = self.network(input_ids.to(device), attention_mask.to(device), wanted.to(device))  # [steps, 2]
        rewards = iter(logits.double().softmax(-1)[:, 1].tolist())
        return [[next(rewards) for _ in job.rendered.positions] for job in batch]
