"""A trained network and what it can do: predict, evaluate, export, embed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from convnext.api.types import (
    Device,
    File,
    Folder,
    Images,
    ModelSource,
    OnCommandLine,
    Paths,
    Precision,
    PythonOnly,
    Show,
    TaskOptions,
    Which,
)

if TYPE_CHECKING:
    from torch import nn

    from convnext.results import Embeddings, Exported, Predictions, Scores
    from convnext.tasks.opened import Opened
    from convnext.tasks.predict import PredictionStream

DEFAULT_FOLDER = "auto"
"""As `output` of `predict`: the folder of the task, or no files for a task that has none."""


class Model:
    """A trained network, its classes and its preprocessing. `load` makes one."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    @property
    def network(self) -> nn.Module:
        """The module, in evaluation mode; it takes images that are already preprocessed."""
        return self._opened.model

    @property
    def task(self) -> str:
        """What the network was trained for."""
        return self._opened.card.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return tuple(self._opened.card.classes)

    @property
    def preprocessing(self) -> Any:
        """How an image becomes the network's input."""
        return self._opened.card.preprocessing

    @property
    def name(self) -> str:
        """The name of the network, as `create_model` takes it."""
        return self._opened.card.model

    def __repr__(self) -> str:
        return f"Model({self.name}, {len(self.classes):,} classes, from {self._opened.source})"

    def predict(self, source: Any, **options: Any) -> Any:
        """Predict the contents of images; arguments and results are those of `predict`."""
        return predict(self, source, **options)

    def export(self, format: Literal["onnx", "openvino", "pt2"], **options: Any) -> Exported:
        """Write the network for another runtime; as `export`."""
        return export(self, format=format, **options)

    def embed(self, source: Any, **options: Any) -> Embeddings:
        """Return a feature vector for each image; as `embed`."""
        return embed(self, source, **options)

    def evaluate(self, data: Any = None, **options: Any) -> Scores:
        """Measure the network on a labelled data set; as `evaluate`."""
        from convnext.api.evaluation import evaluate

        return evaluate(self, data=data, **options)


def load(
    source: ModelSource,
    *,
    which: Which = "best",
    device: Device = "auto",
) -> Model:
    """Load a trained network; its task is recognized.

    Args:
        source: A run folder, a checkpoint, an exported file (.onnx, .xml, .pt2), a hub id, or a
            published name ("convnext_tiny.fb_in1k").
        which: Of a run, "best" for the weights with the best metric, "last" for those of the last
            step.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best there is.

    Raises:
        ValueError: If the source cannot be found or read.
    """
    from convnext.tasks.opened import opened

    return Model(replace(opened(_path_of(source, which), device), is_shared=True))


def predict(
    source: ModelSource,
    images: Images,
    *,
    output: Folder | None = None,
    stream: Annotated[bool, PythonOnly()] = False,
    channels: Annotated[Literal["rgb", "bgr"], PythonOnly()] = "rgb",
    device: Device = "auto",
    precision: Precision = "auto",
    max_bad_share: float = 1.0,
    fast: bool = True,
    progress: Show = True,
    **options: Annotated[Any, TaskOptions(verb="predict")],
) -> Predictions | PredictionStream[Any]:
    """Predict the contents of images, with the preprocessing that the checkpoint carries.

    A classifier names the classes of images, with their probabilities. A segmentor gives the class
    of every pixel, a detector boxes and masks of the objects.

    Args:
        source: A run folder, a checkpoint, an exported file, a hub id; in Python also a loaded
            `Model`.
        images: Paths, folders, globs or URLs; in Python also PIL images, numpy arrays (H, W, 3) or
            (H, W) and torch tensors (3, H, W) or (N, 3, H, W) of uint8, and iterables of these.
        output: Write files there: predictions.json and a table; for a segmentor masks and overlays,
            for a detector pictures and COCO's results.
        stream: Return an iterator that reads images and predicts them one at a time, in bounded
            memory; its `summary()` is what the command line prints.
        channels: The order in arrays and tensors: "rgb", or "bgr" as OpenCV has it.
        device: `cpu`, `cuda`, `mps` or `auto`; a loaded model stays where it is.
        precision: `auto` is that of training.
        max_bad_share: Fail if a larger share of the images cannot be read.
        fast: Switch to the fastest backend on this machine where the work takes minutes; outputs
            then differ in their last bits.
        progress: Where to print, as for `train`.
        **options: Of the task: topk, batch_size, wide; window, stride, whole, multi_scale, flip,
            overlays, alpha; score, nms, max_detections, overlays, names, ids.

    Returns:
        A sequence with a `Classification`, `Segmentation` or `Detections` for each image that can
        be read, in order, and the `bad_images`; with `stream` an iterator of the same.

    Raises:
        ValueError: If there is no image, too many cannot be read, an array is ambiguous, or an
            option belongs to another task.
        TypeError: If something is not an image.
    """
    from convnext.data.sources import image_sources
    from convnext.progress import console_of
    from convnext.results import Predictions
    from convnext.tasks.predict import PredictionStream
    from convnext.tasks.verbs import given_options, predictor_class

    # Before a network is fetched in vain.
    sources = image_sources(images, channels=channels)
    model = as_model(source, device)
    kind = predictor_class(model.task)
    folder = kind.default_folder if output == DEFAULT_FOLDER else output
    predictor = kind(
        model._opened,
        Path(folder) if folder else None,
        **given_options(model.task, "predict", options),
    )
    found = PredictionStream(
        predictor,
        sources,
        precision=precision,
        max_bad_share=max_bad_share,
        fast=fast,
        console=console_of(progress),
    )
    if stream:
        return found
    results = tuple(found)
    return Predictions(results=results, bad_images=tuple(found.bad_images))


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
        format: Of the file.
        precision: Of its weights and its arithmetic.
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
        **options: Of the task: masks.

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
    from convnext.tasks.verbs import given_options

    if num_images is not None and num_images < 1:
        raise ValueError(f"--num-images must be at least 1, not {num_images}")
    name = source._opened.source if isinstance(source, Model) else str(source)
    task = task_of(name)
    own = given_options(task, "export", options)
    if num_images is None:
        num_images = 32
        if precision == "int8":
            num_images = 50 if task == "detect" else 500
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


