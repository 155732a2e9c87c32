"""Benchmark networks on several backends, in turns, each in its own process."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from convnext.hardware.devices import cpu_threads, environment, pick_device
from convnext.hardware.peak_rates import Limits, has_fast_bf16, measure_limits
from convnext.models.flops import Demand, demand, in_chans
from convnext.tasks.factory import create_model, input_size_of

ROUNDS = 7
# Number of single images timed for the percentiles of latency.
NUM_LATENCIES = 50
KINDS = {"timm": "timm, eager", "eager": "eager", "best": "fastest backend", "int8": "int8"}
USUAL = ("timm", "eager", "best")
# Anything that libraries print, from their import on, goes to standard error, not into the answers.
START = """
import os
answers = os.dup(1)
os.dup2(2, 1)
from convnext.benchmarking.worker import main
main(answers)
"""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One backend at one batch size."""

    kind: str
    """A key of `KINDS`."""
    form: str
    precision: str
    """The precision of the backend, and of the peak rate behind `matrix_share`."""
    batch: int
    seconds: float
    """Median seconds of a batch; NaN if it failed."""
    images_per_s: float
    ratio: float | None
    """Speedup over the first backend in the list, in the same rounds."""
    peak_gb: float
    """Peak memory in 10^9 bytes: on a GPU, of the tensors; on a CPU, of the process (including
    building), minus the libraries that it started with."""
    matrix_share: float
    """Matmul utilization: the fraction of the measured peak FLOP/s of matrix products."""
    memory_share: float
    """Memory utilization: the fraction of the measured bytes per second of a large copy, if only
    products access memory."""
    latency_ms: dict[str, float] | None = None
    """At batch size 1: percentiles p50, p90, p99."""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """A network, its cost, and the timings of its backends."""

    model: str
    size: tuple[int, int]
    demand: Demand
    timings: tuple[Timing, ...]
    searches: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By batch size, the measurements of the search for the fastest backend, unless cached."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """All measurements of one run."""

    environment: dict[str, Any]
    precision: str
    rounds: int
    limits: Limits
    networks: tuple[NetworkResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON; NaN becomes None."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain


def benchmark(
    models: Sequence[str],
    *,
    batches: Sequence[int] = (1, 8),
    size: tuple[int, int] | None = None,
    precision: str = "auto",
    device: str = "auto",
    threads: int = 0,
    rounds: int = ROUNDS,
    kinds: Sequence[str] = USUAL,
    note: Callable[[str], None] = lambda _: None,
) -> BenchmarkResult:
    """Measure networks with random weights; the weights do not affect the speed.

    Args:
        models: Names that `create_model` knows.
        batches: Batch sizes.
        size: Height and width of the images; by default 224 x 224 for classifiers, 512 x 512 for
            segmentation networks, 800 x 1280 for detectors.
        precision: Precision of the fastest backend: `fp32`, `bf16`, `fp16`, or `auto` for the
            faster of fp32 and bf16. Eager mode runs in fp32 on a CPU; on a GPU it runs in this
            precision (`auto`: bf16) under autocast, as is usual.
        device: `cpu`, `cuda`, `mps` or `auto`.
        threads: Number of CPU threads; 0 for torch's default.
        rounds: Number of turns of all backends; medians count.
        kinds: Backends, as keys of `KINDS`; ratios are relative to the network's first one.
        note: Called with each line of progress.

    Raises:
        ValueError: If a model, a kind or a number is invalid.
    """
    counts = [(rounds, "rounds"), *((b, "batch sizes") for b in batches)]
    for number, what in (*counts, *((side, "sizes") for side in size or ())):
        if number < 1:
            raise ValueError(f"{what} must be at least 1, not {number}")
    if threads < 0:
        raise ValueError(f"threads must be at least 1, or 0 for torch's own choice, not {threads}")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"there is no backend {kind!r}; choose from {', '.join(KINDS)}")
    where = pick_device(device)
    with cpu_threads(threads):
        fastest = "bf16" if has_fast_bf16(where) else "fp32"
        eager = "fp32" if where.type == "cpu" else (fastest if precision == "auto" else precision)
        # Plan before measuring, so that a wrong name fails at once.
        plans = [_plan(name, size, kinds) for name in models]
        others = {"fp32", fastest} if precision == "auto" else {precision}
        limits = measure_limits(where, sorted({eager} | others))
        note(f"this machine: {describe_limits(limits)}")
        results = []
        for plan in plans:
            name, shape, wanted = plan.name, plan.size, plan.demand
            timings: list[Timing] = []
            searches: dict[int, list[dict[str, Any]]] = {}
            for batch in batches:
                request = {
                    "model": name,
                    "timm": timm_name(name),
                    "in_chans": plan.in_chans,
                    "size": list(shape),
                    "batch": batch,
                    "threads": threads,
                    "device": str(where),
                }
                requests = [
                    request | {"kind": kind, "precision": precision if kind == "best" else eager}
                    for kind in plan.kinds
                ]
                answers = _take_turns(requests, rounds, note)
                timings += _timings(plan.kinds, answers, batch, wanted, limits)
                searches[batch] = next((t["search"] for t in answers if t.get("search")), [])
            results.append(
                NetworkResult(
                    model=name,
                    size=shape,
                    demand=wanted,
                    timings=tuple(timings),
                    searches={b: s for b, s in searches.items() if s},
                )
            )
        return BenchmarkResult(
            environment=environment(where),
            precision=precision,
            rounds=rounds,
            limits=limits,
            networks=tuple(results),
        )


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The measurements to make for a network."""

    name: str
    size: tuple[int, int]
    in_chans: int
    demand: Demand
    kinds: tuple[str, ...]


