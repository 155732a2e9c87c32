"""Report sections of detection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from convnext.tasks.detection.evaluate import COLUMNS, shown
from convnext.tasks.figures import (
    Curve,
    Drawing,
    Part,
    ReportSections,
    Section,
    draw_bars,
    draw_confusion,
    draw_precision,
    measured_on,
    table,
    worst_section,
)

# With more classes, only the mean curve is drawn.
MAX_CURVES = 8
RECALL = [float(recall) for recall in range(101)]
BACKGROUND = "background"
KINDS = (("box", "boxes"), ("mask", "masks"))


def scores(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the scores at the top of the page, each with its label."""
    return [
        (f"{kind} {name}", f"{shown(evaluation[kind][field])}\u00a0%")
        for kind, _ in KINDS
        for name, field in (("AP", "ap"), ("AP50", "ap50"))
        if evaluation.get(kind)
    ]


def reliability(evaluation: Mapping[str, Any]) -> list[str]:
    """Return sentences about how far to trust the primary score."""
    objects = f"{evaluation['num_objects']:,} objects"
    return [f"Measured on {measured_on(evaluation)}: {objects}, by COCO's definitions."]


def figures_of_coco(evaluation: Mapping[str, Any]) -> Section | None:
    """COCO's twelve metrics of boxes and masks."""
    rows = [
        {"kind": name, **{f: shown(evaluation[kind][f]) for _, f in COLUMNS}}
        for kind, name in KINDS
        if evaluation.get(kind)
    ]
    if not rows:
        return None
    columns = [("", "kind", ""), *((name, field, "") for name, field in COLUMNS)]
    limit = evaluation["max_detections"]
    return Section(
        title="Average precision",
        note="In percent. AP is the mean over IoU thresholds from 0.5 to 0.95; small means less "
        f"than 32 x 32 pixels, large at least 96 x 96. AR is the mean recall with 1, 10 and all "
        f"(at most {limit:,}) detections per image.",
        parts=[table(columns, rows)],
    )


def precision(evaluation: Mapping[str, Any]) -> Section | None:
    """Precision-recall curves at IoU 0.5."""
    drawn = []
    names = evaluation.get("classes", [])
    for kind, name in KINDS:
        found = (evaluation.get(kind) or {}).get("precision", [])
        known = {str(n): [100 * v for v in c] for n, c in zip(names, found, strict=False) if c}
        if not known:
            continue
        curves = [
            Curve(label=n, x=RECALL, y=curve, color=f"C{i}")
            for i, (n, curve) in enumerate(known.items())
            if len(known) <= MAX_CURVES
        ]
        mean = Curve(
            label=f"mean of {len(known)}", x=RECALL, y=np.mean(list(known.values()), 0).tolist()
        )
        if len(known) > 1:
            curves = [replace(curve, dashed=True) for curve in curves]
            curves.append(mean)
        else:
            curves = [mean]
        half = float(mean.y[50])
        alt = f"Precision of {name} by recall; {half:.0f} percent at a recall of 50 percent."
        title = f"Precision and recall of {name} at IoU 0.5"
        drawn.append(
            Drawing(name=f"precision_{kind}", title=title, alt=alt, figure=draw_precision(curves))
        )
    if not drawn:
        return None
    return Section(
        title="Precision and recall",
        note="Each point is a score threshold; a perfect detector reaches the upper right corner.",
        parts=[Part(kind="figures", values={"figures": drawn})],
    )


def per_class(evaluation: Mapping[str, Any]) -> Section | None:
    """Bar chart of the AP per class, if there are several."""
    names = evaluation.get("classes", [])
    drawn = []
    for kind, name in KINDS:
        values = (evaluation.get(kind) or {}).get("per_class", [])
        known = [(str(n), float(v)) for n, v in zip(names, values, strict=False) if v is not None]
        if len(known) < 2:
            continue
        known.sort(key=lambda row: -row[1])
        alt = (
            f"AP of {name} of {len(known)} classes. The best is {known[0][0]}, "
            f"{known[0][1]:.1f} percent; the worst is {known[-1][0]}, {known[-1][1]:.1f} percent."
        )
        drawing = draw_bars([n for n, _ in known], [v for _, v in known], label="AP, %")
        drawn.append(
            Drawing(name=f"ap_{kind}", title=f"AP of {name} by class", alt=alt, figure=drawing)
        )
    if not drawn:
        return None
    return Section(
        title="Classes", note="", parts=[Part(kind="figures", values={"figures": drawn})]
    )


def confusion(evaluation: Mapping[str, Any]) -> Section | None:
    """Confusion matrix of classes, with missed objects and false detections."""
    if not evaluation.get("confusion"):
        return None
    matrix = np.asarray(evaluation["confusion"])
    names = [*evaluation["classes"], BACKGROUND]
    found, objects = int(np.trace(matrix)), int(matrix[:-1].sum())
    alt = (
        f"Confusion matrix of {len(names) - 1} classes and background. {found:,} of {objects:,} "
        f"objects were detected with the right class, {int(matrix[:, -1].sum()):,} were missed."
    )
    drawing = draw_confusion(matrix, names)
    drawn = Drawing(name="confusion", title="Objects and detections", alt=alt, figure=drawing)
    return Section(
        title="Confusion matrix",
        note="Boxes with a score of at least 0.3 that match an object at IoU 0.5. Each row is a "
        f"true class, each column a predicted class; the column {BACKGROUND!r} counts missed "
        f"objects, the row {BACKGROUND!r} false detections.",
        parts=[Part(kind="matrix", values={"figure": drawn})],
    )


def worst_images(evaluation: Mapping[str, Any]) -> Section | None:
    """The images with the lowest F1 scores: truth and prediction side by side."""
    return worst_section(
        evaluation,
        lambda row: (
            f"Truth and prediction; {row['missed']} missed, {row['false']} false",
            f"F1 {100 * row['f1']:.0f}\u00a0%: {row['missed']:,} missed, {row['false']:,} false",
        ),
        note="Truth on the left, detections with a score of at least 0.3 on the right. Check these "
        "images first for missing labels.",
    )


def report(evaluation: Mapping[str, Any]) -> ReportSections:
    """Return the report sections of an evaluation; none if it is empty."""
    makers = (figures_of_coco, precision, per_class, confusion, worst_images)
    return ReportSections.of(evaluation, "box_ap", scores, reliability, *makers)
