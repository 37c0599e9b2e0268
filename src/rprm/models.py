"""Released models that are known by name: where they are, what they need, and the prompt they were trained with.

`resolve("r-prm-7b")` gives the spec of an alias on this machine; a known model under its hub id is recognised too. To
add a model, add a record to `MODELS`, each fact with its source.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rprm.errors import EngineError, InputError, PromptError
from rprm.prompts import ImportedTemplate, PromptTemplate, carried_template, import_template, load_template
from rprm.runs import write_atomically
from rprm.verdict import VerdictFormat

logger = logging.getLogger(__name__)

#: What a spec of a model on a hub, or behind an endpoint that serves it, begins with.
_ENGINES = ("vllm", "transformers", "openai")
_CLASSIFIER = "classifier"

#: Share of the data set's rows that must render exactly: the fixed text is certain long before, and a few odd rows of a
#: data set that nobody here can mend are no reason to refuse its model.
_MIN_SHARE = 0.95


@dataclass(frozen=True)
class ReleasedPrompt:
    r"""Where a judge's prompt comes from, and what stands around it. Its wording is no part of this package.

    Attributes:
        dataset: the hub data set whose instructions show it.
        data_dir: the folder of the data set with rows of one kind.
        system: the system message of training and evaluation.
        ending: what stands on both sides of the assistant tag. The published evaluation has a backslash and an n
            there. None renders with the model's own chat template instead, which has line ends there.
        marker: what stands before the verdict.
    """

    dataset: str
    data_dir: str
    system: str
    ending: str | None
    marker: str = field(default_factory=lambda: VerdictFormat().marker)

    @property
    def source(self) -> str:
        return f"{self.dataset}?data_dir={self.data_dir}"

    @property
    def cached(self) -> Path:
        """The file that holds the data set's template once it was imported."""
        return cache_folder() / "prompts" / f"{self.dataset.replace('/', '--')}.toml"

    def around(self, template: PromptTemplate) -> PromptTemplate:
        """The prompt of the released model around the instruction that a template makes (ChatML, as Qwen2.5's)."""
        if not template.chat:
            return template
        if self.ending is None:
            return replace(template, system=self.system)
        user = (
            f"<|im_start|>system\n{self.system}<|im_end|>\n<|im_start|>user\n{template.user}<|im_end|>{self.ending}"
            f"<|im_start|>assistant{self.ending}"
        )
        return replace(template, user=user, system="", chat=False)


@dataclass(frozen=True)
class KnownModel:
    """A released model.

    Attributes:
        alias: its short name.
        hub_id: `OWNER/NAME`.
        kind: "r-prm" writes analyses, "classifier" scores steps in one pass.
        parameters: number of weights, in billions.
        context_length: tokens, prompt and analysis together; None where no source tells it.
        threshold: a step whose reward is below it is called wrong.
        sources: where each fact was read.
        prompt: of a judge.
        layout: of a classifier; see `rprm.rewarders.layouts`.
        options: further options of the spec, by the benchmark whose published figures were made with them.
    """

    alias: str
    hub_id: str
    kind: Literal["r-prm", "classifier"]
    parameters: float
    context_length: int | None
    threshold: float
    sources: Mapping[str, str]
    prompt: ReleasedPrompt | None = None
    layout: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_gb(self) -> float:
        """Size of the weights in bfloat16, in gigabytes (10^9 bytes)."""
        return 2 * self.parameters

    @property
    def memory_gb(self) -> float:
        """An estimate of the GPU memory that judging takes in bfloat16: the weights and a fifth more."""
        return 1.2 * self.weights_gb

    @property
    def spec(self) -> str:
        """What runs it on this machine."""
        return f"{_CLASSIFIER if self.kind == 'classifier' else _local_engine()}:{self.hub_id}"


@dataclass(frozen=True)
class ResolvedModel:
    """A model's spec without aliases, and the record of its model where that is known."""

    spec: str
    known: KnownModel | None


def resolve(spec: str) -> ResolvedModel:
    """Replace the alias (or the bare hub id) of a known model by its spec on this machine; options after `?` stay.

    An R-PRM takes vLLM where vLLM and a GPU are at hand, else transformers. Behind an engine (`vllm:r-prm-7b`) an alias
    is its hub id; behind an endpoint the name is the server's and stays. Every other spec comes back as it is, and a
    local folder (`vllm:kevinpro/R-PRM-7B-DPO` where there is one) is not the known model. So the spec that a user gave
    is to be resolved, not the one that comes back.

    Raises:
        EngineError: a classifier is named as a language model, or the other way round.
    """
    body, mark, query = spec.partition("?")
    if known := find_model(body):
        return ResolvedModel(f"{known.spec}{mark}{query}", known)
    kind, _, target = body.partition(":")
    # Behind an endpoint the model's name comes before the URL.
    name, at, _ = target.partition("@")
    known = find_model(name) if kind in (*_ENGINES, _CLASSIFIER) else None
    if known is None or Path(target).exists():
        return ResolvedModel(spec, None)
    if (kind == _CLASSIFIER) is not (known.kind == "classifier"):
        does = "scores steps and writes no analyses" if known.kind == "classifier" else "writes analyses"
        raise EngineError(f"model {spec!r}: {known.hub_id} {does}: use {known.alias} or {known.spec}")
    if "/" not in name and not at and kind != "openai":
        spec = f"{kind}:{known.hub_id}{mark}{query}"
    return ResolvedModel(spec, known)


