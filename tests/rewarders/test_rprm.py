"""The judge: rewards from sampled analyses, the same predictions for fewer of them."""

from __future__ import annotations

import asyncio
import hashlib
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rprm.engines.base import Completion, EngineInfo, Sampling
from rprm.engines.scripted import ScriptedEngine, ScriptedReply
from rprm.errors import RequestRefused, RprmError, Unsupported
from rprm.jobs import all_or_none
from rprm.prompts import Message, Prompt, load_template
from rprm.records import Solution, SolutionReward
from rprm.rewarders.base import sample_seed
from rprm.rewarders.rprm import Judge
from rprm.stopping import Stopping, StoppingRule
from rprm.verdict import VerdictChoice, VerdictFormat

SOLUTION = Solution(id="s", problem="p", steps=("first", "second", "third"))


def step_of(prompt: Prompt) -> int:
    """The step that a prompt of the built-in template asks about, 0-based."""
    return int(prompt.text.rsplit("analyse Step ", 1)[1].split(",")[0]) - 1


class Stream:
    """Replies from a table: sample j of step i says `table[i][j]`, whatever order they are asked for in."""

    def __init__(self, table: list[list[float | None]], seed: int = 0) -> None:
        self.table = table
        self.seed = seed
        self.asked: list[tuple[int, int]] = []

    def __call__(self, prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        step = step_of(prompt)
        sample = next(
            number for number in range(len(self.table[step])) if sample_seed(self.seed, prompt, number) == sampling.seed
        )
        self.asked.append((step, sample))
        return ScriptedReply("An analysis.", self.table[step][sample], 100)


def judge(
    stream: Stream | ScriptedEngine,
    *,
    num_analyses: int = 4,
    threshold: float = 0.5,
    stopping: Stopping = "exact",
    solution: Solution = SOLUTION,
    **options: Any,
) -> SolutionReward:
    engine = stream if not isinstance(stream, Stream) else ScriptedEngine(reply=stream)
    judge = Judge(
        engine,
        load_template(None),
        StoppingRule(num_analyses, threshold, stopping),
        Sampling(temperature=0.95, max_tokens=256, seed=0),
        **options,
    )

    async def main() -> SolutionReward:
        await judge.start()
        return await judge.judge(solution)

    return asyncio.run(main())


def test_rewards_are_mean_p_yes_and_votes() -> None:
    table: list[list[float | None]] = [[0.9, 0.8, 1.0, 0.5], [0.2, 0.4, 0.1, 0.3], [1.0] * 4]
    reward = judge(Stream(table), stopping="none", first_error_exit=False)
    # Means: 3.2 / 4 = 0.8, 1.0 / 4 = 0.25, 1.
    assert reward.rewards == pytest.approx([0.8, 0.25, 1.0])
    assert reward.first_error == 1
    assert reward.uncovered == []
    assert [len(step.analyses) for step in reward.steps] == [4, 4, 4]
    assert reward.steps[2].vote == 1.0
    assert reward.steps[0].vote == sum(a.verdict is True for a in reward.steps[0].analyses) / 4


def test_first_error_exit_leaves_the_rest_unasked() -> None:
    stream = Stream([[0.9] * 4, [0.1] * 4, [0.9] * 4])
    reward = judge(stream)
    assert reward.first_error == 1
    assert len(reward.steps) == 2
    assert reward.num_steps == 3
    assert {step for step, _ in stream.asked} == {0, 1}


def test_exact_stopping_draws_as_few_as_can_settle() -> None:
    # K = 4, t = 0.5. Step 0: after 2 (sum 1.8 < 2) open; 3: 2.7 / 4 >= 0.5. Step 1: (0.2 + 2) / 4 = 0.55 open after 2;
    # after 3: (0.3 + 1) / 4 < 0.5, wrong.
    stream = Stream([[0.9] * 4, [0.1] * 4, [0.9] * 4])
    judge(stream)
    assert sorted(stream.asked) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


p_yes = st.one_of(st.none(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.floats(0.0, 1.0, allow_subnormal=False))


@settings(max_examples=150, deadline=None)
@given(
    table=st.integers(1, 10).flatmap(
        lambda k: st.lists(st.lists(p_yes, min_size=k, max_size=k), min_size=1, max_size=6)
    ),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
)
def test_the_prediction_is_that_of_the_full_procedure(table: list[list[float | None]], threshold: float) -> None:
    """Exact stopping and first-error exit against every analysis of every step, on the same samples."""
    solution = Solution(id="s", problem="p", steps=tuple(f"step {index}" for index in range(len(table))))
    k = len(table[0])
    full, lean = Stream(table), Stream(table)
    expected = judge(
        full, num_analyses=k, threshold=threshold, stopping="none", first_error_exit=False, solution=solution
    )
    found = judge(lean, num_analyses=k, threshold=threshold, solution=solution)
    assert found.first_error == expected.first_error
    assert len(full.asked) == k * len(table)
    # Each sample once, and only samples that the full procedure draws.
    assert len(lean.asked) == len(set(lean.asked)) <= len(full.asked)
    assert set(found.uncovered) <= set(expected.uncovered)


def test_lost_verdicts_are_left_out_and_kept() -> None:
    reward = judge(Stream([[None, 0.8, None, 0.6], [None] * 4, [0.9] * 4]), stopping="none", first_error_exit=False)
    # (0.8 + 0.6) / 2: the lost ones are not zeros.
    assert reward.steps[0].reward == pytest.approx(0.7)
    assert reward.steps[0].num_without_verdict == 2
    assert len(reward.steps[0].analyses) == 4
    assert reward.steps[1].reward is None
    assert reward.steps[1].vote is None
    assert reward.steps[1].failure is not None
    assert reward.steps[1].failure.startswith("none of 4 analyses reached a verdict; ask for it with --force-verdict")
    # A step without a reward is not called wrong, does not end the judging, and leaves the first error unknown.
    assert len(reward.steps) == 3
    assert reward.first_error is None
    assert reward.uncovered == [1]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # The unscored step stands before the wrong one: which is the first error is not known.
        ([[None] * 4, [0.1] * 4, [0.9] * 4], None),
        # The wrong one stands first: what is unscored after it changes nothing.
        ([[0.9] * 4, [0.1] * 4, [None] * 4], 1),
        ([[0.9] * 4] * 3, -1),
    ],
)
def test_what_is_not_known_is_not_right(table: list[list[float | None]], expected: int | None) -> None:
    for options in ({}, {"stopping": "none", "first_error_exit": False}):
        reward = judge(Stream(table), **options)
        assert reward.first_error == expected
        assert SolutionReward.model_validate_json(reward.model_dump_json()) == reward


