"""The baseline classifier: a discriminative PRM trained on labelled steps, in the layout of Qwen2.5-Math-PRM.

The loss is the cross-entropy of two classes, wrong and correct, at the tag of each labelled step. Steps of one problem
that share their beginning are merged into a tree, and each leaf is a sequence: a step is trained on once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from rprm.data.options import is_held_out
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.engines.loading import load_tokenizer
from rprm.errors import EngineError, InputError, RequestRefused
from rprm.reading import Rejected
from rprm.records import LabelledStep
from rprm.rewarders.classifier import SETTINGS_FILE, ClassifierSettings, make_layout, read_settings
from rprm.rewarders.layouts import Layout
from rprm.runs import LineWriter
from rprm.training.handover import CARD, MODEL, card_text, whole_folder
from rprm.training.lifecycle import RunArguments, TrainingResult, TrainingRun, group_by_length
from rprm.training.rows import MAX_SHARE_TOO_LONG
from rprm.training.settings import ClassifierTraining

if TYPE_CHECKING:
    import torch

    from rprm.rewarders.network import StepNetwork


class ClassifierArguments(RunArguments, total=False):
    """`validation` are labelled steps to evaluate on and to choose the threshold on; their problems are not trained on.
    By default a share of the problems is held out."""

    validation: str | Path | None


class ClassifierRun(TrainingRun):
    """Training of a classifier on labelled steps; see `train_classifier`."""

    kind = runs_as = "classifier"
    one_device = True
    settings: ClassifierTraining = ClassifierTraining()

    def __init__(self, steps: str | Path, **arguments: Unpack[ClassifierArguments]) -> None:
        from tokenizers import AddedToken

        sources = {"train": steps, "validation": arguments.get("validation")}
        super().__init__({"steps": str(steps)}, arguments)
        self.sources = {part: str(source) for part, source in sources.items() if source is not None}
        #: Sequences of each part, `train` and maybe `validation`, and what became of its labelled steps.
        self.sequences: dict[str, list[TokenSequence]] = {}
        self.counts: dict[str, MergeCounts] = {}
        self.num_rejected = self.num_shared = 0
        self.layout_settings = read_settings(self.base.target, self.base.revision) or ClassifierSettings("qwen")
        if self.layout_settings.layout != "qwen":
            found = f"{self.base.target} is a classifier in the {self.layout_settings.layout} layout"
            raise EngineError(f"{found}; begin with one in the qwen layout, or with a language model")
        self.tokenizer, tag = load_tokenizer(self.base.target, self.base.revision), self.layout_settings.step_tag
        is_new = tag not in self.tokenizer.get_vocab()
        if is_new:
            token = AddedToken(tag, special=True, normalized=False)
            self.tokenizer.add_tokens([token], special_tokens=True)
        self.layout = make_layout(self.layout_settings, self.tokenizer, self.base.target)
        self.new_tag_id = int(self.tokenizer.convert_tokens_to_ids(tag)) if is_new else None

    @property
    def has_validation(self) -> bool:
        if not self.sequences:
            return "validation" in self.sources or self.settings.validation_share > 0
        return bool(self.sequences.get("validation"))

    def identity(self) -> dict[str, Any]:
        digests = {part: steps_source(source).inspect().digest for part, source in self.sources.items()}
        data = {"input": digests["train"], "validation": digests.get("validation")}
        return {**data, "model": self.base.identity, "layout": "qwen"}

    def prepare(self) -> None:
        """Read, split, merge and encode; what cannot be used is refused, or noted."""
        rows: dict[str, list[LabelledStep]] = {}
        with closing(LineWriter(self.run.rejected_path, fresh=True)) as writer:
            for part, source in self.sources.items():
                rows[part] = []
                for row in read_labelled_steps(steps_source(source)):
                    if isinstance(row, Rejected):
                        writer.write(row.model_dump_json())
                        self.num_rejected += 1
                    else:
                        rows[part].append(row)
                if not rows[part]:
                    raise InputError(f"{source} has no labelled step")
        share, seed, steps = self.settings.validation_share, self.settings.split_seed, self.sources["train"]
        if "validation" not in rows:
            rows["validation"] = [row for row in rows["train"] if is_held_out(row.problem, share, seed)]
        held_out, total = {_key(row) for row in rows["validation"]}, len(rows["train"])
        rows["train"] = [row for row in rows["train"] if _key(row) not in held_out]
        if "validation" in self.sources:
            self.num_shared = total - len(rows["train"])
        if not rows["train"]:
            raise InputError(f"{steps} has no labelled step to train on ({total:,} rows, all of held-out problems)")
        self.callbacks.on_stage("tokenising")
        most, notes = self.settings.max_length, {"rows cannot be used": self.num_rejected}
        notes["steps are of problems to validate on, and not trained on"] = self.num_shared
        for part in [part for part in rows if rows[part]]:
            sequences, counts = merge_steps(rows[part])
            self.sequences[part] = encode_sequences(sequences, self.layout, counts, max_length=most)
            self.counts[part] = counts
            total = counts.num_trained + counts.num_too_long
            if counts.num_too_long > MAX_SHARE_TOO_LONG * total:
                which = f"{self.sources.get(part, steps)}: {counts.num_too_long:,} of {total:,} labelled steps"
                most_allowed = f"stand beyond max_length {most:,}, more than {MAX_SHARE_TOO_LONG:.0%}"
                raise InputError(f"{which} {most_allowed}; raise --max-length (steps are never cut)")
            notes[f"{part} steps stand beyond {most:,} tokens and are left out"] = counts.num_too_long
            notes[f"{part} steps contradict one another and are left out"] = counts.num_contradictory
        for what, number in notes.items():
            if number:
                self.callbacks.on_note(f"{number:,} {what}")
        train = self.counts["train"]
        if not train.num_correct or not train.num_wrong:
            only = "correct" if train.num_correct else "wrong"
            raise InputError(f"{steps}: all {train.num_trained:,} steps to train on are labelled {only}; add others")

    def make_config(self) -> Any:
        from transformers import TrainingArguments

        further = {"prediction_loss_only": True, "remove_unused_columns": False, "label_names": ["labels"]}
        return TrainingArguments(**self.common, **further)

    def make_trainer(self, config: Any, callbacks: list[Any]) -> Any:
        import torch
        from peft import get_peft_model
        from torch.nn.functional import cross_entropy
        from transformers import Trainer, set_seed

        set_seed(self.settings.seed)
        # Full training keeps float32 weights: at these learning rates a step is less than bfloat16 can tell. Under an
        # adapter the base model does not change.
        network: Any = self.network(bf16=self.bf16 and self.settings.lora_rank is not None)
        if self.settings.gradient_checkpointing:
            network.backbone.activation_checkpointing_enable()
        if self.settings.lora_rank:
            network = get_peft_model(network, self._adapter(network))
        weights = None
        if self.settings.balance:
            # n / (2 n_class): the weights of each class sum to half of n.
            counts = self.counts["train"]
            weights = [counts.num_trained / (2 * number) for number in (counts.num_wrong, counts.num_correct)]

        class StepTrainer(Trainer):  # type: ignore[misc]
            def compute_loss(
                self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
            ) -> Any:
                labels = inputs["labels"]
                wanted = labels != IGNORED
                read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                logits = model(**read, wanted=wanted)  # [steps, 2]
                weight = None if weights is None else torch.tensor(weights, device=logits.device)
                total = cross_entropy(logits, labels[wanted], weight=weight, reduction="sum")
                # Over the labelled steps of the whole optimizer step, not of this part of it: each counts the same.
                loss = total / (wanted.sum() if num_items_in_batch is None else num_items_in_batch)
                return (loss, {"logits": logits}) if return_outputs else loss

        if not self.has_validation:
            # Of the problems, none happened to be held out.
            config.eval_strategy = "no"
        data = {"train_dataset": self.sequences["train"], "eval_dataset": self.sequences.get("validation")}
        trainer = StepTrainer(model=network, args=config, data_collator=collate, callbacks=callbacks, **data)
        # Asks the trainer for `num_items_in_batch`, and not to divide by the number of accumulated batches.
        trainer.model_accepts_loss_kwargs = True
        if self.settings.group_by_length:
            lengths = [len(sequence.ids) for sequence in self.sequences["train"]]
            group_by_length(trainer, lengths, self.settings.batch_size)
        return trainer

    def network(self, *, bf16: bool) -> StepNetwork:
        """The base model's backbone with a head of its own, or, of a classifier, with the head it has."""
        import torch

        from rprm.rewarders.network import base_network

        dtype, attention = torch.bfloat16 if bf16 else torch.float32, self.settings.attention
        network = base_network(
            self.base.target, self.layout.head, dtype=dtype, revision=self.base.revision, attention=attention
        )
        if self.new_tag_id is not None:
            # The tag's embedding begins as the mean of all.
            table = network.backbone.get_input_embeddings().weight
            mean = table.detach().float().mean(0).to(table.dtype)
            if len(self.tokenizer) > table.shape[0]:
                network.backbone.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            with torch.no_grad():
                network.backbone.get_input_embeddings().weight[self.new_tag_id] = mean
        return network

    def _adapter(self, network: StepNetwork) -> Any:
        """A LoRA adapter; the head and the embedding of a new tag are trained whole."""
        import torch
        from peft import LoraConfig

        lora, modules = self.settings.lora, dict(network.backbone.named_modules())
        if lora["target_modules"] == "all-linear":
            linear = (name for name, module in modules.items() if isinstance(module, torch.nn.Linear))
            lora["target_modules"] = sorted({name.rpartition(".")[2] for name in linear})
        embeddings = network.backbone.get_input_embeddings()
        embedding = next(name for name, module in modules.items() if module is embeddings)
        tokens = None if self.new_tag_id is None else {embedding: [self.new_tag_id]}
        return LoraConfig(**lora, modules_to_save=["score"], trainable_token_indices=tokens)

    def hand_over(self, checkpoint: Path, figures: dict[str, Any]) -> dict[str, Any]:
        import torch
        from safetensors.torch import load_file

        # An adapter is merged in float32: a small change survives rounding once, not twice.
        network = self.network(bf16=False)
        if self.settings.lora_rank:
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, str(checkpoint)).merge_and_unload()
        else:
            network.load_state_dict(load_file(checkpoint / "model.safetensors"))
        network.backbone.to(torch.bfloat16 if self.bf16 else torch.float32)
        held_out = self.sequences.get("validation", [])
        device = "cpu" if self.use_cpu else "cuda" if torch.cuda.is_available() else "mps"
        rewards = network_rewards(network.to(device).eval(), held_out, self.settings.device_batch_size)
        labels = [bool(label) for sequence in held_out for label in sequence.classes]
        threshold = best_threshold(rewards, labels)
        at = [accuracies(rewards, labels, value) for value in dict.fromkeys((threshold, 0.5))]
        summary = {
            **figures,
            "threshold": threshold,
            "validation": at if rewards else [],
            "rows": {part: asdict(counts) for part, counts in self.counts.items()},
            "num_rejected": self.num_rejected,
            "num_left_out_as_validation": self.num_shared,
        }
        title = "A discriminative process reward model"
        about = (
            "It reads a problem and a solution in steps, and rewards every step in one forward pass: the second class "
            f"of a two-way head at the tag `{self.layout_settings.step_tag}` after each step, as in Qwen2.5-Math-PRM."
        )
        card = card_text(self, summary, title, about)
        self._write(network, replace(self.layout_settings, threshold=threshold), card)
        return summary

    def _write(self, network: StepNetwork, settings: ClassifierSettings, card: str) -> None:
        from huggingface_hub import save_torch_state_dict

        parts = {"model": network.backbone, "score": network.score}
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        config = network.backbone.config
        if config.model_type == "qwen2":
            # The name under which vLLM, too, knows this network.
            config.architectures = ["Qwen2ForProcessRewardModel"]
        config.dtype = str(network.backbone.dtype).removeprefix("torch.")
        config.use_cache = True
        with whole_folder(self.folder / MODEL) as folder:
            save_torch_state_dict(tensors, folder)
            config.save_pretrained(folder)
            for file in folder.glob("*.safetensors"):
                # Written for the owner alone; readable by whom the rest of the folder is.
                shutil.copymode(folder / "config.json", file)
            self.tokenizer.save_pretrained(folder)
            (folder / SETTINGS_FILE).write_text(settings.to_json(base=self.base.identity), encoding="utf-8")
            (folder / CARD).write_text(card, encoding="utf-8")


