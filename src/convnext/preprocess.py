"""From an image to the network's input: one object for training, evaluation, prediction, export.

It is data that travels with a checkpoint. The pixels come from Pillow's antialiased resize and are
the same bits on every machine; `normalize` runs wherever the batch is, always in fp32.

Paper, appendix A (and its code): below 384 pixels the short side is resized to
int(image_size / 0.875) and the centre is cropped; from 384 up the image is resized to the square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnext.images import Mode, as_mode
from convnext.names import nearest

Interpolation = Literal["bicubic", "bilinear", "nearest"]
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How any image becomes what the network sees; the fields are those of `InputRecipe`."""

    image_size: int
    crop_pct: float
    interpolation: Interpolation = "bicubic"
    in_chans: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: Naming the field, its value and what it can be.
        """
        if not _is_int(self.image_size) or self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size!r}, but must be a positive integer")
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct!r}, but must be above 0 and at most 1")
        if self.interpolation not in get_args(Interpolation):
            choices = ", ".join(get_args(Interpolation))
            raise ValueError(f"interpolation is {self.interpolation!r}, but must be of {choices}")
        if not _is_int(self.in_chans) or self.in_chans not in (1, 3):
            raise ValueError(
                f"in_chans is {self.in_chans!r}, but images are read as greyscale (1) or RGB (3)"
            )
        for name, value in (("mean", self.mean), ("std", self.std)):
            if not isinstance(value, tuple) or not all(map(_is_number, value)):
                raise ValueError(f"{name} is {value!r}, but must be a tuple of numbers")
            if len(value) != self.in_chans:
                raise ValueError(f"{name} has {len(value)} values, but in_chans is {self.in_chans}")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std!r}, but must be above 0")

    @property
    def mode(self) -> Mode:
        """The mode in which images are read: "L" for one channel, "RGB" for three."""
        return "L" if self.in_chans == 1 else "RGB"

    def pixels(self, image: Image.Image) -> Tensor:
        """Return the pixels that the network sees, uint8 (C, H, W), of an image of any mode."""
        image = as_mode(image, self.mode)
        size, resample = self.image_size, RESAMPLING[self.interpolation]
        if self.crop_pct == 1:
            return to_tensor(image.resize((size, size), resample))
        short = int(size / self.crop_pct)
        width, height = fit_short_side(image.size, short)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.resize((width, height), resample)
        return to_tensor(image.crop((left, top, left + size, top + size)))

    def normalize(self, batch: Tensor) -> Tensor:
        """Return uint8 pixels (N, C, H, W) as fp32 of mean 0 and deviation 1, on their device."""
        shape = (1, self.in_chans, 1, 1)
        mean = torch.tensor(self.mean, device=batch.device).view(shape)
        std = torch.tensor(self.std, device=batch.device).view(shape)
        return (batch.to(torch.float32) / 255 - mean) / std  # (N, C, H, W)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the network's input for one image, fp32 (C, H, W)."""
        return self.normalize(self.pixels(image)[None])[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build from what `to_dict` returned.

        Raises:
            ValueError: If a key is missing or unknown, or a value is wrong.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"preprocessing has no field {name!r}{nearest(name, known)}")
        missing = [name for name in known if name not in values]
        if missing:
            raise ValueError(f"preprocessing lacks {', '.join(missing)}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)


def fit_short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Return (width, height) scaled so that the short side is `short`; the long one rounds down."""
    width, height = size
    if width <= height:
        return short, max(short, int(short * height / width))
    return max(short, int(short * width / height)), short


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an "RGB" or "L" image as contiguous uint8 (C, H, W)."""
    array = np.array(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
