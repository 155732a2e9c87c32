"""What an exported file computes beside the network: pixels to its input, its output to answers.

Everything is plain arithmetic on tensors, so that every exporter takes it. Resizing is two matrix
products whose matrices follow from the image's size; they repeat Pillow's filters and roundings, so
that the network sees the pixels of `convnext predict`, a few of them a level brighter or darker.
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
from convnext.hardware.devices import AMP_DTYPES

# Sides of images that a graph with all preprocessing inside may be given.
LEAST_SIDE, MOST_SIDE = 8, 32768


class Pixels(nn.Module):
    """uint8 (N, H, W, C) to floats (N, C, H, W), 0 to 255 as they are."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 3, 1, 2).float()


class WholeImage(nn.Module):
    """One uint8 image (1, H, W, C) of any size to the pixels of the network, (1, C, size, size).

    Args:
        preprocessing: Of a classifier; its interpolation is followed.

    Raises:
        ValueError: For the interpolation `nearest`, which is no filter.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.size = preprocessing.image_size
        self.interpolation: Interpolation = preprocessing.interpolation
        _refuse_nearest(self.interpolation)
        whole = preprocessing.crop_pct == 1
        # The short side before the centre is cropped; 0: both sides become `size`.
        self.short = 0 if whole else int(self.size / preprocessing.crop_pct)

    def forward(self, image: Tensor) -> Tensor:
        x = image[0].permute(2, 0, 1).float()  # C H W
        rows, columns = torch.ones_like(x[0, :, 0]), torch.ones_like(x[0, 0])
        height, width = rows.sum(), columns.sum()
        down, across = self._sizes(height, width), self._sizes(width, height)
        # Pillow resizes along the rows first, and rounds in between. (Of images much taller than
        # wide today's does the columns first, which changes some pixels by a level.)
        x = round_pixels(x @ self._matrix(columns, width, across).T)
        x = round_pixels(self._matrix(rows, height, down) @ x)
        return x[None]

    def _sizes(self, own: Tensor, other: Tensor) -> Tensor:
        """Return the length that a side of `own` pixels is resized to."""
        if not self.short:
            return torch.full_like(own, self.size)
        longer = torch.floor(self.short * own / other).clamp_min(self.short)
        return torch.where(own <= other, torch.full_like(own, self.short), longer)

    def _matrix(self, ones: Tensor, length: Tensor, full: Tensor) -> Tensor:  # -> size, length
        """Return the weights of a line's pixels in each pixel of the crop."""
        first = torch.round((full - self.size) / 2)
        weights = line_weights(ones, length, full, self.size, first, self.interpolation)
        return weights / weights.sum(1, keepdim=True)


class FittedImage(nn.Module):
    """One uint8 image (1, H, W, C) of any size to the pixels that a detector sees, on a canvas.

    It is resized in its own ratio by the rule of the preprocessing, less where it would not fit,
    and lies in the upper left corner with zeros around it.

    Args:
        preprocessing: Of a detector.
        size: Height and width of the canvas.

    Raises:
        ValueError: For the interpolation `nearest`, which is no filter.
    """

    def __init__(self, preprocessing: DensePreprocessing, size: tuple[int, int]) -> None:
        super().__init__()
        _refuse_nearest(preprocessing.interpolation)
        self.interpolation: Interpolation = preprocessing.interpolation
        self.short, self.long = preprocessing.image_size, preprocessing.max_size
        self.size = size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pixels (1, C, *size), and the height and width (2,) after and before."""
        x = image[0].permute(2, 0, 1).float()  # C H W
        rows, columns = torch.ones_like(x[0, :, 0]), torch.ones_like(x[0, 0])
        own = torch.stack((rows.sum(), columns.sum()))
        fitted = self._fitted(own)
        across = self._matrix(columns, own[1], fitted[1], self.size[1])
        down = self._matrix(rows, own[0], fitted[0], self.size[0])
        x = round_pixels(x @ across.T)
        return round_pixels(down @ x)[None], fitted, own

    def _fitted(self, own: Tensor) -> Tensor:
        """Return the height and width (2,) that an image of this one is resized to.

        Sides are multiplied by `over / under` and rounded, all in products of whole numbers below
        2 ** 31 and their signs: runtimes divide in fp32, which is now and then a pixel off.
        """
        height, width = own.to(torch.int64).unbind()
        longest, shortest = own.max().to(torch.int64), own.min().to(torch.int64)
        one = torch.ones_like(height)
        over, under = (self.short * one, shortest) if self.short else (one, one)
        if self.long:
            is_longer = over * longest - self.long * under > 0
            over = torch.where(is_longer, self.long * one, over)
            under = torch.where(is_longer, longest, under)
        # What is read onto the canvas stays as it is; else the side that needs it most fills it.
        rows, columns = self.size
        is_high = 2 * height * over - (2 * rows + 1) * under >= 0
        is_wide = 2 * width * over - (2 * columns + 1) * under >= 0
        is_tall = height * columns - width * rows > 0
        is_larger = is_high | is_wide
        over = torch.where(is_larger, torch.where(is_tall, rows * one, columns * one), over)
        under = torch.where(is_larger, torch.where(is_tall, height, width), under)
        sides = []
        for side, most in ((height, rows), (width, columns)):
            odd = 2 * torch.arange(most, device=own.device) + 1
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
    """Return the weights of a line's pixels in `size` pixels of a resized line, before their sum.

    Args:
        ones: As many as the line has pixels.
        length: Their number.
        full: That of the resized line.
        size: How many pixels of it are wanted.
        first: The first of them.
        interpolation: The filter.
    """
    i = torch.arange(size, dtype=torch.float32, device=ones.device) + first
    j = torch.cumsum(ones, 0) - 1
    scale = length / full
    centers = (i + 0.5) * scale
    # A filter grows with what it shrinks, which is what keeps fine patterns from aliasing.
    distance = ((j + 0.5 - centers[:, None]) / scale.clamp_min(1)).abs()
    return _cubic(distance) if interpolation == "bicubic" else _linear(distance)


def _refuse_nearest(interpolation: Interpolation) -> None:
    if interpolation == "nearest":
        raise ValueError(
            "images that are resized by nearest neighbours cannot be resized inside of a file: "
            "take --preprocess normalize"
        )


def _linear(x: Tensor) -> Tensor:
    return (1 - x).clamp_min(0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def round_pixels(x: Tensor) -> Tensor:
    """Return the nearest whole values from 0 to 255."""
    return torch.floor(x + 0.5).clamp(0, 255)


class Graph(nn.Module):
    """What a file holds: preparation, network, answer."""

    def __init__(self, prepare: nn.Module, network: nn.Module, finish: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare
        self.network = network
        self.finish = finish

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.finish(self.network(self.prepare(images)))
        return out


class InFloat(nn.Module):
    """A norm that computes in fp32 between halves: squares of activations do not fit into fp16."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.float())
        return out.to(x.dtype)


