"""`evaluate` for detection: average precision of boxes and masks, as COCO defines it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from convnext.atomic import write_text
from convnext.data.contents import held_names
from convnext.data.drawing import data_uri
from convnext.data.formats.records import Objects, ReadOptions
from convnext.data.objects import (
    DetectionData,
    DetectionImages,
    annotation,
    ids_of,
    join,
    open_dataset,
)
from convnext.data.tensors import image_of
from convnext.results import Scores
from convnext.tasks.detection.dataset import EvalDataset
from convnext.tasks.detection.inference import Detections, infer
from convnext.tasks.detection.metric import SCORE, Evaluation, Metric
from convnext.tasks.detection.predict import change_detector
from convnext.tasks.detection.render import compare
from convnext.tasks.evaluation import (
    EvaluationResult,
    EvaluationSettings,
    EvaluationSplit,
    Evaluator,
    choose_split,
    held_split,
    images_of_split,
    score_table,
    some_classes,
)
from convnext.tasks.trained import Opened, opened
from convnext.weights.checkpoint import (
    Card,
    check_no_groups,
    data_of,
    is_own_data,
    setting_of,
    val_share_of,
)

COLUMNS = (
    ("AP", "ap"),
    ("AP50", "ap50"),
    ("AP75", "ap75"),
    ("small", "ap_small"),
    ("medium", "ap_medium"),
    ("large", "ap_large"),
    ("AR 1", "ar_1"),
    ("AR 10", "ar_10"),
    ("AR all", "ar"),
)
"""Labels of COCO's metrics, and their fields of `Scores`."""


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(EvaluationResult):
    """An evaluation with its source and data, and pictures of the worst images."""

    evaluation: Evaluation
    results: tuple[tuple[str, list[dict[str, Any]]], ...]
    """COCO results of boxes and of masks, with the ids of the data's JSON file."""

    def own_values(self) -> dict[str, Any]:
        """Return the scores by name."""
        return self.evaluation.scores

    def scores(self) -> Scores:
        """Return COCO's metrics in percent by name (`box_ap`, `mask_ar_10`) and the AP per class.

        Metrics without any object are left out; the AP of a class without any object is NaN.
        """
        e = self.evaluation
        kinds = {"box": e.box} | ({} if e.mask is None else {"mask": e.mask})
        named = {
            f"{kind}_{field}": getattr(scores, field)
            for kind, scores in kinds.items()
            for _, field in COLUMNS
        }
        aps = {kind: scores.per_class for kind, scores in kinds.items()}
        return Scores(
            scores={name: value for name, value in named.items() if value is not None},
            per_class={
                name: {
                    f"{kind}_ap": math.nan if (ap := values[k]) is None else ap
                    for kind, values in aps.items()
                }
                for k, name in enumerate(e.classes)
            },
            conditions=self.conditions,
            evaluation=self,
        )

    def write(self, folder: str | Path) -> Path:
        """Write `evaluation.json` and COCO results into a folder; return the path of the former.

        Boxes and masks have separate files because pycocotools computes the area of a mask from
        the box in the same row.
        """
        path = Path(folder) / "evaluation.json"
        path.unlink(missing_ok=True)  # It must not be found with the results of another evaluation.
        for kind, rows in self.results:
            write_text(path.with_name(f"results_{kind}.json"), json.dumps(rows) + "\n")
        return super().write(folder)

    def print_scores(self, console: Console) -> None:
        """Print COCO's metrics and the AP of the classes."""
        e = self.evaluation
        if len(e.classes) > 1:
            console.print(ap_table(e))
        table = Table(box=None, header_style="bold")
        table.add_column("")
        for name, _ in COLUMNS:
            table.add_column(name, justify="right")
        for name, scores in (("boxes", e.box), ("masks", e.mask)):
            if scores is not None:
                table.add_row(name, *(shown(getattr(scores, field)) for _, field in COLUMNS))
        console.print(table)
        masks = "" if e.mask is None else f", mask AP {shown(e.mask.ap)} %"
        console.print(
            f"[bold]box AP {shown(e.box.ap)} %{masks}[/]  on {escape(self.data)}: "
            f"{self.conditions}; {e.num_objects:,} objects, up to {e.max_detections:,} detections "
            "per image"
        )


