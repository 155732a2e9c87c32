"""A training run from recipe to report, with the run folder and everything in it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from convnext.atomic import write_text
from convnext.data.contents import FILE as CONTENTS
from convnext.data.images import BadImage
from convnext.hardware.devices import Ranks, environment, pick_device
from convnext.hardware.peak_rates import pick_training_precision
from convnext.hardware.system import StopSignals
from convnext.models.flops import Cost, cost
from convnext.models.given import provided, provided_network
from convnext.names import count_noun, portable_name
from convnext.progress import lasting_output, safe_console
from convnext.recipes.recipe import Recipe, check_ranges, one_line, to_dict, to_yaml
from convnext.recipes.resolve import check_freezing, own_settings
from convnext.recipes.resolve import num_steps as num_steps_of
from convnext.results import Conditions, Scores
from convnext.tasks import task_class
from convnext.tasks.base import Task
from convnext.tasks.evaluation import EvaluationResult, EvaluationSettings
from convnext.training.backend import Chosen, choose_backend, fit_memory, why_not_bf16
from convnext.training.checks import changes_since, check_folder, held_folder
from convnext.training.distributed import (
    checkpoint_activations,
    launched,
    leave_bf16,
    make_deterministic,
    make_fabric,
    process_state_restored,
    ranks_of,
    seed_everything,
    set_threads,
)
from convnext.training.faults import InterruptedRun, ReportError, is_single_value
from convnext.training.freezing import Frozen
from convnext.training.log import RunLog
from convnext.training.loop import Outcome, fit
from convnext.training.optim import group_rows, group_table
from convnext.training.trackers import Callback, check_callbacks, check_trackers, make_trackers
from convnext.weights.checkpoint import check_changes, complete_steps

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run: its folder, best metrics, steps and time."""

    folder: Path
    model: str
    data: str
    best: Mapping[str, Any]
    """Metrics of the best weights in training's own validation, with `step` and `weights`."""
    validation: Conditions
    """The images, precision and backend of training's own validation."""
    steps: int
    seconds: float
    bad_images: tuple[str, ...] = ()
    """Images of training and validation that could not be read, each with the reason."""


def train(
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    write_report: Callable[[Path], Path] | None = None,
) -> RunResult:
    """Train by a recipe, into a run folder.

    The state of the process (signal handlers, random state, threads) is restored afterwards. The
    function may be called repeatedly and from any thread; only the main thread handles signals.

    Under torchrun or srun, every process of the run calls it; otherwise it starts the other
    processes for `run.devices` itself, which run nothing but the training.

    Args:
        recipe: The model, the data and all settings; `auto` settings are resolved here.
        output: The run folder; by default a new one under `runs/`. Several machines need a folder
            that all of them share.
        resume: Continue from the last complete checkpoint of the run folder, if it has one.
        console: Where to print; standard error by default.
        callbacks: Called after steps and evaluations. Their changes to the network are not part of
            the saved state: a run with such a callback does not resume bit for bit.
        write_report: Writes a report into the finished run folder and returns its path.

    Raises:
        TypeError: If a callback is not an instance of `Callback`.
        ValueError: If the recipe, the data or the weights cannot be used, or the folder already
            holds a run and `resume` is not set.
        DivergedError: If a loss or a weight is not finite.
        InterruptedRun: If a signal asked the run to end; its state is saved.
        LostProcessError: If another process of the run is lost.
        ReportError: If training is complete, but its evaluation or its report failed.
    """
    callbacks = check_request(recipe, callbacks)
    console = console or safe_console(Console(stderr=True, highlight=False))
    with process_state_restored(), ExitStack() as held, lasting_output(console):
        try:
            return _train(recipe, output, resume, console, callbacks, write_report, held)
        except ValueError as error:
            if not is_single_value(error):
                raise
            raise ValueError(
                "a batch norm got one value per channel, which has no variance: the batch, or its "
                "part on one device, is one small image; use --optim.batch_size 2 or more (and "
                "--optim.micro_batch_size), a larger --input.image_size, or --network.norm layer"
            ) from error