def _plan(name: str, size: tuple[int, int] | None, kinds: Sequence[str]) -> _Plan:
    own = tuple(k for k in kinds if k != "timm" or timm_name(name))
    if not own:
        raise ValueError(f"timm has no model {name}; give --backends at least one other backend")
    usual = input_size_of(name)
    shape = size or usual
    model = create_model(name)
    try:
        wanted = demand(model, shape)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} cannot take images of {shape[0]} x {shape[1]} pixels; try --size {usual[0]} "
            f"({reason})"
        ) from error
    return _Plan(name=name, size=shape, in_chans=in_chans(model), demand=wanted, kinds=own)


def describe_limits(limits: Limits) -> str:
    """Format the peak rates of a machine."""
    flops = ", ".join(f"{f / 1e9:,.0f} GFLOP/s in {name}" for name, f in limits.flops.items())
    return f"matrix products {flops}; memory copies {limits.bytes_per_s / 1e9:,.1f} GB/s"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def timm_name(name: str) -> str:
    """Return timm's name of a network; empty if timm does not have it."""
    import timm

    known = name.removeprefix("timm/")
    if known.startswith("convnext_isotropic"):
        return ""
    return known if known in timm.list_models() else ""


class _Worker:
    """The client of a `convnext.benchmarking.worker` process."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        # A file, because an unread pipe would fill up and block the process forever.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer, which has `failure` if the request failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except BrokenPipeError:
            return self._death()
        for line in stdout:
            answer: dict[str, Any] = json.loads(line)
            if "note" not in answer:
                return answer
            self._note(f"  {answer['note']}")
        return self._death()

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        with suppress(BrokenPipeError):  # An unsent request.
            self._process.communicate()
        self._errors.close()

    def _death(self) -> dict[str, Any]:
        self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:]
        why = last[0][:120] if last else "perhaps out of memory"
        return {"failure": f"its process died: {why}"}


def _take_turns(
    requests: Sequence[dict[str, Any]], rounds: int, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return each worker's answers: `times` of every batch, `form` and `peak_gb`, or `failure`."""
    workers = [_Worker(note) for _ in requests]
    try:
        answers = []
        for i, request in enumerate(requests):
            note(f"{request['model']}, batch {request['batch']}: {KINDS[request['kind']]}")
            answer = workers[i].ask(build=request)
            if answer.get("search"):
                # Start a new process, whose memory does not include all tried backends.
                workers[i].end()
                workers[i] = _Worker(note)
                answer |= workers[i].ask(build=request | {"found": answer["found"]})
            answers.append(answer | {"times": []})
        # One batch per round; at batch size 1, as many images as the percentiles need.
        single = requests[0]["batch"] == 1
        turns = -(-NUM_LATENCIES // rounds) if single else 1
        for _ in range(rounds):
            for worker, known in zip(workers, answers, strict=True):
                if "failure" not in known:
                    answer = worker.ask(run=turns)
                    known["times"] += answer.pop("seconds", [])
                    known |= answer
        return answers
    finally:
        for worker in workers:
            worker.end()


def _timings(
    kinds: Sequence[str],
    answers: Sequence[dict[str, Any]],
    batch: int,
    wanted: Demand,
    limits: Limits,
) -> list[Timing]:
    timings = []
    first = statistics.median(answers[0]["times"]) if answers[0]["times"] else None
    for kind, known in zip(kinds, answers, strict=True):
        times = known["times"]
        seconds = statistics.median(times) if times else float("nan")
        precision = known.get("precision", "fp32")
        percentiles = np.percentile(times, [50, 90, 99]) if batch == 1 and times else None
        timings.append(
            Timing(
                kind=kind,
                form=known.get("form", KINDS[kind]),
                precision=precision,
                batch=batch,
                seconds=seconds,
                images_per_s=batch / seconds,
                ratio=None if first is None else first / seconds,
                peak_gb=known.get("peak_gb", float("nan")),
                matrix_share=batch * wanted.flops / seconds / limits.flops.get(precision, math.nan),
                memory_share=wanted.bytes_of(batch, precision) / seconds / limits.bytes_per_s,
                latency_ms=None
                if percentiles is None
                else dict(zip(("p50", "p90", "p99"), (1000 * percentiles).tolist(), strict=True)),
                failure=known.get("failure", ""),
            )
        )
    return timings
