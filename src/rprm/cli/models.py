"""`rprm models`: the released models that are known, what each needs, and the commands that use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rprm.models import KnownModel


def models(
    name: Annotated[str | None, typer.Argument(help="Alias or hub id of one: what it needs, and commands.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or of one model an object.")] = False,
) -> None:
    """Released models that are known by name: judged with the prompt, the layout and the threshold of their authors.

    An alias stands wherever a model's spec does: --model r-prm-7b.
    """
    from json import dumps

    from rich.table import Table

    from rprm.errors import RprmError
    from rprm.models import MODELS, find_model
    from rprm.terminal import Terminal

    known = None if name is None else find_model(name)
    if name is not None and known is None:
        aliases = ", ".join(model.alias for model in MODELS)
        raise RprmError(f"{name!r} is not a known model; known are {aliases}; others by their spec (KIND:PATH_OR_ID)")
    if json:
        print(dumps([described(model) for model in MODELS] if known is None else described(known), ensure_ascii=False))
        return
    console = Terminal()
    if known is None:
        table = Table("alias", "hub id", "kind", "context", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.columns[-1].justify = "right"
        for model in MODELS:
            context = f"{model.context_length:,}" if model.context_length else ""
            table.add_row(model.alias, model.hub_id, model.kind, context)
        console.print(table)
        console.print("\nrprm models NAME tells what one needs; --model NAME uses it.", style="dim")
        return
    facts = described(known)
    commands = facts.pop("commands")
    for group in ("prompt", "sources"):
        facts |= {f"{group}: {name}": value for name, value in (facts.pop(group) or {}).items()}
    if facts.get("prompt: at_hand") is False:
        facts["prompt: at_hand"] = "no: read from the hub at the first use"
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact is not None:
            table.add_row(name.replace("_gb", " (GB, bfloat16)").replace("_", " "), str(fact))
    console.print(table, "")
    for command in commands:
        # On one line whatever the width, so that it can be copied.
        console.print(command, soft_wrap=True)


def described(known: KnownModel) -> dict[str, Any]:
    """All that is known of a model; memory is an estimate: the weights and a fifth more."""
    prompt = known.prompt
    return {
        **{name: getattr(known, name) for name in ("alias", "hub_id", "kind", "spec")},
        "parameters_billions": known.parameters,
        "weights_gb": round(2 * known.parameters, 1),
        "estimated_memory_gb": round(2.4 * known.parameters, 1),
        **{name: getattr(known, name) for name in ("context_length", "threshold", "layout")},
        "prompt": prompt
        and {name: getattr(prompt, name) for name in ("source", "system", "ending", "marker")}
        | {"file": str(prompt.cached), "at_hand": prompt.cached.is_file()},
        "sources": dict(known.sources),
        "commands": _commands(known),
    }


def _commands(known: KnownModel) -> list[str]:
    """The commands that judge with a model and measure it, on this machine."""
    lines = [f"rprm judge solutions.jsonl --model {known.alias}"]
    for benchmark in ("processbench", "prmbench"):
        options = known.options.get(benchmark)
        model = f'"{known.alias}?{options}"' if options else known.alias
        lines.append(f"rprm bench {benchmark} --model {model} --output runs/{benchmark}-{known.alias}")
    if known.kind == "r-prm" and known.context_length is not None:
        # Twice its context, as its authors serve it; vLLM wants to be told that this is meant.
        setting = "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 " if known.spec.startswith("vllm:") else ""
        model = f'"{known.alias}?context_length={2 * known.context_length}"'
        lines.append(f"{setting}rprm judge solutions.jsonl --model {model}")
    return lines
