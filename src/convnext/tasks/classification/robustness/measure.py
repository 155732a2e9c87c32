"""The corrupted images of each condition, and the measurement of a network on them.

Every finished condition is written to robustness.json immediately, so that an interrupted
evaluation resumes there. Its key is a hash of everything that a score depends on.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from convnext.atomic import write_text
from convnext.data.images import Header, Mode
from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import BadImages, Samples
from convnext.tasks.classification.dataset import EvalDataset
from convnext.tasks.classification.predict import BATCH_SIZE, infer
from convnext.tasks.classification.robustness.benchmarks import Score
from convnext.tasks.classification.robustness.corruptions import corrupt

NAME = "robustness"
FILE_TYPES = ("json", "csv", "svg", "png")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One condition to measure."""

    corruption: str
    severity: int
    open: Callable[[], EvalDataset]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Settings for running the network."""

    device: torch.device
    precision: str
    batch_size: int = BATCH_SIZE
    workers: int = 0
    max_bad_share: float = 0.01


@dataclass(kw_only=True)
class Progressed:
    """The finished conditions, in memory and, if there is a folder, in robustness.json."""

    key: str
    header: Mapping[str, Any]
    folder: Path | None
    scores: dict[tuple[str, int], Score] = field(default_factory=dict)
    num_found: int = 0
    """Number of conditions that an earlier run finished."""
    moved: str = ""
    """New name of another evaluation that was in the folder; empty if there was none."""

    @classmethod
    def begin(
        cls, inputs: Mapping[str, Any], header: Mapping[str, Any], folder: Path | None
    ) -> Self:
        """Resume the evaluation in `folder` if it is the same one; otherwise move it aside."""
        text = json.dumps(inputs, sort_keys=True)
        state = cls(key=hashlib.sha256(text.encode()).hexdigest(), header=header, folder=folder)
        if folder is None:
            return state
        own, aside = folder / f"{NAME}.json", folder / f"{NAME}-{state.key[:8]}.json"
        lying = _read(own)
        if lying and lying["key"] != state.key:
            state.moved = f"{NAME}-{lying['key'][:8]}"
            for file_type in FILE_TYPES:
                file = folder / f"{NAME}.{file_type}"
                if file.is_file():
                    file.replace(folder / f"{state.moved}.{file_type}")
            lying = None
        kept = lying or _read(aside)
        if kept and kept["key"] == state.key:
            for row in kept["conditions"]:
                score = _to_score(row)
                state.scores[score.corruption, score.severity] = score
        state.num_found = len(state.scores)
        return state

    def add(self, score: Score) -> None:
        """Add a finished condition, and write the file."""
        self.scores[score.corruption, score.severity] = score
        self.write({"complete": False})

    def write(self, rest: Mapping[str, Any]) -> None:
        """Write robustness.json, if there is a folder."""
        if self.folder is not None:
            text = json.dumps(self.to_dict() | dict(rest), indent=1)
            write_text(self.folder / f"{NAME}.json", text + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        rows = [
            asdict(score) | {"top1": score.top1, "error": score.error}
            for score in self.scores.values()
        ]
        return {"key": self.key, **self.header, "conditions": rows}


def run_trials(
    model: nn.Module,
    trials: Sequence[Trial],
    state: Progressed,
    execution: Execution,
    *,
    kept_classes: Sequence[int] | None = None,
    console: Console | None = None,
) -> None:
    """Measure every condition that `state` lacks.

    Args:
        model: The network.
        trials: The conditions.
        state: Collects the scores.
        execution: Settings for running the network.
        kept_classes: Indices of the classes to predict; all by default.
        console: Console of the progress bar.

    Raises:
        ValueError: If too many images of a condition cannot be read, or none can.
    """
    todo = [t for t in trials if (t.corruption, t.severity) not in state.scores]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[done]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=console is None) as progress:
        bar = progress.add_task("robustness", total=None, done="")
        for number, trial in enumerate(todo):
            dataset = trial.open()
            # Conditions usually have the same size; otherwise the estimate corrects itself.
            remaining = len(dataset) * (len(todo) - number)
            progress.update(
                bar,
                description=f"{trial.corruption} {trial.severity or ''}".rstrip(),
                total=progress.tasks[0].completed + remaining,
                done=f"{number + 1}/{len(todo)}",
            )
            score = _measure(
                model, dataset, trial, execution, kept_classes, lambda n: progress.advance(bar, n)
            )
            state.add(score)


def restrict(logits: Tensor, kept: Sequence[int] | None) -> Tensor:
    """Return logits (N, K) with minus infinity for all classes except `kept`."""
    if kept is None:
        return logits
    allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    allowed[list(kept)] = True
    return logits.masked_fill(~allowed, -torch.inf)


def _measure(
    model: nn.Module,
    dataset: EvalDataset,
    trial: Trial,
    execution: Execution,
    kept_classes: Sequence[int] | None,
    progress: Callable[[int], None],
) -> Score:
    bad = BadImages(dataset.samples, max_share=execution.max_bad_share)
    num_correct = num_images = 0
    batches = infer(
        model,
        dataset,
        device=execution.device,
        precision=execution.precision,
        bad=bad,
        batch_size=execution.batch_size,
        workers=execution.workers,
        progress=progress,
    )
    for logits, labels, _ in batches:
        predictions = restrict(logits, kept_classes).argmax(1).cpu()
        num_correct += int((predictions == labels).sum())
        num_images += len(labels)
    if not num_images:
        raise ValueError(f"no image of {trial.corruption} {trial.severity} can be read")
    return Score(
        corruption=trial.corruption,
        severity=trial.severity,
        num_correct=num_correct,
        num_images=num_images,
        bad_images=tuple((image.source, image.reason) for image in bad.found.values()),
    )


def _read(path: Path) -> dict[str, Any] | None:
    """Return the evaluation in a file; None without a file, or if it has other content."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found["key"], str) and "conditions" in found else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_score(row: Mapping[str, Any]) -> Score:
    return Score(
        corruption=row["corruption"],
        severity=row["severity"],
        num_correct=row["num_correct"],
        num_images=row["num_images"],
        bad_images=tuple((source, reason) for source, reason in row["bad_images"]),
    )


