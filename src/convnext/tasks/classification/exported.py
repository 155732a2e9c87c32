"""The file of a classifier, used as it is: images to classes, without torch for most formats.

`ExportedClassifier` needs numpy, Pillow and the runtime of the file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import BadImage
from convnext.data.sources import Source
from convnext.deploy.runtimes import Array, Exported, outside
from convnext.results import Classification

# Images of a graph that takes any number of them at a time.
BATCH_SIZE = 8


class ExportedClassifier:
    """An exported classifier in its runtime.

    Attributes:
        exported: The file.
        card: Of its network: the names of the classes, and the preprocessing.
    """

    def __init__(self, exported: Exported) -> None:
        self.exported = exported
        self.card = exported.card
        self.graph = exported.graph
        self.preprocessing = outside(self.card.preprocessing, self.graph["inside"])

    def predict(
        self, sources: Iterable[Source], skip: Callable[[Source, BadImage], None]
    ) -> Iterator[Classification]:
        """Yield the classes of every image that can be read, in order.

        Args:
            sources: The images; a batch of them is read at a time.
            skip: Called with an image that cannot be read.
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
                    yield Classification(
                        probabilities=next(values),
                        source=source.name,
                        path=source.path,
                        size=(image.height, image.width),
                        names=tuple(self.card.classes),
                        image=image if source.path is None else None,
                    )

    def probabilities(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of images of any size and mode."""
        parts = [np.zeros((0, len(self.card.classes)), np.float32)]
        for start in range(0, len(images), self._batch_size):
            given = [self._given(image) for image in images[start : start + self._batch_size]]
            outputs = self.exported.run_in_batches(np.stack(given))
            parts.append(outputs if self.graph["output"] == "probabilities" else softmax(outputs))
        return np.concatenate(parts)

    @property
    def _batch_size(self) -> int:
        return self.graph["batch"] or BATCH_SIZE

    def _read(self, source: Source) -> Image.Image | BadImage:
        try:
            return source.open(self.preprocessing.mode)
        except BadImage as error:
            return error

    def _given(self, image: Image.Image) -> Array:
        """Return an image as the file takes it, without the dimension of the batch."""
        pixels = self.preprocessing.pixels(image)
        if self.preprocessing.normalizes:
            normalized: Array = self.preprocessing.normalize(pixels[None])[0]
            return normalized
        given: Array = pixels.transpose(1, 2, 0)
        return given


def softmax(logits: Array) -> NDArray[np.float32]:
    """Return the probabilities of logits (N, K)."""
    shifted = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float32))
    total: NDArray[np.float32] = shifted / shifted.sum(1, keepdims=True)
    return total
