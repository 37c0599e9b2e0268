"""Discriminative PRMs: one forward pass, a score at the end of each step.

`load_classifier("classifier:PATH_OR_ID?option=value")` makes one in this process, `classifier:MODEL@URL` one behind a
server; see `classifier.Classifier` and `endpoint.ServedClassifier` for the options and `layouts` for the layouts.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from rprm.classifiers.base import StepClassifier
from rprm.classifiers.classifier import Classifier
from rprm.classifiers.endpoint import ServedClassifier
from rprm.engines import parse_options
from rprm.engines.files import refuse_missing
from rprm.errors import EngineError
from rprm.models import resolve

__all__ = ["KIND", "Classifier", "StepClassifier", "is_classifier", "load_classifier"]

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
