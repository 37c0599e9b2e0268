"""Numbers are checked at the door: in every command, every model's spec and every constructor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from rprm import RPRM, engines, ranges, rewarders
from rprm.cli.app import app
from rprm.data.stage_options import SamplingOptions
from rprm.engines import Sampling, load_engine
from rprm.errors import RprmError
from rprm.plugins import find_kinds, load_kind, options_of
from rprm.presets import PAPER
from rprm.rewarders import load_rewarder
from rprm.stopping import StoppingRule
from rprm.training.settings import (
    ClassifierTraining,
    DPOSettings,
    GRPOSettings,
    RoundSettings,
    RunOptions,
    SFTSettings,
)

#: What is no number of any option here, or beyond every range; and slips.
BAD = ("", "nan", "inf", "-inf", "1e400", "-1", "１２", "0x10", "12,5", "--", "9" * 5000, "1e18")


def _commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for child in command.list_commands(context):
            yield from _commands(command.get_command(context, child), (*name, child))
    elif name[0] != "lab":  # a distribution of its own
        yield name, command


def _annotation(option: Any) -> Any:
    """The type of an option: typer's own classes from 0.20 on, click's before."""
    found = getattr(option, "type_descriptor", None)
    return found.annotation if found is not None else {"integer": int, "float": float}.get(option.type.name)


def _numbers() -> list[tuple[tuple[str, ...], Any, str]]:
    commands = _commands(typer.main.get_command(app))
    return [
        (name, command, max(one.opts, key=len))
        for name, command in commands
        for one in command.params
        if {int, float} & {_annotation(one), *get_args(_annotation(one))}
    ]


def test_every_number_of_every_command_is_refused_before_anything_is_done(figures: Callable[..., None]) -> None:
    numbers, num_refused = _numbers(), 0
    assert len(numbers) > 150
    for place, (name, command, option) in enumerate(numbers):
        for value in BAD[place % 3 :: 3]:
            with pytest.raises(Exception, match=r"give a (whole )?number") as caught:
                command.make_context(" ".join(name), [f"{option}={value}"])
            error: Any = caught.value
            assert error.exit_code == 2
            assert option in error.format_message(), (name, option, value)
            num_refused += 1
    figures(options=len(numbers), refused=num_refused)


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("judge x -k 100000000", "give a whole number from 1 to 10,000"),
        ("judge x --threshold 1", "give a number above 0.0 below 1.0"),
        ("judge x --temperature 95", "give a number from 0.0 to 10.0"),
        ("search sample -p scripted: -n 0", "give a whole number from 1 to 10,000"),
        ("train sft x --epochs 0", "give a number above 0.0 to 1,000,000.0"),
    ],
)
def test_the_range_is_named(command: str, wanted: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2
    assert wanted in " ".join(done.output.split())


def _spec_numbers() -> list[tuple[str, Any, str, Any]]:
    built_in = {engines.GROUP: engines.KINDS, rewarders.GROUP: rewarders.KINDS | {"served": rewarders._SERVED.value}}
    return [
        (kind, make, name, hint)
        for group, kinds in built_in.items()
        for kind, point in find_kinds(group, kinds).items()
        if kind in kinds
        for make in [load_kind(point)]
        for name, hint in options_of(make).items()
        if {int, float} & {hint, *get_args(hint)} or ranges.number_of(hint)
    ]


@pytest.mark.parametrize(("kind", "make", "name", "hint"), _spec_numbers(), ids=lambda value: str(value)[:20])
def test_every_number_of_a_spec_has_a_range(kind: str, make: Any, name: str, hint: Any) -> None:
    target = "m@http://localhost:1/v1" if kind in ("openai", "served") else "x"
    targets = (
        {} if next(iter(options_of(make))) == "spec" or kind in ("embedded", "smollm2", "scripted") else {target: 1}
    )
    layout = {"layout": "qwen"} if kind == "served" else {}
    for value in (*BAD, math.nan, math.inf, -1, 10**18):
        with pytest.raises(RprmError, match=name):
            make(*targets, **layout | {name: value})
    with pytest.raises(ValueError, match=r"give a (whole )?number"):
        ranges.taken(hint, -1)


SETTINGS = (
    PAPER, StoppingRule(4), SFTSettings(), DPOSettings(), GRPOSettings(), ClassifierTraining(), RunOptions(),
    RoundSettings(), SamplingOptions(), Sampling(),
)  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: type(one).__name__)
def test_settings_made_in_python_are_checked(settings: Any) -> None:
    numbers = [name for name, value in vars_of(settings).items() if isinstance(value, int | float)]
    for name in (name for name in numbers if not isinstance(vars_of(settings)[name], bool)):
        for value in (math.nan, math.inf, -1, 10**18):
            with pytest.raises(RprmError, match=name):
                replace(settings, **{name: value})


def vars_of(settings: Any) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in type(settings).__dataclass_fields__ if name != "seed"}


@pytest.mark.parametrize(
    "options",
    [{"num_analyses": 10**8}, {"threshold": math.nan}, {"temperature": math.inf}, {"top_p": 0}, {"max_tokens": 0},
     {"confidence": 2.0}, {"seed": -1}, {"num_analyses": "１２"}, {"threshold": ""}],
    ids=str,
)  # fmt: skip
def test_the_librarys_face_checks_too(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(RprmError, match=name):
        RPRM("scripted:", **options)


@pytest.mark.parametrize(
    "spec",
    ["openai:m@http://h:99999/v1", "openai:m@http://h:0x50/v1", "openai:m@http://h:-1/v1", "openai:m@http://h:８０/v1",
     "classifier:m@http://h:99999?layout=qwen", "classifier:m@http://h:port?layout=qwen",
     "classifier:m@http://h:８０?layout=qwen"],
)  # fmt: skip
def test_ports(spec: str) -> None:
    with pytest.raises(RprmError, match="URL"):
        load_rewarder(spec)


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "", "cuda:x", "gpu", "meta", "cpu:-7", "ｃpu", "cuda:1000000"])
def test_a_device_that_is_none_is_said_before_a_model_is_read(device: str, tmp_path: Any) -> None:
    import torch

    from rprm.engines.loading import placement

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(RprmError, match="device"):
        placement("transformers:x", device, "auto", None)


def test_an_engine_made_from_python_says_its_spec() -> None:
    with pytest.raises(RprmError, match=r"scripted:\?delay=inf.*delay"):
        load_engine("scripted:?delay=inf")
