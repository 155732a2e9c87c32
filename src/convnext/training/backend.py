"""Measure which backend trains a network fastest here, and whether its gradients are right in bf16.

Only long runs are worth the measurement. The result is cached per machine and shape, so two runs
with one seed use the same backend and compute the same bits.

Libraries have bugs that appear only at some shapes: torch 2.15 with AMX leaves parts of the weight
gradient uninitialized for a 3 x 3 convolution of stride 2 on a 1 x 1 map. Each layer is therefore
checked separately, at its shape in this network: the accumulated error of a deep network would hide
the bug.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext.hardware.devices import Ranks, autocast
from convnext.hardware.tuner import Candidate, medians, samples, tune
from convnext.hardware.tuning_cache import TuningCache, key_of
from convnext.models.execution import set_fused, widens
from convnext.names import count_noun, short_time
from convnext.recipes.schema import ResolvedRecipe, RunRecipe
from convnext.tasks.base import Task
from convnext.training.checks import smaller_micro_batch
from convnext.training.faults import is_out_of_memory

# In shorter runs a measurement costs more than a fifth of what it may save. Compiling the training
# step of a small network takes a minute on a CPU, and must save five.
WORTH_SECONDS = 600.0
COMPILING_WORTH_SECONDS = 1800.0
NUM_TIMED = 3
# A smaller gain is within the noise and does not justify another backend.
MIN_GAIN = 0.08


@dataclass(frozen=True)
class Backend:
    """How a network is executed in training."""

    channels_last: bool = True
    compile: bool = False

    def __str__(self) -> str:
        how = "compiled" if self.compile else "eager"
        return f"{how} {'channels_last' if self.channels_last else 'channels_first'}"


@dataclass(frozen=True)
class Chosen:
    """A backend, and the reason for it that the user sees."""

    backend: Backend
    reason: str


def choose_backend(
    task: Task,
    model: nn.Module,
    recipe: ResolvedRecipe,
    device: torch.device,
    *,
    ranks: Ranks,
    num_steps: int,
    micro_batch_size: int,
    cache: Path | None = None,
    announce: Callable[[str], object] = lambda text: None,
) -> Chosen:
    """Return the backend that the recipe requests, or the fastest one for `auto`.

    The network is left unchanged. A backend that fails to run or to compile is skipped.

    Args:
        task: Provides the first micro batch, as in the loop.
        model: The network on `device`, not set up yet.
        recipe: Resolved, except `run.channels_last` and `run.compile`.
        device: The device that trains the network.
        ranks: The first process measures; the others use its result.
        num_steps: The number of steps of the run.
        micro_batch_size: Images per backward pass on one device.
        cache: The file of earlier measurements; by default in the user's cache folder.
        announce: Called with one line before a measurement that takes long.
    """
    run = recipe.run
    if run.channels_last != "auto" and run.compile != "auto":
        return Chosen(Backend(run.channels_last, run.compile), "as the recipe says")
    plain = Backend(
        True if run.channels_last == "auto" else run.channels_last,
        False if run.compile == "auto" else run.compile,
    )
    if run.deterministic:
        return Chosen(plain, "nothing is measured in a deterministic run")
    chosen = None
    if ranks.is_first:
        chosen = _measured(
            task, model, recipe, device, plain, num_steps, micro_batch_size, cache, announce
        )
    agreed: Chosen = ranks.broadcast_object(chosen)
    return agreed


def _measured(
    task: Task,
    model: nn.Module,
    recipe: ResolvedRecipe,
    device: torch.device,
    plain: Backend,
    num_steps: int,
    micro_batch_size: int,
    path: Path | None,
    announce: Callable[[str], object],
) -> Chosen:
    part = first_part(task, micro_batch_size)
    parts_per_step = max(1, task.batch_size / max(1, task.size(part)))

    def seconds(backend: Backend, *, once: bool = False) -> float:
        return _time_backend(task, model, backend, part, device, recipe.run, once=once)

    too_short = Chosen(plain, "the default: the run is too short to measure others")
    try:
        # The first pass is the slowest: if even it promises a short run, one pass is enough.
        if seconds(plain, once=True) * parts_per_step * num_steps < WORTH_SECONDS:
            return too_short
        first = seconds(plain)
    except RuntimeError as error:
        if is_out_of_memory(error):  # The loop continues with a smaller micro batch.
            return Chosen(plain, "the default: memory is scarce")
        raise
    expected = first * parts_per_step * num_steps
    if expected < WORTH_SECONDS:
        return too_short
    compiles = expected >= COMPILING_WORTH_SECONDS
    cache, key = TuningCache(path), _key(recipe, device, micro_batch_size)
    if not compiles:
        key = f"eager_{key}"  # A longer run measures more.
    known = cache.load(key, lambda value: Backend(**value))
    if known is not None:
        return Chosen(known, "measured before on this machine")
    backends = _backends(plain, recipe.run, compiles=compiles)
    compiling = "; compiling may take minutes" if any(b.compile for b in backends) else ""
    announce(
        f"measuring {count_noun(len(backends), 'training backend')}, since this run takes about "
        f"{expected / 60:,.0f} min{compiling} (--run.compile and --run.channels_last choose one)"
    )
    chosen = _fastest(
        backends,
        lambda backend: first if backend == plain else seconds(backend),
        lambda backend: _backend_error(task, model, backend, plain, part, device, recipe.run),
        num_calls=parts_per_step * num_steps,
        max_error=MAX_ERROR if recipe.run.precision == "fp32" else MAX_ERROR_OF_16_BITS,
    )
    cache.store(key, asdict(chosen.backend))
    return chosen


def _fastest(
    backends: Sequence[Backend],
    seconds: Callable[[Backend], float],
    error: Callable[[Backend], float],
    *,
    num_calls: float,
    max_error: float,
) -> Chosen:
    """Return the fastest backend, and the times of all of them as the reason.

    Args:
        backends: The backends; the first is taken if no other is faster.
        seconds: Measures a backend, once: trials cannot alternate within one network.
        error: Returns the relative error of a backend's gradients.
        num_calls: The number of micro batches of the run.
        max_error: The maximum error.
    """
    began = time.perf_counter()
    measured: dict[Backend, float] = {}

    def measure(some: Sequence[Backend]) -> list[float]:
        for backend in some:
            if backend not in measured:
                measured[backend] = seconds(backend)
        return [measured[backend] for backend in some]

    # The run compiles again and pays that cost again.
    options = [
        Candidate(backend, lambda backend=backend: backend, pays_for_building=backend.compile)  # type: ignore[misc]
        for backend in backends
    ]
    verdict = tune(options[0], options[1:], measure=measure, num_calls=num_calls, min_gain=MIN_GAIN)
    choice, wrong = verdict.choice, ""
    if choice != backends[0]:
        try:
            found = error(choice)
        except RuntimeError:  # Two sets of gradients may not fit into the memory.
            found = math.inf
        if found > max_error:
            wrong = f"; {choice} is not used: its gradients are {_how_wrong(found)}"
            choice = backends[0]
    torch._dynamo.reset()
    trials = (
        f"{trial.choice} {'fails' if trial.seconds is None else short_time(trial.seconds)}"
        for trial in verdict.trials
    )
    took = f"measured per micro batch in {time.perf_counter() - began:.0f} s: "
    return Chosen(choice, took + ", ".join(trials) + wrong)


def _backend_error(
    task: Task,
    model: nn.Module,
    backend: Backend,
    plain: Backend,
    part: Any,
    device: torch.device,
    run: RunRecipe,
) -> float:
    """Return the relative error of a backend's gradients of a micro batch, over all weights.

    Without dropout and drop path, whose random numbers depend on the backend.
    """
    names = ("drop", "stochasticdepth")
    drops = [m for m in model.modules() if any(n in type(m).__name__.lower() for n in names)]
    found = []
    for one in (plain, backend):
        grads: list[Tensor] = []
        _time_backend(task, model, one, part, device, run, once=True, frozen=drops, grads=grads)
        found.append(grads)
    exact, other = found
    error = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(other, exact, strict=True)))
    error /= max(math.sqrt(sum(float(grad.square().sum()) for grad in exact)), 1e-12)
    return error if math.isfinite(error) else math.inf


def _how_wrong(error: float) -> str:
    return f"off by {100 * error:.3g} %" if error < math.inf else "not numbers"


def _backends(plain: Backend, run: RunRecipe, *, compiles: bool) -> list[Backend]:
    """Return the backends that a recipe allows, the default one first.

    Without `compiles`, a compiled one is measured only if the recipe asks for nothing else.
    """
    compilation = (False, True) if run.compile == "auto" and compiles else (plain.compile,)
    layouts = (True, False) if run.channels_last == "auto" else (plain.channels_last,)
    return [Backend(layout, compiled) for compiled in compilation for layout in layouts]


def _time_backend(
    task: Task,
    model: nn.Module,
    backend: Backend,
    part: Any,
    device: torch.device,
    run: RunRecipe,
    *,
    once: bool = False,
    frozen: Sequence[nn.Module] = (),
    grads: list[Tensor] | None = None,
) -> float:
    """Return the median seconds of a forward and backward pass over a micro batch.

    With `once`, return the seconds of the first pass alone. Modules in `frozen` run as in
    evaluation. The gradients of every pass are appended to `grads`.
    """
    memory_format = torch.channels_last if backend.channels_last else torch.contiguous_format
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(memory_format=memory_format)
    fused = run.fused and device.type == "cpu" and not backend.compile  # As in the loop.
    widened = fused and widens(run.precision, deterministic=run.deterministic)
    set_fused(model, fused=fused, widened=widened)
    runner: Any = torch.compile(model) if backend.compile else model
    model.train()
    for module in frozen:
        module.eval()

    def run_once() -> None:
        with autocast(device, run.precision):
            losses = task.losses(runner, part, 0, 0, memory_format)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        if grads is not None:
            grads.extend(p.grad.float() for p in model.parameters() if p.grad is not None)
        model.zero_grad(set_to_none=True)

    try:
        # The first passes allocate and compile.
        rounds, warmup = (1, 0) if once else (NUM_TIMED, 2)
        return medians(samples([run_once], device, rounds=rounds, warmup=warmup))[0]
    finally:
        set_fused(model, fused=False)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _key(recipe: ResolvedRecipe, device: torch.device, micro_batch_size: int) -> str:
    return key_of(
        "training",
        device,
        recipe.model,
        repr(recipe.network),
        repr(recipe.input),
        micro_batch_size,
        recipe.run.precision,
        recipe.run.channels_last,
        recipe.run.compile,
        recipe.run.fused,
    )


def fit_memory(
    task: Task, model: nn.Module, recipe: ResolvedRecipe, device: torch.device, size: int
) -> int:
    """Return the micro batch `size`, halved until forward and backward pass fit on this device.

    Runs with several processes need this: one of them cannot roll back alone in the middle of a
    step.

    Raises:
        ValueError: If not even one image fits.
    """
    while True:
        part = first_part(task, size)
        try:
            _time_backend(task, model, Backend(), part, device, recipe.run)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        size = smaller_micro_batch(size)


def first_part(task: Task, micro_batch_size: int, start_step: int = 0) -> Any:
    """Return the first micro batch of a run that starts at a step."""
    batches = task.batches(start_step, micro_batch_size)
    part = next(iter(batches))[0]
    if isinstance(batches, Generator):
        batches.close()  # This also ends the processes of its loader.
    return part


LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""The layers that autocast computes in bf16."""
MAX_ERROR = 0.05
# Of all gradients of a network in 16 bits, whose errors add up over its layers.
MAX_ERROR_OF_16_BITS = 0.2
IMAGES = 4
"""The number of images of a batch that is enough for the check."""
NUM_TURNS = 4
"""How often each precision is timed; the fastest pass counts."""
TRIES = 4

