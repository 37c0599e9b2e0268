"""`rprm models`: the released models that are known, what each needs, and the commands that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rprm.models import KnownModel


def models(
    name: Annotated[
        str | None, typer.Argument(help="Alias or hub id of one model: what it needs, and commands.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or of one model an object.")] = False,
) -> None:
    """Released models that are known by name: judged with the prompt, the layout and the threshold of their authors.

    An alias stands wherever a model's spec does: --model r-prm-7b.
    """
    from json import dumps

    from rprm.errors import RprmError
    from rprm.models import MODELS, find_model

    if name is None:
        if json:
            print(dumps([described(known) for known in MODELS], ensure_ascii=False))
        else:
            _print_table()
        return
    known = find_model(name)
    if known is None:
        aliases = ", ".join(model.alias for model in MODELS)
        raise RprmError(
            f"{name!r} is not a known model; known are {aliases}, and any other by its spec (KIND:PATH_OR_ID)"
        )
    if json:
        print(dumps(described(known), ensure_ascii=False))
    else:
        _print_model(known)


def described(known: KnownModel) -> dict[str, Any]:
    """All that is known of a model, with what it means on this machine."""
    prompt = known.prompt
    return {
        "alias": known.alias,
        "hub_id": known.hub_id,
        "kind": known.kind,
        "spec": known.spec,
        "parameters_billions": known.parameters,
        "weights_gb": round(known.weights_gb, 1),
        "estimated_memory_gb": round(known.memory_gb, 1),
        "context_length": known.context_length,
        "threshold": known.threshold,
        "layout": known.layout,
        "prompt": None
        if prompt is None
        else {
            "source": prompt.source,
            "system": prompt.system,
            "ending": prompt.ending,
            "marker": prompt.marker,
            "file": str(prompt.cached),
            "at_hand": prompt.cached.is_file(),
        },
        "sources": dict(known.sources),
        "commands": list(commands(known)),
    }


def commands(known: KnownModel) -> dict[str, str]:
    """The commands that judge with a model and measure it, on this machine, each with what is to be said of it."""
    from importlib.util import find_spec

    needed = {"local": "transformers", "hub": "datasets"}
    lines = {}
    if missing := [extra for extra, module in needed.items() if find_spec(module) is None]:
        lines[f'pip install ".[{",".join(missing)}]"'] = "first, what is not installed here"
    lines[f"rprm judge solutions.jsonl --model {known.alias}"] = ""
    for benchmark in ("processbench", "prmbench"):
        options = known.options.get(benchmark)
        model = f'"{known.alias}?{options}"' if options else known.alias
        command = f"rprm bench {benchmark} --model {model} --output runs/{benchmark}-{known.alias}"
        lines[command] = "its options are those of the published figures" if options else ""
    if known.kind == "r-prm" and known.context_length is not None:
        # vLLM wants to be told that this is meant.
        setting = "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 " if known.spec.startswith("vllm:") else ""
        model = f'"{known.alias}?context_length={2 * known.context_length}"'
        lines[f"{setting}rprm judge solutions.jsonl --model {model}"] = (
            "with twice its context, as its authors serve it, where problems or solutions are long"
        )
    return lines


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table

    from rprm.models import MODELS

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("alias", "hub id", "kind"):
        table.add_column(column, header_style="bold", no_wrap=True)
    table.add_column("context", header_style="bold", justify="right", no_wrap=True)
    for known in MODELS:
        context = "" if known.context_length is None else f"{known.context_length:,}"
        table.add_row(known.alias, known.hub_id, known.kind, context)
    console = Console(highlight=False)
    console.print(table)
    console.print("\nrprm models NAME tells what one needs; --model NAME uses it.", style="dim", markup=False)


def _print_model(known: KnownModel) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    does = "writes analyses that end in Yes or No" if known.kind == "r-prm" else "scores each step, and writes nothing"
    context = "see its configuration" if known.context_length is None else f"{known.context_length:,} tokens"
    facts = [
        ("weights", f"about {known.weights_gb:.0f} GB in bfloat16"),
        ("GPU memory", f"about {known.memory_gb:.0f} GB in bfloat16 (an estimate: the weights and a fifth more)"),
        ("context", f"{context}, prompt and analysis together" if known.kind == "r-prm" else context),
        ("threshold", f"{known.threshold:g}: a step with a lower reward is called wrong"),
        ("runs here as", known.spec),
    ]
    if known.kind == "r-prm":
        facts.append(("", "vLLM where it is installed and there is a GPU, else transformers"))
    if known.layout is not None:
        facts.append(("layout", known.layout))
    if (prompt := known.prompt) is not None:
        where = "is there" if prompt.cached.is_file() else "is not there yet: read from the hub at the first use"
        ending = (
            "the chat template's"
            if prompt.ending is None
            else f"the characters {prompt.ending}, not a line end, on both sides of the assistant tag"
        )
        facts += [
            ("prompt", f"derived from the data set {prompt.source}"),
            ("its file", f"{prompt.cached} ({where})"),
            ("system message", prompt.system),
            ("ending", ending),
        ]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, Text(fact))
    for index, (fact, source) in enumerate(known.sources.items()):
        table.add_row("sources" if index == 0 else "", Text(f"{fact}: {source}"))
    console = Console(highlight=False)
    console.print(Text.assemble((known.hub_id, "bold"), f" ({known.alias}): {does}"))
    console.print(Padding(table, (1, 0)))
    for command, remark in commands(known).items():
        # On one line whatever the width, so that it can be copied.
        if remark:
            console.print(Text(f"# {remark}", style="dim"), soft_wrap=True)
        console.print(Text(command), soft_wrap=True)
