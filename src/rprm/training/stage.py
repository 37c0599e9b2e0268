"""A training from its data to the model folder: what SFT and DPO share around TRL's trainers.

OUTPUT/
  manifest.json     settings, sessions (as every run folder)
  rows/             the training rows as token ids
  checkpoints/      the trainer's; gone when the run is complete, unless they are to be kept
  metrics.jsonl     what was logged and evaluated
  adapter/          the LoRA adapter, where one was trained and merged
  model/            the result
  summary.json      counts and figures, written at the end
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rprm.engines.loading import load_tokenizer
from rprm.errors import EngineError, InputError, RprmError, RunError
from rprm.runs import MANIFEST, SUMMARY, Run, versions
from rprm.training.checkpoints import MIN_KEPT, Checkpoint, best_checkpoint, last_checkpoint
from rprm.training.handover import ADAPTER, LIMITS, MODEL, Card, hand_over, push
from rprm.training.metrics import (
    METRICS,
    TrainingCallbacks,
    last_value,
    metrics_callback,
    read_metrics,
    truncate_metrics,
)
from rprm.training.precision import computes_in_bf16, trains_on_cpu
from rprm.training.preflight import PartCounts, check_model_template, check_rows, encode_data, open_rows
from rprm.training.processes import Processes
from rprm.training.rows import BaseModel, TrainingData, check_weights, end_token, find_model, open_data
from rprm.training.settings import Precision, TrainingSettings

ROWS = "rows"
CHECKPOINTS = "checkpoints"

#: Seconds that processes wait for one another: the main one may take long to tokenise a large data set.
_TIMEOUT = 4 * 3600


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to.

    Attributes:
        output: the run folder.
        model: the model folder in it.
        num_steps: optimizer steps at its end.
        summary: as in `summary.json`.
        resumed_from: the step of the checkpoint that this session went on from; None where it began anew.
        was_complete: an earlier session had finished it; this one did no training.
    """

    output: Path
    model: Path
    num_steps: int
    summary: Mapping[str, Any]
    resumed_from: int | None = None
    was_complete: bool = False


@dataclass(frozen=True)
class RunOptions:
    """What no result depends on.

    Attributes:
        report_to: where the trainer reports to besides `metrics.jsonl`: wandb, tensorboard, ...; none by default.
        num_checkpoints: kept at once; at least 2, of which the newest may be torn.
        keep_checkpoints: keep them when the run is complete.
        push_to_hub: upload the model folder to this repository at the end.
        private: whether a repository made for that is private.
    """

    report_to: str = "none"
    num_checkpoints: int = MIN_KEPT
    keep_checkpoints: bool = False
    push_to_hub: str | None = None
    private: bool = True

    def __post_init__(self) -> None:
        if self.num_checkpoints < MIN_KEPT:
            raise InputError(
                f"num_checkpoints is {self.num_checkpoints}; at least {MIN_KEPT} are kept: a kill can tear the newest"
            )


@dataclass(frozen=True)
class _Start:
    """What the main process found out, for all."""

    finished: bool
    step: int | None
    checkpoint: str | None
    stopped: bool


@dataclass(frozen=True)
class Stage:
    """One kind of training.

    Attributes:
        kind: `sft` or `dpo`.
        settings: its settings.
        make_config: TRL's configuration from the common arguments.
        trainer_class: gives TRL's trainer class; called when TRL may be imported.
        check_batch: compares a batch of the trainer with the rows.
        does: what the model has been trained to do, for its card.
    """

    kind: str
    settings: TrainingSettings
    make_config: Callable[[dict[str, Any]], Any]
    trainer_class: Callable[[], Any]
    check_batch: Callable[[Any, Any], None]
    does: str


