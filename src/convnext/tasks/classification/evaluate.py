"""`evaluate` for classification: metrics of a trained network on a labeled data set."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from convnext.data.contents import held_names
from convnext.data.drawing import data_uri
from convnext.data.formats.tables import TableColumns
from convnext.data.images import PICTURE, BadImage
from convnext.data.samples import ImageListing, LabelKind, Samples
from convnext.deploy.fast import Fast
from convnext.models.given import given_in, provided
from convnext.results import Scores
from convnext.tasks.classification.data import (
    Reading,
    annotation,
    check_layout,
    find,
    hold_out,
    open_dataset,
)
from convnext.tasks.classification.dataset import EvalDataset
from convnext.tasks.classification.metric import (
    Evaluation,
    Metric,
    MultiLabelEvaluation,
    MultiLabelMetric,
)
from convnext.tasks.classification.model import imagenet_synsets
from convnext.tasks.classification.predict import BATCH_SIZE, infer, views_of
from convnext.tasks.classification.recipe import ClassificationLoader
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
from convnext.tasks.trained import Opened, build, opened
from convnext.weights.checkpoint import (
    Card,
    check_no_groups,
    complete_steps,
    data_of,
    is_own_data,
    setting_of,
    step_of,
    val_share_of,
)
from convnext.weights.files import read_file

THUMBNAIL_PIXELS = 112


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Scores of other weights of the same run: those of its last step, or their average."""

    weights: str
    """"model" or "ema"."""
    step: int
    top1: float
    top5: float
    loss: float
    balanced_accuracy: float | None = None
    macro_f1: float | None = None


@dataclass(frozen=True, kw_only=True)
class MultiLabelVariant:
    """Scores of other weights of the same run, with the thresholds of the best ones."""

    weights: str
    """"model" or "ema"."""
    step: int
    map: float
    micro_f1: float
    macro_f1: float
    sample_f1: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluation(EvaluationResult):
    """An evaluation with its source and data, and pictures of the mistakes."""

    pictured = ("mistakes", "thumbnail")

    evaluation: Evaluation
    last: tuple[Variant, ...] = ()
    """For a run with a moving average: its last step, with and without the average."""

    def own_values(self) -> dict[str, Any]:
        """Return the scores of the weights of the last step."""
        return {"last": [asdict(variant) for variant in self.last]}

    def scores(self) -> Scores:
        """Return the scores in percent, the loss, and the scores per class in [0, 1]."""
        e = self.evaluation
        return Scores(
            scores=e.scores(),
            per_class={
                c.name: {"precision": c.precision, "recall": c.recall, "f1": c.f1}
                for c in e.per_class
            },
            conditions=self.conditions,
            evaluation=self,
        )

    def print_scores(self, console: Console) -> None:
        """Print the scores, and a table of the classes."""
        e = self.evaluation
        rows = [
            (
                c.f1,
                (
                    c.name,
                    f"{c.support}",
                    *(f"{100 * value:.1f}" for value in (c.precision, c.recall, c.f1)),
                ),
            )
            for c in e.per_class
        ]
        console.print(score_table(("images", "precision", "recall", "F1"), rows, "F1"))
        console.print(
            f"[bold]top-1 {e.top1:.2f} %[/]{self._more(e)}  on {escape(self.data)}: "
            f"{self.conditions}"
        )
        console.print(
            f"balanced accuracy {e.balanced_accuracy:.2f} %, macro F1 {e.macro_f1:.2f} %: every "
            "class counts equally"
        )
        said = [(v, f"top-1 {v.top1:.2f} %{self._more(v)}") for v in self.last]
        _print_variants(self, said, console)

    def _more(self, scores: Evaluation | Variant) -> str:
        """Return the scores after top-1; the top-5 of up to five classes is always 100 %."""
        top5 = f"  top-5 {scores.top5:.2f} %" if len(self.evaluation.classes) > 5 else ""
        return f"{top5}  loss {scores.loss:.4f}"


