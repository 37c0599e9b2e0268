"""Splits by problem."""

from __future__ import annotations

import pytest

from rprm.data.stage_options import is_held_out, order_key
from rprm.errors import InputError

PROBLEMS = [f"Problem {number}: how many apples?" for number in range(4000)]


def test_the_share_is_about_right_and_grows_by_adding_alone() -> None:
    tenth = {problem for problem in PROBLEMS if is_held_out(problem, 0.1)}
    fifth = {problem for problem in PROBLEMS if is_held_out(problem, 0.2)}
    # Binomial(4000, 0.1): 400 with a standard deviation of 19.
    assert 320 < len(tenth) < 480
    assert tenth < fifth
    assert not any(is_held_out(problem, 0.0) for problem in PROBLEMS)


def test_case_and_spacing_do_not_matter_and_the_seed_does() -> None:
    for problem in PROBLEMS[:200]:
        assert is_held_out(problem, 0.3) is is_held_out(f"  {problem.upper()} \n", 0.3)
    assert [is_held_out(one, 0.3, 0) for one in PROBLEMS] != [is_held_out(one, 0.3, 1) for one in PROBLEMS]


def test_the_order_is_a_shuffle() -> None:
    ids = [str(number) for number in range(1000)]
    shuffled = sorted(ids, key=lambda one: order_key(one, 7))
    assert shuffled != ids
    # Whatever other rows there are, two rows stand in the same order.
    half = ids[::2]
    assert [one for one in shuffled if one in set(half)] == sorted(half, key=lambda one: order_key(one, 7))


@pytest.mark.parametrize("share", [-0.1, 0.999, 1.0, float("nan")])
def test_a_senseless_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="cannot be held out"):
        is_held_out("p", share)
