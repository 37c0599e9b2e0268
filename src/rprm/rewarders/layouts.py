r"""How a solution is laid out for a discriminative PRM, and where its steps are scored.

Each layout as its authors publish it. Positions are known by construction: ids are put together piece by piece,
and the token that a step is scored at is written as an id, never searched for. What a problem or step says can
therefore neither add a score position nor take one away: the model's own special tokens (`<extra_0>`, `<|im_end|>`)
are spelled out in ordinary tokens where they stand in such a text. A causal model reads nothing after the last score
position that could change a score, so ids end there.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from rprm.engines.tokens import encode_text, special_tokens, text_prefix
from rprm.errors import EngineError, RequestRefused
from rprm.rewarders.rendering import Rendered, StepWriter, around_contents, chat_of_problem, single_token

LayoutName = Literal[
    "qwen", "math-shepherd", "skywork", "rlhflow", "trl", "universal", "llemma", "reasoneval", "math-psa"
]

#: What reads the score from the last hidden state; see `rprm.rewarders.network`.
HeadKind = Literal["two-way", "one-way", "value", "labels", "validity", "tokens", "top-token", "mean-logit"]

#: What `separator=` names.
Separator = Literal["space", "line", "blank-line"]
SEPARATORS: dict[Separator, str] = {"space": " ", "line": "\n", "blank-line": "\n\n"}

#: How the rlhflow layout decides; see there.
Decision = Literal["softmax", "top1"]

#: The system message of the model cards of Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K.
QWEN_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_TAG = "<extra_0>"


class Layout(ABC):
    """A layout over one tokenizer.

    Attributes:
        name: as in `layout=`.
        head: what the score is read with.
        one_pass: whether one sequence scores every step; otherwise it scores the last step alone, and each step takes a
            sequence of its own.
        options: its options with their values, defaults included.
        plus_id, minus_id: with the head "tokens", the two tokens whose rows of the output layer are read.
        plus_ids: with the head "top-token", the tokens that call a step correct.
    """

    name: LayoutName
    head: HeadKind
    one_pass: bool = True
    options: Mapping[str, Any] = MappingProxyType({})
    plus_id: int
    minus_id: int
    plus_ids: Sequence[int]

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        #: Tokens that no text of a record may make: id -> spelling.
        self.guarded = special_tokens(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text of a record."""
        return encode_text(self.tokenizer, text, self.guarded)

    def encode_after_newline(self, text: str, newline_id: int) -> list[int]:
        """Ids of a text as it stands behind a line end, where no space of the tokenizer's own begins it."""
        ids = self.encode(f"\n{text}")
        return ids[ids.index(newline_id) + 1 :]

    def writer(self, prefix: Sequence[int] = ()) -> StepWriter:
        """A writer that has written the prefix."""
        writer = StepWriter(self.tokenizer, self.guarded)
        writer.ids += prefix
        return writer

    @abstractmethod
    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        """Lay out a solution of at least one step.

        Raises:
            RequestRefused: a text holds a special token that the tokenizer cannot spell in others, or a step is empty
                where the layout scores a step at its own last token.
        """


class QwenLayout(Layout):
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
        super().__init__(tokenizer)
        self.tag_id = single_token(tokenizer, tag)
        self.guarded |= {self.tag_id: tag}
        if getattr(tokenizer, "chat_template", None):
            self._before, self._between = chat_of_problem(tokenizer, system)
            self._prefix: list[int] = []
        else:
            self._before, self._between = f"{system}\n\n", "\n\n"
            self._prefix = text_prefix(tokenizer)

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer(self._prefix)
        writer.fixed(self._before)
        writer.text(problem)
        writer.fixed(self._between)
        for step in steps:
            writer.text(step)
            writer.token(self.tag_id)
            writer.score()
        return writer.rendered