@dataclass(frozen=True, kw_only=True)
class MultiLabelResult(EvaluationResult):
    """An evaluation on images with several labels, and pictures of the mistakes."""

    pictured = ("mistakes", "thumbnail")

    evaluation: MultiLabelEvaluation
    last: tuple[MultiLabelVariant, ...] = ()
    """For a run with a moving average: its last step, with and without the average."""

    def own_values(self) -> dict[str, Any]:
        """Return the scores of the weights of the last step."""
        return {"last": [asdict(variant) for variant in self.last]}

    def scores(self) -> Scores:
        """Return mAP and F1 in percent, the loss, and the scores per class in [0, 1]."""
        names = ("ap", "precision", "recall", "f1", "threshold")
        return Scores(
            scores=self.evaluation.scores(),
            per_class={
                c.name: {n: value for n in names if (value := getattr(c, n)) is not None}
                for c in self.evaluation.per_class
            },
            conditions=self.conditions,
            evaluation=self,
        )

    def print_scores(self, console: Console) -> None:
        """Print the scores, and a table of the classes."""
        e = self.evaluation
        rows = [
            (
                -1.0 if c.ap is None else c.ap,
                (
                    c.name,
                    f"{c.support}",
                    "-" if c.ap is None else f"{100 * c.ap:.1f}",
                    *(f"{100 * value:.1f}" for value in (c.precision, c.recall, c.f1)),
                    f"{c.threshold:.3f}",
                ),
            )
            for c in e.per_class
        ]
        columns = ("images", "AP", "precision", "recall", "F1", "threshold")
        console.print(score_table(columns, rows, "AP"))
        console.print(
            f"[bold]mAP {e.map:.2f} %[/]{_f1_said(e)}  on {escape(self.data)}: {self.conditions}"
        )
        _print_variants(self, [(v, f"mAP {v.map:.2f} %{_f1_said(v)}") for v in self.last], console)


def _f1_said(scores: MultiLabelEvaluation | MultiLabelVariant) -> str:
    kinds = ("micro", "macro", "sample")
    f1 = ", ".join(f"{kind} {getattr(scores, f'{kind}_f1'):.2f}" for kind in kinds)
    return f"  F1 {f1} %  loss {scores.loss:.4f}"


def _print_variants(
    result: EvaluationResult,
    variants: Sequence[tuple[Variant | MultiLabelVariant, str]],
    console: Console,
) -> None:
    """Print which weights were evaluated, and the scores of those of the last step."""
    if variants:
        weights = setting_of(result.card.metrics, "weights", str) or "model"
        step = setting_of(result.card.metrics, "step", int) or 0
        kind = escape(_NAMES.get(weights, weights))
        console.print(f"These are {kind} of step {step:,}, the best.")
    for variant, said in variants:
        console.print(f"{said}  for {_NAMES[variant.weights]} of the last step, {variant.step:,}")


def evaluate(
    source: str | Opened,
    settings: EvaluationSettings | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    only_best: bool = True,
    multi_scale: bool = False,
    flip: bool = False,
    loader: ClassificationLoader | None = None,
    **reading: Unpack[Reading],
) -> ClassificationEvaluation | MultiLabelResult:
    """Evaluate a run, a checkpoint or published weights on a labeled data set.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        settings: The settings of all tasks.
        batch_size: Images per batch. It may change the last bits of the logits.
        only_best: If False, also evaluate the weights of a run's last step and their moving
            average, if there is one, to show the effect of averaging.
        multi_scale: Average the logits at three scales.
        flip: Average with the logits of the mirrored image.
        loader: Settings for caching and fetching remote data.
        **reading: How to read the data; by default that of the run as in training.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {batch_size}")
    settings = settings or EvaluationSettings()
    own = opened(source, settings.device)
    source, card = own.source, own.card
    data = settings.data or data_of(source, card)
    held = held_names(source)
    found = open_split(data, settings.split, card, settings.console, loader, held, **reading)
    samples = relabel(found.images, found.classes, card.classes)
    annotate = partial(annotation, samples, card.classes)
    evaluator = Evaluator(own, found._replace(images=samples), settings, annotate)
    dataset = EvalDataset(samples, card.preprocessing)
    views = views_of(flip=flip, multi_scale=multi_scale)

    def measure(label: str, own: Opened) -> tuple[Evaluation | MultiLabelEvaluation, Fast]:
        metric = MultiLabelMetric(card.classes) if card.thresholds else Metric(card.classes)
        network = evaluator.fast(own)
        options = {"batch_size": batch_size, "views": views}
        for batch in evaluator.outputs(infer, network, dataset, label, **options):
            metric.update(*batch)
        if isinstance(metric, MultiLabelMetric):
            return metric.compute(card.thresholds), network
        return metric.compute(), network

    only_best = only_best or not own.is_best
    evaluation, network = measure("" if only_best else "the best weights", own)
    variants: list[dict[str, Any]] = []
    for weights, step, tensors in () if only_best else _last_weights(source):
        with provided(given_in(own.model)):
            model = build(card)
        model.load_state_dict(tensors)
        model = model.to(own.device).to(memory_format=torch.channels_last)
        last = replace(own, model=model, is_shared=False)
        e, _ = measure(f"{_NAMES[weights]} of the last step", last)
        variants.append({"weights": weights, "step": step, **e.scores()})
    common = evaluator.common(evaluation.num_images, network, num_views=views.count)
    common["pictures"] = tuple(_thumbnail(samples, m.index) for m in evaluation.mistakes)
    if isinstance(evaluation, MultiLabelEvaluation):
        multi = tuple(MultiLabelVariant(**values) for values in variants)
        return MultiLabelResult(**common, evaluation=evaluation, last=multi)
    single = tuple(Variant(**values) for values in variants)
    return ClassificationEvaluation(**common, evaluation=evaluation, last=single)


_NAMES = {"model": "the weights", "ema": "the moving average"}


def _last_weights(source: str) -> Iterator[tuple[str, int, dict[str, Tensor]]]:
    """Yield the weights of a run's last state, and their moving average if there is one."""
    states = complete_steps(Path(source) / "checkpoints")
    if not states:
        return
    rest, _ = read_file(states[-1] / "state.safetensors")
    average = {
        name.removeprefix("ema."): tensor for name, tensor in rest.items() if name[:4] == "ema."
    }
    if average:
        step = step_of(states[-1])
        yield "model", step, read_file(states[-1] / "model.safetensors")[0]
        yield "ema", step, average


