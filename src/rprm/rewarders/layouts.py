"""How a solution is laid out for a discriminative PRM, and where its steps are scored, as published with each model.

Ids are put together piece by piece, and the token that a step is scored at is written as an id, never searched for: no
text can add or remove a score position. A special token that a text spells is written in ordinary tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import getfullargspec
from typing import Any, Literal, NamedTuple

from rprm.engines.tokens import TokenWriter, encode_text, render_chat, special_tokens, text_prefix
from rprm.errors import EngineError, RequestRefused

LayoutName = Literal[
    "qwen", "math-shepherd", "skywork", "rlhflow", "trl", "universal", "llemma", "reasoneval", "math-psa"
]
# What reads the score from the last hidden state; see `rprm.rewarders.network`.
HeadKind = Literal["two-way", "one-way", "value", "labels", "validity", "tokens", "top-token", "mean-logit"]
Separator = Literal["space", "line", "blank-line"]
SEPARATORS: dict[Separator, str] = {"space": " ", "line": "\n", "blank-line": "\n\n"}
Decision = Literal["softmax", "top1"]

# The system message of the model cards of Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K.
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_TAG = "<extra_0>"


class Rendered(NamedTuple):
    """A solution as token ids, up to the last at which a step is scored: a causal model reads nothing after it."""

    ids: list[int]
    positions: list[int]  # the index in `ids` at which each step is scored


class Layout:
    """A layout over one tokenizer; its options (None: not given) are the keyword-only parameters of its function below.
    `EngineError`: the tokenizer does not fit the layout, or it has no such option."""

    def __init__(self, name: LayoutName, tokenizer: Any, **options: Any) -> None:
        kind = LAYOUTS[name]
        options = {option: value for option, value in options.items() if value is not None}
        known = getfullargspec(kind.write).kwonlydefaults or {}
        if unknown := [option for option in options if option not in known]:
            raise EngineError(f"the {name} layout has no option {unknown[0]}; leave it out")
        if missing := [need for need in kind.needs if not getattr(tokenizer, need, None)]:
            raise EngineError(f"the tokenizer has no {missing[0].replace('_', ' ')}, which the {name} layout needs")
        self.name, self.kind, self.tokenizer, self._arguments = name, kind, tokenizer, known | options
        #: Those that manifests name.
        self.options = {name: value for name, value in self._arguments.items() if name not in ("tag", "system")}
        self.head: HeadKind = "top-token" if self.options.get("decision") == "top1" else kind.head
        self.guarded = special_tokens(tokenizer)  #: id -> spelling; no text of a record may make them
        self.prefix = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        if kind.begin != "bos":
            has_chat = kind.begin == "chat" and getattr(tokenizer, "chat_template", None)
            self.prefix = [] if has_chat else text_prefix(tokenizer)
        self.token, self.around_contents = lru_cache(self._token), lru_cache(self._around_contents)
        self.sign_ids = [self.token(sign) for sign in kind.signs]
        self.render("a", ["b", "c"])  # finds out what does not fit

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        """Lay out at least one step. `RequestRefused`: a text holds a token that cannot be spelled, a step has none."""
        writer = StepWriter(self)
        self.kind.write(writer, problem, steps, **self._arguments)
        return Rendered(writer.ids[: writer.positions[-1] + 1], writer.positions)

    def _token(self, text: str) -> int:
        """The one token that a text is, a bare space token before it not counted."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if text.strip():
            ids = [id_ for id_ in ids if self.tokenizer.decode([id_]).strip()]
        if len(ids) != 1:
            raise EngineError(f"{text!r} is {len(ids)} tokens in this tokenizer, not one: is it the model's layout?")
        return ids[0]

    def _around_contents(self, *roles: str) -> list[str]:
        """What the chat template writes before, between and after messages: one text more than messages."""
        messages = [{"role": role, "content": f"RPRMCONTENT{number}X"} for number, role in enumerate(roles)]
        text = render_chat(self.tokenizer, messages, add_generation_prompt=False)
        parts = re.split(r"RPRMCONTENT(\d+)X", text)
        if parts[1::2] != [str(number) for number in range(len(roles))]:
            raise EngineError("the tokenizer's chat template does not show every message once and in order")
        return parts[::2]


