"""`optimize`: find the fastest correct backend of a network on this machine by measuring.

Every candidate is built, compared with the unmodified network, and timed in turns with the best one
so far; only candidates whose outputs agree count. The result is cached by machine, network and
shape, so that the next process builds only the fastest backend.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from convnext.deploy.backends import PLAIN, Backend, Runner, build, candidates
from convnext.deploy.fold import fold
from convnext.hardware.devices import AMP_DTYPES
from convnext.hardware.system import keep_freed_memory
from convnext.hardware.tuner import (
    BUDGET_S,
    NUM_TIMED,
    Candidate,
    Parity,
    Trial,
    first_line,
    medians,
    samples,
    tune,
)
from convnext.hardware.tuning_cache import TuningCache, cache_file, key_of
from convnext.kernels.winograd import has_any, with_winograd

# Maximum time for the turns of one candidate, so that several are measured within the budget.
TIMED_S = 6.0
# Number of images on which a cached backend is compared with the network.
NUM_COMPARED = 8
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
# Maximum relative L2 distance of outputs. Backends in fp32 differ by rounding, about 1e-6; 8 bits
# of mantissa in every layer cost about 1e-2. int8 depends on the calibration images; `convnext
# export` measures its accuracy on labeled images.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 6e-2, "int8": 0.25}
# A candidate that is this many times slower than the best one after two turns is given up.
TOO_SLOW = 1.3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured backend: its speed, and its difference from the unmodified network."""

    form: Backend
    seconds: float | None
    """Median seconds of a batch; None if it cannot run or is wrong."""
    difference: float | None
    """Relative L2 distance of the outputs."""
    build_seconds: float
    failure: str = ""

    @classmethod
    def of(cls, trial: Trial[Backend]) -> Measured:
        """Convert a trial of the tuner."""
        return cls(
            form=trial.choice,
            seconds=trial.seconds,
            difference=trial.difference,
            build_seconds=trial.build_seconds,
            failure=trial.failure,
        )


class Tuner(ABC):
    """Finds the fastest backend of a network.

    `images` are the network's input: a batch (N, C, H, W), or a list of images (C, H, W).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @abstractmethod
    def key(self, images: Any, precision: str) -> str:
        """Return the key of a result in the cache."""

    @abstractmethod
    def first(self, device: torch.device, precision: str, *, inplace: bool) -> TunedNetwork:
        """Return the network on its default backend, which needs no search.

        With `inplace`, the network may be modified.
        """

    @abstractmethod
    def build(self, backend: Backend, images: Any, *, inplace: bool = False) -> TunedNetwork:
        """Return the network on a backend; with `inplace`, the network may be modified.

        Raises:
            Exception: Any exception of an engine that cannot build this network on this machine.
        """

    @abstractmethod
    def failure(self, built: TunedNetwork, images: Any) -> str:
        """Return the reason to reject a network on a cached backend; "" if it is correct."""

    @abstractmethod
    def search(
        self,
        images: Any,
        *,
        precision: str,
        budget_s: float = BUDGET_S,
        note: Callable[[str], None] = lambda _: None,
    ) -> TunedNetwork:
        """Measure the backends of the network, and return the fastest correct one.

        Raises:
            ValueError: If there is no backend of this precision.
        """

    @torch.no_grad()
    def known(
        self, known: Known, images: Any, *, note: Callable[[str], None]
    ) -> TunedNetwork | None:
        """Return the network on a cached backend; None if that fails or is wrong.

        The cached result may come from other weights, as after `convnext benchmark`.
        """
        try:
            built = self.build(known.form, images)
            failure = self.failure(built, images)
        except Exception as error:  # The engine may have changed since.
            failure = first_line(error)
        if failure:
            note(f"{known.form} was the fastest before, but fails now: {failure}")
            return None
        note(f"{known.form}, found before on this machine")
        built.ratio = known.ratio
        return built

    def find(
        self,
        images: Any,
        *,
        precision: str = "auto",
        budget_s: float = BUDGET_S,
        cache: Path | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> TunedNetwork:
        """Return the network on its fastest correct backend, which is cached.

        Raises:
            ValueError: If there is no backend of this precision.
        """
        cache = cache or cache_file()
        key = self.key(images, precision)
        known = known_backend(cache, key)
        best = None if known is None else self.known(known, images, note=note)
        if best is not None:
            return best
        found = self.search(images, precision=precision, budget_s=budget_s, note=note)
        if len(found.measured) > 1:  # Otherwise the budget ran out before the first candidate.
            seconds = next(m.build_seconds for m in found.measured if m.form == found.form)
            TuningCache(cache).store(key, asdict(Known(found.form, found.ratio, seconds)))
        return found


class TunedNetwork(nn.Module):
    """A network on a backend, called like the network."""

    form: Backend
    ratio: float
    """Speedup over the unmodified network; 1 if it was not measured."""
    measured: tuple[Measured, ...]
    """All backends that were tried; empty if the result was cached."""


@runtime_checkable
class Tunable(Protocol):
    """A network with its own tuner, which takes a list of images (C, H, W)."""

    def tuner(self) -> Tuner:
        """Return the tuner of this network."""
        ...


def tuner_of(model: nn.Module, calibration: Sequence[Tensor] = ()) -> Tuner:
    """Return the tuner of a network."""
    return model.tuner() if isinstance(model, Tunable) else NetworkTuner(model, calibration)


class Optimized(TunedNetwork):
    """A network on its fastest backend, called with images (N, C, H, W) like the network.

    Batches larger than the example are split, and slightly smaller ones are padded. Much smaller
    batches, and images of another size, run in eager mode.

    Attributes:
        form: The backend.
        measured: All backends that were tried; empty if the result was cached.
        ratio: Speedup over the unmodified network when it was measured.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        backend: Backend,
        runner: Runner,
        *,
        ratio: float,
        measured: Sequence[Measured] = (),
    ) -> None:
        super().__init__()
        self.form = backend
        self.measured = tuple(measured)
        self.ratio = ratio
        self._shape = tuple(example.shape)
        self._runner = runner
        is_eager = backend.engine == "eager"
        self._eager: Runner | None = runner if is_eager else None
        # Not registered as a child, so that it is neither moved nor saved with this module. An
        # eager backend takes any shape and no longer needs the network's weights.
        self._model: tuple[nn.Module, ...] = () if is_eager else (model,)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the network's outputs, in fp32."""
        max_images = self._shape[0]
        if self.form.engine == "eager" or tuple(images.shape[1:]) != self._shape[1:]:
            return self._in_eager_mode(images)
        if len(images) <= max_images:
            return self._up_to_example(images)
        return torch.cat([self._up_to_example(part) for part in torch.split(images, max_images)])

    def _up_to_example(self, images: Tensor) -> Tensor:
        max_images, num = self._shape[0], len(images)
        if num == max_images:
            return self._runner(images)
        if num * self.ratio < max_images:  # Padding would cost more than it gains.
            return self._in_eager_mode(images)
        filled = torch.cat([images, images[-1:].expand(max_images - num, *images.shape[1:])])
        return self._runner(filled)[:num]

    def _in_eager_mode(self, images: Tensor) -> Tensor:
        if self._eager is None:
            backend = eager_backend(images.device, self.form.precision, self._model[0])
            self._eager = build(backend, self._model[0], images)
        return self._eager(images)


