"""Verbs around training: list models, convert, export, benchmark, and check data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from convnext.api.model import to_export
from convnext.api.settings import (
    ON_COMMAND_LINE,
    DataPath,
    Device,
    File,
    Folder,
    Integers,
    Models,
    ModelSource,
    Numbers,
    OnCommandLine,
    PathLike,
    Paths,
    Precision,
    PythonOnly,
    Show,
    TaskOptions,
    local_path,
    text_of,
    verb,
)
from convnext.api.training import TaskName

if TYPE_CHECKING:
    from rich.console import Console

    from convnext.benchmarking.measure import BenchmarkResult
    from convnext.results import Exported
    from convnext.tasks.averaging import Averaged
    from convnext.tasks.exporting import ConvertReport
    from convnext.tasks.factory import CatalogueRow

Layout = Literal["official", "timm", "torchvision", "transformers", "openmmlab", "convnext"]
Backend = Literal["timm", "eager", "best", "int8"]


class Report(Protocol):
    """What a verb found in a data set, or did to it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        ...

    def print(self, console: Console, /) -> None:
        """Print it."""
        ...


class DataReport(Report, Protocol):
    """The contents and the problems of a data set."""

    @property
    def problems(self) -> Sequence[Any]:
        """What is wrong with it."""
        ...

    @property
    def suggestions(self) -> Sequence[str]:
        """What to do about that."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """How it was read."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """Networks and their published weights."""

    rows: Sequence[CatalogueRow]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"models": [row.to_dict() for row in self.rows]}


@verb
def find_models(pattern: str = "convnext_*", *, progress: Show = True) -> ModelTable:
    """List networks and their published weights.

    By default, lists the ConvNeXt classifiers, and the published segmentation networks and
    detectors on them. Patterns that begin with `timm/` list timm models,
    `upernet_` segmentation networks, `mask_rcnn_` and `cascade_mask_rcnn_` detectors, and
    `roadmap/` the steps of the roadmap.

    Args:
        pattern: A shell pattern, such as 'convnext_*'.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If no model matches.
    """
    from convnext.progress import console_of
    from convnext.tasks.factory import catalogue, print_catalogue

    rows = catalogue(pattern)
    print_catalogue(rows, console_of(progress))
    return ModelTable(rows=rows)


@verb
def average(
    runs: Annotated[Sequence[str | Path], OnCommandLine(nargs="+", metavar="RUN_OR_CHECKPOINT")],
    *,
    output: Folder,
    how: Literal["greedy", "uniform"] = "greedy",
    data: DataPath | None = None,
    device: Device = "auto",
    progress: Show = True,
) -> Averaged:
    """Average the weights of runs of one network, such as fine-tuned ones with other settings.

    The greedy average starts with the best run, and adds the others in the order of their scores,
    each if it does not lower the score on the images that the runs held out.

    Args:
        runs: Run folders or checkpoints of one network, with the same classes.
        output: A new folder for the average, which is a run folder like any other.
        how: `greedy`, or `uniform` for all runs.
        data: The images to score on; by default those that all runs held out.
        device: `cpu`, `cuda`, `mps` or `auto`.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If the networks or classes differ, or the runs held out different images and no
            data is given.
    """
    kinds = "a run is a path of its folder or of a checkpoint"
    sources = [text_of(run, kinds) for run in ([runs] if isinstance(runs, str | Path) else runs)]

    from convnext.progress import console_of
    from convnext.tasks.averaging import average as average_runs

    return average_runs(
        sources,
        output=Path(output),
        how=how,
        data=None if data is None else local_path(data),
        device=device,
        console=console_of(progress),
    )


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A checkpoint in another layout."""

    target: Path
    layout: str
    report: ConvertReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"target": str(self.target), "layout": self.layout, **self.report.to_dict()}


@verb
def convert(
    source: PathLike,
    target: File,
    *,
    to: Layout,
    model: str | None = None,
    progress: Show = True,
) -> Converted:
    """Convert a checkpoint to the layout of another library.

    The layout of the source is recognized.

    Args:
        source: A file, a run folder or a hub id.
        target: The .safetensors or .pth file to write.
        to: The layout to write.
        model: The name of the network, if the tensors do not determine it.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If the source cannot be read, or the layout does not support the network.
    """
    from convnext.progress import console_of
    from convnext.tasks.exporting import convert as write

    report = write(source, target, to, model=model)
    out = console_of(progress)
    out.print(str(report), markup=False)
    out.print(f"wrote {target}", markup=False)
    return Converted(target=Path(target), layout=to, report=report)