def train_classifier(steps: str | Path, **arguments: Unpack[ClassifierArguments]) -> TrainingResult:
    """Train a classifier on labelled steps; or resume where an earlier session on the same folder was killed.

    Args:
        steps: labelled steps: a run folder of `rprm data steps`, a file, or a hub data set.
        arguments: see `ClassifierArguments`. The model is any causal language model, or a qwen classifier.

    Raises:
        RprmError: see `TrainingRun.work`.
    """
    return ClassifierRun(steps, **arguments).work()


def _key(row: LabelledStep) -> str:
    """What a problem is known by; case and spacing do not matter, as in `is_held_out`."""
    return " ".join(row.problem.casefold().split())


def network_rewards(network: StepNetwork, sequences: Sequence[TokenSequence], batch_size: int) -> list[float]:
    """Rewards of the labelled steps of sequences, in order."""
    import torch

    device = next(network.score.parameters()).device
    # By length, so that little is padding; rewards go back to their places.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    found: dict[int, list[float]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in collate([sequences[i] for i in chosen]).items()}
            logits = network(batch["input_ids"], batch["attention_mask"], batch["labels"] != IGNORED)
            rewards = iter(logits.double().softmax(-1)[:, 1].tolist())
            found |= {index: [next(rewards) for _ in sequences[index].positions] for index in chosen}
    return [reward for index in range(len(sequences)) for reward in found[index]]