def ap_table(e: Evaluation) -> Table:
    """Return a table of the AP of every class, or of those with the lowest AP."""
    rows = [
        (ap, (name, shown(ap), *([] if e.mask is None else [shown(e.mask.per_class[k])])))
        for k, (name, ap) in enumerate(zip(e.classes, e.box.per_class, strict=True))
        if ap is not None
    ]
    columns = ["box AP"] if e.mask is None else ["box AP", "mask AP"]
    return score_table(columns, rows, "AP")


def shown(score: float | None) -> str:
    """Format a score in percent; "-" if there is none."""
    return "-" if score is None else f"{score:.1f}"


def evaluate(
    source: str | Opened,
    settings: EvaluationSettings | None = None,
    *,
    score: float | None = None,
    nms: float | None = None,
    max_detections: int | None = None,
    **reading: Any,
) -> DetectionEvaluation:
    """Evaluate a run, a checkpoint or published weights on images with objects.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        settings: The settings of all tasks.
        score: Minimum score of a detection; by default that of training.
        nms: IoU threshold of NMS; by default that of training.
        max_detections: Maximum number of detections per image; by default that of training.
        **reading: How to read the data, as the fields of `ReadingOptions` say.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    settings = settings or EvaluationSettings()
    own = opened(source, settings.device)
    card = own.card
    detector = change_detector(
        own.model, score_threshold=score, nms_threshold=nms, max_detections=max_detections
    )
    found = open_split(settings.data, settings.split, card, own.source, settings.console, **reading)
    images = found.images
    evaluator = Evaluator(own, found, settings, partial(annotation, images, card.classes))
    dataset = EvalDataset(images, card.preprocessing)
    metric = Metric(images, card.classes, detector.config.max_detections)
    network = evaluator.fast(replace(own, model=detector))
    for index, detections in evaluator.outputs(infer, network, dataset):
        metric.update(index, detections)
    evaluation = metric.compute()
    results = [("box", with_ids(metric.results("bbox"), images))]
    if evaluation.mask is not None:
        results.append(("mask", with_ids(metric.results("segm"), images)))
    worst = [score.index for score in evaluation.worst]
    pictures = draw_images(dataset, worst, metric.found, card.classes)
    return DetectionEvaluation(
        **evaluator.common(evaluation.num_images, network),
        evaluation=evaluation,
        pictures=tuple((images.source(i), p) for i, p in zip(worst, pictures, strict=True)),
        results=tuple(results),
    )


def with_ids(rows: list[dict[str, Any]], images: DetectionImages) -> list[dict[str, Any]]:
    """Replace indices and labels in results with the ids of the images' JSON file.

    Results of classes that the file does not have are left out.
    """
    ids = images.category_ids
    return [
        row | {"image_id": images.records[row["image_id"]].id, "category_id": ids[label]}
        for row in rows
        if ids[label := row["category_id"]] != -1
    ]


def draw_images(
    dataset: EvalDataset,
    indices: Sequence[int],
    found: dict[int, Detections],
    classes: Sequence[str],
) -> Iterator[str]:
    """Yield truth and prediction of each image as a data URI, "" if it cannot be read."""
    for index in indices:
        item = dataset[index]
        if item.bad:
            yield ""
            continue
        image = image_of(item.pixels)
        confident = above_score(found[index], SCORE)
        yield data_uri(compare(image, dataset.images.objects(index), confident, classes))


def above_score(found: Detections, score: float) -> Detections:
    """Return the detections whose score is at least `score`."""
    keep = found.scores >= score
    return replace(
        found,
        boxes=found.boxes[keep],
        scores=found.scores[keep],
        labels=found.labels[keep],
        masks=tuple(mask for mask, kept in zip(found.masks, keep, strict=True) if kept),
    )


def open_split(
    data: str | None,
    split: str,
    card: Card,
    source: str,
    console: Console | None = None,
    **reading: Any,
) -> EvaluationSplit[DetectionImages]:
    """Return the images of a split, with the network's labels.

    What `reading` does not say is as in training for the data of the run.

    Raises:
        ValueError: If there is no data set, or the network does not know any of its classes.
    """
    path = data or data_of(source, card)
    is_own = is_own_data(path, card)
    options = _options_of(card, source) if is_own else ReadOptions()
    options = replace(options, **{name: value for name, value in reading.items() if value})
    found = open_dataset(path, val_share=val_share_of(card), strict=is_own, options=options)
    fatal = next((fault for fault in found.faults if fault.fatal), None)
    if fatal is not None:
        raise ValueError(str(fatal))
    if console is not None and not is_own:
        for note in found.notes:
            console.print(f"note: {note}", markup=False)
    if is_own and not found.has_val:
        found = _as_held(found, source, card, split)
    split = choose_split(split, path, card, has_val=found.has_val, has_test=found.test is not None)
    images = images_of_split(found.parts, split, path, join)
    relabeled = relabel(images, found.classes, card.classes)
    known = sum(len(record.objects) for record in relabeled.records)
    missing = sum(len(record.objects) for record in images.records) - known
    left_out: tuple[str, ...] = ()
    own_ids = [[r.id for r in part.records] for part in found.parts.values()]
    if split == "all" and [r.id for r in images.records] != [key for ids in own_ids for key in ids]:
        left_out = (
            "the splits have image ids in common: in the results, those of each split follow the "
            "highest one before it",
        )
    if missing:
        unknown = [name for name in found.classes if name not in card.classes]
        left_out += (
            f"{missing:,} objects of {len(unknown):,} classes are left out, because the network "
            f"does not know them: {some_classes(unknown)}",
        )
    return EvaluationSplit(relabeled, path, split, tuple(card.classes), left_out)


def _options_of(card: Card, source: str) -> ReadOptions:
    """Return how the data of training was read; only a run folder may lead out of the data.

    Raises:
        ValueError: If a checkpoint would lead out of the data folder.
    """
    values = setting_of(card.recipe, "detect", dict) or {}
    names = {f.name for f in fields(ReadOptions)} & values.keys()
    options = ReadOptions(**{name: values[name] for name in names})
    parts = PureWindowsPath(options.annotations)  # It knows the separators of every system.
    leads_out = bool(parts.anchor) or ".." in parts.parts
    if (options.images or options.allow_outside or leads_out) and not Path(source).is_dir():
        raise ValueError(
            f"{source} was trained with files outside its data folder; a checkpoint must not lead "
            "there: give the run folder instead of the file"
        )
    return options


def _as_held(data: DetectionData, source: str, card: Card, split: str) -> DetectionData:
    """Return data with the images that a run held out, where it recorded them.

    Raises:
        ValueError: If it held out groups, but did not record them.
    """
    images = join([data.train, data.val])
    parts = held_split(images, held_names(source), data.path)
    if parts is None:
        if split != "all":
            check_no_groups(card, source)
        return data
    train, val = (replace(images, records=[images.records[i] for i in part]) for part in parts)
    return replace(data, train=train, val=val)


def relabel(
    images: DetectionImages, classes: Sequence[str], wanted: Sequence[str]
) -> DetectionImages:
    """Return images with the network's labels, matched by class names.

    Objects of classes that the network does not know are left out.

    Raises:
        ValueError: If the network knows none of the classes of the objects.
    """
    numbers = tuple(map(str, range(len(wanted))))
    # The classes of a network without a list of names are called by their numbers.
    if tuple(classes) == tuple(wanted) or (len(classes) == len(wanted) and wanted == numbers):
        return images
    label_of = {name: label for label, name in enumerate(wanted)}
    used = {int(label) for record in images.records for label in record.objects.labels}
    unknown = [classes[label] for label in sorted(used) if classes[label] not in label_of]
    if used and len(unknown) == len(used):
        raise ValueError(
            f"the data has objects of {unknown[0]!r}, which the network does not know; it knows "
            f"{some_classes(wanted, 8)}"
        )
    labels = np.array([label_of.get(name, -1) for name in classes], np.int64)
    records = [
        replace(record, objects=_known(record.objects, labels[record.objects.labels]), extras=())
        for record in images.records
    ]
    ids = ids_of(wanted, classes, images.category_ids)
    return replace(images, records=records, category_ids=ids)


def _known(objects: Objects, labels: NDArray[np.int64]) -> Objects:
    """Return the objects whose new label is not -1, with that label."""
    return replace(objects, labels=labels)[labels >= 0]
