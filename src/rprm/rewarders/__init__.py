"""Rewarders: what gives the steps of a solution their rewards. `load_rewarder(SPEC)` makes one.

A reasoning judge over any engine (`rprm.Judge`), or a discriminative PRM: one forward pass, a score at the end of each
step, in this process (`classifier.Classifier`) or behind a server (`served.ServedClassifier`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from rprm.engines import Engine, Sampling, load_engine, parse_options
from rprm.engines.files import refuse_missing
from rprm.errors import EngineError, RprmError
from rprm.models import resolve, template_for
from rprm.presets import JudgeSettings, Procedure, judge_settings
from rprm.prompts import PromptTemplate, load_template
from rprm.rewarders.classifier import Classifier
from rprm.rewarders.discriminative import StepClassifier
from rprm.rewarders.rprm import Judge
from rprm.rewarders.served import ServedClassifier
from rprm.stopping import StoppingRule

__all__ = [
    "KIND",
    "Classifier",
    "Judge",
    "StepClassifier",
    "is_classifier",
    "load_classifier",
    "load_judge",
    "load_rewarder",
]

#: What the spec of a classifier begins with.
KIND = "classifier"


def is_classifier(spec: str) -> bool:
    """Whether a model spec names a classifier (and not an engine)."""
    return resolve(spec).spec.partition(":")[0] == KIND


def load_classifier(spec: str, **options: Any) -> StepClassifier:
    """Make the classifier that `spec` names; `Classifier.start` loads its model.

    Args:
        spec: `classifier:PATH_OR_ID?option=value&option=value`, for example
            `classifier:Qwen/Qwen2.5-Math-PRM-7B`, `classifier:./baseline/model?dtype=float32`,
            `classifier:Qwen/Qwen2.5-Math-PRM-72B@http://localhost:8000`.
        options: the same options by name; they win over those in `spec`.

    Raises:
        EngineError: an unknown option, or a value that does not fit.
    """
    spec, known = (resolved := resolve(spec)).spec, resolved.known
    body, _, query = spec.partition("?")
    kind, _, target = body.partition(":")
    if kind != KIND or not target:
        raise EngineError(f"model {spec!r}: say which classifier, as in {KIND}:PATH_OR_ID")
    made: type[Classifier | ServedClassifier] = ServedClassifier if "://" in target else Classifier
    if made is Classifier:
        refuse_missing(spec, target)
    parsed = parse_options(spec, made, dict(parse_qsl(query, keep_blank_values=True)) | options)
    if known is not None:
        parsed = {"threshold": known.threshold} | parsed
        if made is ServedClassifier:
            # The name there is the server's, and may be the alias.
            parsed = {"layout": known.layout, "tokenizer": known.hub_id} | parsed
    return made(target, spec=spec, **parsed)


#: The default probability of `stopping="confident"`.
DEFAULT_CONFIDENCE = 0.99


#: Options that say how analyses are sampled: a classifier writes none.
_OF_ANALYSES = ("num_analyses", "force_verdict", "prompt", "temperature", "top_p", "max_tokens")


def load_rewarder(
    model: str | Engine = "embedded", *, procedure: Procedure = "lean", **options: Any
) -> Judge | StepClassifier:
    """Make what rewards steps from a model's spec: the one place that tells classifiers from reasoning judges.

    Args:
        model: "classifier:PATH_OR_ID" for a discriminative PRM (`rprm.rewarders`); every other spec is an engine's,
            and the rewarder a judge over it.
        procedure: "lean" answers with first errors, see `RPRM`; "full" gives every reward in full; "published" is the
            procedure of the published code (`rprm.presets.PUBLISHED`), to compare with. A classifier has but one.
        options: as for `RPRM`; what is None is left to the procedure. A classifier takes none that say how analyses are
            sampled or when to stop.

    Raises:
        RprmError: an option has no sensible value, or makes no sense for a classifier; the message names it.
        EngineError: unknown kind or option of the spec, or a value that does not fit.
    """
    if isinstance(model, str) and is_classifier(model):
        return _load_classifier(model, **options)
    return load_judge(model, procedure=procedure, **options)


def load_judge(
    model: str | Engine, *, engine: Engine | None = None, procedure: Procedure = "lean", **options: Any
) -> Judge:
    """Make a reasoning judge, see `load_rewarder`; over `engine`, where the model is loaded already."""
    if not isinstance(model, str):
        engine, model = model, model.spec
    elif engine is None:
        engine = load_engine(model)
    options = {name: value for name, value in options.items() if value is not None}
    confidence, seed = options.pop("confidence", DEFAULT_CONFIDENCE), options.pop("seed", 0)
    prompt = options.pop("prompt", None)
    settings = replace(judge_settings(model, procedure), **options)
    _check(settings)
    if not isinstance(prompt, PromptTemplate):
        prompt = load_template(prompt) if prompt else template_for(model, settings.prompt)
    return Judge(
        engine,
        prompt,
        StoppingRule(settings.num_analyses, settings.threshold, settings.stopping, confidence),
        Sampling(temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens, seed=seed),
        first_error_exit=settings.first_error_exit,
        force_verdict=settings.force_verdict,
        second_pass=settings.second_pass,
    )


def _load_classifier(model: str, *, threshold: float | None = None, **options: Any) -> StepClassifier:
    given = [name for name in _OF_ANALYSES if options.get(name) is not None]
    if options.get("stopping") not in (None, "none"):
        given.append("stopping")
    if options.get("confidence") not in (None, DEFAULT_CONFIDENCE):
        given.append("confidence")
    if options.get("first_error_exit"):
        given.append("first_error_exit")
    if given:
        raise RprmError(
            f"{model}: a classifier rewards all steps in one pass and writes no analyses: leave out {', '.join(given)}"
        )
    return load_classifier(model, **({} if threshold is None else {"threshold": threshold}))


def _check(settings: JudgeSettings) -> None:
    if not settings.temperature >= 0.0:
        raise RprmError(f"temperature is {settings.temperature}; give 0 or more")
    if not 0.0 < settings.top_p <= 1.0:
        raise RprmError(f"top_p is {settings.top_p}; give a number above 0, at most 1")
    if settings.max_tokens < 1:
        raise RprmError(f"max_tokens is {settings.max_tokens}; give at least 1")
