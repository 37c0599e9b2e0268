"""The baseline classifier: a discriminative PRM trained on labelled steps, in the layout of Qwen2.5-Math-PRM.

The loss is the cross-entropy of two classes, wrong and correct, at the tag of each labelled step; each step is trained
on once (see `step_sequences`). The threshold is chosen on held-out problems and stored with the model, which
`classifier:OUTPUT/model` loads.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from rprm.data.splits import is_held_out
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.engines.loading import load_tokenizer
from rprm.errors import EngineError, InputError
from rprm.reading import Rejected
from rprm.records import LabelledStep
from rprm.rewarders.classifier import SETTINGS_FILE, ClassifierSettings, make_layout, read_settings
from rprm.runs import LineWriter
from rprm.training.handover import CARD, MODEL, whole_folder
from rprm.training.lifecycle import RunArguments, TrainingResult, TrainingRun
from rprm.training.rows import MAX_SHARE_TOO_LONG, BaseModel
from rprm.training.settings import ClassifierTraining
from rprm.training.step_sequences import (
    IGNORED,
    MergeCounts,
    TokenSequence,
    accuracies,
    best_threshold,
    collate,
    encode_sequences,
    merge_steps,
)

if TYPE_CHECKING:
    from rprm.rewarders.network import StepNetwork

__all__ = ["ClassifierTraining", "train_classifier"]


class ClassifierRun(TrainingRun):
    """Training of a classifier on labelled steps; see `train_classifier`."""

    kind = "classifier"
    one_device = True
    settings: ClassifierTraining

    def __init__(
        self, steps: str, settings: ClassifierTraining, validation: str | None, **arguments: Unpack[RunArguments]
    ) -> None:
        super().__init__(settings, {"steps": steps}, **arguments)
        self.steps, self.validation = steps, validation
        #: Sequences of each part, `train` and maybe `validation`, and what became of its labelled steps.
        self.sequences: dict[str, list[TokenSequence]] | None = None
        self.counts: dict[str, MergeCounts] = {}
        self.num_rejected = self.num_shared = 0
        self.layout_settings = read_settings(self.base.target, self.base.revision) or ClassifierSettings("qwen")
        if self.layout_settings.layout != "qwen":
            raise EngineError(
                f"{self.base.target} is a classifier in the {self.layout_settings.layout} layout; begin with one in "
                "the qwen layout, or with a language model"
            )
        self.tokenizer, is_new = tokenizer_with_tag(self.base, self.layout_settings.step_tag)
        self.layout = make_layout(self.layout_settings, self.tokenizer, self.base.target)
        tag_id = int(self.tokenizer.convert_tokens_to_ids(self.layout_settings.step_tag))
        self.new_tag_id = tag_id if is_new else None

    @property
    def has_validation(self) -> bool:
        if self.sequences is None:
            return self.validation is not None or self.settings.validation_share > 0
        return bool(self.sequences.get("validation"))

    def identity(self) -> dict[str, Any]:
        return {
            "input": steps_source(self.steps).inspect().digest,
            "validation": None if self.validation is None else steps_source(self.validation).inspect().digest,
            "model": self.base.identity,
            "layout": "qwen",
        }

    # --- rows ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read, split, merge and encode.

        Raises:
            InputError: nothing to train on, labels of one class, or too many steps too long.
        """
        writer = LineWriter(self.run.rejected_path, fresh=True)
        try:
            rows = self._read(self.steps, writer)
            if self.validation is None:
                share, seed = self.settings.validation_share, self.settings.split_seed
                held_out = {_key(row) for row in rows if is_held_out(row.problem, share, seed)}
                validation_rows = [row for row in rows if _key(row) in held_out]
            else:
                validation_rows = self._read(self.validation, writer)
                held_out = {_key(row) for row in validation_rows}
                self.num_shared = sum(_key(row) in held_out for row in rows)
        finally:
            writer.close()
        if self.num_shared:
            self.callbacks.on_note(
                f"{self.num_shared:,} of {len(rows):,} steps are of problems in {self.validation}: not trained on"
            )
        if self.num_rejected:
            self.callbacks.on_note(f"{self.num_rejected:,} rows cannot be used: {self.run.rejected_path}")
        train_rows = [row for row in rows if _key(row) not in held_out]
        if not train_rows:
            raise InputError(
                f"{self.steps} has no labelled step to train on ({len(rows):,} rows, all of held-out problems)"
            )
        self.callbacks.on_stage("tokenising")
        self.sequences = {"train": self._encode(train_rows, "train", self.steps)}
        if validation_rows:
            self.sequences["validation"] = self._encode(validation_rows, "validation", self.validation or self.steps)
        counts = self.counts["train"]
        if not counts.num_correct or not counts.num_wrong:
            only = "correct" if counts.num_correct else "wrong"
            raise InputError(
                f"{self.steps}: all {counts.num_trained:,} steps to train on are labelled {only}; a classifier trained "
                "on them would always say so; add steps of the other label"
            )

    def _read(self, source: str, writer: LineWriter) -> list[LabelledStep]:
        rows = []
        for row in read_labelled_steps(steps_source(source)):
            if isinstance(row, Rejected):
                writer.write(row.model_dump_json())
                self.num_rejected += 1
            else:
                rows.append(row)
        if not rows:
            raise InputError(f"{source} has no labelled step")
        return rows

    def _encode(self, rows: list[LabelledStep], part: str, source: str) -> list[TokenSequence]:
        sequences, counts = merge_steps(rows)
        encoded = encode_sequences(sequences, self.layout, counts, max_length=self.settings.max_length)
        self.counts[part] = counts
        total = counts.num_trained + counts.num_too_long
        if counts.num_too_long > MAX_SHARE_TOO_LONG * total:
            raise InputError(
                f"{source}: {counts.num_too_long:,} of {total:,} labelled steps stand beyond max_length "
                f"{self.settings.max_length:,}, more than {MAX_SHARE_TOO_LONG:.0%}; raise --max-length (steps are "
                "never cut), or make shorter data"
            )
        for number, what in (
            (counts.num_too_long, f"stand beyond {self.settings.max_length:,} tokens and are left out"),
            (counts.num_contradictory, "are labelled correct by one row and wrong by another, and are left out"),
        ):
            if number:
                self.callbacks.on_note(f"{source}: {number:,} steps {what}")
        return encoded

    # --- trainer ---------------------------------------------------------------------------------------------------

    def make_config(self) -> Any:
        from transformers import TrainingArguments

        return TrainingArguments(
            **self.common, prediction_loss_only=True, remove_unused_columns=False, label_names=["labels"]
        )

    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        import torch
        from peft import get_peft_model
        from torch.nn.functional import cross_entropy
        from transformers import Trainer, set_seed

        assert self.sequences is not None
        set_seed(self.settings.seed)
        # Full training keeps float32 weights: at these learning rates a step is less than bfloat16 can tell. Under an
        # adapter the base model does not change.
        network: Any = self._network(bf16=self.bf16 and self.settings.lora_rank is not None)
        if self.settings.gradient_checkpointing:
            network.backbone.activation_checkpointing_enable()
        if self.settings.lora_rank:
            network = get_peft_model(network, self._adapter(network))
        weights = balancing_weights(self.counts["train"]) if self.settings.balance else None

        class StepTrainer(Trainer):  # type: ignore[misc]
            def compute_loss(
                self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                labels = inputs["labels"]
                wanted = labels != IGNORED
                logits = model(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], wanted=wanted
                )  # [steps, 2]
                weight = None if weights is None else torch.tensor(weights, device=logits.device)
                total = cross_entropy(logits, labels[wanted], weight=weight, reduction="sum")
                # Over the labelled steps of the whole optimizer step, not of this part of it: each counts the same.
                loss = total / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)
                return (loss, {"logits": logits}) if return_outputs else loss

        if not self.has_validation:
            # Of the problems, none happened to be held out.
            config.eval_strategy = "no"
        trainer = StepTrainer(
            model=network,
            args=config,
            data_collator=collate,
            train_dataset=self.sequences["train"],
            eval_dataset=self.sequences.get("validation") or None,
            callbacks=callbacks,
        )
        # Asks the trainer for `num_items_in_batch`, and not to divide by the number of accumulated batches.
        trainer.model_accepts_loss_kwargs = True
        return trainer

    def lengths(self, trainer: Any) -> Sequence[int]:
        return [len(sequence.ids) for sequence in trainer.train_dataset]

    def _network(self, *, bf16: bool) -> StepNetwork:
        """The base model's backbone with a head of its own, or, of a classifier, with the head it has."""
        import torch

        from rprm.rewarders.network import base_network

        network = base_network(
            self.base.target,
            self.layout.head,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            revision=self.base.revision,
            attention=self.settings.attention,
        )
        if self.new_tag_id is not None:
            add_embedding(network.backbone, len(self.tokenizer), self.new_tag_id)
        return network

    def _adapter(self, network: StepNetwork) -> Any:
        """A LoRA adapter; the head and the embedding of a new tag are trained whole."""
        import torch
        from peft import LoraConfig

        lora, modules = self.settings.lora, dict(network.backbone.named_modules())
        if lora["target_modules"] == "all-linear":
            lora["target_modules"] = sorted(
                {name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
            )
        embeddings = network.backbone.get_input_embeddings()
        embedding = next(name for name, module in modules.items() if module is embeddings)
        return LoraConfig(
            **lora,
            modules_to_save=["score"],
            trainable_token_indices=None if self.new_tag_id is None else {embedding: [self.new_tag_id]},
        )

    # --- handing over ----------------------------------------------------------------------------------------------

    def hand_over(self, checkpoint: Path, figures: dict[str, Any]) -> dict[str, Any]:
        assert self.sequences is not None
        network = self._trained(checkpoint)
        held_out = self.sequences.get("validation", [])
        rewards = network_rewards(network, held_out, self.settings.device_batch_size, cpu=self.use_cpu)
        labels = [bool(label) for sequence in held_out for label in sequence.classes]
        threshold = best_threshold(rewards, labels)
        at = (accuracies(rewards, labels, value) for value in dict.fromkeys((threshold, 0.5)))
        summary = {
            **figures,
            "threshold": threshold,
            "validation": [{**asdict(found), "f1": found.f1} for found in at] if rewards else [],
            "rows": {part: asdict(counts) for part, counts in self.counts.items()},
            "num_rejected": self.num_rejected,
            "num_left_out_as_validation": self.num_shared,
        }
        self._write(network, replace(self.layout_settings, threshold=threshold), summary)
        return summary

    def _trained(self, checkpoint: Path) -> StepNetwork:
        """The network of a checkpoint, in the dtype that it is stored in.

        An adapter is merged in float32: a small change survives rounding once, not twice.
        """
        import torch
        from safetensors.torch import load_file

        network = self._network(bf16=False)
        if self.settings.lora_rank:
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, str(checkpoint)).merge_and_unload()
        else:
            network.load_state_dict(load_file(checkpoint / "model.safetensors"))
        network.backbone.to(torch.bfloat16 if self.bf16 else torch.float32)
        return network.eval()

    def _write(self, network: StepNetwork, settings: ClassifierSettings, summary: dict[str, Any]) -> None:
        from huggingface_hub import save_torch_state_dict

        tensors = {f"model.{name}": tensor for name, tensor in network.backbone.state_dict().items()}
        tensors |= {f"score.{name}": tensor for name, tensor in network.score.state_dict().items()}
        config = network.backbone.config
        if config.model_type == "qwen2":
            # The name under which vLLM, too, knows this network.
            config.architectures = ["Qwen2ForProcessRewardModel"]
        config.dtype = str(network.backbone.dtype).removeprefix("torch.")
        config.use_cache = True
        with whole_folder(self.folder / MODEL) as folder:
            save_torch_state_dict(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder
            )
            config.save_pretrained(folder)
            for file in folder.glob("*.safetensors"):
                # Written for the owner alone; readable by whom the rest of the folder is.
                shutil.copymode(folder / "config.json", file)
            self.tokenizer.save_pretrained(folder)
            (folder / SETTINGS_FILE).write_text(settings.to_json(base=self.base.identity), encoding="utf-8")
            (folder / CARD).write_text(self._card_text(summary), encoding="utf-8")

    def _card_text(self, summary: dict[str, Any]) -> str:
        accuracy = {
            f"validation steps at {found['threshold']:.4f}": ", ".join(
                f"{name} {found[name]:.4f}" for name in ("wrong", "correct", "f1") if found[name] is not None
            )
            for found in summary["validation"]
        }
        data = {
            part: f"{counts.num_correct:,} correct and {counts.num_wrong:,} wrong steps in "
            f"{counts.num_sequences:,} sequences, {counts.num_tokens:,} tokens"
            for part, counts in self.counts.items()
        }
        return self.card(
            summary,
            title="A discriminative process reward model",
            about=(
                "It reads a problem and a solution in steps, and rewards every step in one forward pass: the second "
                f"class of a two-way head at the tag `{self.layout_settings.step_tag}` after each step, as in "
                "Qwen2.5-Math-PRM."
            ),
            data=data,
            usage="rprm judge solutions.jsonl --model classifier:PATH_TO_THIS_FOLDER",
            further=accuracy,
        ).render()


