"""The metric against numpy and scikit-learn."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
)

from convnext.results import Conditions
from convnext.tasks.classification.evaluate import ClassificationEvaluation, Variant
from convnext.tasks.classification.metric import Evaluation, Metric
from convnext.weights.checkpoint import Card

CLASSES = tuple("abcdefg")


def evaluation(
    num_images: int = 500, batch: int = 64
) -> tuple[Evaluation, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_images, len(CLASSES), generator=generator)
    labels = torch.randint(0, len(CLASSES) - 1, (num_images,), generator=generator)
    metric = Metric(CLASSES)
    for start in range(0, num_images, batch):
        part = slice(start, start + batch)
        metric.update(logits[part], labels[part], torch.arange(num_images)[part])
    return metric.compute(num_mistakes=10), logits, labels


def test_against_scikit_learn() -> None:
    result, logits, labels = evaluation()
    predictions = logits.argmax(1)
    every = range(len(CLASSES))
    assert result.top1 == pytest.approx(100 * np.mean((predictions == labels).numpy()))
    top5 = np.argsort(-logits.numpy(), axis=1)[:, :5]
    assert result.top5 == pytest.approx(100 * np.mean((top5 == labels.numpy()[:, None]).any(1)))
    assert result.loss == pytest.approx(
        log_loss(labels, logits.double().softmax(1), labels=list(every)), rel=1e-5
    )
    assert np.array_equal(result.confusion, confusion_matrix(labels, predictions, labels=every))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=every, zero_division=0
    )
    for c, score in enumerate(result.per_class):
        assert (score.name, score.support) == (CLASSES[c], support[c])
        assert (score.precision, score.recall, score.f1) == pytest.approx(
            (precision[c], recall[c], f1[c])
        )
    assert result.per_class[-1].support == 0
    assert result.per_class[-1].recall == 0.0
    # The last class has no image but is predicted: it has no recall, and an F1 of 0.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        balanced = balanced_accuracy_score(labels, predictions)
    assert result.balanced_accuracy == pytest.approx(100 * balanced)
    assert result.macro_f1 == pytest.approx(100 * f1_score(labels, predictions, average="macro"))


def test_macro_scores_leave_out_what_is_neither_there_nor_predicted() -> None:
    metric = Metric(("a", "b", "c"))
    logits = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    metric.update(logits, torch.tensor([0, 0, 0, 1]), torch.arange(4))
    result = metric.compute()
    assert (result.top1, result.balanced_accuracy) == (75.0, 50.0)
    assert result.macro_f1 == pytest.approx(100 * (6 / 7 + 0) / 2)
    assert result.scores()["macro_f1"] == result.macro_f1


def test_batches_do_not_matter() -> None:
    assert evaluation(batch=64)[0] == evaluation(batch=7)[0]


def test_mistakes_are_the_most_confident_ones() -> None:
    result, logits, labels = evaluation()
    probabilities = logits.softmax(1)
    wrong = [i for i in range(len(labels)) if logits[i].argmax() != labels[i]]
    ranked = sorted(wrong, key=lambda i: -float(probabilities[i].max()))[:10]
    assert [mistake.index for mistake in result.mistakes] == ranked
    first = result.mistakes[0]
    assert first.truth == CLASSES[int(labels[first.index])]
    assert first.prediction == CLASSES[int(logits[first.index].argmax())]
    assert first.probability == pytest.approx(float(probabilities[first.index].max()))


@pytest.mark.parametrize(("num_classes", "is_shown"), [(2, False), (5, False), (6, True)])
def test_top5_is_printed_if_it_can_be_below_all(num_classes: int, is_shown: bool) -> None:
    metric = Metric([f"c{i}" for i in range(num_classes)])
    metric.update(torch.eye(num_classes), torch.arange(num_classes), torch.arange(num_classes))
    variant = Variant(weights="ema", step=3, top1=50.0, top5=100.0, loss=0.5)
    result = ClassificationEvaluation(
        evaluation=metric.compute(),
        last=(variant,),
        source="run",
        data="photos",
        card=Card(
            task="classify",
            model="convnext_atto",
            changes={},
            classes=metric.classes,
            preprocessing=None,
        ),
        pictures=(),
        bad_images=(),
        conditions=Conditions(num_images=6, split="val", precision="fp32", backend="folded"),
    )
    out = Console(file=io.StringIO(), width=200)
    result.print(out)
    shown = out.file.getvalue()
    assert shown.count("top-1") == 2
    assert shown.count("top-5") == (2 if is_shown else 0)
    assert result.scores()["top5"] == 100.0


def test_two_classes_have_a_top5_of_all() -> None:
    metric = Metric(("no", "yes"))
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]), torch.arange(2))
    result = metric.compute()
    assert (result.top1, result.top5) == (50.0, 100.0)
    assert result.confusion == ((1, 0), (1, 0))


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no readable image"):
        Metric(CLASSES).compute()


def test_the_classes_of_imagenet_22k_need_no_matrix() -> None:
    names = [str(c) for c in range(21_841)]
    metric = Metric(names)
    logits = torch.zeros(3, len(names))
    logits[range(3), [5, 21_840, 7]] = 1.0
    metric.update(logits, torch.tensor([5, 21_840, 8]), torch.arange(3))
    result = metric.compute()
    assert result.top1 == pytest.approx(200 / 3)
    assert result.confusion == ()
    assert result.per_class[5].recall == 1.0
    assert (result.mistakes[0].truth, result.mistakes[0].prediction) == ("8", "7")
