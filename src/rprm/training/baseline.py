"""The baseline classifier: a discriminative PRM trained on labelled steps, in the layout of Qwen2.5-Math-PRM. The loss
is the cross-entropy of two classes, wrong and correct, at the tag of each labelled step. Steps that share their
beginning are merged into a tree, and each leaf is a sequence: a step is trained on once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from rprm.data.stage_options import is_held_out
from rprm.data.steps import read_labelled_steps, steps_source
from rprm.engines.loading import load_tokenizer, plain_errors
from rprm.errors import EngineError, InputError, RequestRefused
from rprm.reading import Rejected
from rprm.records import LabelledStep
from rprm.rewarders.classifier import SETTINGS_FILE, ClassifierSettings, make_layout, read_settings
from rprm.rewarders.layouts import Layout
from rprm.runs import LineWriter
from rprm.training.estimate import Row, Workload, read_part
from rprm.training.lifecycle import RunArguments, TrainingResult, TrainingRun, group_by_length
from rprm.training.rows import MAX_SHARE_TOO_LONG
from rprm.training.settings import ClassifierTraining

if TYPE_CHECKING:
    import torch

    from rprm.rewarders.network import StepNetwork


class ClassifierRun(TrainingRun):
    """Training of a classifier on labelled steps; see `train_classifier`."""

    kind = runs_as = "classifier"
    one_device = True
    settings: ClassifierTraining = ClassifierTraining()
    title = "A discriminative process reward model"

    def __init__(self, steps: str | Path, validation: str | Path | None, **arguments: Unpack[RunArguments]) -> None:
        from tokenizers import AddedToken

        super().__init__({"steps": str(steps)}, arguments)
        given = {"train": steps, "validation": validation}
        self.sources = {part: str(source) for part, source in given.items() if source is not None}
        self.sequences: dict[str, list[TokenSequence]] = {}  #: Of each part, `train` and maybe `validation`.
        self.counts: dict[str, MergeCounts] = {}
        self.num_rejected = self.num_shared = 0
        self.layout_settings = read_settings(self.base.target, self.base.revision) or ClassifierSettings("qwen")
        if self.layout_settings.layout != "qwen":
            found = f"{self.base.target} is a classifier in the {self.layout_settings.layout} layout"
            raise EngineError(f"{found}; begin with one in the qwen layout, or with a language model")
        self.tokenizer, tag = load_tokenizer(self.base.target, self.base.revision), self.layout_settings.step_tag
        if is_new := tag not in self.tokenizer.get_vocab():
            self.tokenizer.add_tokens([AddedToken(tag, special=True, normalized=False)], special_tokens=True)
        with plain_errors(self.base.target, "a tokenizer", what="the tokenizer"):
            self.layout = make_layout(self.layout_settings, self.tokenizer, self.base.target)
        self.new_tag_id = int(self.tokenizer.convert_tokens_to_ids(tag)) if is_new else None
        self.about = (
            "It reads a problem and a solution in steps, and rewards every step in one forward pass: the second class "
            f"of a two-way head at the tag `{tag}` after each step, as in Qwen2.5-Math-PRM."
        )

    @property
    def has_validation(self) -> bool:
        if not self.sequences:
            return "validation" in self.sources or self.settings.validation_share > 0
        return bool(self.sequences.get("validation"))

    def identity(self) -> dict[str, Any]:
        digests = {part: steps_source(source).inspect().digest for part, source in self.sources.items()}
        data = {"input": digests["train"], "validation": digests.get("validation")}
        return {**data, "model": self.base.identity, "layout": "qwen"}

    def check(self) -> None:
        from transformers import AutoModel

        self.check_model(AutoModel, num_new=0 if self.new_tag_id is None else 1)

    def workload(self) -> Workload:
        def size(sequence: StepSequence) -> int:
            return len(sequence.problem) + sum(map(len, sequence.steps))

        def tokens(sequence: StepSequence) -> Row:
            encoded = encode_sequences([sequence], self.layout, MergeCounts(), max_length=most)
            # Without a step within it, it is too long.
            return Row((len(encoded[0].ids) if encoded else most + 1,), 0)

        most = self.settings.max_length
        parts = {part: merge_steps(rows)[0] for part, rows in self._read(lambda row: None).items() if rows}
        found = {part: read_part(sequences, size, tokens, most) for part, sequences in parts.items()}
        return Workload(found, scores_words=False)

    def _read(self, reject: Callable[[Rejected], None]) -> dict[str, list[LabelledStep]]:
        """Labelled steps by part; those of problems to validate on are not trained on."""
        rows: dict[str, list[LabelledStep]] = {}
        for part, source in self.sources.items():
            rows[part] = []
            for row in read_labelled_steps(steps_source(source)):
                if isinstance(row, Rejected):
                    reject(row)
                    self.num_rejected += 1
                else:
                    rows[part].append(row)
            if not rows[part]:
                raise InputError(f"{source} has no labelled step")
        share, seed, steps = self.settings.validation_share, self.settings.split_seed, self.sources["train"]
        if "validation" not in rows:
            rows["validation"] = [row for row in rows["train"] if is_held_out(row.problem, share, seed)]
        # Case and spacing do not matter, as in `is_held_out`.
        problem = {row.problem: " ".join(row.problem.casefold().split()) for part in rows.values() for row in part}
        held_out, total = {problem[row.problem] for row in rows["validation"]}, len(rows["train"])
        rows["train"] = [row for row in rows["train"] if problem[row.problem] not in held_out]
        if "validation" in self.sources:
            self.num_shared = total - len(rows["train"])
        if not rows["train"]:
            raise InputError(f"{steps} has no labelled step to train on ({total:,} rows, all of held-out problems)")
        return rows

    def prepare(self) -> None:
        """Read, split, merge and encode; what cannot be used is refused, or noted."""
        with closing(LineWriter(self.run.rejected_path, fresh=True)) as writer:

            def reject(row: Rejected) -> None:
                for line in row.listed(self.num_rejected):
                    writer.write(line)

            rows = self._read(reject)
        self.callbacks.on_stage("tokenising")
        most, steps, notes = self.settings.max_length, self.sources["train"], {"rows cannot be used": self.num_rejected}
        notes["steps are of problems to validate on, and not trained on"] = self.num_shared
        for part in [part for part in rows if rows[part]]:
            sequences, counts = merge_steps(rows[part])
            self.sequences[part] = encode_sequences(sequences, self.layout, counts, max_length=most)
            self.counts[part] = counts
            total, too_long = counts.num_trained + counts.num_too_long, counts.num_too_long
            if too_long > MAX_SHARE_TOO_LONG * total:
                which = f"{self.sources.get(part, steps)}: {too_long:,} of {total:,} labelled steps stand beyond"
                limit = f"max_length {most:,}, more than {MAX_SHARE_TOO_LONG:.0%}; raise --max-length (none is cut)"
                raise InputError(f"{which} {limit}")
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
        counts = self.counts["train"]
        # n / (2 n_class): the weights of each class sum to half of n.
        weights = [counts.num_trained / (2 * number) for number in (counts.num_wrong, counts.num_correct)]

        def loss(logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> Any:
            weight = torch.tensor(weights, device=logits.device) if self.settings.balance else None
            total = cross_entropy(logits, labels[labels != IGNORED], weight=weight, reduction="sum")
            # Over the labelled steps of the whole optimizer step, not of this part of it: each counts the same.
            return total / num_items_in_batch

        # Of the problems, none may happen to be held out.
        config.eval_strategy = "steps" if self.has_validation else "no"
        train, validation = self.sequences["train"], self.sequences.get("validation")
        trainer = Trainer(network, config, collate, train, validation, compute_loss_func=loss, callbacks=callbacks)
        if self.settings.group_by_length:
            group_by_length(trainer, [len(sequence.ids) for sequence in train], self.settings.batch_size)
        return trainer

    def network(self, *, bf16: bool) -> StepNetwork:
        """The base model's backbone with a head of its own, or, of a classifier, with the head it has."""
        import torch

        from rprm.rewarders.network import base_network

        weights: dict[str, Any] = {"dtype": torch.bfloat16 if bf16 else torch.float32, "revision": self.base.revision}
        network = base_network(self.base.target, self.layout.head, attention=self.settings.attention, **weights)
        if self.new_tag_id is not None:
            # The tag's embedding begins as the mean of all.
            table = network.backbone.get_input_embeddings().weight.detach()
            if len(self.tokenizer) > len(table):
                network.backbone.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            network.backbone.get_input_embeddings().weight.detach()[self.new_tag_id] = table.float().mean(0)
        return network

    def _adapter(self, network: StepNetwork) -> Any:
        """A LoRA adapter; the head and the embedding of a new tag are trained whole."""
        import torch
        from peft import LoraConfig

        lora, modules = self.settings.lora, dict(network.backbone.named_modules())
        if lora["target_modules"] == "all-linear":
            linear = (name for name, module in modules.items() if isinstance(module, torch.nn.Linear))
            lora["target_modules"] = sorted({name.rpartition(".")[2] for name in linear})
        embedding = next(name for name, one in modules.items() if one is network.backbone.get_input_embeddings())
        tokens = None if self.new_tag_id is None else {embedding: [self.new_tag_id]}
        return LoraConfig(**lora, modules_to_save=["score"], trainable_token_indices=tokens)

    def hand_over(self, checkpoint: Path, folder: Path) -> dict[str, Any]:
        import torch
        from huggingface_hub import save_torch_state_dict
        from peft import PeftModel
        from safetensors.torch import load_file

        # An adapter is merged in float32: a small change survives rounding once, not twice.
        network = self.network(bf16=False)
        if self.settings.lora_rank:
            network = PeftModel.from_pretrained(network, str(checkpoint)).merge_and_unload()
        else:
            network.load_state_dict(load_file(checkpoint / "model.safetensors"))
        backbone, config = network.backbone.to(torch.bfloat16 if self.bf16 else torch.float32), network.backbone.config
        held_out = self.sequences.get("validation", [])
        device = "cpu" if self.use_cpu else "cuda" if torch.cuda.is_available() else "mps"
        rewards = network_rewards(network.to(device).eval(), held_out, self.settings.device_batch_size)
        labels = [bool(label) for sequence in held_out for label in sequence.classes]
        threshold = best_threshold(rewards, labels)
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, module in {"model": backbone, "score": network.score}.items()
            for name, tensor in module.state_dict().items()
        }
        if config.model_type == "qwen2":
            # The name under which vLLM, too, knows this network.
            config.architectures = ["Qwen2ForProcessRewardModel"]
        config.dtype, config.use_cache = str(backbone.dtype).removeprefix("torch."), True
        save_torch_state_dict(tensors, folder)
        config.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            # Written for the owner alone; readable by whom the rest of the folder is.
            shutil.copymode(folder / "config.json", file)
        settings = replace(self.layout_settings, threshold=threshold)
        (folder / SETTINGS_FILE).write_text(settings.to_json(base=self.base.identity), encoding="utf-8")
        at = [accuracies(rewards, labels, value) for value in dict.fromkeys((threshold, 0.5))] if rewards else []
        counts = {part: asdict(counts) for part, counts in self.counts.items()}
        left_out = {"num_rejected": self.num_rejected, "num_left_out_as_validation": self.num_shared}
        return {"threshold": threshold, "validation": at, "rows": counts, **left_out}


