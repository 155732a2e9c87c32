"""Preprocessing and postprocessing inside exported files.

Everything is plain tensor arithmetic, which every exporter supports. Resizing is two matrix
products, with matrices computed from the image's size. They reproduce Pillow's filters and
rounding, so that pixels equal those of `convnext predict`, except for a few that differ by 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convnext.data.preprocessing import (
    DensePreprocessing,
    Interpolation,
    Preprocessing,
)
from convnext.data.tensors import normalize_batch
from convnext.deploy.fold import fold
from convnext.deploy.formats import MAX_BATCH, Blueprint, ExportSettings, Given
from convnext.deploy.layers import Standardize, spell_out
from convnext.deploy.runtimes import Exported
from convnext.hardware.devices import AMP_DTYPES

# Range of the image sides that a graph with full preprocessing accepts.
MIN_SIDE, MAX_SIDE = 8, 32768


class Pixels(nn.Module):
    """Converts uint8 (N, H, W, C) to floats (N, C, H, W) from 0 to 255."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2).float()


class WholeImage(nn.Module):
    """Resizes and crops a uint8 image (1, H, W, C) of any size to pixels (1, C, size, size).

    Args:
        preprocessing: The preprocessing of a classifier.

    Raises:
        ValueError: If the interpolation is `nearest`, which cannot be written as a filter.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.size = preprocessing.image_size
        self.interpolation: Interpolation = preprocessing.interpolation
        _refuse_nearest(self.interpolation)
        whole = preprocessing.crop_pct == 1
        # The short side before the center crop; 0 resizes both sides to `size`.
        self.short = 0 if whole else int(self.size / preprocessing.crop_pct)

    def forward(self, image: Tensor) -> Tensor:
        x = image[0].permute(2, 0, 1).float()  # C H W
        rows, columns = torch.ones_like(x[0, :, 0]), torch.ones_like(x[0, 0])
        height, width = rows.sum(), columns.sum()
        down, across = self._sizes(height, width), self._sizes(width, height)
        # Pillow resizes along the rows first, and rounds in between. (For images much taller than
        # wide, current versions do the columns first, which changes some pixels by 1.)
        x = round_pixels(x @ self._matrix(columns, width, across).T)
        x = round_pixels(self._matrix(rows, height, down) @ x)
        return x[None]

    def _sizes(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the resized length of a side of `own` pixels."""
        if not self.short:
            return torch.full_like(own, self.size)
        longer = torch.floor(self.short * own / other).clamp_min(self.short)
        return torch.where(own <= other, torch.full_like(own, self.short), longer)

    def _matrix(self, ones: Tensor, length: Tensor, full: Tensor) -> Tensor:  # -> size, length
        """Return the resizing matrix of a line, restricted to the crop."""
        first = torch.round((full - self.size) / 2)
        weights = line_weights(ones, length, full, self.size, first, self.interpolation)
        return weights / weights.sum(1, keepdim=True)