@cache
def _local_engine() -> str:
    if find_spec("vllm") is None or find_spec("torch") is None:
        return "transformers"
    import torch

    # Asks the driver without touching the GPU, so that vLLM may still start processes as it likes.
    return "vllm" if torch.cuda.device_count() else "transformers"


def template_for(spec: str, fallback: str | None = None) -> PromptTemplate:
    """The template that a judge reads where none is given.

    The one that the model's folder carries, else the one that a known model was released with, else the built-in
    `fallback` (None: the default). An unknown model, of a hub or behind an endpoint, that gets the last is told of
    once, in the log.

    Args:
        spec: of an engine, or an alias: as the user gave it, see `resolve`.

    Raises:
        PromptError: a known model's prompt is not at hand and cannot be fetched; the message says what to do.
    """
    resolved = resolve(spec)
    if (carried := carried_template(resolved.spec)) is not None:
        return load_template(carried)
    if resolved.known is not None and resolved.known.prompt is not None:
        return released_template(resolved.known)
    template = load_template(fallback)
    kind, _, target = resolved.spec.partition("?")[0].partition(":")
    if kind in _ENGINES and not Path(target).exists():
        _tell_of_fallback(resolved.spec, template.name)
    return template


@cache
def _tell_of_fallback(spec: str, name: str) -> None:
    logger.warning(
        "%s: not a known model (`rprm models`), and no prompt of its own is given: it reads the built-in %r", spec, name
    )


def released_template(known: KnownModel) -> PromptTemplate:
    """The prompt of a released judge: its data set's template with the system message and the ending of evaluation.

    Raises:
        PromptError: as for `training_template`.
    """
    template = training_template(known)
    return template if known.prompt is None else known.prompt.around(template)


def training_template(known: KnownModel) -> PromptTemplate:
    """The template of the rows that a judge was trained on, imported from its data set once and cached.

    Its name is the data set with its revision, so that manifests hold both.

    Raises:
        PromptError: the model has none; or it is not cached, and cannot be imported from the data set.
    """
    if known.prompt is None:
        raise PromptError(f"{known.alias}: a {known.kind} reads no prompt template")
    if known.prompt.cached.is_file():
        try:
            return load_template(known.prompt.cached)
        except PromptError as error:
            raise PromptError(
                f"{error}; the prompt of {known.alias} was kept there: delete the file, or import it anew with "
                f"`rprm prompts import --model {known.alias}`"
            ) from None
    try:
        imported = import_released(known)
    except InputError as error:
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise PromptError(
            f"{known.hub_id}: its prompt is part of the data set {known.prompt.dataset}, which cannot be read here "
            f"({reason}); import it once, where there is a network: rprm prompts import --model {known.alias}; or from "
            f"a file of the data set's rows: rprm prompts import FILE --model {known.alias}; or give --prompt FILE"
        ) from error
    keep_template(known, imported)
    return imported.template


def import_released(known: KnownModel, source: str | None = None, **options: Any) -> ImportedTemplate:
    """Import the template of a judge's training rows, named after where they come from.

    Args:
        known: a model with a prompt.
        source: the rows, as for `import_template`; None for the model's data set.
        options: further ones of `import_template`.

    Raises:
        InputError: the rows cannot be read.
        PromptError: the model has no prompt; or the rows do not show one.
    """
    if known.prompt is None:
        raise PromptError(f"{known.alias}: a {known.kind} reads no prompt template")
    options = {"name": None, "marker": known.prompt.marker, "min_share": _MIN_SHARE} | options
    name = options.pop("name")
    imported = import_template(source or known.prompt.source, name=name or known.alias, **options)
    if name is None:
        file = Path(imported.source)
        name = f"{known.prompt.dataset} from {file.name}" if file.exists() else imported.source
    return replace(imported, template=replace(imported.template, name=name))


def keep_template(known: KnownModel, imported: ImportedTemplate) -> Path:
    """Keep an imported template for later runs, which need no network then.

    Raises:
        PromptError: the folder cannot be written.
    """
    assert known.prompt is not None
    path = known.prompt.cached
    # Many processes may come here at once: each writes a file of its own, and the last one stays.
    own = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(own, imported.to_toml())
        os.replace(own, path)
    except OSError as error:
        raise PromptError(
            f"{path}: cannot be written: {error.strerror}; RPRM_CACHE names another folder to keep prompts in"
        ) from error
    return path


