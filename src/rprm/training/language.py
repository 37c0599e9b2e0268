"""What the trainings of judges that write analyses share, which TRL does: the cold start (SFT) and preference
optimisation (DPO), both on rows of analyses, and reinforcement learning (GRPO)."""

from __future__ import annotations

import contextlib
import json
import shutil
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from rprm.engines.loading import ADAPTER_CONFIG, load_tokenizer, load_weights, merge_adapter
from rprm.errors import PromptError, RunError
from rprm.files import read_json
from rprm.folders import own_file
from rprm.prompts.library import MODEL_TEMPLATE, load_template
from rprm.prompts.template import CriticTemplate, PromptTemplate
from rprm.reading import Source
from rprm.training.estimate import Row, Workload, read_part
from rprm.training.handover import whole_folder
from rprm.training.lifecycle import ROWS, RunArguments, TrainingRun, group_by_length
from rprm.training.rows import (
    TrainingRow,
    as_rendered,
    check_batch,
    check_rows,
    encode_data,
    encode_row,
    end_token,
    open_data,
    row_lengths,
    training_rows,
)

ADAPTER = "adapter"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


class LanguageRun(TrainingRun):
    """Training of a language model that judges as its template asks it to."""

    runs_as = "transformers"
    does: str  #: What the model has been trained to do, for its card.
    carried_as = MODEL_TEMPLATE  #: The file in the model's folder that holds the template.

    def __init__(self, source: str, template: PromptTemplate | CriticTemplate, arguments: RunArguments) -> None:
        super().__init__({"input": source}, arguments)
        self.template = template
        self.tokenizer = load_tokenizer(self.base.target, self.base.revision)
        self.end = end_token(self.tokenizer, self.base.stops, chat=template.chat)
        self.counts: dict[str, dict[str, int]] = {}
        self.title = f"A reasoning-driven process reward model ({self.kind.upper()})"
        if isinstance(template, PromptTemplate):
            yes, no = template.verdict.yes, template.verdict.no
            self.about = (
                "It reads a problem, the steps of a solution so far and the step at hand, writes an analysis, and ends "
                f"in a verdict ({yes} or {no}); the probability of {yes}, averaged over "
                f"sampled analyses, is the step's reward (arXiv 2503.21295). {self.does}"
            )

    def identity(self) -> dict[str, Any]:
        prompt = {name: getattr(self.template, name) for name in ("name", "digest")}
        return {"prompt": prompt, "model": self.base.identity}

    def check(self) -> None:
        from transformers import AutoModelForCausalLM

        self.check_model(AutoModelForCausalLM)

    @abstractmethod
    def trl(self) -> tuple[Any, Any, dict[str, Any]]:
        """TRL's trainer, which takes rows of token ids, its arguments' class, and those of this kind alone."""

    def make_config(self) -> Any:
        settings, (_, config, further) = self.settings, self.trl()
        # Of a DPO's reference model too. Full training keeps float32 weights: at these learning rates a step is less
        # than bfloat16 can tell. Under an adapter the base model does not change.
        dtype = "bfloat16" if self.bf16 and settings.lora_rank else "float32"
        weights = {"dtype": dtype, "trust_remote_code": False, "revision": self.base.revision}
        weights |= {"attn_implementation": settings.attention} if settings.attention else {}
        activations = settings.gradient_checkpointing
        return config(**self.common, **further, activation_checkpointing=activations, model_init_kwargs=weights)

    def how(self, config: Any, callbacks: list[Any]) -> dict[str, Any]:
        """What every trainer is given besides its rows."""
        from peft import LoraConfig

        # The trainer gives its tokenizer a padding token; the model's own stays as it is.
        tokenizer = load_tokenizer(self.base.target, self.base.revision)
        # `all-linear` leaves the output head out.
        lora = LoraConfig(**self.settings.lora, task_type="CAUSAL_LM") if self.settings.lora_rank else None
        how = {"args": config, "processing_class": tokenizer, "callbacks": callbacks, "peft_config": lora}
        return {"model": self.base.target, **how}

    def hand_over(self, checkpoint: Path, folder: Path) -> dict[str, Any]:
        """Weights, and the template; of a LoRA adapter that is merged, `adapter/` beside."""
        base, merge, is_adapter = self.base, self.settings.merge, (checkpoint / ADAPTER_CONFIG).is_file()
        if not is_adapter and not any(checkpoint.glob("model*.safetensors")):
            hint = "FULL_STATE_DICT of FSDP, zero3_save_16bit_model of DeepSpeed: see recipes/accelerate"
            raise RunError(f"{checkpoint} has no weights in one piece; train so that they are saved whole ({hint})")
        if is_adapter:
            # It fits its base model at that revision alone.
            config = read_json(checkpoint / ADAPTER_CONFIG)
            config |= {"base_model_name_or_path": base.target, "revision": base.revision}
            # A set, which peft writes in an order that changes from process to process.
            config["target_modules"] = sorted(config["target_modules"])
            with whole_folder(self.folder / ADAPTER) if merge else contextlib.nullcontext(folder) as beside:
                (beside / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
                shutil.copyfile(checkpoint / _ADAPTER_WEIGHTS, beside / _ADAPTER_WEIGHTS)
        if merge or not is_adapter:
            self._save_weights(checkpoint, folder, is_adapter)
        (folder / self.carried_as).write_text(self.template.to_toml(), encoding="utf-8")
        return {"rows": self.counts}

    def _save_weights(self, checkpoint: Path, folder: Path, is_adapter: bool) -> None:
        """Weights, and the base model's generation config, which also stops at the token that replies end in."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # In a training by ZeRO this process would wait for the others to load their parts.
        unset_hf_deepspeed_config()
        base, dtype = self.base, torch.bfloat16 if self.bf16 else torch.float32
        if is_adapter:
            # Merged in float32, whatever the weights are stored in: a small change survives rounding once, not twice.
            model = load_weights(AutoModelForCausalLM, base.target, dtype=torch.float32, revision=base.revision)
            model = merge_adapter(model, str(checkpoint)).to(dtype)
        else:
            model = load_weights(AutoModelForCausalLM, str(checkpoint), dtype=dtype)
            # Training turns the cache off; whoever runs the model wants it.
            model.config.use_cache = True
        # A released config may hold sampling settings that transformers reads but refuses to save.
        model.generation_config = generation = GenerationConfig()
        model.save_pretrained(folder)
        with contextlib.suppress(OSError):
            generation = GenerationConfig.from_pretrained(base.target, revision=base.revision)
        ends = [self.end, *(token for token in base.stops if token != self.end)]
        generation.eos_token_id = ends if len(ends) > 1 else self.end
        (folder / "generation_config.json").write_text(generation.to_json_string(use_diff=True))


class AnalysesRun(LanguageRun):
    """Training on rows of analyses; see `train_sft` and `train_dpo`."""

    def __init__(self, data: str | Path, prompt: str | Path | None, **arguments: Unpack[RunArguments]) -> None:
        self.data, self.deliberate = open_data(data, prompt), prompt is not None
        super().__init__(self.data.name, self.data.template, arguments)

    @property
    def has_validation(self) -> bool:
        return "validation" in self.data.parts

    def identity(self) -> dict[str, Any]:
        digests = {part: Source(str(path)).inspect().digest[:23] for part, path in self.data.parts.items()}
        return {"input": digests, **super().identity()}

    def workload(self) -> Workload:
        def size(row: TrainingRow) -> int:
            return sum(len(message.content) for message in row.prompt.messages) + max(map(len, row.replies))

        def tokens(row: TrainingRow) -> Row:
            if not row.prompt.chat:
                row = replace(row, prompt=as_rendered(self.data.template, row.prompt) or row.prompt)
            prompt, replies = encode_row(self.tokenizer, row, self.end)
            return Row(tuple(len(prompt) + len(reply) for reply in replies), sum(map(len, replies)))

        most = self.settings.max_length
        parts = {part: training_rows(path, self.kind) for part, path in self.data.parts.items()}
        return Workload({part: read_part(rows, size, tokens, most) for part, rows in parts.items()})

    def check(self) -> None:
        super().check()
        template, carried = self.data.template, own_file(Path(self.base.target), MODEL_TEMPLATE)
        if not self.deliberate and carried is not None and (own := load_template(carried)).digest != template.digest:
            raise PromptError(
                f"{self.base.target} was trained with template {own.name!r} ({own.digest}), the data has another, "
                f"{template.digest}; render the data again, or, on purpose, name the data's template with --prompt"
            )
        check_rows(self.data, self.kind)

    def prepare(self) -> None:
        self.callbacks.on_stage("tokenising")
        most, note = self.settings.max_length, self.callbacks.on_note
        self.counts = encode_data(self.data, self.kind, self.folder / ROWS, self.tokenizer, self.end, most, note)

    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        from datasets import Dataset

        rows = {part: Dataset.from_file(str(self.folder / ROWS / f"{part}.arrow")) for part in self.data.parts}
        data = {"train_dataset": rows["train"], "eval_dataset": rows.get("validation")}
        trainer = self.trl()[0](**data, **self.how(config, callbacks))
        check_batch(trainer, rows["train"])
        if self.settings.group_by_length:
            group_by_length(trainer, row_lengths(trainer.train_dataset), self.settings.batch_size)
        return trainer
