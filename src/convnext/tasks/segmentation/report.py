"""Report sections of segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convnext.tasks.figures import (
    Drawing,
    Part,
    ReportSections,
    Section,
    confusion_section,
    draw_bars,
    measured_on,
    table,
    worst_section,
)

# Max number of named classes without an IoU.
MAX_ABSENT = 24


def scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores at the top of the page, each with its label."""
    found = [
        ("mIoU", f"{evaluation['miou']:.2f}\u00a0%"),
        ("pixel accuracy", f"{evaluation['accuracy']:.2f}\u00a0%"),
    ]
    if evaluation.get("boundary_f1") is not None:
        found.append(("boundary F1", f"{evaluation['boundary_f1']:.2f}\u00a0%"))
    return found


def reliability(evaluation: Mapping[str, Any]) -> list[str]:
    """Return sentences about how far to trust the primary score."""
    known = [row for row in evaluation["per_class"] if row["iou"] is not None]
    pixels = evaluation["num_pixels"]
    counted = f"{pixels / 1e6:,.1f} million" if pixels >= 1e6 else f"{pixels:,}"
    return [
        f"Measured on {measured_on(evaluation)}: "
        f"{counted} labeled pixels, {len(known)} classes with an IoU."
    ]


def bars(evaluation: Mapping[str, Any]) -> Section | None:
    """Bar chart of the IoU per class, highest on top."""
    rows = known_classes(evaluation)
    if not rows:
        return None
    names = [str(row["name"]) for row in rows]
    values = [100 * float(row["iou"]) for row in rows]
    alt = (
        f"IoU of {len(names)} classes. The best is {names[0]}, {values[0]:.1f} percent; "
        f"the worst is {names[-1]}, {values[-1]:.1f} percent."
    )
    drawing = draw_bars(names, values, label="IoU, %")
    drawn = Drawing(name="iou", title="IoU of every class", alt=alt, figure=drawing)
    absent = [str(row["name"]) for row in evaluation["per_class"] if row["iou"] is None]
    return Section(
        title="Classes",
        note=f"These classes do not occur and are left out of the mean: {_some(absent)}."
        if absent
        else "",
        parts=[Part(kind="figures", values={"figures": [drawn]})],
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_ABSENT
    return ", ".join(names[:MAX_ABSENT]) + (f" and {more:,} more" if more > 0 else "")


def per_class(evaluation: Mapping[str, Any]) -> Section | None:
    """All scores of every class that occurs."""
    rows = known_classes(evaluation)
    if not rows:
        return None
    columns = [
        ("class", "name", ""),
        ("pixels", "pixels", "count"),
        ("accuracy", "accuracy", "share"),
        ("precision", "precision", "share"),
        ("F1", "f1", "share"),
        ("IoU", "iou", "share"),
    ]
    if evaluation.get("boundary_f1") is not None:
        columns.insert(-1, ("boundary F1", "boundary_f1", "share"))
    # 0/0 is shown as 0: a class that is never predicted is never right.
    shown = [{key: row[key] or 0 for _, key, _ in columns} for row in reversed(rows)]
    return Section(
        title="Scores of the classes",
        note="In percent, lowest IoU first; click a heading to sort by it.",
        parts=[table(columns, shown, sortable=True)],
    )


def known_classes(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores of the classes that have an IoU, highest first."""
    rows = [row for row in evaluation.get("per_class", []) if row["iou"] is not None]
    return sorted(rows, key=lambda row: -float(row["iou"]))


def confusion(evaluation: Mapping[str, Any]) -> Section | None:
    """The confusion matrix of pixels, and the pairs of classes most often confused."""
    return confusion_section(
        evaluation,
        lambda count, total: f"{100 * count / total:.1f}\u00a0%",
        (("pixels of the class", "share", ""), ("pixels", "count", "count")),
        unit="of its pixels",
        title="Confusion matrix of pixels, percent of the row",
        percent=True,
    )


def worst_images(evaluation: Mapping[str, Any]) -> Section | None:
    """The images with the lowest IoU: image, truth, prediction and errors side by side.

    The evaluation adds `source` and a `picture` (a data URI) to each.
    """
    return worst_section(
        evaluation,
        lambda row: (
            f"Image, truth, prediction and errors; IoU {100 * row['iou']:.1f} percent",
            f"IoU {100 * row['iou']:.1f}\u00a0%",
        ),
        note="Sorted by the mean IoU of the classes in the image. Orange is wrong, plain gray is "
        "not labeled. Check these images first for wrong masks.",
    )


def report(evaluation: Mapping[str, Any]) -> ReportSections:
    """Return the report sections of an evaluation; none if it is empty."""
    makers = (bars, confusion, per_class, worst_images)
    return ReportSections.of(evaluation, "miou", scores, reliability, *makers)