def check_request(recipe: Recipe, callbacks: Any = ()) -> tuple[Callback, ...]:
    """Check what needs no data, and return the callbacks: one, or several in order.

    Raises:
        TypeError: If a callback is not an instance of `Callback`.
        ValueError: If a setting is out of range, the optimizer does not have it, or there is no
            such tracker or device.
    """
    check_ranges(recipe)
    own_settings(recipe.optim)
    check_freezing(recipe)
    check_trackers(recipe.run.loggers)
    pick_device(recipe.run.device)
    return check_callbacks(callbacks)


def _train(
    recipe: Recipe,
    output: Path | None,
    resume: bool,
    console: Console,
    callbacks: Sequence[Callback],
    write_report: Callable[[Path], Path] | None,
    held: ExitStack,
) -> RunResult:
    """Train, from the device to the report.

    Long because it is the sequence of a run, in which every step needs the results of those before
    it. Steps that decide something are functions of their own.
    """
    device = pick_device(recipe.run.device)
    check_folder(output, resume=resume)
    if recipe.run.deterministic:
        make_deterministic()
    asked = recipe.run.precision
    precision = pick_training_precision(asked, device)
    fabric = make_fabric(recipe.run, device, precision)
    set_threads(recipe.run, device, before=_threads_before(output, fabric) if resume else None)
    job = partial(_train_rank, provided_network(), recipe, output, resume)
    held.enter_context(launched(fabric, job))
    ranks, device = ranks_of(fabric), fabric.device
    if not ranks.is_first:
        console = Console(quiet=True)
    task = task_class(recipe.task).open(_with_full_paths(recipe), device, console, ranks)
    task.check_files()
    resolved = task.recipe
    _check_same_data(task, ranks)
    seed_everything(resolved.run.seed)
    model = task.build_model().to(device)
    if resolved.run.checkpoint_activations and not checkpoint_activations(model):
        raise ValueError(
            f"{resolved.model} cannot recompute its activations; leave out "
            "--run.checkpoint_activations"
        )
    frozen = Frozen(model, resolved.optim.freeze)
    if frozen.names:
        frozen.hold()  # Before anything is measured.
        console.print(group_table(model, resolved.optim, frozen.names))
    _check_card(task, model)
    task.prepare(console)
    if precision == "bf16" and asked == "auto":
        steps, reason = num_steps_of(resolved.schedule, task.steps_per_epoch), ""
        if ranks.is_first:
            reason = why_not_bf16(task, model, resolved, num_steps=steps)
        if reason := ranks.broadcast_object(reason):
            _take_fp32(task, fabric, reason, console)
            resolved = task.recipe
    network = _cost(task, model)
    console.print(
        f"[bold]{resolved.model}[/]  {_millions(network.params, 2)} parameters, "
        f"{_millions(network.macs, 0)} multiply-accumulates at {task.input_size} px, on "
        f"{device.type} in {resolved.run.precision}"
    )
    if resolved.weights != "none" and not resume:
        console.print(
            f"starting from the weights {resolved.weights}: the schedule, the moments of the "
            "optimizer and the moving average start from scratch",
            markup=False,
            soft_wrap=True,
        )
    if task.loaded is not None and not resume:
        console.print(task.loaded.counts, markup=False, soft_wrap=True)
    micro_batch_size = resolved.optim.micro_batch_size
    if ranks.count > 1 and device.type == "cuda":
        fitting = fit_memory(task, model, resolved, device, micro_batch_size)
        micro_batch_size = min(ranks.gather(fitting))
    num_steps = num_steps_of(resolved.schedule, task.steps_per_epoch)
    chosen = choose_backend(
        task,
        model,
        resolved,
        device,
        ranks=ranks,
        num_steps=num_steps,
        micro_batch_size=micro_batch_size,
        announce=partial(console.print, markup=False, soft_wrap=True),
    )
    backend = chosen.backend
    run = replace(resolved.run, channels_last=backend.channels_last, compile=backend.compile)
    resolved = replace(resolved, run=run)
    shape = _shape_of_steps(task, ranks, micro_batch_size)
    console.print(f"{shape}; {_name_backend(chosen)}", soft_wrap=True)
    if warning := warn_of_batch_norm(task, model, ranks, micro_batch_size):
        console.print(f"[yellow]warning:[/] {warning}", soft_wrap=True)
    validation = Conditions(
        num_images=len(task.data.val),
        split="val",
        precision=resolved.run.precision,
        backend="compiled" if backend.compile else "eager",
    )
    console.print(f"validation during training: {validation}", markup=False, soft_wrap=True)

    folder = _make_folder(output, resolved, ranks, held, console, resume=resume)
    console.print(f"run folder: {folder}", markup=False, soft_wrap=True)
    changed = changes_since(folder, task) if resume and ranks.is_first else ""
    if changed := ranks.broadcast_object(changed):
        raise ValueError(changed)
    facts = environment(device) | {
        "precision": resolved.run.precision,
        "processes": ranks.count,
        "strategy": resolved.run.strategy if ranks.count > 1 else "one device",
        "form": _name_backend(chosen),
        "validation": str(validation),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }

    def describe() -> None:
        if ranks.is_first:
            _describe(folder, task, resolved, network, facts, resumed=resume)

    trackers = (
        make_trackers(resolved.run.loggers, folder, to_dict(resolved)) if ranks.is_first else []
    )
    log = RunLog(folder, console, silent=not ranks.is_first, trackers=trackers)
    stop = held.enter_context(StopSignals())  # A signal right after training is not lost.
    try:
        outcome = fit(
            task,
            model,
            resolved,
            fabric=fabric,
            log=log,
            micro_batch_size=micro_batch_size,
            resume=resume,
            macs=network.macs,
            begun=describe,
            callbacks=callbacks,
            stop=stop,
        )
    finally:
        log.close()
    if ranks.is_first:
        _write_json(folder / "environment.json", facts | {"seconds": round(outcome.seconds, 1)})
        _finish(task, folder, outcome, validation, console, write_report, stop)
    return RunResult(
        folder=folder,
        model=resolved.model,
        data=resolved.data,
        best=outcome.best,
        validation=validation,
        steps=outcome.steps,
        seconds=outcome.seconds,
        bad_images=tuple(map(str, _bad_images(task))),
    )


