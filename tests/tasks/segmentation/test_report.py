"""The segmentation sections of the report, made from a real evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnext.reports.report import Run, read_run, write_report
from convnext.tasks.figures import draw_bars, draw_confusion
from convnext.tasks.segmentation.evaluate import draw_images
from convnext.tasks.segmentation.metric import Metric
from convnext.tasks.segmentation.report import bars, confusion, per_class, reliability, worst_images

CLASSES = ("<b>road</b>", "tree", "sky", "nowhere")


class Single:
    """A data set of two images; the second cannot be read."""

    def __init__(self) -> None:
        self.preprocessing = self
        self.normalizes, self.mean, self.std = True, (0.0,) * 3, (1.0,) * 3

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        pixels = torch.full((3, 20, 30), 200, dtype=torch.uint8)
        item = type("Item", (), {})()
        item.pixels, item.mask, item.index = pixels, np.zeros((40, 60), np.uint8), index
        item.bad = ((1, "damaged"),) if index else ()
        return item


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 4, *images.shape[2:])


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder with an evaluation of some images, including boundaries."""
    random, metric = np.random.default_rng(0), Metric(CLASSES, boundary=True)
    for index in range(4):
        mask = random.integers(0, 3, (12, 16)).astype(np.uint8)
        found = np.where(random.random(mask.shape) < 0.3, 1, mask)
        mask[:, :2] = 255
        metric.update(found, mask, index)
    evaluation = metric.compute().to_dict()
    cpu: Any = {"device": torch.device("cpu"), "precision": "fp32"}
    pictures = list(draw_images(Constant(), Single(), [0, 1], num_classes=4, **cpu))
    for row, picture in zip(
        evaluation["worst"], [*pictures, "https://x.org/a.jpg", ""], strict=True
    ):
        row |= {"source": f"val/<{row['index']}>.png", "picture": picture}
    evaluation["bad_images"] = [{"source": "broken.jpg", "reason": "cut off"}]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    return tmp_path


def test_the_page_has_all_sections(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_folder / "recipe.yaml").write_text("task: segment\ndata: some\n")
    monkeypatch.setattr("convnext.reports.report.headline", lambda *_: [])
    monkeypatch.setattr("convnext.reports.report.summary", lambda *_: [])
    page = write_report(run_folder).read_text(encoding="utf-8")
    for expected in ("IoU, %", "do not occur and are left out of the mean: nowhere.",
                     "Worst images", "val/&lt;", "data:image/jpeg;base64,", "boundary F1",
                     "no picture", "&lt;b&gt;road", "cut off"):  # fmt: skip
        assert expected in page, expected
    assert "<b>road" not in page
    assert "x.org" not in page
    files = {path.name for path in (run_folder / "figures").iterdir()}
    assert files == {f"{n}.{f}" for n in ("iou", "confusion") for f in ("svg", "png")}


def test_scores_are_sorted_and_absent_classes_are_named(run_folder: Path) -> None:
    run = read_run(run_folder)
    section = per_class(run.evaluation)
    assert section is not None
    rows = section.parts[0].values["rows"]
    assert len(rows) == 3
    ious = [row["iou"] for row in rows]
    assert ious == sorted(ious)
    truth = {row["name"]: row["iou"] for row in run.evaluation["per_class"]}
    assert all(row["iou"] == truth[row["name"]] for row in rows)
    heads = [head for head, _, _ in section.parts[0].values["columns"]]
    assert heads[-2:] == ["boundary F1", "IoU"]


def test_pairs_have_their_share_of_the_row(run_folder: Path) -> None:
    run = read_run(run_folder)
    section = confusion(run.evaluation)
    assert section is not None
    pairs = section.parts[1].values["rows"]
    matrix = np.array(run.evaluation["confusion"])
    assert {pair["prediction"] for pair in pairs} == {"tree"}
    assert [pair["count"] for pair in pairs] == sorted((matrix[0, 1], matrix[2, 1]), reverse=True)
    row = matrix[CLASSES.index(pairs[0]["truth"])]
    assert pairs[0]["share"] == f"{100 * row[1] / row.sum():.1f}\u00a0%"


def test_nothing_measured_has_no_sections(tmp_path: Path) -> None:
    run: Run = read_run(tmp_path)
    assert [section(run.evaluation) for section in (bars, confusion, per_class, worst_images)] == [
        None
    ] * 4


def test_bars_show_their_values() -> None:
    (axes,) = draw_bars(["a", "b"], [90.0, 12.34], label="IoU, %").axes
    assert [bar.get_width() for bar in axes.patches] == [90.0, 12.34]
    assert [text.get_text() for text in axes.texts] == ["90.0", "12.3"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    (axes,) = draw_bars([f"{c}" for c in range(150)], [50.0] * 150, label="IoU, %").axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names[25] == "… 100 more …"
    assert (names[24], names[26], len(names)) == ("24", "125", 51)
    assert len(axes.texts) == 50


def test_a_confusion_in_percent_of_the_row() -> None:
    matrix = np.array([[3_000_000, 1_000_000], [1, 999_999]])
    (axes,) = draw_confusion(matrix, ["a", "b"], percent=True).axes
    assert [text.get_text() for text in axes.texts] == ["75", "25", "100"]


def test_counts_and_absent_classes_are_told_in_words_that_fit() -> None:
    rows = [{"name": str(c), "iou": 0.5 if c < 2 else None} for c in range(100)]
    told = {"num_images": 2, "num_pixels": 12_345, "per_class": rows}
    assert reliability(told) == [
        "Measured on 2 images: 12,345 labeled pixels, 2 classes with an IoU."
    ]
    assert "6.1 million labeled" in reliability(told | {"num_pixels": 6_144_000})[0]
    section = bars({"per_class": rows})
    assert section is not None
    assert section.note.endswith("24, 25 and 74 more.")