Shapes = dict[str, tuple[nn.Module, tuple[int, ...]]]


def why_not_bf16(
    task: Task,
    model: nn.Module,
    recipe: ResolvedRecipe,
    *,
    num_steps: int,
    cache: Path | None = None,
) -> str:
    """Return why a device should not train a network in bf16: errors or time; "" if it should.

    Args:
        task: Provides micro batches, as in the loop.
        model: The network on the device of the task, in fp32; it is left unchanged.
        recipe: Resolved, except `run.channels_last` and `run.compile`.
        num_steps: The number of steps of the run.
        cache: The file of answers; by default in the user's cache folder.
    """
    wrong = wrong_in_bf16(
        task, model, recipe.optim.micro_batch_size, num_steps=num_steps, cache=cache
    )
    if wrong or task.device.type != "cpu":  # GPUs with bf16 are faster in it.
        return wrong
    return slow_in_bf16(task, model, recipe, cache=cache)


def slow_in_bf16(
    task: Task, model: nn.Module, recipe: ResolvedRecipe, *, cache: Path | None = None
) -> str:
    """Return by how much bf16 is slower than fp32, or too little faster; "" if it is faster.

    A fast product of matrices does not prove it: other layers, and threads that wait for another
    process, may cost more. The ratio is cached, so that two runs do not differ by chance.
    """
    device, answers = torch.device("cpu"), TuningCache(cache)
    size = min(recipe.optim.micro_batch_size, IMAGES)
    key = f"bf16_{_key(recipe, device, size)}"
    with answers.exclusive():
        ratio = answers.load(key, _ratio)
        if ratio is None:
            part, backend = first_part(task, size), Backend()
            runs = {name: replace(recipe.run, precision=name) for name in ("fp32", "bf16")}
            seconds: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(NUM_TURNS):  # In turns: another process disturbs both.
                for name, run in runs.items():
                    seconds[name].append(
                        _time_backend(task, model, backend, part, device, run, once=True)
                    )
            ratio = min(seconds["bf16"]) / min(seconds["fp32"])
            answers.store(key, ratio)
    if ratio < 1 - MIN_GAIN:
        return ""
    return f"a step of {size} images takes {ratio:.2f} times as long as in fp32"