def _threads_before(output: Path | None, fabric: Fabric) -> int | None:
    """Return the threads of each process of a run that resumes; None if that cannot be said."""
    try:
        facts = json.loads(((output or Path()) / "environment.json").read_text(encoding="utf-8"))
        threads, processes = facts["threads"], facts["processes"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_same = isinstance(threads, int) and threads >= 1 and processes == fabric.world_size
    return threads if is_same else None


def _with_full_paths(recipe: Recipe) -> Recipe:
    """Return a recipe whose data and reference are found from any working directory."""
    if Path(recipe.data).exists():
        recipe = replace(recipe, data=str(Path(recipe.data).resolve()))
    if Path(recipe.run.reference).exists():
        reference = str(Path(recipe.run.reference).resolve())
        recipe = replace(recipe, run=replace(recipe.run, reference=reference))
    return recipe


def _check_same_data(task: Task, ranks: Ranks) -> None:
    """Check that all processes see the same data set.

    Raises:
        ValueError: If they do not.
    """
    seen = sorted(set(ranks.gather(task.fingerprint)))
    if len(seen) > 1:
        raise ValueError(
            f"the processes of this run see different data: {' and '.join(seen)}; give all of them "
            "the same files"
        )


def _cost(task: Task, model: nn.Module) -> Cost:
    """Count the parameters and multiply-accumulates of the network.

    Raises:
        ValueError: If it cannot take images of this size.
    """
    try:
        return cost(model, task.input_size)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{task.recipe.model} cannot take images of {task.input_size} pixels; try another "
            f"--input.image_size ({one_line(error)})"
        ) from error


def _train_rank(
    network: nn.Module | None, recipe: Recipe, output: Path | None, resume: bool
) -> None:
    """Train in another process of a run."""
    with provided(network):
        train(recipe, output=output, resume=resume)


def _check_card(task: Task, model: nn.Module) -> None:
    """Refuse a network that could not be rebuilt from its checkpoints.

    Raises:
        ValueError: If a changed argument cannot be stored; the message names it.
    """
    card = task.card(model, {}, task.recipe)
    check_changes(card.model, card.changes, "a checkpoint of this run")


def _take_fp32(task: Task, fabric: Fabric, wrong: str, console: Console) -> None:
    """Train in fp32 although `auto` chose bf16, and print the reason."""
    reason = f"not bf16: {wrong} on this machine"
    leave_bf16(fabric)
    task.change_precision("fp32", reason)
    console.print(f"run.precision is fp32, {reason}", markup=False, soft_wrap=True)