class Half(nn.Module):
    """A network in half precision, its norms in fp32; fp32 in and out.

    Args:
        network: A folded one; it is taken apart.
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
    """Return a folded network in half precision, its norms in fp32; it is taken apart."""
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
    """Return a network from images to one output with what goes into the file around it, folded.

    Args:
        model: In evaluation mode, on the CPU, in fp32; it is left as it is.
        preprocessing: Of its checkpoint.
        settings: What is in the file.
        finish: From logits to what the file returns.
        adapt: Called with the folded network, before its precision is changed.
        spell_norms: Whether layer norms are written as sums and products for every format.
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
    """Return what comes before the normalization: nothing, `Pixels`, or `whole(*args)`."""
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
    """Return a graph of one input and one output as writers take it.

    Args:
        graph: From `image_graph`.
        preprocessing: Of its checkpoint.
        settings: What is in the file.
        size: Height and width of the images it is traced with.
        open_sides: The least and the largest side, where both are left open.
    """
    batch = settings.fixed_batch
    dims: dict[int, Any] = {}
    if batch is None:
        dims[0] = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if open_sides is not None:
        dims |= open_dims(settings, *open_sides)
    example = example_images(preprocessing, settings, batch or 2, size)
    return Blueprint(graph=graph, examples=(example,), open_dims=(dims,))


def open_dims(settings: ExportSettings, least: int, most: int) -> dict[int, Any]:
    """Return the height and width of images as dimensions that stay open."""
    first = 2 if settings.inside == "none" else 1
    names = ("height", "width")
    return {first + i: torch.export.Dim(n, min=least, max=most) for i, n in enumerate(names)}


def example_images(
    preprocessing: Any, settings: ExportSettings, num: int, size: tuple[int, int]
) -> Tensor:
    """Return random images as a graph takes them; of any size ones that are no special case."""
    random = torch.Generator().manual_seed(0)
    chans, (height, width) = int(preprocessing.in_chans), size
    if settings.inside == "none":
        return torch.randn(num, chans, height, width, generator=random)
    if settings.inside == "full":  # No side is a special case: neither equal nor the target's.
        height, width = height + 37, width + 91
    return torch.randint(0, 256, (num, height, width, chans), generator=random, dtype=torch.uint8)


def as_given(pixels: Tensor, preprocessing: Any, settings: ExportSettings) -> Given:
    """Return pixels, uint8 (1, C, H, W), as a graph takes them."""
    if settings.inside == "none":
        return (normalize_batch(preprocessing, pixels),)
    return (pixels.permute(0, 2, 3, 1).contiguous(),)


def to_pixels(images: Tensor) -> Tensor:  # N C H W -> N H W C
    """Return floats from 0 to 255 as uint8, as a file that normalizes takes them."""
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