def test_a_reward_says_that_it_was_settled_early() -> None:
    lean, full = (judge(Stream([[0.9] * 4] * 3), stopping=how, first_error_exit=False) for how in ("exact", "none"))
    # K = 4: (0.9 + 0.9 + 0.9) / 4 >= 0.5 whatever the fourth says.
    assert [(len(step.analyses), step.num_requested, step.settled_early) for step in lean.steps] == [(3, 4, True)] * 3
    assert [(len(step.analyses), step.num_requested, step.settled_early) for step in full.steps] == [(4, 4, False)] * 3


class Cut(ScriptedEngine):
    """Every analysis runs into its limit."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        return Completion("and so on and", sampling.max_tokens, "length", 10)


def test_running_into_the_limit_is_said() -> None:
    reward = judge(Cut())
    assert reward.steps[0].failure == (
        "none of 4 analyses reached a verdict; 4 ran into max_tokens=256: raise --max-tokens"
    )


def test_running_into_the_end_of_the_context_is_said() -> None:
    class Full(ScriptedEngine):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            return Completion("and so on and", sampling.max_tokens - 100, "length", 10)

    (step, *_) = judge(Full()).steps
    assert step.failure is not None
    assert step.failure.startswith("none of 4 analyses reached a verdict; 4 ran into the end of the model's context")
    assert "--max-tokens" not in step.failure


def test_the_published_procedure_reads_p_yes_in_a_second_pass() -> None:
    asked: list[str] = []

    class Reads(ScriptedEngine):
        async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
            asked.append(text)
            return VerdictChoice(len(text), math.log(0.9), math.log(0.6))

    def reply(prompt: Prompt, sampling: Sampling) -> ScriptedReply:
        # Step 1's analyses reach no verdict.
        return ScriptedReply("An analysis.", None if step_of(prompt) == 1 else 0.2, 100)

    options = {"stopping": "none", "first_error_exit": False, "second_pass": True, "force_verdict": "So, is it right?"}
    reward = judge(Reads(reply=reply), **options)
    # 0.9 / (0.9 + 0.6) everywhere, whatever the generation's own log-probabilities (0.2) say.
    assert reward.rewards == pytest.approx([0.6] * 3)
    sources = [{(analysis.p_yes_source, analysis.forced) for analysis in step.analyses} for step in reward.steps]
    assert sources == [{("second pass", False)}, {("logprobs", True)}, {("second pass", False)}]
    # The verdict is dropped before it is asked for, and where there is none the given sentence asks.
    dropped, question = "An analysis.\nIs the step correct (Yes/No)?", "An analysis.\n\nSo, is it right?"
    assert asked == [dropped] * 4 + [question] * 4 + [dropped] * 4
    assert reward.steps[1].analyses[0].text == f"{question} Yes"


def test_a_forced_verdict_is_read_and_marked() -> None:
    class Chooses(Cut):
        async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
            assert text == "and so on and\n\nIs the step correct (Yes/No)?"
            return VerdictChoice(len(text), math.log(0.3), math.log(0.1))

    reward = judge(Chooses(), force_verdict=True)
    # 0.3 / (0.3 + 0.1)
    assert reward.rewards == pytest.approx([0.75] * 3)
    analysis = reward.steps[0].analyses[0]
    assert analysis.forced
    assert analysis.text.endswith("Is the step correct (Yes/No)? Yes")
    assert analysis.finish_reason == "length"
    assert analysis.p_yes_source == "logprobs"


def test_thinking_that_was_cut_off_is_closed_before_it_is_asked() -> None:
    class Thinks(Cut):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            return Completion("<think>\nIs the step correct (Yes/No)? No\n", sampling.max_tokens, "length", 10)

        async def choose(self, prompt: Prompt, text: str, verdict: VerdictFormat) -> VerdictChoice:
            assert text.endswith("? No\n</think>\n\nIs the step correct (Yes/No)?")
            return VerdictChoice(len(text), math.log(0.3), math.log(0.1))

    # What it thinks to itself is no verdict.
    assert judge(Thinks()).first_error is None
    assert judge(Thinks(), force_verdict=True).first_error == -1


def test_forcing_needs_a_second_pass() -> None:
    class Hosted(ScriptedEngine):
        async def start(self, *, chat: bool = True) -> EngineInfo:
            return EngineInfo("openai", "m", has_second_pass=False)

    with pytest.raises(Unsupported, match="force"):
        judge(Hosted(), force_verdict=True)


def test_without_logprobs_the_hard_vote_counts_and_is_recorded() -> None:
    reward = judge(ScriptedEngine(logprobs=False), stopping="none")
    for step in reward.steps:
        assert {analysis.p_yes_source for analysis in step.analyses} == {"vote"}
        assert {analysis.p_yes for analysis in step.analyses} <= {0.0, 1.0}
        assert step.reward == step.vote


def test_what_is_refused_costs_its_step_and_says_why() -> None:
    class Short(ScriptedEngine):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            if step_of(prompt) == 1:
                raise RequestRefused("the prompt has 9000 tokens")
            return await super().generate(prompt, sampling)

    reward = judge(Short(yes_rate=1.0, noise=0.0))
    assert reward.steps[1].reward is None
    assert reward.steps[1].failure == "the prompt has 9000 tokens"
    assert reward.steps[2].reward is not None
    assert reward.uncovered == [1]
    assert reward.first_error is None


def test_one_refused_sample_costs_itself_alone() -> None:
    class Refuses(ScriptedEngine):
        """The third request of each step."""

        def __init__(self) -> None:
            super().__init__(yes_rate=1.0, noise=0.0)
            self.asked: dict[int, int] = {}

        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            step = step_of(prompt)
            self.asked[step] = self.asked.get(step, 0) + 1
            if self.asked[step] == 3:
                raise RequestRefused("this one fails")
            return await super().generate(prompt, sampling)

    for options in ({}, {"stopping": "none", "first_error_exit": False}):
        reward = judge(Refuses(), **options)
        assert reward.first_error == -1
        for step in reward.steps:
            # Kept, counted, and left out of the mean, as an analysis without a verdict is.
            assert [analysis.finish_reason for analysis in step.analyses].count("refused") == 1
            assert step.num_without_verdict == 1
            assert step.reward is not None


def test_an_empty_step_is_judged_like_any_other() -> None:
    """PRMBench has some."""
    reward = judge(ScriptedEngine(), solution=Solution(id="s", problem="p", steps=("one", "")), first_error_exit=False)
    assert len(reward.steps) == 2


def test_greedy_analyses_would_all_be_equal() -> None:
    with pytest.raises(RprmError, match="temperature 0"):
        Judge(ScriptedEngine(), load_template(None), StoppingRule(2), Sampling(temperature=0.0))
    Judge(ScriptedEngine(), load_template(None), StoppingRule(1), Sampling(temperature=0.0))


def test_seeds_depend_on_prompt_sample_and_seed_alone() -> None:
    one, other = (Prompt((Message("user", text),)) for text in ("a", "b"))
    seeds = {sample_seed(seed, prompt, sample) for seed in (0, 1) for prompt in (one, other) for sample in range(10)}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**31 for seed in seeds)
    # Pinned: a change would silently change every published run.
    expected = hashlib.blake2b(b"0\x003\x00a", digest_size=4).digest()
    assert sample_seed(0, one, 3) == int.from_bytes(expected) & 0x7FFFFFFF


def test_all_or_none() -> None:
    async def main() -> None:
        ended = []

        async def slow() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.append("slow")

        async def fails() -> None:
            raise RequestRefused("no")

        with pytest.raises(RequestRefused):
            await all_or_none([slow(), fails(), slow()])
        # Nothing is left running when the failure is raised. The third had not begun.
        assert ended in (["slow"], ["slow", "slow"])

        async def number(value: int) -> int:
            await asyncio.sleep(0.01 / value)
            return value

        assert await all_or_none(number(value) for value in (1, 2, 3)) == [1, 2, 3]
        assert await all_or_none([]) == []

    asyncio.run(main())
