"""What a model reads (`Prompt`) and how it is laid out (`PromptTemplate` for judges, `PolicyTemplate` for policies)."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from itertools import cycle, zip_longest
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rprm.critique import FormatName
from rprm.errors import PromptError
from rprm.reading import explained
from rprm.showing import escaped
from rprm.thinking import without_thinking
from rprm.verdict import VerdictFormat


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `records`: of a text that is continued as it stands, the parts [start, end) that come from a record
    (problem, steps), in order. Special tokens spelled there are none; elsewhere the template means them."""

    role: str
    content: str
    records: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads: chat messages, or, with `chat=False`, one text that is continued as it stands; then the
    beginning of the reply, which the model continues."""

    messages: tuple[Message, ...]
    chat: bool = True
    reply: str = ""

    @property
    def text(self) -> str:
        """All of a text that is continued as it stands; of chat messages a key for equality, never what is sent."""
        contents = "\n\n".join(message.content for message in self.messages)
        return f"{contents}\n\n{self.reply}" if self.chat and self.reply else contents + self.reply


class Filled(NamedTuple):
    """A text in which placeholders are filled, and the parts [start, end) of it that come from a record."""

    text: str
    records: tuple[tuple[int, int], ...] = ()

    @classmethod
    def record(cls, text: str) -> Filled:
        return cls(text, ((0, len(text)),) if text else ())

    def join(self, parts: Iterable[Filled]) -> Filled:
        """The parts one after the other, this between them."""
        texts: list[str] = []
        records: list[tuple[int, int]] = []
        offset = 0
        for part in parts:
            for text, spans in (self, part) if texts else (part,):
                texts.append(text)
                records += [(start + offset, end + offset) for start, end in spans]
                offset += len(text)
        return Filled("".join(texts), tuple(records))


#: A placeholder of a template's text; group 1 is its name.
PLACEHOLDER = re.compile(r"\{\{[ \t]*([A-Za-z_]\w*)[ \t]*\}\}")
_pieces = lru_cache(maxsize=64)(PLACEHOLDER.split)
#: Stands for two braces where a fixed text would otherwise read as a placeholder.
_BRACES = "open_braces"


@dataclass(frozen=True)
class Template:
    """What the templates of every kind have: their texts, the checks of them, their file.

    Raises:
        PromptError: an unknown or missing placeholder, a text that cannot be used or is no Unicode.
    """

    KIND: ClassVar[str]  # in messages
    NAMES: ClassVar[tuple[str, ...]]  # placeholders of `user`, besides `{{open_braces}}`
    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str  # no part of its content
    user: str
    system: str = ""  # the system message, verbatim
    chat: bool = True  # False: `user` is the whole text with the model's own special tokens, continued as it stands

    def __post_init__(self) -> None:
        for key, value in self._content().items():
            if half := re.search("[\ud800-\udfff]", str(value)):
                raise self._error(f"{key} has half a surrogate pair at character {half.start()}")
        if "problem" not in self._check_names("user", self.user, self.NAMES):
            raise self._error("user has no {{problem}}")
        for match in PLACEHOLDER.finditer(self.system):
            if match[1] in (*self.NAMES, _BRACES):
                raise self._error(f"system is sent verbatim; move {match[0]} to user")
        if self.system and not self.chat:
            raise self._error("with chat = false the whole text stands in user; system must be empty")

    def _error(self, message: str) -> PromptError:
        return PromptError(f"{self.KIND} {self.name!r}: {message}")

    def _check_names(self, key: str, text: str, names: tuple[str, ...]) -> set[str]:
        used = {match[1] for match in PLACEHOLDER.finditer(text)}
        known = ", ".join("{{" + name + "}}" for name in (*names, _BRACES))
        for wrong in sorted("{{" + name + "}}" for name in used - {*names, _BRACES}):
            hint = f"placeholders are {known} (for a literal one write {literal(wrong)})"
            raise self._error(f"{key} has the unknown placeholder {wrong}; {hint}")
        return used

    def _content(self) -> dict[str, str | bool]:
        """Every value but the name, those of the verdict under `verdict.key`."""
        values = asdict(self)
        del values["name"]
        verdict = values.pop("verdict", {})
        return values | {f"verdict.{key}": text for key, text in verdict.items()}

    @cached_property
    def digest(self) -> str:
        """A short hash of everything that reaches the model or reads its reply; the name is left out."""
        content = json.dumps(self._content(), sort_keys=True, ensure_ascii=False)
        return f"sha256:{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def _prompt(self, values: Mapping[str, Filled], reply: str = "") -> Prompt:
        content, records = _fill(_pieces(self.user), values)
        user = Message("user", content, () if self.chat else records)
        return Prompt((Message("system", self.system), user) if self.system else (user,), self.chat, reply)

    def to_toml(self) -> str:
        """The template as a file's content; `from_toml` gives an equal template back, whatever its texts hold."""
        values = {name: value for name, value in asdict(self).items() if name in ("name", "verdict", *self._content())}
        verdict = values.pop("verdict", {})
        blocks = {key: values.pop(key) for key in ("system", "user")}  # Texts of many lines stand last.
        lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines += [f"{key} = {_toml(text, is_block=True)}" for key, text in blocks.items()]
        lines += ["", "[verdict]"] if verdict else []
        return "\n".join(lines + [f"{key} = {_toml(text)}" for key, text in verdict.items()]) + "\n"

    @classmethod
    def from_toml(cls, text: str, source: str) -> Self:
        """Read what `to_toml` writes; every key but `user` may be left out. The stem of the file `source` names the
        template where its text does not. `PromptError` where it is no such file, or the template cannot be used."""
        try:
            # As JSON, so that types are taken strictly, but a table makes a dataclass. A date is no text.
            values = json.dumps({"name": Path(source).stem, **tomllib.loads(text)}, default=lambda date: [str(date)])
            return TypeAdapter(cls).validate_json(values, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            is_table = first["loc"][:1] == ("verdict",) and "verdict" in cls.__dataclass_fields__
            keys = ", ".join(one.name for one in fields(VerdictFormat if is_table else cls))
            told = {"missing": "'user' is missing: it is the user message with its placeholders"}
            told["json_invalid"] = f"not a {cls.KIND}: {first['msg']}"
            wrong = f"{told.get(first['type']) or explained(error)}; keys are {keys}"
        except PromptError as error:
            wrong = str(error)
        except (ValueError, RecursionError) as error:  # also of a number of thousands of digits, arrays within arrays
            wrong = f"not a {cls.KIND} in TOML: {error}"
        raise PromptError(f"{source}: {wrong}")


@dataclass(frozen=True)
class PolicyTemplate(Template):
    """The layout of a prompt that asks for a solution: everything but the problem (`{{problem}}` in `user`). A solution
    that is begun ends in `step_separator`, so that the next step follows. `stop` ends a solution wherever it begins;
    empty for none. Base models, which know no end, need one."""

    KIND = "policy template"
    NAMES = ("problem",)

    step_separator: str = "\n\n"
    stop: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.step_separator:
            raise self._error("step_separator is empty; give the text that ends a step")

    def render(self, problem: str, steps: Sequence[str] = ()) -> Prompt:
        """The prompt after which the model writes the step that follows `steps`, or the whole solution."""
        return self._prompt({"problem": Filled.record(problem)}, "".join(step + self.step_separator for step in steps))


@dataclass(frozen=True)
class PromptTemplate(Template):
    """The layout of a critique prompt: everything but the problem and the steps.

    Placeholders of `user`: `{{problem}}`; either `{{steps}}` (every step up to and including the judged one, in
    `step_format`) or both `{{previous_steps}}` (those before it, likewise; `no_previous_steps` where it is the first)
    and `{{step}}` (the judged step's bare text); `{{step_number}}` (1-based); for a judge that looks ahead
    `{{next_steps}}` (those after it, likewise; `no_next_steps` where it is the last that is known). `{{open_braces}}`
    stands for two literal opening braces. `stop` ends a reply wherever it begins; empty for none.

    The reply begins with `reply` (with `{{step_number}}`; with `chat = false` the text ends with it). A verdict that an
    analysis lacks is asked for with `ask`, as it stands; where that is empty, with a blank line and the marker. With
    `next_user`, the user message of every step but the first, the prompt is a conversation: each earlier step and, as
    `earlier` lays it out, its `{{analysis}}` are turns; with `chat = false` nothing stands between them.
    """

    KIND = "prompt template"
    NAMES = ("problem", "steps", "previous_steps", "step", "step_number", "next_steps")

    step_format: str = "Step {{number}}: {{step}}"
    step_separator: str = "\n\n"
    no_previous_steps: str = "None: this is the first step."
    no_next_steps: str = "None: this is the last step."
    stop: str = ""
    reply: str = ""
    ask: str = ""
    next_user: str = ""
    earlier: str = "{{analysis}}"
    verdict: VerdictFormat = field(default_factory=VerdictFormat)

    def __post_init__(self) -> None:
        super().__post_init__()
        used = self._check_names("user", self.user, self.NAMES)
        if "steps" not in used and not ({"step"} if self.next_user else {"previous_steps", "step"}) <= used:
            raise self._error("user needs {{steps}}, or both {{previous_steps}} and {{step}}")
        if self.next_user and not {"steps", "step"} & self._check_names("next_user", self.next_user, self.NAMES):
            raise self._error("next_user has no {{step}}")
        if "analysis" not in self._check_names("earlier", self.earlier, ("analysis",)):
            raise self._error("earlier has no {{analysis}}")
        self._check_names("reply", self.reply, ("step_number",))
        if "step" not in self._check_names("step_format", self.step_format, ("number", "step")):
            raise self._error("step_format has no {{step}}")
        if not self.verdict.marker.strip():
            raise self._error("verdict.marker is empty; give the text that stands before the answer")
        answers = {answer.strip().casefold() for answer in (self.verdict.yes, self.verdict.no)}
        if len(answers) < 2 or "" in answers:
            raise self._error("verdict.yes and verdict.no must be two different words")

    @property
    def looks_ahead(self) -> bool:
        return "next_steps" in _pieces(self.user)[1::2]

    def _content(self) -> dict[str, str | bool]:
        unused = {"reply": "", "ask": "", "next_user": "", "earlier": "{{analysis}}"}
        unused |= {} if self.looks_ahead else {"no_next_steps": self.no_next_steps}
        return {key: text for key, text in super()._content().items() if unused.get(key) != text}

    def render(self, problem: str, steps: Sequence[str], step_index: int, analyses: Sequence[str] = ()) -> Prompt:
        """The prompt that judges `steps[step_index]` (0-based, else `PromptError`); later steps have no influence on
        it, unless it looks ahead. The marker of a verdict does not stand in what comes from the record
        (`VerdictFormat.disarmed`). A conversation needs the `analyses` of all earlier steps."""
        if not 0 <= step_index < len(steps):
            raise self._error(f"step_index {step_index} is out of range: the solution has {len(steps)} steps")
        if self.next_user and len(analyses) != step_index:
            raise self._error("each earlier analysis is a turn of its prompt: it judges, and makes no rows to train on")
        asked = [
            _fill(_pieces((self.next_user if at else "") or self.user), self._values(problem, steps, at))
            for at in range(0 if self.next_user else step_index, step_index + 1)
        ]
        said = [_fill(_pieces(self.earlier), {"analysis": Filled.record(text)}) for text in analyses[: len(asked) - 1]]
        turns = [turn for pair in zip_longest(asked, said) for turn in pair if turn is not None]
        if not self.chat:
            whole = Filled("").join([*turns, Filled(self.reply_to(step_index))])
            return Prompt((Message("user", whole.text, whole.records),), chat=False)
        messages = [Message("system", self.system)] * bool(self.system)
        messages += [Message(role, turn.text) for role, turn in zip(cycle(("user", "assistant")), turns, strict=False)]
        return Prompt(tuple(messages), reply=self.reply_to(step_index))

    def reply_to(self, step_index: int) -> str:
        """What the reply that judges a step begins with."""
        return _fill(_pieces(self.reply), {"step_number": Filled(str(step_index + 1))}).text

    def _values(self, problem: str, steps: Sequence[str], step_index: int) -> dict[str, Filled]:
        """What the placeholders of a user message stand for."""
        problem, step = map(self.verdict.disarmed, (problem, steps[step_index]))
        known = steps if self.looks_ahead else steps[: step_index + 1]
        listed = [_listed(self, number, one) for number, one in enumerate(known, 1)]
        separator, later = Filled(self.step_separator), listed[step_index + 1 :]
        previous = separator.join(listed[:step_index]) if step_index else Filled(self.no_previous_steps)
        values = {"problem": Filled.record(problem), "steps": separator.join(listed[: step_index + 1])}
        values |= {"step": Filled.record(step), "step_number": Filled(str(step_index + 1))}
        values |= {"previous_steps": previous}
        return values | {"next_steps": separator.join(later) if later else Filled(self.no_next_steps)}

    def take_apart(self, text: str) -> tuple[str, list[str]] | None:
        """What `render` was given to make a user message: problem, steps up to the judged one; None where it makes no
        such text, looks ahead or makes a conversation. Of several ways the one with the shortest problem and earlier
        steps is taken."""
        if self.looks_ahead or self.next_user:
            return None
        first, *pieces = _pieces(self.step_format)
        joint = [pieces[-1] + self.step_separator + first, *pieces[: pieces.index("step")]]

        def label(number: int) -> str:
            named = {"number": str(number), _BRACES: "{{"}
            return "".join(named.get(piece, piece) for piece in joint)

        highest, end = 1, 0
        while highest < len(text) and (end := text.find(label(highest + 1), end + 1)) >= 0:
            highest += 1
        for number in range(highest + 1, 0, -1):
            if match := _pattern(self, number).fullmatch(text):
                return match["problem"], [match[f"step{index}"] for index in range(1, number + 1)]
        return None

    def difference(self, text: str) -> str:
        """Where a user message that cannot be taken apart leaves the template."""
        pieces = _pieces(self.user)[::2]
        for way, piece, place in ((1, pieces[0], "at character {}"), (-1, pieces[-1], "{} characters before its end")):
            given, fixed = text[::way], piece[::way]
            if not given.startswith(fixed):
                at = len(shared_start(given, fixed))
                found, wanted = (whole[at : at + 40][::way] for whole in (given, fixed))
                return f"{place.format(at)} stands {found!r} instead of {wanted!r}"
        missing = next((piece for piece in pieces if piece not in text), None)
        return f"it has no {missing!r:.80}" if missing else "its steps do not follow each other as in the template"


@dataclass(frozen=True)
class CriticTemplate(Template):
    """The layout of a prompt that asks for a critique of a whole solution: `{{problem}}`, `{{steps}}` (each in
    `step_format`) and `{{num_steps}}` in `user`. The reply begins with `reply`. `format` says how a critique names the
    earliest wrong step (`rprm.critique.FORMATS`). `stop` ends a reply wherever it begins; empty for none."""

    KIND = "critic template"
    NAMES = ("problem", "steps", "num_steps")

    step_format: str = "<paragraph_{{index}}>\n{{step}}\n</paragraph_{{index}}>"
    step_separator: str = "\n\n"
    reply: str = ""
    stop: str = ""
    format: FormatName = "boxed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "steps" not in self._check_names("user", self.user, self.NAMES):
            raise self._error("user has no {{steps}}")
        if "step" not in self._check_names("step_format", self.step_format, ("index", "number", "step")):
            raise self._error("step_format has no {{step}}")

    def render(self, problem: str, steps: Sequence[str]) -> Prompt:
        """The prompt that asks for a critique of all the steps; `{{index}}` counts from 0, `{{number}}` from 1."""
        listed = [
            {"index": Filled(str(index)), "number": Filled(str(index + 1)), "step": Filled.record(step)}
            for index, step in enumerate(steps)
        ]
        filled = Filled(self.step_separator).join(_fill(_pieces(self.step_format), values) for values in listed)
        values = {"problem": Filled.record(problem), "steps": filled, "num_steps": Filled(str(len(steps)))}
        return self._prompt(values, self.reply)


@dataclass(frozen=True)
class InjectionTemplate(Template):
    """The layout of a prompt that asks for a right step made wrong: `{{problem}}`, `{{previous_steps}}` (each in
    `step_format`; `no_previous_steps` where it is the first), `{{step}}`, `{{step_number}}` (1-based), and the
    `{{error}}` to make, in words. The new step stands between `opening` and `closing` in the reply."""

    KIND = "injection template"
    NAMES = ("problem", "previous_steps", "step", "step_number", "error")

    step_format: str = "Step {{number}}: {{step}}"
    step_separator: str = "\n\n"
    no_previous_steps: str = "None: this is the first step."
    opening: str = "<step>"
    closing: str = "</step>"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in sorted({"previous_steps", "step", "error"} - self._check_names("user", self.user, self.NAMES)):
            raise self._error(f"user has no {{{{{name}}}}}")
        if "step" not in self._check_names("step_format", self.step_format, ("number", "step")):
            raise self._error("step_format has no {{step}}")
        if not self.opening or not self.closing:
            raise self._error("opening and closing are the texts between which the new step stands: give both")

    def render(self, problem: str, steps: Sequence[str], step_index: int, error: str) -> Prompt:
        """The prompt that asks for `steps[step_index]` with an error."""
        listed = [
            _fill(_pieces(self.step_format), {"number": Filled(str(number)), "step": Filled.record(step)})
            for number, step in enumerate(steps[:step_index], 1)
        ]
        previous = Filled(self.step_separator).join(listed) if listed else Filled(self.no_previous_steps)
        values = {"problem": Filled.record(problem), "previous_steps": previous, "error": Filled(error)}
        values |= {"step": Filled.record(steps[step_index]), "step_number": Filled(str(step_index + 1))}
        return self._prompt(values)

    def find(self, reply: str) -> str | None:
        """The new step in a reply, the last where there are several; None where there is none."""
        answer = without_thinking(reply)
        end = answer.rfind(self.closing)
        begin = answer.rfind(self.opening, 0, max(end, 0))
        return answer[begin + len(self.opening) : end].strip() or None if begin >= 0 else None


@lru_cache(maxsize=512)
def _pattern(template: PromptTemplate, number: int) -> re.Pattern[str]:
    """The user messages that judge step `number`: groups `problem`, `step1`, `step2`, ..."""
    step_pieces = _pieces(template.step_format)
    at = step_pieces.index("step")
    listed, rest = step_pieces[:at], step_pieces[at + 1 :]
    groups: set[str] = set()

    def filled(pieces: Sequence[str], index: int) -> str:
        return "".join(named(piece, index) if place % 2 else re.escape(piece) for place, piece in enumerate(pieces))

    def steps(count: int) -> str:
        found = filled(listed, 1)
        for index in range(1, count + 1):
            step = named("step", index) + filled(rest, index)
            if index < count:
                # A step ends at the first label of the next one: no way back into it.
                step = f"(?>{step}{re.escape(template.step_separator)}{filled(listed, index + 1)})"
            found += step
        return found

    def named(name: str, index: int) -> str:
        if name in ("steps", "previous_steps"):
            count = index - (name == "previous_steps")
            return steps(count) if count else re.escape(template.no_previous_steps)
        if name in ("step_number", "number", _BRACES):
            return re.escape("{{") if name == _BRACES else str(index)
        group = "problem" if name == "problem" else f"step{index}"
        if group in groups:
            return f"(?P={group})"
        groups.add(group)
        return f"(?P<{group}>.*?)"

    return re.compile(filled(_pieces(template.user), number), re.DOTALL)


def shared_start(*texts: str) -> str:
    """The longest text that all begin with."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((at for at, (one, other) in pairs if one != other), len(first))]


def literal(text: str) -> str:
    """The text as a template says it: whatever would read as a placeholder is escaped."""
    return PLACEHOLDER.sub(lambda match: "{{" + _BRACES + "}}" + match[0][2:], text)


@lru_cache(maxsize=1 << 14)
def _listed(template: PromptTemplate, number: int, step: str) -> Filled:
    """A step as prompts list it: kept, since the prompt of every later step has it too."""
    values = {"number": Filled(str(number)), "step": Filled.record(template.verdict.disarmed(step))}
    return _fill(_pieces(template.step_format), values)


def _fill(pieces: list[str], values: Mapping[str, Filled]) -> Filled:
    """Fixed texts at even places, names at odd ones. One pass: a value is never read again for placeholders."""
    filled = [Filled(piece) for piece in pieces]
    filled[1::2] = (Filled("{{") if name == _BRACES else values[name] for name in pieces[1::2])
    return Filled("").join(filled)


def _toml(value: str | bool, *, is_block: bool = False) -> str:
    """As it stands between single quotes where escapes would clutter it, a block on lines of its own."""
    if isinstance(value, bool):
        return str(value).lower()
    if escaped(value) == value:
        if is_block and "\n" in value and "'''" not in value and not value.endswith("'"):
            return f"'''\n{value}'''"
        if re.search(r'[\\"]', value) and not re.search(r"['\n]", value):
            return f"'{value}'"
    # A string of JSON is one of TOML, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
