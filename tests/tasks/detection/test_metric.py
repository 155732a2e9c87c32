"""Average precision against known values and pycocotools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_objects import coco_squares, small_coco

from convnext.data.masks import cut, encode, paste_masks, paste_windows
from convnext.data.objects import DetectionImages, open_dataset
from convnext.data.preprocessing import DensePreprocessing
from convnext.data.samples import BadImages
from convnext.hardware.devices import Ranks
from convnext.tasks.detection.dataset import EvalDataset
from convnext.tasks.detection.inference import Detections, compress, infer
from convnext.tasks.detection.metric import Metric, Scores


def perfect(images: DetectionImages, index: int, shift: int = 0, score: float = 0.9) -> Detections:
    """Return the ground truth of an image, shifted by some pixels."""
    objects = images.objects(index)
    width, height = images.size(index)
    masks = []
    for mask, box in zip(objects.masks, objects.boxes, strict=True):
        full = np.zeros((height, width), np.uint8)
        x1, y1, x2, y2 = box.astype(int).tolist()
        full[y1:y2, x1:x2] = 1
        full = full if mask is None else cut(mask, (0, 0, width, height))
        full = np.roll(full, shift, 1)
        masks.append(compress(encode(full, (0, 0, width, height), (height, width))))
    return Detections(
        boxes=objects.boxes + np.array([shift, 0, shift, 0]),
        scores=np.full(len(objects), score),
        labels=objects.labels,
        masks=tuple(masks),
        size=(height, width),
    )


def test_the_truth_scores_everything_and_nothing_scores_nothing(tmp_path: Path) -> None:
    data = open_dataset(str(coco_squares(tmp_path / "d")))
    metric, empty = (Metric(data.val, data.classes) for _ in range(2))
    for index in range(len(data.val)):
        found = perfect(data.val, index)
        metric.update(index, found)
        nothing = Detections(
            boxes=found.boxes[:0], scores=found.scores[:0], labels=found.labels[:0], masks=(),
            size=found.size,
        )  # fmt: skip
        empty.update(index, nothing)
    best = metric.compute()
    assert best.mask is not None
    assert (best.box.ap, best.mask.ap, best.box.ar) == (100, 100, 100)
    assert best.box.ap_large is None
    assert (best.num_images, best.num_objects) == (4, 12)
    worst = empty.compute()
    assert (worst.box.ap, worst.box.ar) == (0, 0)
    assert worst.to_dict()["num_detections"] == 0
    with pytest.raises(ValueError, match="no readable image"):
        Metric(data.val, data.classes).compute()


def test_a_shift_costs_the_strict_overlaps(tmp_path: Path) -> None:
    data = open_dataset(str(coco_squares(tmp_path / "d")))
    metric = Metric(data.val, data.classes)
    for index in range(len(data.val)):
        metric.update(index, perfect(data.val, index, shift=4))
    found = metric.compute().box
    assert found.ap50 == 100
    assert found.ap75 is not None
    assert found.ap75 < 30


def test_boxes_alone_have_no_score_of_masks(tmp_path: Path) -> None:
    data = open_dataset(str(small_coco(tmp_path / "d")))
    metric = Metric(data.val, data.classes)
    for index in range(len(data.val)):
        metric.update(index, perfect(data.val, index))
    mixed = metric.compute()
    assert mixed.mask is not None
    # The dogs have no mask, so the regions of their boxes do not count.
    assert mixed.mask.per_class == (100, None)
    assert mixed.box.per_class == (100, 100)


class Two(Ranks):
    """Two processes with prepared results."""

    def __init__(self, parts: list[Any]) -> None:
        super().__init__(rank=0, count=2)
        object.__setattr__(self, "parts", parts)

    def gather(self, value: Any) -> list[Any]:
        return self.parts  # type: ignore[attr-defined,no-any-return]


def test_processes_share_their_images(tmp_path: Path) -> None:
    data = open_dataset(str(coco_squares(tmp_path / "d")))
    whole, mine, theirs = (Metric(data.val, data.classes) for _ in range(3))
    for index in range(len(data.val)):
        found = perfect(data.val, index, shift=index)
        whole.update(index, found)
        (mine, theirs)[index % 2].update(index, found)
    mine.merge(Two([mine.found, theirs.found]))
    assert mine.compute() == whole.compute()


def judge_by_pycocotools(metric: Metric, kind: Any) -> list[float]:
    """Return AP, AP50, AP75, AP by size, AR 1, 10, 100 from the original code."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = metric.truth(kind)
        truth.createIndex()
        judge = cocoeval.COCOeval(truth, truth.loadRes(metric.results(kind)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats[:9]]


def listed(scores: Scores) -> list[float]:
    values = (
        scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large,
        scores.ar_1, scores.ar_10, scores.ar,
    )  # fmt: skip
    return [-1.0 if value is None else value / 100 for value in values]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("name", ["coco_mini_cc", "nuclei_instances"])
def test_it_is_what_pycocotools_says(shared_data: Path, kind: Any, name: str) -> None:
    data = open_dataset(str(shared_data / name))
    metric = Metric(data.val, data.classes)
    rng = np.random.default_rng(0)
    for index in range(12):
        found = perfect(data.val, index)
        count = len(found)
        keep = rng.random(count) < 0.8
        moved = found.boxes + rng.normal(0, 2, (count, 4))
        labels = np.where(rng.random(count) < 0.9, found.labels, 0)
        metric.update(
            index,
            Detections(
                boxes=moved[keep],
                scores=rng.random(count)[keep],
                labels=labels[keep],
                masks=tuple(np.array(found.masks, object)[keep]),
                size=found.size,
            ),
        )
    ours = metric.compute()
    scores = ours.box if kind == "bbox" else ours.mask
    assert scores is not None
    assert listed(scores) == pytest.approx(judge_by_pycocotools(metric, kind), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    box=st.tuples(*(st.floats(-5, 35) for _ in range(4))),
    seed=st.integers(0, 99),
)
def test_run_lengths_are_those_of_the_pasted_mask(
    size: tuple[int, int], box: tuple[float, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    shares, boxes = torch.rand(1, 28, 28), torch.tensor([box])
    whole = paste_masks(shares, boxes, size)[0].numpy()
    part, window = next(iter(paste_windows(shares, boxes, size)))
    runs = encode(part.numpy(), window, size)
    assert sum(runs["counts"]) == size[0] * size[1]
    assert min(runs["counts"][1:], default=1) > 0
    for form in (runs, compress(runs)):
        assert np.array_equal(cut(form, (0, 0, size[1], size[0])), whole)


def test_every_process_runs_the_network_equally_often(tmp_path: Path) -> None:
    data = open_dataset(str(coco_squares(tmp_path / "d")))
    Path(data.val.source(0)).write_bytes(b"no image")
    runs = []

    class Counted(torch.nn.Module):
        def forward(self, images: list[torch.Tensor], paste: bool) -> list[dict[str, Any]]:
            runs.append(images)
            nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
            nothing["shares"] = torch.zeros(0, 28, 28)
            return [nothing | {"labels": torch.zeros(0, dtype=torch.long)}]

    # A sharded network would wait forever for the process with a bad image.
    found = infer(
        Counted(),
        EvalDataset(data.val, DensePreprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)),
        device=torch.device("cpu"),
        precision="fp32",
        bad=BadImages(data.val, max_share=0.5),
        ranks=Two([]),
    )
    assert [index for index, _ in found] == [2]
    assert len(runs) == 2
