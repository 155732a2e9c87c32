"""The images of one condition: a subset of the samples, preprocessed and corrupted."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.data.images import Header, Mode
from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import Samples
from convnext.tasks.classification.dataset import EvalDataset
from convnext.tasks.classification.robustness.corruptions import corrupt


class SomeSamples(Samples):
    """A subset of other samples with new labels."""

    def __init__(self, samples: Samples, positions: Sequence[int]) -> None:
        self.samples = samples
        self.positions = list(positions)
        self.labels = [samples.labels[i] for i in self.positions]

    def source(self, index: int) -> str:
        return self.samples.source(self.positions[index])

    def open(self, index: int, mode: Mode, *, at_least: int | None = None) -> Image.Image:
        return self.samples.open(self.positions[index], mode, at_least=at_least)

    def header(self, index: int) -> Header:
        return self.samples.header(self.positions[index])

    def num_bytes(self, index: int) -> int:
        return self.samples.num_bytes(self.positions[index])

    @property
    def is_remote(self) -> bool:
        return self.samples.is_remote

    def read_ahead(self, index: int) -> None:
        self.samples.read_ahead(self.positions[index])


def choose(
    samples: Samples, *, max_images: int | None, seed: int, labels: Sequence[int] | None = None
) -> SomeSamples:
    """Return the samples of some classes, or a random subset fixed by the seed, in order."""
    wanted = None if labels is None else set(labels)
    positions = [i for i, y in enumerate(samples.labels) if wanted is None or y in wanted]
    if max_images is not None and len(positions) > max_images:
        drawn = np.random.default_rng(seed).choice(len(positions), max_images, replace=False)
        positions = [positions[i] for i in sorted(drawn.tolist())]
    return SomeSamples(samples, positions)


def fingerprint(samples: Samples) -> str:
    """Return a hash of the paths and labels of the images."""
    found = hashlib.sha256()
    for index, label in enumerate(samples.labels):
        found.update(f"{samples.source(index)}\0{label}\n".encode())
    return found.hexdigest()


class CorruptedDataset(EvalDataset):
    """Images corrupted after resizing and cropping, before normalization, as in ImageNet-C."""

    def __init__(self, samples: SomeSamples, preprocessing: Preprocessing, *, seed: int) -> None:
        super().__init__(samples, preprocessing)
        # The corruption of an image must not depend on the subset.
        self.numbers = samples.positions
        self.seed = seed
        self.corruption, self.severity = "clean", 0

    def under(self, corruption: str, severity: int) -> CorruptedDataset:
        """Return the same images and cache under another condition; "clean" for none."""
        other = copy.copy(self)
        other.corruption, other.severity = corruption, severity
        return other

    def _pixels(self, index: int) -> Tensor:
        pixels = super()._pixels(index)
        if self.corruption == "clean":
            return pixels
        changed = corrupt(
            pixels.numpy(),
            self.corruption,
            self.severity,
            seed=self.seed,
            index=self.numbers[index],
        )
        return torch.from_numpy(changed)
