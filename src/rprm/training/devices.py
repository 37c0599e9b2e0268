"""Where a training computes: on which device, in which precision, and in how many processes (`accelerate launch`).

The main process alone reads and checks the data, writes the run folder and hands over the model. What it decides
reaches the others by `share`, and so does its failure: a process that waits for a result which will never come would
hang until the time limit of the collective.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from rprm.errors import RprmError
from rprm.training.settings import Precision

Result = TypeVar("Result")


def trains_on_cpu() -> bool:
    """Whether there is no GPU to train on, or a launcher asks for the CPU on a machine that has one."""
    import torch

    asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    return asked or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def computes_in_bf16(precision: Precision, *, use_cpu: bool) -> bool:
    """Whether a training computes in bfloat16.

    Args:
        precision: `auto` takes it where the device has instructions for it: most GPUs, and processors with AMX or
            AVX512-BF16. Others work it out in many instructions: a step takes ten times as long as in float32.
        use_cpu: whether the CPU trains.
    """
    import torch

    if precision != "auto":
        return precision == "bf16"
    if use_cpu:
        # An older torch cannot be asked.
        capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


class MainProcessFailed(RprmError):
    """The main process failed, and has said why; this one has nothing to add."""


@dataclass(frozen=True)
class Processes:
    """This process's place among all. Started alone, it is the main one of one."""

    rank: int
    count: int

    @classmethod
    def of_environment(cls) -> Processes:
        """As `accelerate launch` and torchrun tell it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, work: Callable[[], Result]) -> Result:
        """Do `work` in the main process, and give its result to all. The process group must stand.

        Raises:
            MainProcessFailed: in the other processes, where the work failed. In the main one, its own error.
        """
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        shared: list[tuple[str | None, Result | None]] = [(None, None)]
        error: Exception | None = None
        if self.is_main:
            try:
                shared = [(None, work())]
            except Exception as raised:
                error, shared = raised, [(f"{type(raised).__name__}: {raised}", None)]
        broadcast_object_list(shared, from_process=0)
        if error is not None:
            raise error
        failure, outcome = shared[0]
        if failure is not None:
            raise MainProcessFailed(f"the main process failed: {failure}")
        return outcome  # type: ignore[return-value]

    def leave(self) -> None:
        """Take down the process group, where there is one."""
        if self.count == 1:
            return
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