def train_classifier(
    steps: str | Path,
    *,
    settings: ClassifierTraining | None = None,
    validation: str | Path | None = None,
    **arguments: Unpack[RunArguments],
) -> TrainingResult:
    """Train a classifier on labelled steps; or resume where an earlier session on the same folder was killed.

    Args:
        steps: labelled steps: a run folder of `rprm data steps`, a file, or a hub data set.
        settings: hyperparameters.
        validation: labelled steps to evaluate on and to choose the threshold on; their problems are not trained on. By
            default a share of the problems is held out.
        arguments: see `RunArguments`. The model is any causal language model, or a classifier in the qwen layout.

    Returns:
        What it came to. A run that was complete already is not repeated.

    Raises:
        RprmError: see `TrainingRun.work`.
    """
    held_out = None if validation is None else str(validation)
    return ClassifierRun(str(steps), settings or ClassifierTraining(), held_out, **arguments).work()


def _key(row: LabelledStep) -> str:
    """What a problem is known by; case and spacing do not matter, as in `is_held_out`."""
    return " ".join(row.problem.casefold().split())


# --- network ------------------------------------------------------------------------------------------------------


def tokenizer_with_tag(base: BaseModel, tag: str) -> tuple[Any, bool]:
    """The base model's tokenizer with the tag as a special token, and whether it is new to it."""
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(base.target, base.revision)
    is_new = tag not in tokenizer.get_vocab()
    if is_new:
        tokenizer.add_tokens([AddedToken(tag, special=True, normalized=False)], special_tokens=True)
    return tokenizer, is_new


