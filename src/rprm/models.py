"""Released models that are known by name: where they are, what they need, and the prompt they were trained with."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rprm.errors import EngineError, InputError, PromptError, RunError
from rprm.prompts import ImportedTemplate, PromptTemplate, carried_template, import_template, load_template
from rprm.runs import write_atomically
from rprm.showing import one_line
from rprm.verdict import VerdictFormat

logger = logging.getLogger(__name__)

#: What a spec of a model on a hub, or behind an endpoint that serves it, begins with.
_ENGINES = ("vllm", "transformers", "openai")
_told: set[str] = set()  #: unknown models that were logged


@dataclass(frozen=True)
class ReleasedPrompt:
    """Where a judge's prompt comes from, and what stands around it. Its wording is no part of this package."""

    source: str  #: a hub data set with the folder of one kind of its rows, whose instructions show the prompt
    system: str  #: the system message of training and evaluation
    ending: str | None  #: on both sides of the assistant tag; None renders with the model's own chat template instead
    marker: str = VerdictFormat().marker  #: before the verdict

    @property
    def dataset(self) -> str:
        return self.source.partition("?")[0]

    @property
    def cached(self) -> Path:
        """The file that holds the data set's template once it was imported."""
        return cache_folder() / "prompts" / f"{self.dataset.replace('/', '--')}.toml"

    def around(self, template: PromptTemplate) -> PromptTemplate:
        """The prompt of the released model around the instruction that a template makes (ChatML, as Qwen2.5's)."""
        if self.ending is None or not template.chat:
            return replace(template, system=self.system) if template.chat else template
        system = f"<|im_start|>system\n{self.system}<|im_end|>\n"
        user = f"{system}<|im_start|>user\n{template.user}<|im_end|>{self.ending}<|im_start|>assistant{self.ending}"
        return replace(template, user=user, system="", chat=False)


@dataclass(frozen=True)
class KnownModel:
    """A released model: a judge has a prompt, a classifier a layout (`rprm.rewarders.layouts`)."""

    alias: str
    hub_id: str
    parameters: float  #: number of weights, in billions
    context_length: int | None  #: tokens, prompt and analysis together; None where no source tells it
    sources: Mapping[str, str]  #: where each fact was read
    threshold: float = 0.5  #: a step whose reward is below it is called wrong
    prompt: ReleasedPrompt | None = None
    layout: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)  #: of the spec, by benchmark, for its published figures

    @property
    def kind(self) -> Literal["r-prm", "classifier"]:
        return "r-prm" if self.layout is None else "classifier"

    @property
    def spec(self) -> str:
        """What runs it on this machine."""
        return f"{_local_engine() if self.layout is None else 'classifier'}:{self.hub_id}"


class ResolvedModel(NamedTuple):
    spec: str  #: without aliases
    known: KnownModel | None


def resolve(spec: str) -> ResolvedModel:
    """Replace the alias (or the bare hub id) of a known model by its spec on this machine; every other spec stays.

    An R-PRM takes vLLM where it and a GPU are at hand, else transformers. Behind an engine (`vllm:r-prm-7b`) an alias
    is its hub id; behind an endpoint it stays, and so does a local folder: resolve the spec that a user gave. An
    EngineError: a classifier is named as a language model, or the other way round.
    """
    body, mark, query = spec.partition("?")
    if known := find_model(body):
        return ResolvedModel(f"{known.spec}{mark}{query}", known)
    kind, _, target = body.partition(":")
    # Behind an endpoint the model's name comes before the URL.
    name, at, _ = target.partition("@")
    known = find_model(name) if kind in (*_ENGINES, "classifier") else None
    if known is None or Path(target).exists():
        return ResolvedModel(spec, None)
    if (kind == "classifier") is not (known.kind == "classifier"):
        does = "scores steps and writes no analyses" if known.kind == "classifier" else "writes analyses"
        raise EngineError(f"model {spec!r}: {known.hub_id} {does}: use {known.alias} or {known.spec}")
    is_local = "/" not in name and not at and kind != "openai"
    return ResolvedModel(f"{kind}:{known.hub_id}{mark}{query}" if is_local else spec, known)


