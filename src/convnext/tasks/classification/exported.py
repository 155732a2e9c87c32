"""Prediction with the exported file of a classifier, without torch for most formats.

`ExportedClassifier` needs only numpy, Pillow and the runtime of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import BadImage
from convnext.data.sources import Source
from convnext.deploy.runtimes import Array, Exported, outside
from convnext.results import Classification
from convnext.weights.checkpoint import Card

# Batch size for files with a dynamic batch dimension.
BATCH_SIZE = 8


class ExportedClassifier:
    """An exported classifier in its runtime.

    Attributes:
        exported: The file.
        card: The card of its network, with class names and preprocessing.
    """

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self.card = exported.card
        self.graph = exported.graph
        self.preprocessing = outside(self.card.preprocessing, self.graph["inside"])

    def predict(
        self, sources: Iterable[Source], skip: Callable[[Source, BadImage], None]
    ) -> Iterator[Classification]:
        """Yield the classes of every readable image, in order.

        Args:
            sources: The images, read one batch at a time.
            skip: Called with every image that cannot be read.
        """
        rest = iter(sources)
        with ThreadPoolExecutor() as pool:
            while part := list(islice(rest, self._batch_size)):
                images = list(pool.map(self._read, part))
                good = [image for image in images if isinstance(image, Image.Image)]
                values = iter(self.probabilities(good))
                for source, image in zip(part, images, strict=True):
                    if isinstance(image, BadImage):
                        skip(source, image)
                        continue
                    common = {
                        "source": source.name,
                        "path": source.path,
                        "size": (image.height, image.width),
                        "names": tuple(self.card.classes),
                        "image": image if source.path is None else None,
                    }
                    yield classified(self.card, next(values), common)

    def probabilities(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of images of any size and mode."""
        parts = [np.zeros((0, len(self.card.classes)), np.float32)]
        for start in range(0, len(images), self._batch_size):
            given = [self._input(image) for image in images[start : start + self._batch_size]]
            outputs = self.exported.run_in_batches(np.stack(given))
            activate = sigmoid if self.card.thresholds else softmax
            parts.append(outputs if self.graph["output"] == "probabilities" else activate(outputs))
        return np.concatenate(parts)

    @property
    def _batch_size(self) -> int:
        return self.graph["batch"] or BATCH_SIZE

    def _read(self, source: Source) -> Image.Image | BadImage:
        try:
            return source.open(self.preprocessing.mode)
        except BadImage as error:
            return error

    def _input(self, image: Image.Image) -> Array:
        """Return the file's input for an image, without the batch dimension."""
        pixels = self.preprocessing.pixels(image)
        if self.preprocessing.normalizes:
            normalized: Array = self.preprocessing.normalize(pixels[None])[0]
            return normalized
        given: Array = pixels.transpose(1, 2, 0)
        return given


def classified(
    card: Card, probabilities: NDArray[np.float32], common: Mapping[str, Any]
) -> Classification:
    """Return the result of an image, with the thresholds of a network for several labels."""
    thresholds = np.asarray(card.thresholds) if card.thresholds else None
    return Classification(probabilities=probabilities, thresholds=thresholds, **common)


def sigmoid(logits: Array) -> NDArray[np.float32]:
    """Return the probability of each label from logits (N, K)."""
    # The exponential of a large negative number would overflow.
    small = np.exp(-np.abs(logits.astype(np.float32)))
    found: NDArray[np.float32] = np.where(logits >= 0, 1, small) / (1 + small)
    return found


def softmax(logits: Array) -> NDArray[np.float32]:
    """Return the probabilities of logits (N, K)."""
    shifted = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float32))
    total: NDArray[np.float32] = shifted / shifted.sum(1, keepdims=True)
    return total
