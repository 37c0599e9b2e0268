"""Kinds of engines and rewarders by name: of this package, and of installed distributions (entry points)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast, get_args, get_type_hints
from urllib.parse import parse_qsl

from rprm.errors import EngineError
from rprm.ranges import taken
from rprm.showing import without_credentials

#: Keyword arguments of constructors that are no options of a spec.
_NO_OPTIONS = ("spec", "reply")


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    """Looked up once: it reads a file of each distribution."""
    return tuple(entry_points(group=group))


def find_kinds(group: str, built_in: Mapping[str, str]) -> dict[str, EntryPoint]:
    """The entry points of a group ("rprm.engines") by name, with the `built_in` ones: name -> `module:object`."""
    found = {name: EntryPoint(name, value, group) for name, value in built_in.items()}
    for point in _installed(group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            owners = (f"{one.value} of {one.dist.name if one.dist else 'rprm'}" for one in (other, point))
            raise EngineError(f"{group}: two are called {point.name!r}, {' and '.join(owners)}; uninstall one of them")
    return found


def load_kind(point: EntryPoint) -> Callable[..., Any]:
    """What an entry point names; an `EngineError` where it cannot be imported."""
    try:
        return cast(Callable[..., Any], point.load())
    except (ImportError, AttributeError) as error:
        raise EngineError(f"{point.group}: {point.name} ({point.value}) cannot be imported: {error}") from error


def split_spec(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Kind, target and options of `KIND:TARGET?option=value&option=value`; an `EngineError` where a key is in it."""
    if without_credentials(spec) != spec:
        raise EngineError(
            f"model {spec!r}: no password or key may stand there, where it would be recorded; put it into an "
            "environment variable (openai: key_env=NAME)"
        )
    body, _, query = spec.partition("?")
    kind, _, target = body.partition(":")
    return kind, target, dict(parse_qsl(query, keep_blank_values=True))


def options_of(make: Callable[..., Any]) -> dict[str, Any]:
    """The options of a constructor and their types: its keyword-only parameters, those of an `Unpack[...]` too."""
    hints: dict[str, Any] = {}
    for name, parameter in inspect.signature(make, eval_str=True).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name not in _NO_OPTIONS:
            hints[name] = parameter.annotation
        elif parameter.kind is parameter.VAR_KEYWORD:
            for typed in get_args(parameter.annotation):
                hints |= get_type_hints(typed, include_extras=True)
    return hints


def typed(hints: Mapping[str, Any], options: Mapping[str, Any], spec: str) -> dict[str, Any]:
    """The options of a model as their types say, texts too; `EngineError`: one is unknown or does not fit."""
    parsed: dict[str, Any] = {}
    for name, value in options.items():
        if name not in hints:
            raise EngineError(f"model {spec!r}: unknown option {name!r}; options are {', '.join(sorted(hints))}")
        try:
            parsed[name] = taken(hints[name], value)
        except ValueError as error:
            raise EngineError(f"model {spec!r}: option {name}={value!r:.80}: {error}") from None
    return parsed


def check_options(engine: Any) -> None:
    """Take the options of an engine that is made from Python as `typed` does: as their types say, or not at all."""
    hints = options_of(type(engine))
    given = {name: value for name, value in vars(engine).items() if name in hints}
    vars(engine).update(typed(hints, given, engine.spec))


def construct(make: Callable[..., Any], spec: str, options: Mapping[str, Any]) -> Any:
    """Call `make(target, spec=spec, **options)`, or `make(spec, **options)` where its first parameter is `spec`.

    Options win over those in `spec`. `EngineError`: one is unknown or does not fit (`typed`), or there is a target too
    few or too many.
    """
    kind, target, in_spec = split_spec(spec)
    parsed = typed(options_of(make), {**in_spec, **options}, spec)
    if next(iter(inspect.signature(make).parameters)) == "spec":
        if target:
            raise EngineError(f"model {spec!r}: {kind} takes options alone: {kind}:?name=value")
        return make(spec, **parsed)
    if not target:
        raise EngineError(f"model {spec!r}: say which model, as in {kind}:PATH_OR_ID")
    return make(target, spec=spec, **parsed)
