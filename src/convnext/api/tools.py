"""The verbs around training: data sets, published weights, layouts, exported files, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from convnext.api.model import source_of
from convnext.api.training import TaskName
from convnext.api.types import (
    Device,
    File,
    Folder,
    Integers,
    Models,
    ModelSource,
    OnCommandLine,
    PathLike,
    Paths,
    Precision,
    Show,
    TaskOptions,
)

if TYPE_CHECKING:
    from convnext.benchmarking.measure import BenchmarkResult
    from convnext.results import Exported
    from convnext.tasks.catalogue import CatalogueRow
    from convnext.tasks.convert import ConvertReport

Layout = Literal["official", "timm", "torchvision", "transformers", "openmmlab", "convnext"]
Backend = Literal["timm", "eager", "best", "int8"]


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """Networks, and the weights that are published for them."""

    rows: Sequence[CatalogueRow]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"models": [row.to_dict() for row in self.rows]}


def find_models(pattern: str = "convnext_*", *, progress: Show = True) -> ModelTable:
    """List networks and published weights.

    The steps of the roadmap are listed for a pattern that names them, timm's networks for one that
    begins with timm/, segmentors for one that begins with upernet_, detectors for mask_rcnn_ or
    cascade_mask_rcnn_.

    Args:
        pattern: A shell pattern.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If no model matches.
    """
    from convnext.progress import console_of
    from convnext.tasks.catalogue import catalogue, print_catalogue

    rows = catalogue(pattern)
    print_catalogue(rows, console_of(progress))
    return ModelTable(rows=rows)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A checkpoint in another layout."""

    target: Path
    layout: str
    report: ConvertReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"target": str(self.target), "layout": self.layout, **self.report.to_dict()}


def convert(
    source: PathLike,
    target: File,
    *,
    to: Layout,
    model: str | None = None,
    progress: Show = True,
) -> Converted:
    """Read a checkpoint in any layout and write it in another one.

    Args:
        source: A file, a run folder or a hub id.
        target: A .safetensors or .pth file to write.
        to: The layout.
        model: The network, where the tensors leave it open.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If the source cannot be read, or the layout does not have such a network.
    """
    from convnext.progress import console_of
    from convnext.tasks.convert import convert as write

    report = write(source, target, to, model=model)
    out = console_of(progress)
    out.print(str(report))
    out.print(f"wrote {target}")
    return Converted(target=Path(target), layout=to, report=report)


