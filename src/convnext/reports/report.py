"""The report of a run: one HTML page that opens from disk, without network, in light and in dark.

It is made from the files of the run folder and the reference curve that its recipe names, and can
be made again at any time. If a file is missing, its section is left out and the page says so. A
section consists of parts (figures, tables, pictures, ...) that do not depend on a task; each task
adds its own sections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convnext.atomic import atomic_write
from convnext.reports.page import (
    draw_curves,
    draw_speed,
    duration,
    inline_svg,
    short_count,
    write_page,
)
from convnext.tasks import DEFAULT, task_class
from convnext.tasks.base import Task
from convnext.tasks.figures import (
    ACCENT,
    MISS,
    MUTED,
    Curve,
    Drawing,
    Part,
    ReportSections,
    Section,
    measured_on,
    save_bytes,
    table,
)
from convnext.training.checks import Reference, read_reference
from convnext.training.log import LOSS, read_metrics

# Colors of several curves in one figure, distinct for every kind of color vision.
LINES = (ACCENT, MISS, "#00a076", "#b85488", "#6b4fb3", "#5aa5d8", MUTED)
WEIGHTS = {"model": "validation", "ema": "validation, moving average"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run folder; missing files have empty values."""

    folder: Path
    recipe: Mapping[str, Any]
    choices: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    environment: Mapping[str, Any]
    model: Mapping[str, Any]
    missing: Sequence[str]
    events: Sequence[Mapping[str, Any]] = ()
    """Warnings and restarts in metrics.jsonl, including those of superseded steps."""
    reference: Reference | None = None

    def rows(self, kind: str, weights: str | None = None) -> list[Mapping[str, Any]]:
        """Return the rows of metrics.jsonl of a kind, and of one set of weights."""
        return [
            row
            for row in self.metrics
            if row["kind"] == kind and weights in (None, row.get("weights"))
        ]

    @property
    def task(self) -> type[Task]:
        """The task that was trained."""
        return task_class(self.recipe.get("task", DEFAULT))

    @property
    def primary(self) -> str:
        """The metric that decides which weights are the best."""
        return self.task.metric_of(self.recipe)[0]

    @property
    def primary_name(self) -> str:
        """The metric's name for display."""
        return self.task.metric_of(self.recipe)[1]

    def best(self) -> Mapping[str, Any] | None:
        """Return the evaluation with the highest primary metric; the earliest in a tie."""
        key = self.primary
        scored = [row for row in self.rows("val") if _is_number(row.get(key))]
        return max(scored, key=lambda row: float(row[key]), default=None)


def read_run(folder: Path) -> Run:
    """Read a run folder; a file that cannot be parsed counts as missing."""
    import yaml

    missing = []

    def read(name: str, parse: Callable[[str], Any], nothing: Any) -> Any:
        path = folder / name
        if not path.is_file():
            missing.append(name)
            return nothing
        try:
            return parse(path.read_text(encoding="utf-8")) or nothing
        except (ValueError, yaml.YAMLError):
            missing.append(f"{name} (damaged)")
            return nothing

    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        missing.append(metrics.name)
    recipe = read("recipe.yaml", yaml.safe_load, {})
    curve, reference = recipe.get("run", {}).get("reference", "none"), None
    try:
        task = task_class(recipe.get("task", DEFAULT))
        reference = read_reference(curve, task.metric_of(recipe)[0])
    except ValueError:
        missing.append(f"the reference {curve}")
    return Run(
        folder=folder,
        recipe=recipe,
        choices=read("choices.json", json.loads, []),
        metrics=read_metrics(metrics) if metrics.is_file() else [],
        evaluation=read("evaluation.json", json.loads, {}),
        environment=read("environment.json", json.loads, {}),
        model=read("model.json", json.loads, {}),
        missing=missing,
        events=[
            row
            for row in (read_metrics(metrics, raw=True) if metrics.is_file() else [])
            if row["kind"] in ("event", "resume")
        ],
        reference=reference,
    )


def write_report(folder: Path) -> Path:
    """Write `report.html` and its figures into a run folder; return the page's path."""
    run = read_run(folder)
    data = str(run.recipe.get("data", "unknown data"))
    found = run.task.report(run.evaluation)
    sections = (curves(run), *found.sections, events(run), choices(run), settings(run))
    return write_page(
        folder / "report.html",
        "report.html.jinja",
        model=run.model.get("name", "A network"),
        data=Path(data).name or data,
        headline=headline(run, found),
        summary=summary(run, found),
        missing=run.missing,
        sections=[_published(section, folder) for section in sections if section is not None],
    )


