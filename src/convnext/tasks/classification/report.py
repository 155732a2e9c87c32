"""Report sections of classification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from convnext.tasks.figures import (
    Drawing,
    Part,
    ReportSections,
    Section,
    confusion_section,
    draw_bars,
    inline,
    measured_on,
    table,
)

# Max number of named classes without an image.
MAX_ABSENT = 24


def scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores at the top of the page, each with its label."""
    found = [("top-1", f"{evaluation['top1']:.2f}\u00a0%")]
    if len(evaluation["classes"]) > 5:
        found.append(("top-5", f"{evaluation['top5']:.2f}\u00a0%"))
    for name, label in (("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro F1")):
        if name in evaluation:  # Not in evaluations of 0.1.0.
            found.append((label, f"{evaluation[name]:.2f}\u00a0%"))
    return found


def reliability(evaluation: Mapping[str, Any]) -> list[str]:
    """Return sentences about how far to trust the primary score."""
    count = evaluation["num_images"]
    low, high = wilson(evaluation["top1"] / 100, count)
    return [
        f"Measured on {measured_on(evaluation)}: the 95 % confidence interval for a sample of this "
        f"size is {100 * low:.1f} to {100 * high:.1f} %."
    ]


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's confidence interval for a fraction measured on `count` images."""
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return max(center - half, 0.0), min(center + half, 1.0)  # Rounding leaves [0, 1].


def confusion(evaluation: Mapping[str, Any]) -> Section | None:
    """The confusion matrix, and the pairs of classes most often confused."""
    return confusion_section(
        evaluation,
        lambda count, total: f"{count:,} of {total:,}",
        (("images", "share", ""),),
        unit="images",
    )


def per_class(evaluation: Mapping[str, Any]) -> Section | None:
    """Precision, recall and F1 of every class."""
    if not evaluation:
        return None
    columns = (
        ("class", "name", ""),
        ("images", "support", "count"),
        ("precision", "precision", "share"),
        ("recall", "recall", "share"),
        ("F1", "f1", "share"),
    )
    # Lowest first: these classes need attention.
    rows = sorted(evaluation["per_class"], key=lambda row: float(row["f1"]))
    return Section(
        title="Classes",
        note="In percent, lowest F1 first; click a heading to sort by it.",
        parts=[table(columns, rows, sortable=True)],
    )


def mistakes(evaluation: Mapping[str, Any]) -> Section | None:
    """The images that the network gets wrong with the highest confidence."""
    found = evaluation.get("mistakes", [])
    if not found:
        return None
    pictures = [
        {
            "image": inline(m["thumbnail"]),
            "alt": f"{m['truth']}, predicted as {m['prediction']}",
            "title": m["prediction"],
            "figure": f"{100 * m['probability']:.1f}\u00a0%",
            "text": f"is {m['truth']}",
            "source": m["source"],
        }
        for m in found
    ]
    return Section(
        title="Most confident mistakes",
        note="Predictions and their probabilities are in bold. Check these images first for wrong "
        "labels.",
        parts=[Part(kind="pictures", values={"pictures": pictures})],
    )


def label_scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores of several labels at the top of the page."""
    names = {"map": "mAP", "micro_f1": "micro F1", "macro_f1": "macro F1", "sample_f1": "sample F1"}
    return [(label, f"{evaluation[name]:.2f}\u00a0%") for name, label in names.items()]


def label_reliability(evaluation: Mapping[str, Any]) -> list[str]:
    """Return sentences about what the scores of several labels mean."""
    return [
        f"Measured on {measured_on(evaluation)}. The thresholds of training were fitted to its "
        "validation images, so expect a lower F1 on others."
    ]


def labels(evaluation: Mapping[str, Any]) -> Section | None:
    """Average precision of every class, and precision, recall and F1 at its threshold."""
    known = [row for row in evaluation.get("per_class", ()) if row["ap"] is not None]
    if not known:
        return None
    known.sort(key=lambda row: float(row["ap"]))
    best = known[::-1]
    names, values = [str(row["name"]) for row in best], [100 * float(row["ap"]) for row in best]
    alt = (
        f"Average precision of {len(names)} classes. The best is {names[0]}, {values[0]:.1f} "
        f"percent; the worst is {names[-1]}, {values[-1]:.1f} percent."
    )
    figure = draw_bars(names, values, label="average precision, %")
    drawn = Drawing(name="ap", title="Average precision of every class", alt=alt, figure=figure)
    columns = (
        ("class", "name", ""),
        ("images", "support", "count"),
        ("threshold", "threshold", "share"),
        ("precision", "precision", "share"),
        ("recall", "recall", "share"),
        ("F1", "f1", "share"),
        ("AP", "ap", "share"),
    )
    absent = [str(row["name"]) for row in evaluation["per_class"] if row["ap"] is None]
    more = f" and {len(absent) - MAX_ABSENT:,} more" if len(absent) > MAX_ABSENT else ""
    left_out = f" No image has these classes: {', '.join(absent[:MAX_ABSENT])}{more}."
    return Section(
        title="Classes",
        note="In percent, lowest average precision first; click a heading to sort by it. "
        "Precision, recall and F1 are at the threshold of the class." + left_out * bool(absent),
        parts=[
            Part(kind="figures", values={"figures": [drawn]}),
            table(columns, known, sortable=True),
        ],
    )


def report(evaluation: Mapping[str, Any]) -> ReportSections:
    """Return the report sections of an evaluation; none if it is empty."""
    if "map" in evaluation:
        makers_of_labels = (labels, mistakes)
        return ReportSections.of(
            evaluation, "map", label_scores, label_reliability, *makers_of_labels
        )
    makers = (confusion, per_class, mistakes)
    return ReportSections.of(evaluation, "top1", scores, reliability, *makers)
