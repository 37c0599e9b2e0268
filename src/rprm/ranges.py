"""The range of every number that a person gives: one check on the command line, in a model's spec and in Python.

A bound above what anyone needs is there for slips: 10^8 analyses of a step would fill the machine before it said so.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from rprm.errors import RprmError

Draws = Annotated[int, Field(ge=1, le=10_000)]  #: analyses, candidates, rounds: what is drawn of one thing
Several = Annotated[int, Field(ge=2, le=10_000)]  #: of which two can differ
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
Rows = Annotated[int, Field(ge=1, le=1_000_000_000)]  #: rows of a source, steps of a training
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Width = Annotated[int, Field(ge=1, le=65_536)]  #: what is under way at once
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Temperature = Annotated[float, Field(ge=0.0, le=10.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Overlap = Annotated[float, Field(ge=0.01, le=1.0)]
ShareBelow1 = Annotated[float, Field(ge=0.0, lt=1.0)]
HeldOut = Annotated[float, Field(ge=0.0, le=0.99)]  #: more would leave next to nothing to train on
Threshold = Annotated[float, Field(gt=0.0, lt=1.0)]  #: a step whose reward is below it is called wrong
Confidence = Annotated[float, Field(gt=0.5, lt=1.0)]
Ratio = Annotated[float, Field(ge=1.0, le=1e6)]
Weight = Annotated[float, Field(ge=0.0, le=1e12)]
Rate = Annotated[float, Field(gt=0.0, le=1e6)]
Resamples = Annotated[int, Field(ge=10, le=100_000)]
ClipRange = Annotated[float, Field(ge=0.0, le=100.0)]  #: of a ratio of probabilities, from 1
Checkpoints = Annotated[int, Field(ge=2, le=10_000)]
Retries = Annotated[int, Field(ge=0, le=1000)]
Rank = Annotated[int, Field(ge=0, le=65_536)]  #: of an adapter; 0 for none
Megabytes = Annotated[int, Field(ge=1, le=65_536)]
Seconds = Annotated[float, Field(gt=0.0, le=1e6)]
Port = Annotated[int, Field(ge=0, le=65_535)]  #: 0: any that is free
Devices = Annotated[int, Field(ge=1, le=1024)]
Gpus = Annotated[float, Field(ge=0.0, le=1024.0)]  #: of a process; less than one is a share
Utilization = Annotated[float, Field(gt=0.0, le=1.0)]  #: of a peak

_WORDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


def number_of(hint: Any) -> tuple[type, str] | None:
    """The kind of a number with bounds, and in words what it must be; None of a type that is none."""
    kind, *metadata = get_args(hint) if get_origin(hint) is Annotated else (None,)
    bounds = [bound for field in metadata if isinstance(field, FieldInfo) for bound in field.metadata]
    ends = [f"{_WORDS[name]} {getattr(one, name):,}" for name in _WORDS for one in bounds if hasattr(one, name)]
    if kind in (int, float) and ends:
        return kind, f"{'a whole number' if kind is int else 'a number'} {' '.join(ends)}"
    return next(filter(None, map(number_of, get_args(hint))), None)


def taken(hint: Any, value: Any) -> Any:
    """A value, maybe a text, as its type says; a ValueError says what it must be."""
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"give {found[1]}" if (found := number_of(hint)) else error.errors()[0]["msg"]) from None


_adapter = cache(TypeAdapter[Any])


def check(settings: object, kind: type[RprmError]) -> None:
    """Refuse a dataclass with a number out of its range, by an error of that kind."""
    of: Any = type(settings)
    names, hints, all_of_them = _numbers(of)
    values = [getattr(settings, name) for name in names]
    with suppress(ValidationError):
        all_of_them.validate_python(values)
        return
    for name, hint, value in zip(names, hints, values, strict=True):
        try:
            taken(hint, value)
        except ValueError as error:
            raise kind(f"{name} is {value!r:.80}; {error}") from None


@cache
def _numbers(of: type) -> tuple[tuple[str, ...], tuple[Any, ...], TypeAdapter[Any]]:
    found = {name: hint for name, hint in get_type_hints(of, include_extras=True).items() if number_of(hint)}
    return tuple(found), tuple(found.values()), TypeAdapter(tuple[tuple(found.values())])  # type: ignore[misc,arg-type]
