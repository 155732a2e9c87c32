"""Exported pre- and postprocessing computes the same as `predict`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convnext
from convnext.data.preprocessing import Interpolation, Preprocessing
from convnext.deploy.fold import fold
from convnext.deploy.graphs import Half, Pixels, WholeImage
from convnext.deploy.layers import spell_out
from convnext.tasks.classification.export import Probabilities
from convnext.tasks.segmentation.export import Labels


def _image(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    smooth = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    noise = rng.integers(-30, 30, (height, width, 3))
    large = np.array(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(large + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("size", [(40, 40), (37, 90), (301, 200), (16, 500), (33, 32)])
def test_resizing_is_pillows(
    size: tuple[int, int], crop_pct: float, interpolation: Interpolation
) -> None:
    preprocessing = Preprocessing(
        image_size=32, crop_pct=crop_pct, interpolation=interpolation, mean=(0,) * 3, std=(1,) * 3
    )
    image = _image(*size)
    expected = torch.from_numpy(preprocessing.pixels(image)).float()
    given = torch.from_numpy(np.array(image))[None]
    found = WholeImage(preprocessing)(given)[0]
    assert found.shape == expected.shape
    differing = (found - expected).abs()
    if size[1] > 2 * size[0]:  # Pillow's order of the two passes is the other one.
        assert differing.max() <= 8
        assert differing.mean() < 0.5
    else:
        # Pillow's weights have 22 bits, so a half is occasionally rounded the other way.
        assert differing.max() <= 1
        assert (differing > 0).float().mean() < 0.08


def test_nearest_neighbors_are_refused() -> None:
    nearest = Preprocessing(
        image_size=32, crop_pct=1.0, interpolation="nearest", mean=(0,) * 3, std=(1,) * 3
    )
    with pytest.raises(ValueError, match="--preprocess normalize"):
        WholeImage(nearest)


def test_pixels_are_moved_and_not_changed() -> None:
    given = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    found = Pixels()(given)
    assert found.dtype == torch.float32
    assert torch.equal(found[1, 2], given[1, :, :, 2].float())


def test_answers() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.equal(Probabilities()(logits), logits.softmax(1))
    labels = Labels()(torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0)))
    assert labels.shape == (1, 5, 6)
    assert labels.dtype == torch.int32


@torch.no_grad()
def test_norms_in_half_precision_do_not_overflow() -> None:
    torch.manual_seed(0)
    model = convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5,
        layer_scale_init=1.0,
    ).eval()  # fmt: skip
    model.head.fc.weight.data.mul_(40)
    # Activations of the last stage fit into fp16, but their squares do not.
    spatial = model.stages[3][0].spatial
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen: list[float] = []
    spatial.register_forward_hook(lambda *call: seen.append(float(call[2].abs().max())))
    model(images)
    spatial.weight.data.mul_(3000 / seen[0])
    spatial.bias.data.mul_(3000 / seen[0])
    expected = model(images).softmax(1)
    assert seen[1] == pytest.approx(3000, rel=1e-3)
    folded = fold(model, form="conv")
    found = Half(folded, torch.float16)(images).softmax(1)
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() < 2e-2
    # What the norm is protected from, in the form that squares in the precision of its input.
    naive = spell_out(fold(model, form="conv")).half()
    assert (naive(images.half()).float().softmax(1) - expected).abs().max() > 0.05


@pytest.mark.parametrize("two_passes", [True, False])
@torch.no_grad()
def test_spelled_out_norms_are_the_same(two_passes: bool) -> None:
    torch.manual_seed(0)
    model = convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5
    ).eval()
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 1, 0.3)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = model(images)
    found = spell_out(fold(model, form="conv"), two_passes=two_passes)(images)
    assert (found - expected).norm() / expected.norm() < 1e-5