def train_classifier(
    steps: str | Path, *, validation: str | Path | None = None, **arguments: Unpack[RunArguments]
) -> TrainingResult:
    """Train a classifier on labelled steps; or resume where an earlier session on the same folder was killed.

    Args:
        steps: labelled steps: a run folder of `rprm data steps`, a file, or a hub data set.
        validation: labelled steps to evaluate and to choose the threshold on; their problems are not trained on. By
            default a share of the problems is held out.
        arguments: see `RunArguments`. The model is any causal language model, or a qwen classifier.

    Raises: see `TrainingRun.work`.
    """
    return ClassifierRun(steps, validation, **arguments).work()


def network_rewards(network: StepNetwork, sequences: Sequence[TokenSequence], batch_size: int) -> list[float]:
    """Rewards of the labelled steps of sequences, in order."""
    import torch
    from torch.utils.data import DataLoader

    device = next(network.score.parameters()).device
    # By length, so that little is padding; rewards go back to their places.
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    found: list[float] = []
    with torch.inference_mode():
        for batch in DataLoader([sequences[index] for index in order], batch_size, collate_fn=collate):  # type: ignore[arg-type]
            logits = network(**{name: tensor.to(device) for name, tensor in batch.items()})
            found += logits.double().softmax(-1)[:, 1].tolist()
    rewards = iter(found)
    of = {index: [next(rewards) for _ in sequences[index].positions] for index in order}
    return [reward for index in range(len(sequences)) for reward in of[index]]


