"""The server among hostile clients: a short form of `perf/serve.py load`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_answer_is_lost_or_another_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "perf"))
    monkeypatch.delitem(sys.modules, "serve", raising=False)
    import serve as measured

    found = measured.measure_load(num_clients=24, seconds=4.0)
    answers = found["answers"]
    assert set(answers) <= {
        "gone", "slow", "good: 200", "malformed: 400", "malformed: 422", "oversized: 413", "good: 429"
    }  # fmt: skip
    assert answers["good: 200"] > 20
    assert answers["oversized: 413"] > 0
    # What has come by then ends; what comes later is refused, or finds nobody.
    assert set(found["ends"]) <= {"200", "503", "ReadError", "ConnectError", "RemoteProtocolError"}
    assert found["exit code"] == 0
    assert found["stderr"][-1] == "rprm: stopped by SIGTERM; 0 requests were broken off"
