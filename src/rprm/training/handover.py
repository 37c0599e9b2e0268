"""The model that training starts from; the card of the one it ends with, and its upload."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rprm.engines.loading import ADAPTER_CONFIG, find_file, plain_errors
from rprm.engines.loading import commit as commit_of
from rprm.errors import EngineError, RunError
from rprm.folders import fingerprint, model_files

if TYPE_CHECKING:
    from rprm.training.lifecycle import TrainingRun

MODEL = "model"
CARD = "README.md"


@dataclass(frozen=True)
class BaseModel:
    """The model that training starts from: `revision` is the commit of a hub repository, `identity` that or the
    fingerprint of a folder, `stops` the ids at which its generation stops."""

    target: str
    revision: str | None
    identity: str
    context_length: int | None
    stops: tuple[int, ...]


def find_model(target: str, revision: str | None = None) -> BaseModel:
    """Look up a model without loading its weights; an `EngineError` where it cannot be loaded, or not be trained."""
    path = Path(target)
    if target.endswith(".gguf"):
        raise EngineError(f"{target}: a GGUF file cannot be trained; give the model's safetensors folder or its hub id")
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        raise EngineError(f"{target} is a LoRA adapter; merge it first, or train on from a merged model folder")
    with plain_errors(target, "a causal language model"):
        from transformers import AutoConfig, GenerationConfig

        model_files(path)  # refuses what is no file of the folder
        find_file(target, "config.json", revision)  # where the hub does not answer, its cache is used from here on
        config = AutoConfig.from_pretrained(target, revision=revision, trust_remote_code=False).get_text_config()
        commit = None if path.is_dir() else commit_of(target, revision) or revision
        ends = None
        with contextlib.suppress(OSError):
            ends = GenerationConfig.from_pretrained(target, revision=commit).eos_token_id
    ends = getattr(config, "eos_token_id", None) if ends is None else ends
    stops = tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)
    identity = fingerprint(path) if path.is_dir() else f"{target}@{commit}"
    return BaseModel(target, commit, identity, getattr(config, "max_position_embeddings", None), stops)


def card_text(training: TrainingRun, summary: Mapping[str, Any]) -> str:
    """The card of a training's model in Markdown, with the header that the hub reads."""
    base, run = training.base, training.run
    source, identity = f"base_model: {base.target}\n", f"commit {base.revision}"
    if Path(base.target).is_dir():
        source, identity = "", base.identity
    figures = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    rows = {
        part: ", ".join(f"{count:,} {name.removeprefix('num_')}" for name, count in counts.items()).replace("_", " ")
        for part, counts in summary["rows"].items()
    }
    tables: dict[str, Mapping[str, Any]] = {
        "Training data": {**training.source, **rows},
        "Figures": figures | dict(shown(found) for found in summary.get("validation", ())),
        "Settings": run.settings,
        "Made with": run.session["versions"],
    }
    listed = ""
    for heading, values in tables.items():
        lines = (f"| {name} | {f'{value:,}' if type(value) is int else value} |" for name, value in values.items())
        cells = (line.replace("\n", " ") for line in lines)
        listed += "\n".join([f"## {heading}", "", "| | |", "|---|---|", *cells, "", ""])
    return f"""---
library_name: transformers
{source}tags:
- process-reward-model
- rprm
---

# {training.title}

{training.about}

Trained from `{base.target}` ({identity}).

## Use

```sh
rprm judge solutions.jsonl --model {training.runs_as}:PATH_TO_THIS_FOLDER
```

{listed}## What it is not for

- It judges written mathematical solutions, in the prompt it was trained with; other tasks, languages and prompts \
were not tried.
- Its verdicts are no proof: it calls wrong steps right and right steps wrong. Measure it before relying on it \
(`rprm bench processbench`).
- Not for grading people, and not as the only check of anything that matters.
"""


def shown(found: Mapping[str, Any]) -> tuple[str, str]:
    """A classifier's accuracies on validation steps for people: at which threshold, and how high."""
    figures = (f"{name} {found[name]:.4f}" for name in ("wrong", "correct", "f1") if found[name] is not None)
    return f"validation steps at {found['threshold']:.4f}", ", ".join(figures)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `folder` when it is whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def push(folder: Path, repository: str, *, private: bool = True, on_note: Callable[[str], None]) -> None:
    """Upload a model folder to the hub (OWNER/NAME, made if missing) and tell the commit's address, or a `RunError`."""
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Trained with rprm")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}; log in (`hf auth login`) or check the name, and try again"
        raise RunError(f"{folder} could not be uploaded to {repository}: {reason}") from error
    on_note(f"uploaded to {repository}: {commit.commit_url}")