def open_split(
    data: str,
    split: str,
    card: Card,
    console: Console | None,
    loader: ClassificationLoader | None = None,
    held: Collection[str] = (),
    **reading: Unpack[Reading],
) -> EvaluationSplit[Samples]:
    """Return the samples of a split; classes that the network does not know are left out.

    `held` are the names of the images that training held out, if the run recorded them; new images
    do not change which these are. What `reading` does not say is as in training for its own data.

    Raises:
        ValueError: If the data has no such split, or the network knows none of its classes.
    """
    if data == "digits":
        _check_kind("single", card, data)
        return _of_digits(split)
    is_own = is_own_data(data, card)
    given = {name: value for name, value in reading.items() if value != ""}
    fields = ("layout", "columns", "fold")
    own = {name: setting_of(card.recipe, f"loader.{name}", int, str) for name in fields}
    for name, value in own.items() if is_own else ():
        given.setdefault(name, "" if value is None else value)
    layout, columns, fold = (str(given.get(name, "")) for name in fields)
    named = TableColumns.parse(columns, fold)
    found = find(data, loader, layout=check_layout(layout), columns=named, console=console)
    _check_kind(found.kind, card, data)
    if is_own and found.val is None:
        found = _as_held(found, held, data) if held else found
        if found.val is None:
            if split != "all":
                check_no_groups(card, "the checkpoint")
            found, val = hold_out(found, val_share_of(card), [])
            found = replace(found, val=val)
    has_val, has_test = found.val is not None, found.test is not None
    split = choose_split(split, data, card, has_val=has_val, has_test=has_test)
    parts = {"train": found.train, "val": found.val, "test": found.test}
    positions = images_of_split(parts, split, data, lambda chosen: [i for p in chosen for i in p])
    known = _known_positions(found.classes, card.classes)
    unknown = [c for c, position in enumerate(known) if position is None]
    if not unknown:
        return EvaluationSplit(found.take(positions), data, split, found.classes)
    if found.kind != "single":
        return _known_targets(found, positions, known, data, split, card)
    labels = np.asarray(found.labels)[np.asarray(positions, np.int64)]
    is_known = ~np.isin(labels, unknown)
    if not is_known.any():
        class_positions(found.classes, card.classes)  # Says which classes the network knows.
    kept = [int(i) for i, keep in zip(positions, is_known.tolist(), strict=True) if keep]
    present = np.unique(labels[~is_known]).tolist()
    names = some_classes([found.classes[c] for c in present])
    text = (
        f"{len(positions) - len(kept):,} of {len(positions):,} images are left out, because the "
        f"network does not know their classes: {names}"
    )
    samples = found.take(kept)
    samples.labels = [known[label] or 0 for label in samples.labels]
    left_out = (text,) if present else ()
    return EvaluationSplit(samples, data, split, tuple(card.classes), left_out)


def _check_kind(kind: LabelKind, card: Card, data: str) -> None:
    """Check that the images have several labels if the network predicts several.

    Raises:
        ValueError: If only one of them does.
    """
    if bool(card.thresholds) == (kind == "multi"):
        return
    if card.thresholds:
        raise ValueError(
            f"the network predicts several labels for an image, but {data} has one for each: "
            "give a table with several, read as in training"
        )
    raise ValueError(
        f"the network predicts one label for each image, but {data} has several: train a network "
        "for several labels on such data"
    )