@verb
def export(
    source: ModelSource,
    *,
    format: Literal["onnx", "openvino", "pt2"],
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    output: File | None = None,
    preprocess: Literal["none", "normalize", "full"] = "normalize",
    logits: bool = False,
    batch: Annotated[int | None, OnCommandLine(metavar="N")] = None,
    size: Annotated[str | int | tuple[int, int] | None, OnCommandLine(metavar="SIZE")] = None,
    images: Paths = (),
    num_images: Annotated[int | None, OnCommandLine(metavar="N")] = None,
    force: bool = False,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="export")],
) -> Exported:
    """Write a network as ONNX, OpenVINO or torch.export's pt2, with its classes and preprocessing.

    The file runs in its own runtime on real images, and is kept only if its outputs match the
    network's.

    Args:
        source: A run folder, a checkpoint, or a hub id; in Python also a loaded `Model`.
        format: The file format.
        precision: Precision of the stored weights and of the computation.
        output: The file to write; by default in the run folder.
        preprocess: The part of the preprocessing in the file: `none` (takes normalized floats,
            N C H W), `normalize` (takes pixels of the network's input size, uint8 N H W C), or
            `full` (takes one image of any size, uint8 1 H W C; not for segmentation).
        logits: Output logits instead of probabilities, or instead of labels for segmentation.
        batch: Fixed batch size; by default the file takes any.
        size: Height and width of the images: HxW, PIXELS for both, or `any` for segmentation; by
            default the size of training, or for detection the size that `images` need.
        images: Images to verify the file on, and to calibrate int8; by default those of the run.
        num_images: Maximum number of images; by default 32, for int8 500, for int8 detectors 50.
        force: Keep a file that fails verification or is slower.
        progress: Where to print, as for `train`.
        **options: Task options. Detection: masks.

    Raises:
        ValueError: If the source cannot be read or is an exported file, the format's library is
            missing, no image is found, or a setting does not fit the network.
        ArithmeticError: If the outputs do not match the network's; the file is not kept.
    """
    from convnext.deploy.export import ExportSettings
    from convnext.progress import console_of, notes
    from convnext.results import Exported
    from convnext.tasks import given_options, num_int8_images
    from convnext.tasks.exporting import export as write

    if num_images is not None and num_images < 1:
        raise ValueError(f"--num-images must be at least 1, not {num_images}")
    task, network = to_export(source)
    own = given_options(task, "export", options)
    if num_images is None:
        num_images = num_int8_images(task) if precision == "int8" else 32
    out = console_of(progress)
    result = write(
        network,
        settings=ExportSettings(
            format=format,
            precision=precision,
            inside=preprocess,
            answers=not logits,
            batch=batch,
            size=_size(size),
            **own,
        ),
        output=output,
        images=[images] if isinstance(images, str | Path) else list(images),
        num_images=num_images,
        force=force,
        note=notes(out),
    )
    result.print(out)
    return Exported(
        path=result.path,
        proof=result.proof.to_dict(),
        size=result.bytes,
        proof_path=result.proof_path,
    )


def _size(given: str | int | Sequence[int] | None) -> tuple[int, int] | Literal["any"] | None:
    """Parse height and width from HxW, PIXELS or a pair.

    Raises:
        ValueError: If it is not one or two positive integers, or "any".
    """
    if given is None or given == "any":
        return given  # type: ignore[return-value]
    if isinstance(given, str):
        texts = given.lower().split("x")
        sides = [int(text) if text.isascii() and text.isdigit() else 0 for text in texts]
    else:
        sides = [given] if isinstance(given, int) else list(given)
    is_whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) not in (1, 2) or not is_whole or min(sides) < 1:
        raise ValueError(f"{given!r} is not a size; write 512x768, 512 or any")
    return sides[0], sides[-1]