def embed(
    source: ModelSource,
    images: Images,
    *,
    output: File | None = None,
    channels: Annotated[Literal["rgb", "bgr"], PythonOnly()] = "rgb",
    batch_size: int = 64,
    device: Device = "auto",
    precision: Precision = "auto",
    max_bad_share: float = 1.0,
    progress: Show = True,
) -> Embeddings:
    """Write a feature vector for each image: the last stage's output, pooled, after the last norm.

    Any network will do: of a segmentor or a detector it is the backbone that counts.

    Args:
        source: A run folder, a checkpoint, a hub id; in Python also a loaded `Model`.
        images: Paths, folders, globs or URLs; in Python also images in memory, as for `predict`.
        output: A file: .npz (`vectors` and `paths`) or .csv (a row per image).
        channels: As for `predict`.
        batch_size: Images at a time, as far as they have one size.
        device: As for `predict`.
        precision: As for `predict`.
        max_bad_share: As for `predict`.
        progress: Where to print, as for `train`.

    Returns:
        `vectors` (N, C) of float32, and the N `paths` of the images that can be read.

    Raises:
        ValueError: If the network has no features to give, as an exported file, there is no image,
            or too many cannot be read.
    """
    from convnext.data.sources import image_sources
    from convnext.progress import console_of
    from convnext.tasks.embed import embed_images

    if output is not None and Path(output).suffix not in (".npz", ".csv"):
        raise ValueError(f"{output} must end in .npz or .csv")
    sources = image_sources(images, channels=channels)
    out = console_of(progress)
    found, bad = embed_images(
        as_model(source, device)._opened,
        sources,
        batch_size=batch_size,
        precision=precision,
        max_bad_share=max_bad_share,
        console=out,
    )
    for name, reason in bad:
        out.print(f"skipped: {name}: {reason}", markup=False)
    number, channels_of = found.vectors.shape
    out.print(f"{number:,} images, {channels_of:,} features each")
    if output is not None:
        found.write(output)
        out.print(f"written: {output}", markup=False, soft_wrap=True)
    return found


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


def as_model(source: Any, device: Device) -> Model:
    return source if isinstance(source, Model) else load(source, device=device)


def _path_of(source: Any, which: Which) -> str:
    """Return the file of a run's weights, or the source as it is."""
    if which == "best":
        return str(source)
    if which != "last":
        raise ValueError(f"which is {which!r}, but must be 'best' or 'last'")
    from convnext.weights.checkpoint import complete_steps

    states = complete_steps(Path(str(source)) / "checkpoints")
    if not states:
        raise ValueError(f"{source} is not a run folder with a saved state; leave out which='last'")
    return str(states[-1] / "model.safetensors")
