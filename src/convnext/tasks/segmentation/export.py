"""Export of a segmentor: its graph, its verification, and running the file as a network.

A file takes images of one size, or of any size. With dynamic height and width, everything that
depends on sizes is computed from the tensors. The pooling of UPerNet becomes two small matrix
products, since the formats have no adaptive pooling. Resizing is always an interpolation, without a
test whether the sizes differ. The fusion uses the plain convolution, because which variant saves
work depends on the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.preprocessing import MAX_SIDE
from convnext.data.tensors import normalize_batch, to_batch
from convnext.deploy.export import ExportRequest, ExportSpec
from convnext.deploy.formats import ExportSettings
from convnext.deploy.graphs import image_blueprint, image_graph, run_images
from convnext.deploy.quantize import image_calibration
from convnext.deploy.runtimes import Exported, outside
from convnext.deploy.verify import ScoredComparison
from convnext.hardware.devices import AMP_DTYPES
from convnext.tasks.segmentation.heads import FusionConv, PooledConv, UPerHead
from convnext.tasks.segmentation.inference import FileNetwork, segment_labels
from convnext.tasks.segmentation.metric import class_iou, count_confusion
from convnext.tasks.segmentation.scores import InferenceSettings, inference_of
from convnext.weights.checkpoint import Card, setting_of

MIN_ANY, MAX_ANY = 64, 16384
"""Range of the sides of images of any size. The min is two positions of the coarsest map, since
torch's exporter treats a single one as a special case. Smaller images are padded with the mean
color."""


def export_spec(request: ExportRequest) -> ExportSpec:
    """Return the export spec of a segmentor; see `Task.export_spec`."""
    from convnext.tasks.segmentation.evaluate import open_split

    model, card, source = request.model, request.card, request.source
    settings = request.settings
    check_settings(settings)
    pre, is_open = card.preprocessing, settings.size == "any"
    size = example_size(card, settings)
    is_half = settings.precision in AMP_DTYPES
    gray = mean_pixel(card)

    def adapt(folded: nn.Module) -> nn.Module:
        for module in folded.modules():
            if isinstance(module, FusionConv) and settings.precision == "int8":
                module.mix_first = False  # So that it is quantized as a convolution.
        return AnySizeSegmentor(folded, contiguous=is_half) if is_open else folded

    def blueprint() -> Any:
        graph = image_graph(
            *(model, pre, settings),
            finish=Labels() if settings.answers else nn.Identity(),
            adapt=adapt,
            # Casting the permuted output of a layer norm depends on strides, which must not become
            # conditions in torch's exporter.
            spell_norms=is_open and is_half,
        )
        sides = (MIN_ANY, MAX_ANY) if is_open else None
        return image_blueprint(graph, pre, settings, size=size, open_sides=sides)

    def cut(image: Image.Image) -> Tensor:
        """Return pixels of the file's size, or of one fixed size."""
        pixels = torch.from_numpy(pre.pixels(image))[None]
        return fill_up(pixels[..., : size[0], : size[1]], size, gray)

    return ExportSpec(
        source=source,
        card=card,
        settings=settings,
        facts={
            "batch": settings.fixed_batch,
            "size": None if is_open else list(size),
            "output": "labels" if settings.answers else "logits",
        },
        blueprint=blueprint,
        images=request.proofs(
            lambda name: open_split(None, name, card, source).images,
            lambda pairs, i: (pairs.mask(i), pairs.reader.ignore_index),
        ),
        compare=lambda exported: SegmentorComparison(model, card, exported),
        calibration=image_calibration(model, pre, settings, num_judged=4, pixels=cut),
    )


def check_settings(settings: ExportSettings) -> None:
    """Check that a segmentor supports the settings.

    Raises:
        ValueError: If it does not; the message names the option and an alternative.
    """
    if settings.masks is not None:
        raise ValueError("--masks is only for detectors")
    if settings.inside == "full":
        raise ValueError(
            "a segmentor keeps the aspect ratio of images, so its file takes resized images: use "
            "--preprocess normalize"
        )


def example_size(card: Card, settings: ExportSettings) -> tuple[int, int]:
    """Return the height and width of a file's images, or an example of a dynamic size.

    Raises:
        ValueError: If the settings have no size, and the card's crop is invalid.
    """
    if isinstance(settings.size, tuple):
        return settings.size
    crop = setting_of(card.recipe, "segment.crop", int)
    side = crop or card.preprocessing.image_size or 512
    if not 0 < side <= MAX_SIDE:
        raise ValueError(f"the model card has an invalid segment.crop={side:,}; pass --size")
    # Avoid special cases: the sides differ and are not multiples of a stride.
    return (side + 37, side + 91) if settings.size == "any" else (side, side)


