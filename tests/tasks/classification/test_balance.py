"""Balanced losses against hand computations and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from convnext.tasks.classification import augment
from convnext.tasks.classification.augment import (
    Balance,
    Losses,
    effective_weights,
    log_frequencies,
    smooth_one_hot,
)
from convnext.tasks.classification.recipe import LossRecipe

COUNTS = (90, 9, 1)


def losses_of(kind: str, counts: tuple[int, ...]) -> Losses:
    recipe: Any = LossRecipe(name="cross_entropy", label_smoothing=0.0, balance=kind)  # type: ignore[arg-type]
    return Losses(recipe, counts, sum(counts))


def test_weights_are_inverse_effective_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = effective_weights(COUNTS).tolist()
    numbers = [(1 - 0.999**n) / (1 - 0.999) for n in COUNTS]
    assert [w / weights[0] for w in weights] == pytest.approx([numbers[0] / n for n in numbers])
    assert sum(w * n for w, n in zip(weights, COUNTS, strict=True)) == pytest.approx(sum(COUNTS))
    # For large beta, the number is that of the images.
    monkeypatch.setattr(augment, "BETA", 1 - 1e-9)
    labels = np.repeat(range(3), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert effective_weights(COUNTS).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_class_without_images_breaks_nothing() -> None:
    weights = effective_weights((90, 0, 10))
    assert weights[1] == weights[2] == weights.max()
    assert torch.isfinite(log_frequencies((90, 0, 10))).all()
    assert log_frequencies((90, 0, 9))[1] == pytest.approx(math.log(1 / 100))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_by_hand(smoothing: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 2.0]])
    targets = smooth_one_hot(torch.tensor([0, 2]), 3, smoothing)
    found = Balance("loss", COUNTS).cross_entropy(logits, targets)
    weights = effective_weights(COUNTS)
    expected = -(weights * targets * logits.log_softmax(1)).sum(1).mean()
    assert float(found) == pytest.approx(float(expected))


def test_the_adjusted_loss_by_hand() -> None:
    # Menon et al., equation 10: the log of 1 + sum over others of (prior ratio) exp(difference).
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    found = Balance("logit", COUNTS).cross_entropy(logits, smooth_one_hot(torch.tensor([2]), 3, 0))
    terms = [COUNTS[c] / COUNTS[2] * math.exp(float(logits[0, c] - logits[0, 2])) for c in (0, 1)]
    assert float(found) == pytest.approx(math.log(1 + sum(terms)), rel=1e-5)


@pytest.mark.parametrize("kind", ["none", "sampler"])
def test_other_kinds_leave_the_loss(kind: str) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets = smooth_one_hot(torch.tensor([0, 1, 2, 0]), 3, 0.1)
    model: Any = torch.nn.Identity()
    found = losses_of(kind, COUNTS)(model, logits, targets)
    assert torch.equal(found["cross_entropy"], F.cross_entropy(logits, targets))


@pytest.mark.parametrize("kind", ["logit", "loss"])
def test_rare_classes_are_found_more_often(kind: str) -> None:
    """On overlapping classes of different sizes, the recall of the rare one rises."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.zeros(950), torch.ones(50)]).long()
    inputs = torch.randn(1000, 1, generator=generator) + 1.5 * labels[:, None]
    recalls = {}
    for balance in ("none", kind):
        torch.manual_seed(0)
        model = torch.nn.Linear(1, 2)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=50)
        targets, losses = smooth_one_hot(labels, 2, 0), losses_of(balance, (950, 50))

        def closure(
            model: Any = model, optimizer: Any = optimizer, t: Any = targets, losses: Any = losses
        ) -> float:
            optimizer.zero_grad()
            loss = losses(model, inputs, t)["cross_entropy"]
            loss.backward()
            return float(loss.detach())

        optimizer.step(closure)
        predicted = model(inputs).argmax(1)
        recalls[balance] = [float((predicted[labels == c] == c).float().mean()) for c in (0, 1)]
    assert recalls["none"][1] < 0.3 < 0.6 < recalls[kind][1]