def cache_folder() -> Path:
    """Where released models' prompts are kept: RPRM_CACHE, else `rprm` in the platform's folder of a user's caches."""
    if given := os.environ.get("RPRM_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "rprm" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rprm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rprm"


# --- the models ---------------------------------------------------------------------------------------------------

#: The system message that R-PRM was trained and is evaluated with. Its rows do not carry it: LLaMA-Factory's template
#: `qwen`, which the published script names (NJUNLP/R-PRM, src/scripts/train.sh), adds it.
R_PRM_SYSTEM = "You are a helpful assistant."

_R_PRM_PROMPT = ReleasedPrompt("kevinpro/R-PRM", "sft", R_PRM_SYSTEM, ending=r"\n")

#: Two labels of a step are equally likely at 0.5, and ProcessBench calls a step wrong below it.
_PROCESSBENCH = "QwenLM/ProcessBench, code/run_eval.py"
_BASE = "config.json of its base model, {}"
_QWEN_MATH = _BASE.format("Qwen/Qwen2.5-Math-7B-Instruct")


def _qwen(alias: str, name: str, parameters: float, base: str = "Qwen/Qwen2.5-Math-7B-Instruct") -> KnownModel:
    return KnownModel(
        alias,
        f"Qwen/{name}",
        "classifier",
        parameters,
        4096,
        0.5,
        {"layout": f"model card of Qwen/{name}", "context": _BASE.format(base), "threshold": _PROCESSBENCH},
        layout="qwen",
    )


def _skywork(alias: str, size: str, parameters: float) -> KnownModel:
    return KnownModel(
        alias,
        f"Skywork/Skywork-o1-Open-PRM-Qwen-2.5-{size}",
        "classifier",
        parameters,
        4096,
        0.5,
        {
            "layout": "SkyworkAI/skywork-o1-prm-inference, model_utils/io_utils.py",
            "context": _BASE.format(f"Qwen/Qwen2.5-Math-{size}-Instruct"),
            "threshold": _PROCESSBENCH,
        },
        layout="skywork",
    )


def _rlhflow(alias: str, data: str) -> KnownModel:
    return KnownModel(
        alias,
        f"RLHFlow/Llama3.1-8B-PRM-{data}-Data",
        "classifier",
        8.0,
        131072,
        0.5,
        {
            "layout": "RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py",
            "context": _BASE.format("meta-llama/Llama-3.1-8B-Instruct"),
            "threshold": "softmax over + and -, as in its repository",
            "processbench": "QwenLM/ProcessBench, code/run_eval_prm_rlhflow.py",
        },
        layout="rlhflow",
        options={"processbench": "separator=blank-line&decision=top1"},
    )


#: Every known model, judges first.
MODELS: tuple[KnownModel, ...] = (
    KnownModel(
        "r-prm-7b",
        "kevinpro/R-PRM-7B-DPO",
        "r-prm",
        7.6,
        4096,
        0.5,
        {
            "prompt": "data set kevinpro/R-PRM, read at run time",
            "system message and ending": "NJUNLP/R-PRM, src/prompts/GenPRM/GenPRM-evaluate-new3-qwen.txt",
            "context": _QWEN_MATH,
            "threshold": _PROCESSBENCH,
        },
        prompt=_R_PRM_PROMPT,
    ),
    _qwen("qwen-prm-7b", "Qwen2.5-Math-PRM-7B", 7.6),
    _qwen("qwen-prm-72b", "Qwen2.5-Math-PRM-72B", 72.7, "Qwen/Qwen2.5-Math-72B-Instruct"),
    _qwen("qwen-prm800k-7b", "Qwen2.5-Math-7B-PRM800K", 7.6),
    KnownModel(
        "math-shepherd-7b",
        "peiyi9979/math-shepherd-mistral-7b-prm",
        "classifier",
        7.2,
        32768,
        0.5,
        {
            "layout": "its model card",
            "context": _BASE.format("mistralai/Mistral-7B-v0.1"),
            "threshold": _PROCESSBENCH,
        },
        layout="math-shepherd",
    ),
    _skywork("skywork-prm-1.5b", "1.5B", 1.5),
    _skywork("skywork-prm-7b", "7B", 7.6),
    _rlhflow("rlhflow-mistral", "Mistral"),
    _rlhflow("rlhflow-deepseek", "Deepseek"),
    KnownModel(
        "universal-prm-7b",
        "infly/Universal-PRM-7B",
        "classifier",
        7.6,
        None,
        0.5,
        {"layout": "its model card; arXiv 2502.11520", "threshold": "ours: the middle of its scale"},
        layout="universal",
    ),
    KnownModel(
        "pure-prm-7b",
        "jinachris/PURE-PRM-7B",
        "classifier",
        7.6,
        4096,
        0.5,
        {
            "layout": "its model card",
            "context": _BASE.format("Qwen/Qwen2.5-Math-7B"),
            "threshold": "its model card: wrong where P(first label) is above P(second)",
        },
        layout="trl",
    ),
)

_BY_NAME = {name.casefold(): model for model in MODELS for name in (model.alias, model.hub_id)}


def find_model(name: str) -> KnownModel | None:
    """A known model by its alias or its hub id."""
    return _BY_NAME.get(name.casefold())
