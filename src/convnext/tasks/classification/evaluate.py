"""`evaluate` for classification: metrics of a trained network on a labeled data set."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from convnext.atomic import write_text
from convnext.data.contents import (
    Compared,
    compare_with_run,
    held_names,
    held_positions,
    split_to_evaluate,
)
from convnext.data.images import BadImage
from convnext.data.samples import BadImages, ImageListing, Samples
from convnext.progress import progress_bar
from convnext.results import Scores
from convnext.tasks.classification.data import annotation, find, hold_out, open_dataset
from convnext.tasks.classification.dataset import EvalDataset
from convnext.tasks.classification.metric import Evaluation, Metric
from convnext.tasks.classification.predict import BATCH_SIZE, infer
from convnext.tasks.classification.published import imagenet_synsets
from convnext.tasks.classification.recipe import ClassificationLoader
from convnext.tasks.trained import Opened, build, opened
from convnext.weights.checkpoint import (
    Card,
    complete_steps,
    data_of,
    is_own_data,
    setting_of,
    step_of,
    val_share_of,
)
from convnext.weights.files import read_file
from convnext.weights.open import pick_precision

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


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """An evaluation with its source and data, and pictures of the mistakes."""

    source: str
    data: str
    card: Card
    evaluation: Evaluation
    thumbnails: tuple[tuple[str, str], ...]
    """Path of the image of every mistake, and a small JPEG of it as a data URI."""
    bad_images: tuple[tuple[str, str], ...]
    """Images that could not be read, each with the reason."""
    left_out: tuple[str, ...] = ()
    """What was left out of the data, and why."""
    split: str = ""
    """The split of the data: "train", "val", "test" or "all"."""
    compared: Compared = field(default_factory=Compared)
    """Whether images were trained on, and what has changed since."""
    last: tuple[Variant, ...] = ()
    """For a run with a moving average: its last step, with and without the average."""

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Return nested plain values for JSON, with the pictures only on request."""
        result = self.evaluation.to_dict()
        for mistake, (source, thumbnail) in zip(result["mistakes"], self.thumbnails, strict=True):
            mistake |= {"source": source} | ({"thumbnail": thumbnail} if pictures else {})
        return {
            "source": self.source,
            "data": self.data,
            "split": self.split,
            "model": self.card.model,
            "weights": self.card.metrics.get("weights", "model"),
            "step": self.card.metrics.get("step"),
            **result,
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images],
            "left_out": list(self.left_out),
            **self.compared.to_dict(),
            "last": [asdict(variant) for variant in self.last],
        }

    def scores(self) -> Scores:
        """Return top-1 and top-5 in percent, the loss, and the scores per class in [0, 1]."""
        e = self.evaluation
        return Scores(
            scores={"top1": e.top1, "top5": e.top5, "loss": e.loss},
            per_class={
                c.name: {"precision": c.precision, "recall": c.recall, "f1": c.f1}
                for c in e.per_class
            },
            evaluation=self,
        )

    def write(self, folder: str | Path) -> Path:
        """Write `evaluation.json` into a folder and return its path."""
        path = Path(folder) / "evaluation.json"
        write_text(path, json.dumps(self.to_dict(pictures=True)) + "\n")
        return path

    def print(self, console: Console) -> None:
        """Print the scores, and a table of the classes."""
        e = self.evaluation
        table = Table(box=None, header_style="bold")
        table.add_column("class")
        for name in ("images", "precision", "recall", "F1"):
            table.add_column(name, justify="right")
        worst = sorted(e.per_class, key=lambda score: score.f1)
        shown = e.per_class if len(worst) <= 30 else worst[:30]
        for score in shown:
            table.add_row(
                escape(score.name),
                f"{score.support}",
                *(f"{100 * value:.1f}" for value in (score.precision, score.recall, score.f1)),
            )
        if len(e.per_class) > len(shown):
            console.print(f"the {len(shown)} classes with the lowest F1, of {len(e.per_class)}:")
        console.print(table)
        console.print(
            f"[bold]top-1 {e.top1:.2f} %[/]  top-5 {e.top5:.2f} %  loss {e.loss:.4f}  "
            f"on {e.num_images:,} images of {escape(self.data)}"
        )
        if self.last:
            weights = setting_of(self.card.metrics, "weights", str) or "model"
            step = setting_of(self.card.metrics, "step", int) or 0
            kind = escape(_NAMES.get(weights, weights))
            console.print(f"These are {kind} of step {step:,}, the best.")
        for variant in self.last:
            console.print(
                f"top-1 {variant.top1:.2f} %  top-5 {variant.top5:.2f} %  "
                f"loss {variant.loss:.4f}  for {_NAMES[variant.weights]} of the last step, "
                f"{variant.step:,}"
            )
        split = [f"split: {self.split}"] if self.split else []
        for line in (*split, *self.left_out, *self.compared.lines()):
            console.print(line, markup=False)
        for source, reason in self.bad_images:
            console.print(f"skipped: {source}: {reason}", markup=False)


