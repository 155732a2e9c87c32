"""Measure a network under corruptions or on a benchmark, one condition after another.

What has been measured is kept in robustness.json after every condition: the same command goes on
where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from convnext.atomic import write_text
from convnext.checkpoint import Card
from convnext.preprocess import Preprocessing
from convnext.tasks.classification.dataset import BadImages, EvalDataset
from convnext.tasks.classification.inference import BATCH_SIZE, infer
from convnext.tasks.classification.robustness.benchmarks import (
    Benchmark,
    CorruptionScore,
    mean_ce,
    mean_error,
    score_corruptions,
)
from convnext.tasks.classification.robustness.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
)
from convnext.tasks.classification.samples import Samples

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What was measured. Accuracies and errors are top-1 in percent."""

    kind: str
    """"corrupt" for images corrupted here, else the kind of a benchmark."""
    title: str
    source: str
    model: str
    clean: float | None
    """Accuracy on the same images without corruption; None for a benchmark."""
    num_images: int
    num_classes: int
    """Classes that the network chose among."""
    scores: Sequence[CorruptionScore]
    bad: Sequence[str]

    @property
    def mce(self) -> float | None:
        """Mean corruption error of ImageNet-C, relative to AlexNet; None for anything else."""
        return mean_ce(self.scores)

    @property
    def mean_error(self) -> float:
        """Mean top-1 error over corruptions and severities."""
        return mean_error(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "kind": self.kind,
            "title": self.title,
            "source": self.source,
            "model": self.model,
            "clean_top1": self.clean,
            "num_images": self.num_images,
            "num_classes": self.num_classes,
            "mean_error": self.mean_error,
            "mce": self.mce,
            "corruptions": [
                {
                    "corruption": s.corruption,
                    "errors": {str(k): v for k, v in s.errors.items()},
                    "mean_error": s.mean_error,
                    "ce": s.ce,
                }
                for s in self.scores
            ],
            "bad_images": list(self.bad),
        }


class CorruptedDataset(EvalDataset):
    """Images as the network will see them, corrupted after they were cut to size.

    An image and a condition always give the same pixels.
    """

    def __init__(
        self,
        samples: Samples,
        preprocessing: Preprocessing,
        indices: Sequence[int],
        corruption: str = "",
        severity: int = 0,
    ) -> None:
        super().__init__(samples, preprocessing)
        self.indices = list(indices)
        self.corruption, self.severity = corruption, severity

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Return the images of a batch."""
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> Any:
        """Return the image at a position of `indices`."""
        return super().__getitem__(self.indices[index])

    def _read(self, index: int) -> Tensor:
        pixels = super()._read(index)
        if not self.corruption:
            return pixels
        word = f"{SEED} {index} {self.corruption} {self.severity}"
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        image = pixels.permute(1, 2, 0).numpy()
        made = corrupt(image, self.corruption, self.severity, np.random.default_rng(seed))
        return torch.from_numpy(made).permute(2, 0, 1).contiguous()


class Kept:
    """Accuracies that were measured already, in a file that is whole at any moment.

    Args:
        path: The file; None keeps nothing.
        key: What was measured with what; a file of anything else is begun anew.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path, self.key = path, dict(key)
        self.values: dict[str, float] = {}
        if path is not None and path.is_file():
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree.get("key") == json.loads(json.dumps(self.key)):
                self.values = dict(tree["top1"])

    def put(self, name: str, value: float) -> None:
        """Keep one accuracy."""
        self.values[name] = value
        if self.path is not None:
            tree = {"key": self.key, "top1": self.values}
            write_text(self.path, json.dumps(tree, indent=1) + "\n")