def show_groups(recipe: Recipe, console: Console) -> list[dict[str, Any]]:
    """Print the optimizer's parameter groups under a recipe, and return them.

    Raises:
        ValueError: If the recipe, the data or the weights cannot be used.
    """
    task = task_class(recipe.task).open(recipe, pick_device(recipe.run.device), console)
    model = task.build_model()
    frozen = Frozen(model, task.recipe.optim.freeze).names
    console.print(group_table(model, task.recipe.optim, frozen))
    return group_rows(model, task.recipe.optim, frozen)


def _make_folder(
    output: Path | None,
    recipe: Recipe,
    ranks: Ranks,
    held: ExitStack,
    console: Console,
    *,
    resume: bool,
) -> Path:
    """Make the run folder, keep others from writing it, and check that every process sees it.

    Raises:
        ValueError: In every process, if the folder cannot be used.
    """
    name = problem = ""
    if ranks.is_first:
        try:
            name = str(output or new_folder(recipe))
            held.enter_context(held_folder(Path(name), console, resume=resume))
        except (ValueError, OSError) as error:
            problem = str(error)
    name, problem = ranks.broadcast_object((name, problem))
    folder = Path(name)
    if problem:
        raise ValueError(problem)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not on this machine; give an --output on a file system that all machines "
            "of the run share"
        )
    return folder


def _describe(
    folder: Path,
    task: Task,
    recipe: Recipe,
    network: Cost,
    facts: Mapping[str, Any],
    *,
    resumed: bool,
) -> None:
    """Write the recipe, the model and the environment: the files that training does not change."""
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    if not (resumed and (folder / "choices.json").exists()):
        _write_json(folder / "choices.json", [asdict(choice) for choice in task.choices])
    is_same = resumed and bool(complete_steps(folder / "checkpoints"))
    if not (is_same and (folder / CONTENTS).exists()):
        write_text(folder / CONTENTS, task.contents().to_json())
    size, classes = task.input_size, len(task.data.classes)
    model = {"name": recipe.model, "input_size": size, "classes": classes}
    _write_json(folder / "model.json", model | asdict(network))
    val = task.data.val
    _write_json(folder / "heldout.json", [val.source(i) for i in range(len(val))])
    _write_json(folder / "environment.json", facts)


def _shape_of_steps(task: Task, ranks: Ranks, micro_batch_size: int) -> str:
    """Describe how a batch is divided over devices and accumulated parts."""
    parts = task.num_parts(micro_batch_size)
    micro = math.ceil(task.batch_size / ranks.count / parts)
    devices = [f"{ranks.count} devices"] if ranks.count > 1 else []
    factors = [*devices, str(micro), *([f"{parts} accumulated"] if parts > 1 else [])]
    made_up = f": {' x '.join(factors)}" if len(factors) > 1 else ""
    return f"{count_noun(task.batch_size, 'image')} per step{made_up}"


