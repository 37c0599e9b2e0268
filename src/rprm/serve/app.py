"""The application: its routes, its errors, what it tells of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from rprm import __version__
from rprm.errors import RprmError
from rprm.reading import explained_json
from rprm.rewarders.base import StepRewarder
from rprm.search.candidates import Policy
from rprm.serve import browsing, chat, pages, rewards
from rprm.serve.browsing import RunFolders
from rprm.serve.gate import RETRY_AFTER_S, Gate, Limits, error_body
from rprm.serve.judging import Gone, Judging
from rprm.serve.metrics import Metrics
from rprm.serve.state import Serving, serving
from rprm.showing import message


def create_app(
    rewarder: StepRewarder, *, name: str, policy: Policy | None = None, limits: Limits | None = None,
    key: str | None = None, runs: RunFolders | None = None,
) -> Gate:  # fmt: skip
    """An ASGI application that answers with a rewarder and a policy, both started.

    Args:
        name: of the judge's model, as clients see it.
        policy: answers `/v1/chat/completions`.
        runs: run folders that may be looked at.
        key: what every request must carry; None: requests to this machine's own names alone.
    """
    limits, metrics = limits or Limits(), Metrics()
    state = Serving(name, Judging(rewarder, metrics, limits.cache_mb), policy, limits, metrics)

    app = FastAPI(title="rprm", version=__version__, docs_url=None, redoc_url=None, responses=_FAILURES)
    app.state.serving, app.state.runs = state, runs
    app.state.readers = ThreadPoolExecutor(4, "rprm-runs")
    app.include_router(rewards.router)
    app.include_router(chat.router)
    app.include_router(pages.router)
    app.include_router(browsing.router)
    app.add_api_route("/v1/models", _models, summary="The judge and the strategies.")
    app.add_api_route("/health", _health, summary="Whether the server answers.")
    app.add_api_route("/metrics", _metrics, summary="Counters, as Prometheus reads them.")
    app.add_exception_handler(RequestValidationError, _malformed)
    for kind in (RprmError, TimeoutError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_exception_handler(Gone, _nobody)
    app.add_exception_handler(HTTPException, _refused)
    return Gate(app, limits, metrics, key)


class _Error(BaseModel):
    message: str
    type: str
    param: None
    code: int = Field(description="The status.")


class Failure(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: _Error


_FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": Failure,
        "description": "Refused: 401 without the key, 403 from a page of another site, 408 or 413 a body that is too "
        "slow or too large, 415 no JSON, 421 another host, 422 what cannot be used, 429 too many requests at once.",
    },
    "5XX": {"model": Failure, "description": "503: the model does not answer, the time is over, or the server stops."},
}


async def _models(request: Request) -> dict[str, Any]:
    state = serving(request)
    entry = {"object": "model", "created": 0, "owned_by": "rprm"}
    return {"object": "list", "data": [{"id": one, **entry} for one in [state.name, *chat.strategies(state)]]}


async def _health() -> dict[str, str]:
    return {"status": "ok", "version": __version__}


async def _metrics(request: Request) -> Response:
    return Response(serving(request).metrics.text(), media_type="text/plain; version=0.0.4")


async def _failed(request: Request, error: Exception) -> Response:
    status, body = serving(request).error_of(error)
    return JSONResponse(body, status, {"retry-after": str(RETRY_AFTER_S)} if status == 503 else None)


async def _malformed(request: Request, error: Any) -> Response:
    """A body that is none: the first thing that is wrong with it, and where."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"][1:]))
    if first["type"] == "json_invalid":
        said = f"the body is not JSON: {explained_json(first['ctx']['error'])} at character {first['loc'][-1]}"
    elif first["type"] == "extra_forbidden":
        said = f"{place!r} is not supported here: leave it out"
    elif (wanted := str(first["msg"]).removeprefix("Input should be ")) != first["msg"]:
        said = f"{place or 'the body'} must be {wanted}"
    else:
        said = f"{place}: {first['msg']}" if place else str(first["msg"])
    return JSONResponse(error_body(422, message(said)), 422)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _refused(request: Request, error: Any) -> Response:
    said = "no such path: see /openapi.json" if error.status_code == 404 else str(error.detail)
    return JSONResponse(error_body(error.status_code, said), error.status_code, error.headers)
