"""The heads of UPerNet: batches of one, initial weights, sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from convnext.tasks.segmentation.heads import ConvNormAct, UPerHead, normalize, resize


def test_one_value_per_channel_is_normed_by_the_running_statistics() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.fill_(4.0)
    x = torch.randn(1, 3, 1, 1)
    out = normalize(norm.train(), x)
    assert torch.equal(out, norm.eval()(x))
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (2, 3, 1, 1)])
def test_two_values_per_channel_are_normed_by_their_own(shape: tuple[int, ...]) -> None:
    norm, same = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x = torch.randn(shape)
    assert torch.equal(normalize(norm, x), same(x))
    assert torch.equal(norm.running_mean, same.running_mean)


def test_the_head_trains_on_one_image_and_is_kept_in_sync_by_torch() -> None:
    head = UPerHead((4, 6, 8, 10), channels=8, num_classes=3, dropout=0.1)
    sides = (16, 8, 4, 2)
    maps = [torch.randn(1, d, s, s) for d, s in zip((4, 6, 8, 10), sides, strict=True)]
    assert head(maps).shape == (1, 3, 16, 16)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(head)
    norms = [type(m) for m in synchronised.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 4 + 1 + 3 + 3 + 1
    assert synchronised.eval()(maps).shape == (1, 3, 16, 16)


def test_the_pooled_context_reaches_the_other_corner() -> None:
    torch.manual_seed(0)
    head = UPerHead((4, 6), channels=8, num_classes=3, dropout=0.0).eval()
    maps = [torch.randn(1, 4, 32, 32), torch.randn(1, 6, 16, 16)]
    before = head(maps)
    maps[1][0, :, -1, -1] += 10
    assert (head(maps) != before)[0, :, 0, 0].all()


def test_first_weights_are_those_of_the_reference() -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(64, 96, kernel_size=3)
    assert layer.conv.bias is None
    assert layer.conv.weight.std().item() == pytest.approx(math.sqrt(2 / (96 * 9)), rel=0.02)
    head = UPerHead((4, 8), channels=256, num_classes=100, dropout=0.0)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert head.classifier.bias is not None
    assert not head.classifier.bias.any()


def test_a_map_of_the_right_size_is_not_touched() -> None:
    x = torch.randn(1, 2, 5, 7)
    assert resize(x, (5, 7)) is x
    assert resize(x, (10, 3)).shape == (1, 2, 10, 3)
