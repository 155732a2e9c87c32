"""A study from its plan to its page: costs, speeds, runs, one table, figures."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from convnext.costs import cost
from convnext.device import environment, pick_device
from convnext.lab.plan import Entry, Kind, Study, read_study
from convnext.lab.results import FINISHED, WAITING, Result, write_results
from convnext.lab.runs import (
    Job,
    describe_end,
    held,
    jobs_of,
    outcome,
    run_jobs,
    visible_devices,
)
from convnext.lab.speed import Speed, epochs_for, read_speeds, speeds_of
from convnext.lab.table import print_study
from convnext.recipe import Recipe, change_recipe, flatten, number, one_line, to_dict
from convnext.tasks import open_task

# A study measures the networks, not what the moving average or a growing image adds: the paper's
# road has neither.
DEFAULTS: Mapping[str, Any] = {"ema.decay": 0.0, "schedule.progressive": False}
EVALUATIONS = 10
# What published weights were made for, as far as it is not the size of the images.
OF_WEIGHTS = ("mean", "std", "interpolation", "crop_pct")
STAND_IN = "roadmap/resnet50/separate_downsampling"


def study(
    kind: Kind,
    title: str,
    entries: Sequence[Entry],
    recipe: Recipe,
    *,
    num_seeds: int,
    root: Path,
    regime: str = "",
    command: str = "",
    processes: int = 0,
    minutes: float = 0.0,
    speed: bool = True,
    console: Console,
) -> list[Result]:
    """Train every entry with every seed, as far as that is not done yet; write table and page.

    Args:
        kind: What the study is.
        title: Its headline.
        entries: The networks.
        recipe: The recipe of all of them; what reads `auto` is chosen once, for all alike.
        num_seeds: Seeds of each entry, counted from `run.seed`.
        root: The folder of the study.
        regime: Of the road.
        command: The command line, for the page.
        processes: Runs at a time; 0 for one per GPU, or one per core without.
        minutes: Equal wall time for all entries instead of equal epochs; 0 for epochs.
        speed: Whether throughput and memory are measured.
        console: Where to print.

    Raises:
        ValueError: If the study cannot be made, or the folder holds another one.
        InterruptedRun: If a signal asked for the end.
    """
    began = time.monotonic()
    with held(root):
        device = pick_device(recipe.run.device)
        devices = visible_devices() if device.type == "cuda" else []
        before = read_study(root) if (root / "study.json").exists() else None
        if before is None:
            task = open_task(choose_once(recipe, entries), device, console)
            resolved = for_all(task.recipe, recipe, entries)
        else:
            resolved = go_on(before.recipe, recipe, root)
            task = open_task(replace(resolved, model="convnext_tiny"), device, Console(quiet=True))
        plan = Study(
            kind=kind,
            title=title,
            regime=regime,
            entries=entries,
            seeds=[recipe.run.seed + i for i in range(num_seeds)],
            recipe=resolved,
            threads=before.threads if before else _threads(processes, device.type),
            command=command,
        )
        if before is not None:
            _check_entries(before, plan, root)
        plan.write(root)
        costs = costs_of(plan, task)
        speeds = speeds_of(plan, task, root, console) if speed or minutes else read_speeds(root)
        if minutes:
            plan = replace(plan, entries=epochs_for(plan, speeds, task, minutes))
            plan.write(root)
        facts = environment(device) | {"data": task.fingerprint}

        def update(seconds: float) -> list[Result]:
            results = collect(plan, root, costs, speeds)
            write_results(root, results, _facts(plan, facts, seconds))
            return results

        def ended(job: Job, found: Mapping[str, Any]) -> None:
            failed[(job.entry.name, job.seed)] = found
            console.print(describe_end(job, found), markup=False)
            update(time.monotonic() - began)

        failed: dict[tuple[str, int], Mapping[str, Any]] = {}
        update(0.0)
        jobs = jobs_of(plan, root)
        total = len(plan.own_entries()) * num_seeds
        at_once = processes or len(devices) or _processes(device.type)
        at_once = min(at_once, max(1, len(jobs)))
        console.print(
            f"{len(jobs)} of {total} runs to do, {at_once} at a time"
            + (f" with {plan.threads} threads each" if plan.threads else "")
        )
        run_jobs(
            jobs,
            processes=at_once,
            threads=plan.threads,
            devices=devices,
            console=console,
            ended=ended,
        )
        results = update(time.monotonic() - began)
        lost = [(job, end) for job in jobs if (end := failed.get((job.entry.name, job.seed)))]
        results = [_with_reason(result, failed) for result in results]
        write_results(root, results, _facts(plan, facts, time.monotonic() - began))
        finish(root, results, console)
        for job, end in lost:
            if end["state"] != FINISHED:
                console.print(f"[yellow]missing:[/] {describe_end(job, end)}")
    return results


def finish(root: Path, results: Sequence[Result], console: Console) -> None:
    """Print the table, draw the figures and write the page, all from what the folder holds."""
    from convnext.lab.figures import write_figures
    from convnext.lab.page import write_page

    print_study(results, console)
    write_figures(root)
    page = write_page(root)
    console.print(f"table: {root / 'results.csv'}", markup=False, soft_wrap=True)
    console.print(f"page: {page}", markup=False, soft_wrap=True)


def choose_once(recipe: Recipe, entries: Sequence[Entry]) -> Recipe:
    """Return the recipe by which `auto` is asked: that of one network, for all of them.

    ConvNeXt-T stands for all, whatever they are, so that a study that is extended by another
    network still has the same recipe. If all of them start from weights, the first one stands for
    them: fine-tuning has other settings than training from scratch.
    """
    leaves = dict(flatten(recipe))
    unset = {name: value for name, value in DEFAULTS.items() if leaves[name] == "auto"}
    recipe = change_recipe(replace(recipe, model=STAND_IN), unset)
    if all(map(starts_from_weights, entries)):
        first = entries[0]
        recipe = replace(recipe, model=first.model, weights=str(first.changes["weights"]))
    return recipe


def for_all(resolved: Recipe, asked: Recipe, entries: Sequence[Entry]) -> Recipe:
    """Return a resolved recipe without what belongs to one network, evaluated often enough."""
    changes: dict[str, Any] = {"model": "auto", "weights": "none", "network": asked.network}
    if any(map(starts_from_weights, entries)):
        # Weights know what their images looked like; all else is the same for all.
        own = {name: getattr(asked.input, name) for name in OF_WEIGHTS}
        changes["input"] = replace(resolved.input, **own)
    if asked.run.eval_every == "auto":
        every = max(1, round(number(resolved.schedule.epochs) / EVALUATIONS))
        changes["run"] = replace(resolved.run, eval_every=every)
    return replace(resolved, **changes)


def starts_from_weights(entry: Entry) -> bool:
    """Return whether a network is fine-tuned."""
    return bool(entry.changes.get("weights", "none") != "none")


def go_on(before: Recipe, asked: Recipe, root: Path) -> Recipe:
    """Return the recipe of a study that goes on.

    Raises:
        ValueError: If what is asked for is not what the study began with.
    """
    old, default = dict(flatten(before)), dict(flatten(Recipe()))
    free = {"run.seed", "model", "data"}
    for name, value in flatten(asked):
        # What was left open then and is left open now was settled by the study.
        if name in free or value in ("auto", default[name]):
            continue
        if _plain(value) != _plain(old[name]):
            raise ValueError(
                f"{root} was begun with {name} {old[name]}, not {value}; runs of another recipe "
                "need another --output"
            )
    if Path(asked.data).exists() and Path(asked.data).resolve() != Path(before.data).resolve():
        raise ValueError(
            f"{root} was begun on {before.data}; another data set needs another --output"
        )
    return before


def costs_of(plan: Study, task: Any) -> dict[str, dict[str, int]]:
    """Count every network of a study, on shapes alone; the columns of the table by entry.

    Raises:
        ValueError: If a network cannot take images of the recipe's size.
    """
    found = {}
    for entry in plan.own_entries():
        own = task.under(plan.recipe_of(entry, plan.seeds[0]))
        own.recipe = replace(own.recipe, weights="none")  # Shapes need no download.
        size = own.preprocessing.image_size
        try:
            with torch.device("meta"):
                counted = cost(own.build_model(), size)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"{entry.name} cannot take images of {size} pixels; try another "
                f"--input.image_size ({one_line(error)})"
            ) from error
        found[entry.name] = asdict(counted) | {"image_size": size}
    return found


def collect(
    plan: Study,
    root: Path,
    costs: Mapping[str, Mapping[str, int]],
    speeds: Mapping[str, Speed],
) -> list[Result]:
    """Return the table of a study, from its plan and its run folders."""
    results = []
    by_name = {entry.name: entry for entry in plan.entries}
    for entry in plan.entries:
        own = by_name.get(entry.own_name, entry)
        speed = speeds.get(own.name)
        for seed in plan.seeds:
            found = outcome(plan.run_folder(root, entry, seed))
            epochs = found.get("epoch")
            results.append(
                Result(
                    study=plan.kind,
                    regime=plan.regime,
                    entry=entry.name,
                    what=entry.what,
                    group=entry.group,
                    kept=entry.kept,
                    departs_from=entry.departs_from,
                    runs_as=entry.own_name,
                    seed=seed,
                    state=str(found["state"]),
                    top1=found.get("top1"),
                    top5=found.get("top5"),
                    loss=found.get("loss"),
                    best_top1=found.get("best_top1"),
                    epochs=None if epochs is None else round(epochs, 3),
                    steps=found.get("step"),
                    images=found.get("images"),
                    seconds=found.get("seconds"),
                    reason=str(found.get("reason", "")),
                    **costs[own.name],
                    **(speed.columns() if speed else {}),
                    paper_name=entry.paper.name,
                    paper_top1=entry.paper.top1,
                    paper_top1_std=entry.paper.top1_std,
                    paper_gmacs=entry.paper.gmacs,
                    paper_images_per_s=entry.paper.images_per_s,
                )
            )
    return results


def _check_entries(before: Study, plan: Study, root: Path) -> None:
    old = {entry.name: entry for entry in before.entries}
    for entry in plan.entries:
        other = old.get(entry.name)
        if other is not None and (other.model, dict(other.changes)) != (
            entry.model,
            _listed(entry.changes),
        ):
            raise ValueError(
                f"{entry.name} was another network when {root} was begun; take another --output"
            )


def _with_reason(result: Result, failed: Mapping[tuple[str, int], Mapping[str, Any]]) -> Result:
    end = failed.get((result.runs_as, result.seed))
    if result.state != WAITING or end is None or end["state"] == FINISHED:
        return result
    return replace(result, state=str(end["state"]), reason=str(end.get("reason", "")))


def _facts(plan: Study, facts: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "kind": plan.kind,
        "title": plan.title,
        "regime": plan.regime,
        "command": plan.command,
        "environment": dict(facts),
        "seconds": round(seconds, 1),
        "recipe": to_dict(plan.recipe),
    }


def _processes(device: str) -> int:
    return (os.cpu_count() or 1) if device == "cpu" else 1


def _threads(processes: int, device: str) -> int:
    """Return the threads of a run: on a CPU, small networks are fastest side by side on a core."""
    if device != "cpu":
        return 0
    return max(1, (os.cpu_count() or 1) // (processes or _processes(device)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _listed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes as JSON gives them back."""
    import json

    return dict(json.loads(json.dumps(dict(changes))))
