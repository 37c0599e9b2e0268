"""Templates by name, by file, and beside a model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qsl

from rprm.errors import PromptError
from rprm.prompts.template import PromptTemplate

#: The template used where none is named.
DEFAULT_TEMPLATE = "critique"

#: The file in which a model folder carries the template that its model was trained with.
MODEL_TEMPLATE = "rprm_prompt.toml"

_TEMPLATES = files("rprm.prompts") / "templates"


def builtin_names() -> tuple[str, ...]:
    """Names of the templates that ship with the package, in alphabetical order."""
    names = (entry.name for entry in _TEMPLATES.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_template(source: str | Path | None = None) -> PromptTemplate:
    """Find a template.

    Args:
        source: the name of a built-in template; a file (`.toml`, or `.txt` that is the user message alone, the rest
            left at its defaults); a model folder that carries `rprm_prompt.toml`; None for the default, `critique`.
            A built-in name wins over a file of that name; `./critique` means the file.

    Raises:
        PromptError: there is no such template, or it cannot be used.
    """
    if source is None:
        source = DEFAULT_TEMPLATE
    if isinstance(source, str) and source in builtin_names():
        return PromptTemplate.from_toml((_TEMPLATES / f"{source}.toml").read_text(encoding="utf-8"), source)
    try:
        return _read(Path(source), str(source))
    except OSError as error:
        raise PromptError(f"prompt {str(source)!r:.200}: cannot be read: {error.strerror}; {_choices()}") from None


def carried_template(model: str) -> Path | None:
    """The template that a model carries: `rprm_prompt.toml` in the folder that its spec names, or beside its adapter.

    Args:
        model: `KIND:TARGET?option=value`. A hub id carries none here: its files are not at hand before it is loaded.
    """
    body, _, query = model.partition("?")
    places = [dict(parse_qsl(query)).get("adapter"), body.partition(":")[2]]
    files = [Path(place) / MODEL_TEMPLATE for place in places if place]
    return next((file for file in files if file.is_file()), None)


def _read(path: Path, source: str) -> PromptTemplate:
    if path.is_dir():
        path = path / MODEL_TEMPLATE
        if not path.is_file():
            raise PromptError(f"prompt {source!r}: the folder has no {MODEL_TEMPLATE}; {_choices()}")
    if not path.is_file():
        raise PromptError(f"prompt {source!r:.200}: no such template; {_choices()}")
    if path.suffix not in (".toml", ".txt"):
        raise PromptError(f"prompt {source!r}: a template file ends in .toml or .txt; {_choices()}")
    try:
        # Line ends of other systems become \n here: in a file they are the editor's, and TOML escapes those it means.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 text: byte {error.start} cannot be decoded") from None
    if path.suffix == ".txt":
        return PromptTemplate(name=path.stem, user=text.removesuffix("\n"))
    return PromptTemplate.from_toml(text, str(path))


def _choices() -> str:
    return f"give a file (.toml, .txt), a model folder, or one of {', '.join(builtin_names())}"
