"""The page of the server: its own files, nothing from elsewhere; what a model says becomes text there, never HTML."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
}


def _files() -> dict[str, tuple[bytes, str]]:
    folder = files("rprm.serve") / "page"
    return {
        one.name: (one.read_bytes(), f"{_KINDS[one.name.rpartition('.')[2]]}; charset=utf-8")
        for one in folder.iterdir()
        if one.name.rpartition(".")[2] in _KINDS
    }


_FILES = _files()


@router.get("/")
async def index() -> Response:
    return await part("index.html")


@router.get("/page/{name}")
async def part(name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    content, kind = _FILES[name]
    return Response(content, media_type=kind, headers=_HEADERS)
