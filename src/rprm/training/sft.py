"""The cold start: fine-tuning on analyses whose verdict is right (R-PRM, section 3.1), with TRL's trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from rprm.training.language import AnalysesRun
from rprm.training.lifecycle import RunArguments, TrainingResult
from rprm.training.settings import SFTSettings


class SFTRun(AnalysesRun):
    # The loss: the mean negative log-likelihood of the reply's tokens, verdict and end included.
    kind = "sft"
    does = "It was fine-tuned on analyses whose verdict agrees with the step's label."
    settings: SFTSettings = SFTSettings()

    def trl(self) -> tuple[Any, Any, dict[str, Any]]:
        from trl import SFTConfig, SFTTrainer

        packing, padding_free = self.settings.packing, self.settings.padding_free
        # Too long rows are left out before; only packing needs to know how long a pack may be.
        length = self.settings.max_length if packing else None
        further = {"max_length": length, "packing": packing, "eval_packing": False, "padding_free": padding_free}
        return SFTTrainer, SFTConfig, further


def train_sft(
    data: str | Path, *, prompt: str | Path | None = None, **arguments: Unpack[RunArguments]
) -> TrainingResult:
    """Fine-tune a model on analyses; or resume where an earlier session on the same folder was killed.

    Args:
        data: a folder of `rprm data cold-start`, or a JSON Lines file of rows `{id, label, prompt, completion}`.
        prompt: the template that the rows were rendered with, where the data does not say.
        arguments: see `RunArguments`; the settings are `SFTSettings`, the paper's by default.

    Raises: see `TrainingRun.work`; a `PromptError` where the template does not fit data or model.
    """
    return SFTRun(data, prompt, **arguments).work()
