"""The runs of a study, in parallel processes: each is trained once, and resumes if killed.

A run folder is finished when it contains `result.json`, which is written last. Everything else
about a study follows from its plan and its run folders, so a study may be killed at any moment and
restarted with the same command.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from convnext.atomic import write_text
from convnext.data.threads import main_script_runs_once
from convnext.hardware.system import StopSignals
from convnext.progress import safe_console
from convnext.recipes.recipe import Recipe, read_recipe, recipe_from_dict, to_dict
from convnext.studies.compare import DIVERGED, FAILED, FINISHED, WAITING
from convnext.studies.plan import Entry, Study
from convnext.tasks import task_class
from convnext.tasks.base import Task
from convnext.training.checks import mark_folder
from convnext.training.faults import EXIT_WHEN_LOST, DivergedError, InterruptedRun
from convnext.training.log import read_metrics

POLL_SECONDS = 0.5
# Time after SIGTERM for a run to finish its step and save its state.
GRACE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to train."""

    entry: Entry
    seed: int
    folder: Path
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of the run in printed output."""
        return f"{self.entry.name}, seed {self.seed}"


def outcome(folder: Path) -> Mapping[str, Any]:
    """Return the outcome stored in a run folder, or the state "waiting" if it has not ended."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"state": WAITING}
    except ValueError as error:
        raise ValueError(f"{folder / 'result.json'} is damaged; delete it: {error}") from error
    return dict(found)


def jobs_of(study: Study, root: Path) -> list[Job]:
    """Return the unfinished runs, seed by seed, so that the table is useful early."""
    for entry in study.own_entries():
        claim(root / "runs" / entry.folder_name, study.identity(entry), entry.name)
    return [
        Job(entry=entry, seed=seed, folder=folder, recipe=study.recipe_of(entry, seed))
        for seed in study.seeds
        for entry in study.own_entries()
        if outcome(folder := study.run_folder(root, entry, seed))["state"] == WAITING
    ]


def claim(folder: Path, identity: str, name: str) -> None:
    """Claim the folder of an entry's runs, or check that it belongs to this entry.

    Raises:
        ValueError: If it contains runs of another network or recipe.
    """
    path = folder / "identity.txt"
    if path.is_file() and path.read_text(encoding="utf-8").strip() != identity:
        raise ValueError(
            f"{folder} contains runs of another network or recipe with the name {name}; choose "
            "another --output, or delete that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, identity + "\n")


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Lock the folder of a study, so that no other process trains in it.

    Raises:
        ValueError: If another process holds the lock.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"another process works on {root}; wait for it, or end it") from error
    try:
        yield
    finally:
        lock.release()


def run_jobs(
    jobs: list[Job],
    *,
    processes: int,
    threads: int,
    devices: Sequence[str] = (),
    console: Console,
    ended: Callable[[Job, Mapping[str, Any]], None],
) -> None:
    """Train all jobs, `processes` at a time, each on one device.

    Args:
        jobs: The jobs, in order of execution.
        processes: Number of parallel runs.
        threads: CPU threads per run; 0 for torch's default.
        devices: GPU numbers, assigned to the processes in turn; each process sees only its own.
        console: Where to print progress.
        ended: Called after each job with its outcome, including failed ones.

    Raises:
        InterruptedRun: If a signal interrupted the study; all runs in progress have saved their
            state.
    """
    waiting, running = list(jobs), list[_Worker]()
    idle: list[_Worker] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    bar.disable = not console.is_terminal
    done, total = 0, len(jobs)
    with bar, StopSignals() as stop:
        task = bar.add_task("", total=total)
        try:
            while (waiting or running) and stop.received is None:
                while waiting and len(running) < processes:
                    taken = {worker.number for worker in running}
                    number = next(n for n in range(processes) if n not in taken)
                    worker = next((w for w in idle if w.number == number), None)
                    if worker is None:
                        worker = _Worker(number, threads, devices)
                    else:
                        idle.remove(worker)
                    worker.begin(waiting.pop(0))
                    running.append(worker)
                bar.update(
                    task,
                    completed=done + sum(worker.share() for worker in running),
                    description=f"{done} of {total} runs; "
                    + " | ".join(worker.job.name for worker in running),
                )
                for worker in _ready(running):
                    job, found = worker.end()
                    running.remove(worker)
                    if _was_stopped(stop) and found["state"] == FAILED:
                        continue  # The signal also reached this run, which saved its state.
                    if worker.process.is_alive():
                        idle.append(worker)
                    done += 1
                    ended(job, found)
        finally:
            for worker in (*running, *idle):
                worker.process.terminate()
            for worker in (*running, *idle):
                worker.process.join(GRACE_SECONDS)
        if stop.received is not None:
            raise InterruptedRun(
                f"{stop.received} received: {done} of {total} runs are done, the others saved; the "
                "same command resumes"
            )