@cache
def _local_engine() -> str:
    if find_spec("vllm") is None:
        return "transformers"
    import torch

    # Asks the driver without touching the GPU, so that vLLM may still start processes as it likes.
    return "vllm" if torch.cuda.device_count() else "transformers"


def template_for(spec: str, fallback: str | None = None) -> PromptTemplate:
    """The template that a judge reads where none is given, of the spec that the user gave.

    The one in the model's folder, else a known model's own (a PromptError says what to do where it is not there),
    else the built-in `fallback` (None: the default); that an unknown model reads it is logged, once.
    """
    resolved, known = resolve(spec)
    if (carried := carried_template(resolved)) is not None:
        return load_template(carried)
    if known is not None and known.prompt is not None:
        return released_template(known)
    template = load_template(fallback)
    kind, _, target = resolved.partition("?")[0].partition(":")
    if kind in _ENGINES and not Path(target).exists() and resolved not in _told:
        _told.add(resolved)
        told = "%s is not a known model (`rprm models`) and carries no prompt: it reads the built-in %r"
        logger.warning(told, one_line(resolved), template.name)
    return template


def released_template(known: KnownModel) -> PromptTemplate:
    """The prompt of a released judge: its `training_template` with the system message and the ending of evaluation."""
    template = training_template(known)
    return template if known.prompt is None else known.prompt.around(template)


def training_template(known: KnownModel) -> PromptTemplate:
    """The template of a judge's training rows, imported from its data set once, cached, and named after its revision.

    A PromptError: the model has none; or it is not cached, and cannot be imported.
    """
    if (prompt := known.prompt) is None:
        raise PromptError(f"{known.alias}: a {known.kind} reads no prompt template")
    command = f"rprm prompts import --model {known.alias}"
    try:
        return load_template(prompt.cached) if prompt.cached.is_file() else import_released(known).template
    except PromptError as error:
        if not prompt.cached.is_file():
            raise
        raise PromptError(f"{error}; delete the file, or import the prompt anew: {command}") from None
    except InputError as error:
        reason, _, _ = str(error.__cause__ or error).partition("\n")
        told = f"{known.hub_id}: its prompt is in the data set {prompt.dataset}, which cannot be read here ({reason})"
        ways = f"{command}, where there is a network; rprm prompts import FILE --model {known.alias}; or --prompt FILE"
        raise PromptError(f"{told}: {ways}") from error


def import_released(known: KnownModel, source: str | None = None, keep: bool = True, **given: Any) -> ImportedTemplate:
    """`import_template` of a judge's training rows (its data set by default), named after where they come from.

    With `keep` it is cached for later runs; a PromptError where the file cannot be written.
    """
    prompt = known.prompt
    assert prompt is not None
    defaults: dict[str, Any] = {"name": known.alias, "marker": prompt.marker, "min_share": 0.95}
    imported = import_template(source or prompt.source, **defaults | given)
    if "name" not in given:
        file = Path(imported.source)
        name = f"{prompt.dataset} from {file.name}" if file.exists() else imported.source
        imported = replace(imported, template=replace(imported.template, name=name))
    if keep:
        try:
            # Of many processes at once each writes a file of its own, and the last one stays.
            write_atomically(own := prompt.cached.with_name(f"{prompt.cached.name}.{os.getpid()}"), imported.to_toml())
            os.replace(own, prompt.cached)
        except (OSError, RunError) as error:
            fault = (
                f"{prompt.cached}: cannot be written: {getattr(error.__cause__ or error, 'strerror', None) or error}"
            )
            raise PromptError(f"{fault}; RPRM_CACHE names another folder") from error
    return imported


def cache_folder() -> Path:
    """Where released models' prompts are kept: RPRM_CACHE, else `rprm` in the platform's folder of a user's caches."""
    if given := os.environ.get("RPRM_CACHE"):
        return Path(given).expanduser()
    variable, usual, name = {
        "win32": ("LOCALAPPDATA", "AppData/Local", "rprm/Cache"),
        "darwin": ("", "Library/Caches", "rprm"),
    }.get(sys.platform, ("XDG_CACHE_HOME", ".cache", "rprm"))
    return Path(os.environ.get(variable) or Path.home() / usual) / name


