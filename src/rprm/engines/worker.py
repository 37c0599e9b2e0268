"""A thread that owns a model and answers awaited jobs: what engines and classifiers in this process share."""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import abstractmethod
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rprm.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    import torch

AnyRequest = TypeVar("AnyRequest", bound="Request")


@dataclass(eq=False)
class Request:
    """A request that somebody awaits in an event loop, and may cancel at any time."""

    future: Future[Any] = field(init=False, default_factory=Future)

    def answer(self, result: Any) -> None:
        """An exception is raised where the answer is awaited."""
        with suppress(InvalidStateError):
            (self.future.set_exception if isinstance(result, Exception) else self.future.set_result)(result)


class ModelWorker(threading.Thread, Generic[AnyRequest]):
    """Works on jobs until it is stopped or the model fails; `hint`: what to do when memory does not suffice."""

    def __init__(self, name: str, *, hint: str) -> None:
        super().__init__(name=name, daemon=True)
        self.hint = hint
        self.waiting: list[AnyRequest] = []  # not begun, first come first
        self.unanswered: set[AnyRequest] = set()  # neither answered nor cancelled, begun or not
        self._jobs: queue.SimpleQueue[AnyRequest | None] = queue.SimpleQueue()
        self._stopping = False
        self._ended: str | None = None  # why

    async def submit(self, job: AnyRequest) -> Any:
        """Await the answer to a job; `EngineUnavailable` where the worker ends first."""
        self._jobs.put(job)
        # Set before the last jobs are taken: those that come later fail here.
        if self._ended is not None:
            job.answer(EngineUnavailable(self._ended))
        return await asyncio.wrap_future(job.future)

    def stop(self) -> None:
        self._stopping = True
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        import torch

        ended = "the engine was closed"
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._receive(block=not self.unanswered)
                    self.unanswered = {job for job in self.unanswered if not job.future.done()}
                    self.waiting = [job for job in self.waiting if job in self.unanswered]
                    self.work()
        except Exception as failure:
            ended = f"the model failed: {type(failure).__name__}: {failure}"
            # Apple's GPUs say it in words.
            if isinstance(failure, torch.OutOfMemoryError) or "out of memory" in str(failure):
                ended += f"; {self.hint}"
        self._ended = ended
        self._receive(block=False)
        for job in self.unanswered:
            job.answer(EngineUnavailable(ended))

    @abstractmethod
    def work(self) -> None:
        """One turn, if there is anything to do: begin waiting jobs, go on with those begun, answer those done."""

    def _receive(self, *, block: bool) -> None:
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get(block=block)) is not None:
                    self.waiting.append(job)
                    self.unanswered.add(job)
                block = False


def placement(spec: str, device: str, dtype: str, num_threads: int | None) -> tuple[str, str, torch.dtype]:
    """The device, the dtype's name and the dtype of a model, which then is loaded in silence.

    "auto" takes a GPU where there is one, and bfloat16 there, float32 on a CPU; else these are torch's names.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise EngineError(f'{spec} needs transformers and torch: pip install ".[local]" ({error})') from None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise EngineError(f"{spec}: {dtype!r} is no torch dtype; try float32, bfloat16 or float16")
    if num_threads:
        torch.set_num_threads(num_threads)
    transformers.utils.logging.disable_progress_bar()
    return device, dtype, found