def _ratio(value: object) -> float:
    if isinstance(value, float) and value > 0:
        return value
    raise ValueError(f"{value!r} is not a ratio")


def wrong_in_bf16(
    task: Task,
    model: nn.Module,
    micro_batch_size: int,
    *,
    num_steps: int,
    cache: Path | None = None,
) -> str:
    """Return the layer whose bf16 gradients are wrong on this device, and the error; "" if none.

    The answer is cached for these layers and shapes, this device, its threads and this torch.

    Args:
        task: Provides the first micro batch of each phase of the run, as in the loop.
        model: The network on the device of the task, in fp32; it is left unchanged.
        micro_batch_size: Images per backward pass.
        num_steps: The number of steps of the run.
        cache: The file of answers; by default in the user's cache folder.
    """
    shapes = shapes_of(task, model, micro_batch_size, num_steps)
    answers = TuningCache(cache)
    key = key_of("bf16_gradients", task.device, torch.get_num_threads(), sorted(shapes))
    # One of several processes checks; the others read its result.
    with answers.exclusive():
        known = answers.load(key, _text)
        if known is not None:
            return str(known)
        found = ""
        for layer, shape in shapes.values():
            error = gradient_error(layer, shape)
            if error > MAX_ERROR:
                found = f"the gradients of {_name(layer, shape)} are {_how_wrong(error)}"
                break
        answers.store(key, found)
    return found


