"""Preference optimisation (DPO) on right and wrong analyses of a step (R-PRM, section 3.2), with TRL's trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from rprm.training.estimate import Workload
from rprm.training.language import AnalysesRun
from rprm.training.lifecycle import RunArguments, TrainingResult
from rprm.training.settings import DPOSettings


class DPORun(AnalysesRun):
    # The loss: -log sigmoid(beta * ((chosen - reference chosen) - (rejected - reference rejected)))
    # over the replies' log-probabilities, where the reference is the model that training began from.
    kind = "dpo"
    does = "It was trained to prefer analyses whose verdict agrees with the step's label over such as disagree."
    settings: DPOSettings = DPOSettings()

    def workload(self) -> Workload:
        # Without its adapter the model is the reference itself.
        is_once = self.settings.precompute_reference
        held = not is_once and self.settings.lora_rank is None
        return replace(super().workload(), num_passes=1, are_once=is_once, holds_reference=held)

    def trl(self) -> tuple[Any, Any, dict[str, Any]]:
        from trl import DPOConfig, DPOTrainer

        class PreparedDPOTrainer(DPOTrainer):  # type: ignore[misc]
            # Rows are token ids already; TRL 1.16 knows that of SFT rows alone.
            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

        weight = self.settings.sft_weight
        losses, weights = (["sigmoid", "sft"], [1.0, weight]) if weight > 0 else (["sigmoid"], None)
        further = {"max_length": None, "beta": self.settings.beta, "loss_type": losses, "loss_weights": weights}
        further["precompute_ref_log_probs"] = self.settings.precompute_reference
        return PreparedDPOTrainer, DPOConfig, further


def train_dpo(
    data: str | Path, *, prompt: str | Path | None = None, **arguments: Unpack[RunArguments]
) -> TrainingResult:
    """Optimise a model on preference pairs: rows `{id, label, prompt, chosen, rejected}` (`rprm data pairs`). All else
    is as of `train_sft`, the settings `DPOSettings`. The model, usually one of `train_sft`, is the reference too."""
    return DPORun(data, prompt, **arguments).work()
