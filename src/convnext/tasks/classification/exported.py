"""The file of a classifier, used as it is: images to probabilities, without torch for most formats.

`ExportedClassifier` needs numpy, Pillow and the runtime of the file alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.deploy.runtimes import Array, Exported, outside

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

    def probabilities(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the probabilities (N, K) of images of any size and mode."""
        size = self.graph["batch"] or BATCH_SIZE
        parts = []
        for start in range(0, len(images), size):
            given = [self._given(image) for image in images[start : start + size]]
            parts.append(self._probabilities(self.exported.run_in_batches(np.stack(given))))
        return np.concatenate(parts) if parts else np.zeros((0, len(self.card.classes)), np.float32)

    def _given(self, image: Image.Image) -> Array:
        """Return an image as the file takes it, without the dimension of the batch."""
        pixels = self.preprocessing.pixels(image)
        if self.preprocessing.normalizes:
            normalized: Array = self.preprocessing.normalize(pixels[None])[0]
            return normalized
        given: Array = pixels.transpose(1, 2, 0)
        return given

    def _probabilities(self, outputs: Array) -> NDArray[np.float32]:
        if self.graph["output"] == "probabilities":
            return outputs.astype(np.float32, copy=False)
        shifted = np.exp(outputs - outputs.max(1, keepdims=True), dtype=np.float32)
        total: NDArray[np.float32] = shifted / shifted.sum(1, keepdims=True)
        return total
