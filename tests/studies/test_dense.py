"""Studies of segmentors and detectors: the same table with the metric of the task."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from shapes import write_shapes
from small_objects import coco_squares

from convnext.cli import main
from convnext.studies.compare import entries_of, read_results

SMALL = [
    *("--schedule.epochs", "1", "--run.eval_every", "1", "--seeds", "1", "--jobs", "1"),
    *("--network.changes", "{depths: [1, 1, 1, 1], dims: [16, 16, 32, 32]}"),
]
TASKS = {
    "detect": (
        "box_ap",
        ["box_ap50", "mask_ap", "mask_ap50"],
        ["--detect.channels", "16", "--detect.fc_dim", "32", "--input.image_size", "64"],
    ),
    "segment": ("miou", ["accuracy"], ["--segment.channels", "16", "--segment.crop", "32"]),
}


def test_backbones_become_networks_of_the_task() -> None:
    names = ["convnext_atto", "timm/resnet18", "cascade_mask_rcnn_convnext_atto"]
    entries = entries_of(names, "detect")
    assert [entry.model for entry in entries] == [
        "mask_rcnn_convnext_atto",
        "mask_rcnn_timm/resnet18",
        "cascade_mask_rcnn_convnext_atto",
    ]
    assert [entry.name for entry in entries][:2] == ["convnext_atto", "resnet18"]
    assert entries_of(["roadmap/resnet50/kernel_7"], "segment")[0].model.startswith("upernet_road")
    with pytest.raises(ValueError, match="not a network for --task classify"):
        entries_of(["upernet_convnext_tiny"])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_networks_are_compared_by_the_metric_of_the_task(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metric, others, options = TASKS[task]
    make = {"detect": coco_squares, "segment": write_shapes}[task]
    root = make(tmp_path / "data")
    output = tmp_path / "study"
    command = ["compare", "a=convnext_atto", "b=convnext_atto:act=relu", "--task", task]
    command += ["--data", str(root), "--output", str(output), "--no-speed", *SMALL, *options]
    assert main(command) == 0
    with (output / "results.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {metric, f"best_{metric}", *others} <= set(rows[0])
    assert not {"top1", "top5", "metric", "others", "score"} & set(rows[0])
    results = read_results(output / "results.csv")
    assert [result.metric for result in results] == [metric] * 2
    assert results[0].row().keys() == rows[0].keys()
    assert all(result.score is not None for result in results)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert {"detect": "box AP, %", "segment": "mIoU, %"}[task] in page
    assert "top-1" not in page


def test_the_road_is_walked_by_classification(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco_squares(tmp_path / "data")
    assert main(["roadmap", "--task", "detect", "--data", str(root)]) == 2
    assert "convnext compare roadmap/" in capsys.readouterr().err
