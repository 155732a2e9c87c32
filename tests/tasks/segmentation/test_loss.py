"""The losses against numpy, in fp32 and bf16, and without labeled pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from convnext.tasks.segmentation.model import (
    HardExamples,
    LossSettings,
    cross_entropy,
    dice,
    losses,
)

K = 5


def example(seed: int = 0, ignored: float = 0.3, size: int = 12) -> tuple[Tensor, Tensor]:
    """Logits (2, K, size, size) and masks with ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, K, size, size, generator=generator)
    masks = torch.randint(0, K - 1, (2, size, size), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < ignored] = 255
    return logits, masks.to(torch.uint8)


def per_pixel(logits: Tensor, masks: Tensor) -> tuple[Any, Any, Any]:
    """The cross-entropy of every pixel in float64, its class, and whether it is labeled."""
    values = logits.double().numpy()
    logs = values - np.log(np.exp(values).sum(1, keepdims=True))
    truth = masks.numpy().astype(int)
    labeled = truth != 255
    truth = np.where(labeled, truth, 0)
    n, i, j = np.indices(truth.shape)
    return -logs[n, truth, i, j], truth, labeled


def test_cross_entropy_against_numpy() -> None:
    logits, masks = example()
    values, truth, labeled = per_pixel(logits, masks)
    total = values[labeled].sum()
    assert float(cross_entropy(logits, masks)) == pytest.approx(total / masks.numel())
    found = cross_entropy(logits, masks, average="labelled")
    assert float(found) == pytest.approx(total / labeled.sum())
    weights = np.array([1.0, 0.5, 2.0, 0.0, 3.0])
    weighted = (values * weights[truth])[labeled].sum()
    found = cross_entropy(logits, masks, class_weights=tuple(weights))
    assert float(found) == pytest.approx(weighted / masks.numel())
    found = cross_entropy(logits, masks, class_weights=tuple(weights), average="labelled")
    assert float(found) == pytest.approx(weighted / weights[truth][labeled].sum())
    reference = F.cross_entropy(
        logits, masks.long(), weight=torch.tensor(weights).float(), ignore_index=255
    )
    assert float(found) == pytest.approx(float(reference))


def test_logits_are_resized_to_the_masks() -> None:
    logits, _ = example(size=6)
    _, masks = example(size=23)
    larger = F.interpolate(logits, (23, 23), mode="bilinear", align_corners=False)
    assert torch.equal(cross_entropy(logits, masks), cross_entropy(larger, masks))
    assert torch.equal(dice(logits, masks), dice(larger, masks))


def test_another_value_can_be_the_ignored_one() -> None:
    logits, masks = example()
    moved = masks.to(torch.int64).masked_fill(masks == 255, -1)
    for loss in (cross_entropy, dice):
        assert torch.equal(loss(logits, moved, ignore_index=-1), loss(logits, masks))


@pytest.mark.parametrize("average", ["all", "labelled"])
@pytest.mark.parametrize("min_kept", [0, 10, 60, 10_000])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 1.0])
def test_hard_examples_against_sorting(average: Any, min_kept: int, threshold: float) -> None:
    logits, masks = example()
    values, _, labeled = per_pixel(logits, masks)
    ranked = np.sort(values[labeled])[::-1]
    num_kept = max(int((np.exp(-ranked) < threshold).sum()), min(2 * min_kept, len(ranked)))
    total = ranked[:num_kept].sum()
    expected = total / (masks.numel() if average == "all" else max(num_kept, 1))
    ohem = HardExamples(threshold=threshold, min_kept=min_kept)
    found = cross_entropy(logits, masks, average=average, ohem=ohem)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("classes", [2, K])
def test_dice_against_numpy(classes: int) -> None:
    logits, masks = example()
    logits, masks = logits[:, :classes], torch.where(masks == 255, masks, masks % classes)
    p = logits.double().softmax(1).numpy()
    labeled = masks.numpy() != 255
    scores = []
    for c in range(classes):
        truth = masks.numpy() == c
        if truth.any():
            share = p[:, c][labeled]
            scores.append(2 * p[:, c][truth].sum() / (share.sum() + truth.sum()))
    assert len(scores) == 2 if classes == 2 else len(scores) < classes
    assert float(dice(logits, masks)) == pytest.approx(1 - np.mean(scores), rel=1e-5)


@given(st.integers(0, 10**6))
def test_dice_is_zero_for_the_truth_and_one_for_its_opposite(seed: int) -> None:
    _, masks = example(seed)
    filled = masks.long().masked_fill(masks == 255, 0)
    sure = 1e4 * F.one_hot(filled, K).movedim(-1, 1).float()
    assert float(dice(sure, masks)) == pytest.approx(0, abs=1e-6)
    nowhere = torch.zeros(2, K, 12, 12)
    nowhere[:, K - 1] = 1e4
    assert float(dice(nowhere, masks)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignored", [0.3, 2.0])
@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(),
        LossSettings(average="labelled", dice_weight=1.0),
        LossSettings(ohem=HardExamples(), class_weights=(1.0, 2.0, 0.5, 0.0, 1.0)),
        LossSettings(ohem=HardExamples(min_kept=0), average="labelled", dice_weight=0.5),
    ],
)
def test_losses_and_gradients_are_finite(
    settings: LossSettings, ignored: float, dtype: torch.dtype
) -> None:
    logits, masks = example(ignored=ignored)
    logits = (100 * logits).to(dtype).requires_grad_()
    auxiliary = F.avg_pool2d(logits, 4)
    named = losses({"decode": logits, "auxiliary": auxiliary}, masks, settings)
    assert all(loss.dtype == torch.float32 and loss.ndim == 0 for loss in named.values())
    total = sum(named.values())
    total.backward()
    assert logits.grad is not None
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    if ignored > 1:
        assert total == 0
        assert not logits.grad.any()
    else:
        assert total > 0
        assert logits.grad.any()


def test_losses_have_names_and_weights() -> None:
    logits, masks = example()
    small = F.avg_pool2d(logits, 4)
    named = losses({"decode": logits, "auxiliary": small}, masks, LossSettings(dice_weight=3.0))
    assert list(named) == ["decode_ce", "auxiliary_ce", "decode_dice"]
    assert torch.equal(named["decode_ce"], cross_entropy(logits, masks))
    assert torch.equal(named["auxiliary_ce"], 0.4 * cross_entropy(small, masks))
    assert torch.equal(named["decode_dice"], 3 * dice(logits, masks))
    assert list(losses({"decode": logits}, masks, LossSettings())) == ["decode_ce"]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="must be one of all, labelled"):
        LossSettings(average="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0"):
        LossSettings(class_weights=(1.0, -1.0))
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        HardExamples(threshold=0)
    with pytest.raises(ValueError, match="at least 0"):
        HardExamples(min_kept=-1)
    with pytest.raises(ValueError, match="2 class weights were given for 5 classes"):
        cross_entropy(*example(), class_weights=(1.0, 1.0))