class FittedImage(nn.Module):
    """Resizes a uint8 image (1, H, W, C) of any size to fit a canvas of fixed size.

    The image keeps its aspect ratio. It is resized as in preprocessing, or to a smaller size if
    that would not fit, and placed in the upper left corner of a zero canvas.

    Args:
        preprocessing: The preprocessing of a detector.
        size: Height and width of the canvas.

    Raises:
        ValueError: If the interpolation is `nearest`, which cannot be written as a filter.
    """

    def __init__(self, preprocessing: DensePreprocessing, size: tuple[int, int]) -> None:
        super().__init__()
        _refuse_nearest(preprocessing.interpolation)
        self.interpolation: Interpolation = preprocessing.interpolation
        self.short, self.long = preprocessing.image_size, preprocessing.max_size
        self.size = size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pixels (1, C, *size), and height and width (2,) after and before resizing."""
        x = image[0].permute(2, 0, 1).float()  # C H W
        rows, columns = torch.ones_like(x[0, :, 0]), torch.ones_like(x[0, 0])
        own = torch.stack((rows.sum(), columns.sum()))
        fitted = self._fitted(own)
        across = self._matrix(columns, own[1], fitted[1], self.size[1])
        down = self._matrix(rows, own[0], fitted[0], self.size[0])
        x = round_pixels(x @ across.T)
        return round_pixels(down @ x)[None], fitted, own

    def _fitted(self, own: Tensor) -> Tensor:
        """Return the resized height and width (2,) of an image of size `own`.

        Sides are multiplied by `over / under` and rounded, using only signs and products of
        integers below 2 ** 31: runtimes divide in fp32, which is sometimes off by one pixel.
        """
        height, width = own.to(torch.int64).unbind()
        longest, shortest = own.max().to(torch.int64), own.min().to(torch.int64)
        one = torch.ones_like(height)
        over, under = (self.short * one, shortest) if self.short else (one, one)
        if self.long:
            is_longer = over * longest - self.long * under > 0
            over = torch.where(is_longer, self.long * one, over)
            under = torch.where(is_longer, longest, under)
        # An image that fits keeps its size; otherwise its more critical side fills the canvas.
        rows, columns = self.size
        is_high = 2 * height * over - (2 * rows + 1) * under >= 0
        is_wide = 2 * width * over - (2 * columns + 1) * under >= 0
        is_tall = height * columns - width * rows > 0
        is_larger = is_high | is_wide
        over = torch.where(is_larger, torch.where(is_tall, rows * one, columns * one), over)
        under = torch.where(is_larger, torch.where(is_tall, height, width), under)
        sides = []
        for side, max_side in ((height, rows), (width, columns)):
            odd = 2 * torch.arange(max_side, device=own.device) + 1
            reached = (2 * side * over - odd * under >= 0).float().sum()
            sides.append(reached.clamp_min(1))
        return torch.stack(sides)

    def _matrix(self, ones: Tensor, length: Tensor, full: Tensor, size: int) -> Tensor:
        weights = line_weights(ones, length, full, size, full.new_zeros(()), self.interpolation)
        i = torch.arange(size, dtype=torch.float32, device=ones.device)
        inside = (i < full)[:, None]
        return inside * weights / weights.sum(1, keepdim=True).clamp_min(1e-6)


def line_weights(
    ones: Tensor,
    length: Tensor,
    full: Tensor,
    size: int,
    first: Tensor,
    interpolation: Interpolation,
) -> Tensor:  # -> size, length
    """Return the resizing matrix of a line of pixels: the weights of its pixels in each output.

    Args:
        ones: A tensor of ones, as long as the line.
        length: The length of the line.
        full: The length of the resized line.
        size: Number of pixels of the resized line to return.
        first: The first of these pixels.
        interpolation: The filter.
    """
    i = torch.arange(size, dtype=torch.float32, device=ones.device) + first
    j = torch.cumsum(ones, 0) - 1
    scale = length / full
    centers = (i + 0.5) * scale
    # When shrinking, the filter widens by the same factor, which prevents aliasing.
    distance = ((j + 0.5 - centers[:, None]) / scale.clamp_min(1)).abs()
    return _cubic(distance) if interpolation == "bicubic" else _linear(distance)


def _refuse_nearest(interpolation: Interpolation) -> None:
    if interpolation == "nearest":
        raise ValueError(
            "an exported file cannot resize images with the interpolation nearest: use "
            "--preprocess normalize"
        )


def _linear(x: Tensor) -> Tensor:
    return (1 - x).clamp_min(0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def round_pixels(x: Tensor) -> Tensor:
    """Round to integers from 0 to 255."""
    return torch.floor(x + 0.5).clamp(0, 255)


class Graph(nn.Module):
    """The graph of a file: preprocessing, network, postprocessing."""

    def __init__(self, prepare: nn.Module, network: nn.Module, finish: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare
        self.network = network
        self.finish = finish

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.finish(self.network(self.prepare(images)))
        return out


class InFloat(nn.Module):
    """A norm that computes in fp32 in a half-precision network: squares would overflow fp16."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.float())
        return out.to(x.dtype)


class Half(nn.Module):
    """A network in half precision with norms in fp32; inputs and outputs are fp32.

    Args:
        network: A folded network; it is modified.
        dtype: fp16 or bf16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = halved(network, dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(images.to(self.dtype))
        return out.float()


def halved(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a folded network, in place, to half precision with norms in fp32."""
    return _norms_in_float(network.to(dtype))


def _norms_in_float(module: nn.Module) -> nn.Module:
    for name, child in list(module.named_children()):
        if isinstance(child, Standardize | nn.LayerNorm):
            setattr(module, name, InFloat(child.float()))
        else:
            _norms_in_float(child)
    return module


