"""The base model: a small Llama, from nothing, on the world's texts. Judge and policy both start from it.

BASE/
  manifest.json, metrics.jsonl, summary.json   as of every training
  checkpoints/                                 until it is complete
  model/                                       weights, tokenizer, rprm_policy.toml: a policy as it stands
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rprm.engines import fingerprint
from rprm.errors import EngineError, InputError, RunError
from rprm.runs import SUMMARY, LineWriter, Run, read_json_lines, read_summary, repair_tail, versions, write_atomically
from rprm_lab.solutions import ERROR_TYPES, solve
from rprm_lab.stories import tell
from rprm_lab.teacher import Faults, analyse, verdict_line
from rprm_lab.texts import document
from rprm_lab.world import JUDGE_TEMPLATE, POLICY_TEMPLATE, Difficulty, WorldSettings, held_out_problems

#: Files of the run folder, as `rprm train` names them.
MODEL, CHECKPOINTS, METRICS = "model", "checkpoints", "metrics.jsonl"
#: The policy's template in the model folder: every command that loads the model takes it from there.
POLICY_TEMPLATE_FILE = "rprm_policy.toml"
#: Ends every document and every reply; fills up batches.
END, PADDING = "<|end|>", "<|pad|>"
#: One digit, one word with the space before it, one other character: nothing else is ever merged.
_PIECES = r"\d| ?[A-Za-z]+|\n| ?[^\sA-Za-z\d]|\s"
#: Label of a token that carries no loss.
_NOT_LEARNT = -100
#: Texts that the tokenizer learns its words from.
_NUM_TOKENIZER_TEXTS = 6_000
_MAX_VOCABULARY = 2_048


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """The base model and its training. The defaults take about an hour on two cores.

    Attributes:
        hidden_size, num_layers, num_heads, intermediate_size: of the Llama.
        num_steps: optimizer steps.
        batch_size: rows of one step.
        row_tokens: tokens of a row, documents one after the other.
        learning_rate: of the layers' matrices, by Muon; at its peak.
        adam_learning_rate: of the embeddings and norms, by AdamW; at its peak.
        precision: bf16 computes in bfloat16 over float32 weights; auto where the device has instructions for it.
        seed: of the texts, their order, and the first weights.
    """

    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    intermediate_size: int = 512
    num_steps: int = 3_000
    batch_size: int = 16
    row_tokens: int = 512
    learning_rate: float = 8e-3
    adam_learning_rate: float = 4e-3
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    save_steps: int = 250
    seed: int = 0


@dataclass(frozen=True)
class BaseCallbacks:
    """Progress of a pretraining."""

    #: A remark for the reader.
    on_note: Callable[[str], None] = lambda text: None
    #: Optimizer steps done, and how many there will be.
    on_step: Callable[[int, int], None] = lambda step, num_steps: None
    #: A row of `metrics.jsonl`: the step, and what the trainer logs there.
    on_metrics: Callable[[Mapping[str, Any]], None] = lambda row: None


class _Rows:
    """Rows of token ids; row i depends on the seed and i alone, so that a resumed training reads the same."""

    def __init__(self, tokenizer: Any, settings: BaseSettings, held_out: Set[str], told: Difficulty) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.held_out = held_out
        self.told = told

    def __len__(self) -> int:
        return self.settings.num_steps * self.settings.batch_size

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        rng = random.Random(f"{self.settings.seed}/text/{index}")
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < self.settings.row_tokens:
            for piece in document(rng, self.held_out, self.told):
                tokens = self.tokenizer.encode(piece.text)
                ids += tokens
                labels += tokens if piece.learnt else [_NOT_LEARNT] * len(tokens)
            ids.append(self.tokenizer.eos_token_id)
            labels.append(self.tokenizer.eos_token_id)
        length = self.settings.row_tokens
        return {"input_ids": ids[:length], "labels": labels[:length]}


def train_base(
    output: str | Path,
    *,
    world: WorldSettings,
    settings: BaseSettings | None = None,
    start: Path | None = None,
    compiled: bool = False,
    num_workers: int = 0,
    callbacks: BaseCallbacks,
) -> Path:
    """Pretrain the base model, or resume where an earlier session was killed; returns its model folder.

    Args:
        output: the run folder.
        world: whose problems for measuring are kept out of the texts.
        settings: of model and training.
        start: an earlier base model to start from; its own size and tokenizer stay.
        compiled: whether torch compiles the model first: a quarter faster, and it takes a C++ compiler.
        num_workers: processes that write the texts while the model trains, where it would wait for them.
        callbacks: of its progress.

    Raises:
        InputError: the settings make no model, or `start` holds none.
        EngineError: torch and transformers are not installed.
        SettingsChanged: the folder was started with other settings.
        RunError: the folder cannot be used.
    """
    settings = settings or BaseSettings()
    if settings.hidden_size % settings.num_heads:
        raise InputError(f"hidden_size {settings.hidden_size} is no multiple of num_heads {settings.num_heads}")
    if start is not None and not (start / "config.json").is_file():
        raise InputError(f"{start} holds no model to start from; name the model folder of a base model")
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise EngineError(f'training needs torch and transformers: pip install ".[train]" ({error})') from None
    folder = Path(output)
    resolved = {**asdict(settings), "world": asdict(world), **({"start": fingerprint(start)} if start else {})}
    started = time.monotonic()
    with Run(folder, stage="lab base", settings=resolved, session={"versions": versions()}) as run:
        if not (folder / SUMMARY).is_file():
            _fit(folder, settings, world, start, compiled, num_workers, callbacks)
            run.complete(_summary(folder, settings), {"seconds": round(time.monotonic() - started, 3)})
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        else:
            run.complete(read_summary(folder), {})
    return folder / MODEL


def make_tokenizer() -> Any:
    """A byte-pair tokenizer of the world's words: each digit is a token, every text comes back as it was."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=[END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PADDING, clean_up_tokenization_spaces=False
    )


