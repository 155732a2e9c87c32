"""The verb `evaluate`: on a labeled data set, or on robustness benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from convnext.api.model import as_model
from convnext.api.settings import (
    DataPath,
    Device,
    Folder,
    Integers,
    ModelSource,
    OnCommandLine,
    Precision,
    Show,
    Split,
    TaskOptions,
    Words,
    data_path,
    text_of,
    verb,
)
from convnext.recipes.schema import Speedup

if TYPE_CHECKING:
    from convnext.results import Scores


class RobustnessReport(Protocol):
    """The scores of a classifier on corrupted images."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...


@verb
def evaluate(
    source: ModelSource,
    *,
    data: DataPath | None = None,
    split: Split = "auto",
    device: Device = "auto",
    precision: Precision = "fp32",
    backend: Speedup = "folded",
    max_bad_share: float = 0.01,
    output: Folder | None = None,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="evaluate")],
) -> Scores:
    """Evaluate a trained network on a labeled data set.

    Measures top-1, top-5, and the precision and recall of every class (mAP and F1 for several
    labels); for segmentation mIoU and the IoU of every class; for detection COCO's AP. Images are
    preprocessed as the checkpoint says.

    Args:
        source: A run folder, a checkpoint, an exported file, or a hub id; in Python also a loaded
            `Model`.
        data: A data set; by default the local one that the run was trained on.
        split: The part of the data set to evaluate on. `auto` takes the images that the run held
            out; of other data its test split, else its validation split, else all images.
        device: `cpu`, `cuda`, `mps` or `auto`.
        precision: Numeric precision; `auto` is the precision of training. An exported file keeps
            its own.
        backend: `folded` merges norms and scales into the weights, so that the same checkpoint has
            the same scores however busy the machine is; `eager` runs the network unmodified;
            `fastest` may search for a faster backend during a long evaluation.
        max_bad_share: Fail if more than this share of images cannot be read.
        output: Folder for evaluation.json.
        progress: Where to print, as for `train`.
        **options: Task options. Classification: batch_size, only_best. Segmentation: window,
            stride, whole, multi_scale, flip, boundary. Detection: score, nms, max_detections.
            Also those of `check_data` that say how the data is read, such as columns and layout.

    Returns:
        A mapping of named scores, with `per_class`, their `conditions` (images, split, precision,
        backend) and the task's full `evaluation`.

    Raises:
        ValueError: If source or data cannot be read, their classes do not match, or an option
            belongs to another task.
    """
    from convnext.progress import console_of
    from convnext.tasks import given_options, task_class
    from convnext.tasks.evaluation import EvaluationSettings

    path = data_path(data)
    model = as_model(source, device)
    own = given_options(model.task, "evaluate", options)
    out = console_of(progress)
    result = task_class(model.task).evaluate(
        model._opened,
        EvaluationSettings(
            data=path,
            split=split,
            precision=precision,
            max_bad_share=max_bad_share,
            backend=backend,
            console=out,
        ),
        **own,
    )
    result.print(out)
    if output:
        out.print(f"written: {result.write(output)}", markup=False, soft_wrap=True)
    scores: Scores = result.scores()
    return scores


@verb
def evaluate_robustness(
    source: Annotated[str | Path, OnCommandLine(metavar="RUN_OR_CHECKPOINT")],
    *,
    robustness: Annotated[
        str | Path | None, OnCommandLine(nargs="?", const="corrupt", metavar="PATH")
    ] = None,
    data: DataPath | None = None,
    split: Split = "auto",
    corruptions: Words = (),
    severities: Integers = (1, 2, 3, 4, 5),
    max_images: Annotated[int | None, OnCommandLine(metavar="N")] = None,
    seed: int = 0,
    workers: Annotated[int | None, OnCommandLine(metavar="N")] = None,
    batch_size: int | None = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    max_bad_share: float = 0.01,
    layout: str = "",
    columns: str = "",
    fold: int | str = "",
    output: Folder | None = None,
    progress: Show = True,
) -> RobustnessReport:
    """Measure a classifier's top-1 on corrupted images, or on ImageNet-C, C-bar, A, R or Sketch.

    Args:
        source: A run folder, a checkpoint, or a hub id.
        robustness: The folder of a published benchmark, recognized by its layout; without a folder,
            15 corruptions are applied to the images of the data set.
        data: As for `evaluate`.
        split: As for `evaluate`.
        corruptions: Corruptions to apply, separated by commas, such as gaussian_noise,fog.
        severities: Severities to apply.
        max_images: Number of randomly chosen images per condition.
        seed: Seed of this choice and of the corruptions.
        workers: Processes that read and corrupt images; by default as many as help.
        batch_size: Images per batch.
        device: As for `evaluate`.
        precision: As for `evaluate`.
        max_bad_share: As for `evaluate`.
        layout: How to read the data, as for `check_data`.
        columns: See there.
        fold: See there.
        output: Folder for robustness.json, .csv, .svg and .png; by default the run folder.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If source or data cannot be read, or a name is unknown.
    """
    from convnext.progress import console_of
    from convnext.tasks import task_module, task_with

    task = task_with("robustness")
    table = task_module(task, "robustness.table")
    path = text_of(source, "a source is a run folder, a checkpoint or a hub id here")
    out = console_of(progress)
    is_run = (Path(path) / "checkpoints").is_dir()
    folder = Path(output) if output else Path(path) if is_run else None
    result = task_module(task, "robustness.run").evaluate_robustness(
        path,
        benchmark=None if robustness in (None, "corrupt") else str(robustness),
        data=data_path(data),
        split=split,
        corruptions=list(corruptions) or None,
        severities=tuple(severities),
        max_images=max_images,
        seed=seed,
        output=folder,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        max_bad_share=max_bad_share,
        layout=layout,
        columns=columns,
        fold=fold,
        console=out,
    )
    if result.state.num_found:
        out.print(f"{result.state.num_found} conditions were measured earlier")
    table.print_robustness(result, out)
    if folder is None:
        out.print("nothing was written; give --output DIR to keep the table and the figure")
    else:
        if result.state.moved:
            out.print(
                f"renamed another evaluation in this folder to {result.state.moved}.json",
                markup=False,
            )
        written = ", ".join(map(str, table.write_robustness(result, folder)))
        out.print(f"written: {written}", markup=False, soft_wrap=True)
    found: RobustnessReport = result
    return found