def image_graph(
    model: nn.Module,
    preprocessing: Any,
    settings: ExportSettings,
    *,
    finish: nn.Module,
    adapt: Callable[[nn.Module], nn.Module] = lambda folded: folded,
    spell_norms: bool = False,
) -> Graph:
    """Build the graph of a file around a folded network with one input and one output.

    Args:
        model: A network in evaluation mode, on the CPU, in fp32; it is not changed.
        preprocessing: The preprocessing of its checkpoint.
        settings: The settings of the file.
        finish: Maps logits to the output of the file.
        adapt: Called with the folded network, before its precision is changed.
        spell_norms: Whether to write layer norms as sums and products in every format.
    """
    if settings.inside == "none":
        folded = fold(model, form="conv")
    else:
        mean, std = (
            [255 * v for v in values] for values in (preprocessing.mean, preprocessing.std)
        )
        folded = fold(model, mean=mean, std=std, form="conv")
    folded = adapt(folded)
    if settings.format == "openvino" or spell_norms:
        folded = spell_out(folded, two_passes=settings.precision != "int8")
    if settings.format != "openvino" and settings.precision in AMP_DTYPES:
        folded = Half(folded, AMP_DTYPES[settings.precision])
    return Graph(prepare(settings, WholeImage, preprocessing), folded, finish).eval()


def prepare(settings: ExportSettings, whole: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """Return the steps before normalization: none, `Pixels`, or `whole(*args)`."""
    if settings.inside == "full":
        return whole(*args)
    return Pixels() if settings.inside == "normalize" else nn.Identity()


def image_blueprint(
    graph: nn.Module,
    preprocessing: Any,
    settings: ExportSettings,
    *,
    size: tuple[int, int],
    open_sides: tuple[int, int] | None = None,
) -> Blueprint:
    """Return the blueprint of a graph with one input and one output.

    Args:
        graph: The result of `image_graph`.
        preprocessing: The preprocessing of the checkpoint.
        settings: The settings of the file.
        size: Height and width of the images to trace with.
        open_sides: Minimum and maximum side, if both sides are dynamic.
    """
    batch = settings.fixed_batch
    dims: dict[int, Any] = {}
    if batch is None:
        dims[0] = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if open_sides is not None:
        dims |= open_dims(settings, *open_sides)
    example = example_images(preprocessing, settings, batch or 2, size)
    return Blueprint(graph=graph, examples=(example,), open_dims=(dims,))


def open_dims(settings: ExportSettings, min_size: int, max_size: int) -> dict[int, Any]:
    """Return dynamic dimensions for the height and width of images."""
    first = 2 if settings.inside == "none" else 1
    names = ("height", "width")
    return {first + i: torch.export.Dim(n, min=min_size, max=max_size) for i, n in enumerate(names)}


def example_images(
    preprocessing: Any, settings: ExportSettings, num: int, size: tuple[int, int]
) -> Tensor:
    """Return random inputs of a graph; if it takes any size, images of a generic size."""
    random = torch.Generator().manual_seed(0)
    chans, (height, width) = int(preprocessing.in_chans), size
    if settings.inside == "none":
        return torch.randn(num, chans, height, width, generator=random)
    if settings.inside == "full":  # A generic size: not square, and not the target size.
        height, width = height + 37, width + 91
    return torch.randint(0, 256, (num, height, width, chans), generator=random, dtype=torch.uint8)


def as_given(pixels: Tensor, preprocessing: Any, settings: ExportSettings) -> Given:
    """Convert pixels, uint8 (1, C, H, W), to inputs of a graph."""
    if settings.inside == "none":
        return (normalize_batch(preprocessing, pixels),)
    return (pixels.permute(0, 2, 3, 1).contiguous(),)


def to_pixels(images: Tensor) -> Tensor:  # N C H W -> N H W C
    """Convert floats from 0 to 255 to uint8, the input of a file that normalizes."""
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def run_images(exported: Exported, images: Tensor) -> Tensor:
    """Return the output of a file for images (N, C, H, W) in fp32.

    They are normalized for a file without preprocessing, else pixels from 0 to 255.
    """
    given = images if exported.graph["inside"] == "none" else to_pixels(images)
    return torch.from_numpy(exported.run_in_batches(given.numpy()))
