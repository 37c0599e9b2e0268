"""The requests of docs/serve.md, as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from serving import Serve, scripted_policy

from rprm.embedded import outside_world
from rprm.records import Solution

DOCS = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
CURLS = re.findall(r"^curl .*?}'$", DOCS, re.MULTILINE | re.DOTALL)
(PYTHON,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def test_there_are_two_requests_of_what_the_default_model_knows() -> None:
    assert len(CURLS) == 2
    for curl in CURLS:
        body = json.loads(curl[curl.index("{") :].removesuffix("'"))
        row = body.get("solutions", [body])[0]
        assert outside_world(Solution(id="0", problem=row["problem"], steps=tuple(row["steps"]))) is None


@pytest.mark.parametrize("curl", CURLS)
def test_curl(serve: Serve, curl: str) -> None:
    client = serve()
    done = subprocess.run(
        ["sh", "-c", curl.replace("localhost:8765", f"127.0.0.1:{client.base_url.port}")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    rewards = answer["data"][0]["rewards"] if "data" in answer else [answer["reward"]]
    assert rewards
    assert all(0 <= reward <= 1 for reward in rewards)


def test_python(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    client = serve(policy=scripted_policy())
    exec(PYTHON.replace("8765", str(client.base_url.port)), {})
    assert "boxed" in capsys.readouterr().out
