"""From a trained checkpoint to a model folder that every engine loads, with its prompt template and its card.

    model/
      *.safetensors, config.json, generation_config.json   weights and how to run them
      tokenizer files                                       the base model's own
      rprm_prompt.toml                                      the template it was trained with: no --prompt is needed
      README.md                                             the card

The folder is made from files alone, in `model.partial`, and renamed when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rprm.engines.loading import merge_adapter
from rprm.errors import RunError
from rprm.prompts.library import MODEL_TEMPLATE
from rprm.prompts.template import PromptTemplate
from rprm.training.rows import BaseModel

MODEL = "model"
ADAPTER = "adapter"
CARD = "README.md"

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Card:
    """What the card of a model says: `base_id` is a hub id for its header (None for a folder), `data`, `settings`,
    `metrics` and `versions` are rows of tables, `usage` lines of a shell session, `limits` sentences."""

    title: str
    summary: str
    base: str
    base_id: str | None
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Any]
    usage: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()

    def render(self) -> str:
        """The card in Markdown, with the header that the hub reads."""
        base = [] if self.base_id is None else [f"base_model: {self.base_id}"]
        lines = ["---", "library_name: transformers", *base, "tags:", "- process-reward-model", "- rprm", "---", ""]
        lines += [f"# {self.title}", "", self.summary, "", f"Trained from {self.base}.", ""]
        if self.usage:
            lines += ["## Use", "", "```sh", *self.usage, "```", ""]
        tables = {
            "Training data": self.data,
            "Figures": self.metrics,
            "Hyperparameters": self.settings,
            "Made with": self.versions,
        }
        for title, values in tables.items():
            rows = [
                f"| {name} | {f'{value:,}' if type(value) is int else value} |".replace("\n", " ")
                for name, value in values.items()
            ]
            lines += [f"## {title}", "", "| | |", "|---|---|", *rows, ""] if rows else []
        if self.limits:
            lines += ["## What it is not for", "", *(f"- {limit}" for limit in self.limits), ""]
        return "\n".join(lines)


#: What no judge made here is for.
LIMITS = (
    "It judges single steps of written mathematical solutions, in the prompt it was trained with; other tasks, "
    "languages and prompts were not tried.",
    "Its verdicts are no proof: it calls wrong steps right and right steps wrong. Measure it before relying on it "
    "(`rprm bench processbench`).",
    "Not for grading people, and not as the only check of anything that matters.",
)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when it is whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def hand_over(
    checkpoint: Path,
    output: Path,
    *,
    base: BaseModel,
    tokenizer: Any,
    template: PromptTemplate,
    end: int,
    card: Card,
    bf16: bool,
    merge: bool,
) -> Path:
    """Make the model folder of a run.

    Args:
        checkpoint: a complete checkpoint, of a whole model or of a LoRA adapter.
        output: the run folder: `model/` is made there, and, of an adapter that is merged, `adapter/` beside it.
        base, tokenizer: what training began from.
        template: the prompt that the model reads.
        end: the token that ends a reply; generation stops at it.
        card: of the model.
        bf16: store the weights in bfloat16, otherwise in float32.
        merge: merge an adapter into the base model.

    Returns:
        The model folder.

    Raises:
        RunError: the checkpoint has no weights in one piece.
    """
    is_adapter = (checkpoint / _ADAPTER_FILES[0]).is_file()
    with whole_folder(output / MODEL) as folder:
        if is_adapter and not merge:
            _save_adapter(checkpoint, folder, base)
        else:
            if is_adapter:
                with whole_folder(output / ADAPTER) as beside:
                    _save_adapter(checkpoint, beside, base)
                _merge(checkpoint, folder, base=base, bf16=bf16)
            else:
                _copy_weights(checkpoint, folder, bf16=bf16)
            _set_generation(folder, base, end)
        tokenizer.save_pretrained(folder)
        (folder / MODEL_TEMPLATE).write_text(template.to_toml(), encoding="utf-8")
        (folder / CARD).write_text(card.render(), encoding="utf-8")
    return output / MODEL


def _save_adapter(checkpoint: Path, folder: Path, base: BaseModel) -> None:
    """The adapter, with the base model and its revision, which it fits alone."""
    settings, weights = _ADAPTER_FILES
    config = json.loads((checkpoint / settings).read_bytes())
    config |= {"base_model_name_or_path": base.target, "revision": base.revision}
    (folder / settings).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(checkpoint / weights, folder / weights)


def _merge(checkpoint: Path, target: Path, *, base: BaseModel, bf16: bool) -> None:
    """Merged in float32, whatever the weights are stored in: a small change survives rounding once, not twice."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base.target, dtype=torch.float32, trust_remote_code=False, **base.source
    )
    model = merge_adapter(model, str(checkpoint))
    model.to(torch.bfloat16 if bf16 else torch.float32).save_pretrained(target)


def _copy_weights(checkpoint: Path, target: Path, *, bf16: bool) -> None:
    """Weights and configuration of a whole model, from files alone, one at a time: memory holds no more than that, and
    no process of a distributed training needs another for it."""
    import torch
    from safetensors.torch import load_file, save_file

    files = sorted(checkpoint.glob("model*.safetensors"))
    if not files:
        raise RunError(
            f"{checkpoint} has no weights in one piece; train with a configuration that saves them whole "
            "(FULL_STATE_DICT of FSDP, zero3_save_16bit_model of DeepSpeed: see recipes/accelerate)"
        )
    wanted = torch.bfloat16 if bf16 else torch.float32
    num_bytes = 0
    for file in files:
        tensors = {
            name: tensor.to(wanted) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(file).items()
        }
        num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    if (index := checkpoint / "model.safetensors.index.json").is_file():
        content = json.loads(index.read_bytes())
        content["metadata"] = {**content.get("metadata", {}), "total_size": num_bytes}
        (target / index.name).write_text(json.dumps(content, indent=2) + "\n")
    config = json.loads((checkpoint / "config.json").read_bytes())
    # Training turns the cache off; whoever runs the model wants it.
    config |= {"dtype": str(wanted).removeprefix("torch."), "use_cache": True}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _set_generation(folder: Path, base: BaseModel, end: int) -> None:
    """The base model's generation config, which also stops at the token that replies were trained to end in."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(base.target, **base.source)
    except OSError:
        generation = GenerationConfig()
    # Written as JSON: a released config may hold sampling settings that transformers reads but refuses to save.
    ends = [end, *(token for token in base.stops if token != end)]
    generation.eos_token_id = ends if len(ends) > 1 else end
    (folder / "generation_config.json").write_text(generation.to_json_string(use_diff=True))


def push(folder: Path, repository: str, *, private: bool = True, on_note: Callable[[str], None]) -> str:
    """Upload a model folder to the hub. Only ever done when asked for.

    Args:
        folder: as `hand_over` makes it.
        repository: OWNER/NAME; made if missing.
        private: whether a new repository is.
        on_note: told the address.

    Returns:
        The address of the commit.

    Raises:
        RunError: the upload failed; the folder is untouched, and the same command tries again.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Trained with rprm")
    except Exception as error:
        raise RunError(
            f"{folder} could not be uploaded to {repository}: {type(error).__name__}: {error}; log in "
            "(`hf auth login`) or check the name, and give the same command again"
        ) from error
    address = str(getattr(commit, "commit_url", commit))
    on_note(f"uploaded to {repository}: {address}")
    return address
