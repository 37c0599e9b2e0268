"""Several processes at one training (`accelerate launch`): the main one works, the others wait, no error deadlocks.

The main process alone reads and checks the data, writes the run folder and hands over the model. What it finds out
reaches the others by `share`, and so does its failure: a process that waits for a result which will never come would
hang until the time limit of the collective.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rprm.errors import RprmError

Result = TypeVar("Result")


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

        outcome: list[Result | None] = [None]
        failure: list[str | None] = [None]
        error: Exception | None = None
        if self.is_main:
            try:
                outcome = [work()]
            except Exception as raised:
                error = raised
                failure = [f"{type(raised).__name__}: {raised}"]
        broadcast_object_list(failure, from_process=0)
        if error is not None:
            raise error
        if failure[0] is not None:
            raise MainProcessFailed(f"the main process failed: {failure[0]}")
        broadcast_object_list(outcome, from_process=0)
        return outcome[0]  # type: ignore[return-value]

    def leave(self) -> None:
        """Take down the process group, where there is one."""
        if self.count == 1:
            return
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
