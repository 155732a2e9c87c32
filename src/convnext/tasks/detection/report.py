"""The sections of a report that only detection has."""

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
    bad_images,
    draw_bars,
    draw_confusion,
    draw_precision,
    table,
)

# Classes whose curves are drawn one by one; of more, only the mean is.
MAX_CURVES = 8
RECALL = [float(recall) for recall in range(101)]
NOTHING = "nothing"
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
    """Return sentences that say how far the primary score can be trusted."""
    found = f"{evaluation['num_objects']:,} objects on {evaluation['num_images']:,} images"
    return [f"Measured on {found} of the validation set, by COCO's definitions."]


def figures_of_coco(evaluation: Mapping[str, Any]) -> Section | None:
    """COCO's twelve figures, of boxes and masks."""
    rows = [
        {"kind": name, **{f: shown(evaluation[kind][f]) for _, f in COLUMNS}}
        for kind, name in KINDS
        if evaluation.get(kind)
    ]
    if not rows:
        return None
    columns = [("", "kind", ""), *((name, field, "") for name, field in COLUMNS)]
    most = evaluation["max_detections"]
    return Section(
        title="Average precision",
        note="In percent; AP is the mean over overlaps from 0.5 to 0.95, small is below 32 x 32 "
        f"pixels, large from 96 x 96 on. AR is the mean recall with 1, 10 and all (at most "
        f"{most:,}) detections of an image.",
        parts=[table(columns, rows)],
    )


def precision(evaluation: Mapping[str, Any]) -> Section | None:
    """Precision at every recall, at overlap 0.5."""
    drawn = []
    names = evaluation.get("classes", [])
    for kind, name in KINDS:
        found = (evaluation.get(kind) or {}).get("precision", [])
        known = {str(n): [100 * v for v in c] for n, c in zip(names, found, strict=False) if c}
        if not known:
            continue
        curves = [
            Curve(label=n, x=RECALL, y=curve, colour=f"C{i}")
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
        alt = f"Precision of {name} over recall; {half:.0f} percent at a recall of 50 percent."
        title = f"Precision and recall of {name} at overlap 0.5"
        drawn.append(
            Drawing(name=f"precision_{kind}", title=title, alt=alt, figure=draw_precision(curves))
        )
    if not drawn:
        return None
    return Section(
        title="Precision and recall",
        note="Each point is a score from which detections count; a detector that finds all and "
        "only what is there reaches the upper right corner.",
        parts=[Part(kind="figures", values={"figures": drawn})],
    )


def per_class(evaluation: Mapping[str, Any]) -> Section | None:
    """AP of every class as bars, where there are several."""
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
    """What is taken for what, missed, or seen where nothing is."""
    if not evaluation.get("confusion"):
        return None
    matrix = np.asarray(evaluation["confusion"])
    names = [*evaluation["classes"], NOTHING]
    found, objects = int(np.trace(matrix)), int(matrix[:-1].sum())
    alt = (
        f"Confusion matrix of {len(names) - 1} classes and nothing. Of {objects:,} objects "
        f"{found:,} were found as what they are, {int(matrix[:, -1].sum()):,} were missed."
    )
    drawing = draw_confusion(matrix, names)
    drawn = Drawing(
        name="confusion", title="Objects and what they were taken for", alt=alt, figure=drawing
    )
    return Section(
        title="What is taken for what",
        note="Boxes with a score of at least 0.3 that overlap an object by half. Each row is a "
        f"class, each column what it was taken for; the column {NOTHING!r} are missed objects, the "
        f"row {NOTHING!r} detections where no object is.",
        parts=[Part(kind="matrix", values={"figure": drawn})],
    )


def worst_images(evaluation: Mapping[str, Any]) -> Section | None:
    """The images of lowest F-score: truth and prediction side by side."""
    rows = [row for row in evaluation.get("worst", []) if "picture" in row]
    if not rows:
        return None
    strips = [
        {
            "image": row["picture"] if str(row["picture"]).startswith("data:image/") else "",
            "alt": f"Truth and prediction; {row['missed']} missed, {row['false']} false",
            "title": f"F1 {100 * row['f1']:.0f}\u00a0%: {row['missed']:,} missed, "
            f"{row['false']:,} false",
            "source": row.get("source", ""),
        }
        for row in rows
    ]
    return Section(
        title="Worst images",
        note="Truth on the left, what was found with a score of at least 0.3 on the right. Look "
        "for missing labels here first.",
        parts=[Part(kind="strips", values={"strips": strips})],
    )


def report(evaluation: Mapping[str, Any]) -> ReportSections:
    """Return what a report shows of an evaluation; of one that is empty, nothing."""
    measured = "box_ap" in evaluation
    makers = (figures_of_coco, precision, per_class, confusion, worst_images, bad_images)
    return ReportSections(
        scores=scores(evaluation) if measured else [],
        reliability=reliability(evaluation) if measured else [],
        sections=[section for make in makers if (section := make(evaluation)) is not None],
    )