class Labels(nn.Module):
    """Maps logits (N, K, H, W) at the size of the image to classes (N, H, W) of int32."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.argmax(1).to(torch.int32)


class ExportedNetwork(FileNetwork):
    """An exported segmentor as a network: maps images (N, C, H, W) in fp32 to logits (N, K, H, W).

    Files that normalize take pixels from 0 to 255, others normalized images. Labels become logits
    of 1 and 0. For files of one size, windows are padded with the mean color.
    """

    def __init__(self, exported: Exported, card: Card) -> None:
        super().__init__(votes=exported.graph["output"] == "labels")
        self.exported = exported
        self.num_classes = len(card.classes)
        gray = mean_pixel(card)
        self.color = torch.zeros_like(gray) if exported.graph["inside"] == "none" else gray

    def forward(self, images: Tensor) -> Tensor:
        graph, (height, width) = self.exported.graph, images.shape[2:]
        images = fill_up(images, filled_size(graph, height, width), self.color)
        out = run_images(self.exported, images)
        if self.votes:
            out = votes(out, self.num_classes)
        return out[..., :height, :width]


def open_network(exported: Exported) -> tuple[ExportedNetwork, Card]:
    """Return a file as a network, and a card with the preprocessing outside of the file.

    A file of one size slides over larger images; the recipe on the card says so.
    """
    card, size = exported.card, exported.graph["size"]
    network = ExportedNetwork(exported, card).eval()
    if size is not None:
        own = {"mode": "slide", "window": min(size), "stride": max(1, 2 * min(size) // 3)}
        segment = {**card.recipe.get("segment", {}), **own}
        card = replace(card, recipe={**card.recipe, "segment": segment})
    left = outside(card.preprocessing, exported.graph["inside"])
    return network, replace(card, preprocessing=left)


def votes(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels (N, H, W) as logits of 1 and 0, (N, K, H, W), so overlapping windows vote.

    Raises:
        ValueError: If a label is not below the number of classes.
    """
    if labels.numel() and int(labels.max()) >= num_classes:
        raise ValueError(
            f"the file has labels up to {int(labels.max())}, but its card has {num_classes} classes"
        )
    return F.one_hot(labels.long(), num_classes).permute(0, 3, 1, 2).float()