# --- sequences ---------------------------------------------------------------------------------------------------

#: Marks a token that carries no loss.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class StepSequence:
    """Steps of one problem in their order; `labels` has None where a step is not trained on here."""

    problem: str
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]


@dataclass
class MergeCounts:
    """What became of the labelled steps of a part: `num_repeated` are the same step after the same steps with the same
    label as an earlier row (trained on once); those that one row calls right and another wrong, and those beyond the
    longest length, are not trained on."""

    num_rows: int = 0
    num_repeated: int = 0
    num_contradictory: int = 0
    num_too_long: int = 0
    num_correct: int = 0
    num_wrong: int = 0
    num_sequences: int = 0
    num_tokens: int = 0

    @property
    def num_trained(self) -> int:
        return self.num_correct + self.num_wrong


@dataclass(slots=True)
class _Node:
    """A step after the steps above it. Children stand in the order of their first rows."""

    children: dict[str, _Node] = field(default_factory=dict)
    labels: set[bool] = field(default_factory=set)


def merge_steps(rows: Iterable[LabelledStep]) -> tuple[list[StepSequence], MergeCounts]:
    """Merge labelled steps into sequences, in the order of their problems' first rows, each step labelled in one; and
    counts (those of tokens and lengths still 0)."""
    counts = MergeCounts()
    roots: dict[str, _Node] = {}
    for row in rows:
        counts.num_rows += 1
        node = roots.setdefault(row.problem, _Node())
        for step in row.steps:
            node = node.children.setdefault(step, _Node())
        counts.num_repeated += row.label in node.labels
        counts.num_contradictory += node.labels == {not row.label}
        node.labels.add(row.label)
    sequences = []
    pending = [(StepSequence(problem, (), ()), root) for problem, root in reversed(roots.items())]
    while pending:
        path, node = pending.pop()
        # Where rows contradict each other, a sequence can be left without a label.
        if not node.children and any(label is not None for label in path.labels):
            sequences.append(path)
        for place, (step, child) in reversed(list(enumerate(node.children.items()))):
            own = next(iter(child.labels)) if len(child.labels) == 1 else None
            # The first sequence through a step has its label.
            labels = path.labels if place == 0 else (None,) * len(path.labels)
            pending.append((StepSequence(path.problem, (*path.steps, step), (*labels, own)), child))
    return sequences, counts


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A sequence as the network reads it: `ids` [tokens], and the class (0 wrong, 1 correct) at `positions` [steps]."""

    ids: Any
    positions: tuple[int, ...]
    classes: tuple[int, ...]


def encode_sequences(
    sequences: Iterable[StepSequence], layout: Layout, counts: MergeCounts, *, max_length: int
) -> list[TokenSequence]:
    """Lay sequences out. Each ends at its last labelled step (a causal model reads no further); steps whose tag stands
    beyond `max_length` are left out."""
    import numpy as np

    encoded = []
    for sequence in sequences:
        labelled = [(index, label) for index, label in enumerate(sequence.labels) if label is not None]
        try:
            rendered = layout.render(sequence.problem, sequence.steps[: labelled[-1][0] + 1])
        except RequestRefused as error:
            raise InputError(f"problem {sequence.problem[:60]!r}: {error}; remove it from the text") from None
        places = [(rendered.positions[index], int(label)) for index, label in labelled]
        kept = [(place, label) for place, label in places if place < max_length]
        counts.num_too_long += len(labelled) - len(kept)
        if not kept:
            continue
        positions, classes = zip(*kept, strict=True)
        ids = np.array(rendered.ids[: positions[-1] + 1], dtype=np.int32)
        encoded.append(TokenSequence(ids, positions, classes))
        counts.num_correct += sum(classes)
        counts.num_wrong += len(classes) - sum(classes)
        counts.num_sequences += 1
        counts.num_tokens += len(ids)
    return encoded


def collate(sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """A batch, padded on the right: `input_ids`, `attention_mask` and `labels` (-100 but at trained tags), each
    [sequences, tokens]."""
    import torch

    shape = len(sequences), max(len(sequence.ids) for sequence in sequences)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.from_numpy(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        labels[row, list(sequence.positions)] = torch.tensor(sequence.classes)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def accuracies(rewards: Sequence[float], labels: Sequence[bool], threshold: float) -> dict[str, float | None]:
    """At a threshold, `wrong`, the share of the wrong steps with a reward below it; `correct`, the share of the correct
    ones at or above it; `f1`, their harmonic mean. None where there is no step of the kind."""
    sides: dict[bool, list[bool]] = {False: [], True: []}
    for reward, label in zip(rewards, labels, strict=True):
        sides[label].append((reward >= threshold) is label)
    wrong, correct = (sum(side) / len(side) if side else None for side in sides.values())
    f1 = None if wrong is None or correct is None else _f1(wrong, correct)
    return {"threshold": threshold, "wrong": wrong, "correct": correct, "f1": f1}


def _f1(wrong: float, correct: float) -> float:
    return 2 * wrong * correct / (wrong + correct) if wrong + correct else 0.0


def best_threshold(rewards: Sequence[float], labels: Sequence[bool]) -> float:
    """The threshold with the best f1, of equals the one closest to 0.5: among 0.5 and the middles between neighbouring
    rewards. Where a class has no step, 0.5."""
    num_correct, num_wrong = sum(labels), len(labels) - sum(labels)
    if not num_correct or not num_wrong:
        return 0.5
    ranked = sorted(zip(rewards, labels, strict=True))
    found = [(accuracies(rewards, labels, 0.5)["f1"] or 0.0, 0.0, 0.5)]
    below = 0
    for number, ((reward, label), (above, _)) in enumerate(pairwise(ranked), 1):
        below += label
        middle = (reward + above) / 2
        # Neighbours too close for a number between them are one reward.
        if reward < middle < 1.0:
            f1 = _f1((number - below) / num_wrong, 1 - below / num_correct)
            found.append((f1, -abs(middle - 0.5), middle))
    return max(found)[2]
