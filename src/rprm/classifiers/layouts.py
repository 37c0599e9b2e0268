r"""How a solution is laid out for a discriminative PRM, and where its steps are scored.

Four layouts, each as its authors publish it. Positions are known by construction: ids are put together piece by piece,
and the token that a step is scored at is written as an id, never searched for. What a problem or step says can
therefore neither add a score position nor take one away: the model's own special tokens (`<extra_0>`, `<|im_end|>`)
are spelled out in ordinary tokens where they stand in such a text. A causal model reads nothing after the last score
position that could change a score, so ids end there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rprm.engines.tokens import TokenWriter, encode_text, special_tokens, text_prefix
from rprm.errors import EngineError

LayoutName = Literal["qwen", "math-shepherd", "skywork", "rlhflow"]

#: What reads the score from the last hidden state; see `rprm.classifiers.network`.
HeadKind = Literal["two-way", "value", "tokens"]

#: The system message of the model cards of Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K.
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_TAG = "<extra_0>"

#: Stand for the contents of messages while the chat template is rendered.
_PLACE = "RPRMCONTENT{}X"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A solution as token ids. `positions[i]` is the index in `ids` at which step i is scored; the last ends `ids`."""

    ids: list[int]
    positions: list[int]


class Layout(Protocol):
    """A layout over one tokenizer.

    Attributes:
        name: as in `layout=`.
        head: what the score is read with.
    """

    name: LayoutName
    head: HeadKind

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        """Lay out a solution of at least one step.

        Raises:
            RequestRefused: a text holds a special token that the tokenizer cannot spell in others.
        """
        ...


class QwenLayout:
    """Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K (their model cards).

    A chat: system message, the problem as user, and an assistant message of the steps with the tag after each. The
    score is the second class of a two-way head at each tag. Serves any base model: one without a chat template gets the
    system message, the problem and the steps with a blank line after the first two, behind the tokens that its
    tokenizer begins a text with.

    Args:
        tokenizer: has the tag as one token.
        tag: the token that ends a step.
        system: the system message; where the chat template refuses one, it stands at the head of the user message.

    Raises:
        EngineError: the tag is not one token, or the chat template does not show messages as they are.
    """

    name: LayoutName = "qwen"
    head: HeadKind = "two-way"

    def __init__(self, tokenizer: Any, *, tag: str = QWEN_TAG, system: str = QWEN_SYSTEM) -> None:
        self.tokenizer = tokenizer
        self.tag_id = _single_token(tokenizer, tag)
        self._guarded = special_tokens(tokenizer) | {self.tag_id: tag}
        if getattr(tokenizer, "chat_template", None):
            self._before, self._between = _chat_of_problem(tokenizer, system)
            self._prefix: list[int] = []
        else:
            self._before, self._between = f"{system}\n\n", "\n\n"
            self._prefix = text_prefix(tokenizer)

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = _Writer(self.tokenizer, self._guarded)
        writer.ids += self._prefix
        writer.fixed(self._before)
        writer.text(problem)
        writer.fixed(self._between)
        for step in steps:
            writer.text(step)
            writer.token(self.tag_id)
            writer.score()
        return writer.rendered


class MathShepherdLayout:
    r"""peiyi9979/math-shepherd-mistral-7b-prm (its model card).

    One text, `PROBLEM Step 1: ... ки\nStep 2: ... ки`, behind the tokens that the tokenizer begins a text with. The
    score is the softmax over `+` and `-` at each `ки`. The space around a step is dropped, and a step that begins with
    `Step N:` keeps its own number. `ки` is an ordinary word of the vocabulary: in a step it is only a word, no score is
    read there.

    Raises:
        EngineError: the tokenizer does not have `ки`, `+` and `-` as one token each.
    """

    name: LayoutName = "math-shepherd"
    head: HeadKind = "tokens"
    tag = "ки"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tag_id = _single_token(tokenizer, self.tag)
        self.plus_id, self.minus_id = (_single_token(tokenizer, sign) for sign in "+-")
        self._guarded = special_tokens(tokenizer)
        self._prefix = text_prefix(tokenizer)
        if encode_text(tokenizer, f"{self.tag}\nStep 2:", self._guarded)[0] != self.tag_id:
            raise EngineError(f"the tokenizer does not keep {self.tag!r} apart from a line end after it")

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = _Writer(self.tokenizer, self._guarded)
        writer.ids += self._prefix
        for index, step in enumerate(steps):
            text = step.strip()
            if not re.match(r"Step \d+:", text):
                text = f"Step {index + 1}: {text}".rstrip()
            if index == 0:
                writer.text(f"{problem} {text}")
            else:
                # Encoded behind its tag, as it stands in the whole text: by itself a line end could be encoded
                # otherwise. Only the ids after the tag are kept; the tag itself is written already.
                writer.ids += encode_text(self.tokenizer, f"{self.tag}\n{text}", self._guarded)[1:]
            writer.token(self.tag_id)
            writer.score()
        return writer.rendered


