"""Direct preference optimisation (R-PRM, section 3.2), with TRL's DPOTrainer.

Of two analyses of one step, the chosen one's verdict agrees with the label and the rejected one's does not. The loss is
-log sigmoid(beta * ((chosen - reference chosen) - (rejected - reference rejected))) over the replies'
log-probabilities, where the reference is the model that training began from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.errors import InputError
from rprm.training.metrics import TrainingCallbacks
from rprm.training.preflight import check_dpo_batch
from rprm.training.settings import TrainingSettings
from rprm.training.stage import RunOptions, Stage, TrainingResult, train


@dataclass(frozen=True)
class DPOSettings(TrainingSettings):
    """How a model learns which analyses to prefer. Defaults as for `SFTSettings`, but for the learning rate.

    Attributes:
        beta: how strongly the model is held to the reference.
        sft_weight: weight of the chosen reply's mean negative log-likelihood, added to the loss; 0 for none.
        precompute_reference: compute the reference's log-probabilities once, before training, and keep no second model
            in memory.
    """

    learning_rate: float = 5e-7
    device_batch_size: int = 2
    beta: float = 0.1
    sft_weight: float = 0.0
    precompute_reference: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0 or self.sft_weight < 0:
            raise InputError(f"beta {self.beta} must be above 0 and sft_weight {self.sft_weight} at least 0")


def train_dpo(
    data: str | Path,
    *,
    model: str,
    output: str | Path,
    settings: DPOSettings | None = None,
    prompt: str | Path | None = None,
    revision: str | None = None,
    options: RunOptions | None = None,
    callbacks: TrainingCallbacks | None = None,
) -> TrainingResult:
    """Optimise a model on preference pairs; or go on where an earlier session on the same folder was killed.

    Args:
        data: a folder as `rprm data pairs` writes it, or a JSON Lines file of rows
            `{id, label, prompt, chosen, rejected}`.
        model: usually the model folder of `train_sft`; it is the reference too.
        output: the run folder; `model/` in it is the result.
        settings: hyperparameters; the paper's by default.
        prompt: the template that the rows were rendered with, where the data does not say.
        revision: of a hub model.
        options: what no result depends on.
        callbacks: told of progress.

    Returns:
        What it came to. A run that was complete already is not repeated.

    Raises:
        The same as `train_sft`.
    """
    chosen = settings or DPOSettings()

    def make_config(common: dict[str, Any]) -> Any:
        from trl import DPOConfig

        weighted = chosen.sft_weight > 0
        return DPOConfig(
            **common,
            max_length=None,
            beta=chosen.beta,
            loss_type=["sigmoid", "sft"] if weighted else ["sigmoid"],
            loss_weights=[1.0, chosen.sft_weight] if weighted else None,
            precompute_ref_log_probs=chosen.precompute_reference,
        )

    def trainer_class() -> Any:
        from trl import DPOTrainer

        class PreparedDPOTrainer(DPOTrainer):  # type: ignore[misc]
            """Takes rows that are token ids already; TRL 1.16 knows that of SFT rows alone."""

            def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
                return dataset

        return PreparedDPOTrainer

    stage = Stage(
        kind="dpo",
        settings=chosen,
        make_config=make_config,
        trainer_class=trainer_class,
        check_batch=check_dpo_batch,
        does="It was trained to prefer analyses whose verdict agrees with the step's label over such as disagree.",
    )
    return train(
        stage,
        data,
        model=model,
        output=output,
        prompt=prompt,
        revision=revision,
        options=options or RunOptions(),
        callbacks=callbacks or TrainingCallbacks(),
    )
