"""Stories and their solutions: what they say is true, and errors are where they are said to be."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from rprm_lab import language as words
from rprm_lab import phrases
from rprm_lab.solutions import ERROR_TYPES, LabSolution, solve
from rprm_lab.stories import Story, tell
from rprm_lab.worked import result


def some_stories(number: int, **options: object) -> list[Story]:
    rng = random.Random(0)
    return [tell(rng, num_steps=1 + place % 4, **options) for place in range(number)]  # type: ignore[arg-type]


@pytest.mark.parametrize("wide", [False, True])
def test_every_quantity_follows_from_those_before_it(wide: bool) -> None:
    for story in some_stories(500, wide=wide):
        for quantity in story.quantities:
            derivation = quantity.derivation
            if derivation is None:
                assert quantity.fact is not None
                assert str(quantity.value) in quantity.fact
                continue
            assert derivation.value == quantity.value
            for side in (derivation.left, derivation.right):
                if side.quantity is not None:
                    assert side.quantity < quantity.key
                    assert side.value == story.quantities[side.quantity].value


@pytest.mark.parametrize("wide", [False, True])
def test_numbers_of_a_relation_stand_in_its_fact(wide: bool) -> None:
    spelled = {word: str(number) for number, word in {2: "twice", 3: "three", 4: "four"}.items()}
    spelled |= {part: str(number) for number, part in words.PARTS.items()}
    for story in some_stories(500, wide=wide):
        for quantity in story.quantities:
            if quantity.derivation is None or quantity.fact is None:
                continue
            text = quantity.fact
            for word, number in spelled.items():
                text = re.sub(rf"\b{word}\b", number, text)
            for side in (quantity.derivation.left, quantity.derivation.right):
                if side.quantity is None:
                    assert re.search(rf"\b{side.value}\b", text), quantity.fact


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 6])
def test_the_answer_takes_as_many_calculations_as_asked_for(num_steps: int) -> None:
    rng = random.Random(num_steps)
    for _ in range(100):
        story = tell(rng, num_steps=num_steps)
        assert len(story.needed()) == num_steps
        assert all(0 < quantity.value <= 999 for quantity in story.quantities)


def test_every_family_and_operation_occurs() -> None:
    stories = some_stories(400)
    assert set(Counter(story.family for story in stories)) == {"people", "containers", "shopping", "work"}
    operations = {q.derivation.operation for story in stories for q in story.quantities if q.derivation is not None}
    assert operations == set("+-*/")


def test_unseen_wordings_are_told_in_unseen_stories_alone() -> None:
    unseen_things = {*words.UNSEEN_COLLECTED, *words.UNSEEN_GOODS, *words.UNSEEN_NAMES}
    last = re.compile(r"belong to|It is asked how many|Every one of|Wrapping adds \d+ x")
    seen = " ".join(story.problem for story in some_stories(1000))
    unseen = " ".join(story.problem for story in some_stories(1000, unseen=True))
    assert not any(re.search(rf"\b{word}\b", seen) for word in unseen_things)
    assert not last.search(seen)
    assert all(re.search(rf"\b{word}\b", unseen) for word in unseen_things)
    assert last.search(unseen)


def test_a_wide_world_has_wordings_of_its_own_and_none_of_the_unseen() -> None:
    wordings = [wording for wording in vars(words).values() if isinstance(wording, words.Wording)]
    tables = [(wording.tells, wording.more) for wording in wordings if wording.tells]
    said = vars(phrases)
    tables += [(said[name.removeprefix("MORE_")], more) for name, more in said.items() if "MORE_" in name]
    assert len(tables) == 25
    narrow, wide = (" ".join(story.problem for story in some_stories(1000, wide=flag)) for flag in (False, True))
    for sentences, more in tables:
        assert len(more) >= 4
        assert not set(more) & set(sentences)
        fields = [set(re.findall(r"\{([nmk]|times|part)\}", sentence)) for sentence in sentences]
        for sentence in more:
            # It has the numbers that a sentence of the narrow world has.
            assert set(re.findall(r"\{([nmk]|times|part)\}", sentence)) in fields
    for told in ("are in the hands of", "outnumber", "are taken off at the till", "Tell how many"):
        assert told in wide
        assert told not in narrow


def test_garbled_stories_are_told_in_other_words_with_the_same_numbers() -> None:
    stories = some_stories(400, wide=True)
    known = {
        re.sub(r"\{\w+\}", "_", sentence)
        for wording in vars(words).values()
        if isinstance(wording, words.Wording)
        for sentence in (*wording.tells, *wording.more)
    }
    nouns = {*words.NAMES, *words.COLLECTED, *words.GOODS, *(word for pair in words.PACKED for word in pair)}

    def is_known(story: Story) -> bool:
        """Whether every sentence is of a known wording, as far as its words that are no field tell."""
        facts = [quantity.fact for quantity in story.quantities if quantity.fact is not None]
        fixed = [set(re.findall("[A-Za-z]+", wording)) for wording in known]
        return all(any(kept <= set(re.findall("[A-Za-z]+", fact)) for kept in fixed) for fact in facts)

    # One story in two is told as ever; of the others many are not.
    assert 0.4 < sum(map(is_known, stories)) / len(stories) < 0.8
    for story in stories:
        told = set(re.findall("[A-Za-z]+", story.problem))
        for quantity in story.quantities:
            assert quantity.fact is None or quantity.fact in story.problem
            # A name or a thing has the same other word everywhere.
            asked = set(re.findall("[A-Za-z]+", quantity.asks))
            assert not asked & nouns - told
    assert not any("belong to" in story.problem for story in stories)


def test_solutions_of_garbled_stories_say_the_same_in_other_words() -> None:
    rng = random.Random(2)
    told = [(story, solve(rng, story, error=None)) for story in some_stories(200, wide=True)]
    spoken = {word for sign in phrases.SPOKEN.values() for word in sign.split()}
    usual = [set(re.findall("[A-Za-z]+", wording)) | spoken for wording in (*phrases.STATED, *phrases.MORE_STATED)]

    def is_usual(story: Story, text: str) -> bool:
        """Whether a wording has every word that the story has not."""
        known = " ".join([story.problem, *(f"{quantity.states} {quantity.asks}" for quantity in story.quantities)])
        own = set(re.findall("[A-Za-z]+", text)) - set(re.findall("[A-Za-z]+", f"{known} {known.title()}"))
        return any(own <= wording for wording in usual)

    steps = [(story, step) for story, solution in told for step in solution.steps if len(step.checks) == 1]
    calculating = [pair for pair in steps if pair[1].checks[0].kind == "calculation"]
    others = [step for story, step in calculating if not is_usual(story, step.text)]
    assert 20 < len(others) < len(calculating) / 2
    for story, solution in told:
        assert solution.answer == story.answer
        for step in solution.steps:
            for check in step.checks:
                # Whatever the words, its numbers are there.
                assert check.stated is None or re.search(rf"\b{check.stated}\b", step.text), step.text


def test_the_vocabulary_has_every_word_and_no_field() -> None:
    known = set(words.vocabulary())
    assert {"From", "follows", "waived", "Priya", "loaves", "Find", "divided"} <= known
    assert not known & {"things", "asks", "Clause_with", "k", "value"}


def test_the_same_stream_tells_the_same_story() -> None:
    assert some_stories(20) == some_stories(20)
    assert some_stories(20, wide=True) == some_stories(20, wide=True)


def solutions(error: str | None, number: int = 300) -> list[tuple[Story, LabSolution]]:
    rng = random.Random(1)
    return [(story, solve(rng, story, error=error)) for story in some_stories(number)]  # type: ignore[arg-type]


def calculations(text: str) -> list[tuple[int, str, int, int]]:
    """Every `a op b = c` of a text, `a plus b is c` too."""
    for operation, word in phrases.SPOKEN.items():
        text = re.sub(rf"(\d+) {word} (\d+) is (\d+)", rf"\1 {operation} \2 = \3", text)
    found = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", text)
    return [(int(left), operation, int(right), int(value)) for left, operation, right, value in found]


def test_right_solutions_are_right() -> None:
    for story, solution in solutions(None):
        assert solution.first_error == -1
        assert solution.answer == story.answer
        assert solution.steps[-1].text.endswith(f"The answer is {story.answer}.")
        for step in solution.steps:
            assert step.error is None
            for left, operation, right, value in calculations(step.text):
                assert result(left, operation, right) == value  # type: ignore[arg-type]
            for check in step.checks:
                assert check.right == check.stated


@pytest.mark.parametrize("error", ERROR_TYPES)
def test_a_wrong_step_is_wrong_and_the_steps_before_it_are_right(error: str) -> None:
    types: Counter[str | None] = Counter()
    for _, solution in solutions(error):
        wrong = solution.steps[solution.first_error]
        types[wrong.error] += 1
        assert [step.error for step in solution.steps].count(None) == len(solution.steps) - 1
        for step in solution.steps[: solution.first_error]:
            assert all(check.right == check.stated and check.needs_same for check in map(Said, step.checks))
        checks = [Said(check) for check in wrong.checks]
        broken = [check for check in checks if check.right != check.stated or not check.needs_same]
        assert broken, wrong
        for left, operation, right, value in calculations(wrong.text):
            holds = result(left, operation, right) == value  # type: ignore[arg-type]
            # Where an error is no error of arithmetic, the arithmetic holds.
            assert holds or wrong.error == "calculation", wrong.text
    # A story of one step has no value to carry over: then the error is of another type.
    assert types[error] >= 0.75 * sum(types.values())


class Said:
    """A check, and whether the step's calculation is the one that is needed, but for the order of its sides."""

    def __init__(self, check: object) -> None:
        self.right, self.stated = check.right, check.stated  # type: ignore[attr-defined]
        needs, says = check.needs, check.says  # type: ignore[attr-defined]
        self.needs_same = needs == says
        if needs is not None and check.kind == "calculation":  # type: ignore[attr-defined]
            first, second = needs.split(" "), says.split(" ")
            self.needs_same = first == second or (first[1] in "+*" and first == second[::-1])
