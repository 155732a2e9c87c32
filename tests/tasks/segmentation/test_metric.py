"""The metric against numpy, scikit-learn and torchmetrics, and its invariants."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

from convnext.hardware.devices import Ranks
from convnext.tasks.segmentation import metric as module
from convnext.tasks.segmentation.metric import NUM_WORST, Evaluation, Metric, count_confusion

CLASSES = tuple("abcdefg")
K = len(CLASSES)


def images(count: int = 5, seed: int = 0, ignored: float = 0.2) -> list[tuple[Any, Any]]:
    """Predictions and masks of several sizes; no mask has the last two classes."""
    random, found = np.random.default_rng(seed), []
    for i in range(count):
        shape = (9 + i % 5, 14 - i % 3)
        mask = random.integers(0, K - 2, shape).astype(np.uint8)
        guess = random.integers(0, K - 1, shape).astype(np.uint8)
        prediction = np.where(random.random(shape) < random.random(), guess, mask)
        mask[random.random(shape) < ignored] = 255
        found.append((prediction, mask))
    return found


def evaluate(pairs: list[tuple[Any, Any]], **options: Any) -> Evaluation:
    metric = Metric(CLASSES, **options)
    for index, (prediction, mask) in enumerate(pairs):
        metric.update(prediction, mask, index)
    return metric.compute()


def test_against_scikit_learn() -> None:
    pairs = images()
    result = evaluate(pairs)
    found = np.concatenate([p[m != 255] for p, m in pairs])
    truth = np.concatenate([m[m != 255] for _, m in pairs])
    assert np.array_equal(result.confusion, confusion_matrix(truth, found, labels=range(K)))
    ious = jaccard_score(truth, found, labels=range(K - 1), average=None, zero_division=0)
    assert [s.iou for s in result.per_class[:-1]] == pytest.approx(ious)
    assert result.miou == pytest.approx(100 * np.mean(ious))
    assert result.accuracy == pytest.approx(100 * accuracy_score(truth, found))
    recalls = [np.mean(found[truth == c] == c) for c in range(K - 2)]
    assert result.mean_accuracy == pytest.approx(100 * np.mean(recalls))
    assert (result.num_images, result.num_pixels) == (len(pairs), len(truth))
    for c, score in enumerate(result.per_class[: K - 2]):
        assert (score.name, score.pixels) == (CLASSES[c], np.sum(truth == c))
        assert score.accuracy == pytest.approx(recalls[c])
        assert score.precision == pytest.approx(np.mean(truth[found == c] == c))
        assert score.f1 == pytest.approx(2 * score.iou / (1 + score.iou))  # type: ignore[operator]
    unseen, absent = result.per_class[-2:]
    assert (unseen.iou, unseen.accuracy, unseen.precision) == (0, None, 0)
    assert (absent.iou, absent.accuracy, absent.precision, absent.f1) == (None,) * 4
    assert (result.loss, result.boundary_f1) == (None, None)


@pytest.mark.slow
def test_against_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    pairs = images()
    found = torch.cat([torch.from_numpy(p).flatten() for p, _ in pairs]).long()
    truth = torch.cat([torch.from_numpy(m).flatten() for _, m in pairs]).long()
    expected = functional.multiclass_jaccard_index(
        found, truth, num_classes=K - 1, ignore_index=255, average="macro"
    )
    assert evaluate(pairs).miou == pytest.approx(100 * float(expected), rel=1e-5)


def test_the_worst_images_are_few_and_the_worst() -> None:
    pairs = images(40)
    result = evaluate(pairs)
    alone = [evaluate([pair]).miou / 100 for pair in pairs]
    ranked = sorted(range(40), key=lambda i: alone[i])[:NUM_WORST]
    assert [score.index for score in result.worst] == ranked
    assert [score.iou for score in result.worst] == pytest.approx([alone[i] for i in ranked])


class Gathered(Ranks):
    """One of several processes with known values."""

    def gather(self, value: Any) -> list[Any]:
        self.seen.append(value)  # type: ignore[attr-defined]
        return self.seen  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_processes_agree_with_one(count: int) -> None:
    pairs, seen = images(33), []
    for rank in range(count):
        metric = Metric(CLASSES, boundary=True)
        for index in range(rank, len(pairs), count):
            metric.update(*pairs[index], index, loss=float(index))
        ranks = Gathered(rank, count)
        object.__setattr__(ranks, "seen", seen)
        metric.merge(ranks)
    alone = Metric(CLASSES, boundary=True)
    for index in reversed(range(len(pairs))):
        alone.update(*pairs[index], index, loss=float(index))
    assert metric.compute() == alone.compute()


def test_the_loss_is_that_of_a_labelled_pixel() -> None:
    metric = Metric(CLASSES)
    for index, (prediction, mask) in enumerate(images(2)):
        metric.update(torch.from_numpy(prediction), torch.from_numpy(mask), index, loss=3.5)
    result = metric.compute()
    assert result.loss == pytest.approx(7 / result.num_pixels)
    metric.update(*images(1)[0], 2)
    assert metric.compute().loss is None


labels = st.integers(0, K - 1)


@given(st.data())
def test_invariants(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    pixels = st.lists(labels, min_size=height * width, max_size=height * width)
    shape = (height, width)
    truth = np.array(data.draw(pixels), np.uint8).reshape(shape)
    found = np.array(data.draw(pixels), np.uint8).reshape(shape)
    there = np.array(data.draw(st.lists(st.booleans(), min_size=truth.size, max_size=truth.size)))
    there = there.reshape(shape)
    there[0, 0] = True
    mask = np.where(there, truth, 255)
    result = evaluate([(found, mask)])
    matrix = np.array(result.confusion)
    assert matrix.sum() == result.num_pixels == there.sum()
    assert 0 <= result.miou <= 100
    assert (result.miou == 100) == (result.accuracy == 100) == bool((found == truth)[there].all())
    swapped = count_confusion(mask, np.where(there, found, 255), K)
    assert np.array_equal(swapped, matrix.T)
    turn = data.draw(st.permutations(range(K)))
    turned = np.array([*turn, *range(K, 256)])
    renamed = evaluate([(turned[found], turned[mask])])
    assert renamed.miou == pytest.approx(result.miou)
    assert renamed.accuracy == result.accuracy
    halves = [(found[:1], mask[:1]), (found[1:], mask[1:])] if height > 1 else [(found, mask)]
    assert evaluate(halves).miou == result.miou


def test_large_images_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    (prediction, mask), *_ = images()
    whole = count_confusion(prediction, mask, K)
    monkeypatch.setattr(module, "CHUNK", 7)
    assert np.array_equal(count_confusion(prediction, mask, K), whole)
    assert whole.sum() > 7


def test_more_classes_than_a_byte() -> None:
    metric = Metric([str(c) for c in range(1200)], ignore_index=65535)
    mask = np.array([[5, 1100], [65535, 7]], np.uint16)
    metric.update(np.array([[5, 1100], [3, 8]], np.int32), mask, 0)
    result = metric.compute()
    assert result.confusion == ()
    assert result.accuracy == pytest.approx(200 / 3)
    assert result.miou == pytest.approx(50)


def test_results_are_json_without_nan() -> None:
    text = json.dumps(evaluate(images(), boundary=True).to_dict(), allow_nan=False)
    assert json.loads(text)["per_class"][-1]["iou"] is None


def test_what_cannot_be_evaluated() -> None:
    with pytest.raises(ValueError, match="no readable image to evaluate on"):
        Metric(CLASSES).compute()
    metric = Metric(CLASSES)
    metric.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 0)
    with pytest.raises(ValueError, match="no readable image with labeled pixels"):
        metric.compute()
    with pytest.raises(ValueError, match="resize logits to the mask"):
        metric.update(np.zeros((2, 2)), np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="the mask has the value 9"):
        metric.update(np.zeros((2, 2)), np.array([[0, 9], [1, 255]]), 0)
    with pytest.raises(ValueError, match="the prediction has the value 255"):
        metric.update(np.full((1, 1), 255), np.zeros((1, 1)), 0)
    with pytest.raises(ValueError, match="cannot be distinguished from ignored"):
        Metric([str(c) for c in range(256)])