class MathShepherdLayout(Layout):
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
        super().__init__(tokenizer)
        self.tag_id = single_token(tokenizer, self.tag)
        self.plus_id, self.minus_id = (single_token(tokenizer, sign) for sign in "+-")
        self._prefix = text_prefix(tokenizer)
        if self.encode(f"{self.tag}\nStep 2:")[0] != self.tag_id:
            raise EngineError(f"the tokenizer does not keep {self.tag!r} apart from a line end after it")

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer(self._prefix)
        for index, text in enumerate(map(_numbered, steps, range(len(steps)))):
            if index == 0:
                writer.text(f"{problem} {text}")
            else:
                # Encoded behind its tag, as it stands in the whole text: by itself a line end could be encoded
                # otherwise. Only the ids after the tag are kept; the tag itself is written already.
                writer.ids += self.encode(f"{self.tag}\n{text}")[1:]
            writer.token(self.tag_id)
            writer.score()
        return writer.rendered


class SkyworkLayout(Layout):
    """Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B (SkyworkAI/skywork-o1-prm-inference, `model_utils/io_utils.py`).

    The BOS token, the problem and a line end, then each step and a line end. The score is the sigmoid of a value head
    at a line end. The published code knows no steps but lines: it cuts the answer at every line end, encodes line by
    line, and scores each. A step of several lines has the score of its last.

    Args:
        tokenizer: has a BOS token.
        lines: encode line by line, as published; otherwise step by step, where a line end can be one token with what
            stands beside it.

    Raises:
        EngineError: the tokenizer has no BOS token.
    """

    name: LayoutName = "skywork"
    head: HeadKind = "value"

    def __init__(self, tokenizer: Any, *, lines: bool = True) -> None:
        if tokenizer.bos_token_id is None:
            raise EngineError("the tokenizer has no BOS token, with which the skywork layout begins")
        super().__init__(tokenizer)
        self.options = {"lines": lines}
        self._newline_id = self.encode("\n")[-1]

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer([self.tokenizer.bos_token_id])
        writer.text(f"{problem}\n")
        writer.flush()
        for step in steps:
            for line in step.split("\n") if self.options["lines"] else [step]:
                writer.text(line)
                writer.token(self._newline_id)
            writer.score()
        return writer.rendered


class RLHFlowLayout(Layout):
    """RLHFlow/Llama3.1-8B-PRM-Deepseek-Data and -Mistral-Data (RLHFlow/RLHF-Reward-Modeling, math-rm/prm_evaluate.py).

    A chat: each step is a user message (the first has the problem before it) that the assistant answers with `+`. The
    score is read at the token before each answer. The space around a step is dropped.

    Args:
        tokenizer: has a chat template.
        separator: between problem and first step: a space in the repository, a blank line in ProcessBench's script
            (QwenLM/ProcessBench, code/run_eval_prm_rlhflow.py), which is behind the published rows.
        decision: "softmax" rewards with the softmax over `+` and `-`, as the repository. "top1" decides as
            ProcessBench's script does: 1 where the likeliest of all tokens begins with `+`, else 0. No other value
            occurs then, so that the rewards say the same at every threshold.

    Raises:
        EngineError: there is no chat template, or `+` or `-` is not one token.
    """

    name: LayoutName = "rlhflow"

    def __init__(self, tokenizer: Any, *, separator: Separator = "space", decision: Decision = "softmax") -> None:
        self.head: HeadKind = "top-token" if decision == "top1" else "tokens"
        self.options = {"separator": separator, "decision": decision}
        if not getattr(tokenizer, "chat_template", None):
            raise EngineError("the tokenizer has no chat template, which the rlhflow layout needs")
        super().__init__(tokenizer)
        self.plus_id, self.minus_id = (single_token(tokenizer, sign) for sign in "+-")
        self.plus_ids: list[int] = []
        if decision == "top1":
            texts = tokenizer.batch_decode([[id_] for id_ in range(len(tokenizer))])
            self.plus_ids = [id_ for id_, text in enumerate(texts) if text.strip().startswith("+")]
        self._fixed: dict[int, list[str]] = {}

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        if len(steps) not in self._fixed:
            self._fixed[len(steps)] = around_contents(self.tokenizer, ["user", "assistant"] * len(steps))
        fixed = self._fixed[len(steps)]
        writer = self.writer()
        for index, step in enumerate(steps):
            text = step.strip()
            writer.fixed(fixed[2 * index])
            writer.text(f"{problem}{SEPARATORS[self.options['separator']]}{text}".strip() if index == 0 else text)
            writer.fixed(fixed[2 * index + 1])
            writer.answer("+", self.plus_id)
        return writer.rendered