def _published(section: Section, folder: Path) -> Section:
    """Save the drawings of a section next to the page, and replace them by their markup."""

    def publish(value: Any) -> Any:
        if isinstance(value, Drawing):
            return _save(value, folder / "figures")
        return [publish(item) for item in value] if isinstance(value, list) else value

    parts = [
        replace(part, values={name: publish(value) for name, value in part.values.items()})
        for part in section.parts
    ]
    return replace(section, parts=parts)


def _save(drawing: Drawing, folder: Path) -> dict[str, str]:
    data = {form: save_bytes(drawing.figure, form) for form in ("svg", "png")}
    for form, content in data.items():
        with atomic_write(folder / f"{drawing.name}.{form}") as path:
            path.write_bytes(content)
    svg = inline_svg(data["svg"].decode(), drawing.name, drawing.alt)
    return {"title": drawing.title, "svg": svg}


def headline(run: Run, found: ReportSections) -> list[tuple[str, str]]:
    """Return the labels and numbers at the top of the page."""
    facts: list[tuple[str, str]] = []
    best = run.best()
    if run.primary in run.evaluation:
        facts += found.scores
    elif best is not None:
        facts.append((f"best {run.primary_name} so far", f"{best[run.primary]:.2f}\u00a0%"))
    if run.model:
        facts.append(("classes", f"{run.model['classes']:,}"))
        params = run.model["params"]
        shown = f"{params:,}" if params < 100_000 else f"{params / 1e6:.2f} M"
        facts.append(("parameters", shown))
        macs = run.model["macs"]
        unit, size = ("G", 1e9) if macs >= 1e9 else ("M", 1e6)
        facts.append((f"MACs at {run.model['input_size']} px", f"{macs / size:.3g} {unit}"))
    if run.metrics:
        facts.append(("images seen", f"{run.metrics[-1]['images']:,}"))
        facts.append(("time", duration(run.metrics[-1]["seconds"])))
    if run.environment.get("device"):
        facts.append(("device", str(run.environment["device"])))
    return facts


def summary(run: Run, found: ReportSections) -> list[str]:
    """Return sentences about when the best score was reached, and how reliable it is."""
    said = []
    best = run.best()
    if best is not None:
        by = ", by the moving average of the weights" if best.get("weights") == "ema" else ""
        epochs = run.recipe.get("schedule", {}).get("epochs", "auto")
        said.append(
            f"Best at epoch {best['epoch']:.4g}{f' of {epochs}' if epochs != 'auto' else ''} "
            f"(step {best['step']:,}){by}."
        )
    if run.primary in run.evaluation:
        said += found.reliability
        if len(run.rows("val")) > 1:
            said.append(
                "The weights were chosen on these images, so expect slightly less on new ones."
            )
    return said


def curves(run: Run) -> Section | None:
    """Loss, accuracy, learning rate and speed against the images seen."""
    trained, best = run.rows("train"), run.best()
    if not trained:
        return None
    lines = {
        "loss": (
            "Loss",
            "loss",
            [_curve("training", trained, "loss", MUTED), *_by_weights(run, "loss")],
        ),
        run.primary: (
            f"{_as_title(run.primary_name)} on the validation set",
            f"{run.primary_name}, %",
            [*_by_weights(run, run.primary), *_reference(run)],
        ),
        "losses": ("Losses by name", "loss", _losses(trained)),
        "lr": ("Learning rate", "", [_curve("learning rate", trained, "lr", ACCENT)]),
    }
    figures = []
    for name, (title, label, all_curves) in lines.items():
        drawn = [curve for curve in all_curves if curve.x]
        if drawn:
            mark = None
            if name == run.primary and best is not None:
                # The page shows one number: the evaluation, in other precision than validation.
                shown = run.evaluation if _is_number(run.evaluation.get(name)) else best
                mark = (best["images"], shown[name], f"{shown[name]:.2f}")
            alt = f"{title}. " + "; ".join(map(_spoken, drawn))
            drawing = draw_curves(drawn, label=label, mark=mark)
            figures.append(Drawing(name=name, title=title, alt=alt, figure=drawing))
    columns = [_finite(trained, "images", key) for key in ("images_per_s", "wait_share")]
    if columns[0][0] and columns[0][0] == columns[1][0]:
        (images, speed), (_, waiting) = columns
        title = "Speed, and the share of time spent waiting for data"
        alt = (
            f"{title}: on average {np.mean(speed):,.0f} images per second and "
            f"{np.mean(waiting):.0%} of the time."
        )
        drawing = draw_speed(images, speed, waiting)
        figures.append(Drawing(name="speed", title=title, alt=alt, figure=drawing))
    note = f"Lines: training's own validation, {own}." if (own := validation(run)) else ""
    if note and run.primary in run.evaluation:
        note += f" Dot: the evaluation of the best weights, {measured_on(run.evaluation)}."
    figures_of_run = Part(kind="figures", values={"figures": figures})
    return Section(title="Training", note=note, parts=[figures_of_run])