def warn_of_batch_norm(task: Task, model: nn.Module, ranks: Ranks, micro_batch_size: int) -> str:
    """Return a warning if batch norms see another number of images than in the recipe's run.

    Which number that is depends on the devices, and on the memory of a GPU. On a CPU, batch norms
    are not synchronized over the processes.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    whole, asked = task.batch_size, task.recipe.optim.micro_batch_size
    alone = math.ceil(whole / math.ceil(whole / asked))
    shared = ranks.count if task.device.type == "cuda" else 1
    seen = math.ceil(whole / ranks.count / task.num_parts(micro_batch_size)) * shared
    if not norms or seen == alone:
        return ""
    return (
        f"the batch norms of this network average over {seen} images at a time, and over {alone} "
        "on one device: the result is not the same. Layer norm does not depend on it, nor does a "
        "--optim.batch_size that gives each device as many images"
    )


def _millions(count: int, digits: int) -> str:
    """Return a count in millions, or a small one in full."""
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:,.{digits}f} M"


def _name_backend(chosen: Chosen) -> str:
    backend = chosen.backend
    layout = "channels_last" if backend.channels_last else "channels_first"
    return f"{'compiled' if backend.compile else 'eager'}, {layout} ({chosen.reason})"


def _finish(
    task: Task,
    folder: Path,
    outcome: Outcome,
    validation: Conditions,
    console: Console,
    write_report: Callable[[Path], Path] | None,
    stop: StopSignals,
) -> None:
    """Evaluate the best weights in full, write the report, and suggest the next commands.

    Raises:
        InterruptedRun: If a signal asked the run to end.
        ReportError: If the evaluation or the report failed.
    """
    command = f"convnext train --resume --output {quote(str(folder))}"
    last = _Last(stop, command)
    result = last.attempt(lambda: _evaluate(task, folder, console))
    report = last.attempt(lambda: write_report(folder)) if write_report is not None else None
    if result is not None:
        _print_scores(task, outcome, validation, result.scores(), console)
    for bad in _bad_images(task):
        console.print(f"skipped: {bad}", markup=False)
    if report is not None:
        console.print(f"report: {report}", markup=False, soft_wrap=True)
    if last.error is not None:
        is_ours = isinstance(last.error, ValueError | OSError)
        raise ReportError(
            f"training is complete and saved, but its evaluation or its report failed: "
            f"{last.error if is_ours else repr(last.error)}. Once this is fixed, make the report "
            f"with: {command}"
        ) from last.error
    console.print("next:")
    for following in task.next_commands(folder):
        console.print(f"  {following}", markup=False, soft_wrap=True)


class _Last:
    """What a run does after training, when nothing can be lost any more.

    Args:
        stop: The signals that ask the run to end, which they do at once.
        command: What makes up for it.
    """

    def __init__(self, stop: StopSignals, command: str) -> None:
        self.stop, self.command = stop, command
        self.error: Exception | None = None
        """The first error."""

    def attempt(self, act: Callable[[], T]) -> T | None:
        """Return the result of `act`; None if it fails.

        Raises:
            InterruptedRun: At a signal.
        """
        try:
            self.stop.on_stop = self._leave
            self._leave(self.stop.received)
            return act()
        except InterruptedRun:
            raise
        except Exception as error:
            # The signal may have caused it, or what it raised was caught on the way.
            self._leave(self.stop.received)
            self.error = self.error or error
            return None
        finally:
            self.stop.on_stop = None

    def _leave(self, name: str | None) -> None:
        if name is not None:
            raise InterruptedRun(
                f"{name} received: training is complete and saved; evaluate it and make its "
                f"report with: {self.command}"
            )


def _evaluate(task: Task, folder: Path, console: Console) -> EvaluationResult:
    """Evaluate the best weights, and write the result into the run folder."""
    result = task.evaluate(
        str(folder),
        EvaluationSettings(
            data=task.evaluation_data(),
            device=str(task.device),
            console=console,
            max_bad_share=task.recipe.loader.max_bad_share,
        ),
        **task.evaluation_options(),
    )
    result.write(folder)
    return result


def _print_scores(
    task: Task, outcome: Outcome, validation: Conditions, scores: Scores, console: Console
) -> None:
    best = outcome.best
    early = ", stopped early" if outcome.stopped_early else ""
    console.print(
        f"\n[bold]{task.primary_label} {scores[task.primary]:.2f} %[/] on {scores.conditions}; "
        f"step {best['step']:,} of {outcome.steps:,}"
        f"{' (moving average)' if best['weights'] == 'ema' else ''}, "
        f"in {outcome.seconds:.0f} s{early}",
        soft_wrap=True,
    )
    if f"{best[task.primary]:.2f}" != f"{scores[task.primary]:.2f}":
        console.print(
            f"training's own validation of these weights, in {validation.precision}, "
            f"{validation.backend}: {best[task.primary]:.2f} %",
            soft_wrap=True,
        )


def _bad_images(task: Task) -> list[BadImage]:
    return [*task.bad_train.found.values(), *task.bad_val.found.values()]


def new_folder(recipe: Recipe) -> Path:
    """Make and return a new folder under `runs/`."""
    data = Path(recipe.data).name or "data"
    model = recipe.model.rpartition("/")[2]
    stem = portable_name(f"{data}-{model}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path("runs") / stem
    number = 2
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = Path("runs") / f"{stem}-{number}"
            number += 1
        else:
            return folder


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
