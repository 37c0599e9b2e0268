"""`rprm prompts`: look at prompt templates, and import the one of a released model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at prompt templates, and import the one of a released model.")

#: What `show --example` fills in.
EXAMPLE_PROBLEM = "A train covers 150 km in 2 hours. At the same speed, how far does it go in 5 hours?"
EXAMPLE_STEPS = (
    "The speed of the train is 150 / 2 = 75 km per hour.",
    "In 5 hours it goes 75 * 5 = 365 km.",
)


@app.command("list")
def list_templates() -> None:
    """Names of the built-in templates: of judges, then of policies."""
    from rprm.prompts import builtin_names, load_policy_template, load_template, policy_names
    from rprm.prompts.library import DEFAULT_POLICY_TEMPLATE, DEFAULT_TEMPLATE

    rows = [(name, load_template(name).digest, "") for name in builtin_names()]
    rows += [(name, load_policy_template(name).digest, "policy") for name in policy_names()]
    for name, digest, kind in rows:
        notes = [kind, "default"] if name in (DEFAULT_TEMPLATE, DEFAULT_POLICY_TEMPLATE) else [kind]
        note = ", ".join(filter(None, notes))
        typer.echo(f"{name:16}{digest}" + (f"  ({note})" if note else ""))


@app.command()
def show(
    template: Annotated[
        str | None,
        typer.Argument(
            help="Built-in name, file (.toml, .txt) or model folder.", show_default="critique; with --policy, boxed"
        ),
    ] = None,
    policy: Annotated[bool, typer.Option("--policy", help="A template of a policy, which writes solutions.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Render the prompt for a small example solution.")] = False,
) -> None:
    """Print a template as a file, or the prompt that it makes."""
    from rprm.prompts import PolicyTemplate, load_policy_template, load_template

    loaded = load_policy_template(template) if policy else load_template(template)
    if not example:
        typer.echo(loaded.to_toml(), nl=False)
        return
    if isinstance(loaded, PolicyTemplate):
        prompt = loaded.render(EXAMPLE_PROBLEM, EXAMPLE_STEPS[:1])
    else:
        prompt = loaded.render(EXAMPLE_PROBLEM, EXAMPLE_STEPS, 1)
    parts = [(message.role if prompt.chat else "text", message.content) for message in prompt.messages]
    if prompt.reply:
        parts.append(("reply", prompt.reply))
    for name, content in parts:
        typer.echo(f"--- {name} ---\n{content}")


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="File (.json, .jsonl, .gz) or hub data set (OWNER/NAME).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The template file to write (.toml).")],
    name: Annotated[str | None, typer.Option(help="Name of the template.", show_default="the output's stem")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to read.")] = 2000,
    revision: Annotated[str | None, typer.Option(help="Revision of the hub data set.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the hub data set.")] = None,
    split: Annotated[str, typer.Option(help="Split of the hub data set.")] = "train",
    instruction_column: Annotated[
        str | None, typer.Option(help="Column of the prompts.", show_default="instruction, else prompt")
    ] = None,
    output_column: Annotated[
        str | None,
        typer.Option(help="Column of the analyses.", show_default="output, completion, response, else chosen"),
    ] = None,
    marker: Annotated[
        str | None, typer.Option(help="Text before the verdict.", show_default="read from the outputs")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            help="User messages, or whole texts with the model's special tokens.",
            show_default="by their special tokens",
        ),
    ] = None,
    min_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of rows to render exactly.")] = 0.99,
    accept_doubts: Annotated[
        bool, typer.Option("--accept-doubts", help="Accept problems or steps that share whole lines.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output file.")] = False,
) -> None:
    """Derive a released model's template from its training rows, and verify it by rendering them again."""
    from rprm.errors import PromptError
    from rprm.prompts import import_source

    if output.suffix != ".toml":
        raise PromptError(f"{output}: a template file ends in .toml")
    if output.exists() and not force:
        raise PromptError(f"{output}: exists already; give --force to replace it")
    imported = import_source(
        source,
        name=name or output.stem,
        limit=limit,
        revision=revision,
        config=config,
        split=split,
        marker=marker,
        instruction_column=instruction_column,
        output_column=output_column,
        chat=chat,
        min_share=min_share,
        accept_doubts=accept_doubts,
    )
    proof = (
        f"{imported.num_exact:,} of {imported.num_rows:,} rows ({imported.num_problems:,} problems) rendered exactly"
    )
    text = f"# Derived by `rprm prompts import` from {imported.source!a}: {proof}.\n{imported.template.to_toml()}"
    try:
        output.write_bytes(text.encode())
    except OSError as error:
        raise PromptError(f"{output}: cannot be written: {error.strerror}") from error
    typer.echo(f"{output}: {proof}")
    typer.echo(
        f"verdict after {imported.template.verdict.marker!r}, found in {imported.num_verdicts:,} of "
        f"{imported.num_outputs:,} outputs"
    )
    for difference in imported.differences:
        typer.echo(f"row {difference.line} differs: {difference.reason}")
    for doubt in imported.doubts:
        typer.echo(f"accepted: {doubt}")
