"""`rprm prompts`: look at prompt templates, and import the one of a released model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rprm import ranges
from rprm.cli.options import with_options

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at prompt templates; import a model's own.")

#: What `show --example` fills in.
EXAMPLE_PROBLEM = "A train covers 150 km in 2 hours. At the same speed, how far does it go in 5 hours?"
EXAMPLE_ANALYSES = ("150 / 2 is 75: the step is right.",)
EXAMPLE_STEPS = ("The speed of the train is 150 / 2 = 75 km per hour.", "In 5 hours it goes 75 * 5 = 365 km.")


@app.command("list")
def list_templates() -> None:
    """Names of the built-in templates: of judges, of critics, of policies, of who makes steps wrong."""
    from rprm.prompts.library import CRITICS, INJECTIONS, POLICIES, PROMPTS

    for kind, shelf in (("", PROMPTS), ("critic", CRITICS), ("policy", POLICIES), ("injection", INJECTIONS)):
        for name in shelf.names():
            note = ", ".join(filter(None, (kind, "default" * (name == shelf.default))))
            typer.echo(f"{name:16}{shelf.load(name).digest}" + (f"  ({note})" if note else ""))


@app.command()
def show(
    template: Annotated[
        str | None, typer.Argument(help="Name, file or folder.  [default: critique, critic or boxed]")
    ] = None,
    critic: Annotated[
        bool, typer.Option("--critic", help="A template of a critic, who reads a whole solution.")
    ] = False,
    policy: Annotated[bool, typer.Option("--policy", help="A template of a policy, which writes solutions.")] = False,
    injection: Annotated[
        bool, typer.Option("--injection", help="A template of who makes right steps wrong (`rprm data inject`).")
    ] = False,
    example: Annotated[bool, typer.Option("--example", help="Render the prompt for a small example solution.")] = False,
) -> None:
    """Print a template as a file, or the prompt that it makes."""
    from rprm.errors import PromptError
    from rprm.prompts import load_critic_template, load_injection_template, load_policy_template, load_template

    if critic + policy + injection > 1:
        raise PromptError("a template is of one kind: give --critic, --policy or --injection")
    load: Any = load_policy_template if policy else load_critic_template if critic else load_template
    load = load_injection_template if injection else load
    loaded = load(template)
    if not example:
        typer.echo(loaded.to_toml(), nl=False)
        return
    steps: Any = (EXAMPLE_STEPS, 1, EXAMPLE_ANALYSES)
    if policy or critic:
        steps = (EXAMPLE_STEPS[:1],) if policy else (EXAMPLE_STEPS,)
    elif injection:
        steps = (EXAMPLE_STEPS, 0, "State another result of a calculation than the right one.")
    prompt = loaded.render(EXAMPLE_PROBLEM, *steps)
    parts = [(message.role if prompt.chat else "text", message.content) for message in prompt.messages]
    for name, content in [*parts, ("reply", prompt.reply)]:
        if content:
            typer.echo(f"--- {name} ---\n{content}")


@dataclass(frozen=True)
class ImportOptions:
    """How a template is derived (see `rprm.prompts.import_template`), and where it goes."""

    name: Annotated[str | None, "Its name.  [default: the output's stem; with --model, the source]"] = None
    limit: Annotated[ranges.Rows, "Rows to read."] = 2000
    instruction_column: Annotated[str | None, "Column of the prompts.  [default: instruction, else prompt]"] = None
    output_column: Annotated[str | None, "Of the analyses. [default: output, completion, response, else chosen]"] = None
    marker: Annotated[str | None, "Text before the verdict.  [default: read from the outputs]"] = None
    chat: Annotated[bool | None, "--chat/--raw", "User messages, or whole texts.  [default: by special tokens]"] = None
    min_share: Annotated[ranges.Share | None, "Of rows. [default: 0.99; --model 0.95]"] = None
    accept_doubts: Annotated[bool, "--accept-doubts", "Import even if problems or steps share whole lines."] = False
    output: Annotated[Path | None, "--output", "-o", "A .toml file.  [default: with --model, the cache]"] = None
    model: Annotated[str | None, "A known model: import its prompt into the cache, or to --output."] = None
    force: Annotated[bool, "--force", "Replace the output file, or the model's prompt in the cache."] = False


@app.command("import")
@with_options
def import_(
    source: Annotated[str | None, typer.Argument(help="A file, or a hub data set.  [default: that of --model]")] = None,
    *,
    options: ImportOptions,
) -> None:
    """Derive a released model's template from its training rows, and verify it by rendering them again."""
    from rprm.errors import PromptError
    from rprm.models import import_released, resolve
    from rprm.prompts import import_template
    from rprm.showing import one_line

    given: dict[str, Any] = {key: value for key, value in asdict(options).items() if value is not None}
    output, model, force = (given.pop(key, None) for key in ("output", "model", "force"))
    known = None if model is None else resolve(model).known
    prompt = None if known is None else known.prompt
    written: Path | None = output or (None if prompt is None else prompt.cached)
    if model is not None and prompt is None:
        raise PromptError(f"--model {model}: not a known model with a prompt; rprm models lists them")
    if output is not None and output.suffix != ".toml":
        raise PromptError(f"{output}: a template file ends in .toml")
    if written is None or (source is None and known is None):
        raise PromptError("name the rows to import from and the --output to write, or a known model: --model NAME")
    if written.exists() and not force:
        raise PromptError(f"{written}: exists already; give --force to replace it")
    if known is not None:
        imported = import_released(known, source, keep=output is None, **given)
    else:
        imported = import_template(source or "", **({"name": written.stem} | given))
    if output is not None:
        template = imported.template if prompt is None else prompt.around(imported.template)
        try:
            output.write_bytes(replace(imported, template=template).to_toml().encode())
        except OSError as error:
            raise PromptError(f"{output}: cannot be written: {error.strerror}") from error
    typer.echo(one_line(f"{written}: {imported.proof}"))
    found = f"{imported.num_verdicts:,} of {imported.num_outputs:,} outputs"
    typer.echo(f"verdict after {imported.template.verdict.marker!r}, found in {found}")
    for difference in imported.differences:
        typer.echo(one_line(f"row {difference.line} differs: {difference.reason}"))
    for doubt in imported.doubts:
        typer.echo(one_line(f"accepted: {doubt}"))
