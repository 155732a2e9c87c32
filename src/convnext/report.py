"""The report of a run: one HTML page that opens from disk, without network, in light and in dark.

It is made from the files of the run folder alone, and may be made anew at any time. A file that is
not there yet leaves its section out, and the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convnext.atomic import atomic_write, write_text
from convnext.figures import (
    ACCENT,
    MISS,
    MUTED,
    Curve,
    draw_confusion,
    draw_curves,
    draw_speed,
    inline_svg,
    save_bytes,
)
from convnext.train.log import read_metrics

MAX_CONFUSED_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder holds; a file that is absent is an empty value."""

    folder: Path
    recipe: Mapping[str, Any]
    choices: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]
    environment: Mapping[str, Any]
    model: Mapping[str, Any]
    missing: Sequence[str]

    def rows(self, kind: str, weights: str | None = None) -> list[Mapping[str, Any]]:
        """Return the rows of metrics.jsonl of a kind, and of one set of weights."""
        return [
            row
            for row in self.metrics
            if row["kind"] == kind and weights in (None, row.get("weights"))
        ]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: a block of the template, and the values that it shows."""

    block: str
    title: str
    values: Mapping[str, Any] = field(default_factory=dict)


def read_run(folder: Path) -> Run:
    """Read what is there of a run folder."""
    import yaml

    missing = []

    def read(name: str, parse: Callable[[str], Any], nothing: Any) -> Any:
        path = folder / name
        if not path.is_file():
            missing.append(name)
            return nothing
        return parse(path.read_text(encoding="utf-8"))

    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        missing.append(metrics.name)
    return Run(
        folder=folder,
        recipe=read("recipe.yaml", yaml.safe_load, {}),
        choices=read("choices.json", json.loads, []),
        metrics=read_metrics(metrics) if metrics.is_file() else [],
        evaluation=read("evaluation.json", json.loads, {}),
        environment=read("environment.json", json.loads, {}),
        model=read("model.json", json.loads, {}),
        missing=missing,
    )


def write_report(folder: Path) -> Path:
    """Write `report.html` and its figures into a run folder; return the page's path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    run = read_run(folder)
    sections = [section for section in (make(run) for make in SECTIONS) if section is not None]
    environment = Environment(
        loader=PackageLoader("convnext"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.jinja").render(
        title=f"{run.model.get('name', 'a network')} on {run.recipe.get('data', 'unknown data')}",
        headline=headline(run),
        missing=run.missing,
        sections=sections,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def headline(run: Run) -> list[tuple[str, str]]:
    """Return the figures at the top of the page, each with its label."""
    facts: list[tuple[str, str]] = []
    if run.evaluation:
        facts.append(("top-1", f"{run.evaluation['top1']:.2f} %"))
        if len(run.evaluation["classes"]) > 5:
            facts.append(("top-5", f"{run.evaluation['top5']:.2f} %"))
        facts.append(("validation images", f"{run.evaluation['num_images']:,}"))
        facts.append(("classes", f"{len(run.evaluation['classes']):,}"))
    if run.model:
        facts.append(("parameters", f"{run.model['params'] / 1e6:.2f} M"))
        macs = run.model["macs"]
        unit, size = ("G", 1e9) if macs >= 1e9 else ("M", 1e6)
        facts.append((f"MACs at {run.model['input_size']} px", f"{macs / size:.3g} {unit}"))
    if run.metrics:
        facts.append(("images seen", f"{run.metrics[-1]['images']:,}"))
        facts.append(("time", duration(run.metrics[-1]["seconds"])))
    if run.environment.get("device"):
        facts.append(("device", str(run.environment["device"])))
    return facts


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def curves(run: Run) -> Section | None:
    """Loss, accuracy, learning rate and speed against the images seen."""
    trained, evaluated = run.rows("train"), run.rows("val")
    if not trained:
        return None
    figures = [
        _figure(
            run,
            "loss",
            "Training loss, and the loss on the validation set",
            draw_curves(
                [
                    _curve("training", trained, "loss", MUTED),
                    *_by_weights(run, "loss"),
                ],
                label="loss",
            ),
        )
    ]
    if evaluated:
        best = max(evaluated, key=lambda row: row["top1"])
        figures.append(
            _figure(
                run,
                "top1",
                "Top-1 on the validation set",
                draw_curves(
                    _by_weights(run, "top1"),
                    label="top-1 (%)",
                    mark=(best["images"], best["top1"], f"{best['top1']:.2f}"),
                ),
            )
        )
    figures.append(
        _figure(
            run,
            "lr",
            "Learning rate",
            draw_curves([_curve("learning rate", trained, "lr", ACCENT)], label="learning rate"),
        )
    )
    figures.append(
        _figure(
            run,
            "speed",
            "Images per second, and the share of time spent waiting for data",
            draw_speed(
                *([row[k] for row in trained] for k in ("images", "images_per_s", "wait_share"))
            ),
        )
    )
    return Section(block="figures", title="Curves", values={"figures": figures})


def confusion(run: Run) -> Section | None:
    """The confusion matrix, and the pairs of classes that are confused most."""
    if not run.evaluation:
        return None
    matrix = np.asarray(run.evaluation["confusion"])
    names = run.evaluation["classes"]
    off = matrix - np.diag(np.diagonal(matrix))
    worst = np.argsort(off, axis=None, kind="stable")[::-1][:MAX_CONFUSED_PAIRS]
    pairs = [
        {
            "truth": names[t],
            "prediction": names[p],
            "count": int(off[t, p]),
            "of": int(matrix[t].sum()),
        }
        for t, p in zip(*np.unravel_index(worst, off.shape), strict=True)
        if off[t, p]
    ]
    figure = _figure(
        run, "confusion", "Confusion matrix: rows are the truth", draw_confusion(matrix, names)
    )
    return Section(
        block="confusion", title="What is taken for what", values={"figure": figure, "pairs": pairs}
    )


def per_class(run: Run) -> Section | None:
    """Precision, recall and F1 of every class."""
    if not run.evaluation:
        return None
    return Section(block="classes", title="Classes", values={"rows": run.evaluation["per_class"]})


def mistakes(run: Run) -> Section | None:
    """The pictures that the network is most sure of, and wrong about."""
    found = run.evaluation.get("mistakes", [])
    if not found:
        return None
    return Section(block="mistakes", title="Most confident mistakes", values={"mistakes": found})


def bad_images(run: Run) -> Section | None:
    """Images that could not be read."""
    found = run.evaluation.get("bad_images", [])
    if not found:
        return None
    title = f"{len(found)} validation images could not be read"
    return Section(block="bad_images", title=title, values={"images": found})


def choices(run: Run) -> Section | None:
    """What `auto` chose, and why."""
    if not run.choices:
        return None
    return Section(block="choices", title="Chosen by auto", values={"choices": run.choices})


def settings(run: Run) -> Section | None:
    """The resolved recipe and the machine."""
    import yaml

    if not run.recipe:
        return None
    text = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    return Section(
        block="settings",
        title="Recipe and environment",
        values={"recipe": text, "environment": run.environment},
    )


SECTIONS: tuple[Callable[[Run], Section | None], ...] = (
    curves, confusion, per_class, mistakes, bad_images, choices, settings,
)  # fmt: skip


def _curve(label: str, rows: Sequence[Mapping[str, Any]], key: str, colour: str) -> Curve:
    return Curve(
        label=label,
        x=[row["images"] for row in rows],
        y=[row[key] for row in rows],
        colour=colour,
    )


def _by_weights(run: Run, key: str) -> list[Curve]:
    kinds = (("model", "weights", ACCENT), ("ema", "moving average", MISS))
    return [
        _curve(label, rows, key, colour)
        for weights, label, colour in kinds
        if (rows := run.rows("val", weights))
    ]


def _figure(run: Run, name: str, title: str, figure: Any) -> dict[str, str]:
    """Save a figure beside the page as SVG and PNG; return its title and its markup."""
    folder = run.folder / "figures"
    data = {form: save_bytes(figure, form) for form in ("svg", "png")}
    for form, content in data.items():
        with atomic_write(folder / f"{name}.{form}") as path:
            path.write_bytes(content)
    return {"title": title, "svg": inline_svg(data["svg"].decode(), name)}
