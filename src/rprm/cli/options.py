"""Options of the commands, each written once: a field of a dataclass is an option, with its default and its help.

A command that takes such a dataclass is wrapped in `with_options`, which lets typer see the fields in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

if TYPE_CHECKING:
    from rprm.rewarders.base import StepRewarder

T = TypeVar("T")


def with_options(command: Callable[..., T]) -> Callable[..., T]:
    """A command whose parameters that are dataclasses are options: one for each field, of its type and default."""
    groups: dict[str, type] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        types = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in fields(kind)
        ]

    @wraps(command)
    def run(**values: Any) -> T:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        return command(**values)

    # What typer reads; `wraps` would lead it to the command's own.
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


class StoppingName(StrEnum):
    none = "none"
    exact = "exact"
    confident = "confident"


class ProcedureName(StrEnum):
    lean = "lean"
    published = "published"


Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder: results are kept there, and a killed run goes on from there."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@dataclass(frozen=True)
class AnalysisOptions:
    """How analyses of steps are sampled. What is None is left to the model and the procedure."""

    num_analyses: Annotated[
        int | None,
        typer.Option("-k", "--num-analyses", help="Most analyses a step gets (the paper's K).  [default: 10]"),
    ] = None
    force_verdict: Annotated[
        bool | None,
        typer.Option(help="Where an analysis ends without a verdict, ask for one.  [default: no]"),
    ] = None
    ask: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|FILE",
            help="What an analysis without a verdict is asked, in place of the prompt's marker; implies "
            "--force-verdict.",
        ),
    ] = None
    prompt: Annotated[
        str | None, typer.Option(help="Prompt template: a file, or a built-in name (`rprm prompts list`).")
    ] = None
    temperature: Annotated[float | None, typer.Option(help="Of the analyses.  [default: 0.95]")] = None
    top_p: Annotated[float | None, typer.Option(help="Of the analyses.  [default: 0.95]")] = None
    max_tokens: Annotated[int | None, typer.Option(help="Longest analysis, in tokens.  [default: 4096]")] = None
    seed: Annotated[int, typer.Option(help="Seed of the whole run.")] = 0

    def rewarder(self, model: str, *, in_full: bool = False) -> StepRewarder:
        """What rewards steps.

        Args:
            model: its spec.
            in_full: every reward in full, as `RPRM.score` gives it.

        Raises:
            InputError: `in_full` or the published procedure, and early stopping.
            RprmError: see `load_rewarder`.
        """
        from rprm.errors import InputError
        from rprm.rewarders import load_rewarder

        options = {field.name: getattr(self, field.name) for field in fields(self)}
        procedure = options.pop("procedure", ProcedureName.lean)
        if (in_full or procedure != ProcedureName.lean) and (
            options.get("stopping") not in (None, StoppingName.none) or options.get("first_error_exit")
        ):
            raise InputError(
                "to draw every analysis of every step (rewards in full, the published procedure, curves), leave out "
                "--stopping and --first-error-exit"
            )
        options["force_verdict"] = asked(options.pop("ask"), self.force_verdict)
        return load_rewarder(
            model, procedure="full" if in_full and procedure == ProcedureName.lean else procedure.value, **options
        )


@dataclass(frozen=True)
class JudgeOptions(AnalysisOptions):
    """How steps are judged right or wrong."""

    procedure: Annotated[
        ProcedureName,
        typer.Option(
            help="published: as the published code judges, to compare with: every analysis of every step, P(Yes) in a "
            "second pass from two token ids, a verdict asked for where there is none.",
        ),
    ] = ProcedureName.lean
    threshold: Annotated[
        float | None,
        typer.Option(help="A step whose reward is below it is called wrong.  [default: 0.5, or the model's own]"),
    ] = None
    stopping: Annotated[
        StoppingName | None,
        typer.Option(help="Early stopping within a step; exact changes no decision.  [default: exact]"),
    ] = None
    confidence: Annotated[float, typer.Option(help="For --stopping confident: how probable a decision must be.")] = 0.99


@dataclass(frozen=True)
class FirstErrorOptions(JudgeOptions):
    """How first errors are found."""

    first_error_exit: Annotated[
        bool | None,
        typer.Option("--first-error-exit/--all-steps", help="Stop at the first step called wrong.  [default: stop]"),
    ] = None


def asked(ask: str | None, force_verdict: bool | None) -> bool | str | None:
    """What `--ask` and `--force-verdict` come to.

    Raises:
        InputError: the file that `--ask` names cannot be read or is empty; or the two contradict each other.
    """
    from rprm.errors import InputError

    if ask is None:
        return force_verdict
    if force_verdict is False:
        raise InputError("--ask asks for a verdict: leave out --no-force-verdict")
    try:
        # A sentence has spaces.
        is_file = not any(map(str.isspace, ask)) or (len(ask) < 256 and Path(ask).is_file())
        text = Path(ask).read_text(encoding="utf-8").rstrip("\n") if ask and is_file else ask
    except (OSError, ValueError) as error:
        raise InputError(f"--ask {ask}: no sentence, and no file that can be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise InputError(f"--ask {ask!r}: empty; give a sentence that ends where Yes or No follows, or a file with one")
    return text
