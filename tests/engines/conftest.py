"""Fixtures of the engines' tests."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llamacpp_url(smollm2_gguf: Path) -> Iterator[str]:
    """URL (up to `/v1`) of a llama.cpp server with SmolLM2: 4 slots of 4096 tokens, in a process of its own."""
    pytest.importorskip("xllamacpp")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("llamacpp_server.py")), str(smollm2_gguf)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        # The library writes to standard output as well: look for the line that is ours.
        url = next((line.strip() for line in process.stdout if line.startswith("http://")), None)
        timer.cancel()
        if url is None:
            pytest.fail(f"the llama.cpp server ended with exit code {process.wait()} before it was ready")
        yield url
    finally:
        timer.cancel()
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture
def impatient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `openai` client waits for milliseconds between its attempts."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
