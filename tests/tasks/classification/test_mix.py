"""Mixing and erasing match timm draw for draw."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convnext.tasks.classification.augment import (
    blend_reversed,
    cutmix_box,
    erase,
    mix,
    smooth_one_hot,
)


def batch(n=8, num_classes=5, size=24):
    generator = torch.Generator().manual_seed(n)
    images = torch.randn(n, 3, size, size, generator=generator)
    return images, torch.randint(0, num_classes, (n,), generator=generator)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "prob", "switch_prob"),
    [(0.8, 1.0, 1.0, 0.5), (0.8, 0.0, 1.0, 0.5), (0.0, 1.0, 0.7, 0.5), (0.2, 0.3, 0.5, 0.9)],
)
def test_mix_equals_timm(mixup, cutmix, prob, switch_prob):
    from timm.data import Mixup

    theirs = Mixup(mixup, cutmix, None, prob, switch_prob, "batch", True, 0.1, 5)
    for seed in range(25):
        images, labels = batch()
        state = np.random.get_state()
        np.random.seed(seed)
        expected = theirs(images.clone(), labels)
        np.random.set_state(state)
        mixed = mix(
            images.clone(),
            smooth_one_hot(labels, 5, 0.1),
            mixup=mixup,
            cutmix=cutmix,
            prob=prob,
            switch_prob=switch_prob,
            generator=np.random.RandomState(seed),
        )
        torch.testing.assert_close(mixed[0], expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed[1], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_batches_of_any_size_are_mixed_and_targets_sum_to_one(n, mixup, cutmix):
    for seed in range(10):
        images, labels = batch(n)
        mixed, targets = mix(
            images.clone(),
            smooth_one_hot(labels, 5, 0.1),
            mixup=mixup,
            cutmix=cutmix,
            prob=1.0,
            switch_prob=0.5,
            generator=np.random.RandomState(seed),
        )
        assert mixed.shape == images.shape
        assert torch.allclose(targets.sum(1), torch.ones(n))
        assert (targets >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_blending_in_place_is_blending_with_a_copy(n):
    images, _ = batch(n)
    for layout in (torch.contiguous_format, torch.channels_last):
        blended = images.clone().contiguous(memory_format=layout)
        blend_reversed(blended, 0.7)
        assert torch.equal(blended, images * 0.7 + images.flip(0) * (1 - 0.7))


def test_the_share_of_a_cutmix_is_that_of_the_pixels():
    ones = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
    for seed in range(20):
        mixed, targets = mix(
            ones.clone(),
            smooth_one_hot(torch.arange(4), 4, 0.0),
            mixup=0.0,
            cutmix=1.0,
            prob=1.0,
            switch_prob=0.5,
            generator=np.random.RandomState(seed),
        )
        own = (mixed == ones).float().mean(dim=(1, 2, 3))
        assert torch.allclose(targets.diagonal(), own)


def test_cutmix_boxes_lie_inside():
    generator = np.random.RandomState(0)
    for share in (0.0, 0.01, 0.5, 0.999):
        for _ in range(50):
            top, bottom, left, right = cutmix_box(9, 31, share, generator)
            assert 0 <= top <= bottom <= 9
            assert 0 <= left <= right <= 31


@pytest.mark.parametrize("prob", [0.25, 1.0])
def test_erase_equals_timm(prob):
    from timm.data.random_erasing import RandomErasing

    theirs = RandomErasing(prob, mode="pixel", max_count=1, device="cpu")
    for seed in range(10):
        images, _ = batch(16)
        before, torch_before = random.getstate(), torch.get_rng_state()
        random.seed(seed)
        torch.manual_seed(seed)
        expected = theirs(images.clone())
        random.setstate(before)
        torch.set_rng_state(torch_before)
        noise = torch.Generator().manual_seed(seed)
        erased = erase(images.clone(), prob=prob, boxes=random.Random(seed), noise=noise)
        assert torch.equal(erased, expected)
        if prob == 1:
            assert (erased != images).any(dim=(1, 2, 3)).all()


def test_smoothed_targets_give_the_loss_of_torch():
    _, labels = batch(8)
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    for smoothing in (0.0, 0.1, 0.3):
        ours = F.cross_entropy(logits, smooth_one_hot(labels, 5, smoothing))
        expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(ours, expected)