def eager_backend(device: torch.device, precision: str, model: nn.Module) -> Backend:
    """Return the best backend of a network that needs no compiler."""
    pointwise = "chunked" if device.type == "cpu" else "linear"
    precision = "fp32" if precision in ("auto", "int8") else precision
    winograd = device.type == "cpu" and precision == "fp32" and has_any(model)
    dense = "winograd" if winograd else "direct"
    return Backend(pointwise=pointwise, precision=precision, dense=dense)  # type: ignore[arg-type]


class Folded(TunedNetwork):
    """A folded network that runs in the precision of its caller and takes any shape."""

    ratio = 1.0
    measured = ()

    def __init__(self, model: nn.Module, backend: Backend, *, inplace: bool) -> None:
        super().__init__()
        self.form = backend
        folded = fold(model, form=backend.pointwise, inplace=inplace)
        if backend.dense == "winograd":
            folded = with_winograd(folded)
        self._model = folded.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, **options: Any) -> Any:
        """Call the folded network."""
        return self._model(images, **options)


class NetworkTuner(Tuner):
    """Finds the fastest backend of a network that maps a batch of images to one tensor."""

    def __init__(self, model: nn.Module, calibration: Sequence[Tensor] = ()) -> None:
        super().__init__(model)
        self.calibration = calibration

    def key(self, images: Tensor, precision: str) -> str:
        """Return the key of a result in the cache."""
        return cache_key(self.model, images, precision)

    def first(self, device: torch.device, precision: str, *, inplace: bool) -> Folded:
        """Return the folded network, in the precision of its caller."""
        return Folded(self.model, eager_backend(device, precision, self.model), inplace=inplace)

    def build(self, backend: Backend, images: Tensor, *, inplace: bool = False) -> Optimized:
        """Return the network on a backend, for batches like `images`."""
        runner = build(backend, self.model, images, self.calibration)
        return Optimized(self.model, images, backend, runner, ratio=1.0)

    def failure(self, built: TunedNetwork, images: Tensor) -> str:
        """Return a message if the outputs differ too much from the network's."""
        few = images[:NUM_COMPARED]
        difference = distance(built(images)[: len(few)], build(PLAIN, self.model, few)(few))
        right = difference <= TOLERANCE[built.form.precision]  # False for NaN.
        return "" if right else f"outputs differ by {difference:.1e}"

    def search(
        self,
        images: Tensor,
        *,
        precision: str,
        budget_s: float = BUDGET_S,
        note: Callable[[str], None] = lambda _: None,
    ) -> Optimized:
        """Measure the backends of the network, and return the fastest correct one."""
        return search(
            *(self.model, images),
            precision=precision,
            calibration=self.calibration,
            budget_s=budget_s,
            note=note,
        )


