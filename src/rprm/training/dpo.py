"""Direct preference optimisation (R-PRM, section 3.2), with TRL's DPOTrainer.

Of two analyses of one step, the chosen one's verdict agrees with the label and the rejected one's does not. The loss is
-log sigmoid(beta * ((chosen - reference chosen) - (rejected - reference rejected))) over the replies'
log-probabilities, where the reference is the model that training began from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from rprm.training.lifecycle import RunArguments, TrainingResult
from rprm.training.settings import DPOSettings
from rprm.training.sft import LanguageRun

__all__ = ["DPOSettings", "train_dpo"]


class DPORun(LanguageRun):
    kind = "dpo"
    does = "It was trained to prefer analyses whose verdict agrees with the step's label over such as disagree."
    settings: DPOSettings

    def make_config(self) -> Any:
        from trl import DPOConfig

        weight = self.settings.sft_weight
        return DPOConfig(
            **self.common,
            max_length=None,
            beta=self.settings.beta,
            loss_type=["sigmoid", "sft"] if weight > 0 else ["sigmoid"],
            loss_weights=[1.0, weight] if weight > 0 else None,
            precompute_ref_log_probs=self.settings.precompute_reference,
        )

    @property
    def trainer_class(self) -> Any:
        from trl import DPOTrainer

        class PreparedDPOTrainer(DPOTrainer):  # type: ignore[misc]
            """Takes rows that are token ids already; TRL 1.16 knows that of SFT rows alone."""

            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

        return PreparedDPOTrainer


def train_dpo(
    data: str | Path,
    *,
    settings: DPOSettings | None = None,
    prompt: str | Path | None = None,
    **arguments: Unpack[RunArguments],
) -> TrainingResult:
    """Optimise a model on preference pairs; arguments, result and errors are those of `train_sft`, but for these.

    Args:
        data: a folder as `rprm data pairs` writes it, or a JSON Lines file of rows
            `{id, label, prompt, chosen, rejected}`.
        settings: hyperparameters; the paper's by default.
        prompt: the template that the rows were rendered with, where the data does not say.
        arguments: the model is usually the model folder of `train_sft`; it is the reference too.
    """
    return DPORun(data, settings or DPOSettings(), prompt, **arguments).work()
