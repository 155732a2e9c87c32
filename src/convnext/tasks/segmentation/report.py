"""Report sections of segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convnext.tasks.figures import (
    Drawing,
    Part,
    ReportSections,
    Section,
    draw_bars,
    draw_confusion,
    measured_on,
    table,
)

MAX_CONFUSED_PAIRS = 12
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
    if not evaluation.get("confusion"):
        return None
    matrix = np.asarray(evaluation["confusion"])
    names = evaluation["classes"]
    pairs = confused_pairs(matrix, names)
    alt = f"Confusion matrix of {len(names)} classes. " + (
        f"The most frequent mistake is {pairs[0]['prediction']} instead of {pairs[0]['truth']}: "
        f"{pairs[0]['share']} of its pixels."
        if pairs
        else "There are no mistakes."
    )
    drawing = draw_confusion(matrix, names, percent=True)
    drawn = Drawing(
        name="confusion",
        title="Confusion matrix of pixels, percent of the row",
        alt=alt,
        figure=drawing,
    )
    parts = [Part(kind="matrix", values={"figure": drawn})]
    if pairs:
        columns = (
            ("truth", "truth", ""),
            ("prediction", "prediction", ""),
            ("pixels of the class", "share", ""),
            ("pixels", "count", "count"),
        )
        parts.append(table(columns, pairs))
    return Section(
        title="Confusion matrix",
        note="Each row is a true class, each column a predicted class. Blue is right, orange is "
        "wrong; darker colors are larger fractions of the row.",
        parts=parts,
    )


def confused_pairs(matrix: Any, names: Any) -> list[dict[str, Any]]:
    """Return the pairs of classes with the most pixels (K, K) off the diagonal."""
    off = matrix - np.diag(np.diagonal(matrix))
    worst = np.argsort(-off, axis=None, kind="stable")[:MAX_CONFUSED_PAIRS]
    return [
        {
            "truth": names[t],
            "prediction": names[p],
            "count": int(off[t, p]),
            "share": f"{100 * off[t, p] / matrix[t].sum():.1f}\u00a0%",
        }
        for t, p in zip(*np.unravel_index(worst, off.shape), strict=True)
        if off[t, p]
    ]


def worst_images(evaluation: Mapping[str, Any]) -> Section | None:
    """The images with the lowest IoU: image, truth, prediction and errors side by side.

    The evaluation adds `source` and a `picture` (a data URI) to each.
    """
    found = [row for row in evaluation.get("worst", []) if "picture" in row]
    if not found:
        return None
    strips = [
        {
            "image": row["picture"] if str(row["picture"]).startswith("data:image/") else "",
            "alt": f"Image, truth, prediction and errors; IoU {100 * row['iou']:.1f} percent",
            "title": f"IoU {100 * row['iou']:.1f}\u00a0%",
            "source": row.get("source", ""),
        }
        for row in found
    ]
    return Section(
        title="Worst images",
        note="Sorted by the mean IoU of the classes in the image. Orange is wrong, plain gray is "
        "not labeled. Check these images first for wrong masks.",
        parts=[Part(kind="strips", values={"strips": strips})],
    )


def report(evaluation: Mapping[str, Any]) -> ReportSections:
    """Return the report sections of an evaluation; none if it is empty."""
    makers = (bars, confusion, per_class, worst_images)
    return ReportSections.of(evaluation, "miou", scores, reliability, *makers)
