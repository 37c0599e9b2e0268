"""The lifecycle of all training: SFT, DPO, GRPO and the classifier are a `TrainingRun` each. Of several processes, as
of `accelerate launch`, the main one alone reads the data, writes the run folder (docs/training.md) and hands over."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Required, TypedDict

from rprm.engines.loading import load_weights, plain_errors, refuse_missing
from rprm.errors import EngineError, InputError, RprmError, RunError
from rprm.files import LineWriter, read_json_lines, write_atomically
from rprm.runs import MANIFEST, REJECTED, SUMMARY, Run, read_summary, versions
from rprm.training.checkpoints import Checkpoint, last_checkpoint, seal
from rprm.training.estimate import Workload
from rprm.training.handover import CARD, MODEL, card_text, find_model, push, whole_folder
from rprm.training.settings import Precision, RunOptions, TrainingSettings

ROWS = "rows"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"


class TrainingResult(NamedTuple):
    """Run folder, the model folder in it, optimizer steps and `summary.json` of a training; the step that this session
    resumed from, if it did; and whether an earlier one had finished it."""

    output: Path
    model: Path
    num_steps: int
    summary: Mapping[str, Any]
    resumed_from: int | None = None
    was_complete: bool = False


@dataclass
class TrainingCallbacks:
    """Progress callbacks, called in the main process alone: a stage begins, such as loading or saving; a remark that
    the reader should see; optimizer steps done, and how many there will be at most; a row of `metrics.jsonl`."""

    on_stage: Callable[[str], None] = lambda text: None
    on_note: Callable[[str], None] = lambda text: None
    on_step: Callable[[int, int], None] = lambda step, num_steps: None
    on_metrics: Callable[[Mapping[str, Any]], None] = lambda row: None


class RunArguments(TypedDict, total=False):
    """Arguments of every training: `model` is a folder, or a hub id at `revision`; a killed run is resumed in `output`;
    `settings` are hyperparameters; no result depends on `options`; `callbacks` are told of progress."""

    model: Required[str]
    output: Required[str | Path]
    settings: TrainingSettings | None
    revision: str | None
    options: RunOptions | None
    callbacks: TrainingCallbacks | None


class MainProcessFailed(RprmError):
    """The main process failed, and has said why; this one has nothing to add."""


class TrainingRun(ABC):
    """One session on a run folder; `source` is how the manifest names the data: `{"input": ...}`."""

    kind: ClassVar[str]
    runs_as: ClassVar[str]  #: Kind of the engine or rewarder that runs the model.
    one_device: ClassVar[bool] = False  #: Whether a second process or GPU is refused.
    best_by: ClassVar[str] = "eval_loss"  #: The figure of an evaluation that says which checkpoint is best.
    title: str  #: Heading of the model's card.
    about: str  #: What the model does, for its card.
    settings: TrainingSettings
    tokenizer: Any

    def __init__(self, source: dict[str, str], arguments: RunArguments) -> None:
        self.source, self.settings = source, arguments.get("settings") or self.settings
        self.folder = Path(arguments["output"])
        self.options = arguments.get("options") or RunOptions()
        # As `accelerate launch` and torchrun tell it.
        self.is_main, self.num_processes = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1"))
        self.callbacks = (self.is_main and arguments.get("callbacks")) or TrainingCallbacks()
        self._started = time.monotonic()
        if "/" not in (target := arguments["model"]) and not os.path.exists(target):  # any text may be a name
            raise EngineError(f"{target}: there is no such folder, and a hub id is written OWNER/NAME")
        refuse_missing(target, target)
        self.callbacks.on_stage("loading libraries")
        try:
            import torch
            import trl  # noqa: F401
        except ImportError as error:
            raise EngineError(f'training needs torch and TRL: pip install ".[train]" ({error})') from None
        self.base = find_model(arguments["model"], arguments.get("revision"))
        asked = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
        self.use_cpu = asked or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        self.bf16 = computes_in_bf16(self.settings.precision, use_cpu=self.use_cpu)

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether there are rows to evaluate on; before `prepare`, whether there may be."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the result depends on besides the hyperparameters: data, template, model."""

    def workload(self) -> Workload:
        """The rows and what is computed of them, for an estimate. Writes nothing, and needs no device."""
        raise InputError(f"there is no estimate for {self.kind}")

    def check(self) -> None:  # noqa: B027  # nothing to check is fine
        """Refuse model and data of a new run before its folder is made. Main process."""

    def check_model(self, auto: Any, num_new: int = 0) -> None:
        """Refuse a checkpoint that does not fit its configuration, which would begin at random values, or its tokenizer
        (without the `num_new` tokens that are ours)."""
        with plain_errors(self.base.target, "a causal language model"):
            model = load_weights(auto, self.base.target, device_map="meta", revision=self.base.revision)
        import transformers

        for name in model.config.architectures or ():
            named = getattr(getattr(transformers, name, None), "config_class", type(model.config))
            if named is not type(model.config):
                what = f"it is a {model.config.model_type}, and names the architecture {name}"
                raise EngineError(f"{self.base.target}: its configuration contradicts itself: {what}; mend config.json")
        known, largest = len(model.get_input_embeddings().weight), max(self.tokenizer.get_vocab().values()) - num_new
        if largest >= known:
            fault = f"its tokenizer has a token {largest:,}, its model knows {known:,}"
            raise EngineError(f"{self.base.target}: {fault}; give the tokenizer of this model")

    @abstractmethod
    def prepare(self) -> None:
        """Read the rows, in the form that the trainer takes. Main process; the run folder is held."""

    @abstractmethod
    def make_config(self) -> Any:
        """The trainer's arguments, from `common`."""

    @abstractmethod
    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        """The trainer with its rows, checked."""

    @abstractmethod
    def hand_over(self, checkpoint: Path, folder: Path) -> dict[str, Any]:
        """Write the model of a checkpoint to a folder. Main process. Returns what the summary says of it."""

    def work(self) -> TrainingResult:
        """Train, or resume where an earlier session was killed, and hand over. An `InputError` where data or a setting
        cannot be used, `EngineError` the model; `SettingsChanged` where the folder was begun with others, `RunError`
        where it cannot be used, memory does not suffice, or the upload failed."""
        import torch

        num_gpus = 0 if self.use_cpu else torch.cuda.device_count()
        if (num_gpus > 1 and self.num_processes == 1) or (self.one_device and self.num_processes > 1):
            raise InputError(
                f"{num_gpus} GPUs and {self.num_processes} processes to train a {self.kind}: start one process on one "
                "(CUDA_VISIBLE_DEVICES=0); sft and dpo train on several by `accelerate launch` (docs/training.md)"
            )
        try:
            config = self.make_config()
        except (ValueError, ImportError) as error:
            raise InputError(f"the trainer refuses these settings: {_first_line(error)}") from error
        with ExitStack() as stack:
            if self.num_processes > 1:
                stack.callback(torch.distributed.destroy_process_group)
            # Decided on rank 0 and broadcast: whether the run is complete, and the checkpoint to resume from.
            was_complete, checkpoint = self.share(lambda: self._begin(stack))
            if not was_complete:
                if checkpoint is None or not checkpoint.stopped:
                    self._fit(config, checkpoint)
                self.share(self._finish)
            if self.is_main and (repository := self.options.push_to_hub) is not None:
                push(self.folder / MODEL, repository, private=self.options.private, on_note=self.callbacks.on_note)
        summary, step = read_summary(self.folder), checkpoint and checkpoint.step
        return TrainingResult(self.folder, self.folder / MODEL, summary["num_steps"], summary, step, was_complete)

    def share(self, work: Callable[[], Any]) -> Any:
        """Do `work` in the main process, and give its result to all; where it fails, the others get `MainProcessFailed`
        (they would hang otherwise)."""
        if self.num_processes == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        shared, failure = list[Any]([None]), None
        try:
            shared = [work()] if self.is_main else shared
        except Exception as error:
            shared, failure = [MainProcessFailed(f"the main process failed: {type(error).__name__}: {error}")], error
        broadcast_object_list(shared)
        if isinstance(outcome := shared[0], MainProcessFailed):
            raise failure or outcome
        return outcome

    def _begin(self, stack: ExitStack) -> tuple[bool, Checkpoint | None]:
        """Check everything, hold the run folder, prepare the rows, and find where to resume. Main process."""
        self.callbacks.on_stage("checking the data")
        self._refuse_patience()
        if not (self.folder / MANIFEST).exists():
            wanted, most = self.settings.max_length, self.base.context_length
            if most and wanted > most:
                context = f"the context length of {self.base.target}, {most:,} tokens"
                raise InputError(f"max_length {wanted:,} exceeds {context}; lower --max-length")
            self.check()
        found = versions() | {name: importlib.metadata.version(name) for name in ("trl", "accelerate", "datasets")}
        session = {"model": self.base.target, **self.source, "versions": found}
        # Every setting as it is carried out.
        settings = {**self.identity(), **asdict(self.settings), "precision": "bf16" if self.bf16 else "fp32"}
        settings |= {} if self.one_device else {"num_processes": self.num_processes}
        self.run = stack.enter_context(Run(self.folder, stage=f"train {self.kind}", settings=settings, session=session))
        stack.push(self._left)
        if (self.folder / SUMMARY).exists():
            self.callbacks.on_note(f"{self.folder} is complete already; nothing is trained again")
            self._complete(read_summary(self.folder))
            return True, None
        self.prepare()
        self._refuse_patience()
        checkpoint = last_checkpoint(self.folder / CHECKPOINTS)
        for torn in sorted((self.folder / CHECKPOINTS).glob("torn-*")):
            self.callbacks.on_note(f"{torn} is incomplete or damaged: renamed and not used")
        if checkpoint is not None:
            self.callbacks.on_note(f"resumed from step {checkpoint.step:,}")
        return False, checkpoint

    def _left(self, kind: type[BaseException] | None, *_: object) -> None:
        """What failed before its first checkpoint does not hold the folder."""
        if kind is None or not issubclass(kind, RprmError) or (self.folder / SUMMARY).exists():
            return
        if not any((self.folder / CHECKPOINTS).glob("*checkpoint-*")):
            for name in (CHECKPOINTS, ROWS, f"{ROWS}.partial"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in (METRICS, REJECTED, MANIFEST):
                (self.folder / name).unlink(missing_ok=True)

    def _fit(self, config: Any, checkpoint: Checkpoint | None) -> None:
        import torch
        from transformers import EarlyStoppingCallback, PrinterCallback

        self.callbacks.on_stage("loading the model")
        callbacks = [metrics_callback(self.folder / METRICS, self.callbacks, save_evaluated=self.settings.keep_best)]
        callbacks += [EarlyStoppingCallback(self.settings.patience)] if self.settings.patience is not None else []
        try:
            try:
                trainer = self.make_trainer(config, callbacks)
            except (ValueError, ImportError, OSError, RuntimeError) as error:
                # Layers or an attention that the model does not have, a package that is not installed, ...
                if isinstance(error, RuntimeError) and "to be installed" not in str(error):
                    raise
                raise InputError(f"{self.base.target} cannot be trained so: {_first_line(error)}") from error
            # It prints to standard output, which is not ours to fill.
            trainer.remove_callback(PrinterCallback)
            self.callbacks.on_stage("training")
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.path))
        except torch.OutOfMemoryError as error:
            hint = "lower --device-batch-size, use --lora-rank or more devices (settings: they may want a new folder)"
            raise RunError(f"the device's memory does not suffice: {_first_line(error)}; {hint}") from error

    def _finish(self) -> None:
        """Hand over the model, and close the run. Main process."""
        last = last_checkpoint(self.folder / CHECKPOINTS)
        if last is None or not last.stopped:
            raise RunError(f"{self.folder} has no checkpoint of the last step; give the same command again")
        self.callbacks.on_stage("handing over the model")
        chosen = last.best if self.settings.keep_best else last
        rows = list(read_json_lines(self.folder / METRICS))
        figures = {
            "num_steps": last.step,
            "num_epochs": round(last.state["epoch"], 4),
            "handed_over_step": chosen.step,
            "stopped_early": last.step < last.state["max_steps"],
            **self.figures(rows, chosen.step),
        }
        with whole_folder(self.folder / MODEL) as folder:
            summary = {**figures, **self.hand_over(chosen.path, folder)}
            self.tokenizer.save_pretrained(folder)
            (folder / CARD).write_text(card_text(self, summary), encoding="utf-8")
        self._complete(summary)

    def figures(self, rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
        """What the summary says of the logged rows, the last of them and the evaluation of the step handed over."""
        losses = [row["loss"] for row in rows if row.get("loss") is not None] or [None]
        evaluated = [row[self.best_by] for row in rows if row["step"] == step and self.best_by in row] or [None]
        return {"loss": losses[-1], self.best_by: evaluated[0]}

    def _complete(self, summary: Mapping[str, Any]) -> None:
        self.run.complete(summary, {"seconds": round(time.monotonic() - self._started, 3)})
        for name in () if self.options.keep_checkpoints else (CHECKPOINTS, ROWS):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that every trainer takes."""
        settings = self.settings
        same = "learning_rate", "weight_decay", "max_grad_norm", "seed", "eval_steps", "save_steps", "logging_steps"
        return {name: getattr(settings, name) for name in same} | {
            # Absolute: the trainer notes in a checkpoint where the best one is.
            "output_dir": str(self.folder.resolve() / CHECKPOINTS),
            "per_device_train_batch_size": settings.device_batch_size,
            "per_device_eval_batch_size": settings.device_batch_size,
            "gradient_accumulation_steps": settings.accumulation(self.num_processes),
            "lr_scheduler_type": settings.scheduler,
            # Below 1 it is a share of all steps.
            "warmup_steps": settings.warmup_ratio,
            "num_train_epochs": settings.num_epochs,
            "max_steps": settings.max_steps or -1,
            "bf16": self.bf16,
            "use_cpu": self.use_cpu,
            "eval_strategy": "steps" if self.has_validation else "no",
            "save_strategy": "steps",
            "save_total_limit": self.options.num_checkpoints,
            # By default the trainer logs an earlier mean where a loss is none.
            "logging_nan_inf_filter": False,
            "restore_callback_states_from_checkpoint": True,
            "metric_for_best_model": self.best_by if self.has_validation else None,
            "greater_is_better": self.best_by != "eval_loss",
            "report_to": self.options.report_to,
            "disable_tqdm": True,
            # Seconds: the main process may take long to tokenise a large data set.
            "ddp_timeout": 4 * 3600,
        }

    def _refuse_patience(self) -> None:
        if self.settings.patience is not None and not self.has_validation:
            (name,) = self.source.values()
            raise InputError(f"patience needs validation rows, and {name} has none; leave patience out")


def metrics_callback(path: Path, callbacks: TrainingCallbacks, *, save_evaluated: bool = False) -> Any:
    """A `TrainerCallback` that writes `metrics.jsonl` to `path`, tells `callbacks`, and seals checkpoints; with
    `save_evaluated`, each evaluation leaves one. A loss that is no number ends the training."""
    import torch
    from transformers import TrainerCallback

    def row_of(step: int, logs: Mapping[str, Any]) -> dict[str, Any]:
        # Counts of tokens are of this session alone, and a number that is none is None.
        kept = {name: value for name, value in logs.items() if name not in ("step", "num_tokens", "eval_num_tokens")}
        lost = {name: None for name, value in kept.items() if isinstance(value, float) and not math.isfinite(value)}
        return {"step": step, **kept, **lost}

    class MetricsCallback(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Of a resumed run: the rows up to its checkpoint.
            if state.is_world_process_zero:
                rows = (json.dumps(row_of(row["step"], row), ensure_ascii=False) for row in state.log_history)
                write_atomically(path, "".join(f"{row}\n" for row in rows))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The trainer's own callback has decided what is due at this step. A logged loss is the mean since the log
            # before, and a resumed run begins a new one.
            control.should_save |= save_evaluated and control.should_evaluate
            control.should_log |= control.should_save
            if state.is_world_process_zero:
                callbacks.on_step(state.global_step, state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.distributed.is_initialized():
                # Every process leaves the state of its random numbers.
                torch.distributed.barrier()
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any) -> None:
            # What stands beside train_runtime, at the end, is of this session alone.
            if not state.is_world_process_zero or not logs or "train_runtime" in logs:
                return
            if not math.isfinite(logs.get("loss", 0.0)):
                fix = "lower --learning-rate or raise --warmup-ratio (in a new folder)"
                raise RunError(f"the loss is {logs['loss']} at step {state.global_step}; {fix}")
            # Rows are rare; closed at once, each is on the disk, and nothing is left open when training fails.
            with closing(LineWriter(path)) as writer:
                writer.write(json.dumps(row := row_of(state.global_step, logs), ensure_ascii=False))
            callbacks.on_metrics(row)

    return MetricsCallback()


def computes_in_bf16(precision: Precision, *, use_cpu: bool) -> bool:
    """Whether a training computes in bfloat16: `auto` does where the device has instructions for it (on others a step
    takes ten times as long as in float32)."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if not use_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    # An older torch cannot be asked.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))


def group_by_length(trainer: Any, lengths: Sequence[int], batch_size: int) -> None:
    """Let a trainer take its rows as transformers' `group_by_length` does (which reads a column that TRL drops), in an
    order of seed and epoch alone: a resumed run has it too."""
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
