"""The one lifecycle of all training: SFT, DPO and the classifier are a `TrainingRun` each.

OUTPUT/
  manifest.json     settings, sessions (as every run folder)
  rows/             the training rows as token ids (SFT, DPO)
  rejected.jsonl    rows of the input that cannot be used (classifier)
  checkpoints/      the trainer's; gone when the run is complete, unless they are to be kept
  metrics.jsonl     what was logged and evaluated
  adapter/          the LoRA adapter, where one was trained and merged (SFT, DPO)
  model/            the result
  summary.json      counts and figures, written at the end
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Required, TypedDict, Unpack

from rprm.errors import EngineError, InputError, RprmError, RunError
from rprm.runs import MANIFEST, REJECTED, SUMMARY, Run, versions
from rprm.training.checkpoints import Checkpoint, best_checkpoint, last_checkpoint
from rprm.training.devices import Processes, computes_in_bf16, trains_on_cpu
from rprm.training.handover import LIMITS, MODEL, Card, push
from rprm.training.metrics import (
    METRICS,
    TrainingCallbacks,
    last_value,
    metrics_callback,
    read_metrics,
    truncate_metrics,
)
from rprm.training.rows import BaseModel, find_model
from rprm.training.settings import RunOptions, TrainingSettings

ROWS = "rows"
CHECKPOINTS = "checkpoints"

#: Figures of a summary that stand in the card.
_FIGURES = ("num_steps", "num_epochs", "handed_over_step", "stopped_early", "loss", "eval_loss", "threshold")

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
        resumed_from: the step of the checkpoint that this session resumed from; None where it started anew.
        was_complete: an earlier session had finished it; this one did no training.
    """

    output: Path
    model: Path
    num_steps: int
    summary: Mapping[str, Any]
    resumed_from: int | None = None
    was_complete: bool = False


class RunArguments(TypedDict, total=False):
    """Arguments of every training.

    Attributes:
        model: a folder or hub id.
        output: the run folder; `model/` in it is the result. A killed run is resumed there.
        revision: of a hub model.
        options: what no result depends on.
        callbacks: told of progress, in the main process alone.
    """

    model: Required[str]
    output: Required[str | Path]
    revision: str | None
    options: RunOptions | None
    callbacks: TrainingCallbacks | None


