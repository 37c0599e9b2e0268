"""`rprm judge`; and, for every command that judges, the progress line, the exit codes, the embedded model's scope."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from rprm import ranges
from rprm.cli import EXIT_REJECTED
from rprm.cli.options import ClusterOptions, FirstErrorOptions, Map, Model, Output, Strict, with_options
from rprm.cli.process import run_async
from rprm.errors import InputError, RunError

if TYPE_CHECKING:
    from rprm.cluster import Cluster
    from rprm.jobs import Callbacks
    from rprm.reading import Rejected
    from rprm.records import Solution, SolutionReward

T = TypeVar("T")

MAX_SHOWN = 20  #: rejected rows that are shown, one by one


@with_options
def judge(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="JSON Lines, JSON or CSV (also .gz) or Parquet with {id?, problem, steps[] | solution, label?}, or "
            "chats, {messages}; - for standard input; or a hub data set, OWNER/NAME?split=SPLIT.",
        ),
    ],
    model: Model = "embedded",
    output: Output = None,
    *,
    options: FirstErrorOptions,
    rewards: Annotated[
        Literal["lean", "full"],
        "lean: what the first error needs, and no more. full: all analyses of every step, for ranking, "
        "reinforcement learning and other thresholds.",
    ] = "lean",
    map: Map = None,
    limit: Annotated[ranges.Rows | None, "Judge the first N rows alone."] = None,
    replicated: ClusterOptions,
    strict: Strict = False,
    json: Annotated[bool, "--json", "One JSON object a solution, on standard output."] = False,
    analyses: Annotated[bool, "--analyses", "Show the analyses too."] = False,
    quiet: Annotated[bool, "--quiet", "-q", "Print the summary alone."] = False,
) -> None:
    """Judge solutions step by step: a reward for each step, and the first wrong step.

    The defaults are the paper's and its scripts'; two models have lighter ones of their own: embedded (400 tokens), and
    smollm2 (-k 4, 128 tokens, --force-verdict). Exit code 3: some rows were rejected.
    """
    from rprm.reading import Source, read_solutions, with_columns
    from rprm.report.solutions import render_solution, render_totals
    from rprm.rewarders.base import judge_source
    from rprm.terminal import Terminal

    rewarder = options.rewarder(model, in_full=rewards == "full")
    cluster = replicated.cluster(rewarder)
    console = Terminal()
    scope = EmbeddedScope(model)
    told: set[str] = set()

    def show(solution: Solution, result: SolutionReward) -> None:
        note = scope.note(solution)
        if json:
            print(result.model_dump_json(), flush=True)
        elif not quiet:
            how: dict[str, Any] = {"threshold": rewarder.threshold, "analyses": analyses, "note": note, "told": told}
            console.print(render_solution(solution, result, **how))

    source = Source(with_columns(input, map))
    info = source.inspect()
    rows = read_solutions(source, limit)
    settings = {} if limit is None else {"limit": limit}
    totals = run_behind_progress(
        lambda callbacks: judge_source(
            rewarder, rows, source=info, output=output, settings=settings, strict=strict, callbacks=callbacks,
            cluster=cluster,
        ),
        rewarder.aclose, limit or info.num_rows, show, noun="solutions", replay=json or not quiet or scope.is_embedded,
        cluster=cluster,
    )  # fmt: skip
    if not json:
        console.print(render_totals(totals, output))
    scope.tell()
    refuse_nothing_judged(totals)
    refuse_nothing_read(info.name, "solution", totals.num_solutions, totals.num_rejected)
    leave(totals.num_rejected)


def run_behind_progress(
    work: Callable[[Callbacks], Awaitable[T]], close: Callable[[], Awaitable[None]], num_rows: int | None,
    on_result: Callable[[Any, Any], object] = lambda row, result: None, *, noun: str, activity: str = "judging",
    replay: bool = True, cluster: Cluster | None = None,
) -> T:  # fmt: skip
    """Do some work behind a `ProgressLine` of `num_rows` rows, and `close` what was used, the cluster too. What
    `on_result` prints of each row and its result stands above the line; with `replay` it gets the rows of earlier
    sessions too."""
    from rprm.jobs import Callbacks
    from rprm.progress import ProgressLine
    from rprm.showing import one_line
    from rprm.terminal import Terminal

    console, num_rejected = Terminal(stderr=True), 0
    # Results go to standard output: through the line when that is this terminal too, past it otherwise.
    how = {"disable": not console.is_terminal, "redirect_stdout": sys.stdout.isatty()}
    line = ProgressLine(console, num_rows, noun=noun, activity=activity, **how)

    def finished(row: Any, result: Any) -> None:
        line.judged(result)
        on_result(row, result)

    def rejected(row: Rejected) -> None:
        nonlocal num_rejected
        num_rejected += 1
        if num_rejected <= MAX_SHOWN:
            console.print(one_line(f"rejected: {row.file}, line {row.line}: {row.reason}"), style="yellow")

    if cluster is not None:
        cluster.on_replicas = line.replicas
        cluster.tell = lambda text: console.print(one_line(text), style="yellow", soft_wrap=True)

    async def main() -> T:
        with line:
            try:
                return await work(Callbacks(finished, rejected, line.paid, line.resumed, replay))
            finally:
                if cluster is not None:
                    await cluster.aclose()
                await close()
                if (more := num_rejected - MAX_SHOWN) > 0:
                    console.print(f"rejected: {more:,} more rows (in rejected.jsonl of a run folder)", style="yellow")

    return run_async(main())


def leave(num_rejected: int) -> None:
    """Exit code 3 where rows were rejected."""
    if num_rejected:
        raise typer.Exit(EXIT_REJECTED)


def refuse_nothing_read(source: str, noun: str, num_read: int, num_rejected: int) -> None:
    """An `InputError` where no row of a source could be used."""
    if not num_read:
        reason = f": all {num_rejected:,} rows were rejected" if num_rejected else ""
        raise InputError(f"{source}: holds no {noun}{reason}")


def refuse_nothing_judged(totals: Any) -> None:
    """A `RunError` where by its totals a run gave no step a reward; it has the reason of the first."""
    if totals.nothing_judged:
        raise RunError(f"no step of any solution could be judged; the first: {totals.failure}")


class EmbeddedScope:
    """Marks and counts the solutions outside of what the embedded model knows; silent for any other model's spec."""

    def __init__(self, model: str | None) -> None:
        from rprm.embedded import FIX, KNOWS, is_embedded

        self._model = model or ""
        self.is_embedded = is_embedded(self._model)
        self.num_solutions = self.num_outside = 0
        if self.is_embedded:
            _say(f"{KNOWS}; for other mathematics {FIX} (--model)", "dim")

    def note(self, solution: Solution) -> str | None:
        """Count a judged solution; why its rewards mean nothing, None where it may be of the lab's world."""
        from rprm.embedded import note

        self.num_solutions += 1
        found = note(self._model, solution)
        self.num_outside += found is not None
        return found

    def tell(self) -> None:
        """Say how many solutions lay outside."""
        from rprm.embedded import notice

        if self.num_outside:
            _say(notice(self.num_outside, self.num_solutions), "yellow")


def _say(text: str, style: str) -> None:
    from rprm.terminal import Terminal

    Terminal(stderr=True).print(text, style=style, soft_wrap=True)