def shapes_of(task: Task, model: nn.Module, micro_batch_size: int, num_steps: int) -> Shapes:
    """Return each distinct layer that a micro batch passes through, with its input shape.

    A run may have phases with images of different sizes, and a layer has a shape in each.
    """
    found: Shapes = {}

    def record(layer: nn.Module, given: tuple[Any, ...]) -> None:
        shape = (min(given[0].shape[0], IMAGES), *given[0].shape[1:])
        if 0 not in shape:
            found.setdefault(_name(layer, shape), (layer, shape))

    size = min(micro_batch_size, IMAGES)
    # Training changes buffers, such as batch norm statistics, so use a copy.
    copied = copy.deepcopy(model).train()
    layers = [module for module in copied.modules() if isinstance(module, LAYERS)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    with torch.random.fork_rng(), torch.no_grad():
        for phase in task.phases(num_steps):
            if phase.start < phase.stop:
                task.losses(copied, first_part(task, size, phase.start), phase.start, 0)
    for hook in hooks:
        hook.remove()
    return found


def gradient_error(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the max relative error of a layer's bf16 gradients, over its weights and input.

    Args:
        layer: A convolution or a linear layer in fp32.
        shape: The shape of its input.
    """
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    layer = copy.deepcopy(layer).to(memory_format=memory_format)
    device = next(layer.parameters()).device
    given = torch.randn(shape, generator=generator).to(device, memory_format=memory_format)
    given.requires_grad_()
    sources = [given, *layer.parameters()]
    out = layer(given)
    back = torch.randn(out.shape, generator=generator).to(device)
    exact = torch.autograd.grad(out, sources, back)
    worst = 0.0
    for _ in range(TRIES):
        with torch.autocast(device.type, torch.bfloat16):
            out = layer(given)
        # Uninitialized memory must not pass because it happened to be zero.
        _fill_freed_memory({source.numel() for source in sources}, device)
        found = torch.autograd.grad(out, sources, back.to(out.dtype))
        errors = [_relative(a, b) for a, b in zip(found, exact, strict=True)]
        worst = max(worst, *errors)
    return worst


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not a string")


def _fill_freed_memory(sizes: Iterable[int], device: torch.device) -> None:
    """Fill the memory that the next gradients of these sizes will be allocated in with NaN."""
    blocks = [
        torch.full((num,), float("nan"), dtype=dtype, device=device)
        for num in sizes
        for dtype in (torch.bfloat16, torch.float32)
        for _ in range(8)
    ]
    del blocks


def _relative(found: Tensor, exact: Tensor) -> float:
    error = float((found.float() - exact).norm() / exact.norm().clamp_min(1e-12))
    return error if math.isfinite(error) else math.inf


def _name(layer: nn.Module, shape: tuple[int, ...]) -> str:
    size = " x ".join(map(str, shape))
    return f"{layer.__class__.__name__}({layer.extra_repr()}) on {size}"