class TRLLayout(Layout):
    r"""Token classifiers as TRL's former PRMTrainer makes them (huggingface/trl 0.24, trl/trainer/prm_trainer.py,
    `tokenize_row`), jinachris/PURE-PRM-7B among them (CJReinforce/PURE, openrlhf/.../experience_maker.py).

    The tokenizer's BOS token where it has one, the problem, then each step and the separator, each encoded by itself.
    The score is the second label at the last token of each separator. PURE's own scale, P(second) - P(first) above 0,
    is P(second) above 0.5 here.

    Args:
        tokenizer: any.
        separator: a line end is TRL's default and PURE's; PRMBench's script for PURE and others write a blank line.
    """

    name: LayoutName = "trl"
    head: HeadKind = "labels"

    def __init__(self, tokenizer: Any, *, separator: Separator = "line") -> None:
        super().__init__(tokenizer)
        self.options = {"separator": separator}
        self._separator_ids = self.encode(SEPARATORS[separator])

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        bos = self.tokenizer.bos_token_id
        writer = self.writer([] if bos is None else [bos])
        writer.text(problem)
        for step in steps:
            writer.flush()
            writer.text(step)
            writer.flush()
            writer.ids += self._separator_ids
            writer.score()
        return writer.rendered


class UniversalLayout(Layout):
    r"""infly/Universal-PRM-7B (its model card).

    A chat: a system message, the problem followed by a sentence that there is no reference answer, and an answer of the
    steps so far with a blank line after each, then the EOS token. The score is the sigmoid of a one-way head at the EOS
    token, so that each step takes a sequence of its own.

    Raises:
        EngineError: the tokenizer has no EOS token, or its chat template does not show messages as they are.
    """

    name: LayoutName = "universal"
    head: HeadKind = "one-way"
    one_pass = False
    system = "You are a helpful assistant."
    no_reference = "\n\n###\n\nThe reference answer is: There is no reference answer for this question."

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None or not getattr(tokenizer, "chat_template", None):
            raise EngineError("the tokenizer has no EOS token or no chat template; the universal layout needs both")
        super().__init__(tokenizer)
        self._before, self._between = chat_of_problem(tokenizer, self.system)

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer()
        writer.fixed(self._before)
        writer.text(problem + self.no_reference)
        writer.fixed(self._between)
        writer.flush()
        writer.text("".join(f"{step}\n\n" for step in steps))
        writer.token(self.tokenizer.eos_token_id)
        writer.score()
        return writer.rendered


class LlemmaLayout(Layout):
    r"""ScalableMath/llemma-7b-prm-prm800k-level-1to3-hf and its sisters (their model cards; ssmisya/PRMBench,
    mr_eval/models/llemma7b_prm.py).

    One text: `# Question\n\nPROBLEM\n\n# Solution\n\nSTEP\n\nSTEP\n\n`. The score is the sigmoid of the mean of all
    output logits, at the first line end after each step. The space around a step is dropped; a blank line inside a step
    stays, unscored. The cards take the tokenizer of EleutherAI/llemma_7b.

    Raises:
        EngineError: the tokenizer does not have a line end as one token.
    """

    name: LayoutName = "llemma"
    head: HeadKind = "mean-logit"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._prefix = text_prefix(tokenizer)
        self._newline_id = self.encode("\n\n")[-1]
        if self.encode("a\n\nb").count(self._newline_id) != 2:
            raise EngineError("the tokenizer does not have a line end as one token, which the llemma layout needs")

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer(self._prefix)
        for index, text in enumerate(step.strip() for step in steps):
            if index == 0:
                writer.text(f"# Question\n\n{problem}\n\n# Solution\n\n{text}")
            else:
                writer.ids += self.encode_after_newline(text, self._newline_id)
            writer.token(self._newline_id)
            writer.score()
            writer.token(self._newline_id)
        return writer.rendered