def train(
    stage: Stage,
    data: str | Path,
    *,
    model: str,
    output: str | Path,
    prompt: str | Path | None,
    revision: str | None,
    options: RunOptions,
    callbacks: TrainingCallbacks,
) -> TrainingResult:
    """Train, or go on where an earlier session was killed; see `train_sft` and `train_dpo`."""
    callbacks.on_stage("loading libraries")
    _require_libraries()
    processes = Processes.of_environment()
    settings = stage.settings
    accumulation = settings.accumulation(processes.count)
    opened = open_data(data, prompt)
    bf16, use_cpu = _device(settings.precision, processes)
    folder = Path(output)
    config = _accepted(
        stage.make_config,
        {
            # Absolute: the trainer notes in a checkpoint where the best one is.
            "output_dir": str(folder.resolve() / CHECKPOINTS),
            "per_device_train_batch_size": settings.device_batch_size,
            "per_device_eval_batch_size": settings.device_batch_size,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": settings.scheduler,
            # Below 1 it is a share of all steps.
            "warmup_steps": settings.warmup_ratio,
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "num_train_epochs": settings.num_epochs,
            "max_steps": settings.max_steps or -1,
            "bf16": bf16,
            "use_cpu": use_cpu,
            "activation_checkpointing": settings.gradient_checkpointing,
            "model_init_kwargs": {
                # Full training keeps float32 weights: at these learning rates a step is less than bfloat16 can tell.
                # Under an adapter the base model does not change.
                "dtype": "bfloat16" if bf16 and settings.lora_rank else "float32",
                # Of a DPO's reference model too.
                "trust_remote_code": False,
                **({"attn_implementation": settings.attention} if settings.attention else {}),
            },
            "seed": settings.seed,
            "eval_strategy": "no" if opened.validation is None else "steps",
            "eval_steps": settings.eval_steps,
            "save_strategy": "steps",
            "save_steps": settings.save_steps,
            "save_total_limit": options.num_checkpoints,
            "logging_steps": settings.logging_steps,
            # By default the trainer logs an earlier mean where a loss is none.
            "logging_nan_inf_filter": False,
            "restore_callback_states_from_checkpoint": True,
            "metric_for_best_model": None if opened.validation is None else "eval_loss",
            "greater_is_better": False,
            "report_to": options.report_to,
            "disable_tqdm": True,
            "ddp_timeout": _TIMEOUT,
        },
    )
    if settings.patience is not None and opened.validation is None:
        raise InputError(f"patience needs validation rows, and {data} has no validation.jsonl; leave patience out")
    with contextlib.ExitStack() as stack:
        stack.callback(processes.leave)
        run = _TrainingRun(
            stage, opened, folder, find_model(model, revision), options, callbacks, processes,
            precision="bf16" if bf16 else "fp32", deliberate=prompt is not None,
        )  # fmt: skip
        stack.enter_context(run)
        return run.work(config)


