"""Supervised fine-tuning: the cold start (R-PRM, section 3.1), with TRL's SFTTrainer.

The loss is the mean negative log-likelihood of the reply's tokens, the verdict and the end token included; the prompt
carries none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rprm.errors import InputError
from rprm.training.metrics import TrainingCallbacks
from rprm.training.preflight import check_sft_batch
from rprm.training.settings import TrainingSettings
from rprm.training.stage import RunOptions, Stage, TrainingResult, train


@dataclass(frozen=True)
class SFTSettings(TrainingSettings):
    """How a model learns to write analyses. The defaults are the paper's where it states them; see `presets`.

    Attributes:
        packing: several rows in one sequence of up to `max_length` tokens, none of which sees another. A batch then
            counts sequences: there are fewer steps. Best with `attention` = flash_attention_2.
        padding_free: the rows of a batch in one sequence, without padding; losses are those of padded batches.
    """

    packing: bool = False
    padding_free: bool = False


def train_sft(
    data: str | Path,
    *,
    model: str,
    output: str | Path,
    settings: SFTSettings | None = None,
    prompt: str | Path | None = None,
    revision: str | None = None,
    options: RunOptions | None = None,
    callbacks: TrainingCallbacks | None = None,
) -> TrainingResult:
    """Fine-tune a model on analyses; or go on where an earlier session on the same folder was killed.

    Args:
        data: a folder as `rprm data cold-start` writes it, or a JSON Lines file of rows
            `{id, label, prompt, completion}`.
        model: a folder or hub id of a causal language model.
        output: the run folder; `model/` in it is the result. See `stage` for the rest.
        settings: hyperparameters; the paper's by default.
        prompt: the template that the rows were rendered with, where the data does not say.
        revision: of a hub model.
        options: what no result depends on.
        callbacks: told of progress.

    Returns:
        What it came to. A run that was complete already is not repeated.

    Raises:
        InputError: the data or a setting cannot be used.
        PromptError: the template does not fit the data, or the model carries another.
        EngineError: the model cannot be loaded.
        SettingsChanged: the folder was begun with other settings, data, or another model.
        RunError: the folder cannot be used, or memory does not suffice.
    """
    chosen = settings or SFTSettings()
    if chosen.packing and chosen.padding_free:
        raise InputError("packing is free of padding already; leave padding_free out")

    def make_config(common: dict[str, Any]) -> Any:
        from trl import SFTConfig

        return SFTConfig(
            **common,
            # Too long rows are left out before; only packing needs to know how long a pack may be.
            max_length=chosen.max_length if chosen.packing else None,
            packing=chosen.packing,
            eval_packing=False,
            padding_free=chosen.padding_free,
        )

    def trainer_class() -> Any:
        from trl import SFTTrainer

        return SFTTrainer

    stage = Stage(
        kind="sft",
        settings=chosen,
        make_config=make_config,
        trainer_class=trainer_class,
        check_batch=check_sft_batch,
        does="It was fine-tuned on analyses whose verdict agrees with the step's label.",
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