@verb
def benchmark(
    models: Models,
    *,
    batch: Integers = (1, 8),
    size: Annotated[
        int | Sequence[int] | None, OnCommandLine(type=int, nargs="+", metavar="PIXELS")
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: int = 0,
    rounds: int = 7,
    backends: Annotated[
        Sequence[Backend], OnCommandLine(type=Backend, nargs="+", metavar="BACKEND")
    ] = ("timm", "eager", "best"),
    output: Folder | None = None,
    forms: Annotated[Sequence[Backend] | None, PythonOnly()] = None,
    progress: Show = True,
) -> BenchmarkResult:
    """Measure the speed of networks on this machine, next to timm's.

    timm's network in eager mode, ours in eager mode, and our fastest correct backend take turns,
    each in its own process. The table lists throughput, latency, memory, and the utilization of the
    machine's peak rates.

    Args:
        models: Names from `convnext models`.
        batch: Batch sizes.
        size: Side of the images, or height and width; by default 224, for segmentation 512, for
            detection 800 1280.
        precision: Precision of the fastest backend; `auto` uses the faster of fp32 and bf16.
        device: `cpu`, `cuda`, `mps` or `auto`.
        threads: Number of CPU threads; 0 for all cores.
        rounds: Number of measurements per backend; the backends take turns.
        backends: Backends to measure: `timm`, `eager`, `best` (the fastest correct one) and
            `int8`; ratios are relative to the first.
        output: Folder for benchmark.json, .png and .svg.
        forms: An earlier name of `backends`.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If a model, a backend or a number is invalid.
    """
    from convnext.benchmarking.measure import benchmark as measure
    from convnext.benchmarking.show import print_result, write_result
    from convnext.progress import console_of, notes

    sides = [] if size is None else [size] if isinstance(size, int) else list(size)
    if len(sides) > 2:
        raise ValueError("--size takes one number, or height and width")
    out = console_of(progress)
    result = measure(
        [models] if isinstance(models, str) else list(models),
        batches=list(batch),
        size=(sides[0], sides[-1]) if sides else None,
        precision=precision,
        device=device,
        threads=threads,
        rounds=rounds,
        kinds=list(backends if forms is None else forms),
        note=notes(out),
    )
    print_result(result, out)
    if output:
        for path in write_result(result, output):
            out.print(f"written: {path}", markup=False, soft_wrap=True)
    return result


@verb
def check_data(
    path: PathLike,
    *,
    task: TaskName | None = None,
    contact_sheet: Annotated[str | Path | None, OnCommandLine(metavar="PNG")] = None,
    deep: bool = False,
    cache: bool = True,
    range: Numbers = (),
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="data")],
) -> DataReport:
    """Inspect a data set and report its contents and problems.

    Objects are read from COCO, YOLO, Pascal VOC, LabelMe, VIA, CVAT, CreateML and Roboflow's files.
    Reports classes, image sizes, damaged files and duplicates across splits; for segmentation also
    invalid mask values and the pixel frequency of every class; for detection every problem of an
    image or an annotation.

    Args:
        path: A folder, a JSON file, a table, a URL of shards, `digits`, or `hf:owner/name` for a
            data set of the Hugging Face hub, which is fetched once.
        task: The task; by default recognized from the layout of the data.
        contact_sheet: Write a few images of every class to this file.
        deep: Look for near duplicates of all held-out images, not only of 5,000.
        cache: Show the earlier report again if no file has changed since, and do not decode images
            again that are unchanged.
        range: Values of 16-bit and float images that become black and white, as `input.range` of
            `train`; the report counts the pixels that it clips.
        progress: Where to print, as for `train`.
        **options: Task options. Classification: layout, columns, fold. Segmentation: images,
            masks, reduce_zero_label, exif, layout, annotations, allow_outside. Detection: layout,
            annotations, images, exif, boxes, allow_outside.

    Returns:
        The report of the task: `problems`, `suggestions`, `notes`, `to_dict()`, `print(console)`.

    Raises:
        ValueError: If the data does not exist, or an option belongs to another task.
    """
    from convnext.atomic import atomic_write
    from convnext.progress import console_of
    from convnext.tasks import inspect

    report, sheet = inspect(
        local_path(path),
        task,
        options,
        contact_sheet=contact_sheet is not None,
        deep=deep,
        cache=cache,
        range=range,
    )
    out = console_of(progress)
    report.print(out)
    if contact_sheet is not None:
        with atomic_write(contact_sheet) as temporary:
            sheet.save(temporary, format="PNG")
        out.print(f"contact sheet: {contact_sheet}", markup=False, soft_wrap=True)
    found: DataReport = report
    return found


