"""TRL's GRPO trainer, for questions that come as token ids: replies by our own engine or by vLLM, groups that teach
nothing left out of the step, one evaluation of ours, and a killed run that resumes as if it had not been.

A group is skipped where all its replies are worth the same, length aside: all right or all wrong, as a rule. Its
advantages are (next to) nothing, yet its tokens would stand in the mean that the loss is. They are in no forward pass
and no mean; where a step has no other group, it changes no weight. No further questions are drawn in their place
(DAPO's dynamic sampling): near the end of a training most groups are such, and a step would cost ever more replies.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from rprm.engines.base import Sampling
from rprm.errors import InputError
from rprm.training.live import LiveEngine
from rprm.training.questions import Figures, in_thread

#: Figures of the groups since the last logged row, which tell what was skipped.
SKIPPED = ("num_groups", "num_all_right", "num_all_wrong", "num_all_equal")
_USE = "this TRL treats them otherwise; use trl 1.16"


class GroupTrainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """`measure` is called with an engine over the model, in the main process; `sampling` is of every reply. The first
    reward function tells right from wrong (1 and below), those after the second do not save a group."""

    def __init__(
        self, *, sampling: Sampling, max_rows: int, measure: Callable[[LiveEngine], Figures], **arguments: Any
    ) -> None:
        self._buffered_inputs: Any = None
        self.control: Any = None
        super().__init__(**arguments)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise InputError("grpo samples with whole weights: launch it without FSDP and DeepSpeed (docs/training.md)")
        self.sampling, self.max_rows, self.measure = sampling, max_rows, measure
        self.counts, self._is_checked = Counter[str](), False
        self.add_callback(_FirstEvaluation(self))

    # --- what is sampled -----------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        trainer = self

        class EpochSampler(RepeatSampler):  # type: ignore[misc]
            # In an order of seed and epoch alone, which a resumed run has too.
            def __iter__(self) -> Iterator[int]:
                self.generator.manual_seed(1_000_003 * trainer.args.seed + int(trainer.state.epoch or 0))
                yield from super().__iter__()

        return EpochSampler(
            data_source=self.train_dataset, mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.args.steps_per_generation, seed=self.args.seed,
        )  # fmt: skip

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """They are tokens already, those that an engine reads."""
        return prompts, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, **further: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        if self.use_vllm:
            found: tuple[Any, Any] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, **further
            )
            return found
        seeds = self._seeds(prompt_ids)
        engine = self.engine()
        replies = in_thread(lambda: engine.sample(prompt_ids, self.sampling, seeds))
        self.model.train()
        return replies, None

    def _seeds(self, prompts: Sequence[list[int]]) -> list[int]:
        """Of each reply, by seed, optimizer step, question and its number among the replies to that."""
        seen, begun = Counter[bytes](), f"{self.args.seed}\0{self.state.global_step}\0{self.args.process_index}\0"
        seeds = []
        for ids in prompts:
            key = ",".join(map(str, ids)).encode()
            text = f"{begun}{seen[key]}\0".encode() + key
            seen[key] += 1
            seeds.append(int.from_bytes(hashlib.blake2b(text, digest_size=4).digest()) & 0x7FFF_FFFF)
        return seeds

    def engine(self) -> LiveEngine:
        """Over the weights as they are now; the model is left in evaluation mode."""
        model = self.accelerator.unwrap_model(self.model)
        return LiveEngine(model.get_base_model() if is_peft_model(model) else model, self._tokenizer, self.max_rows)

    # --- what is trained on --------------------------------------------------------------------------------------

    def _calculate_rewards(self, *arguments: Any, **further: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(*arguments, **further)
        self._is_skipped, counts = skipped(rewards, self.num_generations)
        self.counts.update(counts)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self._is_checked:
            for row, ids, mask in zip(inputs, batch["prompt_ids"], batch["prompt_mask"], strict=True):
                if ids[mask.bool()].tolist() != list(row["prompt"]):
                    raise InputError(f"the trainer's tokens are not those of the questions: {_USE}")
            self._is_checked = True
        begin = self.accelerator.process_index * len(inputs)
        return {**batch, "is_kept": ~self._is_skipped[begin : begin + len(inputs)]}

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Called in training alone: `evaluate` is ours."""
        place = self._step % self.args.steps_per_generation
        if place == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self.parts(self._generate_and_score_completions(generation_batch))
        found: dict[str, Any] = self._buffered_inputs[place]
        return found

    def parts(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """The batches of the optimizer steps on what was sampled: the replies that are kept, spread over the steps at
        random and within each by length, without padding that none of them needs. The loss is the mean over the tokens
        of a step (DAPO), whatever batch they stand in."""
        num_batches = self.args.gradient_accumulation_steps
        num_updates = self.args.steps_per_generation // num_batches
        kept = batch.pop("is_kept").nonzero().flatten().cpu()
        generator = torch.Generator().manual_seed(1_000_003 * self.args.seed + self.state.global_step)
        updates = kept[torch.randperm(len(kept), generator=generator)].tensor_split(num_updates)
        lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).cpu()
        num_tokens = torch.stack([batch["completion_mask"][rows].sum() for rows in updates])
        num_tokens = self.accelerator.reduce(num_tokens, "sum")
        parts = []
        for rows, number in zip(updates, num_tokens, strict=True):
            for some in rows[lengths[rows].argsort(stable=True)].tensor_split(num_batches):
                # TRL divides it by the number of steps that share what was sampled.
                parts.append(_of_rows(batch, some) | {"num_items_in_batch": number * num_updates})
        return parts

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        place = self._step % self.args.steps_per_generation
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and not self._buffered_inputs[place]["num_items_in_batch"]:
            # Without gradients the optimizer moves nothing; gradients of 0 would leave it its momentum.
            model.zero_grad(set_to_none=True)
        return loss

    # --- what is told --------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs |= {name: self.counts[name] for name in SKIPPED}
        self.counts.clear()
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> Figures:
        """The figures of `measure`, by the name `eval_NAME`, on every process."""
        found = [self.measure(self.engine()) if self.args.process_index == 0 else None]
        if self.args.world_size > 1:
            broadcast_object_list(found)
        self.model.train()
        figures = {f"eval_{name}": value for name, value in (found[0] or {}).items()}
        Trainer.log(self, dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures


class _FirstEvaluation(TrainerCallback):  # type: ignore[misc]
    """An evaluation before the first step, to compare with."""

    def __init__(self, trainer: GroupTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0 and args.eval_strategy != "no":
            self.trainer.evaluate()


def skipped(rewards: torch.Tensor, num_samples: int) -> tuple[torch.Tensor, dict[str, int]]:
    """Which replies are of groups that are skipped, by the rewards [replies, functions] of groups of so many, the first
    of which tells right from wrong; and how many groups there were, and were skipped, by the names of `SKIPPED`."""
    groups = rewards.view(-1, num_samples, rewards.shape[1])[:, :, :2]
    is_equal = (groups == groups[:, :1]).all(-1).all(-1)
    right, wrong = (is_equal & (groups[:, 0, 0] == worth) for worth in (1.0, -1.0))
    found = (torch.ones_like(is_equal), right, wrong, is_equal & ~right & ~wrong)
    counts = {name: int(which.sum()) for name, which in zip(SKIPPED, found, strict=True)}
    return is_equal.repeat_interleave(num_samples), counts


def _of_rows(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Some rows of a batch; of none the first one, of which no token counts."""
    found = {name: value[rows if len(rows) else [0]] for name, value in batch.items() if value.dim()}
    if not len(rows):
        found["completion_mask"] = torch.zeros_like(found["completion_mask"])
    # Prompts stand at the right, replies at the left.
    num_prompt, num_reply = (max(int(found[f"{of}_mask"].sum(1).max()), 1) for of in ("prompt", "completion"))
    width = batch["completion_ids"].shape[1]
    for name, value in found.items():
        if name in ("prompt_ids", "prompt_mask"):
            found[name] = value[:, -num_prompt:]
        elif value.dim() > 1 and value.shape[1] == width:
            found[name] = value[:, :num_reply]
    return found
