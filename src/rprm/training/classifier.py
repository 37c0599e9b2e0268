"""The rival: a discriminative PRM trained on labelled steps, in the layout of Qwen2.5-Math-PRM.

The loss is the cross-entropy of two classes, wrong and correct, at the tag of each labelled step; each step is trained
on once (see `step_sequences`). The threshold is chosen on held-out problems and stored with the model.

OUTPUT/
  manifest.json     settings, sessions (as every run folder)
  rejected.jsonl    rows of the input that cannot be used
  checkpoints/      the trainer's; gone when the run is complete, unless they are to be kept
  metrics.jsonl     what was logged and evaluated
  model/            backbone and head, which `classifier:OUTPUT/model` loads
  summary.json      counts and figures, written at the end
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rprm.data.splits import is_held_out
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.errors import EngineError, InputError, RunError
from rprm.reading import Rejected
from rprm.records import LabelledStep
from rprm.rewarders.classifier import SETTINGS_FILE, ClassifierSettings, make_layout, read_settings
from rprm.runs import MANIFEST, SUMMARY, LineWriter, Run, versions
from rprm.training.checkpoints import best_checkpoint, last_checkpoint
from rprm.training.handover import CARD, LIMITS, MODEL, Card, push
from rprm.training.metrics import (
    METRICS,
    TrainingCallbacks,
    last_value,
    metrics_callback,
    read_metrics,
    truncate_metrics,
)
from rprm.training.precision import computes_in_bf16, trains_on_cpu
from rprm.training.rows import BaseModel, find_model
from rprm.training.settings import Precision, TrainingSettings
from rprm.training.stage import CHECKPOINTS, RunOptions, TrainingResult
from rprm.training.step_network import (
    adapted,
    add_embedding,
    balancing_weights,
    make_trainer,
    network_rewards,
    tokenizer_with_tag,
)
from rprm.training.step_sequences import MergeCounts, TokenSequence, collate, encode_sequences, merge_steps
from rprm.training.threshold import accuracies, best_threshold

if TYPE_CHECKING:
    from rprm.rewarders.network import StepNetwork

#: The largest share of labelled steps that may stand beyond `max_length`: they are left out and counted.
MAX_SHARE_TOO_LONG = 0.05


@dataclass(frozen=True)
class ClassifierTraining(TrainingSettings):
    """How a classifier is trained. The defaults are ours.

    A batch counts sequences, `max_length` the tokens up to a labelled step's tag, and an adapter is always merged.

    Attributes:
        balance: weight the classes so that both have the same total weight, whatever their numbers.
        validation_share: of the problems, held out where no validation steps are given.
        split_seed: holds out other problems; 0 holds out those that the other stages do.
    """

    learning_rate: float = 1e-5
    max_length: int = 2048
    balance: bool = False
    validation_share: float = 0.05
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.merge:
            raise InputError("a classifier's adapter is always merged: leave out merge=False (--no-merge)")
        is_held_out("", self.validation_share)


def train_classifier(
    steps: str | Path,
    *,
    model: str,
    output: str | Path,
    settings: ClassifierTraining | None = None,
    validation: str | Path | None = None,
    revision: str | None = None,
    options: RunOptions | None = None,
    callbacks: TrainingCallbacks | None = None,
) -> TrainingResult:
    """Train a classifier on labelled steps; or go on where an earlier session on the same folder was killed.

    Args:
        steps: labelled steps: a run folder of `rprm data steps`, a file, or a hub data set.
        model: a folder or hub id of any causal language model, or of a classifier in the qwen layout to train on.
        output: the run folder; `model/` in it is the result.
        settings: hyperparameters.
        validation: labelled steps to evaluate on and to choose the threshold on; their problems are not trained on. By
            default a share of the problems is held out.
        revision: of a hub model.
        options: what no result depends on.
        callbacks: told of progress.

    Returns:
        What it came to. A run that was complete already is not repeated.

    Raises:
        InputError: the steps or a setting cannot be used.
        EngineError: the model cannot be loaded.
        SettingsChanged: the folder was begun with other settings, data, or another model.
        RunError: the folder cannot be used, or memory does not suffice.
    """
    callbacks = callbacks or TrainingCallbacks()
    callbacks.on_stage("loading libraries")
    bf16, use_cpu = _device((settings or ClassifierTraining()).precision)
    training = _Training(
        settings or ClassifierTraining(),
        Path(output),
        find_model(model, revision),
        options or RunOptions(),
        callbacks,
        bf16=bf16,
        use_cpu=use_cpu,
    )
    return training.work(str(steps), None if validation is None else str(validation))


@dataclass
class _Part:
    """Sequences of a part, and what it came to."""

    sequences: list[TokenSequence]
    counts: MergeCounts


class _Training:
    """One session on a run folder."""

    def __init__(
        self,
        settings: ClassifierTraining,
        folder: Path,
        base: BaseModel,
        options: RunOptions,
        callbacks: TrainingCallbacks,
        *,
        bf16: bool,
        use_cpu: bool,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.base = base
        self.options = options
        self.callbacks = callbacks
        self.bf16 = bf16
        self.use_cpu = use_cpu
        self.started = time.monotonic()
        self.num_rejected = 0
        self.num_shared = 0
        self.layout_settings = read_settings(base.target, base.revision) or ClassifierSettings("qwen")
        if self.layout_settings.layout != "qwen":
            raise EngineError(
                f"{base.target} is a classifier in the {self.layout_settings.layout} layout; begin with one in the "
                "qwen layout, or with a language model"
            )
        self.tokenizer, self.has_new_tag = tokenizer_with_tag(base, self.layout_settings.step_tag)
        self.layout = make_layout(self.layout_settings, self.tokenizer, base.target)

    def work(self, steps: str, validation: str | None) -> TrainingResult:
        if self.settings.max_length > (self.base.context_length or self.settings.max_length):
            raise InputError(
                f"max_length is {self.settings.max_length}; the context length of {self.base.target} is "
                f"{self.base.context_length}: lower --max-length"
            )
        self.callbacks.on_stage("checking the data")
        is_new = not (self.folder / MANIFEST).exists()
        resolved = {
            "input": steps_source(steps).inspect().digest,
            "validation": None if validation is None else steps_source(validation).inspect().digest,
            "model": self.base.identity,
            "layout": "qwen",
            **asdict(self.settings),
            "precision": "bf16" if self.bf16 else "fp32",
        }
        session = {"model": self.base.target, "steps": steps, "versions": versions()}
        resumed_from = None
        with Run(self.folder, stage="train classifier", settings=resolved, session=session) as run:
            was_complete = (self.folder / SUMMARY).exists()
            if was_complete:
                self.callbacks.on_note(f"{self.folder} is complete already; nothing is trained again")
                self._complete(run, json.loads((self.folder / SUMMARY).read_bytes()))
            else:
                try:
                    parts = self._parts(run, steps, validation)
                except InputError:
                    if is_new:
                        # Nothing was begun: other settings may be tried in the same folder.
                        (self.folder / MANIFEST).unlink()
                        run.rejected_path.unlink(missing_ok=True)
                    raise
                try:
                    resumed_from = self._train(parts)
                    self._complete(run, self._finish(parts, steps))
                except BaseException as error:
                    run.note({**self._session(), "stopped_by": type(error).__name__})
                    raise
        if self.options.push_to_hub is not None:
            push(
                self.folder / MODEL,
                self.options.push_to_hub,
                private=self.options.private,
                on_note=self.callbacks.on_note,
            )
        summary = json.loads((self.folder / SUMMARY).read_bytes())
        return TrainingResult(
            self.folder, self.folder / MODEL, summary["num_steps"], summary, resumed_from, was_complete
        )

    # --- before -------------------------------------------------------------------------------------------------

    def _parts(self, run: Run, steps: str, validation: str | None) -> dict[str, _Part]:
        """Read, split, merge and encode.

        Raises:
            InputError: nothing to train on, labels of one class, or too many steps too long.
        """
        writer = LineWriter(run.rejected_path, fresh=True)
        try:
            rows = self._read(steps, writer)
            if validation is None:
                share, seed = self.settings.validation_share, self.settings.split_seed
                held_out = {_key(row) for row in rows if is_held_out(row.problem, share, seed)}
                validation_rows = [row for row in rows if _key(row) in held_out]
            else:
                validation_rows = self._read(validation, writer)
                held_out = {_key(row) for row in validation_rows}
                self.num_shared = sum(_key(row) in held_out for row in rows)
                if self.num_shared:
                    self.callbacks.on_note(
                        f"{self.num_shared:,} of {len(rows):,} steps are of problems in {validation}: not trained on"
                    )
        finally:
            writer.close()
        if self.num_rejected:
            self.callbacks.on_note(f"{self.num_rejected:,} rows cannot be used: {run.rejected_path}")
        train_rows = [row for row in rows if _key(row) not in held_out]
        if not train_rows:
            raise InputError(f"{steps} has no labelled step to train on ({len(rows):,} rows, all of held-out problems)")
        self.callbacks.on_stage("tokenising")
        parts = {"train": self._encode(train_rows, steps)}
        if validation_rows:
            parts["validation"] = self._encode(validation_rows, validation or steps)
        counts = parts["train"].counts
        if not counts.num_correct or not counts.num_wrong:
            only = "correct" if counts.num_correct else "wrong"
            raise InputError(
                f"{steps}: all {counts.num_trained:,} steps to train on are labelled {only}; a classifier trained on "
                "them would always say so; add steps of the other label"
            )
        if self.settings.patience is not None and not ("validation" in parts and parts["validation"].sequences):
            raise InputError("patience needs validation steps: name some with --validation, or hold out a larger share")
        return parts

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

    def _encode(self, rows: list[LabelledStep], source: str) -> _Part:
        sequences, counts = merge_steps(rows)
        part = _Part(encode_sequences(sequences, self.layout, counts, max_length=self.settings.max_length), counts)
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
        return part

    # --- training -----------------------------------------------------------------------------------------------

    def _train(self, parts: dict[str, _Part]) -> int | None:
        """Train to the last step. Returns the step that this session went on from, None where it began anew."""
        import torch

        checkpoint = last_checkpoint(self.folder / CHECKPOINTS)
        truncate_metrics(self.folder / METRICS, checkpoint.step if checkpoint else 0)
        for torn in sorted((self.folder / CHECKPOINTS).glob("torn-*")):
            self.callbacks.on_note(f"set aside: {torn}, which was not written to its end")
        if checkpoint is not None:
            self.callbacks.on_note(f"going on from step {checkpoint.step:,}")
            if checkpoint.stopped:
                return checkpoint.step
        self.callbacks.on_stage("loading the model")
        trainer = self._trainer(parts)
        self.callbacks.on_stage("training")
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint is not None else None)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"the device's memory does not suffice: {str(error).splitlines()[0]}; lower --device-batch-size, or "
                "use --lora-rank; both are settings: name a new folder"
            ) from error
        return checkpoint.step if checkpoint is not None else None

    def _trainer(self, parts: dict[str, _Part]) -> Any:
        from transformers import EarlyStoppingCallback, TrainingArguments, set_seed
        from transformers.trainer_callback import PrinterCallback

        from rprm.training.batches import in_length_batches

        settings = self.settings
        set_seed(settings.seed)
        # Full training keeps float32 weights: at these learning rates a step is less than bfloat16 can tell. Under an
        # adapter the base model does not change.
        network = self._network(bf16=self.bf16 and settings.lora_rank is not None)
        if settings.gradient_checkpointing:
            network.backbone.activation_checkpointing_enable()
        held_out = parts["validation"].sequences if "validation" in parts else []
        arguments = TrainingArguments(
            output_dir=str(self.folder / CHECKPOINTS),
            per_device_train_batch_size=settings.device_batch_size,
            per_device_eval_batch_size=settings.device_batch_size,
            gradient_accumulation_steps=settings.accumulation(1),
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            # Below 1 it is a share of all steps.
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            num_train_epochs=settings.num_epochs,
            max_steps=settings.max_steps or -1,
            bf16=self.bf16,
            use_cpu=self.use_cpu,
            seed=settings.seed,
            eval_strategy="steps" if held_out else "no",
            eval_steps=settings.eval_steps,
            save_strategy="steps",
            save_steps=settings.save_steps,
            save_total_limit=self.options.num_checkpoints,
            logging_steps=settings.logging_steps,
            restore_callback_states_from_checkpoint=True,
            metric_for_best_model="eval_loss" if held_out else None,
            greater_is_better=False,
            prediction_loss_only=True,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to=self.options.report_to,
            disable_tqdm=True,
        )
        callbacks = [metrics_callback(self.folder / METRICS, self.callbacks, save_evaluated=settings.keep_best)]
        if settings.patience is not None:
            callbacks.append(EarlyStoppingCallback(settings.patience))
        new_tag = self._tag_id if self.has_new_tag else None
        trainer = make_trainer(
            model=adapted(network, settings, new_tag) if settings.lora_rank else network,
            args=arguments,
            data_collator=collate,
            train_dataset=parts["train"].sequences,
            eval_dataset=held_out or None,
            callbacks=callbacks,
            class_weights=balancing_weights(parts["train"].counts) if settings.balance else None,
        )
        # It prints to standard output, which is not ours to fill.
        trainer.remove_callback(PrinterCallback)
        if settings.group_by_length:
            in_length_batches(trainer, [len(sequence.ids) for sequence in parts["train"].sequences])
        return trainer

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
        if self.has_new_tag:
            add_embedding(network.backbone, len(self.tokenizer), self._tag_id)
        return network

    @property
    def _tag_id(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(self.layout_settings.step_tag))

    # --- after --------------------------------------------------------------------------------------------------

    def _finish(self, parts: dict[str, _Part], steps: str) -> dict[str, Any]:
        """Make the model folder from a checkpoint, and measure it."""
        last = last_checkpoint(self.folder / CHECKPOINTS)
        if last is None or not last.stopped:
            raise RunError(
                f"{self.folder / CHECKPOINTS} has no checkpoint of the last step; give the same command again"
            )
        self.callbacks.on_stage("handing over the model")
        chosen = best_checkpoint(last) if self.settings.keep_best else last
        network = self._trained(chosen.path)
        if (held_out := parts.get("validation")) is not None and held_out.sequences:
            rewards = network_rewards(network, held_out.sequences, self.settings.device_batch_size, cpu=self.use_cpu)
            labels = [bool(label) for sequence in held_out.sequences for label in sequence.classes]
        else:
            rewards, labels = [], []
        threshold = best_threshold(rewards, labels)
        state = json.loads((last.path / "trainer_state.json").read_bytes())
        rows = read_metrics(self.folder / METRICS)
        at_chosen = [row for row in rows if row["step"] == chosen.step]
        summary: dict[str, Any] = {
            "num_steps": last.step,
            "num_epochs": round(state["epoch"], 4),
            "handed_over_step": chosen.step,
            "stopped_early": last.step < state["max_steps"],
            "loss": last_value(rows, "loss"),
            "eval_loss": last_value(at_chosen, "eval_loss"),
            "threshold": threshold,
            "validation": [
                {**asdict(found), "f1": found.f1}
                for found in (accuracies(rewards, labels, value) for value in dict.fromkeys((threshold, 0.5)))
            ]
            if rewards
            else [],
            "rows": {name: asdict(part.counts) for name, part in parts.items()},
            "num_rejected": self.num_rejected,
            "num_left_out_as_validation": self.num_shared,
        }
        self._hand_over(network, replace(self.layout_settings, threshold=threshold), summary)
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

    def _hand_over(self, network: StepNetwork, settings: ClassifierSettings, summary: dict[str, Any]) -> None:
        """Write `model/` in a folder beside it, and rename that when it is whole."""
        from huggingface_hub import save_torch_state_dict

        folder, partial = self.folder / MODEL, self.folder / f"{MODEL}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tensors = {f"model.{name}": tensor for name, tensor in network.backbone.state_dict().items()}
        tensors |= {f"score.{name}": tensor for name, tensor in network.score.state_dict().items()}
        save_torch_state_dict({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
        config = network.backbone.config
        if config.model_type == "qwen2":
            # The name under which vLLM, too, knows this network.
            config.architectures = ["Qwen2ForProcessRewardModel"]
        config.dtype = str(network.backbone.dtype).removeprefix("torch.")
        config.use_cache = True
        config.save_pretrained(partial)
        for file in partial.glob("*.safetensors"):
            # Written for the owner alone; readable by whom the rest of the folder is.
            shutil.copymode(partial / "config.json", file)
        self.tokenizer.save_pretrained(partial)
        (partial / SETTINGS_FILE).write_text(settings.to_json(base=self.base.identity), encoding="utf-8")
        (partial / CARD).write_text(self._card(summary).render(), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    def _card(self, summary: dict[str, Any]) -> Card:
        figures: dict[str, Any] = {
            name: summary[name]
            for name in (
                "num_steps",
                "num_epochs",
                "handed_over_step",
                "stopped_early",
                "loss",
                "eval_loss",
                "threshold",
            )
            if summary[name] is not None
        }
        for found in summary["validation"]:
            shown = ", ".join(
                f"{name} {found[name]:.4f}" for name in ("wrong", "correct", "f1") if found[name] is not None
            )
            figures[f"validation steps at {found['threshold']:.4f}"] = shown
        data = {
            part: f"{counts['num_correct']:,} correct and {counts['num_wrong']:,} wrong steps in "
            f"{counts['num_sequences']:,} sequences, {counts['num_tokens']:,} tokens"
            for part, counts in summary["rows"].items()
        }
        identity = self.base.identity if self.base.folder is not None else f"commit {self.base.revision}"
        return Card(
            title="A discriminative process reward model",
            summary=(
                "It reads a problem and a solution in steps, and rewards every step in one forward pass: the second "
                f"class of a two-way head at the tag `{self.layout_settings.step_tag}` after each step, as in "
                "Qwen2.5-Math-PRM."
            ),
            base=f"`{self.base.target}` ({identity})",
            base_id=self.base.target if self.base.folder is None else None,
            data=data,
            settings={**asdict(self.settings), "precision": "bf16" if self.bf16 else "fp32"},
            metrics=figures,
            usage=["rprm judge solutions.jsonl --model classifier:PATH_TO_THIS_FOLDER"],
            versions=versions(),
            limits=LIMITS,
        )

    def _session(self) -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - self.started, 3)}

    def _complete(self, run: Run, summary: dict[str, Any]) -> None:
        run.complete(summary, self._session())
        if not self.options.keep_checkpoints:
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)


def _key(row: LabelledStep) -> str:
    """What a problem is known by; case and spacing do not matter, as in `is_held_out`."""
    return " ".join(row.problem.casefold().split())


def _device(precision: Precision) -> tuple[bool, bool]:
    """Whether to compute in bfloat16, and whether on the CPU.

    Raises:
        EngineError: a library is missing.
        InputError: there is more than one device or process.
    """
    import os

    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise EngineError(f'training needs torch and transformers: pip install ".[train]" ({error})') from None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or torch.cuda.device_count() > 1:
        raise InputError(
            "a classifier is trained on one device: choose one with CUDA_VISIBLE_DEVICES=0, and start one process; "
            "--lora-rank lets a 7B model fit"
        )
    use_cpu = trains_on_cpu()
    return computes_in_bf16(precision, use_cpu=use_cpu), use_cpu
