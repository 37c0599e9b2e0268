"""Templates by name, by file, and beside a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from rprm.embedded import JUDGE
from rprm.errors import PromptError
from rprm.folders import own_file
from rprm.prompts.template import CriticTemplate, InjectionTemplate, PolicyTemplate, PromptTemplate

AnyTemplate = TypeVar("AnyTemplate", PromptTemplate, PolicyTemplate, CriticTemplate, InjectionTemplate)

#: The files in which a model folder carries the template that its model was trained with, and the one that a policy
#: solves problems with.
MODEL_TEMPLATE, MODEL_POLICY_TEMPLATE = "rprm_prompt.toml", "rprm_policy.toml"


@dataclass(frozen=True)
class TemplateShelf(Generic[AnyTemplate]):
    """Where the templates of one kind are found: a folder of this package with a default, a file in a model folder."""

    kind: type[AnyTemplate]
    folder: str
    default: str
    carried_as: str

    @cache  # noqa: B019 - the shelves live as long as the module
    def names(self) -> tuple[str, ...]:
        """Names of the templates that ship with the package, in alphabetical order."""
        names = (entry.name for entry in (files("rprm.prompts") / self.folder).iterdir())
        return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))

    def load(self, source: str | Path | None = None) -> AnyTemplate:
        """Find a template: the default, a built-in one by name (which wins over a file of that name; `./critique` means
        the file), a file (`.toml`, or `.txt` that is the user message alone), or a model folder that carries one.

        Raises:
            PromptError: there is no such template, or it cannot be used.
        """
        source = self.default if source is None else source
        if isinstance(source, str) and source in self.names():
            text = (files("rprm.prompts") / self.folder / f"{source}.toml").read_text(encoding="utf-8")
            return self.kind.from_toml(text, source)
        path, wrong = Path(source), "no such template"
        try:
            if path.is_dir():
                path, wrong = path / self.carried_as, f"the folder has no {self.carried_as}"
            if path.is_file():
                wrong = "" if path.suffix in (".toml", ".txt") else "a template file ends in .toml or .txt"
            # Line ends of other systems become \n here: in a file they are the editor's, and TOML escapes those it
            # means.
            text = "" if wrong else path.read_text(encoding="utf-8-sig")
        except OSError as error:
            wrong = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError as error:
            wrong = f"not UTF-8 text: byte {error.start} cannot be decoded"
        if wrong:
            known = f"give a file (.toml, .txt), a model folder, or one of {', '.join(self.names())}"
            hint = self._hint(lambda shelf: source in shelf.names())
            raise PromptError(f"{self.kind.KIND} {str(source)!r:.200}: {wrong}; {known}{hint}")
        if path.suffix == ".txt":
            return self.kind(name=path.stem, user=text.removesuffix("\n"))

        def reads(shelf: TemplateShelf[Any]) -> bool:
            with suppress(PromptError):
                return bool(shelf.kind.from_toml(text, str(path)))
            return False

        try:
            return self.kind.from_toml(text, str(path))
        except PromptError as error:
            raise PromptError(f"{error}{self._hint(reads)}") from None

    def _hint(self, fits: Callable[[TemplateShelf[Any]], bool]) -> str:
        """What else a source is that is no template of this kind."""
        uses = {"critic": "--critic here, or --model critic:SPEC", "policy": "--policy, or --policy-prompt"}
        uses["injection"] = "--injection, or --prompt of `rprm data inject`"
        others = (shelf for shelf in (PROMPTS, POLICIES, CRITICS, INJECTIONS) if shelf is not self and fits(shelf))
        kind = next((shelf.kind.KIND for shelf in others), None)
        use = uses.get(str(kind).split()[0], "of a judge")
        return f"; it is a {kind} ({use})" if kind else ""

    def carried(self, model: str) -> Path | None:
        """The template in the folder that a model's spec names, or beside its adapter. A hub id carries none: its files
        are not at hand before it is loaded."""
        body, _, query = model.partition("?")
        places = [dict(parse_qsl(query)).get("adapter"), JUDGE if body == "embedded" else body.partition(":")[2]]
        found = (own_file(Path(place), self.carried_as) for place in places if place)
        return next((file for file in found if file is not None), None)


PROMPTS = TemplateShelf(PromptTemplate, "templates", "critique", MODEL_TEMPLATE)
POLICIES = TemplateShelf(PolicyTemplate, "policies", "boxed", MODEL_POLICY_TEMPLATE)
CRITICS = TemplateShelf(CriticTemplate, "critics", "critic", "rprm_critic.toml")
INJECTIONS = TemplateShelf(InjectionTemplate, "injections", "inject", "rprm_injection.toml")

builtin_names, load_template, carried_template = PROMPTS.names, PROMPTS.load, PROMPTS.carried
policy_names, load_policy_template, carried_policy_template = POLICIES.names, POLICIES.load, POLICIES.carried
load_critic_template, carried_critic_template = CRITICS.load, CRITICS.carried
load_injection_template = INJECTIONS.load
