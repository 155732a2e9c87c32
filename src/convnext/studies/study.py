"""Run a study from its plan to its page: costs, speeds, runs, a table, figures."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from convnext.atomic import write_text
from convnext.data.contents import FILE as CONTENTS
from convnext.hardware.devices import environment, pick_device
from convnext.models.flops import cost
from convnext.names import count_noun
from convnext.recipes.recipe import Recipe, one_line, to_dict
from convnext.studies.compare import FINISHED, WAITING, Result, write_results
from convnext.studies.plan import Entry, Kind, Study, resolve_study
from convnext.studies.runs import (
    Job,
    describe_end,
    held,
    jobs_of,
    outcome,
    run_jobs,
    visible_devices,
)
from convnext.studies.speed import Speed, epochs_for, rates_of_runs, read_speeds, speeds_of
from convnext.studies.statistics import print_study
from convnext.tasks import task_class
from convnext.tasks.base import Task


def study(
    kind: Kind,
    title: str,
    entries: Sequence[Entry],
    recipe: Recipe,
    *,
    num_seeds: int,
    root: Path,
    given: Collection[str] = (),
    regime: str = "",
    command: str = "",
    processes: int = 0,
    minutes: float = 0.0,
    speed: bool = True,
    console: Console,
) -> list[Result]:
    """Train all entries with all seeds, except finished runs; write the table and the page.

    Args:
        kind: The kind of study.
        title: Its headline.
        entries: The networks.
        recipe: The common recipe; `auto` settings are resolved once, for all entries.
        num_seeds: Number of seeds per entry, starting at `run.seed`.
        root: The folder of the study.
        given: Recipe settings that were set explicitly.
        regime: The regime of the roadmap.
        command: The command line, for the page.
        processes: Number of parallel runs; 0 for one per GPU, or one per core without GPUs.
        minutes: Training time of every entry; 0 for equal epochs.
        speed: Whether to measure throughput and memory.
        console: Where to print.

    Raises:
        ValueError: If the options are invalid, or the folder holds another study.
        InterruptedRun: If a signal interrupted the study.
    """
    with held(root):
        device = pick_device(recipe.run.device)
        asked = Study(
            kind=kind,
            title=title,
            regime=regime,
            entries=entries,
            seeds=[recipe.run.seed + i for i in range(num_seeds)],
            recipe=recipe,
            threads=_threads(processes, device.type),
            minutes=minutes,
            command=command,
        )
        plan, task = resolve_study(asked, root, device, console, given)
        costs = costs_of(plan, task)
        if any("schedule.epochs" not in entry.changes for entry in plan.entries) and minutes:
            rates = rates_of_runs(plan, task, console)
            plan = replace(plan, entries=epochs_for(plan, rates, task, minutes))
        jobs = jobs_of(plan, root)
        plan.write(root)
        if not (root / CONTENTS).exists():
            write_text(root / CONTENTS, task.contents().to_json())
        speeds = speeds_of(plan, task, root, console) if speed else read_speeds(plan, root)
        table = _Table(plan, root, costs, speeds, environment(device))
        table.write()
        devices = visible_devices() if device.type == "cuda" else []
        at_once = min(processes or len(devices) or _processes(device.type), max(1, len(jobs)))
        console.print(
            f"{len(jobs)} of {len(plan.own_entries()) * num_seeds} runs to do, {at_once} at a time"
            + (f" with {count_noun(plan.threads, 'thread')} each" if plan.threads else "")
        )

        def ended(job: Job, found: Mapping[str, Any]) -> None:
            console.print(describe_end(job, found), markup=False)
            table.add(job, found)

        run_jobs(
            jobs,
            processes=at_once,
            threads=plan.threads,
            devices=devices,
            console=console,
            ended=ended,
        )
        results = table.write()
        finish(root, results, console)
    return results


class _Table:
    """The table of a study in progress, which is written after every run."""

    def __init__(
        self,
        plan: Study,
        root: Path,
        costs: Mapping[str, Mapping[str, int]],
        speeds: Mapping[str, Speed],
        facts: Mapping[str, Any],
    ) -> None:
        self.plan, self.root, self.costs, self.speeds, self.facts = plan, root, costs, speeds, facts
        self.began = time.monotonic()
        self._failed: dict[tuple[str, int], Mapping[str, Any]] = {}

    def add(self, job: Job, found: Mapping[str, Any]) -> None:
        """Record the outcome of a run. Its folder does not store failures, so they are retried."""
        if found["state"] != FINISHED:
            self._failed[job.entry.name, job.seed] = found
        self.write()

    def write(self) -> list[Result]:
        """Write results.csv and results.json; return the rows."""
        results = [
            self._with_reason(result)
            for result in collect(self.plan, self.root, self.costs, self.speeds)
        ]
        facts = {
            "kind": self.plan.kind,
            "title": self.plan.title,
            "regime": self.plan.regime,
            "command": self.plan.command,
            "environment": dict(self.facts) | {"data": self.plan.data},
            "seconds": round(time.monotonic() - self.began, 1),
            "recipe": to_dict(self.plan.recipe),
        }
        write_results(self.root, results, facts)
        return results

    def _with_reason(self, result: Result) -> Result:
        end = self._failed.get((result.runs_as, result.seed))
        if result.state != WAITING or end is None:
            return result
        return replace(result, state=str(end["state"]), reason=str(end.get("reason", "")))


def finish(root: Path, results: Sequence[Result], console: Console) -> None:
    """Print the table, and write the page with its figures from the files of the folder."""
    from convnext.studies.page import write_page

    print_study(results, console)
    page = write_page(root)
    console.print(f"table: {root / 'results.csv'}", markup=False, soft_wrap=True)
    console.print(f"page: {page}", markup=False, soft_wrap=True)


def costs_of(plan: Study, task: Task) -> dict[str, dict[str, int]]:
    """Count the costs of every network of a study, using shapes only.

    Raises:
        ValueError: If a network cannot take images of the recipe's size.
    """
    found = {}
    for entry in plan.own_entries():
        own = task.under(plan.recipe_of(entry, plan.seeds[0]))
        size = own.preprocessing.image_size
        try:
            with torch.device("meta"):
                counted = cost(own.build_model(pretrained=False), size)
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
    task = task_class(plan.recipe.task)
    by_name = {entry.name: entry for entry in plan.entries}
    folders = (plan.run_folder(root, e, seed) for e in plan.entries for seed in plan.seeds)
    # It may depend on the data; those that have not ended yet will have the same one.
    measured = (found["metric"] for found in map(outcome, folders) if "metric" in found)
    metric = next(measured, task.primary)
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
                    metric=metric,
                    score=found.get(metric),
                    top5=found.get("top5"),
                    loss=found.get("loss"),
                    best_score=found.get(f"best_{metric}"),
                    others={name: found.get(name) for name in task.others},
                    epochs=None if epochs is None else round(epochs, 3),
                    steps=found.get("step"),
                    images=found.get("images"),
                    num_val=found.get("num_val"),
                    conditions=str(found.get("conditions", "")),
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


def _processes(device: str) -> int:
    return (os.cpu_count() or 1) if device == "cpu" else 1


def _threads(processes: int, device: str) -> int:
    """Return the threads per run: on a CPU, small networks are fastest with one core each."""
    if device != "cpu":
        return 0
    return max(1, (os.cpu_count() or 1) // (processes or _processes(device)))
