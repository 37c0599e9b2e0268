"""Engines: where completions come from. `load_engine("KIND:TARGET?option=value")` makes one; see `base.Engine`.

Another distribution adds a kind by an entry point of the group `rprm.engines`: `Mine(target, *, spec, option=...)`.
"""

from __future__ import annotations

from typing import Any, cast

from rprm.engines.base import Completion, Engine, EngineInfo, Sampling
from rprm.engines.loading import refuse_missing
from rprm.errors import EngineError
from rprm.folders import fingerprint
from rprm.models import MODELS, resolve
from rprm.plugins import construct, find_kinds, load_kind, split_spec

__all__ = ["Completion", "Engine", "EngineInfo", "Sampling", "fingerprint", "load_engine"]

GROUP = "rprm.engines"
KINDS = {
    "embedded": "rprm.engines.transformers:embedded",
    "smollm2": "rprm.engines.transformers:smollm2",
    "transformers": "rprm.engines.transformers:TransformersEngine",
    "vllm": "rprm.engines.vllm:VLLMEngine",
    "openai": "rprm.engines.openai:OpenAIEngine",
    "scripted": "rprm.engines.scripted:ScriptedEngine",
}


def load_engine(spec: str, **options: Any) -> Engine:
    """Make the engine that `spec` names; `Engine.start` loads its model.

    Args:
        spec: `KIND:TARGET?option=value&option=value`, such as `transformers:./student?dtype=float32`,
            `openai:gpt-4o@https://host/v1`, `embedded`; or the alias of a known model, `r-prm-7b` (`rprm.models`).
        options: the same options by name; they win over those in `spec`.
    """
    spec = resolve(spec).spec
    kind, target, _ = split_spec(spec)
    kinds = find_kinds(GROUP, KINDS)
    if kind == "critic" and kind not in kinds:
        raise EngineError(f"model {spec!r}: a critic is no engine; name here what it reads with: leave out critic:")
    if kind not in kinds:
        raise EngineError(
            f"model {spec!r}: unknown engine {kind!r}; write KIND:TARGET with one of {', '.join(kinds)}, classifier; "
            f"or name a known model (`rprm models`): {', '.join(model.alias for model in MODELS)}"
        )
    if kind != "openai":
        refuse_missing(spec, target)
    return cast(Engine, construct(load_kind(kinds[kind]), spec, options))
