"""The vLLM engine: what needs no vLLM, then (marker `vllm`) a real model on it."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.engines import Completion, Engine, EngineInfo, Sampling, load_engine
from rprm.engines.tokens import VerdictTokens, detokenizer, encode_prompt
from rprm.engines.vllm import VLLMEngine, lora_rank
from rprm.errors import EngineError, EngineUnavailable, RequestRefused
from rprm.prompts.template import Message, Prompt
from rprm.verdict import Transcript, Verdict, VerdictFormat, read_verdict

T = TypeVar("T")
MARKER = "Is the step correct (Yes/No)?"
FORMAT = VerdictFormat()
SAMPLING = Sampling(verdict=FORMAT)


def raw(text: str) -> Prompt:
    return Prompt((Message("user", text),), chat=False)


# --- The transcript: where a completion ends -------------------------------------------------------------------------


def transcribe(pieces: Iterable[str], verdict: VerdictFormat | None = FORMAT, stop: Sequence[str] = ()) -> Transcript:
    """Feed tokens until the transcript says that the completion has ended."""
    transcript = Transcript(verdict, stop)
    for piece in pieces:
        transcript.add(piece)
        if transcript.finish_reason is not None:
            break
    return transcript


@pytest.mark.parametrize(
    ("pieces", "text", "num_tokens"),
    [
        # The word alone may go on ("Yesterday", "Yes/No"): the full stop settles it, and is not counted.
        ([MARKER, " Yes", ".", " More"], f"{MARKER} Yes", 2),
        # So does the end of the line; a comma or a word may still go on to "or No".
        ([MARKER, " No", "\n", "\n", "Next"], f"{MARKER} No", 2),
        ([MARKER, " Yes", ",", " it", " is", " right"], f"{MARKER} Yes", 2),
        # One token settles it by itself.
        ([MARKER, " **", "No", "**\n"], f"{MARKER} **No", 3),
        ([MARKER + " Yes. More"], f"{MARKER} Yes", 1),
        # The word in two tokens, the marker in many, tokens without text (parts of a character) between them.
        ([*MARKER, "", " Y", "", "es", "", "!"], f"{MARKER} Yes", len(MARKER) + 4),
        # The first answer turns out to be none; the second is one.
        ([MARKER, " No", "thing. ", MARKER, " Yes", " ", "x", " "], f"{MARKER} Nothing. {MARKER} Yes", 5),
        ([MARKER, " Yes", " /", " No", " ", MARKER, "No", "<"], f"{MARKER} Yes / No {MARKER}No", 7),
        # A slash that offers no other answer.
        ([MARKER, " Yes", " /", "!"], f"{MARKER} Yes", 2),
        # A marker that is quoted ends nothing.
        (['"', MARKER, " Yes", '"', ".\n", MARKER, " No", "\n"], f'"{MARKER} Yes".\n{MARKER} No', 7),
    ],
)
def test_it_ends_with_the_word_of_the_first_verdict(pieces: list[str], text: str, num_tokens: int) -> None:
    transcript = transcribe(pieces)
    assert (transcript.text, transcript.finish_reason, transcript.num_tokens) == (text, "verdict", num_tokens)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No verdict. No. Yes.",
        f"{MARKER} Yes",
        f"{MARKER} Yes, it",
        f"{MARKER} **Yes** or",
        f"{MARKER} Yes /",
        f"{MARKER} Nothing",
        f"{MARKER} Yes/No",
        # Another closing tag may show that the first was only thought of.
        f"<think>{MARKER} Yes.</think>{MARKER} No.",
    ],
)
def test_it_goes_on_while_no_verdict_is_sure(text: str) -> None:
    transcript = transcribe(text)
    assert (transcript.text, transcript.finish_reason, transcript.num_tokens) == (text, None, len(text))


def test_without_a_verdict_format_it_only_knows_stop_strings() -> None:
    assert transcribe([MARKER, " Yes", ". A", "nd"], verdict=None).finish_reason is None
    ended = transcribe([MARKER, " Yes", ".\n", "\nNext"], verdict=None, stop=("\n\n",))
    assert (ended.text, ended.finish_reason, ended.num_tokens) == (f"{MARKER} Yes.", "stop", 4)


def test_the_stop_string_that_is_complete_first_counts() -> None:
    # "b" is complete at character 2 of "abc", before "abc" at 3.
    ended = transcribe(["x", "abc"], stop=("abc", "b"))
    assert (ended.text, ended.finish_reason, ended.num_tokens) == ("xa", "stop", 2)


def test_of_a_stop_string_and_a_verdict_the_first_in_the_text_counts() -> None:
    # In one token both: the verdict is sure at "!", before the stop string is complete.
    ended = transcribe([f"{MARKER} Yes! END"], stop=("END",))
    assert (ended.text, ended.finish_reason) == (f"{MARKER} Yes", "verdict")
    # The stop string is complete before the verdict is sure; the verdict is in the text all the same.
    ended = transcribe([f"{MARKER} Yes - Next"], stop=(" - ",))
    assert (ended.text, ended.finish_reason) == (f"{MARKER} Yes", "stop")
    # It is complete before the verdict begins.
    ended = transcribe([f"END {MARKER} Yes! "], stop=("END",))
    assert (ended.text, ended.finish_reason) == ("", "stop")


@pytest.mark.parametrize("answer", ["right", "rightless"])
def test_other_answer_words_of_which_one_begins_the_other(answer: str) -> None:
    verdict = VerdictFormat(marker="Judgement:", yes="right", no="rightless")
    ended = transcribe(["Judgement:", " right", answer.removeprefix("right"), "."], verdict)
    assert (ended.text, ended.finish_reason) == (f"Judgement: {answer}", "verdict")


#: Pieces of which verdicts, near misses and stop strings arise.
FRAGMENTS = st.lists(
    st.sampled_from([MARKER, "Is the step", " correct", "(Yes/No)?", "Yes", " yes", "No", " NO", "t", "/", " / ", "\n"])
    | st.sampled_from(
        ["\n\n", "**", "\\boxed{", "}", ".", ":", "END", "EN", "D", "é", "🤖", " ", "٣", "_", "ſ", "İ", "x y"]
    ),
    max_size=14,
).map("".join)


@st.composite
def split_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A text, and the same in tokens, some of them empty."""
    text = draw(FRAGMENTS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    bounds = [0, *cuts, len(text)]
    return text, [text[start:end] for start, end in itertools.pairwise(bounds)]


def expected_end(text: str, stop: Sequence[str]) -> tuple[str, str | None, int]:
    """Text, finish reason and the number of characters read, by trying every beginning of the text."""
    for length in range(1, len(text) + 1):
        begin = text[:length]
        if ends := [string for string in stop if begin.endswith(string)]:
            return begin[: -max(map(len, ends))], "stop", length
        verdict = FORMAT.find(begin)
        if verdict is not None and FORMAT.is_final(begin, verdict):
            return begin[: verdict.end], "verdict", verdict.end
    return text, None, len(text)


@given(split_texts(), st.sampled_from([(), ("END",), ("\n\n", "END"), ("Yes",)]))
def test_where_it_ends_depends_on_the_text_alone(split: tuple[str, list[str]], stop: tuple[str, ...]) -> None:
    text, pieces = split
    expected_text, expected_reason, num_read = expected_end(text, stop)
    transcript = transcribe(pieces, stop=stop)
    assert (transcript.text, transcript.finish_reason) == (expected_text, expected_reason)
    if expected_reason is None:
        assert transcript.num_tokens == len(pieces)
    else:
        # Tokens up to the one that holds the last character that was needed.
        lengths = [len("".join(pieces[: count + 1])) for count in range(len(pieces))]
        assert transcript.num_tokens == 1 + next(i for i, length in enumerate(lengths) if length >= num_read)


@given(split_texts())
def test_it_ends_with_the_verdict_that_the_whole_text_has(split: tuple[str, list[str]]) -> None:
    text, pieces = split
    transcript = transcribe(pieces)
    if transcript.finish_reason == "verdict":
        assert FORMAT.find(transcript.text) == FORMAT.find(text)
        found = FORMAT.find(text)
        assert found is not None
        assert len(transcript.text) == found.end


# --- Tokens to text --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_tokenizer() -> Any:
    """Bytes as tokens, but for the answers, which are one token each, with and without a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Y", "e"), ("Ye", "s"), ("Ġ", "Yes"), ("N", "o"), ("Ġ", "No")]
    vocabulary = alphabet + [left + right for left, right in merges] + ["<end>"]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


class Slow:
    """A tokenizer that is not of the `tokenizers` library."""

    def __init__(self, tokenizer: Any) -> None:
        self.decode = tokenizer.decode


def slow_detokenizer(tokenizer: Any, ids: Sequence[int]) -> Callable[[int], str]:
    return detokenizer(Slow(tokenizer), ids)


@given(text=st.text(max_size=40))
@pytest.mark.parametrize("make", [detokenizer, slow_detokenizer])
def test_pieces_join_to_the_text(byte_tokenizer: Any, make: Any, text: str) -> None:
    step = make(byte_tokenizer, byte_tokenizer.encode("A prompt é"))
    # A byte sequence ends with ASCII, so that nothing is held back as unfinished.
    assert "".join(step(token) for token in byte_tokenizer.encode(text + "\ufffd.")) == text + "\ufffd."


@pytest.mark.parametrize("make", [detokenizer, slow_detokenizer])
def test_special_tokens_are_no_text_and_broken_characters_come_late(byte_tokenizer: Any, make: Any) -> None:
    step = make(byte_tokenizer, [])
    robot = byte_tokenizer.encode("🤖")
    assert len(robot) == 4
    assert [step(token) for token in robot] == ["", "", "", "🤖"]
    assert step(byte_tokenizer.eos_token_id) == ""
    # The first half of a character, then something else.
    (yes,) = byte_tokenizer.encode(" Yes")
    assert [step(robot[0]), step(robot[1]), step(yes)] == ["", "", "\ufffd Yes"]


def test_a_tokenizer_that_rewrites_its_text_ends_nothing() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, "c"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "X")])
    step = detokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [])
    # "a", then "X", then "Xc", of which "a" is no beginning.
    assert [step(token) for token in (0, 1, 2, 2)] == ["a", "", "c", "c"]


# --- The engine around a scripted vLLM -------------------------------------------------------------------------------


@dataclass
class FakeLogprob:
    logprob: float


@dataclass
class FakeCompletion:
    token_ids: list[int]
    logprobs: list[dict[int, FakeLogprob]]
    finish_reason: str | None


@dataclass
class FakeOutput:
    outputs: list[FakeCompletion]
    finished: bool
    num_cached_tokens: int | None = 16


class FakeVLLM(VLLMEngine):
    """The engine with a stream of given tokens in place of vLLM's, `sizes` of them in each output."""

    def __init__(self, tokenizer: Any, tokens: list[int], sizes: Iterable[int], finish_reason: str | None) -> None:
        super().__init__("fake")
        self.tokens, self.sizes, self.finish_reason = tokens, iter(sizes), finish_reason
        self.num_sent = 0
        self.closed = False
        self._llm, self._tokenizer, self._loop = object(), tokenizer, asyncio.get_running_loop()
        self._info = EngineInfo("vllm", "fake", context_length=10_000)

    async def _outputs(
        self, ids: Sequence[int], sampling: Sampling, answers: VerdictTokens | None, num_listed: int = 0
    ) -> AsyncGenerator[Any, None]:
        if num_listed:
            (one,), (other,) = map(self._tokenizer.encode, (" Yes", " No"))
            shares = {one: 0.5, other: 0.125, self._tokenizer.encode("!")[0]: 0.25}
            listed = {id_: FakeLogprob(math.log(share)) for id_, share in shares.items()}
            yield FakeOutput([FakeCompletion([one], [listed], "length")], True)
            return
        try:
            while self.num_sent < len(self.tokens):
                sent = self.tokens[self.num_sent : self.num_sent + next(self.sizes)]
                first, self.num_sent = self.num_sent, self.num_sent + len(sent)
                # At position i of the completion, every Yes has -i and every No -2i - 1.
                logprobs = [
                    {t: FakeLogprob(-i if t in answers.yes else -2 * i - 1) for t in answers.words}
                    for i in range(first, self.num_sent)
                    if answers is not None
                ]
                finished = self.num_sent == len(self.tokens)
                reason = self.finish_reason if finished else None
                yield FakeOutput([FakeCompletion(sent, logprobs, reason)], finished)
        finally:
            self.closed = True


def complete(
    tokenizer: Any, tokens: list[int], sizes: Iterable[int], finish_reason: str | None, sampling: Sampling = SAMPLING
) -> tuple[Completion, FakeVLLM]:
    async def run() -> tuple[Completion, FakeVLLM]:
        engine = FakeVLLM(tokenizer, tokens, sizes, finish_reason)
        return await engine.generate(raw("Judge."), sampling), engine

    return asyncio.run(run())


@given(st.lists(st.integers(1, 7), min_size=60))
def test_a_completion_does_not_depend_on_how_its_tokens_arrive(byte_tokenizer: Any, sizes: list[int]) -> None:
    text = f"No, 3 ≠ 4 🤖. {MARKER} No\nNext"
    tokens = byte_tokenizer.encode(text)
    completion, engine = complete(byte_tokenizer, tokens, [*sizes, *[7] * 60], None)
    # The verdict is the third "No" that is a token of its own ("(Yes/No)" has a Yes and a No too).
    end = text.index("\nNext")
    assert completion.text == text[:end]
    assert completion.finish_reason == "verdict"
    assert completion.ended is False
    words = [text[c.start : c.start + 3].strip("/,)\n") for c in completion.choices]
    assert words == ["No", "Yes", "No", "No"]
    assert [c.start for c in completion.choices] == [0, text.index("Yes"), text.index("/No") + 1, end - 2]
    num_tokens = len(byte_tokenizer.encode(text[:end]))
    assert completion.num_tokens == num_tokens
    # Position p: -p for each variant of Yes (2 variants of equal weight), -2p - 1 for each of No (2): p(yes) = softmax.
    position = num_tokens - 1
    verdict, choice = read_verdict(completion.text, FORMAT, completion.choices) or (None, None)
    assert verdict == Verdict(False, end - 2, end)
    assert choice is not None
    assert choice.logprob_yes - choice.logprob_no == pytest.approx(-position - (-2 * position - 1))
    assert completion.num_prompt_tokens == len(byte_tokenizer.encode("Judge."))
    assert completion.num_cached_prompt_tokens == 16
    # The sample was given up as soon as the verdict was sure: at "N", two tokens on, and what came with it.
    assert engine.closed
    assert engine.num_sent < num_tokens + 2 + 7


def test_what_may_follow_is_listed_by_its_text(byte_tokenizer: Any) -> None:
    async def run() -> dict[str, float]:
        return await FakeVLLM(byte_tokenizer, [], [], None).next_tokens(raw("Judge."), "It is")

    assert asyncio.run(run()) == pytest.approx({" Yes": 0.5, " No": 0.125, "!": 0.25})


def test_the_token_that_ends_the_sequence_is_counted_and_is_no_text(byte_tokenizer: Any) -> None:
    for end in (byte_tokenizer.eos_token_id, byte_tokenizer.encode("!")[0]):
        tokens = [*byte_tokenizer.encode("Fine"), end]
        completion, _ = complete(byte_tokenizer, tokens, [2, 3], "stop")
        assert (completion.text, completion.num_tokens, completion.finish_reason) == ("Fine", 5, "stop")
        assert completion.ended


def test_the_thinking_that_the_prompt_opens_is_part_of_the_text(byte_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(byte_tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ '<think>\\n\\n' }}"
    prompt = Prompt((Message("user", "Judge."),))

    def complete_chat(text: str, prompt: Prompt, **options: Any) -> Completion:
        async def run() -> Completion:
            engine = FakeVLLM(tokenizer, tokenizer.encode(text), [3] * 99, "length")
            return await engine.generate(prompt, replace(SAMPLING, **options))

        return asyncio.run(run())

    whole = complete_chat("2 Yes. No, and\n\nNo", prompt)
    assert whole.text == "<think>\n\n2 Yes. No, and\n\nNo"
    assert [whole.text[choice.start :][:3].strip(". ,") for choice in whole.choices] == ["Yes", "No", "No"]
    assert whole.num_tokens == len(tokenizer.encode("2 Yes. No, and\n\nNo"))
    # No stop string is found in the opening, or across its end.
    stopped = complete_chat("\n2 Yes. No, and\n\nNo", prompt, stop=("\n\n",))
    assert (stopped.text, stopped.finish_reason) == ("<think>\n\n\n2 Yes. No, and", "stop")
    # A reply that is begun has it already.
    assert complete_chat("2", replace(prompt, reply="So:")).text == "2"


def test_a_verdict_at_the_very_end_is_read(byte_tokenizer: Any) -> None:
    tokens = byte_tokenizer.encode(f"{MARKER} Yes")
    completion, _ = complete(byte_tokenizer, tokens, [1] * 99, "length")
    assert (completion.text, completion.finish_reason, completion.ended) == (f"{MARKER} Yes", "length", False)
    found = read_verdict(completion.text, FORMAT, completion.choices)
    assert found is not None
    assert found[1] is not None


def test_choices_after_a_stop_string_are_dropped(byte_tokenizer: Any) -> None:
    tokens = byte_tokenizer.encode("A No.END Yes")
    completion, _ = complete(byte_tokenizer, tokens, [99], None, replace(SAMPLING, stop=("END",)))
    assert (completion.text, completion.finish_reason, completion.ended) == ("A No.", "stop", False)
    assert [choice.start for choice in completion.choices] == [2]


def test_without_a_verdict_format_nothing_is_asked_of_the_probabilities(byte_tokenizer: Any) -> None:
    tokens = byte_tokenizer.encode(f"{MARKER} Yes! Then more.")
    completion, _ = complete(byte_tokenizer, tokens, [5] * 99, "length", Sampling())
    assert (completion.text, completion.choices, completion.finish_reason) == (
        f"{MARKER} Yes! Then more.",
        (),
        "length",
    )


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_a_sample_that_vllm_gave_up_is_no_analysis(byte_tokenizer: Any, reason: str | None) -> None:
    with pytest.raises(EngineUnavailable, match="gave up"):
        complete(byte_tokenizer, byte_tokenizer.encode("Half an anal"), [99], reason)


def test_it_belongs_to_one_event_loop(byte_tokenizer: Any) -> None:
    async def make() -> FakeVLLM:
        return FakeVLLM(byte_tokenizer, [], [], "stop")

    engine = asyncio.run(make())
    with pytest.raises(EngineError, match="another event loop"):
        asyncio.run(engine.generate(raw("Judge."), SAMPLING))


# --- Without vLLM ----------------------------------------------------------------------------------------------------


def test_the_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, rprm.engines.vllm\n"
        "print(sorted({'vllm', 'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_is_an_engine_and_takes_typed_options() -> None:
    engine = load_engine(
        "vllm:some/model?tensor_parallel_size=2&gpu_memory_utilization=0.8&enforce_eager=true&dtype=float32&concurrency=64"
    )
    assert isinstance(engine, VLLMEngine)
    assert isinstance(engine, Engine)
    assert engine.target == "some/model"
    assert engine.concurrency == 64
    arguments = engine.arguments
    assert (arguments["tensor_parallel_size"], arguments["gpu_memory_utilization"]) == (2, 0.8)
    assert (arguments["enforce_eager"], arguments["dtype"], arguments["max_num_seqs"]) == (True, "float32", 64)


@pytest.mark.parametrize("option", ["tensor_parallel=2", "tensor_parallel_size=two", "dtype=int3", "concurrency=0"])
def test_options_that_do_not_fit_are_refused(option: str) -> None:
    with pytest.raises(EngineError, match=option.split("=")[0]):
        load_engine(f"vllm:some/model?{option}")


def test_before_its_start_it_says_so() -> None:
    with pytest.raises(EngineError, match="start"):
        asyncio.run(VLLMEngine("./model").generate(raw("Judge."), SAMPLING))


def start(engine: VLLMEngine) -> None:
    asyncio.run(engine.start())


@pytest.fixture
def unimported() -> Iterator[None]:
    """As if vLLM had not been imported yet; what the test imports in its place is forgotten."""

    def pop() -> dict[str, Any]:
        names = [name for name in sys.modules if name.split(".")[0] == "vllm"]
        return {name: sys.modules.pop(name) for name in names}

    modules = pop()
    yield
    pop()
    sys.modules.update(modules)


@pytest.mark.usefixtures("unimported")
def test_a_missing_vllm_is_told_with_its_fix() -> None:
    sys.modules["vllm"] = None  # type: ignore[assignment]
    with pytest.raises(EngineError, match=r'pip install "\.\[vllm\]"'):
        start(VLLMEngine("./model"))


@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("RuntimeError('operator torchvision::nms does not exist')", "pip uninstall torchvision torchaudio torchcodec"),
        (
            "OSError('libcudart.so.13: cannot open shared object file')",
            "pip uninstall torchvision torchaudio torchcodec",
        ),
        ("ModuleNotFoundError(\"No module named 'msgspec'\", name='msgspec')", "does not import.*msgspec"),
    ],
)
def test_a_broken_vllm_is_told_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: str, message: str
) -> None:
    fake = tmp_path / "vllm"
    fake.mkdir()
    (fake / "__init__.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=message):
        start(VLLMEngine("./model"))


@pytest.mark.usefixtures("unimported")
def test_an_old_vllm_is_told_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "vllm"
    (fake / "v1" / "engine").mkdir(parents=True)
    (fake / "__init__.py").write_text(
        "__version__ = '0.11.0'\nclass SamplingParams:\n    __struct_fields__ = ('seed',)\n"
    )
    for name in ("exceptions", "v1/__init__", "v1/engine/__init__", "v1/engine/async_llm"):
        (fake / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"0\.11\.0 is too old"):
        start(VLLMEngine("./model"))


@pytest.mark.parametrize(
    ("config", "room"),
    [({"r": 8}, 8), ({"r": 9}, 16), ({"r": 4, "rank_pattern": {"q_proj": 40}}, 64), ({"r": 512}, 512)],
)
def test_room_for_an_adapter(tmp_path: Path, config: dict[str, Any], room: int) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert lora_rank(tmp_path) == room


@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"r": "many"}', '{"r": 513}'])
def test_what_is_no_adapter_is_told_before_anything_is_loaded(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(EngineError, match=tmp_path.name):
        start(VLLMEngine("./model", adapter=str(tmp_path)))


# --- A real model on vLLM --------------------------------------------------------------------------------------------

FEW_SHOT = """\
Problem: 2 + 3
Step: 2 + 3 = 5
Analysis: The sum of 2 and 3 is 5, and the step says 5.
Is the step correct (Yes/No)? Yes

Problem: 4 + 4
Step: 4 + 4 = 9
Analysis: The sum of 4 and 4 is 8, but the step says 9.
Is the step correct (Yes/No)? No

Problem: 1 + 6
Step: 1 + 6 = 7
Analysis: The sum of 1 and 6 is 7, and the step says 7.
Is the step correct (Yes/No)? Yes

Problem: {a} + {b}
Step: {a} + {b} = {c}
Analysis:"""


def judge_sum(a: int, b: int, c: int) -> Prompt:
    return raw(FEW_SHOT.format(a=a, b=b, c=c))


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct as a folder that vLLM loads."""
    for module in ("vllm", "gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; see docs/vllm.md")
    folder: Path = request.getfixturevalue("smollm2_folder")
    return folder


@dataclass
class Served:
    """A started engine and the event loop that it lives in."""

    engine: VLLMEngine
    runner: asyncio.Runner

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def generate(self, *requests: tuple[Prompt, Sampling]) -> list[Completion]:
        async def all_at_once() -> list[Completion]:
            return await asyncio.gather(*(self.engine.generate(*request) for request in requests))

        return self.run(all_at_once())

    @property
    def num_under_way(self) -> int:
        return int(self.engine._llm.output_processor.get_num_unfinished_requests())


def serve(spec: str) -> Iterator[Served]:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    engine = load_engine(spec)
    assert isinstance(engine, VLLMEngine)
    with asyncio.Runner() as runner:
        try:
            runner.run(engine.start())
            yield Served(engine, runner)
        finally:
            runner.run(engine.aclose())
            runner.run(engine.aclose())


@pytest.fixture(scope="module")
def served(smollm2: Path) -> Iterator[Served]:
    """One engine for all tests: loading takes up to a minute. float32, so that two ways to one figure must agree."""
    yield from serve(f"vllm:{smollm2}?dtype=float32&enforce_eager=true&max_model_len=2048&block_size=32&concurrency=8")


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
class TestOnVLLM:
    """In this order: the last test kills the engine."""

    def test_it_starts_once_and_tells_what_it_is(self, served: Served, smollm2: Path) -> None:
        info = served.run(served.engine.start())
        model = served.engine._llm
        assert served.run(served.engine.start()) is info
        assert served.engine._llm is model
        assert (info.kind, info.model, info.context_length) == ("vllm", str(smollm2), 2048)
        assert info.revision is not None
        assert info.revision.startswith("sha256:")
        assert info.details["dtype"] == "float32"
        assert info.shares_prompts

    def test_p_yes_of_the_generation_equals_a_second_forward_pass(self, served: Served) -> None:
        """The figure of docs/vllm.md; `-s` shows it."""
        sums = [(3, 4, 7), (6, 2, 8), (5, 5, 11), (9, 1, 10), (7, 6, 12), (8, 8, 16)]
        sampling = Sampling(temperature=0.5, top_p=0.95, max_tokens=64, verdict=FORMAT)
        requests = [(judge_sum(*s), replace(sampling, seed=10 * i + j)) for i, s in enumerate(sums) for j in range(4)]
        started = time.perf_counter()
        completions = served.generate(*requests)
        elapsed = time.perf_counter() - started
        p_yes, differences, num_ended = [], [], 0
        for (prompt, _), completion in zip(requests, completions, strict=True):
            for choice in completion.choices:
                assert completion.text[choice.start :].casefold().startswith(("yes", "no"))
            if (found := read_verdict(completion.text, FORMAT, completion.choices)) is None:
                continue
            verdict, choice = found
            assert choice is not None
            assert choice.start == verdict.start
            # Nothing after the verdict was kept or counted, unless the model itself ended there.
            if completion.finish_reason != "stop":
                assert completion.finish_reason == "verdict"
                assert len(completion.text) == verdict.end
                assert completion.num_tokens < 64
                num_ended += 1
            before = completion.text[: verdict.start].removesuffix(" ")
            # Or the second pass would find the states that the first left behind, and compare them with themselves.
            assert served.run(served.engine._llm.reset_prefix_cache())
            second = served.run(served.engine.choose(prompt, before, FORMAT))
            assert second.start == len(before)
            p_yes.append(choice.p_yes)
            differences.append(abs(choice.p_yes - second.p_yes))
        num_tokens = sum(completion.num_tokens for completion in completions)
        print(
            f"\n{len(p_yes)} verdicts in {len(completions)} samples, P(Yes) from {min(p_yes):.3f} to {max(p_yes):.3f}; "
            f"largest difference to a second pass {max(differences):.1e}; {num_tokens / elapsed:.0f} tokens/s"
        )
        assert len(differences) >= 8
        assert num_ended >= 4
        assert max(differences) < 1e-3
        assert served.num_under_way == 0

    def test_a_seed_gives_one_sample_alone_and_in_a_batch(self, served: Served) -> None:
        # Prompts of about 700 tokens: in pieces, they would end the engine on a CPU.
        prompt = raw("".join(f"Line {i} of the story. " for i in range(100)) + "Then")
        sampling = Sampling(max_tokens=16, top_p=0.9)
        requests = [(prompt, replace(sampling, seed=seed)) for seed in range(4)]
        (alone,) = served.generate(requests[2])
        batch = served.generate(*requests, (judge_sum(1, 1, 2), sampling), *requests)
        assert [c.text for c in batch[:4]] == [c.text for c in batch[5:]]
        assert alone.text == batch[2].text
        assert len({completion.text for completion in batch[:4]}) == 4

    def test_the_next_step_of_a_problem_finds_the_computation_of_the_last(self, served: Served) -> None:
        steps = [f"Step {i}: add {i} to {7 * i} and keep the sum in mind for what comes next." for i in range(12)]
        first, second = (raw("A problem of sums.\n" + "\n".join(steps[:n]) + "\nAnalysis:") for n in (11, 12))
        sampling = Sampling(max_tokens=4)
        ids = [encode_prompt(served.engine._tokenizer, prompt) for prompt in (first, second)]
        num_common = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
        (cold,), (warm,) = served.generate((first, sampling)), served.generate((second, sampling))
        print(f"\n{warm.num_cached_prompt_tokens} of {warm.num_prompt_tokens} prompt tokens from the cache")
        assert cold.num_cached_prompt_tokens == 0
        assert warm.num_prompt_tokens == len(ids[1])
        # Whole blocks of 32 tokens are shared.
        assert warm.num_cached_prompt_tokens == num_common // 32 * 32 > 200

    def test_stop_strings_are_cut_off(self, served: Served) -> None:
        sampling = Sampling(temperature=0.0, max_tokens=40)
        (whole,) = served.generate((judge_sum(3, 4, 7), sampling))
        (cut,) = served.generate((judge_sum(3, 4, 7), replace(sampling, stop=("zebra", "\n"))))
        assert "\n" in whole.text
        assert (cut.text, cut.finish_reason, cut.ended) == (whole.text[: whole.text.index("\n")], "stop", False)
        assert cut.num_tokens < whole.num_tokens

    def test_a_reply_is_written_step_by_step_as_in_one_go(self, served: Served) -> None:
        prompt = Prompt((Message("user", "Give me three colours, each in a paragraph of its own."),))
        sampling = Sampling(temperature=0.0, max_tokens=200)
        (whole,) = served.generate((prompt, sampling))
        steps: list[Completion] = []
        while not steps or not steps[-1].ended:
            begun = replace(prompt, reply="".join(step.text + "\n\n" for step in steps))
            steps += served.generate((begun, replace(sampling, stop=("\n\n",))))
        assert whole.ended
        assert len(steps) >= 2
        assert "\n\n".join(step.text for step in steps) == whole.text
        # In `choose` a text follows the reply.
        begun = replace(prompt, reply=steps[0].text)
        choices = [served.run(served.engine.choose(begun, " Right?", FORMAT))]
        choices.append(served.run(served.engine.choose(prompt, f"{begun.reply} Right?", FORMAT)))
        assert choices[0].p_yes == pytest.approx(choices[1].p_yes, abs=1e-3)
        assert choices[0].start == len(" Right?")

    def test_too_long_a_request_is_refused_with_the_lengths(self, served: Served) -> None:
        prompt = judge_sum(3, 4, 7)
        length = len(encode_prompt(served.engine._tokenizer, prompt))
        fits = Sampling(max_tokens=2048 - length, stop=("\n",), seed=1)
        assert served.generate((prompt, fits))[0].finish_reason == "stop"
        # The context ends it where `max_tokens` does not fit.
        long = raw("word " * (2048 - 80))
        (cut,) = served.generate((long, Sampling(max_tokens=4096, seed=1)))
        assert cut.num_prompt_tokens is not None
        assert cut.finish_reason != "length" or cut.num_tokens == 2048 - cut.num_prompt_tokens
        with pytest.raises(RequestRefused, match=r"leaves \d+ of the context length of 2048"):
            served.generate((raw("word " * 2040), Sampling(max_tokens=4096)))
        with pytest.raises(RequestRefused, match="context length of 2048"):
            served.run(served.engine.choose(prompt, "word " * 2100, FORMAT))

    def test_parameters_that_vllm_refuses_cost_the_request_alone(self, served: Served) -> None:
        beyond = Sampling()
        object.__setattr__(beyond, "temperature", -1.0)  # which `Sampling` itself would refuse
        with pytest.raises(RequestRefused, match="temperature"):
            served.generate((judge_sum(3, 4, 7), beyond))
        assert served.generate((judge_sum(3, 4, 7), Sampling(max_tokens=2)))[0].num_tokens == 2

    def test_a_cancelled_sample_frees_its_place(self, served: Served) -> None:
        async def cancel_at_every_stage() -> None:
            sampling = Sampling(max_tokens=1500, temperature=1.0)
            # As many as the batch holds, each given up at another moment: before it is handed over, in the queue,
            # while the prompt is computed, while tokens arrive.
            tasks = [
                asyncio.create_task(served.engine.generate(judge_sum(i, i, i), replace(sampling, seed=i)))
                for i in range(8)
            ]
            for delay, task in zip((0, 0, 0, 0.001, 0.01, 0.1, 0.5, 1.0), tasks, strict=True):
                await asyncio.sleep(delay)
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(end, asyncio.CancelledError) for end in ends) >= 5
            assert served.num_under_way == 0
            # The batch holds 8: this would wait for minutes behind samples of 1,500 tokens that still ran.
            await asyncio.wait_for(served.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=2)), timeout=60)

        served.run(cancel_at_every_stage())

    def test_a_sample_cancelled_while_it_is_handed_over_is_not_left_behind(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        core = served.engine._llm.engine_core
        hand_over = core.add_request_async

        async def hand_over_and_dawdle(request: Any) -> None:
            await hand_over(request)
            await asyncio.sleep(60)

        async def cancel_midway() -> None:
            monkeypatch.setattr(core, "add_request_async", hand_over_and_dawdle)
            task = asyncio.create_task(served.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=1500)))
            while served.num_under_way == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert served.num_under_way == 0

        served.run(cancel_midway())

    def test_it_is_of_no_use_in_another_event_loop(self, served: Served) -> None:
        with pytest.raises(EngineError, match="another event loop"):
            asyncio.run(served.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=2)))

    def test_its_death_is_told(self, served: Served) -> None:
        async def kill_midway() -> None:
            task = asyncio.create_task(served.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=1500)))
            while served.num_under_way == 0:
                await asyncio.sleep(0.01)
            for process in multiprocessing.active_children():
                process.kill()
            with pytest.raises(EngineUnavailable, match="died"):
                await asyncio.wait_for(task, timeout=60)
            with pytest.raises(EngineUnavailable, match="died"):
                await served.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=2))

        served.run(kill_midway())


@dataclass
class Adapted(Served):
    """An engine with an adapter, and the model that the adapter makes of its base."""

    adapter: Path
    merged: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def adapted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    """A LoRA adapter on vLLM, and the same weights added up by hand for transformers."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    rank, alpha, weights = 12, 24, {}
    for layer in range(0, 30, 3):
        projection = model.model.layers[layer].self_attn.q_proj
        a = torch.randn(rank, projection.in_features, generator=generator) * 0.1
        b = torch.randn(projection.out_features, rank, generator=generator) * 0.1
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        projection.weight.data += alpha / rank * b @ a
    save_file(weights, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj"], "bias": "none"})
    )
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    spec = f"vllm:{smollm2}?dtype=float32&enforce_eager=true&max_model_len=2048&concurrency=4&adapter={adapter}"
    for served in serve(spec):
        yield Adapted(served.engine, served.runner, adapter, model, tokenizer)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
class TestWithAnAdapter:
    """In this order: the last test closes the engine."""

    def test_the_second_pass_gives_what_the_added_weights_give(self, adapted: Adapted) -> None:
        import torch

        prompt, text = judge_sum(3, 4, 7), " The sum of 3 and 4 is 7.\nIs the step correct (Yes/No)?"
        with torch.no_grad():
            ids = torch.tensor([adapted.tokenizer.encode(prompt.text + text)])
            logprobs = adapted.merged(ids).logits[0, -1].log_softmax(-1)
        choice = adapted.run(adapted.engine.choose(prompt, text, FORMAT))
        tokens = VerdictTokens.of(adapted.tokenizer, FORMAT)
        assert choice.logprob_yes == pytest.approx(logprobs[list(tokens.yes)].logsumexp(0).item(), abs=1e-3)
        assert choice.logprob_no == pytest.approx(logprobs[list(tokens.no)].logsumexp(0).item(), abs=1e-3)

    def test_it_names_the_adapter(self, adapted: Adapted) -> None:
        info = adapted.run(adapted.engine.start())
        assert info.details["adapter"] == str(adapted.adapter)
        assert str(info.revision).count("sha256:") == 2

    def test_closing_ends_what_is_under_way(self, adapted: Adapted) -> None:
        async def close_midway() -> None:
            task = asyncio.create_task(adapted.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=1500)))
            while adapted.num_under_way == 0:
                await asyncio.sleep(0.01)
            await adapted.engine.aclose()
            with pytest.raises(EngineUnavailable, match="gave up"):
                await asyncio.wait_for(task, timeout=60)
            with pytest.raises(EngineError, match="not running"):
                await adapted.engine.generate(judge_sum(1, 2, 3), Sampling(max_tokens=2))

        adapted.run(close_midway())
