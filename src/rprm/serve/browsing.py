"""Run folders, read for the page: which there are, their solutions, one of them in full, two runs side by side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from itertools import islice
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from rprm.errors import InputError
from rprm.files import encoded
from rprm.records import Solution, SolutionReward
from rprm.serve.rewards import RewardsAnswer
from rprm.serve.state import serving

T = TypeVar("T")

router = APIRouter()

#: Of a step whose analyses say Yes in a share nearer to one half than this, it is said that they do not agree.
AGREEMENT = 0.75
#: Which solutions are listed. "missed": the first error is not the label. "unscored": not known. "torn": the analyses
#: of some step do not agree. "differ": two runs name different first errors.
Kind = Literal["all", "missed", "unscored", "torn", "differ"]


class _Answer(JSONResponse):
    """What a manifest or a file's name holds that is no Unicode comes escaped."""

    def render(self, content: Any) -> bytes:
        return encoded(json.dumps(content, ensure_ascii=False, allow_nan=False))


class RunFolders(Protocol):
    """Runs of judged solutions, by their names."""

    def listed(self) -> list[dict[str, Any]]:
        """What each run is: `name`, `model`, `input`, `status`, `num_rows`."""

    def rewards(self, name: str) -> Iterator[SolutionReward]:
        """A run's rewards; an `InputError` where there is no such run."""

    def solution(self, name: str, id: str) -> tuple[Solution, SolutionReward, float, list[str]]:
        """A solution with its rewards, the threshold that its verdicts have, and what to know of them."""


def line_of(reward: SolutionReward) -> dict[str, Any]:
    """What a list says of a solution."""
    votes = [step.vote for step in reward.steps if step.vote is not None and len(step.analyses) > 1]
    agreement = min((max(vote, 1.0 - vote) for vote in votes), default=None)
    told = {name: getattr(reward, name) for name in ("id", "label", "first_error", "num_steps")}
    return told | {"rewards": reward.rewards, "agreement": agreement}


def is_listed(line: Mapping[str, Any], kind: Kind, other: Mapping[str, Any] | None) -> bool:
    if kind == "missed":
        return line["label"] is not None and line["first_error"] != line["label"]
    if kind == "unscored":
        return line["first_error"] is None
    if kind == "torn":
        return line["agreement"] is not None and line["agreement"] < AGREEMENT
    return kind == "all" or (other is not None and other["first_error"] != line["first_error"])


def _folders(request: Request) -> RunFolders:
    found: RunFolders | None = request.app.state.runs
    if found is None:
        raise InputError("no runs are shown here: start the server with --runs FOLDER")
    return found


async def _read(request: Request, work: Callable[[], T]) -> T:
    """What is read of files: in a few threads of its own, so that nothing else waits for a slow disk, and in time."""
    threads: Executor = request.app.state.readers
    return await serving(request).within_time(asyncio.wrap_future(threads.submit(work)))


@router.get("/v1/runs", summary="The runs of judged solutions.")
async def runs(request: Request) -> _Answer:
    shown = request.app.state.runs is not None
    return _Answer({"object": "list", "data": await _read(request, _folders(request).listed) if shown else []})


@router.get("/v1/runs/solutions", summary="The solutions of a run, maybe beside another's.")
async def solutions(
    request: Request, run: str, beside: str | None = None, kind: Kind = "all",
    offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0, limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> _Answer:  # fmt: skip
    folders = _folders(request)

    def read() -> list[dict[str, Any]]:
        others = {} if beside is None else {one.id: line_of(one) for one in folders.rewards(beside)}
        lines = ((line_of(one), others.get(one.id)) for one in folders.rewards(run))
        chosen = (line | {"beside": other} for line, other in lines if is_listed(line, kind, other))
        return list(islice(chosen, offset, offset + limit + 1))

    found = await _read(request, read)
    return _Answer({"object": "list", "data": found[:limit], "has_more": len(found) > limit})


@router.get("/v1/runs/solution", summary="A solution of a run, with its analyses.")
async def solution(request: Request, run: str, id: str) -> _Answer:
    folders = _folders(request)
    its, reward, threshold, notes = await _read(request, lambda: folders.solution(run, id))
    told = RewardsAnswer.of(0, reward, threshold, analyses=True, notes=notes).model_dump()
    return _Answer(told | {"problem": its.problem, "texts": list(its.steps), "label": reward.label})
