"""A training run from recipe to report: the run folder and everything in it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console

from convnext.atomic import write_text
from convnext.costs import cost
from convnext.device import check_precision, environment, pick_device
from convnext.recipe import Recipe, one_line, to_yaml
from convnext.tasks import open_task
from convnext.train.log import RunLog
from convnext.train.loop import Outcome, fit
from convnext.train.state import complete_steps

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run reached, and where it is."""

    folder: Path
    model: str
    data: str
    best: Mapping[str, Any]
    """Metrics of the best weights, with `step` and `weights`."""
    steps: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder), "best": dict(self.best)}


def train(
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Train as a recipe says, into a run folder.

    Args:
        recipe: What to train, on what and how; `auto` settings are chosen here.
        output: The run folder; by default a new one under `runs/`.
        resume: Go on from the last complete checkpoint of the run folder.
        console: Where to print.

    Raises:
        ValueError: If the recipe, the data or the weights cannot be used, or the folder already
            holds a run and `resume` is not set.
        DivergedError: If the loss stops being a number.
    """
    console = console or Console(stderr=True, highlight=False)
    device = pick_device(recipe.run.device)
    check_precision(recipe.run.precision, device)
    if output is not None and complete_steps(output / "checkpoints") and not resume:
        raise ValueError(
            f"{output} already holds a run; go on with it by --resume, or choose another --output"
        )
    if Path(recipe.data).exists():
        # Where the run is evaluated from later, the data is still found.
        recipe = replace(recipe, data=str(Path(recipe.data).resolve()))
    task = open_task(recipe, device, console)
    recipe = task.recipe
    torch.manual_seed(recipe.run.seed)
    model = task.build_model()
    task.prepare(console)
    folder = output or _new_folder(recipe)
    size = task.preprocessing.image_size
    try:
        network = cost(model, size)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"{recipe.model} cannot take images of {size} pixels; try another --input.image_size "
            f"({one_line(error)})"
        ) from error
    console.print(
        f"[bold]{recipe.model}[/]  {network.params / 1e6:.2f} M parameters, "
        f"{network.macs / 1e6:,.0f} M multiply-accumulates at {size} px, on {device.type} "
        f"in {recipe.run.precision}"
    )
    log = RunLog(folder, console)
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    if not (resume and (folder / "choices.json").exists()):
        _write_json(folder / "choices.json", [asdict(choice) for choice in task.choices])
    _write_json(
        folder / "model.json",
        {"name": recipe.model, "input_size": size, "classes": len(task.data.classes)}
        | asdict(network),
    )
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    facts = environment(device) | {"precision": recipe.run.precision, "started": started}
    _write_json(folder / "environment.json", facts)
    console.print(f"run folder: {folder}", markup=False, soft_wrap=True)

    fabric = Fabric(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=PRECISIONS[recipe.run.precision],
    )
    try:
        outcome = fit(task, model, recipe, fabric=fabric, log=log, resume=resume)
    finally:
        log.close()
    _write_json(folder / "environment.json", facts | {"seconds": round(outcome.seconds, 1)})
    _finish(task, folder, outcome, console)
    return RunResult(
        folder=folder,
        model=recipe.model,
        data=recipe.data,
        best=outcome.best,
        steps=outcome.steps,
        seconds=outcome.seconds,
    )


def _finish(task: Any, folder: Path, outcome: Outcome, console: Console) -> None:
    """Evaluate the best weights in full, write the report, and say what to do next."""
    from convnext.evaluate import evaluate
    from convnext.report import write_report

    result = evaluate(
        str(folder),
        device=str(task.device),
        console=console,
        max_bad_share=task.recipe.loader.max_bad_share,
    )
    result.write(folder)
    report = write_report(folder)
    best = outcome.best
    early = ", stopped early" if outcome.stopped_early else ""
    console.print(
        f"\n[bold]{task.primary} {best[task.primary]:.2f} %[/] at step {best['step']:,} of "
        f"{outcome.steps:,} ({'moving average' if best['weights'] == 'ema' else 'weights'}), "
        f"in {outcome.seconds:.0f} s{early}"
    )
    for bad in (*task.bad_train.found.values(), *task.bad_val.found.values()):
        console.print(f"skipped: {bad}", markup=False)
    console.print(f"report: {report}", markup=False, soft_wrap=True)
    console.print("next:")
    for command in task.next_commands(folder):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _new_folder(recipe: Recipe) -> Path:
    data = Path(recipe.data).name or "data"
    stem = f"{data}-{recipe.model.rpartition('/')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path("runs") / stem
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{stem}-{number}"
        number += 1
    return folder


def _write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
