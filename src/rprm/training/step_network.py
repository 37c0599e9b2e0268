"""The network of a classifier in training: its tag, its adapter, its loss, and the rewards it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rprm.engines.loading import load_tokenizer
from rprm.training.rows import BaseModel
from rprm.training.settings import TrainingSettings
from rprm.training.step_sequences import IGNORED, MergeCounts, TokenSequence, collate

if TYPE_CHECKING:
    from rprm.rewarders.network import StepNetwork


def adapted(network: StepNetwork, settings: TrainingSettings, new_tag_id: int | None) -> Any:
    """The network under a LoRA adapter; the head and the embedding of a new tag are trained whole."""
    import torch
    from peft import LoraConfig, get_peft_model

    assert settings.lora_rank is not None
    names = {
        name.rpartition(".")[2]
        for name, module in network.backbone.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if settings.lora_targets != "all-linear":
        names = {name.strip() for name in settings.lora_targets.split(",")}
    embeddings = network.backbone.get_input_embeddings()
    embedding = next(name for name, module in network.backbone.named_modules() if module is embeddings)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_rank,
        lora_dropout=settings.lora_dropout,
        target_modules=sorted(names),
        modules_to_save=["score"],
        trainable_token_indices={embedding: [new_tag_id]} if new_tag_id is not None else None,
    )
    return get_peft_model(network, config)


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


def balancing_weights(counts: MergeCounts) -> tuple[float, float]:
    """Weights of wrong and correct: n / (2 n_class), so that a class's weights sum to half of n."""
    total = counts.num_trained
    return total / (2 * counts.num_wrong), total / (2 * counts.num_correct)


def make_trainer(*, class_weights: tuple[float, float] | None, **arguments: Any) -> Any:
    """transformers' Trainer with the loss at the tags."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import Trainer

    class StepTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs["labels"]
            wanted = labels != IGNORED
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], wanted=wanted
            )  # [steps, 2]
            weight = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
            total = cross_entropy(logits, labels[wanted], weight=weight, reduction="sum")
            # Over the labelled steps of the whole optimizer step, not of this part of it: each step counts the same.
            loss = total / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)
            return (loss, {"logits": logits}) if return_outputs else loss

    trainer = StepTrainer(**arguments)
    # Asks the trainer for `num_items_in_batch`, and not to divide by the number of accumulated batches.
    trainer.model_accepts_loss_kwargs = True
    return trainer


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