#: The system message that R-PRM was trained and is evaluated with. Its rows do not carry it: LLaMA-Factory's template
#: `qwen`, which the published script names (NJUNLP/R-PRM, src/scripts/train.sh), adds it.
R_PRM_SYSTEM = "You are a helpful assistant."

#: Two labels of a step are equally likely at 0.5, and ProcessBench calls a step wrong below it.
_PROCESSBENCH = "QwenLM/ProcessBench, code/run_eval.py"

#: Alias, hub id, billions of weights, layout, context length and the base model whose config.json tells it.
_CLASSIFIERS = """
qwen-prm-7b      Qwen/Qwen2.5-Math-PRM-7B                  7.6  qwen          4096   Qwen/Qwen2.5-Math-7B-Instruct
qwen-prm-72b     Qwen/Qwen2.5-Math-PRM-72B                 72.7 qwen          4096   Qwen/Qwen2.5-Math-72B-Instruct
qwen-prm800k-7b  Qwen/Qwen2.5-Math-7B-PRM800K              7.6  qwen          4096   Qwen/Qwen2.5-Math-7B-Instruct
math-shepherd-7b peiyi9979/math-shepherd-mistral-7b-prm    7.2  math-shepherd 32768  mistralai/Mistral-7B-v0.1
skywork-prm-1.5b Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B 1.5  skywork       4096   Qwen/Qwen2.5-Math-1.5B-Instruct
skywork-prm-7b   Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B   7.6  skywork       4096   Qwen/Qwen2.5-Math-7B-Instruct
rlhflow-mistral  RLHFlow/Llama3.1-8B-PRM-Mistral-Data      8.0  rlhflow       131072 meta-llama/Llama-3.1-8B-Instruct
rlhflow-deepseek RLHFlow/Llama3.1-8B-PRM-Deepseek-Data     8.0  rlhflow       131072 meta-llama/Llama-3.1-8B-Instruct
universal-prm-7b infly/Universal-PRM-7B                    7.6  universal
pure-prm-7b      jinachris/PURE-PRM-7B                     7.6  trl           4096   Qwen/Qwen2.5-Math-7B
"""

#: Where a layout was read, the threshold of its models, and what else is known of them.
_SOURCES: dict[str, dict[str, str]] = {
    "skywork": {"layout": "SkyworkAI/skywork-o1-prm-inference, model_utils/io_utils.py"},
    "rlhflow": {
        "layout": "RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py",
        "threshold": "softmax over + and -, as in its repository",
        "processbench": "QwenLM/ProcessBench, code/run_eval_prm_rlhflow.py",
    },
    "universal": {"layout": "its model card; arXiv 2502.11520", "threshold": "ours: the middle of its scale"},
    "trl": {"threshold": "its model card: wrong where P(first label) is above P(second)"},
}


def _classifier(alias: str, hub_id: str, parameters: str, layout: str, context: str = "", base: str = "") -> KnownModel:
    sources = {"layout": "its model card"} | ({"context": f"config.json of its base model, {base}"} if base else {})
    sources |= {"threshold": _PROCESSBENCH} | _SOURCES.get(layout, {})
    options = {"processbench": "separator=blank-line&decision=top1"} if layout == "rlhflow" else {}
    length = int(context) if context else None
    return KnownModel(alias, hub_id, float(parameters), length, sources, layout=layout, options=options)


#: Every known model, judges first.
MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        "r-prm-7b", "kevinpro/R-PRM-7B-DPO", 7.6, 4096,
        {
            "prompt": "data set kevinpro/R-PRM, read at run time",
            "system message and ending": "NJUNLP/R-PRM, src/prompts/GenPRM/GenPRM-evaluate-new3-qwen.txt",
            "context": "config.json of its base model, Qwen/Qwen2.5-Math-7B-Instruct",
            "threshold": _PROCESSBENCH,
        },
        prompt=ReleasedPrompt("kevinpro/R-PRM?data_dir=sft", R_PRM_SYSTEM, ending=r"\n"),
    ),
    *(_classifier(*row.split()) for row in _CLASSIFIERS.strip().split("\n")),
)  # fmt: skip

_BY_NAME = {name.casefold(): model for model in MODELS for name in (model.alias, model.hub_id)}


def find_model(name: str) -> KnownModel | None:
    """A known model by its alias or its hub id."""
    return _BY_NAME.get(name.casefold())
