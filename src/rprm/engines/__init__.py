"""Engines: where completions come from. `load_engine("KIND:TARGET?option=value")` makes one; see `base.Engine`."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points
from typing import Any, cast
from urllib.parse import parse_qsl

from rprm.engines.base import Completion, Engine, EngineInfo, Sampling
from rprm.engines.files import fingerprint, refuse_missing
from rprm.errors import EngineError
from rprm.models import MODELS, resolve

__all__ = ["Completion", "Engine", "EngineInfo", "Sampling", "fingerprint", "load_engine", "parse_options"]

#: Kind -> module and class. Imported when first used: each brings heavy libraries of its own.
_KINDS = {
    "embedded": ("rprm.engines.embedded", "EmbeddedEngine"),
    "smollm2": ("rprm.engines.smollm2", "SmolLM2Engine"),
    "transformers": ("rprm.engines.transformers", "TransformersEngine"),
    "vllm": ("rprm.engines.vllm", "VLLMEngine"),
    "openai": ("rprm.engines.openai", "OpenAIEngine"),
    "scripted": ("rprm.engines.scripted", "ScriptedEngine"),
}


def load_engine(spec: str, **options: Any) -> Engine:
    """Make the engine that `spec` names; `Engine.start` loads its model.

    Args:
        spec: `KIND:TARGET?option=value&option=value`, for example `vllm:Qwen/Qwen2.5-Math-7B-Instruct`,
            `transformers:./student?dtype=float32`, `openai:gpt-4o@https://host/v1`, `embedded`, `smollm2`;
            or the alias of a known model, `r-prm-7b` (`rprm.models`).
        options: the same options by name; they win over those in `spec`.

    Raises:
        EngineError: unknown kind or option, a value that does not fit, or a missing extra.
    """
    spec = resolve(spec).spec
    body, _, query = spec.partition("?")
    kind, _, target = body.partition(":")
    if kind in _KINDS:
        module_name, class_name = _KINDS[kind]
        engine_class = getattr(importlib.import_module(module_name), class_name)
    elif plugin := next(iter(entry_points(group="rprm.engines", name=kind)), None):
        engine_class = plugin.load()
    else:
        kinds = (*_KINDS, *entry_points(group="rprm.engines").names)
        raise EngineError(
            f"model {spec!r}: unknown engine {kind!r}; write KIND:TARGET with one of {', '.join(kinds)}, classifier; "
            f"or name a known model (`rprm models`): {', '.join(model.alias for model in MODELS)}"
        )
    options = parse_options(spec, engine_class, dict(parse_qsl(query, keep_blank_values=True)) | options)
    arguments = (target,) if target else ()
    if kind in ("scripted", "embedded", "smollm2"):
        if target:
            raise EngineError(f"model {spec!r}: {kind} takes options alone: {kind}:?name=value")
        return cast(Engine, engine_class(spec, **options))
    if not arguments:
        raise EngineError(f"model {spec!r}: say which model, as in {kind}:PATH_OR_ID")
    if kind != "openai":
        refuse_missing(spec, target)
    return cast(Engine, engine_class(target, spec=spec, **options))


def parse_options(spec: str, engine_class: type, options: dict[str, Any]) -> dict[str, Any]:
    """Check names against the constructor's keyword-only arguments and turn texts into their types.

    Raises:
        EngineError: an unknown name, or a value that does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    parameters = inspect.signature(engine_class, eval_str=True).parameters
    hints = {
        name: parameter.annotation for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    }
    for internal in ("spec", "reply"):
        hints.pop(internal, None)
    parsed: dict[str, Any] = {}
    for name, value in options.items():
        if name not in hints:
            raise EngineError(f"model {spec!r}: unknown option {name!r}; options are {', '.join(sorted(hints))}")
        try:
            parsed[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise EngineError(f"model {spec!r}: option {name}={value!r}: {reason}") from None
    return parsed
