"""In which form a network trains fastest here: memory format and compilation, found by measuring.

Only long runs are worth it. What was measured is remembered per machine and shape, so that two runs
with one seed take the same form and so the same bits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnext.hardware.devices import autocast, environment
from convnext.hardware.ranks import Ranks
from convnext.hardware.tuning_cache import cache_folder, key_of, recall, remember
from convnext.models.execution import set_fused, widens
from convnext.recipes.schema import ResolvedRecipe, RunRecipe
from convnext.tasks.base import Task
from convnext.training.checks import smaller_micro_batch
from convnext.training.faults import is_out_of_memory

# Shorter runs are over before a measurement has paid for itself.
WORTH_SECONDS = 600.0
NUM_TIMED = 5
# A gain below this is within the noise, and not worth another form.
MIN_GAIN = 0.08


@dataclass(frozen=True)
class Form:
    """How a network is executed in training."""

    channels_last: bool = True
    compile: bool = False


@dataclass(frozen=True)
class Chosen:
    """A form, and the sentence that tells the user why."""

    form: Form
    reason: str


def choose_form(
    task: Task,
    model: nn.Module,
    recipe: ResolvedRecipe,
    device: torch.device,
    *,
    ranks: Ranks,
    num_steps: int,
    micro_batch_size: int,
    cache: Path | None = None,
) -> Chosen:
    """Return the form that the recipe asks for, or where it says `auto` the fastest one.

    The network is left as it was. A form that fails to run or to compile is passed over.

    Args:
        task: Gives the first micro batch; as in the loop.
        model: On `device`, not set up yet.
        recipe: Resolved but for `run.channels_last` and `run.compile`.
        device: Where the network trains.
        ranks: The first process measures, the others follow it.
        num_steps: Steps of the run.
        micro_batch_size: Images of a backward pass on one device.
        cache: The file of what was measured; by default in the user's cache folder.
    """
    run = recipe.run
    if run.channels_last != "auto" and run.compile != "auto":
        return Chosen(Form(run.channels_last, run.compile), "as the recipe says")
    plain = Form(
        True if run.channels_last == "auto" else run.channels_last,
        False if run.compile == "auto" else run.compile,
    )
    if run.deterministic:
        return Chosen(plain, "nothing is measured in a deterministic run")
    chosen = None
    if ranks.is_first:
        chosen = _measured(
            task, model, recipe, device, plain, num_steps, micro_batch_size, cache or cache_file()
        )
    agreed: Chosen = ranks.of_first(chosen)
    return agreed


def cache_file() -> Path:
    """Return where measurements are kept."""
    return cache_folder() / "training_forms.json"


def _measured(
    task: Task,
    model: nn.Module,
    recipe: ResolvedRecipe,
    device: torch.device,
    plain: Form,
    num_steps: int,
    micro_batch_size: int,
    cache: Path,
) -> Chosen:
    part = _first_part(task, micro_batch_size)
    parts_per_step = max(1, task.batch_size / max(1, task.size(part)))

    def seconds(form: Form) -> float:
        return _time_form(task, model, form, part, device, recipe.run)

    try:
        first = seconds(plain)
    except RuntimeError as error:
        if is_out_of_memory(error):  # The loop knows how to go on with less.
            return Chosen(plain, "the usual one: memory is scarce")
        raise
    left = first * parts_per_step * num_steps
    if left < WORTH_SECONDS:
        return Chosen(plain, "the usual one: the run is too short to measure others")
    key = _key(recipe, device, micro_batch_size)
    known = recall(cache)
    if key in known:
        return Chosen(Form(**known[key]), "measured before on this machine")
    options = [
        Form(channels_last, compiled)
        for compiled in ((False, True) if recipe.run.compile == "auto" else (plain.compile,))
        for channels_last in (
            (True, False) if recipe.run.channels_last == "auto" else (plain.channels_last,)
        )
    ]
    best, best_cost = plain, left
    told = []
    for form in options:
        began = time.perf_counter()
        timed = first if form == plain else _try(lambda form=form: seconds(form))  # type: ignore[misc]
        if timed is None:
            told.append(f"{_name(form)} fails")
            continue
        told.append(f"{_name(form)} {1000 * timed:.0f} ms")
        # Compiling is paid for again in the run.
        cost = timed * parts_per_step * num_steps
        cost += time.perf_counter() - began if form.compile else 0.0
        if cost < best_cost * (1 - MIN_GAIN):
            best, best_cost = form, cost
    torch._dynamo.reset()
    remember(cache, key, asdict(best))
    return Chosen(best, "measured per micro batch: " + ", ".join(told))


def _try(timed: Callable[[], float]) -> float | None:
    try:
        return timed()
    except Exception:  # A compiler may fail in any way; there is always the plain form.
        return None


def _name(form: Form) -> str:
    how = "compiled" if form.compile else "eager"
    return f"{how} {'channels_last' if form.channels_last else 'channels_first'}"


def _time_form(
    task: Task, model: nn.Module, form: Form, part: Any, device: torch.device, run: RunRecipe
) -> float:
    """Return the median seconds of forward and backward pass over a micro batch."""
    memory_format = torch.channels_last if form.channels_last else torch.contiguous_format
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(memory_format=memory_format)
    fused = run.fused and device.type == "cpu" and not form.compile  # As in the loop.
    widened = fused and widens(run.precision, deterministic=run.deterministic)
    set_fused(model, fused=fused, widened=widened)
    form_of: Any = torch.compile(model) if form.compile else model
    model.train()
    times = []
    try:
        for _ in range(NUM_TIMED):
            began = time.perf_counter()
            with autocast(device, run.precision):
                losses = task.losses(form_of, part, 0, 0, memory_format)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
            model.zero_grad(set_to_none=True)
    finally:
        set_fused(model, fused=False)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    # The first ones allocate and compile.
    return statistics.median(times[2:])


def _key(recipe: ResolvedRecipe, device: torch.device, micro_batch_size: int) -> str:
    facts = environment(device)
    what = (
        *(facts[name] for name in ("device", "cpu", "threads", "torch")),
        recipe.model,
        repr(recipe.network),
        repr(recipe.input),
        micro_batch_size,
        recipe.run.precision,
        recipe.run.channels_last,
        recipe.run.compile,
        recipe.run.fused,
    )
    return key_of(*what)


def fit_memory(
    task: Task, model: nn.Module, recipe: ResolvedRecipe, device: torch.device, size: int
) -> int:
    """Return the micro batch `size`, halved until forward and backward pass fit on this device.

    For several processes, which cannot go back alone in the middle of a step.

    Raises:
        ValueError: If not even one image fits.
    """
    while True:
        part = _first_part(task, size)
        try:
            _time_form(task, model, Form(), part, device, recipe.run)
            return size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        size = smaller_micro_batch(size)


def _first_part(task: Task, micro_batch_size: int) -> Any:
    batches = task.batches(0, micro_batch_size)
    part = next(iter(batches))[0]
    if isinstance(batches, Generator):
        batches.close()  # With the processes of its loader.
    return part
