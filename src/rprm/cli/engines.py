"""`rprm engines check`: what a model's engine can do."""

from __future__ import annotations

from typing import Annotated

import typer

_HELP = "Engines: where a model's completions come from."
#: With a callback it is a group, of one command.
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help=_HELP, callback=lambda: None)


@app.command()
def check(
    spec: Annotated[str, typer.Argument(help="The model, as for `rprm judge --model`: KIND:TARGET?option=value.")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Try what a model's engine supports: log-probabilities, seeds, prefix sharing, continued replies and more."""
    from json import dumps

    from rich.table import Table
    from rich.text import Text

    from rprm.cli.process import run_async
    from rprm.engines.check import TRIALS, check_spec
    from rprm.terminal import Terminal

    report = run_async(check_spec(spec))
    if json:
        print(dumps(report, ensure_ascii=False))
        return
    table = Table("capability", "", "measured", box=None, pad_edge=False, header_style="bold")
    speed, info = report["tokens_per_second"], report["info"]
    measured = "too fast to measure" if speed is None else f"{speed:.1f} tokens/s"
    table.add_row("generation", Text("yes", style="green"), f"one request alone: {measured}")
    styles = {"yes": "green", "no": "red", "unknown": "yellow"}
    for name in TRIALS:
        answer, detail = report[name].values()
        table.add_row(name.replace("_", " "), Text(answer, style=styles[answer]), detail)
    context = "unknown" if info["context_length"] is None else f"{info['context_length']} tokens"
    header = f"{info['model']} ({info['kind']}), revision {info['revision'] or 'unknown'}, context {context}"
    Terminal().print(header, table, sep="\n")