@verb
def write_shards(
    path: PathLike,
    *,
    to_shards: Folder,
    shard_size: Annotated[float, OnCommandLine(metavar="MB")] = 128.0,
    resize: Annotated[int | None, OnCommandLine(metavar="PIXELS")] = None,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="data")],
) -> Report:
    """Write labeled images as WebDataset shards, for large or remote data.

    Args:
        path: The folder of the class folders, or a table or Parquet files.
        to_shards: Folder for the shards and their index.
        shard_size: Size of a shard in megabytes.
        resize: Shrink images to this short side, as JPEG; by default files are copied unchanged.
        progress: Where to print, as for `train`.
        **options: As for `check_data`.

    Raises:
        ValueError: If there are no image files with a class each, the output folder is not empty,
            or the disk has too little space.
    """
    from convnext.progress import console_of
    from convnext.tasks import given_options, task_module, task_with

    out = console_of(progress)
    task = task_with("shards")
    own = given_options(task, "data", options)
    report = task_module(task, "shards").to_shards(
        local_path(path), to_shards, shard_mb=shard_size, resize=resize, console=out, **own
    )
    report.print(out)
    found: Report = report
    return found


@verb
def fix_annotations(
    path: PathLike,
    *,
    output: Folder | None = None,
    yes: bool = False,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="data")],
) -> Report:
    """Fix all problems in a COCO JSON file that need no decision, or masks of turned photos.

    Masks that were drawn before EXIF turned their photos are turned with them.

    Args:
        path: A folder or a JSON file.
        output: A new or empty folder for the complete data set with its images; by default fixes
            the JSON file in place and keeps a copy of the old one. Masks need it.
        yes: Write without asking. Python needs it; the command line asks on a terminal.
        progress: Where to print, as for `train`.
        **options: As for `check_data`.

    Raises:
        ValueError: If there is no COCO JSON file and there are no masks, or a file would be
            overwritten; from Python, also if `yes` is not set.
    """
    import sys

    if output is None and str(path).startswith("hf:"):
        raise ValueError(f"--fix would change the copy of {path}; write another one with --output")
    if not yes and not ON_COMMAND_LINE.get():
        raise ValueError(
            f"fix_annotations changes {output or path}; pass yes=True to write without asking, and "
            "convnext.check_data to see the problems first"
        )

    from convnext.progress import console_of
    from convnext.tasks import given_options, task_module, task_to_fix

    out = console_of(progress)
    folder = local_path(path)
    task = task_to_fix(folder, options)
    module = task_module(task, "fix")

    def ask(reports: Any) -> bool:
        reports.print(out)
        return out.input("Write these changes? [y/N] ").strip().lower() in ("y", "yes")

    report = module.fix_dataset(
        folder,
        None if output is None else str(output),
        options=module.OPTIONS(**given_options(task, "data", options)),
        confirm=None if yes or not sys.stdin.isatty() else ask,
        console=out,
    )
    report.print(out)
    found: Report = report
    return found


@verb
def convert_annotations(
    path: PathLike,
    *,
    to: Literal["coco"],
    output: Folder,
    difficult: Literal["keep", "crowd", "drop"] = "keep",
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="data")],
) -> Report:
    """Convert a data set of objects in any layout to COCO JSON, with its images.

    Args:
        path: The folder of the data set.
        to: The format to write.
        output: A new or empty folder for the JSON file and the images.
        difficult: How to convert VOC's difficult objects; `crowd` objects are neither trained on
            nor counted.
        progress: Where to print, as for `train`.
        **options: As for `check_data`.

    Raises:
        ValueError: If the folder is in no layout, or the output folder is not empty.
    """
    from convnext.progress import console_of
    from convnext.tasks import reading_options, task_module, task_with

    out = console_of(progress)
    task = task_with("convert")
    own = reading_options(task, options)
    report = task_module(task, "convert").to_coco(
        local_path(path), output, difficult=difficult, options=own, console=out
    )
    report.print(out)
    found: Report = report
    return found