class ReasonEvalLayout(Layout):
    r"""GAIR/ReasonEval-7B and -34B (GAIR-NLP/ReasonEval, codes/examples.py).

    The tokens that the tokenizer begins a text with, `Question:\nPROBLEM\nAnswer:\nLet's think step by step.\n`, then
    the steps with nothing between them, each encoded as it is behind a special token. The score is the validity,
    P(neutral) + P(positive) of a three-way head, at the last token of each step. Where the pad token is the BOS token,
    as in the 7B model, the published code reads it one token earlier.

    Raises:
        EngineError: the tokenizer has no BOS token.
    """

    name: LayoutName = "reasoneval"
    head: HeadKind = "validity"

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.bos_token_id is None:
            raise EngineError("the tokenizer has no BOS token, which the reasoneval layout needs")
        super().__init__(tokenizer)
        self._prefix = text_prefix(tokenizer)
        self._back = int(tokenizer.pad_token_id == tokenizer.bos_token_id)
        self._newline_id = self.encode("\n")[-1]
        # The authors cut at the pad token and take it out afterwards. Some tokenizers write the space that begins a
        # text behind a special token too, others do not.
        behind = tokenizer.encode(f"{tokenizer.bos_token}a", add_special_tokens=False)[1:]
        self._is_begun_anew = behind == self.encode("a")

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer(self._prefix)
        writer.text(f"Question:\n{problem}\nAnswer:\nLet's think step by step.\n")
        writer.flush()
        for index, step in enumerate(steps):
            ids = self.encode(step) if self._is_begun_anew else self.encode_after_newline(step, self._newline_id)
            if not ids:
                raise RequestRefused(
                    f"step {index + 1} is empty; the reasoneval layout scores a step at its own tokens"
                )
            writer.ids += ids
            writer.score(back=self._back)
        return writer.rendered


class MathPSALayout(Layout):
    r"""openreasoner/Math-psa, an adapter on Qwen2.5-Math-7B-Instruct (openreasoner/openr, prm/infer_fns.py and
    prm/code/test_qwen.py).

    One text, `PROBLEM Step 1: ... \n\n\n\n\n Step 2: ... \n\n\n\n\n`. The score is the softmax over ` +` and ` -` at
    the token of a space and five line ends. The space around a step is dropped, and a step that begins with `Step N:`
    keeps its own number.

    Raises:
        EngineError: the tag, ` +` or ` -` is not one token.
    """

    name: LayoutName = "math-psa"
    head: HeadKind = "tokens"
    tag = " \n\n\n\n\n"

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self._prefix = text_prefix(tokenizer)
        self.plus_id, self.minus_id = (single_token(tokenizer, sign) for sign in (" +", " -"))
        tag_ids = self.encode(self.tag)
        if len(tag_ids) != 1:
            raise EngineError(f"{self.tag!r} is {len(tag_ids)} tokens in this tokenizer; math-psa needs Qwen2.5's")
        self.tag_id = tag_ids[0]

    def render(self, problem: str, steps: Sequence[str]) -> Rendered:
        writer = self.writer(self._prefix)
        writer.text(problem)
        for index, step in enumerate(steps):
            writer.text(f" {_numbered(step, index)}")
            writer.token(self.tag_id)
            writer.score()
        return writer.rendered


LAYOUTS: dict[LayoutName, Callable[..., Layout]] = {
    "qwen": QwenLayout,
    "math-shepherd": MathShepherdLayout,
    "skywork": SkyworkLayout,
    "rlhflow": RLHFlowLayout,
    "trl": TRLLayout,
    "universal": UniversalLayout,
    "llemma": LlemmaLayout,
    "reasoneval": ReasonEvalLayout,
    "math-psa": MathPSALayout,
}


def _numbered(step: str, index: int) -> str:
    """A step behind its number; one that begins with `Step N:` keeps its own."""
    text = step.strip()
    return text if re.match(r"Step \d+:", text) else f"Step {index + 1}: {text}".rstrip()