class SomeSamples(Samples):
    """A subset of other samples with new labels."""

    def __init__(self, samples: Samples, positions: Sequence[int]) -> None:
        self.samples = samples
        self.positions = list(positions)
        self.labels = [samples.labels[i] for i in self.positions]

    def source(self, index: int) -> str:
        return self.samples.source(self.positions[index])

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        return self.samples.open(self.positions[index], mode, at_least=at_least)

    def header(self, index: int) -> Header:
        return self.samples.header(self.positions[index])

    def num_bytes(self, index: int) -> int:
        return self.samples.num_bytes(self.positions[index])

    @property
    def is_remote(self) -> bool:
        return self.samples.is_remote

    def read_ahead(self, index: int) -> None:
        self.samples.read_ahead(self.positions[index])


def choose(
    samples: Samples, *, max_images: int | None, seed: int, labels: Sequence[int] | None = None
) -> SomeSamples:
    """Return the samples of some classes, or a random subset fixed by the seed, in order."""
    wanted = None if labels is None else set(labels)
    positions = [i for i, y in enumerate(samples.labels) if wanted is None or y in wanted]
    if max_images is not None and len(positions) > max_images:
        drawn = np.random.default_rng(seed).choice(len(positions), max_images, replace=False)
        positions = [positions[i] for i in sorted(drawn.tolist())]
    return SomeSamples(samples, positions)


def fingerprint(samples: Samples) -> str:
    """Return a hash of the paths and labels of the images."""
    found = hashlib.sha256()
    for index, label in enumerate(samples.labels):
        line = f"{samples.source(index)}\0{label}\n"
        found.update(line.encode("utf-8", "surrogateescape"))
    return found.hexdigest()


class CorruptedDataset(EvalDataset):
    """Images corrupted after resizing and cropping, before normalization, as in ImageNet-C."""

    def __init__(self, samples: SomeSamples, preprocessing: Preprocessing, *, seed: int) -> None:
        super().__init__(samples, preprocessing)
        # The corruption of an image must not depend on the subset.
        self.numbers = samples.positions
        self.seed = seed
        self.corruption, self.severity = "clean", 0

    def under(self, corruption: str, severity: int) -> CorruptedDataset:
        """Return the same images and cache under another condition; "clean" for none."""
        other = copy.copy(self)
        other.corruption, other.severity = corruption, severity
        return other

    def _pixels(self, index: int) -> Tensor:
        pixels = super()._pixels(index)
        if self.corruption == "clean":
            return pixels
        changed = corrupt(
            pixels.numpy(),
            self.corruption,
            self.severity,
            seed=self.seed,
            index=self.numbers[index],
        )
        return torch.from_numpy(changed)
