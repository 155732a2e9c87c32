"""`evaluate --robustness`: scores of a network on a benchmark, or on corrupted images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from rich.console import Console

from convnext.data.contents import held_names
from convnext.data.formats.class_folders import find_plain, listing
from convnext.data.images import BadImage
from convnext.data.samples import Samples
from convnext.hardware.devices import pick_device
from convnext.names import count_noun, nearest
from convnext.tasks.classification.data import Reading
from convnext.tasks.classification.dataset import EvalDataset
from convnext.tasks.classification.evaluate import class_positions, open_split, relabel
from convnext.tasks.classification.predict import BATCH_SIZE
from convnext.tasks.classification.robustness.benchmarks import (
    SOURCE,
    TITLES,
    Benchmark,
    Condition,
    Kind,
    Summary,
    find_benchmark,
    paper_figures,
    subset_synsets,
    summarize,
)
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES, VERSION
from convnext.tasks.classification.robustness.measure import (
    CorruptedDataset,
    Execution,
    Progressed,
    Trial,
    choose,
    fingerprint,
    run_trials,
)
from convnext.tasks.trained import open_model, pick_precision
from convnext.weights.checkpoint import Card, data_of, setting_of
from convnext.weights.files import digest
from convnext.weights.published import find_published

ADVICE = "use --data PATH, or pass the folder of a benchmark to --robustness"
GENERATED_HERE = (
    "the corruptions were generated here, with procedural frost: compare the scores with each "
    "other, not with published ones of ImageNet-C"
)


@dataclass(frozen=True, kw_only=True)
class RobustnessResult:
    """The scores, with the source and the benchmark."""

    state: Progressed
    kind: Kind
    summary: Summary
    clean_from: str
    """Source of the clean accuracy: "measured", "the checkpoint", "published", or empty."""
    paper: dict[str, float] | None
    """The paper's results for these published weights."""
    notes: tuple[str, ...]

    @property
    def bad_images(self) -> dict[str, str]:
        """Images that could not be read, with the reasons."""
        return {s: reason for score in self.state.scores.values() for s, reason in score.bad_images}

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        paper = None if self.paper is None else {"source": SOURCE, **self.paper}
        return {
            **self.state.to_dict(),
            "complete": True,
            "summary": self.summary.to_dict() | {"clean_from": self.clean_from},
            "paper": paper,
            "notes": list(self.notes),
            "bad_images": [{"source": s, "reason": r} for s, r in self.bad_images.items()],
        }