def _tokenizer_texts() -> Iterator[str]:
    """Texts with every word of the world, those of the unseen wordings and of the analyses too."""
    rng = random.Random("tokenizer")
    for place in range(_NUM_TOKENIZER_TEXTS):
        story = tell(rng, num_steps=rng.randint(1, 4), unseen=place % 2 == 0)
        solution = solve(rng, story, error=rng.choice((None, *ERROR_TYPES)))
        end = len(solution.steps) if solution.first_error < 0 else solution.first_error + 1
        steps = [step.text for step in solution.steps]
        written = analyse(solution.steps[end - 1].checks, end - 1, Faults(), step=str(place), seed=0)
        prompt = JUDGE_TEMPLATE.render(story.problem, steps, end - 1).text
        yield f"{prompt}{written.text}\n{verdict_line(written.verdict, JUDGE_TEMPLATE.verdict)}"
        yield "".join(piece.text for piece in document(rng, frozenset()))


def _fit(
    folder: Path,
    settings: BaseSettings,
    world: WorldSettings,
    start: Path | None,
    compiled: bool,
    num_workers: int,
    callbacks: BaseCallbacks,
) -> None:
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator, set_seed
    from transformers.trainer_callback import PrinterCallback

    from rprm_lab.muon import MuonAdamW

    checkpoint, num_done = _last_checkpoint(folder / CHECKPOINTS)
    _truncate_metrics(folder / METRICS, num_done)
    if checkpoint is not None:
        callbacks.on_note(f"resumed from step {num_done:,}")
    set_seed(settings.seed)
    tokenizer, model = _initial(settings, start)
    use_cpu = not torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        per_device_train_batch_size=settings.batch_size,
        max_steps=settings.num_steps,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": settings.num_steps // 5, "decay_type": "linear"},
        warmup_steps=min(100, settings.num_steps // 10),
        torch_compile=compiled,
        bf16=_computes_in_bf16(settings.precision, use_cpu),
        use_cpu=use_cpu,
        seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_steps,
        # A kill may leave the newest unfinished.
        save_total_limit=2,
        logging_steps=50,
        restore_callback_states_from_checkpoint=True,
        dataloader_num_workers=num_workers,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Rows(tokenizer, settings, held_out_problems(world), world.trained),
        data_collator=default_data_collator,
        callbacks=[_metrics_callback(folder / METRICS, callbacks)],
        optimizers=(MuonAdamW(model, settings.learning_rate, settings.adam_learning_rate), None),
    )
    # It prints to standard output, which is not ours to fill.
    trainer.remove_callback(PrinterCallback)
    if num_done < settings.num_steps:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        checkpoint, _ = _last_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None
    partial = folder / f"{MODEL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    LlamaForCausalLM.from_pretrained(checkpoint).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / POLICY_TEMPLATE_FILE).write_text(POLICY_TEMPLATE.to_toml(), encoding="utf-8")
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    partial.rename(folder / MODEL)


def _last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint that is whole, and its step; what a kill left unfinished behind it is deleted."""
    found = {int(path.name.rpartition("-")[2]): path for path in folder.glob("checkpoint-*")}
    for step in sorted(found, reverse=True):
        try:
            # The trainer writes it last.
            if json.loads((found[step] / "trainer_state.json").read_bytes())["global_step"] == step:
                return found[step], step
        except (OSError, ValueError):
            pass
        shutil.rmtree(found[step])
    return None, 0


def _truncate_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`: training resumes from there, and no step is to stand in the file twice."""
    if path.exists():
        repair_tail(path)
        kept = [row for row in read_json_lines(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))


def _metrics_callback(path: Path, callbacks: BaseCallbacks) -> Any:
    """A `TrainerCallback` that appends what is logged to `path`.

    It logs wherever the trainer saves: a logged loss is the mean since the log before, and a resumed run starts a new
    mean, so that both runs, the killed one and an undisturbed one, log the same figures.
    """
    from transformers import TrainerCallback

    class MetricsCallback(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log |= control.should_save
            callbacks.on_step(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "train_runtime" in logs:
                return
            if not math.isfinite(logs.get("loss", 0.0)):
                raise RunError(f"the loss is {logs['loss']} at step {state.global_step}; lower --learning-rate")
            # JSON has no infinity; a gradient's norm can be one.
            infinite = {name: None for name, value in logs.items() if value in (math.inf, -math.inf) or value != value}
            row = {"step": state.global_step, **logs, **infinite}
            writer = LineWriter(path)
            writer.write(json.dumps(row))
            writer.close()
            callbacks.on_metrics(row)

    return MetricsCallback()


def _computes_in_bf16(precision: str, use_cpu: bool) -> bool:
    """Whether to compute in bfloat16; `auto` does where the device has instructions for it."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if not use_cpu:
        return bool(torch.cuda.is_bf16_supported())
    # An older torch cannot be asked.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _initial(settings: BaseSettings, start: Path | None) -> tuple[Any, Any]:
    """Tokenizer and model before the first step."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if start is not None:
        return AutoTokenizer.from_pretrained(start, trust_remote_code=False), LlamaForCausalLM.from_pretrained(
            start, dtype=torch.float32
        )
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, LlamaForCausalLM(config)


def _summary(folder: Path, settings: BaseSettings) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / MODEL, trust_remote_code=False)
    rows = list(read_json_lines(folder / METRICS))
    return {
        "num_steps": settings.num_steps,
        "num_tokens": settings.num_steps * settings.batch_size * settings.row_tokens,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": next((row["loss"] for row in reversed(rows) if "loss" in row), None),
    }