def filled_size(graph: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Return the height and width to which images are padded for a file."""
    if graph["size"] is not None:
        return graph["size"][0], graph["size"][1]
    return max(height, MIN_ANY), max(width, MIN_ANY)


def mean_pixel(card: Card) -> Tensor:
    """Return the pixel nearest to the mean of the normalization, (C,) from 0 to 255."""
    return (255 * torch.tensor(card.preprocessing.mean)).round()


def fill_up(images: Tensor, size: Sequence[int], color: Tensor) -> Tensor:
    """Pad images (N, C, H, W) below and to the right with a color (C,), up to a size.

    Raises:
        ValueError: If they are larger.
    """
    height, width = images.shape[2:]
    if height > size[0] or width > size[1]:
        raise ValueError(
            f"the file takes images of {size[0]} x {size[1]} pixels, not {height} x {width}: use "
            f"--window {min(size)}"
        )
    filled = color.to(images).view(-1, 1, 1).expand(*images.shape[:2], *size).clone()
    filled[:, :, :height, :width] = images
    return filled


class SegmentorComparison(ScoredComparison[Any]):
    """Compares labels (H, W) of a network and its file, computed with the same windows."""

    metric = "mIoU"

    def __init__(self, model: nn.Module, card: Card, exported: Exported) -> None:
        super().__init__()
        file, own = open_network(exported)
        self.num_classes = len(card.classes)
        self.settings = inference_of(own.recipe)
        self.described = described(exported.graph, self.settings)
        self.sides = (
            (_LikeTheFile(model, card, exported.graph), card.preprocessing),
            (file, own.preprocessing),
        )

    def network(self, image: Image.Image) -> Any:
        return self._labels(0, image)

    def file(self, image: Image.Image) -> Any:
        return self._labels(1, image)

    def _labels(self, side: int, image: Image.Image) -> Any:
        model, preprocessing = self.sides[side]
        found = segment_labels(
            model,
            to_batch(preprocessing, image)[0],
            settings=self.settings,
            size=(image.height, image.width),
            device=torch.device("cpu"),
            precision="fp32",
        )
        return found.numpy()

    def add(self, image: Image.Image, network: Any, file: Any, truth: Any) -> None:
        self.same.append(float(np.mean(network == file)))
        if truth is not None:
            mask, ignore = truth
            before, after = (
                count_confusion(x, mask, self.num_classes, ignore) for x in (network, file)
            )
            self.scored.append((before, after))

    def score(self, scored: Sequence[Any]) -> float:
        return float(100 * np.nanmean(class_iou(np.sum(scored, 0))))


def described(graph: dict[str, Any], settings: InferenceSettings) -> str:
    """Return what the network is called whose scores are compared with those of a file.

    With the file's windows, or with labels for logits, its mIoU is not the one of `evaluate`.
    """
    parts = []
    if graph["size"] is not None:
        height, width = graph["size"]
        parts.append(
            f"windows of {settings.window} pixels every {settings.stride}, padded to "
            f"{height} x {width}"
        )
    if graph["output"] == "labels":
        parts.append("labels instead of logits")
    return f"network, run like the file with {' and '.join(parts)}," if parts else "network"


class _LikeTheFile(nn.Module):
    """A segmentor that uses windows of one size, and votes by labels, if its file does."""

    def __init__(self, model: nn.Module, card: Card, graph: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        gray = normalize_batch(card.preprocessing, mean_pixel(card).view(1, -1, 1, 1)).flatten()
        self.color = torch.zeros_like(gray) if graph["inside"] == "none" else gray

    def forward(self, images: Tensor) -> Tensor:
        size = filled_size(self.graph, *images.shape[2:])
        filled = fill_up(images, size, self.color)
        logits: Tensor = self.model(filled)
        if self.graph["output"] == "labels":
            logits = votes(logits.argmax(1), logits.shape[1])
        return logits[..., : images.shape[2], : images.shape[3]]


class AnySizeSegmentor(nn.Module):
    """Maps images (N, C, H, W) of at least 64 x 64 pixels to logits (N, K, H, W).

    Args:
        segmentor: A folded segmentor, or one wrapped in its normalization; its modules are reused.
        contiguous: Whether to make maps contiguous, channels first. Casting a map with other
            strides, as after a layer norm, would put conditions on the sizes into the graph.
    """

    def __init__(self, segmentor: nn.Module, *, contiguous: bool = False) -> None:
        super().__init__()
        self.contiguous = contiguous
        within: Any = segmentor
        self.normalize = getattr(within, "normalize", nn.Identity())
        self.backbone = within.backbone
        self.output_norms = within.output_norms
        self.decode_head = AnySizeHead(within.decode_head)
        if contiguous:
            self.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous() if self.contiguous else images
        maps = self.output_norms(self.backbone.pyramid(self.normalize(images)))
        return resized(self.decode_head(list(maps.values())), images)


class AnySizeHead(nn.Module):
    """A `UPerHead`, with the same logits."""

    def __init__(self, head: UPerHead) -> None:
        super().__init__()
        self.pools = nn.ModuleList(AnySizePool(pool) for pool in head.pools)  # type: ignore[arg-type]
        self.bottleneck, self.laterals, self.outputs = head.bottleneck, head.laterals, head.outputs
        self.fusion, self.classifier = head.fusion, head.classifier

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # N C H_l W_l -> N K H W
        coarsest = maps[-1]
        x = self.bottleneck(torch.cat([coarsest, *(pool(coarsest) for pool in self.pools)], 1))
        outputs = [x]
        for i in reversed(range(len(self.laterals))):
            lateral = self.laterals[i](maps[i])
            x = lateral + resized(x, lateral)
            outputs.insert(0, self.outputs[i](x))
        whole = torch.cat([outputs[0], *(resized(x, outputs[0]) for x in outputs[1:])], 1)
        logits: Tensor = self.classifier(self.fusion(whole))
        return logits


class AnySizePool(nn.Module):
    """A `PooledConv`: averages over scale x scale parts, a 1x1 convolution, and resizing."""

    def __init__(self, pool: PooledConv) -> None:
        super().__init__()
        assert isinstance(pool.pool.output_size, int)
        self.scale = pool.pool.output_size
        self.conv, self.norm, self.act = pool.conv, pool.norm, pool.act

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N D H W
        rows, columns = parts(x[0, 0, :, 0], self.scale), parts(x[0, 0, 0], self.scale)
        pooled = rows @ (x @ columns.T)
        return resized(self.act(self.norm(self.conv(pooled))), x)


def parts(line: Tensor, scale: int) -> Tensor:  # length -> scale length
    """Return the matrix that averages a line of positions over `scale` parts.

    The parts are those of `adaptive_avg_pool2d`: each includes every position that it touches, so
    parts may overlap.
    """
    ones = torch.ones_like(line, dtype=torch.float32)
    length, j = ones.sum(), torch.cumsum(ones, 0) - 1
    i = torch.arange(scale, dtype=torch.float32, device=line.device)[:, None]
    # Where a part ends within a position, adding a half avoids rounding errors.
    first = torch.floor((i * length + 0.5) / scale)
    last = torch.ceil(((i + 1) * length - 0.5) / scale)
    inside = ((j >= first) & (j < last)).float()
    return (inside / inside.sum(1, keepdim=True)).to(line.dtype)


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Return a map resized bilinearly to the height and width of another."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)
