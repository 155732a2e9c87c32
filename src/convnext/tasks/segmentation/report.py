"""The sections of a report that only segmentation has."""

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
    table,
)

MAX_CONFUSED_PAIRS = 12
# Classes without an IoU that are named.
MAX_ABSENT = 24


def scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores at the top of the page, each with its label."""
    found = [
        ("mIoU", f"{evaluation['miou']:.2f}\u00a0%"),
        ("pixels right", f"{evaluation['accuracy']:.2f}\u00a0%"),
    ]
    if evaluation.get("boundary_f1") is not None:
        found.append(("boundary F1", f"{evaluation['boundary_f1']:.2f}\u00a0%"))
    return found


def reliability(evaluation: Mapping[str, Any]) -> list[str]:
    """Return sentences that say how far the primary score can be trusted."""
    known = [row for row in evaluation["per_class"] if row["iou"] is not None]
    pixels = evaluation["num_pixels"]
    counted = f"{pixels / 1e6:,.1f} million" if pixels >= 1e6 else f"{pixels:,}"
    return [
        f"Measured on {evaluation['num_images']:,} validation images, "
        f"{counted} labeled pixels, classes that occur: {len(known)}."
    ]


def bars(evaluation: Mapping[str, Any]) -> Section | None:
    """IoU of every class as bars, the best on top."""
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
        note=f"Nowhere on these images, and left out of the mean: {_some(absent)}."
        if absent
        else "",
        parts=[Part(kind="figures", values={"figures": [drawn]})],
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_ABSENT
    return ", ".join(names[:MAX_ABSENT]) + (f" and {more:,} more" if more > 0 else "")


def per_class(evaluation: Mapping[str, Any]) -> Section | None:
    """Every score of every class that occurs."""
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
        note="In percent, the lowest IoU first; a click on a heading sorts by it.",
        parts=[table(columns, shown, sortable=True)],
    )


def known_classes(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the scores of the classes that have an IoU, the highest first."""
    rows = [row for row in evaluation.get("per_class", []) if row["iou"] is not None]
    return sorted(rows, key=lambda row: -float(row["iou"]))


def confusion(evaluation: Mapping[str, Any]) -> Section | None:
    """The confusion matrix of pixels, and the pairs of classes that are confused most."""
    if not evaluation.get("confusion"):
        return None
    matrix = np.asarray(evaluation["confusion"])
    names = evaluation["classes"]
    pairs = confused_pairs(matrix, names)
    alt = f"Confusion matrix of {len(names)} classes. " + (
        f"Most often {pairs[0]['truth']} is taken for {pairs[0]['prediction']}, "
        f"{pairs[0]['share']} of its pixels."
        if pairs
        else "Nothing is confused."
    )
    drawing = draw_confusion(matrix, names, percent=True)
    drawn = Drawing(
        name="confusion", title="Confusion of pixels, percent of the row", alt=alt, figure=drawing
    )
    parts = [Part(kind="matrix", values={"figure": drawn})]
    if pairs:
        columns = (
            ("truth", "truth", ""),
            ("taken for", "prediction", ""),
            ("of its pixels", "share", ""),
            ("pixels", "count", "count"),
        )
        parts.append(table(columns, pairs))
    return Section(
        title="What is taken for what",
        note="Each row is a class, each column what its pixels were taken for. Blue is right, "
        "orange is wrong; the stronger, the larger the share of the row.",
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
    """The images of lowest IoU: image, truth, prediction and errors side by side.

    What evaluates adds `source` and a `picture` (a data URI, see `gallery`) to each.
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
        note="By the mean IoU of the classes on the image. Orange is wrong, plain gray is not "
        "labeled. Look for wrong masks here first.",
        parts=[Part(kind="strips", values={"strips": strips})],
    )


def report(evaluation: Mapping[str, Any]) -> ReportSections:
    """Return what a report shows of an evaluation; of one that is empty, nothing."""
    makers = (bars, confusion, per_class, worst_images)
    return ReportSections.of(evaluation, "miou", scores, reliability, *makers)
