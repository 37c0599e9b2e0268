"""The teacher: right where it has no faults, wrong at the rates that it has them."""

from __future__ import annotations

import random

from rprm_lab.solutions import ERROR_TYPES, Check, LabStep, solve
from rprm_lab.stories import tell
from rprm_lab.teacher import HEADINGS, Faults, analyse


def labelled(number: int) -> list[tuple[LabStep, int]]:
    rng = random.Random(2)
    steps = []
    for place in range(number):
        story = tell(rng, num_steps=1 + place % 4)
        solution = solve(rng, story, error=(None, *ERROR_TYPES)[place % 6])
        last = solution.first_error if solution.first_error >= 0 else len(solution.steps) - 1
        steps.append((solution.steps[last], last))
    return steps


def test_without_faults_every_verdict_is_the_label() -> None:
    for place, (step, step_index) in enumerate(labelled(600)):
        written = analyse(step.checks, step_index, Faults(), step=str(place), seed=place)
        assert written.verdict == (step.error is None), written.text
        assert [line.partition(":")[0] for line in written.text.split("\n")] == list(HEADINGS)


def test_an_analysis_word_for_word() -> None:
    check = Check(
        kind="calculation",
        asks="marbles Mia has",
        fact="Mia has 15 more marbles than Ben.",
        sources=({"value": 72, "step": 0}, {"value": 15, "fact": "Mia has 15 more marbles than Ben."}),  # type: ignore[arg-type]
        needs="72 + 15",
        says="15 + 72",
        right=87,
        stated=88,
    )
    assert analyse([check], 1, Faults(), step="s", seed=0).text == (
        "Previous steps: Step 1 gives 72.\n"
        "This step: It finds how many marbles Mia has.\n"
        "Data source: The problem says: Mia has 15 more marbles than Ben.\n"
        "Consistency: This takes 72 + 15. The step takes 15 + 72. That is the same.\n"
        "Calculation: 72 + 15: 2+5=7, 7+1=8, 87. The step has 88. That is not the same.\n"
        "Conclusion: The calculation is wrong."
    )


def test_verdicts_are_flipped_at_their_rate() -> None:
    steps = labelled(600)
    flipped = sum(
        analyse(step.checks, at, Faults(verdict=0.3), step=str(place), seed=7).verdict != (step.error is None)
        for place, (step, at) in enumerate(steps)
    )
    # Binomial(600, 0.3): 180 expected, standard deviation 11.
    assert 180 - 45 <= flipped <= 180 + 45


def test_systematic_faults_come_back_in_every_analysis_and_others_do_not() -> None:
    steps = labelled(400)

    def verdicts(systematic: float, seed: int) -> list[bool]:
        faults = Faults(verdict=0.3, systematic=systematic)
        return [analyse(step.checks, at, faults, step=str(n), seed=seed).verdict for n, (step, at) in enumerate(steps)]

    assert verdicts(1.0, 1) == verdicts(1.0, 2)
    differing = sum(one != other for one, other in zip(verdicts(0.0, 1), verdicts(0.0, 2), strict=True))
    # Two independent flips at 0.3 differ with 2 * 0.3 * 0.7 = 0.42: 168 of 400, standard deviation 10.
    assert 168 - 40 <= differing <= 168 + 40


def test_a_faulty_reader_is_wrong_about_right_and_about_wrong_steps() -> None:
    faults = Faults(reading=1.0)
    wrong = {True: 0, False: 0}
    for place, (step, at) in enumerate(labelled(400)):
        is_right = step.error is None
        wrong[is_right] += analyse(step.checks, at, faults, step=str(place), seed=3).verdict != is_right
    assert wrong[True] > 10
    assert wrong[False] > 50


def test_the_same_seed_writes_the_same() -> None:
    faults = Faults(reading=0.5, slip=0.5, verdict=0.5, systematic=0.5)
    for place, (step, at) in enumerate(labelled(50)):
        first = analyse(step.checks, at, faults, step=str(place), seed=1)
        assert first == analyse(step.checks, at, faults, step=str(place), seed=1)
