"""Images with several labels: losses, metrics, thresholds, and a run on the tags of photos."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_score
from torch.nn import functional as F

import convnext
from convnext.api.evaluation import evaluate_robustness
from convnext.api.training import learning_rates
from convnext.data.contents import held_names
from convnext.data.preprocessing import Preprocessing
from convnext.studies.compare import read_results
from convnext.tasks.classification.augment import BatchAugment, Losses
from convnext.tasks.classification.metric import (
    MultiLabelMetric,
    average_precision,
    fitted_threshold,
    parse_thresholds,
)
from convnext.tasks.classification.predict import joined
from convnext.tasks.classification.recipe import ClassificationAugment, LossRecipe
from convnext.weights.checkpoint import Card
from convnext.weights.files import read_file

CLASSES = tuple("abcdef")


def predictions(num: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and targets (N, K) that agree somewhat, with tied scores."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05, 0.02])
    targets = (torch.rand(num, len(CLASSES), generator=generator) < rates).float()
    noise = torch.randn(num, len(CLASSES), generator=generator)
    return ((2 * targets - 1 + 1.5 * noise) * 10).round() / 10, targets


def measured(logits: torch.Tensor, targets: torch.Tensor, batch: int = 64) -> MultiLabelMetric:
    metric = MultiLabelMetric(CLASSES)
    for start in range(0, len(logits), batch):
        part = slice(start, start + batch)
        metric.update(logits[part], targets[part], torch.arange(len(logits))[part])
    return metric


@pytest.mark.parametrize("rule", ["f1", "0.5", "precision:0.8"])
def test_scores_equal_those_of_scikit_learn(rule: str) -> None:
    logits, targets = predictions()
    metric = measured(logits, targets)
    thresholds = metric.fit(rule)
    found = metric.compute(thresholds)
    scores, truth = logits.sigmoid().double().numpy(), targets.numpy()
    predicted = scores >= np.array(thresholds)
    assert found.map == pytest.approx(100 * average_precision_score(truth, scores))
    for kind in ("micro", "macro"):
        expected = f1_score(truth, predicted, average=kind, zero_division=0)
        assert getattr(found, f"{kind}_f1") == pytest.approx(100 * expected), kind
    expected = f1_score(truth, predicted, average="samples", zero_division=1)
    assert found.sample_f1 == pytest.approx(100 * expected)
    each = [log_loss(truth[:, c], scores[:, c]) for c in range(len(CLASSES))]
    assert found.loss == pytest.approx(np.mean(each), rel=1e-5)
    for c, score in enumerate(found.per_class):
        assert score.ap == pytest.approx(average_precision_score(truth[:, c], scores[:, c]))
        assert score.f1 == pytest.approx(f1_score(truth[:, c], predicted[:, c], zero_division=0))
        assert score.support == truth[:, c].sum()
    assert measured(logits, targets, 7).compute(thresholds) == found
    json.dumps(found.to_dict(), allow_nan=False)


def test_fitted_thresholds_are_the_best_ones() -> None:
    logits, targets = predictions()
    scores, truth = logits.sigmoid().double().numpy(), targets.numpy() > 0.5
    for c in (0, 3, 5):
        own, right = scores[:100, c], truth[:100, c]
        best = max(f1_score(right, own >= t) for t in own)
        assert f1_score(right, own >= fitted_threshold(own, right, "f1")) == pytest.approx(best)
        wanted = fitted_threshold(own, right, "precision:0.7")
        reached = [t for t in np.unique(own) if precision_score(right, own >= t) >= 0.7]
        if reached:
            assert precision_score(right, own >= wanted) >= 0.7
            assert (own >= wanted).sum() == (own >= min(reached)).sum()
    assert fitted_threshold(scores[:, 0], np.zeros(len(scores), bool), "f1") == 0.5
    assert average_precision(scores[:, 0], np.zeros(len(scores), bool)) is None


@pytest.mark.parametrize("rule", ["f2", "precision", "precision:2", "1.5", "-1", "0", "nan", ""])
def test_other_thresholds_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"must be f1, a precision such as precision:0.9"):
        parse_thresholds(rule)


def test_classes_that_the_data_does_not_know_do_not_count() -> None:
    logits, targets = predictions()
    known = targets.clone()
    known[:, 2] = torch.nan
    found = measured(logits, known).compute((0.5,) * 6)
    rest = [0, 1, 3, 4, 5]
    assert found.classes == tuple("abdef")
    scores = logits.sigmoid().double().numpy()[:, rest]
    assert found.map == pytest.approx(100 * average_precision_score(targets[:, rest], scores))


def loss_of(name: str, **settings: Any) -> Losses:
    recipe: Any = LossRecipe(name=name, label_smoothing=0.0, **settings)
    return Losses(recipe, counts=(150, 90, 60, 30, 15, 6), num_images=300)


def test_losses_of_several_labels() -> None:
    logits, targets = predictions(8)

    def value(losses: Losses) -> float:
        (found,) = losses(lambda images: images, logits, targets).values()  # type: ignore[arg-type]
        return float(found)

    weight = torch.tensor([1.0, 210 / 90, 4, 5, 5, 5])
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)
    assert value(loss_of("bce", pos_weight=5.0)) == pytest.approx(float(expected))
    plain = F.binary_cross_entropy_with_logits(logits, targets)
    assert value(loss_of("bce", pos_weight=1.0)) == pytest.approx(float(plain))
    probabilities = logits.sigmoid()
    right = torch.where(targets > 0, probabilities, 1 - probabilities)
    alpha = torch.where(targets > 0, 0.4, 0.6)
    focal = -(alpha * (1 - right) ** 1.5 * right.log()).mean()
    assert value(loss_of("focal", gamma=1.5, alpha=0.4)) == pytest.approx(float(focal), rel=1e-5)
    negative = (1 - probabilities + 0.1).clamp(max=1)
    right = torch.where(targets > 0, probabilities, negative)
    exponent = torch.where(targets > 0, 1.0, 3.0)
    asymmetric = -((1 - right) ** exponent * right.log()).mean()
    found = value(loss_of("asymmetric", gamma=3.0, margin=0.1))
    assert found == pytest.approx(float(asymmetric), rel=1e-5)


def test_mixed_images_have_mixed_targets() -> None:
    recipe: Any = ClassificationAugment(
        scale=(1.0, 1.0),
        hflip=0.0,
        rand_augment="none",
        color_jitter=0.0,
        mixup=0.8,
        cutmix=0.0,
        erasing=0.0,
    )
    color = Preprocessing(image_size=8, crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    mix = BatchAugment(recipe, num_classes=3, label_smoothing=0.0, preprocessing=color)
    labels = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    _, targets = mix(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels, step=0)
    share = float(targets[0, 1])
    assert 0 < share < 1
    assert torch.allclose(targets, share * labels + (1 - share) * labels.flip(0))


SMALL: dict[str, Any] = {
    "model": "convnext_atto",
    "network": {
        "norm": "layer",
        "stem": "patchify",
        "drop_path_rate": 0.0,
        "changes": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
    },
    "image_size": 64,
    "batch_size": 16,
    "precision": "fp32",
    "device": "cpu",
    "workers": 0,
    "progress": False,
}


def tags_of_coco(shared: Path, folder: Path, min_images: int = 8) -> Path:
    """Write a table of the categories on each photo that enough training photos have."""
    rows, names = {}, {}
    for split in ("train", "val"):
        content = json.loads((shared / f"instances_{split}.json").read_text())
        names |= {c["id"]: c["name"] for c in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        found: dict[str, set[str]] = {file: set() for file in files.values()}
        for entry in content["annotations"]:
            found[files[entry["image_id"]]].add(names[entry["category_id"]])
        rows |= {file: (split, tags) for file, tags in found.items()}
    train = [tags for split, tags in rows.values() if split == "train"]
    kept = {name for name in names.values() if sum(name in t for t in train) >= min_images}
    folder.mkdir()
    (folder / "images").symlink_to(shared / "images")
    lines = [f"{file},{split},{'|'.join(sorted(t & kept))}" for file, (split, t) in rows.items()]
    (folder / "tags.csv").write_text("\n".join(["image,split,tags", *lines]) + "\n")
    return folder / "tags.csv"


@pytest.fixture(scope="module")
def run(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    root = tmp_path_factory.mktemp("coco")
    table = tags_of_coco(shared_data / "coco_mini_cc", root / "data")
    return convnext.train(
        data=table, output=root / "run", epochs=2, lr=2e-3, mixup=0.2, cutmix=0.5, **SMALL
    )


def test_a_run_on_tags(run: convnext.Run) -> None:
    rows = [row for row in run.metrics if row["kind"] == "val"]
    assert {"map", "micro_f1", "macro_f1", "sample_f1", "loss"} <= rows[-1].keys()
    assert "top1" not in rows[-1]
    recipe = convnext.load(run.folder)._opened.card.recipe
    assert (recipe["loss"]["name"], recipe["loss"]["pos_weight"]) == ("bce", 10.0)
    assert run.best["map"] == max(row["map"] for row in rows)
    scores = convnext.evaluate(run.folder, progress=False)
    assert scores["map"] == pytest.approx(run.best["map"], abs=0.1)
    card = convnext.load(run.folder)._opened.card
    assert len(card.thresholds) == len(card.classes)
    assert len(set(card.thresholds)) > 1
    assert {c: row["threshold"] for c, row in scores.per_class.items()} == dict(
        zip(card.classes, card.thresholds, strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss.name": "cross_entropy"}, "several labels: use loss.name bce, focal, asymmetric"),
        ({"loss.label_smoothing": 0.1}, "is only for the loss cross_entropy, not for bce: leave"),
        ({"loader.sampling": "balanced"}, "images have several labels: leave it out, and weigh"),
        ({"loss.gamma": 2.0}, "only for the loss focal and asymmetric, not for bce"),
        ({"loss.name": "focal", "loss.pos_weight": 3.0}, "only for the loss bce, not for focal"),
        ({"thresholds": "f2"}, "must be f1, a precision such as"),
    ],
)
def test_settings_that_do_not_fit_several_labels(
    run: convnext.Run, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        learning_rates(data=run.data, **{**SMALL, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss.name": "bce"}, "the images have one label each: leave it out"),
        ({"loss.pos_weight": 3.0}, "only for the loss bce, not for cross_entropy"),
        ({"thresholds": "0.5"}, "the most probable class is predicted: leave it out"),
    ],
)
def test_settings_that_do_not_fit_one_label(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        learning_rates(data="digits", **{**SMALL, **settings})


def test_a_network_and_data_of_another_kind_of_labels(run: convnext.Run) -> None:
    with pytest.raises(ValueError, match="predicts several labels for an image, but digits has"):
        convnext.evaluate(run.folder, data="digits", progress=False)


def test_thresholds_of_a_card_are_checked(run: convnext.Run) -> None:
    card = convnext.load(run.folder)._opened.card
    metadata = card.to_metadata()
    assert Card.from_metadata(metadata, "x") == card
    few = [0.5] * (len(card.classes) - 1)
    for wrong in ("[NaN]", "0.5", '["0.5"]', json.dumps(few), json.dumps([*few, 2.0])):
        with pytest.raises(ValueError, match="damaged metadata"):
            Card.from_metadata({**metadata, "thresholds": wrong}, "x")


def test_soft_labels_train_with_the_cross_entropy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet((1, 1, 1), 24)
    rows = []
    for i, row in enumerate(shares):
        pixels = (row * 255).round().astype(np.uint8)
        Image.new("RGB", (16, 16), tuple(pixels.tolist())).save(tmp_path / f"{i}.png")
        rows.append((tmp_path / f"{i}.png", dict(zip("rgb", row.tolist(), strict=True))))
    run = convnext.train(
        data=rows, output=tmp_path / "run", epochs=3, **{**SMALL, "image_size": 16}
    )
    scores = convnext.evaluate(run.folder, progress=False)
    assert scores["loss"] == pytest.approx(run.best["loss"], abs=1e-3)
    assert {"top1", "loss"} <= scores.keys()
    model = convnext.load(run.folder)
    held = [Path(image) for image in sorted(held_names(run.folder))]
    total = 0.0
    for result in model.predict(held, progress=False):
        target = shares[int(Path(str(result.path)).stem)][::-1]  # Classes are sorted: b, g, r.
        total -= float((target * np.log(result.probabilities)).sum())
    assert total / len(held) == pytest.approx(scores["loss"], rel=1e-3)


def test_a_resumed_run_is_the_same(run: convnext.Run, tmp_path: Path) -> None:
    options = {**SMALL, "data": run.data, "epochs": 2, "ema_decay": 0.9}
    whole = convnext.train(output=tmp_path / "whole", **options)

    class Stop(convnext.Callback):
        def on_step_end(self, end: Any) -> None:
            if end.step == 7:
                raise KeyboardInterrupt

    halves = tmp_path / "halves"
    with pytest.raises(KeyboardInterrupt):
        convnext.train(output=halves, callbacks=Stop(), **options, **{"run.save_every": 3})
    convnext.train(output=halves, resume=True, progress=False)
    one, other = (f / "checkpoints" / "best.safetensors" for f in (whole.folder, halves))
    cards = [convnext.load(path)._opened.card for path in (one, other)]
    assert cards[0].thresholds == cards[1].thresholds
    for name, tensor in read_file(one)[0].items():
        assert torch.equal(tensor, read_file(other)[0][name]), name


def test_predictions_of_several_labels(run: convnext.Run, tmp_path: Path) -> None:
    """The written predictions have the scores of the evaluation, by scikit-learn."""
    rows = list(csv.DictReader(Path(run.data).read_text().splitlines()))
    truth = {
        r["image"]: set(filter(None, r["tags"].split("|"))) for r in rows if r["split"] == "val"
    }
    images = [Path(run.data).parent / "images" / name for name in truth]
    model = convnext.load(run.folder)
    found = model.predict(images, output=tmp_path / "wide", wide=True, progress=False)
    scores = model.evaluate(progress=False)
    written = list(csv.DictReader((tmp_path / "wide" / "predictions.csv").read_text().splitlines()))
    assert [Path(row["image"]).name for row in written] == list(truth)
    targets = np.array([[name in truth[image] for name in model.classes] for image in truth])
    shares = np.array([[float(row[name]) for name in model.classes] for row in written])
    chosen = np.array(
        [[name in row["labels"].split("|") for name in model.classes] for row in written]
    )
    some = targets.any(0)
    expected = average_precision_score(targets[:, some], shares[:, some])
    assert scores["map"] == pytest.approx(100 * expected, abs=0.01)
    for kind, measured_classes in (
        ("micro", slice(None)),
        ("macro", some),
        ("samples", slice(None)),
    ):
        value = f1_score(
            targets[:, measured_classes],
            chosen[:, measured_classes],
            average=kind,
            zero_division=1 if kind == "samples" else 0,
        )
        assert scores[f"{kind.removesuffix('s')}_f1"] == pytest.approx(100 * value), kind
    first = found[0]
    assert first.thresholds is not None
    names = [first.names[i] for i in first.labels]
    assert names == [n for n in written[0]["labels"].split("|") if n]
    assert first.to_dict()["labels"] == names
    assert len(first.top(3)) == 3
    model.predict(images[:2], output=tmp_path / "plain", progress=False)
    plain = list(csv.DictReader((tmp_path / "plain" / "predictions.csv").read_text().splitlines()))
    assert [row["labels"] for row in plain] == [row["labels"] for row in written[:2]]
    content = json.loads((tmp_path / "plain" / "predictions.json").read_text())
    assert [p["labels"] for p in content["predictions"]] == [
        [n for n in row["labels"].split("|") if n] for row in plain
    ]


def test_results_without_any_label() -> None:
    result = convnext.Classification(
        size=(4, 4),
        names=("a|b", "c"),
        probabilities=np.array([0.4, 0.1], np.float32),
        thresholds=np.array([0.5, 0.5]),
        source="x.png",
    )
    assert result.labels.tolist() == []
    assert repr(result) == "Classification(x.png: no label)"
    assert result.top(1)[0].name == "a|b"
    assert joined(["c"]) == "c"
    assert joined(["a|b", "c"]) == '["a|b", "c"]'


@pytest.mark.parametrize(
    "format", ["onnx", pytest.param("openvino", marks=pytest.mark.slow), "pt2"]
)
def test_exported_files_have_the_thresholds(run: convnext.Run, tmp_path: Path, format: Any) -> None:
    pytest.importorskip({"pt2": "torch"}.get(format, format))
    model = convnext.load(run.folder)
    suffix = {"onnx": "onnx", "openvino": "xml", "pt2": "pt2"}[format]
    made = model.export(format, output=tmp_path / f"net.{suffix}", progress=False)
    assert made.proof["passed"]
    assert made.proof["metric"] == "F1 of the images"
    assert made.proof["before"] == pytest.approx(made.proof["after"])
    file = convnext.load(made.path)
    images = sorted((Path(run.data).parent / "images").iterdir())[:6]
    for own, other in zip(
        model.predict(images, progress=False), file.predict(images, progress=False), strict=True
    ):
        assert own.labels.tolist() == other.labels.tolist()
        assert np.allclose(own.probabilities, other.probabilities, atol=1e-4)
        assert np.array_equal(own.thresholds, other.thresholds)
    scores, again = (m.evaluate(progress=False, data=run.data, split="val") for m in (model, file))
    assert scores["map"] == pytest.approx(again["map"], abs=0.01)
    assert scores["micro_f1"] == pytest.approx(again["micro_f1"])


def test_the_report_has_the_classes(run: convnext.Run) -> None:
    page = run.report.read_text(encoding="utf-8")
    assert "mAP" in page
    assert "Average precision of every class" in page
    assert "Confusion" not in page
    assert "top-1" not in page
    assert page.count("<td>") > 10


def test_what_measures_top_1_is_refused(run: convnext.Run) -> None:
    with pytest.raises(
        ValueError, match=r"predicts several labels .* these benchmarks measure top-1"
    ):
        evaluate_robustness(run.folder, progress=False)


@pytest.mark.slow
def test_studies_and_several_processes_measure_map(run: convnext.Run, tmp_path: Path) -> None:
    options = {k: v for k, v in SMALL.items() if k not in ("model", "network")}
    names = ["a=convnext_atto:depths=[1,1,1,1],dims=[8,16,24,32]", "timm/resnet18"]
    study = convnext.compare(
        names, data=run.data, epochs=1, speed=False, output=tmp_path / "study", **options
    )
    assert [(r.metric, r.state) for r in study.results] == [("map", "finished")] * 2
    assert [r.score for r in read_results(study.folder / "results.csv")] == [
        r.score for r in study.results
    ]
    whole, parts = (
        convnext.train(data=run.data, output=tmp_path / f"of{n}", epochs=1, devices=n, **SMALL)
        for n in (1, 2)
    )
    assert parts.best["map"] == pytest.approx(whole.best["map"], abs=0.5)