def evaluate_robustness(
    source: str,
    *,
    benchmark: str | None = None,
    data: str | None = None,
    split: str = "val",
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    max_images: int | None = None,
    seed: int = 0,
    output: Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    max_bad_share: float = 0.01,
    console: Console | None = None,
    **reading: Unpack[Reading],
) -> RobustnessResult:
    """Evaluate the robustness of a run, a checkpoint or published weights.

    Long because clean and corrupted images are measured under the same conditions, which are
    determined here once.

    Args:
        source: A run folder, a file in any layout, or a hub id.
        benchmark: The folder of a published benchmark; None to corrupt the images of `data`.
        data: Images without corruption. Without a benchmark these are corrupted, by default the
            training data set's; with a benchmark they measure the clean accuracy.
        split: "val" or "train", for `data`.
        corruptions: The corruptions to measure; all by default.
        severities: The severities to measure; all by default.
        max_images: Maximum number of images per condition, drawn at random.
        seed: Seed of that draw and of the corruptions.
        output: Folder for finished conditions; None to save none.
        batch_size: Images per batch.
        workers: Processes that read and corrupt images; by default as many as help.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: `fp32`, `bf16`, `fp16`, or `auto` for the precision of training.
        max_bad_share: Maximum fraction of a condition's images that may be unreadable.
        console: Console for progress; None for no output.
        **reading: How to read `data`.

    Raises:
        ValueError: If something cannot be read or is unknown, or classes do not match.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {batch_size}")
    _check(corruptions if benchmark is None else None, severities, max_images)
    severities = tuple(sorted(set(severities)))
    found = None
    if benchmark is not None:
        found = find_benchmark(benchmark, corruptions=corruptions, severities=severities)
    where = pick_device(device)
    model, card = open_model(source, where)
    pre = card.preprocessing
    if card.thresholds:
        raise ValueError(
            f"{source} predicts several labels for an image, but these benchmarks measure top-1: "
            "use a network that predicts one"
        )
    if pre.in_chans not in (1, 3) or pre.bands:
        raise ValueError(
            f"corruptions are of RGB images, but {source} reads {count_noun(pre.in_chans, 'band')}"
        )
    # Small images take less time to create than to pass between processes.
    helpful = 0 if card.preprocessing.image_size < 96 else min(8, (os.cpu_count() or 1) - 1)
    execution = Execution(
        device=where,
        precision=pick_precision(precision, card, where),
        batch_size=batch_size or BATCH_SIZE,
        workers=helpful if workers is None else workers,
        max_bad_share=max_bad_share,
    )
    kept = None
    if found is not None and found.synsets is not None:
        kept = class_positions(found.synsets, card.classes)
    clean = None
    used_split = "all"  # Of a benchmark.
    if found is None or data is not None:
        clean, own_split = _open_clean(
            source, card, data, split, max_images, seed, kept, console, **reading
        )
        used_split = own_split if found is None else used_split
    kind: Kind = found.kind if found else "corrupt"
    header = {
        "benchmark": kind,
        "title": TITLES[kind],
        "source": source,
        "data": str(found.root if found else data or data_of(source, card, ADVICE)),
        "model": card.model,
        "weights": card.metrics.get("weights", "model"),
        "seed": seed,
        "max_images": max_images,
    }
    inputs = header | {
        "tensors": digest(model.state_dict(), {}),
        "classes": card.classes,
        "preprocessing": card.preprocessing.to_dict(),
        "execution": [str(where.type), execution.precision, execution.batch_size],
        "corruptions": [*(corruptions or ())],
        "severities": severities,
        "version": VERSION,
        "clean": None if clean is None else fingerprint(clean.samples),
        "folders": [str(c.folder) for c in found.conditions] if found else [],
    }
    header |= {"split": used_split, "precision": execution.precision, "backend": "eager"}
    state: Progressed = Progressed.begin(inputs, header, output)
    if clean is not None and found is None and state.num_found == 0 and console is not None:
        console.print(clean.fill_cache(workers=execution.workers, console=console))
    trials = [] if clean is None else [Trial(corruption="clean", severity=0, open=lambda: clean)]
    if found is None:
        assert clean is not None
        trials += corruption_trials(clean, corruptions or tuple(CORRUPTIONS), severities)
    else:
        trials += benchmark_trials(found, card, max_images, seed)
    run_trials(model, trials, state, execution, kept_classes=kept, console=console)
    return _result(state, kind, found, card, source, max_images)


def _check(
    corruptions: Sequence[str] | None, severities: Sequence[int], max_images: int | None
) -> None:
    for name in corruptions or ():
        if name not in CORRUPTIONS:
            raise ValueError(f"there is no corruption {name!r}{nearest(name, CORRUPTIONS)}")
    wrong = [level for level in severities if level not in SEVERITIES]
    if wrong or not severities:
        raise ValueError(f"severities are 1 to 5, not {', '.join(map(str, wrong)) or 'none'}")
    if max_images is not None and max_images < 1:
        raise ValueError(f"max_images is {max_images}, but must be at least 1")


def _open_clean(
    source: str,
    card: Card,
    data: str | None,
    split: str,
    max_images: int | None,
    seed: int,
    kept: Sequence[int] | None,
    console: Console | None,
    **reading: Unpack[Reading],
) -> tuple[CorruptedDataset, str]:
    """Return the images without corruption, of the classes to predict, and their split."""
    data = data or data_of(source, card, ADVICE)
    opened_split = open_split(data, split, card, console, held=held_names(source), **reading)
    samples = relabel(opened_split.images, opened_split.classes, card.classes)
    chosen = choose(samples, max_images=max_images, seed=seed, labels=kept)
    return CorruptedDataset(chosen, card.preprocessing, seed=seed), opened_split.split


def corruption_trials(
    clean: CorruptedDataset, corruptions: Sequence[str], severities: Sequence[int]
) -> list[Trial]:
    return [
        Trial(corruption=name, severity=level, open=partial(clean.under, name, level))
        for name in CORRUPTIONS
        if name in corruptions
        for level in severities
    ]


def benchmark_trials(
    found: Benchmark, card: Card, max_images: int | None, seed: int
) -> list[Trial]:
    def open_condition(condition: Condition) -> EvalDataset:
        listed = find_plain(condition.folder)
        samples = relabel(listed.take(listed.train), listed.classes, card.classes)
        preprocessing = card.preprocessing
        # The images of ImageNet-C and C-bar are already cropped to 224.
        if condition.severity and _is_square(samples):
            preprocessing = replace(preprocessing, crop_pct=1.0)
        return EvalDataset(choose(samples, max_images=max_images, seed=seed), preprocessing)

    return [
        Trial(corruption=c.corruption, severity=c.severity, open=partial(open_condition, c))
        for c in found.conditions
    ]


def _is_square(samples: Samples) -> bool:
    """Whether the first readable image among the first few is square."""
    for index in samples.some(8):
        try:
            header = samples.header(index)
        except BadImage:
            continue
        return header.width == header.height
    return False


def _result(
    state: Progressed,
    kind: Kind,
    found: Benchmark | None,
    card: Card,
    source: str,
    max_images: int | None,
) -> RobustnessResult:
    notes = list(found.notes) if found else [GENERATED_HERE]
    num_classes = len(_class_folders(found)) if found else 0
    if kind == "imagenet-c" and 0 < num_classes < 1000:
        notes.append(f"the data has {num_classes:,} of ImageNet's 1,000 classes")
    if found and max_images is not None:
        notes.append(f"estimated on at most {max_images:,} images per condition")
    published, clean, clean_from = find_published(source), None, ""
    measured = state.scores.get(("clean", 0))
    if measured is not None:
        clean, clean_from = measured.top1, "measured"
    elif found is not None and found.synsets is None:
        # No clean accuracy is known for the 200 classes of ImageNet-A and -R.
        top1 = setting_of(card.metrics, "top1", float, int)
        if top1 is not None:
            clean, clean_from = float(top1), "the checkpoint"
        elif published is not None and published.top1 is not None:
            clean, clean_from = published.top1, "published"
    scores = [score for (name, _), score in state.scores.items() if name != "clean"]
    return RobustnessResult(
        state=state,
        kind=kind,
        summary=summarize(kind, scores, clean=clean, is_imagenet=num_classes > 0),
        clean_from=clean_from,
        paper=paper_figures(source),
        notes=tuple(notes),
    )


def _class_folders(found: Benchmark) -> list[str]:
    """Return the folders of a benchmark that are ImageNet classes."""
    names = [p.name for p in listing(found.conditions[0].folder) if p.is_dir()]
    return names if all(name in subset_synsets("imagenet") for name in names) else []
