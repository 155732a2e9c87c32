"""`predict` and `embed` for all tasks: a stream of results, files for them, and features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.atomic import one_writer
from convnext.data.bands import Clipping
from convnext.data.drawing import output_names, protect
from convnext.data.images import BadImage
from convnext.data.preprocessing import DensePreprocessing
from convnext.data.sources import Source
from convnext.data.tensors import normalize_batch
from convnext.hardware.devices import autocast
from convnext.progress import progress_bar
from convnext.results import Embeddings
from convnext.results.scores import file_stem
from convnext.tasks import Skipped
from convnext.tasks.trained import Opened, pick_precision

# Stride of the last stage in pixels, of networks for images of any size.
MIN_SIDE = 32

Result = TypeVar("Result")
Skip = Callable[[Source, BadImage], None]
"""Called with an image that cannot be read."""


OverlayFormat = Literal["png", "jpg", "none"]


def check_overlays(overlays: str) -> OverlayFormat:
    """Return a format of pictures.

    Raises:
        ValueError: If there is no such format.
    """
    if overlays not in get_args(OverlayFormat):
        known = ", ".join(get_args(OverlayFormat))
        raise ValueError(f"overlays must be one of {known}, not {overlays!r}")
    return cast(OverlayFormat, overlays)


def summary_table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table with a row per image; columns other than text end with `>`."""
    table = Table(box=None, header_style="bold")
    for name in ("image", *columns):
        right = name.endswith(">")
        table.add_column(
            name.rstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def bad_rows(bad: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return the images that could not be read, as plain values for JSON."""
    return [{"source": source, "reason": reason} for source, reason in bad]


def print_bad(bad: Sequence[tuple[str, str]], console: Console) -> None:
    """Print the images that could not be read, and their number."""
    for source, reason in bad:
        console.print(f"skipped: {source}: {reason}", markup=False)
    if bad:
        console.print(f"unreadable images: {len(bad):,}")


class Predictor(ABC, Generic[Result]):
    """The interface of a task for prediction. An instance serves one job.

    Args:
        own: The network. The subclass may replace `network` by a copy with other settings.
        output: The folder for files; None for no files.
    """

    title: ClassVar[str] = "predicting"
    """The title of the progress bar."""
    default_folder: ClassVar[str] = ""
    """Default folder of the command line; "" to write no files."""

    def __init__(self, own: Opened, output: Path | None) -> None:
        self.own, self.output = own, output
        self.network: nn.Module = own.model
        self.precision = "fp32"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.own.card.classes)

    def begin(self, sources: Sequence[Source] | None) -> None:
        """Prepare for the images, which are known in advance unless `sources` is None."""

    def results(
        self, sources: Iterable[Source], skip: Skip, done: Callable[[int], None]
    ) -> Iterator[tuple[Source, Image.Image | None, Result]]:
        """Yield every readable image with its result; `done` is called for all images.

        The image is None if no file is drawn from it.
        """
        mode = self.own.card.preprocessing.mode
        for source in sources:
            try:
                image = source.open(mode)
                result = self.result(source, image)
            except BadImage as error:
                skip(source, error)
            else:
                yield source, image, result
            done(1)

    def result(self, source: Source, image: Image.Image) -> Result:
        """Return the result of one image, for tasks that process them one by one.

        Raises:
            BadImage: If the network cannot process it.
        """
        raise NotImplementedError

    def files_of(self, name: str) -> tuple[str, ...]:
        """Return the file names of the pictures for an image whose results are called `name`."""
        return ()

    @abstractmethod
    def row(
        self, source: Source, image: Image.Image | None, result: Result, name: str, index: int
    ) -> Any:
        """Write the pictures of an image, and return its row of the summary."""

    @abstractmethod
    def summary(self, rows: Sequence[Any], bad: Sequence[tuple[str, str]]) -> Any:
        """Return a summary with `print`, `write` and `to_dict`."""

    def tensor(self, image: Image.Image) -> Tensor:  # C h w
        """Return an image as the network takes it, on its device."""
        preprocessing = self.own.card.preprocessing
        pixels = torch.from_numpy(preprocessing.pixels(image))[None].to(self.own.device)
        return normalize_batch(preprocessing, pixels)[0]

    def common(self, source: Source, size: tuple[int, int], image: Any) -> dict[str, Any]:
        """Return the fields shared by the results of all tasks."""
        return {
            "source": source.name,
            "path": source.path,
            "size": size,
            "names": self.classes,
            "image": image if source.path is None else None,
        }


# The files that predictors write.
OWN_FILES = r".+\.(json|csv|png|jpg)"


class PredictionStream(Iterator[Result]):
    """Iterator over the results of images, in order; reads images on demand."""

    def __init__(
        self,
        predictor: Predictor[Result],
        sources: list[Source] | Iterator[Source],
        *,
        precision: str = "auto",
        max_bad_share: float = 1.0,
        fast: bool = True,
        console: Console | None = None,
    ) -> None:
        self._total = len(sources) if isinstance(sources, list) else None
        self._skipped = Skipped(self._total, max_bad_share)
        self.bad_images = self._skipped.images
        """Images that could not be read, each with the reason."""
        self._predictor = predictor
        self._sources = sources
        self._fast, self._console = fast, console
        own = predictor.own
        predictor.precision = pick_precision(precision, own.card, own.device)
        self._rows: list[Any] = []
        self._keeps_rows = predictor.output is not None
        self._names = self._output_names()
        self._taken: set[str] = set()
        predictor.begin(sources if isinstance(sources, list) else None)
        self._results = self._run()

    def __next__(self) -> Result:
        return next(self._results)

    def __iter__(self) -> Iterator[Result]:
        return self

    def summary(self) -> Any:
        """Predict the remaining images, and return the summary."""
        self._keeps_rows = True
        for _ in self:
            pass
        return self._predictor.summary(self._rows, self.bad_images)

    def _output_names(self) -> dict[int, str]:
        """Return the names of the results of files, by the sources' `id`; others get names later.

        Raises:
            ValueError: If a result would overwrite an image.
        """
        if not isinstance(self._sources, list):
            return {}
        files = [source.path for source in self._sources if source.path is not None]
        if len(files) < len(self._sources):
            return {}
        names = output_names(files)
        if (folder := self._predictor.output) is not None:
            written = (self._predictor.files_of(name) for name in names)
            protect(files, [folder / file for few in written for file in few])
        return {id(source): name for source, name in zip(self._sources, names, strict=True)}

    def _run(self) -> Iterator[Result]:
        folder = self._predictor.output
        if folder is None:
            yield from self._predict()
            return
        with one_writer(folder, OWN_FILES):
            if self._predictor.files_of("image"):
                # It must not be found with new pictures; the new one appears last.
                (folder / "predictions.json").unlink(missing_ok=True)
            yield from self._predict()

    def _predict(self) -> Iterator[Result]:
        predictor = self._predictor
        network = replace(predictor.own, model=predictor.network).fast(
            precision=predictor.precision,
            num_images=self._total or 0,
            backend="fastest" if self._fast and self._total is not None else "eager",
            console=self._console,
        )
        predictor.network = network
        count = 0
        console = None if self._total is None else self._console
        with progress_bar(predictor.title, self._total or 0, console) as advance:
            found = predictor.results(self._sources, self._skipped, network.watch(advance))
            for source, image, result in found:
                if self._keeps_rows:
                    name = self._name(source)
                    # Unreadable images have an index too.
                    index = count + len(self.bad_images)
                    self._rows.append(predictor.row(source, image, result, name, index))
                count += 1
                yield result
        self._skipped.require(count)
        source.clipping.print(self._console)
        if predictor.output is not None:
            predictor.summary(self._rows, self.bad_images).write(predictor.output)

    def _name(self, source: Source) -> str:
        if id(source) in self._names:
            return self._names[id(source)]
        number, stem = 1, file_stem(source.path or source.name)
        name = stem
        while name.casefold() in self._taken:
            number, name = number + 1, f"{stem}_{number + 1}"
        self._taken.add(name.casefold())
        folder = self._predictor.output
        if folder is not None and source.path is not None:
            files = self._predictor.files_of(name)
            protect([source.path], [folder / file for file in files])
        return name


def embed_images(
    own: Opened,
    sources: list[Source] | Iterator[Source],
    *,
    batch_size: int = 64,
    precision: str = "auto",
    max_bad_share: float = 1.0,
    console: Console | None = None,
) -> tuple[Embeddings, tuple[tuple[str, str], ...]]:
    """Return the features of images, and the unreadable images with the reasons.

    Raises:
        ValueError: If the network has no features, no image can be read, or too many cannot.
    """
    embed: Callable[[Tensor], Tensor] | None = getattr(own.model, "embed", None)
    if embed is None:
        raise ValueError(
            f"{own.source} does not return features; use the run or checkpoint it was exported from"
        )
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, not {batch_size}")
    executed = pick_precision(precision, own.card, own.device)
    total = len(sources) if isinstance(sources, list) else None
    bad = Skipped(total, max_bad_share)
    names: list[str] = []
    vectors: list[NDArray[np.float32]] = []

    preprocessing = own.card.preprocessing
    clipping = Clipping()
    with progress_bar("embedding", total or 0, console if total else None) as advance:
        for found, pixels in _batches(preprocessing, sources, batch_size, bad, clipping):
            images = normalize_batch(preprocessing, torch.from_numpy(pixels).to(own.device))
            if isinstance(preprocessing, DensePreprocessing):
                images = _pad(images)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), autocast(own.device, executed):
                features = embed(images)
            vectors.append(features.float().cpu().numpy())
            names += found
            advance(len(found))
    bad.require(len(vectors))
    clipping.print(console)
    return Embeddings(vectors=np.concatenate(vectors), paths=tuple(names)), tuple(bad.images)


def _pad(images: Tensor) -> Tensor:  # N C h w
    """Pad images that are smaller than one position of the last stage, with their mean."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, max(MIN_SIDE - width, 0), 0, max(MIN_SIDE - height, 0)))


def _batches(
    preprocessing: Any,
    sources: Iterable[Source],
    batch_size: int,
    skip: Callable[[Source, BadImage], None],
    clipping: Clipping,
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Yield names and pixels (N, C, h, w) of consecutive images of the same size."""
    names: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for source in sources:
        try:
            opened = source.open(preprocessing.mode)
            clipping.add(opened)
            image = preprocessing.pixels(opened)
        except BadImage as error:
            skip(source, error)
            continue
        if pixels and (len(pixels) == batch_size or pixels[0].shape != image.shape):
            yield names, np.stack(pixels)
            names, pixels = [], []
        names.append(source.name)
        pixels.append(image)
    if pixels:
        yield names, np.stack(pixels)
