"""Measure how fast a device multiplies matrices and copies memory; choose a precision from that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from convnext.hardware.devices import AMP_DTYPES, check_precision, cpu_threads
from convnext.hardware.tuner import samples, samples_for
from convnext.hardware.tuning_cache import TuningCache, key_of

# Side of the square matrices: large enough to fill the device, small enough to take milliseconds.
SIDES = {"cuda": 8192, "mps": 2048, "cpu": 1024}
SECONDS = 0.3
# Larger than any cache, small enough for a laptop.
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**31, "mps": 2**29}
NUM_COPIES = 6

# The speedup over fp32 from which bf16 is worth having only 8 bits of mantissa.
BF16_GAIN = 1.2


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the device is faster in bf16 than in fp32.

    A CPU without bf16 instructions computes it correctly but several times slower. On a CPU with
    them, a matrix product is measured once: with AVX512_BF16, some CPUs are twice as fast in bf16,
    others half as fast (LOG.md).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return False
    return bf16_gain(torch.get_num_threads()) > BF16_GAIN


@cache
def bf16_gain(threads: int) -> float:
    """Return the speedup of bf16 matrix products over fp32 on `threads` threads of this CPU.

    Measured once per machine, because it determines the precision of runs: two runs on the same
    machine must not differ by chance.
    """
    device, cache = torch.device("cpu"), TuningCache()
    with cpu_threads(threads):
        key = key_of("bf16_gain", device, threads)
        known = cache.load(key, _positive)
        if known is not None:
            return float(known)
        return _measure_gain(device, cache, key)


def _measure_gain(device: torch.device, cache: TuningCache, key: str) -> float:
    # Of several processes, only one measures at a time; the others read its result.
    with cache.exclusive():
        known = cache.load(key, _positive)
        if known is None:
            rates = {
                name: peak_matmul_flops(device, name, seconds=0.1) for name in ("bf16", "fp32")
            }
            known = rates["bf16"] / rates["fp32"]
            cache.store(key, known)
    return float(known)


def _positive(value: object) -> float:
    if isinstance(value, float) and value > 0:
        return value
    raise ValueError(f"{value!r} is not a ratio")


def pick_training_precision(precision: str, device: torch.device) -> str:
    """Return the precision of a recipe; for `auto`, the fastest one that trains as well as fp32.

    Raises:
        ValueError: As for `check_precision`.
    """
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    check_precision(precision, device)
    return precision


def peak_matmul_flops(device: torch.device, precision: str, seconds: float = SECONDS) -> float:
    """Measure the FLOP/s of matrix products on `device` for `seconds`.

    Unlike a data-sheet peak, this machine can reach this rate with its current power limits and
    torch's number of threads. It is the maximum over many products, which other processes disturb
    least, and is measured once per process and setting. In fp32 on a GPU, products use TF32 if
    torch's convolutions may.
    """
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return _peak_matmul_flops(device, precision, seconds, torch.get_num_threads(), tf32)


@cache
def _peak_matmul_flops(
    device: torch.device, precision: str, seconds: float, threads: int, tf32: bool
) -> float:
    """Measure `peak_matmul_flops`; `threads` is only a key of the cache."""
    dtype = AMP_DTYPES.get(precision, torch.float32)
    side = SIDES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    # With zeros, fewer transistors switch, so a GPU would clock higher than in training.
    a, b = (torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    if tf32:
        torch.set_float32_matmul_precision("high")
    try:
        # The caller's autocast would change the precision of fp32 products.
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            least = _min_seconds(a, b, seconds)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * side**3 / least


def _min_seconds(a: Tensor, b: Tensor, seconds: float) -> float:
    return min(samples_for(lambda: a @ b, a.device, seconds=seconds, min_rounds=3, warmup=2))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Measured peak rates: FLOP/s of large matrix products, bytes per second of a large copy."""

    flops: dict[str, float]
    """FLOP/s by precision."""
    bytes_per_s: float


def measure_limits(device: torch.device, precisions: Iterable[str]) -> Limits:
    """Measure peak rates for about a second, with torch's number of threads."""
    flops = {precision: peak_matmul_flops(device, precision) for precision in precisions}
    return Limits(flops=flops, bytes_per_s=copy_limit(device))


def copy_limit(device: torch.device) -> float:
    """Measure the bytes read and written per second by the copy of a large tensor."""
    source = torch.ones(COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    (seconds,) = samples([lambda: target.copy_(source)], device, rounds=NUM_COPIES)
    return 2 * source.nbytes / min(seconds)


def train_flops_per_image(macs: float) -> float:
    """Return the operations of one training image: 3 x 2 x its multiply-accumulates.

    The convention of the field (PaLM, appendix B): two operations for each multiply-accumulate, and
    a backward pass that costs twice the forward one. Recomputed activations do not count.
    """
    return 3 * 2 * macs


def mfu(images_per_s: float, macs: float, limit: float) -> float:
    """Return the fraction of a device's peak rate (operations per second) that training reaches."""
    return images_per_s * train_flops_per_image(macs) / limit
