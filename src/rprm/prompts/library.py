"""Templates by name, by file, and beside a model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import parse_qsl

from rprm.embedded import JUDGE
from rprm.errors import PromptError
from rprm.prompts.policy import PolicyTemplate
from rprm.prompts.template import PromptTemplate

AnyTemplate = TypeVar("AnyTemplate", PromptTemplate, PolicyTemplate)

#: The template used where none is named.
DEFAULT_TEMPLATE = "critique"
#: And for a policy.
DEFAULT_POLICY_TEMPLATE = "boxed"

#: The file in which a model folder carries the template that its model was trained with.
MODEL_TEMPLATE = "rprm_prompt.toml"
#: And, of a policy, the one that it solves problems with.
MODEL_POLICY_TEMPLATE = "rprm_policy.toml"


@dataclass(frozen=True)
class TemplateShelf(Generic[AnyTemplate]):
    """Where the templates of one kind are found.

    Attributes:
        kind: the templates' class.
        noun: how messages call one.
        folder: of the built-in ones, in this package.
        default: name of the one used where none is named.
        carried_as: the file in a model folder.
    """

    kind: type[AnyTemplate]
    noun: str
    folder: str
    default: str
    carried_as: str

    @cache  # noqa: B019 - the two shelves live as long as the module
    def names(self) -> tuple[str, ...]:
        """Names of the templates that ship with the package, in alphabetical order."""
        names = (entry.name for entry in (files("rprm.prompts") / self.folder).iterdir())
        return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))

    def load(self, source: str | Path | None = None) -> AnyTemplate:
        """Find a template.

        Args:
            source: the name of a built-in one; a file (`.toml`, or `.txt` that is the user message alone, the rest left
                at its defaults); a model folder that carries one; None for the default. A built-in name wins over a
                file of that name; `./critique` means the file.

        Raises:
            PromptError: there is no such template, or it cannot be used.
        """
        if source is None:
            source = self.default
        if isinstance(source, str) and source in self.names():
            text = (files("rprm.prompts") / self.folder / f"{source}.toml").read_text(encoding="utf-8")
            return self.kind.from_toml(text, source)
        try:
            return self._read(Path(source), str(source))
        except OSError as error:
            raise PromptError(
                f"{self.noun} {str(source)!r:.200}: cannot be read: {error.strerror}; {self._choices()}"
            ) from None

    def carried(self, model: str) -> Path | None:
        """The template that a model carries in the folder that its spec names, or beside its adapter; the embedded
        model carries its own.

        Args:
            model: `KIND:TARGET?option=value`. A hub id carries none: its files are not at hand before it is loaded.
        """
        body, _, query = model.partition("?")
        places = [dict(parse_qsl(query)).get("adapter"), JUDGE if body == "embedded" else body.partition(":")[2]]
        found = [Path(place) / self.carried_as for place in places if place]
        return next((file for file in found if file.is_file()), None)

    def _read(self, path: Path, source: str) -> AnyTemplate:
        if path.is_dir():
            path = path / self.carried_as
            if not path.is_file():
                raise PromptError(f"{self.noun} {source!r}: the folder has no {self.carried_as}; {self._choices()}")
        if not path.is_file():
            raise PromptError(f"{self.noun} {source!r:.200}: no such template; {self._choices()}")
        if path.suffix not in (".toml", ".txt"):
            raise PromptError(f"{self.noun} {source!r}: a template file ends in .toml or .txt; {self._choices()}")
        try:
            # Line ends of other systems become \n here: in a file they are the editor's, and TOML escapes those it
            # means.
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise PromptError(f"{path}: not UTF-8 text: byte {error.start} cannot be decoded") from None
        if path.suffix == ".txt":
            return self.kind(name=path.stem, user=text.removesuffix("\n"))
        return self.kind.from_toml(text, str(path))

    def _choices(self) -> str:
        return f"give a file (.toml, .txt), a model folder, or one of {', '.join(self.names())}"


_PROMPTS = TemplateShelf(PromptTemplate, "prompt", "templates", DEFAULT_TEMPLATE, MODEL_TEMPLATE)
_POLICIES = TemplateShelf(PolicyTemplate, "policy prompt", "policies", DEFAULT_POLICY_TEMPLATE, MODEL_POLICY_TEMPLATE)

builtin_names, load_template, carried_template = _PROMPTS.names, _PROMPTS.load, _PROMPTS.carried
policy_names, load_policy_template, carried_policy_template = _POLICIES.names, _POLICIES.load, _POLICIES.carried