class _TrainingRun:
    """One session on a run folder. The main process holds the folder; the others hold nothing."""

    def __init__(
        self,
        stage: Stage,
        data: TrainingData,
        folder: Path,
        base: BaseModel,
        options: RunOptions,
        callbacks: TrainingCallbacks,
        processes: Processes,
        *,
        precision: str,
        deliberate: bool,
    ) -> None:
        self.stage = stage
        self.settings = stage.settings
        self.data = data
        self.folder = folder
        self.base = base
        self.options = options
        self.callbacks = callbacks if processes.is_main else TrainingCallbacks()
        self.processes = processes
        self.precision = precision
        self.deliberate = deliberate
        self.tokenizer = load_tokenizer(base.target, base.revision)
        self.end = end_token(self.tokenizer, base.stops, chat=data.template.chat)
        self.counts: dict[str, PartCounts] = {}
        self._run: Run | None = None
        self._completed = False
        self._started = time.monotonic()

    def __enter__(self) -> _TrainingRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._run is not None:
            if kind is not None and not self._completed:
                self._run.note({**self._session(), "stopped_by": kind.__name__})
                if issubclass(kind, RprmError) and not any((self.folder / CHECKPOINTS).glob("*checkpoint-*")):
                    self._clear()
            self._run.__exit__(None, None, None)
            self._run = None

    def _clear(self) -> None:
        """Nothing was trained yet that could be lost: other settings may be tried in the same folder."""
        for name in (CHECKPOINTS, ROWS, f"{ROWS}.partial"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (METRICS, MANIFEST):
            (self.folder / name).unlink(missing_ok=True)

    def work(self, config: Any) -> TrainingResult:
        start = self.processes.share(self._begin)
        resumed_from = start.step
        if not start.finished:
            checkpoint = Path(start.checkpoint) if start.checkpoint is not None else None
            if not start.stopped:
                self._fit(config, checkpoint)
            self.processes.share(self._finish)
        if self.processes.is_main and self.options.push_to_hub is not None:
            push(
                self.folder / MODEL,
                self.options.push_to_hub,
                private=self.options.private,
                on_note=self.callbacks.on_note,
            )
        summary = json.loads((self.folder / SUMMARY).read_bytes())
        return TrainingResult(
            self.folder, self.folder / MODEL, summary["num_steps"], summary, resumed_from, start.finished
        )

    # --- before -------------------------------------------------------------------------------------------------

    def _begin(self) -> _Start:
        """Check everything, hold the run folder, leave the rows in it, and find where to go on. Main process."""
        is_new = not (self.folder / MANIFEST).exists()
        finished = (self.folder / SUMMARY).exists()
        self.callbacks.on_stage("checking the data")
        if is_new:
            if self.settings.max_length > (self.base.context_length or self.settings.max_length):
                raise InputError(
                    f"max_length {self.settings.max_length:,} exceeds the context length of {self.base.target}, "
                    f"{self.base.context_length:,} tokens; lower --max-length"
                )
            check_weights(self.base)
            check_model_template(self.base, self.data.template, deliberate=self.deliberate)
            check_rows(self.data, self.stage.kind)
        run = Run(
            self.folder,
            stage=f"train {self.stage.kind}",
            settings=self._resolved(),
            session={"model": self.base.target, "input": self.data.name, "versions": versions() | _versions()},
        )
        run.__enter__()
        self._run = run
        if finished:
            self.callbacks.on_note(f"{self.folder} is complete already; nothing is trained again")
            self._complete(json.loads((self.folder / SUMMARY).read_bytes()))
            return _Start(True, None, None, True)
        self.counts = self._encode()
        checkpoint = last_checkpoint(self.folder / CHECKPOINTS, num_processes=self.processes.count)
        truncate_metrics(self.folder / METRICS, checkpoint.step if checkpoint else 0)
        for torn in sorted((self.folder / CHECKPOINTS).glob("torn-*")):
            self.callbacks.on_note(f"set aside: {torn}, which was not written to its end")
        if checkpoint is None:
            return _Start(False, None, None, False)
        self.callbacks.on_note(f"going on from step {checkpoint.step:,}")
        return _Start(False, checkpoint.step, str(checkpoint.path), checkpoint.stopped)

    def _encode(self) -> dict[str, PartCounts]:
        self.callbacks.on_stage("tokenising")
        return encode_data(
            self.data,
            self.stage.kind,
            self.folder / ROWS,
            tokenizer=self.tokenizer,
            end=self.end,
            max_length=self.settings.max_length,
            on_note=self.callbacks.on_note,
        )

    def _resolved(self) -> dict[str, Any]:
        """What the result depends on."""
        return {
            "input": self.data.digests(),
            "prompt": {"name": self.data.template.name, "digest": self.data.template.digest},
            "model": self.base.identity,
            **asdict(self.settings),
            "precision": self.precision,
            "num_processes": self.processes.count,
        }

    def _session(self) -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - self._started, 3)}

    # --- training -----------------------------------------------------------------------------------------------

    def _fit(self, config: Any, checkpoint: Path | None) -> None:
        import torch
        from transformers import EarlyStoppingCallback
        from transformers.trainer_callback import PrinterCallback

        from rprm.training.batches import in_length_batches, row_lengths

        self.callbacks.on_stage("loading the model")
        callbacks = [metrics_callback(self.folder / METRICS, self.callbacks, save_evaluated=self.settings.keep_best)]
        if self.settings.patience is not None:
            callbacks.append(EarlyStoppingCallback(self.settings.patience))
        rows = open_rows(self.folder / ROWS, "train")
        config.model_init_kwargs |= self.base.source
        arguments = {
            "model": self.base.target,
            "args": config,
            "train_dataset": rows,
            "eval_dataset": open_rows(self.folder / ROWS, "validation"),
            # The trainer gives its tokenizer a padding token; the model's own stays as it is.
            "processing_class": load_tokenizer(self.base.target, self.base.revision),
            "callbacks": callbacks,
            "peft_config": _lora(self.settings),
        }
        try:
            try:
                trainer = self.stage.trainer_class()(**arguments)
            except (ValueError, ImportError, OSError) as error:
                # Layers or an attention that the model does not have, a package that is not installed, ...
                raise InputError(f"{self.base.target} cannot be trained so: {_first_line(error)}") from error
            except RuntimeError as error:
                # How the trainer says that what --report-to names is not installed.
                if "to be installed" not in str(error):
                    raise
                raise InputError(_first_line(error)) from error
            # It prints to standard output, which is not ours to fill.
            trainer.remove_callback(PrinterCallback)
            if self.settings.group_by_length:
                in_length_batches(trainer, row_lengths(trainer.train_dataset, self.stage.kind))
            self.stage.check_batch(trainer, rows)
            self.callbacks.on_stage("training")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"the device's memory does not suffice: {str(error).splitlines()[0]}; lower --device-batch-size, or "
                "use --lora-rank, or more devices"
            ) from error

    # --- after --------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Hand over the model, and close the run. Main process."""
        last = last_checkpoint(self.folder / CHECKPOINTS, num_processes=self.processes.count)
        if last is None or not last.stopped:
            raise RunError(
                f"{self.folder / CHECKPOINTS} has no checkpoint of the last step; give the same command again"
            )
        self.callbacks.on_stage("handing over the model")
        chosen = best_checkpoint(last) if self.settings.keep_best else last
        summary = self._summary(last, chosen)
        hand_over(
            chosen.path,
            self.folder,
            base=self.base,
            tokenizer=self.tokenizer,
            template=self.data.template,
            end=self.end,
            card=self._card(summary),
            bf16=self.precision == "bf16",
            merge=self.settings.merge,
        )
        self._complete(summary)

    def _summary(self, last: Checkpoint, chosen: Checkpoint) -> dict[str, Any]:
        state = json.loads((last.path / "trainer_state.json").read_bytes())
        rows = read_metrics(self.folder / METRICS)
        evaluated = [row for row in rows if row.get("eval_loss") is not None]
        at_chosen = [row["eval_loss"] for row in evaluated if row["step"] == chosen.step]
        return {
            "num_steps": last.step,
            "num_epochs": round(state["epoch"], 4),
            "handed_over_step": chosen.step,
            "stopped_early": last.step < state["max_steps"],
            "loss": last_value(rows, "loss"),
            "eval_loss": at_chosen[-1] if at_chosen else None,
            "rows": {part: asdict(counts) for part, counts in self.counts.items()},
        }

    def _card(self, summary: Mapping[str, Any]) -> Card:
        template = self.data.template
        identity = self.base.identity if self.base.folder is not None else f"commit {self.base.revision}"
        data: dict[str, Any] = {"files": self.data.name}
        for part, digest in self.data.digests().items():
            counts = self.counts[part]
            data[part] = (
                f"{counts.num_rows:,} rows ({counts.num_yes:,} {template.verdict.yes}, {counts.num_no:,} "
                f"{template.verdict.no}), {counts.num_tokens:,} tokens, {counts.num_too_long:,} rows left out as too "
                f"long; {digest}"
            )
        data["prompt template"] = f"{template.name}, {template.digest} (`rprm_prompt.toml`)"
        named = {"num_steps", "num_epochs", "handed_over_step", "stopped_early", "loss", "eval_loss"}
        return Card(
            title=f"A reasoning-driven process reward model ({self.stage.kind.upper()})",
            summary=(
                "It reads a problem, the steps of a solution so far and the step at hand, writes an analysis, and ends "
                f"in a verdict ({template.verdict.yes} or {template.verdict.no}); the probability of "
                f"{template.verdict.yes}, averaged over sampled analyses, is the step's reward (arXiv 2503.21295). "
                f"{self.stage.does}"
            ),
            base=f"`{self.base.target}` ({identity})",
            base_id=self.base.target if self.base.folder is None else None,
            data=data,
            settings={**asdict(self.settings), "precision": self.precision, "num_processes": self.processes.count},
            metrics={name: value for name, value in summary.items() if name in named and value is not None},
            usage=["rprm judge solutions.jsonl --model transformers:PATH_TO_THIS_FOLDER"],
            versions=versions() | _versions(),
            limits=LIMITS,
        )

    def _complete(self, summary: Mapping[str, Any]) -> None:
        assert self._run is not None
        self._run.complete(summary, self._session())
        self._completed = True
        if not self.options.keep_checkpoints:
            shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
            shutil.rmtree(self.folder / ROWS, ignore_errors=True)


