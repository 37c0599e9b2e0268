"""What gives the steps of a solution their rewards: `load_rewarder(SPEC)` makes it.

A reasoning judge over any engine; a critic of whole solutions (`critic:ENGINE_SPEC`); a discriminative PRM, in this
process or behind a server; or a `base.StepRewarder` of another distribution, by an entry point of the group
`rprm.rewarders`, called as `Mine(target, *, spec, option=...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast, get_type_hints

from rprm import engines, ranges
from rprm.engines import Engine, Sampling, load_engine
from rprm.engines.loading import refuse_missing
from rprm.errors import EngineError, RprmError
from rprm.models import resolve, template_for
from rprm.plugins import construct, find_kinds, load_kind, options_of, split_spec, typed
from rprm.presets import JudgeSettings, Procedure, judge_settings
from rprm.prompts import CriticTemplate, PromptTemplate, carried_critic_template, load_critic_template, load_template
from rprm.rewarders.base import StepRewarder
from rprm.rewarders.critic import Critic
from rprm.rewarders.rprm import Judge
from rprm.stopping import StoppingRule

GROUP = "rprm.rewarders"
KINDS = {  #: those that are no engine under a judge
    "classifier": "rprm.rewarders.classifier:Classifier",
    "critic": "rprm.rewarders.critic:Critic",
}
_SERVED = EntryPoint("classifier", "rprm.rewarders.classifier:ServedClassifier", GROUP)
DEFAULT_CONFIDENCE = 0.99  #: of `stopping="confident"`
#: Values of a judge's options that ask for nothing that another rewarder does not do anyway, beside None.
_ASKS_NOTHING = {"stopping": "none", "confidence": DEFAULT_CONFIDENCE, "first_error_exit": False}
#: Flags of the command line that do not name their option.
_FLAGS = {"num_analyses": " (-k)", "force_verdict": " (or --ask)"}


def load_rewarder(
    model: str | Engine = "embedded", *, engine: Engine | None = None, procedure: Procedure = "lean", **options: Any
) -> StepRewarder:
    """Make what rewards steps from a model's spec; `RprmError`: a kind or option is unknown, or makes no sense.

    Args:
        model: "classifier:PATH_OR_ID" for a discriminative PRM, "critic:ENGINE_SPEC" for a critic, or another kind of
            rewarder; every other spec is an engine's, and the rewarder a judge over it.
        engine: of a judge, where its model is loaded already.
        procedure: of a judge, see `rprm.presets.Procedure`.
        options: as for `RPRM`; None leaves one to the procedure. A classifier takes its own, and none of analyses.
    """
    if not isinstance(model, str) or (make := _kind_of(model)) is None:
        return load_judge(model, engine=engine, procedure=procedure, **options)
    if model.startswith("critic:"):
        return load_critic(model.removeprefix("critic:"), engine=engine, procedure=procedure, **options)
    options.pop("seed", None)
    options = {name: value for name, value in options.items() if value not in (None, _ASKS_NOTHING.get(name))}
    if refused := ", ".join(name + _FLAGS.get(name, "") for name in options if name not in options_of(make)):
        raise RprmError(f"{model}: a classifier writes no analyses: leave out {refused}")
    spec, known = resolve(model)
    _, target, in_spec = split_spec(spec)
    facts: dict[str, Any] = {} if known is None else {"threshold": known.threshold}
    if "://" not in target:
        refuse_missing(spec, target)
    elif known is not None:  # the name there is the server's, and may be the alias
        facts |= {"layout": known.layout, "tokenizer": known.hub_id}
    return cast(StepRewarder, construct(make, spec, facts | in_spec | options))


def is_classifier(spec: str) -> bool:
    """Whether a model spec names a rewarder of its own, and no engine, over which a judge writes."""
    return _kind_of(spec) is not None


def _kind_of(spec: str) -> Callable[..., Any] | None:
    """The class that a spec names; None of an engine's."""
    kinds = find_kinds(GROUP, KINDS)
    if clash := sorted(kinds.keys() & find_kinds(engines.GROUP, engines.KINDS).keys()):
        raise EngineError(f"{clash[0]!r} is an engine and a rewarder ({kinds[clash[0]].value}); uninstall one of them")
    kind, target, _ = split_spec(resolve(spec).spec)
    if kind not in kinds:
        return None
    return load_kind(_SERVED if kind == "classifier" and "://" in target else kinds[kind])


def load_judge(
    model: str | Engine, *, engine: Engine | None = None, procedure: Procedure = "lean",
    prompt: str | PromptTemplate | None = None, **options: Any,
) -> Judge:  # fmt: skip
    """Make a reasoning judge; see `load_rewarder`."""
    if not isinstance(model, str):
        engine, model = model, model.spec
    elif engine is None:
        engine = load_engine(model)
    hints = get_type_hints(JudgeSettings) | {"confidence": ranges.Confidence, "seed": ranges.Seed}
    given = typed(hints, {name: value for name, value in options.items() if value is not None}, model)
    confidence, seed = given.pop("confidence", DEFAULT_CONFIDENCE), given.pop("seed", 0)
    settings = replace(judge_settings(model, procedure), **given)
    if not isinstance(prompt, PromptTemplate):
        source = typed({"prompt": str | Path | None}, {"prompt": prompt}, model)["prompt"]
        prompt = load_template(source) if source else template_for(model, settings.prompt)
    rule = StoppingRule(settings.num_analyses, settings.threshold, settings.stopping, confidence)
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens, seed)
    further = {name: getattr(settings, name) for name in ("first_error_exit", "force_verdict", "second_pass")}
    return Judge(engine, prompt, rule, sampling, **further)


def load_critic(
    model: str, *, engine: Engine | None = None, procedure: Procedure = "lean",
    prompt: str | CriticTemplate | None = None, **options: Any,
) -> Critic:  # fmt: skip
    """Make a critic over an engine; see `load_rewarder`. One critique is greedy, several are sampled, as ProcessBench's
    script does (code/run_eval.py)."""
    spec = f"critic:{model}"
    if model.partition(":")[0].partition("?")[0] in ("", *KINDS):
        raise RprmError(
            f"{spec}: a critic reads with an engine: write critic:ENGINE_SPEC, as in critic:openai:MODEL@URL"
        )
    if isinstance(options.get("force_verdict"), str):
        raise RprmError(f"{spec}: what a critic is asked is its format's own: give --force-verdict in place of --ask")
    hints = get_type_hints(JudgeSettings) | {"confidence": float, "seed": int, "force_verdict": bool}
    given = typed(hints, {name: value for name, value in options.items() if value is not None}, spec)
    confidence, seed, number = (
        given.pop("confidence", DEFAULT_CONFIDENCE),
        given.pop("seed", 0),
        given.get("num_analyses", 1),
    )
    settings = JudgeSettings(number, 0.0, 1.0, 8192) if number == 1 else JudgeSettings(number, 1.0, 0.9, 8192)
    drawn: dict[str, Any] = {} if procedure == "lean" else {"stopping": "none", "first_error_exit": False}
    settings = replace(settings, **drawn, **given)
    if not isinstance(prompt, CriticTemplate):
        prompt = load_critic_template(prompt or carried_critic_template(model))
    rule = StoppingRule(number, settings.threshold, settings.stopping, confidence)
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens, seed)
    further = {name: getattr(settings, name) for name in ("first_error_exit", "force_verdict")}
    return Critic(engine or load_engine(model), prompt, rule, sampling, **further)