def export(
    source: ModelSource,
    *,
    format: Annotated[
        Literal["onnx", "openvino", "pt2"], OnCommandLine(type=Literal["onnx", "openvino", "pt2"])
    ],
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32",
    output: File | None = None,
    preprocess: Literal["none", "normalize", "full"] = "normalize",
    logits: bool = False,
    batch: Annotated[int | None, OnCommandLine(type=int, metavar="N")] = None,
    size: Annotated[str | int | tuple[int, int] | None, OnCommandLine(metavar="SIZE")] = None,
    images: Paths = (),
    num_images: Annotated[int | None, OnCommandLine(type=int, metavar="N")] = None,
    force: bool = False,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="export")],
) -> Exported:
    """Write a network as ONNX, OpenVINO or torch.export's pt2, with its classes and preprocessing.

    The file is run in its own runtime on real images, and kept only if it computes what the network
    does.

    Args:
        source: A run folder, a checkpoint, a hub id; in Python also a loaded
            `Model`.
        format: The format of the file.
        precision: How its weights are stored and its layers computed.
        output: The file; by default in the run folder.
        preprocess: How much of the preprocessing is in the file: none of it (it takes normalized
            floats, N C H W), the normalization (it takes pixels of the network's size, uint8
            N H W C; the default), or all (it takes one image of any size, uint8 1 H W C; not of a
            segmentor).
        logits: Give logits instead of probabilities, of a segmentor instead of labels.
        batch: Fix the number of images at a time; by default it is open.
        size: Height and width of the images: HxW, PIXELS for both, or of a segmentor `any`; by
            default as trained, of a detector what the images it is proven on need.
        images: Images to prove the file on, and to calibrate int8; by default the run's own data.
        num_images: How many of them at most; by default 32, for int8 500, of a detector 50.
        force: Keep a file that fails its proof or is slower.
        progress: Where to print, as for `train`.
        **options: Options that one task has: masks.

    Raises:
        ValueError: If the source cannot be read, a format lacks its library, no image is found, or
            a setting does not fit the network.
        ArithmeticError: If the file does not compute what the network does; it is not kept.
    """
    from convnext.deploy.export import ExportSettings
    from convnext.progress import console_of, notes
    from convnext.results import Exported
    from convnext.tasks.exporting import export as write
    from convnext.tasks.trained import task_of
    from convnext.tasks.verbs import given_options, num_calibration_images

    if num_images is not None and num_images < 1:
        raise ValueError(f"--num-images must be at least 1, not {num_images}")
    name = source_of(source)
    task = task_of(name)
    own = given_options(task, "export", options)
    if num_images is None:
        num_images = num_calibration_images(task) if precision == "int8" else 32
    out = console_of(progress)
    result = write(
        name,
        settings=ExportSettings(
            format=format,
            precision=precision,
            inside=preprocess,
            answers=not logits,
            batch=batch,
            size=_size(size),
            masks=own.get("masks"),
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
    """Return height and width from HxW, PIXELS or a pair."""
    if given is None or given == "any":
        return given  # type: ignore[return-value]
    if isinstance(given, int):
        return given, given
    if not isinstance(given, str):
        height, width = given
        return int(height), int(width)
    sides = given.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise ValueError(f"{given!r} is not a size; write 512x768, 512 or any")
    return int(sides[0]), int(sides[-1])


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
    forms: Annotated[
        Sequence[Backend], OnCommandLine(type=Backend, nargs="+", metavar="BACKEND")
    ] = ("timm", "eager", "best"),
    output: Folder | None = None,
    progress: Show = True,
) -> BenchmarkResult:
    """Time networks on this machine, beside timm's form of each and the machine's limits.

    timm's network in eager mode, ours in eager mode, and the fastest correct backend take turns,
    each in a process of its own: throughput, latency, memory, and the share of what the machine can
    do.

    Args:
        models: Names of `convnext models`.
        batch: Images at a time.
        size: Side of the images, or height and width; by default 224, for segmentors 512, for
            detectors 800 1280.
        precision: The precision of the fastest backend; `auto` takes the faster of fp32 and bf16.
        device: `cpu`, `cuda`, `mps` or `auto`.
        threads: Threads of the CPU; 0 for all.
        rounds: Turns of all backends.
        forms: Which backends: timm, eager, best or int8; ratios are to the first.
        output: Write benchmark.json, .png and .svg there.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If a model, a backend or a number makes no sense.
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
        kinds=list(forms),
        note=notes(out),
    )
    print_result(result, out)
    if output:
        for path in write_result(result, output):
            out.print(f"written: {path}", soft_wrap=True)
    return result


def check_data(
    path: PathLike,
    *,
    task: TaskName | None = None,
    contact_sheet: Annotated[str | Path | None, OnCommandLine(metavar="PNG")] = None,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="data")],
) -> Any:
    """Look at a data set and report what is in it and what is wrong with it.

    Classes, sizes, damaged files, duplicates across splits; for images with masks also values
    outside the classes and the share of every class; for objects every fault of an image or an
    annotation.

    Args:
        path: A folder, a json, an address of shards, or `digits`.
        task: What the data is for; by default what its layout says.
        contact_sheet: Write a few images of every class to this file.
        progress: Where to print, as for `train`.
        **options: Options that one task has: images, masks, reduce_zero_label.

    Returns:
        The report of the task: `faults`, `to_dict()`, `print(console)`.

    Raises:
        ValueError: If there is no such data, or an option belongs to another task.
    """
    from convnext.atomic import atomic_write
    from convnext.progress import console_of
    from convnext.tasks.verbs import given_options, inspect, recognize_task

    name = task or recognize_task(path, options)
    own = given_options(name, "data", options)
    report, sheet = inspect(name, str(path), contact_sheet=contact_sheet is not None, **own)
    out = console_of(progress)
    report.print(out)
    if contact_sheet is not None:
        with atomic_write(contact_sheet) as temporary:
            sheet.save(temporary, format="PNG")
        out.print(f"contact sheet: {contact_sheet}")
    return report


def write_shards(
    path: PathLike,
    *,
    to_shards: Folder,
    shard_size: Annotated[float, OnCommandLine(type=float, metavar="MB")] = 128.0,
    resize: Annotated[int | None, OnCommandLine(type=int, metavar="PIXELS")] = None,
    progress: Show = True,
) -> Any:
    """Write class folders as WebDataset shards, for large or remote data.

    Args:
        path: The folder of class folders.
        to_shards: Where the shards and their index go.
        shard_size: Size of a shard in megabytes.
        resize: Reduce longer short sides to this, as JPEG; by default files stay as they are.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If there are no class folders, the folder holds something else, or the disk is
            too small.
    """
    from convnext.progress import console_of
    from convnext.tasks.classification.shards import to_shards as write

    out = console_of(progress)
    report = write(str(path), to_shards, shard_mb=shard_size, resize=resize, console=out)
    report.print(out)
    return report


def fix_annotations(path: PathLike, *, output: Folder | None = None, progress: Show = True) -> Any:
    """Fix what needs no decision in a COCO json.

    Args:
        path: A folder or a json.
        output: Where to write; by default in place, and the old file is kept beside the new one.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If there is no COCO json, or it would be overwritten.
    """
    from convnext.progress import console_of
    from convnext.tasks.detection.data.fix import fix_dataset

    out = console_of(progress)
    report = fix_dataset(str(path), None if output is None else str(output), console=out)
    report.print(out)
    return report


def convert_annotations(
    path: PathLike,
    *,
    to: Literal["coco"],
    output: Folder,
    difficult: Literal["keep", "crowd", "drop"] = "keep",
    progress: Show = True,
) -> Any:
    """Write Pascal VOC or YOLO folders as COCO's json.

    Args:
        path: The folder.
        to: The format.
        output: An empty or new folder for the json and the images.
        difficult: Objects that VOC marks so; crowd: neither trained on nor counted.
        progress: Where to print, as for `train`.

    Raises:
        ValueError: If the folder is in neither format, or the output holds something.
    """
    from convnext.progress import console_of
    from convnext.tasks.detection.data.convert import to_coco

    out = console_of(progress)
    report = to_coco(str(path), output, difficult=difficult, console=out)
    report.print(out)
    return report