@torch.no_grad()
def optimize(
    model: nn.Module,
    example: Tensor,
    *,
    precision: str = "auto",
    calibration: Sequence[Tensor] | None = None,
    budget_s: float = BUDGET_S,
    cache: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> TunedNetwork:
    """Return the fastest correct backend of a network on this machine, for batches like `example`.

    Args:
        model: A classifier, a segmentation network or a detector, in fp32 on the device of the
            example. It is switched to evaluation mode, and must not change while the result is in
            use.
        example: Normalized images (N, C, H, W) of the intended batch size.
        precision: `fp32`, `bf16` or `fp16`; `auto` for fp32, and bf16 if the device is fast in it;
            or `int8` for these and int8, on CPUs.
        calibration: For int8, batches of normalized images from the data to predict.
        budget_s: Seconds after which no further backend is tried.
        cache: The file of cached results; by default in the user's cache folder.
        note: Called with each line of progress.

    Returns:
        A module with `form` and, after a search, `measured`. It is called like the network: a
        detector with a list of images (C, H, W) of any sizes.

    On a CPU with glibc, this process keeps freed memory from then on (`convnext.hardware.system`).

    Raises:
        ValueError: If the example is not a batch of images, the precision is unknown, int8 has no
            calibration images, or int8 is requested for a detector.
    """
    if example.dim() != 4 or not len(example) or not example.is_floating_point():
        raise ValueError(
            f"example must be a batch of normalized float images (N, C, H, W), not {example.dtype} "
            f"{tuple(example.shape)}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not calibration:
        raise ValueError("int8 needs `calibration`: batches of images from the data to predict")
    if example.device.type == "cpu":
        keep_freed_memory()
    tuner = tuner_of(model.eval(), calibration or ())
    images = list(example) if isinstance(model, Tunable) else example
    return tuner.find(images, precision=precision, budget_s=budget_s, cache=cache, note=note)


@dataclass(frozen=True)
class Known:
    """The cached result of a search."""

    form: Backend
    ratio: float
    build_seconds: float


def cache_key(model: nn.Module, example: Tensor, precision: str) -> str:
    """Return a cache key made of the machine, the engines, and the network without its weights."""
    return key_of("inference", example.device, repr(model), tuple(example.shape), precision)


def known_backend(cache: Path, key: str) -> Known | None:
    """Return the cached result of a search; None if there is none, or it cannot be read."""
    known: Known | None = TuningCache(cache).load(key, _known)
    return known


def _known(value: Any) -> Known:
    known = Known(Backend(**value["form"]), float(value["ratio"]), float(value["build_seconds"]))
    if not (math.isfinite(known.ratio) and known.ratio >= 1):
        raise ValueError(f"its ratio is {known.ratio}")
    return known


@torch.no_grad()
def search(
    model: nn.Module,
    example: Tensor,
    *,
    precision: str = "auto",
    calibration: Sequence[Tensor] = (),
    budget_s: float = BUDGET_S,
    note: Callable[[str], None] = lambda _: None,
    backends: Sequence[Backend] | None = None,
) -> Optimized:
    """Measure all candidates, or the given backends, and return the fastest one."""
    expected = build(PLAIN, model, example)(example)
    # The baseline is the caller's alternative: the unmodified network, under autocast if half.
    start = replace(PLAIN, precision=precision if precision in AMP_DTYPES else "fp32")  # type: ignore[arg-type]
    if backends is None:
        backends = candidates(example.device, precision)
        first = eager_backend(example.device, "fp32", model)
        if first.dense == "winograd" and precision in ("auto", "fp32", "int8"):
            backends = [first, *backends]

    def compare(backend: Backend, runner: Runner) -> Parity:
        return Parity(distance(runner(example), expected), TOLERANCE[backend.precision])

    verdict = tune(
        Candidate(start, lambda: build(start, model, example)),
        [
            Candidate(backend, partial(build, backend, model, example, calibration))
            for backend in backends
        ],
        measure=lambda runners: interleaved(runners, example, too_slow=TOO_SLOW),
        compare=compare,
        budget_s=budget_s,
        unit=" a batch",
        note=note,
    )
    measured = [Measured.of(trial) for trial in verdict.trials]
    return Optimized(
        model, example, verdict.choice, verdict.built, ratio=verdict.ratio, measured=measured
    )


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance of outputs; infinity if their shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    # On the CPU, because some devices have no fp64.
    a, b = (t.detach().cpu().double() for t in (found, expected))
    scale = torch.linalg.vector_norm(b).clamp_min(1e-12)
    return float(torch.linalg.vector_norm(a - b) / scale)


def interleaved(
    runs: Sequence[Runner], example: Tensor, *, num: int = NUM_TIMED, too_slow: float = float("inf")
) -> list[float]:
    """Return the median seconds of each call with an example, measured in turns.

    Stops after two turns if the last call is `too_slow` times slower than the first, and after
    `TIMED_S` seconds.
    """
    calls = [partial(run, example) for run in runs]
    device = example.device
    return medians(samples(calls, device, rounds=num, max_seconds=TIMED_S, too_slow=too_slow))