def evaluate(
    source: str | Opened,
    *,
    data: str | None = None,
    split: str = "auto",
    batch_size: int = BATCH_SIZE,
    device: str = "auto",
    precision: str = "auto",
    max_bad_share: float = 0.01,
    only_best: bool = True,
    fast: bool = True,
    loader: ClassificationLoader | None = None,
    console: Console | None = None,
) -> EvaluationResult:
    """Evaluate a run, a checkpoint or published weights on a labeled data set.

    Args:
        source: A run folder, a file in any layout, a hub id, or an open network.
        data: The data set; by default the local one that the run was trained on.
        split: "auto", "train", "val", "test" or "all"; see `open_split`.
        batch_size: Images per batch. It may change the last bits of the logits.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: `fp32`, `bf16`, `fp16`, or `auto` for the precision of training.
        max_bad_share: Maximum fraction of images that may be unreadable.
        only_best: If False, also evaluate the weights of a run's last step and their moving
            average, if there is one, to show the effect of averaging.
        fast: Use the fastest backend if there are enough images to make up for the search; outputs
            then differ in their last bits.
        loader: Settings for caching and fetching remote data.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If source or data cannot be read, or their classes do not match.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {batch_size}")
    own = opened(source, device)
    source, card, where = own.source, own.card, own.device
    data = data or data_of(source, card)
    opened_split = open_split(data, split, card, console, loader, held_names(source))
    samples = relabel(opened_split.samples, opened_split.classes, card.classes)
    compared = compare_with_run(
        source,
        samples,
        partial(annotation, samples, card.classes),
        data=data,
        classes=opened_split.classes,
        own_split=opened_split.split if is_own_data(data, card) else "",
    )
    bad = BadImages(samples, max_share=max_bad_share)
    dataset = EvalDataset(samples, card.preprocessing)
    executed = pick_precision(precision, card, where)

    def measure(label: str, own: Opened) -> Evaluation:
        metric = Metric(card.classes)
        form = own.fast(precision=executed, num_images=len(samples), enabled=fast, console=console)
        with progress_bar(f"evaluating {label}", len(samples), console) as advance:
            for batch in infer(
                form,
                dataset,
                device=where,
                precision=executed,
                bad=bad,
                batch_size=batch_size,
                progress=form.watch(advance),
            ):
                metric.update(*batch)
        return metric.compute()

    only_best = only_best or not own.is_best
    evaluation = measure("" if only_best else "the best weights", own)
    variants = []
    for weights, step, tensors in () if only_best else _last_weights(source):
        network = build(card)
        network.load_state_dict(tensors)
        network = network.to(where).to(memory_format=torch.channels_last)
        last = replace(own, model=network, is_shared=False)
        e = measure(f"{_NAMES[weights]} of the last step", last)
        variants.append(Variant(weights=weights, step=step, top1=e.top1, top5=e.top5, loss=e.loss))
    return EvaluationResult(
        source=source,
        data=str(data),
        card=card,
        evaluation=evaluation,
        thumbnails=tuple(_thumbnail(samples, m.index) for m in evaluation.mistakes),
        bad_images=tuple((image.source, image.reason) for image in bad.found.values()),
        left_out=opened_split.left_out,
        split=opened_split.split,
        compared=compared,
        last=tuple(variants),
    )


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


class SplitSamples(NamedTuple):
    """The samples to evaluate on."""

    samples: Samples
    classes: tuple[str, ...]
    """The classes that the labels of the samples refer to."""
    left_out: tuple[str, ...] = ()
    """What was left out, and why."""
    split: str = ""
    """The split: "train", "val", "test" or "all"."""


def open_split(
    data: str,
    split: str,
    card: Card,
    console: Console | None,
    loader: ClassificationLoader | None = None,
    held: Collection[str] = (),
) -> SplitSamples:
    """Return the samples of a split; classes that the network does not know are left out.

    `auto` takes the images that training held out; of other data its test split, else its
    validation split, else all images. `held` are the names of the images that training held out,
    if the run recorded them; new images do not change which these are.

    Raises:
        ValueError: If the data has no such split, or the network knows none of its classes.
    """
    if data == "digits":
        return _of_digits(split)
    is_own = is_own_data(data, card)
    layout = setting_of(card.recipe, "loader.layout", str) if is_own else None
    found = find(data, loader, layout=layout or "", console=console)
    if is_own and found.val is None:
        found = _as_held(found, held, data) if held else found
        if found.val is None:
            found, val = hold_out(found, val_share_of(card), [])
            found = replace(found, val=val)
    split = split_to_evaluate(
        split, is_own=is_own, has_val=found.val is not None, has_test=found.test is not None
    )
    positions = _positions(found, split, data)
    known = _known_positions(found.classes, card.classes)
    unknown = [c for c, position in enumerate(known) if position is None]
    if not unknown:
        return SplitSamples(found.take(positions), found.classes, split=split)
    labels = np.asarray(found.labels)[np.asarray(positions, np.int64)]
    is_known = ~np.isin(labels, unknown)
    if not is_known.any():
        class_positions(found.classes, card.classes)  # Says which classes the network knows.
    kept = [int(i) for i, keep in zip(positions, is_known.tolist(), strict=True) if keep]
    present = np.unique(labels[~is_known]).tolist()
    names = ", ".join(found.classes[c] for c in present[:5]) + (" ..." if len(present) > 5 else "")
    left_out = (
        f"{len(positions) - len(kept):,} of {len(positions):,} images are left out, because the "
        f"network does not know their classes: {names}"
    )
    samples = found.take(kept)
    samples.labels = [known[label] or 0 for label in samples.labels]
    return SplitSamples(samples, tuple(card.classes), (left_out,) if present else (), split)


def _as_held(found: ImageListing, held: Collection[str], data: str) -> ImageListing:
    """Return a listing with the split of training; unchanged if none of its images is there."""
    samples = found.take(found.train)
    parts = held_positions(held, map(samples.source, range(len(samples))), data)
    if parts is None:
        return found
    train, val = ([found.train[i] for i in part] for part in parts)
    return replace(found, train=train, val=val)


def _positions(found: ImageListing, split: str, data: str) -> Sequence[int]:
    """Return the positions of the images of a split.

    Raises:
        ValueError: If there is no such split.
    """
    parts: dict[str, Sequence[int] | None]
    parts = {"train": found.train, "val": found.val, "test": found.test}
    if split == "all":
        return [i for part in parts.values() if part is not None for i in part]
    part = parts[split]
    if part is None:
        has = ", ".join(name for name, part in parts.items() if part is not None)
        raise ValueError(f"{data} has no {split} split, but {has}; give another --split")
    return part


def _of_digits(split: str) -> SplitSamples:
    opened = open_dataset("digits")
    if split in ("test", "all"):
        raise ValueError(f"the digits have no split {split!r}, but train and val")
    split = "train" if split == "train" else "val"
    return SplitSamples(getattr(opened, split), opened.classes, split=split)


def relabel(samples: Samples, classes: Sequence[str], wanted: Sequence[str]) -> Samples:
    """Return samples with the labels of the network.

    Raises:
        ValueError: If the network does not know one of the classes.
    """
    if tuple(classes) == tuple(wanted):
        return samples
    positions = class_positions(classes, wanted)
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
        image = samples.open(index, "RGB")
    except BadImage:  # It was readable before; this must not lose the evaluation.
        return source, ""
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    if max(image.size) < 48:
        factor = THUMBNAIL_PIXELS // max(image.size)
        image = image.resize((image.width * factor, image.height * factor), 0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return source, f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