class StepWriter(TokenWriter):
    """A writer that notes where the steps are scored."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.tokenizer, layout.guarded, [*layout.prefix])
        self.layout = layout
        self.positions: list[int] = []

    def score(self, *ids: int, back: int = 0) -> None:
        """The step is scored at the last token: of these, or of those so far, or that many before it."""
        self.flush().extend(ids)
        self.positions.append(len(self.ids) - 1 - back)

    def behind(self, spelling: str, id_: int, text: str) -> None:
        """A text as it is encoded behind a token that is written already."""
        self.flush()
        ids = encode_text(self.tokenizer, spelling + text, self.guarded)
        if id_ not in ids:
            raise EngineError(f"the tokenizer does not keep {spelling!r} apart from what follows it")
        self.ids += ids[ids.index(id_) + 1 :]

    def chat(self, system: str, problem: str) -> None:
        """System message and problem, up to the answer. Without a system role, the message begins the user's."""
        before, between = f"{system}\n\n", "\n\n"
        if getattr(self.tokenizer, "chat_template", None):
            try:
                start, end, between, _ = self.layout.around_contents("system", "user", "assistant")
            except RequestRefused:
                start, between, _ = self.layout.around_contents("user", "assistant")
                end = "\n\n"
            before = f"{start}{system}{end}"
        self.fixed(before)
        self.text(problem)
        self.fixed(between)


def _qwen(
    writer: StepWriter, problem: str, steps: Sequence[str], *, tag: str = QWEN_TAG, system: str = QWEN_SYSTEM
) -> None:
    """Qwen2.5-Math-PRM-7B, -72B, Qwen2.5-Math-7B-PRM800K (their model cards), and whatever is trained here."""
    tag_id = writer.layout.token(tag)
    writer.guarded[tag_id] = tag
    writer.chat(system, problem)
    for step in steps:
        writer.text(step)
        writer.score(tag_id)


def _math_shepherd(writer: StepWriter, problem: str, steps: Sequence[str]) -> None:
    r"""peiyi9979/math-shepherd-mistral-7b-prm (its model card): `PROBLEM Step 1: ... ки\nStep 2: ... ки`."""
    tag_id = writer.layout.token("ки")
    writer.text(f"{problem} {_numbered(steps[0], 0)}")
    writer.score(tag_id)
    for index, step in enumerate(steps[1:], 1):
        writer.behind("ки", tag_id, f"\n{_numbered(step, index)}")
        writer.score(tag_id)


def _skywork(writer: StepWriter, problem: str, steps: Sequence[str], *, lines: bool = True) -> None:
    """Skywork-o1-Open-PRM-Qwen-2.5-1.5B, -7B (SkyworkAI/skywork-o1-prm-inference, model_utils/io_utils.py), encoded and
    scored line by line: a step of several lines has the score of its last."""
    newline_id = encode_text(writer.tokenizer, "\n", writer.guarded)[-1]
    writer.text(f"{problem}\n")
    writer.flush()
    for step in steps:
        for line in step.split("\n") if lines else [step]:
            writer.text(line)
            writer.token(newline_id)
        writer.score()


def _rlhflow(
    writer: StepWriter, problem: str, steps: Sequence[str], *,
    separator: Separator = "space", decision: Decision = "softmax",
) -> None:  # fmt: skip
    """RLHFlow/Llama3.1-8B-PRM-Deepseek-Data, -Mistral-Data (RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py). In
    ProcessBench's script (code/run_eval_prm_rlhflow.py) a blank line stands between problem and first step, and "top1"
    decides: 1 where the likeliest of all tokens begins with `+`, else 0."""
    plus_id = writer.layout.sign_ids[0]
    fixed = writer.layout.around_contents(*["user", "assistant"] * len(steps))
    for index, step in enumerate(steps):
        before = "" if index else f"{problem}{SEPARATORS[separator]}"
        writer.fixed(fixed[2 * index])
        writer.text(f"{before}{step.strip()}".strip())
        writer.fixed(fixed[2 * index + 1])
        # As in the whole text, where `+` can part what stands before it otherwise than the text's end would.
        ids = encode_text(writer.tokenizer, f"{writer.run}+", writer.guarded)
        if ids[-1] == plus_id:
            writer.ids, writer.run = writer.ids + ids[:-1], ""
        writer.score()
        writer.token(plus_id)


def _trl(writer: StepWriter, problem: str, steps: Sequence[str], *, separator: Separator = "line") -> None:
    """Token classifiers of TRL's former PRMTrainer (huggingface/trl 0.24, trl/trainer/prm_trainer.py), as
    jinachris/PURE-PRM-7B (CJReinforce/PURE, openrlhf/.../experience_maker.py). Each piece is encoded by itself."""
    writer.text(problem)
    for step in steps:
        for text in (step, SEPARATORS[separator]):
            writer.flush()
            writer.text(text)
        writer.score()


def _universal(writer: StepWriter, problem: str, steps: Sequence[str]) -> None:
    """infly/Universal-PRM-7B (its model card): the steps so far, scored at the EOS token."""
    no_reference = "\n\n###\n\nThe reference answer is: There is no reference answer for this question."
    writer.chat("You are a helpful assistant.", problem + no_reference)
    writer.flush()
    writer.text("".join(f"{step}\n\n" for step in steps))
    writer.score(writer.tokenizer.eos_token_id)