IGNORED = -100  #: Marks a token that carries no loss.


class StepSequence(NamedTuple):
    """Steps of one problem in their order; `labels` has None where a step is not trained on here."""

    problem: str
    steps: tuple[str, ...]
    labels: tuple[bool | None, ...]


@dataclass
class MergeCounts:
    """What became of the labelled steps of a part. Repeated ones, of steps and label, are trained on once; those that
    one row calls right and another wrong, and those beyond the longest length, not at all."""

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


def merge_steps(rows: Iterable[LabelledStep]) -> tuple[list[StepSequence], MergeCounts]:
    """Merge labelled steps into sequences, in the order of their problems' first rows, each step labelled in one; and
    counts (those of tokens and lengths still 0)."""
    counts = MergeCounts()
    # A tree, whose nodes are numbered as they first appear: problems, and steps after the steps above them.
    nodes: dict[tuple[int, str], int] = {}
    labels: dict[int, set[bool]] = {}
    paths: dict[tuple[int, ...], LabelledStep] = {}
    for row in rows:
        path, node = [], -1
        for text in (row.problem, *row.steps):
            node = nodes.setdefault((node, text), len(nodes))
            path.append(node)
        paths.setdefault(tuple(path), row)
        found = labels.setdefault(node, set())
        counts.num_rows += 1
        counts.num_repeated += row.label in found
        counts.num_contradictory += found == {not row.label}
        found.add(row.label)
    inner = {node for path in paths for node in path[:-1]}
    sequences = []
    # Branches by their first rows; the first one through a step has its label.
    for leaf in sorted(path for path in paths if path[-1] not in inner):
        own = (labels.pop(node, set()) for node in leaf[1:])
        kept = tuple(next(iter(found)) if len(found) == 1 else None for found in own)
        # Where rows contradict each other, a sequence can be left without a label.
        if any(label is not None for label in kept):
            sequences.append(StepSequence(paths[leaf].problem, paths[leaf].steps, kept))
    return sequences, counts


class TokenSequence(NamedTuple):
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
    """A batch, padded on the right: `input_ids`, `attention_mask`, `labels` (-100 but at trained tags) and `wanted` (at
    these), each [sequences, tokens]."""
    import torch

    shape = len(sequences), max(len(sequence.ids) for sequence in sequences)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.from_numpy(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        labels[row, list(sequence.positions)] = torch.tensor(sequence.classes)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "wanted": labels != IGNORED}


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
    found, below = [(accuracies(rewards, labels, 0.5)["f1"] or 0.0, 0.0, 0.5)], 0
    ranked = sorted(zip(rewards, labels, strict=True))
    for number, ((reward, label), (above, _)) in enumerate(pairwise(ranked), 1):
        below += label
        middle = (reward + above) / 2
        # Neighbours too close for a number between them are one reward.
        if reward < middle < 1.0:
            f1 = _f1((number - below) / num_wrong, 1 - below / num_correct)
            found.append((f1, -abs(middle - 0.5), middle))
    return max(found)[2]
