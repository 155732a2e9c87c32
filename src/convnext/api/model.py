"""Load a trained network; predict, evaluate, export and embed with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from convnext.api.settings import (
    DEFAULT_FOLDER,
    DataPath,
    Device,
    File,
    Folder,
    Images,
    ModelSource,
    Precision,
    PythonOnly,
    Show,
    TaskOptions,
    Which,
    text_of,
    verb,
)
from convnext.names import count_noun

if TYPE_CHECKING:
    from torch import nn

    from convnext.data.preprocessing import DensePreprocessing, Preprocessing
    from convnext.deploy.runtimes import Exported as ExportedFile
    from convnext.results import Embeddings, Exported, Prediction, Predictions, Scores
    from convnext.tasks.predict import PredictionStream
    from convnext.tasks.trained import Opened


class Model:
    """A trained network with its classes and preprocessing, as `load` returns it.

    For an exported file, the network is built on first use: tasks that can run the file itself
    need no torch.
    """

    def __init__(self, opened: Opened | ExportedFile) -> None:
        self._own = opened

    @cached_property
    def _opened(self) -> Opened:
        from convnext.tasks.trained import Opened, opened_file

        own = self._own
        return own if isinstance(own, Opened) else opened_file(own)

    @property
    def _file(self) -> ExportedFile | None:
        """The exported file, if the model was loaded from one."""
        from convnext.deploy.runtimes import Exported

        return self._own if isinstance(self._own, Exported) else None

    @property
    def network(self) -> nn.Module:
        """The module, in evaluation mode; it takes images that are already preprocessed."""
        return self._opened.model

    @property
    def task(self) -> str:
        """The task that the network was trained for."""
        from convnext.tasks import DEFAULT

        return self._own.card.task or DEFAULT

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self._own.card.classes)

    @property
    def preprocessing(self) -> Preprocessing | DensePreprocessing:
        """The preprocessing of images."""
        found: Preprocessing | DensePreprocessing = self._opened.card.preprocessing
        return found

    @property
    def name(self) -> str:
        """The name of the network, as `create_model` takes it."""
        return self._own.card.model

    def __repr__(self) -> str:
        classes = count_noun(len(self.classes), "class", "classes")
        return f"Model({self.name}, {classes}, from {self._own.source})"

    @overload
    def predict(
        self, source: Images, *, stream: Literal[False] = False, **options: Any
    ) -> Predictions: ...
    @overload
    def predict(
        self, source: Images, *, stream: Literal[True], **options: Any
    ) -> PredictionStream[Prediction]: ...
    def predict(
        self, source: Images, *, stream: bool = False, **options: Any
    ) -> Predictions | PredictionStream[Prediction]:
        """Predict the contents of images; see `predict`."""
        found: Predictions | PredictionStream[Prediction]
        found = predict(self, source, stream=stream, **options)  # type: ignore[call-overload]
        return found

    def export(self, format: Literal["onnx", "openvino", "pt2"], **options: Any) -> Exported:
        """Write the network for another runtime; see `export`."""
        from convnext.api import export

        return export(self, format=format, **options)

    def embed(self, source: Images, **options: Any) -> Embeddings:
        """Return a feature vector for each image; see `embed`."""
        return embed(self, source, **options)

    def evaluate(self, data: DataPath | None = None, **options: Any) -> Scores:
        """Evaluate the network on a labeled data set; see `evaluate`."""
        from convnext.api import evaluate

        return evaluate(self, data=data, **options)


@verb
def load(
    source: ModelSource,
    *,
    which: Which = "best",
    device: Device = "auto",
    network: nn.Module | None = None,
    preprocessing: Preprocessing | DensePreprocessing | Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    task: str | None = None,
) -> Model:
    """Load a trained network and recognize its task.

    Args:
        source: A run folder, a checkpoint, an exported file (.onnx, .xml, .pt2), a hub id, or a
            published name ("convnext_tiny.fb_in1k"); or an `nn.Module` with `preprocessing` and
            `classes`.
        which: "best" loads the run's weights with the best metric, "last" those of the last step.
        device: `cpu`, `cuda`, `mps`, or `auto` for the fastest one available.
        network: For a run that trained an `nn.Module`, a module of the same class; a copy of it
            gets the weights.
        preprocessing: For an `nn.Module`, a `convnext.Preprocessing`; for segmentation and
            detection a `convnext.DensePreprocessing`; or a dict of its fields.
        classes: For an `nn.Module`, the class names in the order of its outputs.
        task: For an `nn.Module` that is not a classifier, its task.

    Raises:
        TypeError: If `network` or `preprocessing` has another type.
        ValueError: If the source cannot be found or read, or a module lacks preprocessing or
            classes.
    """
    from convnext.deploy.runtimes import open_exported
    from convnext.weights.checkpoint import is_exported
    from convnext.weights.sources import check_source

    given = (preprocessing, classes or None, task, network)
    if (
        isinstance(source, str | Path)
        and is_exported(source)
        and which == "best"
        and device in ("auto", "cpu")
        and given == (None,) * 4
    ):
        return Model(open_exported(source))
    if isinstance(source, str | Path) and not Path(source).expanduser().exists():
        check_source(str(source))  # Importing torch takes seconds.
    from torch import nn

    from convnext.tasks.trained import opened

    if isinstance(source, nn.Module):
        return _of_module(source, preprocessing, classes, task, device)
    if preprocessing is not None or classes or task is not None:
        raise ValueError(
            f"only an nn.Module takes preprocessing, classes and task; {source} has its own"
        )
    from convnext.models.given import check_class, provided

    if network is not None:
        from convnext.models.config import GIVEN
        from convnext.weights.sources import card_or_none

        if not isinstance(network, nn.Module):
            raise TypeError(f"network is an nn.Module of the run's class, not {network!r:.60}")
        card = card_or_none(str(source))
        if card is None or GIVEN not in card.model:
            raise ValueError(f"{source} has its own network; leave out network=")
        check_class(network, card.network_class, str(source))
    path = _source_of(source)
    with provided(network):
        own = opened(path if which == "best" else _last_of(path, which), device)
    return Model(replace(own, source=path, is_shared=True, is_best=which == "best"))


def _of_module(
    module: nn.Module, preprocessing: Any, classes: Sequence[str], task: str | None, device: Device
) -> Model:
    """Wrap an `nn.Module` in a `Model`.

    Raises:
        TypeError: If the preprocessing is that of another task, or none.
        ValueError: If preprocessing or classes are missing.
    """
    from convnext.data.preprocessing import DensePreprocessing, Preprocessing
    from convnext.hardware.devices import pick_device
    from convnext.tasks import DEFAULT, task_class
    from convnext.tasks.trained import Opened
    from convnext.weights.checkpoint import Card

    if preprocessing is None or not classes:
        raise ValueError("an nn.Module also needs preprocessing=... and classes=...")
    kind = Preprocessing if task in (None, DEFAULT) else DensePreprocessing
    if isinstance(preprocessing, Mapping):
        usual = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
        preprocessing = kind.from_dict(usual | dict(preprocessing))
    if not isinstance(preprocessing, kind):
        raise TypeError(
            f"preprocessing is a convnext.{kind.__name__} or a dict of its fields, not "
            f"{preprocessing!r:.60}"
        )
    name = type(module).__name__
    card = Card(
        task=task_class(task or DEFAULT).name,
        model=str(getattr(module, "name", name)),
        changes=dict(getattr(module, "changes", {})),
        classes=tuple(classes),
        preprocessing=preprocessing,
    )
    where = pick_device(device)
    own = Opened(
        source=name, model=module.to(where).eval(), card=card, device=where, is_shared=True
    )
    return Model(own)


@overload
def predict(
    source: ModelSource,
    images: Images,
    *,
    output: Folder | None = None,
    stream: Literal[False] = False,
    channels: Literal["rgb", "bgr"] = "rgb",
    device: Device = "auto",
    precision: Precision = "auto",
    max_bad_share: float = 1.0,
    fast: bool = True,
    progress: Show = True,
    **options: Any,
) -> Predictions: ...
@overload
def predict(
    source: ModelSource,
    images: Images,
    *,
    stream: Literal[True],
    output: Folder | None = None,
    channels: Literal["rgb", "bgr"] = "rgb",
    device: Device = "auto",
    precision: Precision = "auto",
    max_bad_share: float = 1.0,
    fast: bool = True,
    progress: Show = True,
    **options: Any,
) -> PredictionStream[Prediction]: ...
@verb
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
) -> Predictions | PredictionStream[Prediction]:
    """Predict the contents of images, with the preprocessing stored in the checkpoint.

    A classifier predicts classes with their probabilities, a segmentation network the class of
    every pixel, a detector the boxes and masks of objects.

    Args:
        source: A run folder, a checkpoint, an exported file, or a hub id; in Python also a loaded
            `Model`.
        images: Paths, folders, globs or URLs; in Python also PIL images, numpy arrays (H, W, 3) or
            (H, W) and torch tensors (3, H, W) or (N, 3, H, W) of uint8, and iterables of these.
        output: Folder for predictions.json and a table; also for masks and overlays
            (segmentation), or pictures and COCO results (detection). On the command line, these
            two write to `predictions` by default.
        stream: Return an iterator that reads and predicts images one at a time, in bounded memory;
            its `summary()` returns what the command line prints.
        channels: The channel order of arrays and tensors: "rgb", or "bgr" as in OpenCV.
        device: `cpu`, `cuda`, `mps` or `auto`; in Python, a loaded model has its own.
        precision: Numeric precision; `auto` is the precision of training.
        max_bad_share: Fail if more than this fraction of the images cannot be read.
        fast: Switch to the fastest backend on this machine if the work takes minutes; outputs
            then differ in their last bits.
        progress: Where to print, as for `train`.
        **options: Task options. Classification: topk, batch_size, wide. Segmentation: window,
            stride, whole, multi_scale, flip, overlays, alpha. Detection: score, nms,
            max_detections, overlays, names, ids.

    Returns:
        A sequence with a `Classification`, `Segmentation` or `Detections` for each readable image,
        in order, and the `bad_images`; with `stream`, an iterator over the same results.

    Raises:
        ValueError: If there is no image, too many cannot be read, an array is ambiguous, or an
            option belongs to another task.
        TypeError: If an object is not an image.
    """
    from convnext.data.sources import image_sources
    from convnext.progress import console_of
    from convnext.tasks import given_options, predict_by_file, predictor_class

    _check_exists(source)
    # Check the images before a network is downloaded.
    sources = image_sources(images, channels=channels)
    model = as_model(source, device)
    if model._file is not None and precision == "auto" and not (stream or output or options):
        answers = predict_by_file(
            model._file, sources, max_bad_share=max_bad_share, console=console_of(progress)
        )
        if answers is not None:
            return answers
    from convnext.results import Predictions
    from convnext.tasks.predict import PredictionStream

    kind = predictor_class(model.task)
    folder = kind.default_folder if output is DEFAULT_FOLDER else output
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


@verb
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
    """Write a feature vector for each image: the last stage's output after pooling and norm.

    Segmentation networks and detectors embed with their backbone.

    Args:
        source: A run folder, a checkpoint, or a hub id; in Python also a loaded `Model`.
        images: Paths, folders, globs or URLs; in Python also images in memory, as for `predict`.
        output: A .npz file with `vectors` and `paths`, or a .csv file with one row per image.
        channels: As for `predict`.
        batch_size: Images per batch; only images of equal size share a batch.
        device: As for `predict`.
        precision: As for `predict`.
        max_bad_share: As for `predict`.
        progress: Where to print, as for `train`.

    Returns:
        `vectors` (N, C) in float32, and the `paths` of the N readable images.

    Raises:
        ValueError: If the source has no features, like an exported file, there is no image, or too
            many cannot be read.
    """
    from convnext.data.sources import image_sources
    from convnext.progress import console_of

    _check_exists(source)
    if output is not None and Path(output).suffix not in (".npz", ".csv"):
        raise ValueError(f"{output} must end in .npz or .csv")
    sources = image_sources(images, channels=channels)
    from convnext.tasks.predict import embed_images

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
    out.print(f"{count_noun(number, 'image')}, {channels_of:,} features each")
    if output is not None:
        found.write(output)
        out.print(f"written: {output}", markup=False, soft_wrap=True)
    return found


def _check_exists(source: Any) -> None:
    """Check that a path or a name of a network is valid; nothing is read or downloaded.

    Raises:
        TypeError: If it is none of the accepted types.
        ValueError: If it cannot be found.
    """
    if not isinstance(source, Model):
        from convnext.weights.sources import check_source

        check_source(_source_of(source))


def as_model(source: Any, device: Device) -> Model:
    """Return a loaded model as it is, or load one for a single job, which may change it.

    Raises:
        ValueError: If the model is on another device than the one given.
    """
    if isinstance(source, Model):
        if device != "auto" and source._file is None:
            from convnext.hardware.devices import pick_device

            asked, own = pick_device(device), source._opened.device
            if asked.type != own.type or asked.index not in (None, own.index):
                raise ValueError(
                    f"the model is on {own}, not on {asked}; load it there: "
                    f'convnext.load(..., device="{asked}")'
                )
        return source
    model = load(_source_of(source), device=device)
    return model if model._file is not None else Model(replace(model._opened, is_shared=False))


def to_export(source: Any) -> tuple[str, str | Opened]:
    """Return the task of a source, and the source as `convnext.tasks.exporting` takes it.

    Raises:
        TypeError: If it is none of the accepted types.
        ValueError: If it cannot be found or read.
    """
    if isinstance(source, Model):
        return source.task, source._own.source if source._file else source._opened
    from convnext.tasks.trained import task_of

    path = _source_of(source)
    return task_of(path), path


def _source_of(source: Any) -> str:
    """Return a source of weights as text.

    Raises:
        TypeError: If it is neither a `str` nor a `Path`.
    """
    return text_of(
        source,
        "a source is a path, a name, or a Model, which convnext.load(module, preprocessing=..., "
        "classes=...) makes of a module",
    )


def _last_of(source: str, which: str) -> str:
    """Return the file with the weights of a run's last step.

    Raises:
        ValueError: If there is no run, or other weights are asked for.
    """
    if which != "last":
        raise ValueError(f"which is {which!r}, but must be 'best' or 'last'")
    from convnext.weights.checkpoint import complete_steps

    states = complete_steps(Path(source) / "checkpoints")
    if not states:
        raise ValueError(f"{source} is not a run folder with a saved state; leave out which='last'")
    return str(states[-1] / "model.safetensors")