def visible_devices() -> list[str]:
    """Return the numbers of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def describe_end(job: Job, found: Mapping[str, Any]) -> str:
    """Describe the end of a run in one line."""
    if found["state"] == FINISHED:
        task = task_class(job.recipe.task)
        metric = found.get("metric", task.primary)
        score = f"{task.metrics()[metric]} {found[metric]:.2f} %"
        return f"{job.name}: {score} in {found['seconds']:.0f} s"
    return f"{job.name}: {found['state']}: {found.get('reason', '')}"


class _Worker:
    """A process that trains one run after another."""

    def __init__(self, number: int, threads: int, devices: Sequence[str]) -> None:
        device = devices[number % len(devices)] if devices else None
        context = multiprocessing.get_context("spawn")
        self.number = number
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_work, args=(theirs, threads, device), name=f"run {number}"
        )
        with main_script_runs_once():
            self.process.start()
        theirs.close()
        self.job: Any = None
        self._shown, self._next_check = 0.0, 0.0

    def begin(self, job: Job) -> None:
        self.job, self._shown = job, 0.0
        self.connection.send((to_dict(job.recipe), str(job.folder)))

    def share(self) -> float:
        """Return the finished fraction of the run, from 0 to 1."""
        now = time.monotonic()
        if now > self._next_check:
            self._next_check = now + 3
            epoch = _last_epoch(self.job.folder / "metrics.jsonl")
            self._shown = min(1.0, epoch / float(self.job.recipe.schedule.epochs))
        return self._shown

    def end(self) -> tuple[Job, Mapping[str, Any]]:
        """Return the job and its outcome, after the job or the process has ended."""
        try:
            found = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            found = None
        if found is None:
            self.process.join(5)
            code = self.process.exitcode
            found = {"state": FAILED, "reason": f"its process ended with code {code}"}
        return self.job, found


def _was_stopped(stop: StopSignals) -> bool:
    """Return whether a signal has arrived. A function, because it may arrive at any moment."""
    return stop.received is not None


def _ready(running: list[_Worker]) -> list[_Worker]:
    """Return the workers that have sent an outcome or have ended."""
    ends: dict[Any, _Worker] = {}
    for worker in running:
        ends[worker.connection] = ends[worker.process.sentinel] = worker
    found = {ends[end].number: ends[end] for end in wait(list(ends), POLL_SECONDS)}
    return list(found.values())


def _last_epoch(path: Path) -> float:
    """Return the epoch of the last complete row of a log that is being written."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            lines = stream.read().split(b"\n")[1:-1]
        return float(json.loads(lines[-1])["epoch"])
    except (OSError, IndexError, KeyError, ValueError):
        return 0.0


def _work(connection: Connection, threads: int, device: str | None) -> None:
    """Train the jobs that arrive on the connection until it closes."""
    if device is not None:  # Set before torch detects devices, so that it finds only this one.
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()

    EXIT_WHEN_LOST.set(True)
    import torch

    if threads:
        torch.set_num_threads(threads)
    while True:
        try:
            recipe, folder = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            connection.send(_train(recipe_from_dict(recipe), Path(folder)))
        except (InterruptedRun, KeyboardInterrupt, BrokenPipeError):
            return


def _train(recipe: Recipe, folder: Path) -> Mapping[str, Any]:
    """Train one run to its end, and write its outcome if that is final."""
    from convnext.reports.report import write_report
    from convnext.training.run import train

    mark_folder(folder)
    with (folder / "console.txt").open("a", encoding="utf-8") as stream:
        console = safe_console(Console(file=stream, width=120, highlight=False))
        try:
            train(
                recipe,
                output=folder,
                resume=True,
                console=console,
                write_report=write_report,
            )
        except DivergedError as error:
            found: dict[str, Any] = {"state": DIVERGED, "reason": str(error)}
        # A network that does not fit must not end the study; the table states the reason.
        except (ValueError, OSError, RuntimeError) as error:
            console.print_exception()
            return {"state": FAILED, "reason": " ".join(str(error).split())[:500]}
        else:
            found = {"state": FINISHED} | _scores(folder, task_class(recipe.task))
    write_text(folder / "result.json", json.dumps(found) + "\n")
    return found


def _scores(folder: Path, task: type[Task]) -> dict[str, Any]:
    """Return the scores of the last step's own weights, and the cost of reaching them."""
    rows = read_metrics(folder / "metrics.jsonl")
    measured = [r for r in rows if r["kind"] == "val" and r.get("weights") == "model"]
    last = measured[-1]
    primary, _ = task.metric_of(to_dict(read_recipe(folder / "recipe.yaml")))
    kept = (primary, "top5", *task.others, "loss", "epoch", "step", "images", "seconds")
    scores = {name: last[name] for name in kept if name in last}
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    scores["num_val"] = evaluation["num_images"]
    # These are scores of training's own validation, not of the evaluation at its end.
    facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    scores["conditions"] = facts.get("validation", "")
    best = max(row[primary] for row in measured)
    return scores | {"metric": primary, f"best_{primary}": best}


def _leave_with(parent: Any) -> None:
    """End this process when its parent exits; a run first saves its state."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
