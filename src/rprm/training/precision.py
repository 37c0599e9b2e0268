"""What a training computes on, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rprm.training.settings import Precision


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