def _require_libraries() -> None:
    try:
        import torch  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise EngineError(f'training needs TRL and torch: pip install ".[train]" ({error})') from None


def _accepted(make_config: Callable[[dict[str, Any]], Any], arguments: dict[str, Any]) -> Any:
    try:
        return make_config(arguments)
    except (ValueError, ImportError) as error:
        raise InputError(f"the trainer refuses these settings: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("trl", "accelerate", "datasets")}


def _device(precision: Precision, processes: Processes) -> tuple[bool, bool]:
    """Whether to compute in bfloat16, and whether on the CPU.

    Raises:
        InputError: several GPUs, and one process that would use one of them badly.
    """
    import torch

    use_cpu = trains_on_cpu()
    if not use_cpu and torch.cuda.is_available() and torch.cuda.device_count() > 1 and processes.count == 1:
        raise InputError(
            f"{torch.cuda.device_count()} GPUs and one process; put `accelerate launch --config_file "
            "recipes/accelerate/fsdp.yaml -m` before `rprm`, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    return computes_in_bf16(precision, use_cpu=use_cpu), use_cpu


def _lora(settings: TrainingSettings) -> Any:
    """The adapter's configuration; None where every weight is trained. `all-linear` leaves the output head out."""
    if settings.lora_rank is None:
        return None
    from peft import LoraConfig

    targets: str | list[str] = settings.lora_targets
    if settings.lora_targets != "all-linear":
        targets = [name.strip() for name in settings.lora_targets.split(",")]
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


__all__ = ["ADAPTER", "CHECKPOINTS", "MODEL", "ROWS", "RunOptions", "Stage", "TrainingResult", "train"]