def _known_targets(
    found: ImageListing,
    positions: Sequence[int],
    known: Sequence[int | None],
    data: str,
    split: str,
    card: Card,
) -> EvaluationSplit[Samples]:
    """Return images with the targets of the classes that the network knows.

    Raises:
        ValueError: If it knows none, or they have probabilities of others.
    """
    names = [name for name, position in zip(found.classes, known, strict=True) if position is None]
    if len(names) == len(found.classes) or found.kind == "soft":
        class_positions(found.classes, card.classes)  # Says which classes the network knows.
    samples = found.take(positions)
    unknown = [c for c, position in enumerate(known) if position is None]
    assert samples.targets is not None
    count = int(samples.targets[:, unknown].sum())
    text = (
        f"{count:,} labels of {len(names):,} classes that the network does not know are left out: "
        f"{some_classes(names)}"
    )
    samples = with_columns(samples, known, len(card.classes))
    return EvaluationSplit(samples, data, split, tuple(card.classes), (text,) if count else ())


def with_columns(samples: Samples, positions: Sequence[int | None], num_classes: int) -> Samples:
    """Return samples with the targets of the network's classes: those of others are not numbers.

    Args:
        samples: The samples.
        positions: The position of each of their classes among those of the network.
        num_classes: The number of those.
    """
    assert samples.targets is not None
    fill = np.nan if samples.kind == "multi" else 0.0
    targets = np.full((len(samples), num_classes), fill, np.float32)
    for c, position in enumerate(positions):
        if position is not None:
            targets[:, position] = samples.targets[:, c]
    moved = copy.copy(samples)
    moved.targets = targets
    if samples.kind == "soft":
        moved.labels = [positions[label] or 0 for label in samples.labels]
    return moved


def _as_held(found: ImageListing, held: Collection[str], data: str) -> ImageListing:
    """Return a listing with the split of training; unchanged if none of its images is there."""
    samples = found.take(found.train)
    parts = held_split(samples, held, data)
    if parts is None:
        return found
    train, val = ([found.train[i] for i in part] for part in parts)
    return replace(found, train=train, val=val)


def _of_digits(split: str) -> EvaluationSplit[Samples]:
    opened = open_dataset("digits")
    if split in ("test", "all"):
        raise ValueError(f"the digits have no split {split!r}, but train and val")
    split = "train" if split == "train" else "val"
    return EvaluationSplit(getattr(opened, split), "digits", split, opened.classes)


def relabel(samples: Samples, classes: Sequence[str], wanted: Sequence[str]) -> Samples:
    """Return samples with the labels of the network.

    Raises:
        ValueError: If the network does not know one of the classes.
    """
    if tuple(classes) == tuple(wanted):
        return samples
    positions = class_positions(classes, wanted)
    if samples.targets is not None:
        return with_columns(samples, positions, len(wanted))
    relabeled = copy.copy(samples)
    relabeled.labels = [positions[label] for label in samples.labels]
    return relabeled


def class_positions(classes: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Return the index of each class among those of the network.

    WordNet ids (n01440764, ...) stand for the classes of ImageNet, unless the network's classes
    have such names.

    Raises:
        ValueError: If the network does not know one of the classes.
    """
    known = _known_positions(classes, wanted)
    missing = [name for name, position in zip(classes, known, strict=True) if position is None]
    if missing:
        raise ValueError(
            f"the network does not know {len(missing)} of the data's {len(classes)} classes, such "
            f"as {missing[0]!r}; it knows {', '.join(wanted[:5])}"
        )
    return [position for position in known if position is not None]


def _known_positions(classes: Sequence[str], wanted: Sequence[str]) -> list[int | None]:
    known = {name: position for position, name in enumerate(wanted)}
    if known.keys().isdisjoint(classes) and all(re.fullmatch(r"n\d{8}", c) for c in classes):
        known = imagenet_synsets(len(wanted))
    return [known.get(name) for name in classes]


def _thumbnail(samples: Samples, index: int) -> tuple[str, str]:
    source = samples.source(index)
    try:
        image = samples.open(index, PICTURE)
    except BadImage:  # It was readable before; this must not lose the evaluation.
        return source, ""
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    if max(image.size) < 48:
        factor = THUMBNAIL_PIXELS // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), 0)
    return source, data_uri(image, quality=80)