def _llemma(writer: StepWriter, problem: str, steps: Sequence[str]) -> None:
    """ScalableMath/llemma-7b-prm-* (their model cards; ssmisya/PRMBench, mr_eval/models/llemma7b_prm.py)."""
    newline_id = encode_text(writer.tokenizer, "\n", writer.guarded)[-1]
    if encode_text(writer.tokenizer, "a\n\nb", writer.guarded).count(newline_id) != 2:
        raise EngineError("the tokenizer does not have a line end as one token, which the llemma layout needs")
    writer.text(f"# Question\n\n{problem}\n\n# Solution\n\n{steps[0].strip()}")
    for step in steps[1:]:
        writer.score(newline_id)
        writer.token(newline_id)
        writer.behind("\n", newline_id, step.strip())
    writer.score(newline_id)


def _reasoneval(writer: StepWriter, problem: str, steps: Sequence[str]) -> None:
    """GAIR/ReasonEval-7B, -34B (GAIR-NLP/ReasonEval, codes/examples.py): each step as behind a special token."""
    tokenizer, newline_id = writer.tokenizer, encode_text(writer.tokenizer, "\n", writer.guarded)[-1]
    # The authors cut at the pad token. Some tokenizers write the space that begins a text behind a special token too.
    behind = tokenizer.encode(f"{tokenizer.bos_token}a", add_special_tokens=False)[1:]
    is_begun_anew = behind == encode_text(tokenizer, "a", writer.guarded)
    writer.text(f"Question:\n{problem}\nAnswer:\nLet's think step by step.\n")
    for index, step in enumerate(steps):
        writer.flush()
        start = len(writer.ids)
        if is_begun_anew:
            writer.ids += encode_text(tokenizer, step, writer.guarded)
        else:
            writer.behind("\n", newline_id, step)
        if len(writer.ids) == start:
            raise RequestRefused(f"step {index + 1} is empty; the reasoneval layout scores a step at its own tokens")
        # Where the pad token is the BOS token, as in the 7B model, the code reads one token earlier.
        writer.score(back=int(tokenizer.pad_token_id == tokenizer.bos_token_id))


def _math_psa(writer: StepWriter, problem: str, steps: Sequence[str]) -> None:
    """openreasoner/Math-psa, an adapter (openreasoner/openr, prm/infer_fns.py and prm/code/test_qwen.py)."""
    tag_id = writer.layout.token(" \n\n\n\n\n")
    writer.text(problem)
    for index, step in enumerate(steps):
        writer.text(f" {_numbered(step, index)}")
        writer.score(tag_id)


def _numbered(step: str, index: int) -> str:
    """A step without the space around it, behind its number; one that begins with `Step N:` keeps its own."""
    text = step.strip()
    return text if re.match(r"Step \d+:", text) else f"Step {index + 1}: {text}".rstrip()


@dataclass(frozen=True)
class LayoutKind:
    """A layout, whatever the tokenizer."""

    write: Callable[..., None]
    head: HeadKind
    begin: Literal["text", "bos", "chat"]  #: as a text begins, with BOS, or as a chat (else as a text)
    models: Sequence[str]  #: parts of the names of released models
    needs: Sequence[str] = ()  #: what the tokenizer must have
    one_pass: bool = True  #: whether one sequence scores every step; otherwise it scores its last step alone
    signs: Sequence[str] = ()  #: with the head "tokens": those that call a step correct and wrong


LAYOUTS: dict[LayoutName, LayoutKind] = {
    "qwen": LayoutKind(_qwen, "two-way", "chat", ["qwen2.5-math-prm", "qwen2.5-math-7b-prm800k"]),
    "math-shepherd": LayoutKind(_math_shepherd, "tokens", "text", ["math-shepherd"], signs="+-"),
    "skywork": LayoutKind(_skywork, "value", "bos", ["skywork-o1-open-prm"], ["bos_token"]),
    "rlhflow": LayoutKind(_rlhflow, "tokens", "chat", ["rlhflow", "llama3.1-8b-prm"], ["chat_template"], signs="+-"),
    "trl": LayoutKind(_trl, "labels", "bos", ["pure-prm"]),
    "universal": LayoutKind(_universal, "one-way", "chat", ["universal-prm"], ["eos_token", "chat_template"], False),
    "llemma": LayoutKind(_llemma, "mean-logit", "text", ["llemma"]),
    "reasoneval": LayoutKind(_reasoneval, "validity", "text", ["reasoneval"], ["bos_token"]),
    "math-psa": LayoutKind(_math_psa, "tokens", "text", ["math-psa"], signs=[" +", " -"]),
}
