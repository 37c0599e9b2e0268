"""`rprm judge`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

if TYPE_CHECKING:
    from rprm.jobs import Callbacks
    from rprm.reading import Rejected, Source, SourceInfo
    from rprm.records import Solution, SolutionReward
    from rprm.rewarders.base import StepRewarder
    from rprm.rewarders.batch import Totals


class StoppingName(StrEnum):
    none = "none"
    exact = "exact"
    confident = "confident"


class RewardsName(StrEnum):
    lean = "lean"
    full = "full"


class ProcedureName(StrEnum):
    lean = "lean"
    published = "published"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A known model (`rprm models`), embedded, smollm2, transformers:PATH_OR_ID, vllm:PATH_OR_ID, "
        "openai:MODEL@URL, scripted:; or a discriminative PRM, classifier:PATH_OR_ID; options as ?name=value.",
    ),
]
NumAnalyses = Annotated[
    int | None, typer.Option("-k", "--num-analyses", help="Most analyses a step gets (the paper's K).  [default: 10]")
]
Threshold = Annotated[
    float | None,
    typer.Option(help="A step whose reward is below it is called wrong.  [default: 0.5, or the embedded model's own]"),
]
StoppingOption = Annotated[
    StoppingName | None,
    typer.Option("--stopping", help="Early stopping within a step; exact changes no decision.  [default: exact]"),
]
Confidence = Annotated[float, typer.Option(help="For --stopping confident: how probable a decision must be.")]
FirstErrorExit = Annotated[
    bool | None,
    typer.Option("--first-error-exit/--all-steps", help="Stop at the first step called wrong.  [default: stop]"),
]
ForceVerdict = Annotated[
    bool | None,
    typer.Option(
        "--force-verdict/--no-force-verdict",
        help="Where an analysis ends without a verdict, ask for one.  [default: no]",
    ),
]
Ask = Annotated[
    str | None,
    typer.Option(
        "--ask",
        metavar="TEXT|FILE",
        help="What an analysis without a verdict is asked, in place of the prompt's marker; implies --force-verdict.",
    ),
]
ProcedureOption = Annotated[
    ProcedureName,
    typer.Option(
        "--procedure",
        help="published: as the published code judges, to compare with: every analysis of every step, P(Yes) in a "
        "second pass from two token ids, a verdict asked for where there is none.",
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="Prompt template: a file, or a built-in name (`rprm prompts list`).")
]
Temperature = Annotated[float | None, typer.Option(help="Of the analyses.  [default: 0.95]")]
TopP = Annotated[float | None, typer.Option(help="Of the analyses.  [default: 0.95]")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest analysis, in tokens.  [default: 4096]")]
Seed = Annotated[int, typer.Option(help="Seed of the whole run.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Run folder: results are kept there, and a killed run goes on from there."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be used.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Judge the first N rows alone.")]


def judge(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSON Lines or JSON (also .gz) with {id?, problem, steps[] | solution, label?}; - for standard input; "
            "or a hub data set, OWNER/NAME?split=SPLIT.",
        ),
    ],
    model: Model = "embedded",
    num_analyses: NumAnalyses = None,
    output: Output = None,
    rewards: Annotated[
        RewardsName,
        typer.Option(
            "--rewards",
            help="lean: what the first error needs, and no more. full: all analyses of every step, for ranking, "
            "reinforcement learning and other thresholds.",
        ),
    ] = RewardsName.lean,
    procedure: ProcedureOption = ProcedureName.lean,
    threshold: Threshold = None,
    stopping: StoppingOption = None,
    confidence: Confidence = 0.99,
    first_error_exit: FirstErrorExit = None,
    force_verdict: ForceVerdict = None,
    ask: Ask = None,
    prompt: PromptOption = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    limit: Limit = None,
    strict: Strict = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a solution, on standard output.")] = False,
    analyses: Annotated[bool, typer.Option("--analyses", help="Show the analyses too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the summary alone.")] = False,
) -> None:
    """Judge solutions step by step: a reward for each step, and the first wrong step.

    The defaults are the paper's and its scripts'; two models have lighter ones of their own: embedded (400 tokens), and
    smollm2 (-k 4, 128 tokens, a verdict is asked for where it reaches none). Exit code 3: some rows were rejected.
    """
    from rich.console import Console

    from rprm.cli import EXIT_REJECTED
    from rprm.cli.embedded import EmbeddedScope
    from rprm.errors import InputError
    from rprm.reading import read_solutions
    from rprm.report.solutions import render_solution, render_totals
    from rprm.rewarders import load_rewarder

    if (rewards == RewardsName.full or procedure == ProcedureName.published) and (
        stopping not in (None, StoppingName.none) or first_error_exit
    ):
        raise InputError(
            "--rewards full and --procedure published draw every analysis of every step: leave out --stopping and "
            "--first-error-exit"
        )
    rewarder = load_rewarder(
        model,
        procedure="full" if rewards == RewardsName.full and procedure == ProcedureName.lean else procedure.value,
        num_analyses=num_analyses,
        threshold=threshold,
        stopping=stopping.value if stopping else None,
        confidence=confidence,
        first_error_exit=first_error_exit,
        force_verdict=asked(ask, force_verdict),
        prompt=prompt,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
    )
    console = Console(highlight=False)
    scope = EmbeddedScope(model)
    told: set[str] = set()

    def show(solution: Solution, result: SolutionReward) -> None:
        note = scope.note(solution)
        if json:
            print(result.model_dump_json(), flush=True)
        elif not quiet:
            console.print(
                render_solution(solution, result, threshold=rewarder.threshold, analyses=analyses, note=note, told=told)
            )

    with opened_source(input) as (source, info):
        rows = read_solutions(source, name=input)
        totals = run_judge(
            rewarder,
            rows if limit is None else islice(rows, limit),
            info,
            num_solutions=info.num_rows if limit is None else limit,
            output=output,
            settings={} if limit is None else {"limit": limit},
            strict=strict,
            on_result=show,
        )
    if not json:
        console.print(render_totals(totals, output))
    scope.tell()
    refuse_nothing_judged(totals)
    if totals.num_rejected:
        raise typer.Exit(EXIT_REJECTED)
    if not totals.num_solutions:
        raise InputError(f"{input}: holds no solution")


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


class Judged(Protocol):
    """The totals of a run that judges steps."""

    @property
    def nothing_judged(self) -> bool: ...

    @property
    def failure(self) -> str | None: ...


def refuse_nothing_judged(totals: Judged) -> None:
    """A run that gave no step a reward has failed.

    Raises:
        RunError: none has; the message has the reason of the first.
    """
    from rprm.errors import RunError

    if totals.nothing_judged:
        raise RunError(f"no step of any solution could be judged; the first: {totals.failure}")


@contextmanager
def opened_source(name: str) -> Iterator[tuple[Source, SourceInfo]]:
    """A source and what identifies it. Standard input is kept in a file meanwhile: it is read twice."""
    import shutil
    import sys
    import tempfile

    from rprm.reading import Source

    if name != "-":
        source = Source(name)
        yield source, source.inspect()
        return
    with tempfile.TemporaryDirectory(prefix="rprm-") as folder:
        path = Path(folder) / "standard-input"
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        source = Source(str(path))
        yield source, replace(source.inspect(), name=name)


def run_judge(
    rewarder: StepRewarder,
    rows: Iterable[Solution | Rejected],
    info: SourceInfo,
    *,
    num_solutions: int | None,
    output: Path | None,
    settings: dict[str, Any],
    strict: bool,
    on_result: Callable[[Solution, SolutionReward], object],
    noun: str = "solutions",
) -> Totals:
    """Judge rows behind a progress line on standard error; see `judge_source`."""
    from rprm.cli.progress import run_behind_progress
    from rprm.rewarders.batch import judge_source

    def work(callbacks: Callbacks) -> Awaitable[Totals]:
        return judge_source(
            rewarder, rows, source=info, output=output, settings=settings, strict=strict, callbacks=callbacks
        )

    return run_behind_progress(work, rewarder.aclose, num_solutions, on_result, noun=noun)
