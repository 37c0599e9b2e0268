"""Which precision a device computes in."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from rprm.training.lifecycle import computes_in_bf16  # noqa: E402


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"avx2": True, "amx_bf16": False, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        # Another architecture has other names.
        ({"architecture": "aarch64"}, False),
    ],
)
def test_a_processor_computes_in_it_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_in_bf16("auto", use_cpu=True) is expected
    # What is asked for by name is done, at whatever cost.
    assert computes_in_bf16("bf16", use_cpu=True)
    assert not computes_in_bf16("fp32", use_cpu=True)


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_in_bf16("auto", use_cpu=True)


def test_a_gpu_is_asked_where_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    for available, supported in ((True, True), (True, False), (False, True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert computes_in_bf16("auto", use_cpu=False) is (available and supported)
        assert not computes_in_bf16("auto", use_cpu=True)
