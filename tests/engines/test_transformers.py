"""The transformers engine: one batch that rows join and leave, without a trace in their results."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from rprm.engines import Completion, Sampling, load_engine
from rprm.engines.tokens import VerdictTokens, encode_prompt
from rprm.engines.transformers import TransformersEngine
from rprm.engines.worker import sample
from rprm.errors import EngineError, EngineUnavailable, RequestRefused
from rprm.prompts.template import Message, Prompt
from rprm.verdict import VerdictFormat

VERDICT = VerdictFormat()


def chat(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def raw(text: str) -> Prompt:
    return Prompt((Message("user", text),), chat=False)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(folder: Path, work: Any, **options: Any) -> Any:
    async def main() -> Any:
        engine = TransformersEngine(str(folder), **options)
        await engine.start()
        try:
            return await work(engine)
        finally:
            await engine.aclose()

    return asyncio.run(main())


def test_info(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> Any:
        return await engine.start()

    info = run(tiny_model, work)
    assert info.kind == "transformers"
    assert info.context_length == 512
    assert info.revision.startswith("sha256:")
    assert info.details == {"dtype": "float32", "device": "cpu"}


def test_greedy_equals_generate(tiny_model: Path) -> None:
    """Against transformers' own generation, one prompt at a time."""
    texts = ["a", "hello world " * 5, "Is 1 + 1 = 2?", "é😀" * 10, "x" * 200]

    async def work(engine: TransformersEngine) -> tuple[list[Completion], list[str]]:
        ours = await asyncio.gather(*(engine.generate(chat(text), Sampling(0.0, max_tokens=40)) for text in texts))
        theirs = []
        for text in texts:
            ids = torch.tensor([encode_prompt(engine.tokenizer, chat(text))])
            output = engine.model.generate(ids, max_new_tokens=40, do_sample=False)
            theirs.append(engine.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        return ours, theirs

    ours, theirs = run(tiny_model, work)
    # Bytes at the end that are no whole character are no text.
    assert [completion.text.rstrip("\ufffd") for completion in ours] == [text.rstrip("\ufffd") for text in theirs]


@pytest.mark.slow
def test_a_sample_does_not_depend_on_what_runs_beside_it(tiny_model: Path) -> None:
    jobs = [
        (raw("ab" * (7 * number % 50) + "c"), Sampling(1.0, 0.9 if number % 2 else 1.0, 5 + number, seed=number // 2))
        for number in range(24)
    ]

    async def alone(engine: TransformersEngine) -> list[Completion]:
        return [await engine.generate(prompt, sampling) for prompt, sampling in jobs]

    async def staggered(engine: TransformersEngine) -> list[Completion]:
        async def later(number: int, prompt: Prompt, sampling: Sampling) -> Completion:
            await asyncio.sleep(0.002 * (number * 5 % 24))
            return await engine.generate(prompt, sampling)

        return list(await asyncio.gather(*(later(number, *job) for number, job in enumerate(jobs))))

    expected = run(tiny_model, alone, max_rows=1, prefix_tokens=0)
    for max_rows in (2, 5, 32):
        found = run(tiny_model, staggered, max_rows=max_rows)
        assert [completion.text for completion in found] == [completion.text for completion in expected]
        assert [completion.num_tokens for completion in found] == [completion.num_tokens for completion in expected]


def test_seeds(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> list[str]:
        seeds = (1, 1, 2, None, None)
        done = await asyncio.gather(
            *(engine.generate(raw("abc"), Sampling(1.5, seed=seed, max_tokens=30)) for seed in seeds)
        )
        return [completion.text for completion in done]

    one, again, other, free, freer = run(tiny_model, work)
    assert one == again
    assert len({one, other, free, freer}) == 4


def test_prompts_are_computed_once_and_prefixes_shared(tiny_model: Path) -> None:
    start = "The same beginning, word for word. " * 3

    async def work(engine: TransformersEngine) -> list[Completion]:
        sampling = Sampling(1.0, max_tokens=3, seed=1)
        together = await asyncio.gather(*(engine.generate(raw(start + "A"), sampling) for _ in range(3)))
        return [*together, await engine.generate(raw(start + "B"), sampling), await engine.generate(raw("Z"), sampling)]

    first, second, third, longer, other = run(tiny_model, work)
    num_tokens = len(start) + 1
    assert first.num_prompt_tokens == num_tokens
    assert (first.num_cached_prompt_tokens, second.num_cached_prompt_tokens) == (0, num_tokens)
    assert third.num_cached_prompt_tokens == num_tokens
    assert longer.num_cached_prompt_tokens == len(start)
    assert other.num_cached_prompt_tokens == 0
    assert first.text == second.text == third.text


def test_a_begun_reply_is_continued(tiny_model: Path) -> None:
    """With the rest of what the model wrote greedily."""

    async def work(engine: TransformersEngine) -> None:
        _Spelling(engine)
        for prompt in (chat("Tell."), raw("Once")):
            whole = await engine.generate(prompt, Sampling(0.0, max_tokens=16))
            ids = engine.tokenizer.encode(whole.text, add_special_tokens=False)
            assert len(ids) == 16
            for count in (1, 8, 15):
                begun = replace(prompt, reply=engine.tokenizer.decode(ids[:count]))
                rest = await engine.generate(begun, Sampling(0.0, max_tokens=16 - count))
                assert begun.reply + rest.text == whole.text
                # In `choose` a text follows the reply.
                choices = [await engine.choose(begun, " So:", VERDICT)]
                choices.append(await engine.choose(prompt, f"{begun.reply} So:", VERDICT))
                assert choices[0].p_yes == choices[1].p_yes
                assert choices[0].start == len(" So:")

    run(tiny_model, work)


def test_the_next_step_finds_what_was_computed_for_the_last(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> list[Completion]:
        sampling = Sampling(1.0, max_tokens=3, seed=1)
        replies = ("", "One.\n\n", "One.\n\nTwo.\n\n")
        return [await engine.generate(replace(chat("Count."), reply=reply), sampling) for reply in replies]

    first, second, third = run(tiny_model, work)
    assert second.num_cached_prompt_tokens == first.num_prompt_tokens
    # "One.", two line ends, "Two.", two line ends: a token each character.
    assert second.num_prompt_tokens == first.num_prompt_tokens + 6
    assert third.num_cached_prompt_tokens == second.num_prompt_tokens
    assert third.num_prompt_tokens == second.num_prompt_tokens + 6


REPLIES = (
    "The sum is 4",
    "  Two spaces",
    "\n\nA line",
    "ends in a space ",
    "ends in lines\n\n",
    "One.\n\nTwo.\n",
    "\t\n ",
    "é😀\n",
)


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_follows_the_prompt_to_the_letter(tiny_model: Path, reply: str, template: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    if not template:
        tokenizer.chat_template = None
    for prompt in (chat("Add 2 and 2."), raw("2 + 2\n\n")):
        alone = encode_prompt(tokenizer, prompt)
        begun = encode_prompt(tokenizer, replace(prompt, reply=reply))
        assert begun[: len(alone)] == alone
        assert tokenizer.decode(begun[len(alone) :]) == reply
        assert begun == encode_prompt(tokenizer, prompt, reply)
        assert begun == encode_prompt(tokenizer, replace(prompt, reply=reply[:3]), reply[3:])


def test_shared_prefixes_change_no_choice(tiny_model: Path) -> None:
    texts = ["Once upon a time " * 4 + tail for tail in ("", "a", "a cat", "b" * 60)]

    async def work(engine: TransformersEngine) -> list[float]:
        return [(await engine.choose(raw(text), "so:", VERDICT)).p_yes for text in texts]

    shared = run(tiny_model, work)
    fresh = run(tiny_model, work, prefix_tokens=0)
    assert shared == pytest.approx(fresh, abs=1e-5)


class _Spelling:
    """The model, but for tokens that its tokenizer would read back as others: text and tokens correspond one to one."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.inner = engine.model
        kept = [engine.tokenizer.encode(text)[0] for text in "abcdfghijklmpqrtuvw\n"]
        kept += [engine.tokenizer.encode(word)[0] for word in ("Yes", "No", " Yes", " No")]
        self.dropped = sorted(set(range(len(engine.tokenizer))) - set(kept))
        engine._worker.model = self  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, **arguments: Any) -> Any:
        output = self.inner(**arguments)
        output.logits[..., self.dropped] = -math.inf
        return output


def test_p_yes_of_the_generation_equals_a_second_pass(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> list[tuple[float, float]]:
        _Spelling(engine)
        prompts = [raw(f"{number} cats") for number in range(12)]
        done = await asyncio.gather(
            *(
                engine.generate(prompt, Sampling(3.0, max_tokens=40 + number, seed=number, verdict=VERDICT))
                for number, prompt in enumerate(prompts)
            )
        )
        pairs = []
        for prompt, completion in zip(prompts, done, strict=True):
            for choice in completion.choices:
                again = await engine.choose(prompt, completion.text[: choice.start].removesuffix(" "), VERDICT)
                pairs.append((choice.p_yes, again.p_yes))
        return pairs

    pairs = run(tiny_model, work)
    assert len(pairs) >= 20
    assert max(abs(one - other) for one, other in pairs) < 1e-4
    assert len({round(one, 2) for one, _ in pairs}) > 5


class _Forced:
    """A model that writes a given text, whatever it reads, with P(Yes) = 0.8 everywhere among Yes and No."""

    def __init__(self, engine: TransformersEngine, text: str) -> None:
        self.inner = engine.model
        self.script = engine.tokenizer.encode(text, add_special_tokens=False)
        self.tokens = VerdictTokens.of(engine.tokenizer, VERDICT)
        self.num_prompt = 0
        engine._worker.model = self  # type: ignore[union-attr]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, **arguments: Any) -> Any:
        output = self.inner(**arguments)
        if arguments["input_ids"].shape[1] > 1:
            self.num_prompt = int(arguments["position_ids"][0, -1]) + 1
        for row, position in enumerate(arguments["position_ids"][:, -1].tolist()):
            place = position + 1 - self.num_prompt
            output.logits[row, -1] = -30.0
            output.logits[row, -1, list(self.tokens.yes)] = math.log(0.8 / len(self.tokens.yes)) - 10
            output.logits[row, -1, list(self.tokens.no)] = math.log(0.2 / len(self.tokens.no)) - 10
            output.logits[row, -1, self.script[place] if place < len(self.script) else 0] = 0.0
        return output


@pytest.mark.parametrize(
    ("script", "text", "reason"),
    [
        # Ends after the verdict: what follows is never read.
        ("Fine. Is the step correct (Yes/No)? No, and so on.", "Fine. Is the step correct (Yes/No)? No", "verdict"),
        # "No" begins a longer word: the text goes on to a real verdict.
        (
            "Is the step correct (Yes/No)? Nothing. Is the step correct (Yes/No)? Yes!",
            "Is the step correct (Yes/No)? Nothing. Is the step correct (Yes/No)? Yes",
            "verdict",
        ),
        # The question repeated.
        ("Is the step correct (Yes/No)? Yes/No", "Is the step correct (Yes/No)? Yes/No", "stop"),
        # Bytes of more than one character before the verdict.
        ("é😀 Is the step correct (Yes/No)? Yes", "é😀 Is the step correct (Yes/No)? Yes", "stop"),
    ],
)
def test_verdicts_end_the_analysis(tiny_model: Path, script: str, text: str, reason: str) -> None:
    async def work(engine: TransformersEngine) -> Completion:
        _Forced(engine, script)
        return await engine.generate(raw("qq"), Sampling(0.0, max_tokens=300, verdict=VERDICT))

    completion = run(tiny_model, work)
    assert completion.text == text
    assert completion.finish_reason == reason
    assert completion.ended == (reason == "stop")
    verdict = VERDICT.find(text)
    if verdict is not None:
        choice = next(choice for choice in completion.choices if choice.start == verdict.start)
        assert completion.choices[-1] == choice
        # The written token has logit 0; of the other answer's mass nothing changes: still an honest softmax.
        assert (choice.p_yes > 0.5) == verdict.yes


def test_stop_strings_and_lengths(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> list[Completion]:
        _Forced(engine, "one two\n\nthree")
        return [
            await engine.generate(raw("qq"), Sampling(0.0, max_tokens=50, stop=("\n\n",))),
            await engine.generate(raw("qq"), Sampling(0.0, max_tokens=3)),
            await engine.generate(raw("qq"), Sampling(0.0, max_tokens=50)),
        ]

    stopped, cut, whole = run(tiny_model, work)
    assert (stopped.text, stopped.finish_reason) == ("one two", "stop")
    # Only the last was ended by the model itself.
    assert (stopped.ended, cut.ended, whole.ended) == (False, False, True)
    assert (cut.text, cut.finish_reason, cut.num_tokens) == ("one", "length", 3)
    # 14 characters and the end token.
    assert (whole.text, whole.finish_reason, whole.num_tokens) == ("one two\n\nthree", "stop", 15)


def test_too_long_is_refused_with_the_lengths(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        with pytest.raises(RequestRefused, match=r"has 449 tokens, which leaves 63 .* of 512"):
            await engine.generate(raw("x" * 449), Sampling(max_tokens=4096))
        with pytest.raises(RequestRefused, match=r"has 600 tokens, which leaves 0 "):
            await engine.generate(raw("x" * 600), Sampling(max_tokens=1))
        with pytest.raises(RequestRefused, match="empty"):
            await engine.generate(raw(""), Sampling(max_tokens=2))
        with pytest.raises(RequestRefused, match="context length of 512"):
            await engine.choose(raw("x" * 512), "", VERDICT)
        # Just fits.
        assert (await engine.choose(raw("x" * 511), "", VERDICT)).start == 0

    run(tiny_model, work)


def test_the_end_of_the_context_ends_the_completion(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> list[Completion]:
        _Forced(engine, "y" * 600)
        return [
            await engine.generate(raw("x" * length), Sampling(0.0, max_tokens=max_tokens))
            for length, max_tokens in ((448, 4096), (312, 200), (312, 201))
        ]

    for completion, num_tokens in zip(run(tiny_model, work), (64, 200, 200), strict=True):
        assert (completion.num_tokens, completion.finish_reason, completion.ended) == (num_tokens, "length", False)
        assert completion.text == "y" * num_tokens


def test_a_context_beyond_the_models_own(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> Completion:
        _Forced(engine, "y" * 600)
        return await engine.generate(raw("x" * 448), Sampling(0.0, max_tokens=4096))

    # Rotary positions have no end.
    assert run(tiny_model, work, context_length=600).num_tokens == 600 - 448


def test_the_thinking_that_the_prompt_opens_is_part_of_the_text(tiny_model: Path) -> None:
    script = "2 Yes. No, and\n\nNo"

    async def work(engine: TransformersEngine) -> list[Completion]:
        engine.tokenizer.chat_template += "{{ '<think>\\n\\n' }}"
        _Forced(engine, script)
        sampling = Sampling(0.0, max_tokens=200, verdict=VERDICT)
        return [
            await engine.generate(chat("qq"), sampling),
            # No stop string is found in the opening, or across its end.
            await engine.generate(chat("qq"), replace(sampling, stop=("\n\n",))),
            await engine.generate(chat("qq"), replace(sampling, max_tokens=1)),
            # A reply that is begun has it already.
            await engine.generate(replace(chat("qq"), reply="So:"), sampling),
        ]

    whole, stopped, cut, begun = run(tiny_model, work)
    opening = "<think>\n\n"
    assert whole.text == opening + script
    assert [whole.text[choice.start :][:3].strip(". ,") for choice in whole.choices] == ["Yes", "No", "No"]
    assert stopped.text == f"{opening}2 Yes. No, and"
    assert cut.text == f"{opening}2"
    assert begun.text == script


class _AppleLogits(torch.Tensor):
    """Logits on a device of Apple's, as far as they tell: `mps` has no float64."""

    @property
    def device(self) -> torch.device:
        return torch.device("mps")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.double or any(value is torch.float64 for value in (*args, *kwargs.values())):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return super().__torch_function__(func, types, args, kwargs)


def test_apples_gpus_have_no_float64(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> tuple[Completion, float]:
        sampling = Sampling(3.0, 0.9, max_tokens=60, seed=1, verdict=VERDICT)
        completion = await engine.generate(raw("abc"), sampling)
        return completion, (await engine.choose(raw("abc"), "So:", VERDICT)).p_yes

    async def on_apple(engine: TransformersEngine) -> tuple[Completion, float]:
        inner = engine.model

        class Apple:
            device, forward = inner.device, inner.forward

            def __call__(self, **arguments: Any) -> Any:
                output = inner(**arguments)
                output.logits = output.logits.as_subclass(_AppleLogits)
                with pytest.raises(TypeError, match="float64"):
                    output.logits.double()
                return output

        engine._worker.model = Apple()  # type: ignore[union-attr]
        return await work(engine)

    assert run(tiny_model, on_apple) == run(tiny_model, work)


def test_a_model_that_calls_its_cache_by_the_new_name(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 warns of `past_key_values`, which here is an error."""
    from transformers import LlamaForCausalLM

    old = LlamaForCausalLM.forward

    async def work(engine: TransformersEngine) -> str:
        return (await engine.generate(raw("abc"), Sampling(0.0, max_tokens=8))).text

    def renamed(self: Any, input_ids: Any = None, cache: Any = None, **arguments: Any) -> Any:
        assert "past_key_values" not in arguments
        return old(self, input_ids=input_ids, past_key_values=cache, **arguments)

    expected = run(tiny_model, work)
    monkeypatch.setattr(LlamaForCausalLM, "forward", renamed)
    assert run(tiny_model, work) == expected


def test_cancelling_frees_the_row(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> int:
        _Forced(engine, "x" * 400)
        long = [asyncio.create_task(engine.generate(raw("aa"), Sampling(0.0, max_tokens=400))) for _ in range(4)]
        await asyncio.sleep(0.05)
        for task in long:
            task.cancel()
        # The only two rows are free again: this does not wait for 400 tokens of four others.
        done = await asyncio.wait_for(engine.generate(raw("bb"), Sampling(0.0, max_tokens=2)), 30)
        assert all(task.cancelled() for task in await _settle(long))
        return done.num_tokens

    assert run(tiny_model, work, max_rows=2) == 2


async def _settle(tasks: list[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    await asyncio.gather(*tasks, return_exceptions=True)
    return tasks


def test_a_failing_model_fails_every_request(tiny_model: Path) -> None:
    async def work(engine: TransformersEngine) -> list[Any]:
        class Broken:
            device = engine.model.device

            def __call__(self, **arguments: Any) -> Any:
                raise RuntimeError("no more")

        engine._worker.model = Broken()  # type: ignore[union-attr]
        requests = [engine.generate(raw("a"), Sampling(max_tokens=5)) for _ in range(3)]
        failures = await asyncio.gather(*requests, return_exceptions=True)
        late = await asyncio.gather(engine.generate(raw("a"), Sampling(max_tokens=5)), return_exceptions=True)
        return [*failures, *late]

    failures = run(tiny_model, work)
    assert all(isinstance(failure, EngineUnavailable) and "no more" in str(failure) for failure in failures)


def test_logits_that_are_no_numbers_cost_their_requests(tiny_model: Path, tmp_path: Path) -> None:
    """With one damaged embedding: those that read its token, in the prompt or in what the model wrote."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    bad = AutoTokenizer.from_pretrained(folder).encode("b")[0]

    async def work(engine: TransformersEngine) -> list[Any]:
        bias = torch.zeros(engine.model.config.vocab_size).index_fill(0, torch.tensor(bad), 1000.0)
        with torch.no_grad():
            engine.model.get_input_embeddings().weight[bad] = float("nan")
        # Always writes "b".
        engine.model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias)
        requests = [("ab", 1), ("a", 1), ("a", 2), ("c", 1)]
        return await asyncio.gather(
            *(engine.generate(raw(prompt), Sampling(0.0, max_tokens=tokens)) for prompt, tokens in requests),
            engine.choose(raw("ab"), "", VERDICT),
            engine.choose(raw("a"), "", VERDICT),
            return_exceptions=True,
        )

    in_prompt, first_token, second_token, other, chosen_after, chosen = run(folder, work)
    for refused in (in_prompt, second_token, chosen_after):
        assert isinstance(refused, RequestRefused)
        assert f"transformers:{folder}: the model's logits are no numbers (NaN)" in str(refused)
    assert (first_token.text, other.text) == ("b", "b")
    assert math.isfinite(chosen.logprob_yes)


def test_closing_ends_what_is_under_way(tiny_model: Path) -> None:
    async def main() -> None:
        engine = TransformersEngine(str(tiny_model))
        with pytest.raises(EngineError, match="not started"):
            await engine.generate(raw("a"), Sampling())
        await asyncio.gather(engine.start(), engine.start())
        _Forced(engine, "x" * 400)
        task = asyncio.create_task(engine.generate(raw("aa"), Sampling(0.0, max_tokens=400)))
        await asyncio.sleep(0.02)
        await engine.aclose()
        await engine.aclose()
        with pytest.raises(EngineUnavailable, match="closed"):
            await task

    asyncio.run(main())


def test_adapters_are_merged(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(ids).logits[0, -1].log_softmax(-1)

    async def work(engine: TransformersEngine) -> torch.Tensor:
        with torch.no_grad():
            return engine.model(ids).logits[0, -1].log_softmax(-1)

    by_option = run(tiny_model, work, adapter=str(tmp_path / "adapter"))
    # The adapter's folder alone names its base model.
    by_folder = run(tmp_path / "adapter", work)
    plain = run(tiny_model, work)
    assert torch.allclose(by_option, expected, atol=1e-4)
    assert torch.allclose(by_folder, expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("transformers:./nowhere", "no such folder or file"),
        ("transformers:./nowhere.gguf", "no such folder or file"),
        ("transformers:x?dtype=float33", "no torch dtype"),
        ("transformers:x?max_rows=0", "option max_rows='0'"),
        ("transformers:x?context_length=0", "option context_length='0'"),
        ("vllm:x?max_model_len=-1", "option max_model_len='-1'"),
        ("openai:x?context_length=0", "option context_length='0'"),
        ("scripted:?context_length=0", "option context_length='0'"),
        ("scripted:?lost=1.5", "option lost='1.5'"),
        ("transformers:", "say which model"),
        ("embedded?device=foo", "embedded.device=foo: device=foo cannot be used"),
        ("embedded:?num_threads=-1", "option num_threads='-1'"),
        ("scripted:?log=/nonexistent/x", "log=/nonexistent/x cannot be written"),
        ("openai:m@http://h/v1?max_retries=-1", r"openai:m@http://h/v1\?.*option max_retries='-1'"),
    ],
)
def test_what_cannot_be_loaded_is_said(spec: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        asyncio.run(load_engine(spec).start())


@dataclass
class _Drawing:
    sampling: Sampling
    generator: torch.Generator


def _drawings(sampling: Sampling, count: int) -> list[_Drawing]:
    return [_Drawing(sampling, torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_sampling_follows_temperature_and_top_p() -> None:
    # Probabilities 0.5, 0.3, 0.15, 0.05 at temperature 1.
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    count = 20_000

    def shares(sampling: Sampling) -> list[float]:
        drawn = Counter(sample(logits.expand(count, -1), _drawings(sampling, count)))
        return [drawn[token] / count for token in range(4)]

    # The standard deviation of a share is at most sqrt(0.25 / 20000) = 0.0035: 4 of them are 0.014.
    assert shares(Sampling(1.0, 1.0)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.014)
    # top_p = 0.75: {0.5, 0.3} is the smallest set that reaches it; 5/8 and 3/8.
    assert shares(Sampling(1.0, 0.75)) == pytest.approx([0.625, 0.375, 0.0, 0.0], abs=0.014)
    # Temperature 1/2 squares: 0.25, 0.09, 0.0225, 0.0025, of 0.365.
    assert shares(Sampling(0.5, 1.0)) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.014)
    assert shares(Sampling(0.0)) == [1.0, 0.0, 0.0, 0.0]
    # A nucleus smaller than the first token is that token.
    assert shares(Sampling(1.0, 0.01)) == [1.0, 0.0, 0.0, 0.0]


def test_sampling_a_wide_nucleus_sorts_everything() -> None:
    """Flat logits over 5,000 tokens: the nucleus holds more than the first guess of 256."""
    logits = torch.zeros(1, 5000)
    drawn = sample(logits.expand(500, -1), _drawings(Sampling(1.0, 0.9), 500))
    # Distinct tokens of 500 draws from 4,500: 4500 (1 - (1 - 1/4500)^500) = 473.
    assert 440 < len(set(drawn)) < 500


@pytest.mark.slow
class TestSmolLM2:
    """SmolLM2-135M-Instruct, from its package."""

    @pytest.mark.slow
    def test_p_yes_of_the_generation_equals_a_second_pass(self, smollm2_engine: TransformersEngine) -> None:
        shots = "".join(
            f"Step: {a} + {b} = {c}.\nIs the step correct (Yes/No)? {'Yes' if a + b == c else 'No'}\n\n"
            for a, b, c in ((1, 1, 2), (2, 3, 6), (4, 4, 8), (5, 1, 7))
        )

        async def work() -> list[tuple[float, float]]:
            sampling = Sampling(0.7, 0.95, 40, seed=1, verdict=VERDICT)
            prompts = [raw(f"{shots}Step: {a} + 5 = {a + 5}.\n") for a in range(6)]
            done = await asyncio.gather(*(smollm2_engine.generate(prompt, sampling) for prompt in prompts))
            pairs = []
            for prompt, completion in zip(prompts, done, strict=True):
                verdict = VERDICT.find(completion.text)
                assert verdict is not None, completion.text
                choice = next(choice for choice in completion.choices if choice.start == verdict.start)
                again = await smollm2_engine.choose(prompt, completion.text[: verdict.start].rstrip(" "), VERDICT)
                pairs.append((choice.p_yes, again.p_yes))
            return pairs

        pairs = asyncio.run(work())
        assert len(pairs) == 6
        assert max(abs(one - other) for one, other in pairs) < 1e-3
        # Not a constant, and not a coin: the model does read.
        assert len({round(one, 3) for one, _ in pairs}) > 1

    @pytest.mark.parametrize("reply", REPLIES)
    def test_a_reply_follows_the_prompt_to_the_letter(self, smollm2_engine: TransformersEngine, reply: str) -> None:
        tokenizer = smollm2_engine.tokenizer
        for prompt in (chat("Add 2 and 2."), raw("2 + 2 =")):
            alone = encode_prompt(tokenizer, prompt)
            begun = encode_prompt(tokenizer, replace(prompt, reply=reply))
            assert tokenizer.decode(begun) == tokenizer.decode(alone) + reply
            # White space at its beginning may share a token with the line end before it, as in one text.
            assert begun[: len(alone)] == alone or (reply[0].isspace() and not reply.endswith("\n"))

    def test_steps_are_encoded_as_the_whole_solution_is(self, smollm2_engine: TransformersEngine) -> None:
        """This tokenizer has one token for a blank line that nothing follows, and two for one before a word."""
        tokenizer = smollm2_engine.tokenizer
        steps = ["First, 2 + 2 = 4.", "$x = 4$", "So \\boxed{4}."]
        blank = tokenizer.encode("\n\n", add_special_tokens=False)
        assert len(blank) == 1
        whole = tokenizer.encode("\n\n".join(steps), add_special_tokens=False)
        assert blank[0] not in whole
        prompt = encode_prompt(tokenizer, chat("Add."))
        for count in range(1, 3):
            begun = encode_prompt(tokenizer, chat("Add."), "".join(step + "\n\n" for step in steps[:count]))
            assert begun == prompt + whole[: len(begun) - len(prompt)]

    @pytest.mark.slow
    def test_steps_written_one_by_one_are_those_of_the_whole_reply(self, smollm2_engine: TransformersEngine) -> None:
        async def work(prompt: Prompt, num_tokens: int, num_steps: int) -> tuple[Completion, list[Completion]]:
            whole = await smollm2_engine.generate(prompt, Sampling(0.0, max_tokens=num_tokens))
            steps: list[Completion] = []
            for _ in range(num_steps):
                reply = "".join(step.text + "\n\n" for step in steps)
                sampling = Sampling(0.0, max_tokens=num_tokens, stop=("\n\n",))
                steps.append(await smollm2_engine.generate(replace(prompt, reply=reply), sampling))
            return whole, steps

        letter, steps = asyncio.run(work(chat("Write a short letter to a friend."), 80, 2))
        assert [step.text for step in steps] == letter.text.split("\n\n")[:2]
        assert [step.ended for step in steps] == [False, False]
        colours, steps = asyncio.run(work(chat("Give me three colours, each in a paragraph of its own."), 100, 2))
        assert "\n\n".join(step.text for step in steps) == colours.text
        assert [step.ended for step in steps] == [False, True]
        assert colours.ended

    def test_yes_and_no_are_found_in_all_their_forms(self, smollm2_engine: TransformersEngine) -> None:
        tokens = VerdictTokens.of(smollm2_engine.tokenizer, VERDICT)
        # ` Yes`, ` No`, `Yes`, `No` (field notes of the tokenizer), and the lower and upper cases that are one token.
        assert {9230, 10539} <= set(tokens.yes)
        assert {2838, 5230} <= set(tokens.no)
        assert {smollm2_engine.tokenizer.decode([token]).strip().lower() for token in tokens.yes} == {"yes"}
        assert {smollm2_engine.tokenizer.decode([token]).strip().lower() for token in tokens.no} == {"no"}


@pytest.mark.slow
def test_a_model_from_the_hubs_cache_is_known_by_its_commit(tiny_model: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    code = (
        "import asyncio; from rprm import load_engine; "
        "print(asyncio.run(load_engine('transformers:someone/tiny').start()).revision)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.split() == [commit], done.stderr
