"""Which analyses are fit to train on, and in which one form: the body, then `MARKER ANSWER` at the very end."""

from __future__ import annotations

import re

from rprm.records import Analysis
from rprm.thinking import without_thinking
from rprm.verdict import VerdictFormat

#: Markdown, brackets and punctuation that are no text: after an answer, before the marker on its line, and after the
#: answer of a training row.
_TAIL = " \t\r\n*_`'\"$)}].!"
_OPENERS = " \t\r*_#>`-"
_AFTER_VERDICT = re.compile(r"[^\w]{0,16}\Z")

#: Reasons to drop an analysis, in the order in which they are looked for.
REASONS = NO_VERDICT, FORCED, SEVERAL, NOT_LAST, EMPTY, DISAGREES, REPEATED = (
    "no verdict", "verdict had to be asked for", "the verdict line stands more than once", "text follows the verdict",
    "nothing but the verdict", "verdict disagrees with the label", "repeats another analysis of the step",
)  # fmt: skip


def wellformed(analysis: Analysis, written: VerdictFormat, trained: VerdictFormat) -> tuple[str, str]:
    """The text to train on, with the verdict line `trained` in place of `written`: `(text, "")`, or `("", reason)`."""
    answer = without_thinking(analysis.text)
    markers = list(written.marker_pattern.finditer(answer))
    verdict = written.find(answer)
    if analysis.forced and analysis.verdict is not None:
        return "", FORCED
    if analysis.verdict is None or verdict is None:
        return "", NO_VERDICT
    if len(markers) > 1:
        return "", SEVERAL
    if answer[verdict.end :].strip(_TAIL):
        return "", NOT_LAST
    body = answer[: markers[0].start()]
    before, _, lead = body.rpartition("\n")
    if not lead.strip(_OPENERS):
        # Markdown that opens on the verdict line belongs to it, and would be left open.
        body = before
    body = body.strip()
    if not any(character.isalnum() for character in body):
        return "", EMPTY
    return f"{body}\n{trained.marker} {trained.yes if verdict.yes else trained.no}", ""


def verdict_fault(reply: str, verdict: VerdictFormat, wanted: bool) -> str | None:
    """What is wrong with the verdict of a reply; None where it stands once, at the end, and is the wanted one."""
    found = verdict.find_all(reply)
    if len(found) != 1:
        return "no verdict" if not found else f"{len(found)} verdicts"
    if not _AFTER_VERDICT.match(reply, found[0].end):
        return "text after the verdict"
    if found[0].yes is not wanted:
        return f"verdict {verdict.yes if found[0].yes else verdict.no}, against the label"
    return None


def rejected_fault(reply: str, verdict: VerdictFormat, label: bool) -> str | None:
    """Why a reply cannot be the rejected one of a pair: it says what the label says. A reply may have no verdict."""
    if any(found.yes is label for found in verdict.find_all(reply)):
        return f"verdict {verdict.yes if label else verdict.no}, which agrees with the label"
    return None
