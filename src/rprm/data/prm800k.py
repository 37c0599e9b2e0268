"""PRM800K as OpenAI publishes it (repository openai/prm800k, `prm800k/data/phase*_*.jsonl`, and its README).

A row is one solution as a labeler went through it. At each place stand one or several completions, each with a rating
(-1 wrong, 0 neutral, 1 correct, null: not rated). The solution goes on with the completion that was chosen or, where
none was, with the one that the labeler wrote (phase 1 alone); where there is neither it ends.
"""

from __future__ import annotations

from typing import Any, Literal

from rprm.data.origins import Origin, text_of
from rprm.errors import InputError
from rprm.records import LabelledStep

#: What a rating of 0 counts as. OpenAI counts a neutral step as correct; TRL's copy of the data as wrong.
Neutral = Literal["correct", "wrong", "drop"]

#: How a solution ends that its labeler could not finish: a problem reported as broken, or given up.
UNFINISHED = ("bad_problem", "give_up")


def prm800k_steps(
    record: dict[str, Any],
    origin: Origin,
    *,
    neutral: Neutral = "correct",
    keep_quality_control: bool = False,
    keep_unfinished: bool = False,
) -> list[LabelledStep]:
    """Every rated completion of a row, after the steps that were chosen before its place.

    The completions at the place of the first wrong step are the last: what a labeler chose to go on from is correct up
    to there. A completion that is flagged (the labeler did not know) or not rated gives no row, and a solution that
    goes on with one ends there. A step written by the labeler counts as correct, as the README has it; `source` says
    `:human`.

    Args:
        record: the row.
        origin: where it comes from.
        neutral: what a rating of 0 counts as.
        keep_quality_control: use solutions that served to check or to screen labelers. OpenAI trained without them
            (arXiv 2305.20050, appendix B).
        keep_unfinished: use solutions that the labeler gave up, or whose problem was reported as broken. OpenAI trained
            without them (same place).

    Raises:
        InputError: the row has not this form.
    """
    question, label = _object(record, "question"), _object(record, "label")
    problem = text_of(question, "problem")
    places = label.get("steps")
    if not isinstance(places, list):
        raise InputError(f"'label.steps' must be a list, not {places!r:.80}")
    if not keep_quality_control:
        for flag in ("is_quality_control_question", "is_initial_screening_question"):
            if record.get(flag):
                origin.skipped["solutions for quality control or screening"] += 1
                return []
    if not keep_unfinished and label.get("finish_reason") in UNFINISHED:
        origin.skipped["solutions given up, or of a broken problem"] += 1
        return []
    found: list[LabelledStep] = []
    previous: list[str] = []
    for place, value in enumerate(places):
        completions, chosen, human = _place(value, place)
        labels = [_label(completion, place, neutral) for completion in completions]
        for choice, (completion, verdict) in enumerate(zip(completions, labels, strict=True)):
            if isinstance(verdict, bool):
                found.append(origin.labelled(problem, previous, completion["text"], verdict, choice=f"-{choice}"))
            else:
                origin.skipped[f"steps {verdict}"] += 1
        if chosen is not None:
            following, verdict = completions[chosen], labels[chosen]
        elif human is not None:
            following, verdict = human, _label({"rating": 1, **_rated(human)}, place, neutral)
            if isinstance(verdict, bool):
                found.append(origin.labelled(problem, previous, human["text"], verdict, choice="-human", part="human"))
            else:
                origin.skipped[f"steps {verdict}"] += 1
        else:
            break
        if verdict is not True and verdict != _NEUTRAL:
            rest = sum(len(later["completions"] or ()) for later in places[place + 1 :] if _is_place(later))
            if rest:
                origin.skipped["steps after a wrong, flagged or unrated one"] += rest
            break
        previous.append(following["text"])
    return found


_NEUTRAL = "rated neutral"


def _label(completion: dict[str, Any], place: int, neutral: Neutral) -> bool | str:
    """The label of a completion; or, where it has none, what it is."""
    rating = completion.get("rating")
    if isinstance(rating, bool) or rating not in (-1, 0, 1, None):
        raise InputError(f"step {place + 1}: a rating is -1, 0, 1 or null, not {rating!r:.80}")
    text = completion.get("text")
    if text is not None and not isinstance(text, str):
        raise InputError(f"step {place + 1}: the text of a completion is a text, not {text!r:.80}")
    if not text or not text.strip():
        return "without text"
    if completion.get("flagged"):
        return "flagged"
    if rating is None:
        return "not rated"
    if rating == 0:
        return _NEUTRAL if neutral == "drop" else neutral == "correct"
    return bool(rating == 1)


def _place(value: Any, place: int) -> tuple[list[dict[str, Any]], int | None, dict[str, Any] | None]:
    """The completions at a place, the index of the chosen one, and what the labeler wrote."""
    if not isinstance(value, dict):
        raise InputError(f"step {place + 1} must be an object, not {value!r:.80}")
    # Null where the labeler left before anything was shown.
    completions = value.get("completions") or []
    if not isinstance(completions, list) or not all(isinstance(completion, dict) for completion in completions):
        raise InputError(f"step {place + 1}: 'completions' must be a list of objects")
    chosen = value.get("chosen_completion")
    if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(completions)):
        raise InputError(
            f"step {place + 1}: 'chosen_completion' must name one of {len(completions)} completions or be "
            f"null, not {chosen!r:.80}"
        )
    human = value.get("human_completion")
    if human is not None and not isinstance(human, dict):
        raise InputError(f"step {place + 1}: 'human_completion' must be an object, not {human!r:.80}")
    return completions, chosen, human


def _is_place(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("completions"), list)


def _rated(human: dict[str, Any]) -> dict[str, Any]:
    """A step that the labeler wrote, without its rating where that is null (it always is in the published files)."""
    return {name: value for name, value in human.items() if name != "rating" or value is not None}


def _object(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    if not isinstance(value, dict):
        raise InputError(f"{name!r} must be an object, not {value!r:.80}")
    return value