def validation(run: Run) -> str:
    """Return what training's own validation was measured on; "" if the run did not record it."""
    return str(run.environment.get("validation", ""))


def events(run: Run) -> Section | None:
    """Warnings, and where the run resumed after an interruption."""
    if not run.events:
        return None
    columns = (("step", "step", "count"), ("epoch", "epoch", ""), ("event", "what", ""))
    rows = [
        {
            "step": row["step"],
            "epoch": f"{row.get('epoch', 0):.4g}",
            "what": row.get("event") or "resumed from here; later steps were repeated",
        }
        for row in run.events
    ]
    return Section(title="Events", parts=[table(columns, rows)])


def choices(run: Run) -> Section | None:
    """What `auto` chose, and why."""
    if not run.choices:
        return None
    columns = (("setting", "setting", "code"), ("value", "shown", ""), ("because", "reason", ""))
    rows = [choice | {"shown": _plain(choice["value"])} for choice in map(dict, run.choices)]
    return Section(title="Chosen by auto", parts=[table(columns, rows)])


def settings(run: Run) -> Section | None:
    """The resolved recipe and the machine."""
    import yaml

    parts = []
    if run.recipe:
        text = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
        parts.append(Part(kind="text", values={"title": "recipe.yaml", "text": text}))
    if run.environment:
        facts = [(name, _plain(value)) for name, value in run.environment.items()]
        parts.append(Part(kind="facts", values={"facts": facts}))
    return Section(title="Recipe and environment", parts=parts) if parts else None


def _curve(label: str, rows: Sequence[Mapping[str, Any]], key: str, color: str) -> Curve:
    images, values = _finite(rows, "images", key)
    return Curve(label=label, x=images, y=values, color=color)


def _as_title(name: str) -> str:
    """Capitalize a name, unless it contains capitals, as mIoU does."""
    return name if name[:2] != name[:2].lower() else name[0].upper() + name[1:]


def _losses(trained: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return a curve for every part of the loss, if there are several.

    A part that is always zero has no targets, as the mask loss for objects without masks.
    """
    names = [
        key for key in trained[-1] if key.startswith(LOSS) and any(row.get(key) for row in trained)
    ]
    curves = []
    for i, name in enumerate(names):
        label, color = name.removeprefix(LOSS).replace("_", " "), LINES[i % len(LINES)]
        curve = _curve(label, trained, name, color)
        # A cascade has more parts than there are colors.
        curves.append(replace(curve, dashed=i >= len(LINES)))
    return curves


def _by_weights(run: Run, key: str) -> list[Curve]:
    colors = {"model": ACCENT, "ema": MISS}
    return [
        _curve(label, run.rows("val", weights), key, colors[weights])
        for weights, label in WEIGHTS.items()
    ]


def _reference(run: Run) -> list[Curve]:
    """Return the reference curve as far as the run has come, or no curve."""
    measured = [row for row in run.rows("val") if row["epoch"] > 0]
    if run.reference is None or not measured:
        return []
    last = measured[-1]
    per_epoch = last["images"] / last["epoch"]
    epochs = [epoch for epoch in run.reference.epochs if epoch < last["epoch"]]
    # The next point would stretch the axis at the start of a run.
    epochs += [last["epoch"]] if run.reference.epochs[0] <= last["epoch"] else []
    return [
        Curve(
            label="reference",
            x=[epoch * per_epoch for epoch in epochs],
            y=[run.reference.at(epoch) for epoch in epochs],
            color=MUTED,
            dashed=True,
        )
    ]


def _finite(rows: Sequence[Mapping[str, Any]], *keys: str) -> tuple[list[float], ...]:
    """Return the columns of the rows in which all of them are numbers."""
    whole = [row for row in rows if all(_is_number(row.get(key)) for key in keys)]
    return tuple([row[key] for row in whole] for key in keys)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _spoken(curve: Curve) -> str:
    return (
        f"{curve.label} from {curve.y[0]:.3g} to {curve.y[-1]:.3g} "
        f"over {short_count(curve.x[-1])} images"
    )
