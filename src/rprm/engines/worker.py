"""A thread that owns a model and answers awaited jobs: what engines and classifiers in this process share."""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rprm.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    import torch

AnyJob = TypeVar("AnyJob", bound="Job")


@dataclass(eq=False)
class Job:
    """A request that somebody awaits in an event loop. Answered from the worker's thread, once."""

    loop: asyncio.AbstractEventLoop = field(init=False)
    future: asyncio.Future[Any] = field(init=False)

    def resolve(self, result: Any) -> None:
        self._answer(self.future.set_result, result)

    def fail(self, error: Exception) -> None:
        self._answer(self.future.set_exception, error)

    def _answer(self, function: Callable[[Any], None], argument: Any) -> None:
        def apply() -> None:
            if not self.future.done():
                function(argument)

        # The loop may be gone when the caller was killed; then nobody waits.
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(apply)


class ModelWorker(threading.Thread, Generic[AnyJob]):
    """Takes jobs in, and works on them in its own thread until it is stopped or the model fails.

    Attributes:
        waiting: jobs not begun, first come first.
        unanswered: every job taken in and not answered or cancelled, begun or not.

    Args:
        name: of the thread.
        hint: what to do when the device's memory does not suffice.
    """

    def __init__(self, name: str, *, hint: str) -> None:
        super().__init__(name=name, daemon=True)
        self.hint = hint
        self.waiting: list[AnyJob] = []
        self.unanswered: set[AnyJob] = set()
        self._jobs: queue.SimpleQueue[AnyJob | None] = queue.SimpleQueue()
        self._stopping = False
        # Why the worker ended. Set under the lock, so that no job is queued after the final drain.
        self._ended: EngineUnavailable | None = None
        self._lock = threading.Lock()

    async def submit(self, job: AnyJob) -> Any:
        """Await the answer to a job.

        Raises:
            EngineUnavailable: the worker has ended, or ends before it answers.
        """
        job.loop = asyncio.get_running_loop()
        job.future = job.loop.create_future()
        with self._lock:
            if self._ended is not None:
                raise EngineUnavailable(str(self._ended))
            self._jobs.put(job)
        return await job.future

    def stop(self) -> None:
        self._stopping = True
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        import torch

        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._receive(block=self.is_idle())
                    self.drop_cancelled()
                    self.work()
            error = EngineUnavailable("the engine was closed")
        except Exception as failure:
            # Apple's GPUs say it in words.
            is_memory = isinstance(failure, torch.OutOfMemoryError) or "out of memory" in str(failure)
            hint = f"; {self.hint}" if is_memory else ""
            error = EngineUnavailable(f"the model failed: {type(failure).__name__}: {failure}{hint}")
        with self._lock:
            self._ended = error
            self._receive(block=False)
        for job in self.unanswered:
            job.fail(error)

    def is_idle(self) -> bool:
        """Whether there is nothing to do until a job comes in."""
        return not self.waiting

    def drop_cancelled(self) -> None:
        """Forget jobs that nobody awaits any longer."""
        self.unanswered = {job for job in self.unanswered if not job.future.done()}
        self.waiting = [job for job in self.waiting if job in self.unanswered]

    @abstractmethod
    def work(self) -> None:
        """One turn: begin waiting jobs, go on with those begun, answer those that are done."""

    def _receive(self, *, block: bool) -> None:
        while True:
            try:
                job = self._jobs.get(block=block)
            except queue.Empty:
                return
            block = False
            if job is not None:
                self.waiting.append(job)
                self.unanswered.add(job)


def placement(spec: str, device: str, dtype: str, num_threads: int | None) -> tuple[str, str, torch.dtype]:
    """Where a model goes and in what precision: the device, the dtype's name and the dtype. It is loaded in silence.

    Args:
        spec: the model, for messages.
        device: "auto" takes a GPU where there is one; or a torch name.
        dtype: "auto" is bfloat16 on a GPU and float32 on a CPU; or a torch name.
        num_threads: of torch on a CPU; torch's own choice by default.

    Raises:
        EngineError: torch or transformers is missing, or there is no such dtype.
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
