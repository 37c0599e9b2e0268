"""Early stopping: the decision of all K analyses, from as few of them as can be."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rprm.aggregation import mean
from rprm.errors import RprmError
from rprm.stopping import StoppingRule

# Soft values, hard votes, ties at the threshold and lost verdicts.
p_yes = st.one_of(
    st.none(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), st.floats(0.0, 1.0, allow_subnormal=False)
)
thresholds = st.one_of(st.sampled_from([0.1, 0.3, 0.5, 0.61, 0.7]), st.floats(0.001, 0.999))


def run(rule: StoppingRule, stream: list[float | None]) -> list[float | None]:
    """Draw from the stream in the rule's waves until it is settled."""
    drawn: list[float | None] = []
    while count := rule.num_more(drawn):
        drawn += stream[len(drawn) : len(drawn) + count]
    return drawn


def decision(values: list[float | None], threshold: float) -> bool | None:
    reward = mean([value for value in values if value is not None])
    return None if reward is None else reward >= threshold


@given(st.lists(p_yes, min_size=1, max_size=32), thresholds)
def test_exact_stopping_changes_no_decision(stream: list[float | None], threshold: float) -> None:
    rule = StoppingRule(len(stream), threshold, "exact")
    assert decision(run(rule, stream), threshold) == decision(stream, threshold)


@given(st.lists(p_yes, min_size=1, max_size=12), thresholds)
def test_waves_draw_nothing_in_vain(stream: list[float | None], threshold: float) -> None:
    """The waves stop exactly where drawing one at a time would."""
    rule = StoppingRule(len(stream), threshold, "exact")
    one_by_one: list[float | None] = []
    while not rule.is_settled(one_by_one):
        one_by_one.append(stream[len(one_by_one)])
    assert run(rule, stream) == one_by_one


def test_settled_means_no_continuation_disagrees() -> None:
    """Against all continuations, K = 6 and t = 0.5: settled if and only if every one gives the same decision."""
    outcomes = (0.0, 0.5, 1.0, None)
    rule = StoppingRule(6, 0.5)
    for drawn in itertools.product(outcomes, repeat=3):
        decisions = {decision([*drawn, *rest], 0.5) for rest in itertools.product(outcomes, repeat=3)}
        # An all-lost start can end uncovered, which is a third decision.
        assert rule.is_settled(drawn) == (len(decisions) == 1), drawn


def test_first_wave_of_ten() -> None:
    # t = 0.5, K = 10: five certain Yes give 5 / 10 >= 0.5. Five certain No leave (0 + 5) / 10 = 0.5, still Yes.
    rule = StoppingRule(10, 0.5)
    assert rule.num_more([]) == 5
    assert rule.is_settled([1.0] * 5)
    assert not rule.is_settled([0.0] * 5)
    assert rule.num_more([0.0] * 5) == 1
    # 0.99 * 5 = 4.95 < 5: one more is needed, and enough.
    assert rule.num_more([0.99] * 5) == 1
    assert rule.is_settled([0.99] * 6)


def test_lost_analyses_raise_the_weight_of_the_others() -> None:
    # K = 4, t = 0.5: one Yes and two lost leave one; (1 + 0) / 2 = 0.5 >= 0.5 at worst.
    assert StoppingRule(4, 0.5).is_settled([1.0, None, None])
    # Without the lost ones it is open: (1 + 0 + 0 + 0) / 4 < 0.5 <= (1 + 3) / 4.
    assert not StoppingRule(4, 0.5).is_settled([1.0])


def test_all_lost_draws_everything() -> None:
    assert run(StoppingRule(7), [None] * 7) == [None] * 7


def test_none_draws_all_at_once() -> None:
    rule = StoppingRule(10, stopping="none")
    assert rule.num_more([]) == 10
    assert rule.num_more([1.0] * 9) == 1
    assert rule.num_more([1.0] * 10) == 0


def test_confident_stops_where_the_posterior_says() -> None:
    # K = 10, t = 0.5. After three certain Yes the posterior is Beta(4, 1) and two more Yes of seven are needed:
    # P(X <= 1) = (C(3,3) + C(4,3)) / C(11,4) = 5 / 330 = 0.0152, so P(stays Yes) = 0.985.
    assert StoppingRule(10, 0.5, "confident", confidence=0.98).is_settled([1.0] * 3)
    assert not StoppingRule(10, 0.5, "confident", confidence=0.99).is_settled([1.0] * 3)
    # After four: Beta(5, 1), P(X = 0 of 6) = 1 / C(11,5) = 1 / 462 = 0.0022.
    assert StoppingRule(10, 0.5, "confident", confidence=0.99).is_settled([1.0] * 4)


@pytest.mark.slow
def test_confident_disagrees_rarely_and_saves() -> None:
    """Streams drawn from a uniform prior, for which the posterior is calibrated: at most 1 - confidence disagree."""
    draw = random.Random(0)
    disagreements = drawn = 0
    for _ in range(2000):
        rate = draw.random()
        stream: list[float | None] = [float(draw.random() < rate) for _ in range(32)]
        used = run(StoppingRule(32, 0.5, "confident", confidence=0.95), stream)
        disagreements += decision(used, 0.5) != decision(stream, 0.5)
        drawn += len(used)
    assert disagreements / 2000 <= 0.05
    assert drawn / (2000 * 32) < 0.4


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40))
def test_mean_is_correctly_rounded(values: list[float]) -> None:
    from fractions import Fraction

    exact = sum(map(Fraction, values)) / len(values)
    reward = mean(values)
    assert reward is not None
    assert reward == float(exact)
    assert min(values) <= reward <= max(values)


def test_mean_of_nothing() -> None:
    assert mean([]) is None


@pytest.mark.parametrize(
    "arguments", [(0,), (10, 0.0), (10, 1.0), (10, float("nan")), (10, 0.5, "sometimes"), (10, 0.5, "confident", 0.4)]
)
def test_senseless_rules_are_refused(arguments: tuple) -> None:
    with pytest.raises(RprmError):
        StoppingRule(*arguments)