class SkyworkLayout:
    """Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B (SkyworkAI/skywork-o1-prm-inference, `model_utils/io_utils.py`).

    The BOS token, the problem and a line end, then each step and a line end. The score is the sigmoid of a value head
    at the line end of each step. Every step is encoded by itself; line ends inside a step stay, unscored.

    Raises:
        EngineError: the tokenizer has no BOS token.
    """

    name: LayoutName = "skywork"
    head: HeadKind = "value"

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.bos_token_id is None:
            raise EngineError("the tokenizer has no BOS token, with which the skywork layout begins")
        self.tokenizer = tokenizer
        self._guarded = special_tokens(tokenizer)
        self._newline_id = encode_text(tokenizer, "\n", self._guarded)[-1]

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = _Writer(self.tokenizer, self._guarded)
        writer.token(self.tokenizer.bos_token_id)
        writer.text(f"{problem}\n")
        for step in steps:
            writer.flush()
            writer.text(step)
            writer.token(self._newline_id)
            writer.score()
        return writer.rendered


class RLHFlowLayout:
    """RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data (RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py).

    A chat: each step is a user message (the first has the problem before it, and a space between) that the assistant
    answers with `+`. The score is the softmax over `+` and `-` at the token before each answer. The space around a step
    is dropped.

    Raises:
        EngineError: there is no chat template, or `+` or `-` is not one token.
    """

    name: LayoutName = "rlhflow"
    head: HeadKind = "tokens"

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise EngineError("the tokenizer has no chat template, which the rlhflow layout needs")
        self.tokenizer = tokenizer
        self.plus_id, self.minus_id = (_single_token(tokenizer, sign) for sign in "+-")
        self._guarded = special_tokens(tokenizer)
        self._fixed: dict[int, list[str]] = {}

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        if len(steps) not in self._fixed:
            self._fixed[len(steps)] = _around_contents(self.tokenizer, ["user", "assistant"] * len(steps))
        fixed = self._fixed[len(steps)]
        writer = _Writer(self.tokenizer, self._guarded)
        for index, step in enumerate(steps):
            text = step.strip()
            writer.fixed(fixed[2 * index])
            writer.text(f"{problem} {text}".strip() if index == 0 else text)
            writer.fixed(fixed[2 * index + 1])
            writer.answer("+", self.plus_id)
        return writer.rendered


LAYOUTS: dict[LayoutName, type[QwenLayout | MathShepherdLayout | SkyworkLayout | RLHFlowLayout]] = {
    "qwen": QwenLayout,
    "math-shepherd": MathShepherdLayout,
    "skywork": SkyworkLayout,
    "rlhflow": RLHFlowLayout,
}


class _Writer(TokenWriter):
    """A writer that notes where the steps are scored."""

    def __init__(self, tokenizer: Any, guarded: dict[int, str]) -> None:
        super().__init__(tokenizer, guarded)
        self._positions: list[int] = []

    @property
    def rendered(self) -> Rendered:
        return Rendered(self.ids[: self._positions[-1] + 1], self._positions)

    def score(self) -> None:
        """The step is scored at the last token so far."""
        self.flush()
        self._positions.append(len(self.ids) - 1)

    def answer(self, text: str, id_: int) -> None:
        """The step is scored at the token before this answer, which is one token whatever stands before it."""
        # As in the whole text, where the answer can part what stands before it otherwise than its end would.
        ids = encode_text(self.tokenizer, self.run + text, self.guarded)
        if ids[-1] == id_:
            self.ids += ids[:-1]
            self.run = ""
        self.score()
        self.ids.append(id_)


def _single_token(tokenizer: Any, text: str) -> int:
    """The one token that a text is, a bare space token before it not counted."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    kept = [id_ for id_ in ids if tokenizer.decode([id_]).strip()]
    if len(kept) != 1:
        raise EngineError(
            f"{text!r} is {len(kept)} tokens in this tokenizer, and the layout needs one; is it the layout that the "
            "model was trained with?"
        )
    return int(kept[0])


def _chat_of_problem(tokenizer: Any, system: str) -> tuple[str, str]:
    """Fixed text before the problem and between problem and steps."""
    import jinja2

    try:
        start, after_system, between, _ = _around_contents(tokenizer, ["system", "user", "assistant"])
        return f"{start}{system}{after_system}", between
    except jinja2.TemplateError:
        start, between, _ = _around_contents(tokenizer, ["user", "assistant"])
        return f"{start}{system}\n\n", between


def _around_contents(tokenizer: Any, roles: Sequence[str]) -> list[str]:
    """What the chat template writes before, between and after the contents of messages: one text more than messages."""
    places = [_PLACE.format(number) for number in range(len(roles))]
    rest = tokenizer.apply_chat_template(
        [{"role": role, "content": place} for role, place in zip(roles, places, strict=True)],
        tokenize=False,
        add_generation_prompt=False,
    )
    fixed = []
    for place in places:
        before, found, rest = rest.partition(place)
        if not found:
            raise EngineError("the tokenizer's chat template does not show every message once and in order")
        fixed.append(before)
    return [*fixed, rest]
