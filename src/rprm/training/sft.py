"""Supervised fine-tuning: the cold start (R-PRM, section 3.1), with TRL's SFTTrainer.

The loss is the mean negative log-likelihood of the reply's tokens, the verdict and the end token included; the prompt
carries none. `LanguageRun` is what it shares with preference optimisation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from rprm.engines.loading import load_tokenizer
from rprm.training.handover import hand_over
from rprm.training.lifecycle import ROWS, RunArguments, TrainingResult, TrainingRun
from rprm.training.preflight import (
    PartCounts,
    check_batch,
    check_model_template,
    check_rows,
    encode_data,
    open_rows,
    row_lengths,
)
from rprm.training.rows import check_weights, end_token, open_data
from rprm.training.settings import SFTSettings, TrainingSettings

__all__ = ["LanguageRun", "SFTSettings", "train_sft"]


class LanguageRun(TrainingRun):
    """Training of a judge that writes analyses.

    Args:
        data, settings, prompt: see `train_sft`.
        arguments: see `RunArguments`.
    """

    #: What the model has been trained to do, for its card.
    does: str

    def __init__(
        self,
        data: str | Path,
        settings: TrainingSettings,
        prompt: str | Path | None = None,
        **arguments: Unpack[RunArguments],
    ) -> None:
        self.data = open_data(data, prompt)
        super().__init__(settings, {"input": self.data.name}, **arguments)
        self.deliberate = prompt is not None
        self.tokenizer = load_tokenizer(self.base.target, self.base.revision)
        self.end = end_token(self.tokenizer, self.base.stops, chat=self.data.template.chat)
        self.counts: dict[str, PartCounts] = {}

    @property
    def has_validation(self) -> bool:
        return self.data.validation is not None

    def identity(self) -> dict[str, Any]:
        template = self.data.template
        return {
            "input": self.data.digests(),
            "prompt": {"name": template.name, "digest": template.digest},
            "model": self.base.identity,
        }

    def check(self) -> None:
        check_weights(self.base)
        check_model_template(self.base, self.data.template, deliberate=self.deliberate)
        check_rows(self.data, self.kind)

    def prepare(self) -> None:
        self.callbacks.on_stage("tokenising")
        self.counts = encode_data(
            self.data,
            self.kind,
            self.folder / ROWS,
            tokenizer=self.tokenizer,
            end=self.end,
            max_length=self.settings.max_length,
            on_note=self.callbacks.on_note,
        )

    @property
    def common(self) -> dict[str, Any]:
        """Arguments of every trainer, and TRL's own of how the model is loaded."""
        settings = self.settings
        weights: dict[str, Any] = {
            # Full training keeps float32 weights: at these learning rates a step is less than bfloat16 can tell.
            # Under an adapter the base model does not change.
            "dtype": "bfloat16" if self.bf16 and settings.lora_rank else "float32",
            # Of a DPO's reference model too.
            "trust_remote_code": False,
            **self.base.source,
        }
        if settings.attention:
            weights["attn_implementation"] = settings.attention
        return super().common | {
            "activation_checkpointing": settings.gradient_checkpointing,
            "model_init_kwargs": weights,
        }

    @property
    @abstractmethod
    def trainer_class(self) -> Any:
        """TRL's trainer, which takes rows of token ids."""

    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        from peft import LoraConfig

        rows = open_rows(self.folder / ROWS, "train")
        trainer = self.trainer_class(
            model=self.base.target,
            args=config,
            train_dataset=rows,
            eval_dataset=open_rows(self.folder / ROWS, "validation"),
            # The trainer gives its tokenizer a padding token; the model's own stays as it is.
            processing_class=load_tokenizer(self.base.target, self.base.revision),
            callbacks=callbacks,
            # `all-linear` leaves the output head out.
            peft_config=LoraConfig(**self.settings.lora, task_type="CAUSAL_LM") if self.settings.lora_rank else None,
        )
        check_batch(trainer, rows)
        return trainer

    def lengths(self, trainer: Any) -> Sequence[int]:
        return row_lengths(trainer.train_dataset)

    def hand_over(self, checkpoint: Path, figures: dict[str, Any]) -> dict[str, Any]:
        summary = {**figures, "rows": {part: asdict(counts) for part, counts in self.counts.items()}}
        template, verdict = self.data.template, self.data.template.verdict
        data = {"files": self.data.name}
        for part, digest in self.data.digests().items():
            counts = self.counts[part]
            data[part] = (
                f"{counts.num_rows:,} rows ({counts.num_yes:,} {verdict.yes}, {counts.num_no:,} {verdict.no}), "
                f"{counts.num_tokens:,} tokens, {counts.num_too_long:,} rows left out as too long; {digest}"
            )
        data["prompt template"] = f"{template.name}, {template.digest} (`rprm_prompt.toml`)"
        card = self.card(
            summary,
            title=f"A reasoning-driven process reward model ({self.kind.upper()})",
            about=(
                "It reads a problem, the steps of a solution so far and the step at hand, writes an analysis, and ends "
                f"in a verdict ({verdict.yes} or {verdict.no}); the probability of {verdict.yes}, averaged over "
                f"sampled analyses, is the step's reward (arXiv 2503.21295). {self.does}"
            ),
            data=data,
            usage="rprm judge solutions.jsonl --model transformers:PATH_TO_THIS_FOLDER",
        )
        hand_over(
            checkpoint,
            self.folder,
            base=self.base,
            tokenizer=self.tokenizer,
            template=template,
            end=self.end,
            card=card,
            bf16=self.bf16,
            merge=self.settings.merge,
        )
        return summary


class SFTRun(LanguageRun):
    kind = "sft"
    does = "It was fine-tuned on analyses whose verdict agrees with the step's label."
    settings: SFTSettings

    def make_config(self) -> Any:
        from trl import SFTConfig

        return SFTConfig(
            **self.common,
            # Too long rows are left out before; only packing needs to know how long a pack may be.
            max_length=self.settings.max_length if self.settings.packing else None,
            packing=self.settings.packing,
            eval_packing=False,
            padding_free=self.settings.padding_free,
        )

    @property
    def trainer_class(self) -> Any:
        from trl import SFTTrainer

        return SFTTrainer


def train_sft(
    data: str | Path,
    *,
    settings: SFTSettings | None = None,
    prompt: str | Path | None = None,
    **arguments: Unpack[RunArguments],
) -> TrainingResult:
    """Fine-tune a model on analyses; or resume where an earlier session on the same folder was killed.

    Args:
        data: a folder as `rprm data cold-start` writes it, or a JSON Lines file of rows
            `{id, label, prompt, completion}`.
        settings: hyperparameters; the paper's by default.
        prompt: the template that the rows were rendered with, where the data does not say.
        arguments: `model`, `output`, `revision`, `options`, `callbacks`; see `RunArguments`.

    Returns:
        What it came to. A run that was complete already is not repeated.

    Raises:
        PromptError: the template does not fit the data, or the model carries another.
        RprmError: see `TrainingRun.work`.
    """
    return SFTRun(data, settings or SFTSettings(), prompt, **arguments).work()