def measure_corruptions(
    model: nn.Module,
    card: Card,
    samples: Samples,
    *,
    device: torch.device,
    precision: str,
    source: str,
    data: str,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    max_images: int = 0,
    max_bad_share: float = 0.01,
    kept: Path | None = None,
    console: Console | None = None,
) -> Robustness:
    """Corrupt the images of a data set here, and measure top-1 under each condition.

    Args:
        model: The network.
        card: What travels with its weights.
        samples: Labelled images.
        device: Where the network runs.
        precision: In which precision.
        source: Where the network came from.
        data: Where the images came from.
        corruptions: Names of `CORRUPTIONS`.
        severities: 1 to 5.
        max_images: A fixed random part of so many images; 0 for all.
        max_bad_share: The largest share of images that may be unreadable.
        kept: Where what is measured is kept.
        console: Where progress goes.

    Raises:
        ValueError: If a corruption or severity is unknown, or too many images cannot be read.
    """
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ValueError(f"there is no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise ValueError(f"a severity is one of 1 to 5, not {severity}")
    indices = _some(len(samples), max_images)
    conditions = [("", 0), *((name, severity) for name in corruptions for severity in severities)]
    bad = BadImages(samples, max_share=max_bad_share)
    store = Kept(kept, _key(card, "corrupt", source, data, len(indices), precision))
    with _progress(console) as progress:
        bar = progress.add_task("", total=len(indices) * len(conditions))
        for name, severity in conditions:
            label = f"{name} {severity}" if name else "clean"
            progress.update(bar, description=label)
            if label in store.values:
                progress.advance(bar, len(indices))
                continue
            dataset = CorruptedDataset(samples, card.preprocessing, indices, name, severity)
            top1 = _top1(model, dataset, None, device, precision, bad, progress, bar)
            store.put(label, top1)
    errors = {(n, s): 100 - store.values[f"{n} {s}"] for n, s in conditions if n}
    return Robustness(
        kind="corrupt",
        title="corruptions made here",
        source=source,
        model=card.model,
        clean=store.values["clean"],
        num_images=len(indices),
        num_classes=len(card.classes),
        scores=score_corruptions(errors, published=False),
        bad=[str(image) for image in bad.found.values()],
    )


def measure_benchmark(
    model: nn.Module,
    card: Card,
    benchmark: Benchmark,
    open_samples: Any,
    *,
    device: torch.device,
    precision: str,
    source: str,
    max_images: int = 0,
    max_bad_share: float = 0.01,
    kept: Path | None = None,
    console: Console | None = None,
) -> Robustness:
    """Measure top-1 on every folder of a published benchmark.

    The network chooses among the classes that the benchmark has, as the authors of ImageNet-A and
    ImageNet-R define it. Images of ImageNet-C are cut to 224 pixels already and are only resized
    where the network takes another size.

    Args:
        model: The network.
        card: What travels with its weights.
        benchmark: What was found on disk.
        open_samples: A function path -> samples labelled by the network's classes.
        device: Where the network runs.
        precision: In which precision.
        source: Where the network came from.
        max_images: A fixed random part of each condition; 0 for all.
        max_bad_share: The largest share of images that may be unreadable.
        kept: Where what is measured is kept.
        console: Where progress goes.
    """
    preprocessing = card.preprocessing
    if benchmark.kind in ("c", "c-bar"):
        preprocessing = replace(preprocessing, crop_pct=1.0)
    key = _key(card, benchmark.title, source, "", max_images, precision)
    store, bad, num_images, num_classes = Kept(kept, key), [], 0, len(card.classes)
    with _progress(console) as progress:
        bar = progress.add_task("", total=None)
        for number, condition in enumerate(benchmark.conditions):
            label = f"{condition.corruption} {condition.severity}"
            progress.update(bar, description=f"{label} ({number + 1}/{len(benchmark.conditions)})")
            samples: Samples = open_samples(condition.path)
            indices = _some(len(samples), max_images)
            classes = sorted(set(samples.labels))
            num_images, num_classes = num_images + len(indices), len(classes)
            if label in store.values:
                continue
            found = BadImages(samples, max_share=max_bad_share)
            dataset = CorruptedDataset(samples, preprocessing, indices)
            progress.update(bar, total=len(indices), completed=0)
            among = None if len(classes) == len(card.classes) else classes
            store.put(label, _top1(model, dataset, among, device, precision, found, progress, bar))
            bad += [str(image) for image in found.found.values()]
    errors = {
        (c.corruption, c.severity): 100 - store.values[f"{c.corruption} {c.severity}"]
        for c in benchmark.conditions
    }
    return Robustness(
        kind=benchmark.kind,
        title=benchmark.title,
        source=source,
        model=card.model,
        clean=None,
        num_images=num_images,
        num_classes=num_classes,
        scores=score_corruptions(errors, published=benchmark.kind == "c"),
        bad=bad,
    )


def _top1(
    model: nn.Module,
    dataset: CorruptedDataset,
    among: Sequence[int] | None,
    device: torch.device,
    precision: str,
    bad: BadImages,
    progress: Progress,
    bar: Any,
) -> float:
    right = total = 0
    for logits, labels, _ in infer(
        model,
        dataset,
        device=device,
        precision=precision,
        bad=bad,
        batch_size=BATCH_SIZE,
        progress=lambda count: progress.advance(bar, count),
    ):
        right += int((choose(logits, among).cpu() == labels).sum())
        total += len(labels)
    if not total:
        raise ValueError("not one image could be read")
    return 100 * right / total


def choose(logits: Tensor, among: Sequence[int] | None) -> Tensor:
    """Return the class of the highest logit (N,), of all or of some of the classes."""
    if among is None:
        return logits.argmax(1)
    allowed = torch.tensor(among, device=logits.device)
    return allowed[logits[:, allowed].argmax(1)]


def _some(count: int, most: int) -> list[int]:
    """Return all positions, or a part of them that never changes, in order."""
    if not most or count <= most:
        return list(range(count))
    drawn = np.random.default_rng(SEED).permutation(count)[:most]
    return sorted(drawn.tolist())


def _key(
    card: Card, kind: str, source: str, data: str, num_images: int, precision: str
) -> dict[str, Any]:
    return {
        "kind": kind,
        "source": source,
        "data": data,
        "num_images": num_images,
        "precision": precision,
        "model": card.model,
        "step": card.metrics.get("step"),
        "preprocessing": repr(card.preprocessing),
    }


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=console is None)