def add_embedding(backbone: Any, num_tokens: int, tag_id: int) -> None:
    """Make room for the tag, and begin with the mean of all embeddings."""
    import torch

    table = backbone.get_input_embeddings().weight
    mean = table.detach().float().mean(0).to(table.dtype)
    if num_tokens > table.shape[0]:
        backbone.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        backbone.get_input_embeddings().weight[tag_id] = mean


def balancing_weights(counts: MergeCounts) -> tuple[float, float]:
    """Weights of wrong and correct: n / (2 n_class), so that a class's weights sum to half of n."""
    total = counts.num_trained
    return total / (2 * counts.num_wrong), total / (2 * counts.num_correct)


def network_rewards(
    network: StepNetwork, sequences: Sequence[TokenSequence], batch_size: int, *, cpu: bool = True
) -> list[float]:
    """Rewards of the labelled steps of sequences, in order."""
    import torch

    device = "cpu" if cpu else "cuda" if torch.cuda.is_available() else "mps"
    network.to(device).eval()
    # By length, so that little is padding; rewards go back to their places.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    found: dict[int, list[float]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in collate([sequences[i] for i in chosen]).items()}
            logits = network(batch["input_ids"], batch["attention_mask"], batch["labels"] != IGNORED)
            rewards = iter(logits.double().softmax(-1)[:, 1].tolist())
            for index in chosen:
                found[index] = [next(rewards) for _ in sequences[index].positions]
    return [reward for index in range(len(sequences)) for reward in found[index]]