class TrainingRun(ABC):
    """One session on a run folder. The main process holds the folder; the others hold nothing.

    A kind of training says below what its rows become, which trainer learns from them, and what is handed over.

    Args:
        settings: hyperparameters.
        source: the data, as it is named in the manifest: `{"input": ...}`.
        arguments: see `RunArguments`.
    """

    kind: ClassVar[str]
    #: A second process or GPU is refused.
    one_device: ClassVar[bool] = False

    def __init__(self, settings: TrainingSettings, source: dict[str, str], **arguments: Unpack[RunArguments]) -> None:
        self.settings, self.source = settings, source
        self.folder = Path(arguments["output"])
        self.options = arguments.get("options") or RunOptions()
        self.processes = Processes.of_environment()
        self.callbacks = (self.processes.is_main and arguments.get("callbacks")) or TrainingCallbacks()
        self._started = time.monotonic()
        self._completed = False
        self.callbacks.on_stage("loading libraries")
        try:
            import torch  # noqa: F401
            import transformers  # noqa: F401
        except ImportError as error:
            raise EngineError(f'training needs torch and TRL: pip install ".[train]" ({error})') from None
        self.base: BaseModel = find_model(arguments["model"], arguments.get("revision"))
        self.use_cpu = trains_on_cpu()
        self.bf16 = computes_in_bf16(settings.precision, use_cpu=self.use_cpu)
        self._refuse_devices()

    # --- what a kind of training says of itself ------------------------------------------------------------------

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether there are rows to evaluate on; before `prepare`, whether there may be."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the result depends on besides the hyperparameters: data, template, model."""

    def check(self) -> None:  # noqa: B027  # nothing to check is fine
        """Refuse model and data of a new run before its folder is made. Main process."""

    @abstractmethod
    def prepare(self) -> None:
        """Read the rows, in the form that the trainer takes. Main process; the run folder is held."""

    @abstractmethod
    def make_config(self) -> Any:
        """The trainer's arguments, from `common`. Every process."""

    @abstractmethod
    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        """The trainer with its rows, checked. Every process."""

    @abstractmethod
    def lengths(self, trainer: Any) -> Sequence[int]:
        """Tokens of each row of the trainer."""

    @abstractmethod
    def hand_over(self, checkpoint: Path, figures: dict[str, Any]) -> dict[str, Any]:
        """Make `model/` from a checkpoint. Main process. Returns the summary: `figures`, and what it adds."""

    # --- the lifecycle ---------------------------------------------------------------------------------------------

    def work(self) -> TrainingResult:
        """Train, or resume where an earlier session was killed, and hand over.

        Raises:
            InputError: data or a setting cannot be used.
            EngineError: the model cannot be loaded.
            SettingsChanged: the folder was begun with other settings, data, or another model.
            RunError: the folder cannot be used, memory does not suffice, or the upload failed.
        """
        try:
            config = self.make_config()
        except ModuleNotFoundError as error:
            raise EngineError(f'training needs torch and TRL: pip install ".[train]" ({error})') from None
        except (ValueError, ImportError) as error:
            raise InputError(f"the trainer refuses these settings: {_first_line(error)}") from error
        with contextlib.ExitStack() as stack:
            stack.callback(self.processes.leave)
            # Decided on rank 0 and broadcast: whether the run is complete, and the checkpoint to resume from.
            was_complete, checkpoint = self.processes.share(lambda: self._begin(stack))
            if not was_complete:
                if checkpoint is None or not checkpoint.stopped:
                    self._fit(config, checkpoint)
                self.processes.share(self._finish)
            if self.processes.is_main and (repository := self.options.push_to_hub) is not None:
                push(self.folder / MODEL, repository, private=self.options.private, on_note=self.callbacks.on_note)
        summary = json.loads((self.folder / SUMMARY).read_bytes())
        step = None if checkpoint is None else checkpoint.step
        return TrainingResult(self.folder, self.folder / MODEL, summary["num_steps"], summary, step, was_complete)

    def _begin(self, stack: contextlib.ExitStack) -> tuple[bool, Checkpoint | None]:
        """Check everything, hold the run folder, prepare the rows, and find where to resume. Main process."""
        is_new = not (self.folder / MANIFEST).exists()
        self.callbacks.on_stage("checking the data")
        if is_new:
            if self.settings.max_length > (self.base.context_length or self.settings.max_length):
                raise InputError(
                    f"max_length {self.settings.max_length:,} exceeds the context length of {self.base.target}, "
                    f"{self.base.context_length:,} tokens; lower --max-length"
                )
            self.check()
        self.run = stack.enter_context(
            Run(
                self.folder,
                stage=f"train {self.kind}",
                settings={**self.identity(), **self.hyperparameters},
                session={"model": self.base.target, **self.source, "versions": _versions()},
            )
        )
        stack.push(self._left)
        if (self.folder / SUMMARY).exists():
            self.callbacks.on_note(f"{self.folder} is complete already; nothing is trained again")
            self._complete(json.loads((self.folder / SUMMARY).read_bytes()))
            return True, None
        self.prepare()
        self._refuse_patience()
        checkpoint = self._last_checkpoint()
        truncate_metrics(self.folder / METRICS, checkpoint.step if checkpoint else 0)
        for torn in sorted((self.folder / CHECKPOINTS).glob("torn-*")):
            self.callbacks.on_note(f"set aside: {torn}, which was not written to its end")
        if checkpoint is not None:
            self.callbacks.on_note(f"resumed from step {checkpoint.step:,}")
        return False, checkpoint

    def _left(self, kind: type[BaseException] | None, *_: object) -> None:
        """Note why a session ended early. What failed before its first checkpoint does not hold the folder."""
        if kind is None or self._completed:
            return
        self.run.note({**self._session(), "stopped_by": kind.__name__})
        if issubclass(kind, RprmError) and not any((self.folder / CHECKPOINTS).glob("*checkpoint-*")):
            for name in (CHECKPOINTS, ROWS, f"{ROWS}.partial"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in (METRICS, REJECTED, MANIFEST):
                (self.folder / name).unlink(missing_ok=True)

    def _fit(self, config: Any, checkpoint: Checkpoint | None) -> None:
        import torch
        from transformers import EarlyStoppingCallback
        from transformers.trainer_callback import PrinterCallback

        self.callbacks.on_stage("loading the model")
        callbacks = [metrics_callback(self.folder / METRICS, self.callbacks, save_evaluated=self.settings.keep_best)]
        if self.settings.patience is not None:
            callbacks.append(EarlyStoppingCallback(self.settings.patience))
        try:
            try:
                trainer = self.make_trainer(config, callbacks)
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
                _group_by_length(trainer, self.lengths(trainer), self.settings.batch_size)
            self.callbacks.on_stage("training")
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"the device's memory does not suffice: {_first_line(error)}; lower --device-batch-size, or use "
                "--lora-rank, or more devices (settings: they may want a new folder)"
            ) from error

    def _finish(self) -> None:
        """Hand over the model, and close the run. Main process."""
        last = self._last_checkpoint()
        if last is None or not last.stopped:
            raise RunError(
                f"{self.folder / CHECKPOINTS} has no checkpoint of the last step; give the same command again"
            )
        self.callbacks.on_stage("handing over the model")
        chosen = best_checkpoint(last) if self.settings.keep_best else last
        state = json.loads((last.path / "trainer_state.json").read_bytes())
        rows = read_metrics(self.folder / METRICS)
        figures = {
            "num_steps": last.step,
            "num_epochs": round(state["epoch"], 4),
            "handed_over_step": chosen.step,
            "stopped_early": last.step < state["max_steps"],
            "loss": last_value(rows, "loss"),
            "eval_loss": last_value([row for row in rows if row["step"] == chosen.step], "eval_loss"),
        }
        self._complete(self.hand_over(chosen.path, figures))

    def _complete(self, summary: Mapping[str, Any]) -> None:
        self.run.complete(summary, self._session())
        self._completed = True
        if not self.options.keep_checkpoints:
            for name in (CHECKPOINTS, ROWS):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _last_checkpoint(self) -> Checkpoint | None:
        return last_checkpoint(self.folder / CHECKPOINTS, num_processes=self.processes.count)

    def _session(self) -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - self._started, 3)}

    # --- settings --------------------------------------------------------------------------------------------------

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every setting as it is carried out."""
        found = {**asdict(self.settings), "precision": "bf16" if self.bf16 else "fp32"}
        return found if self.one_device else {**found, "num_processes": self.processes.count}

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every trainer takes."""
        settings = self.settings
        self._refuse_patience()
        return {
            # Absolute: the trainer notes in a checkpoint where the best one is.
            "output_dir": str(self.folder.resolve() / CHECKPOINTS),
            "per_device_train_batch_size": settings.device_batch_size,
            "per_device_eval_batch_size": settings.device_batch_size,
            "gradient_accumulation_steps": settings.accumulation(self.processes.count),
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": settings.scheduler,
            # Below 1 it is a share of all steps.
            "warmup_steps": settings.warmup_ratio,
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "num_train_epochs": settings.num_epochs,
            "max_steps": settings.max_steps or -1,
            "bf16": self.bf16,
            "use_cpu": self.use_cpu,
            "seed": settings.seed,
            "eval_strategy": "steps" if self.has_validation else "no",
            "eval_steps": settings.eval_steps,
            "save_strategy": "steps",
            "save_steps": settings.save_steps,
            "save_total_limit": self.options.num_checkpoints,
            "logging_steps": settings.logging_steps,
            # By default the trainer logs an earlier mean where a loss is none.
            "logging_nan_inf_filter": False,
            "restore_callback_states_from_checkpoint": True,
            "metric_for_best_model": "eval_loss" if self.has_validation else None,
            "greater_is_better": False,
            "report_to": self.options.report_to,
            "disable_tqdm": True,
            "ddp_timeout": _TIMEOUT,
        }

    def _refuse_patience(self) -> None:
        if self.settings.patience is not None and not self.has_validation:
            raise InputError(
                f"patience needs validation rows, and {next(iter(self.source.values()))} has none; leave patience out"
            )

    def _refuse_devices(self) -> None:
        import torch

        num_gpus = 0 if self.use_cpu else torch.cuda.device_count()
        if self.one_device and (self.processes.count > 1 or num_gpus > 1):
            raise InputError(
                f"a {self.kind} is trained on one device: choose one with CUDA_VISIBLE_DEVICES=0, and start one "
                "process; --lora-rank lets a 7B model fit"
            )
        if num_gpus > 1 and self.processes.count == 1:
            raise InputError(
                f"{num_gpus} GPUs and one process; put `accelerate launch --config_file "
                "recipes/accelerate/fsdp.yaml -m` before `rprm`, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
            )

    def card(
        self,
        summary: Mapping[str, Any],
        *,
        title: str,
        about: str,
        data: Mapping[str, Any],
        usage: str,
        further: Mapping[str, Any] | None = None,
    ) -> Card:
        """The card of the model: what the kind of training says of it, and what all have; see `Card`."""
        is_hub = self.base.folder is None
        figures = {name: summary[name] for name in _FIGURES if summary.get(name) is not None}
        return Card(
            title=title,
            summary=about,
            base=f"`{self.base.target}` ({f'commit {self.base.revision}' if is_hub else self.base.identity})",
            base_id=self.base.target if is_hub else None,
            data=data,
            settings=self.hyperparameters,
            metrics={**figures, **(further or {})},
            usage=[usage],
            versions=_versions(),
            limits=LIMITS,
        )


def _group_by_length(trainer: Any, lengths: Sequence[int], batch_size: int) -> None:
    """Let a trainer take its rows as transformers' `group_by_length` does.

    Its option reads lengths from a column that TRL's trainers drop, and draws from a generator whose state a run that
    is resumed in a later epoch does not have: here an epoch's order depends on seed and epoch alone.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    class EpochSampler(LengthGroupedSampler):  # type: ignore[misc]
        def __iter__(self) -> Any:
            seed = 1_000_003 * trainer.args.seed + int(trainer.state.epoch or 0)
            self.generator = torch.Generator().manual_seed(seed)
            return super().__iter__()

    sampler = EpochSampler(batch_size, lengths=list(lengths))
    trainer._get_train_sampler = lambda rows=None: sampler


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _versions() -> dict[str, str]:
    found = versions()
    for package in ("trl", "accelerate", "datasets"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
