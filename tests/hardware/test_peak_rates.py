"""Tests of the rates that decide the precision."""

from __future__ import annotations

import pytest
import torch

from convnext.hardware import peak_rates as module
from convnext.hardware.devices import cpu_threads
from convnext.hardware.peak_rates import has_fast_bf16

CPU = torch.device("cpu")


@pytest.fixture
def rates(tmp_path, monkeypatch):
    """Fake rates of a product by precision, with a list of those that were measured."""
    known = {"fp32": 100.0, "bf16": 230.0}
    asked = []

    def measure(device, precision, seconds):
        asked.append(precision)
        return known[precision]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "peak_matmul_flops", measure)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    module.bf16_gain.cache_clear()
    yield known, asked
    module.bf16_gain.cache_clear()


@pytest.mark.parametrize(("bf16", "fast"), [(230.0, True), (110.0, False), (50.0, False)])
def test_instructions_for_bf16_count_where_they_are_faster(rates, bf16, fast):
    rates[0]["bf16"] = bf16
    assert has_fast_bf16(CPU) is fast


def test_what_was_measured_is_remembered(rates):
    known, asked = rates
    assert has_fast_bf16(CPU)
    module.bf16_gain.cache_clear()  # As in another process.
    known["bf16"] = 50.0
    assert has_fast_bf16(CPU)
    assert asked == ["bf16", "fp32"]


def test_without_instructions_nothing_is_measured(rates, monkeypatch):
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: False)
    assert not has_fast_bf16(CPU)
    assert rates[1] == []


def test_a_change_of_threads_is_measured(tmp_path, monkeypatch):
    def least(a, b, seconds):
        return 1.0 if a.dtype == torch.float32 else 1 / torch.get_num_threads()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_min_seconds", least)
    cached = module.bf16_gain, module._peak_matmul_flops
    before = torch.get_num_threads()
    try:
        for _ in ("measured", "read from disk"):
            for function in cached:
                function.cache_clear()
            for threads in (1, 3, 2):
                assert module.bf16_gain(threads) == threads
        assert torch.get_num_threads() == before
        for threads in (3, 2):
            with cpu_threads(threads):
                one = module.peak_matmul_flops(CPU, "fp32", seconds=0.1)
                assert module.peak_matmul_flops(CPU, "bf16", seconds=0.1) == threads * one
    finally:
        for function in cached:
            function.cache_clear()


def test_rates_are_the_same_inside_of_autocast(monkeypatch):
    seen = []

    def least(a, b, seconds):
        seen.append((a @ b).dtype)
        return 1.0

    monkeypatch.setattr(module, "_min_seconds", least)
    with torch.autocast("cpu", torch.bfloat16):
        for precision in ("fp32", "bf16"):
            module.peak_matmul_flops(CPU, precision, seconds=0.0)
    assert seen == [torch.float32, torch.bfloat16]
