"""A detector as one graph finds what the detector finds, in every runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_detectors import METHODS, sharpen, small_detector
from torch import Tensor, nn
from torch.testing import assert_close

from convnext.deploy.fold import fold
from convnext.deploy.runtimes import quiet
from convnext.tasks.detection.export.graph import OUTPUTS, DetectorGraph, pack, packing
from convnext.tasks.detection.model.detector import Detector
from convnext.tasks.detection.model.heads import pool_rois, roi_levels

SIZE = (64, 96)
NUM = 40
SETTINGS: dict[str, Any] = {
    "score_threshold": 0.2,
    "nms_threshold": 0.5,
    "max_detections": NUM,
}
Run = Callable[[Tensor], Sequence[Any]]


def sharp_detector(method: str, **changes: Any) -> Detector:
    """Return a detector whose boxes, scores and masks differ from each other."""
    model: Any = small_detector(f"{method}convnext_atto", **{**SETTINGS, **changes}).eval()
    sharpen(model)
    return model


def graph_of(model: nn.Module, **changes: Any) -> DetectorGraph:
    folded: Any = fold(model, form="conv")
    return DetectorGraph(folded, **{"size": SIZE, **SETTINGS, **changes}).eval()


@functools.cache
def program(method: str) -> torch.export.ExportedProgram:
    """Return a graph from torch.export, traced on another image."""
    with quiet(), torch.no_grad():
        return torch.export.export(graph_of(sharp_detector(method)), (torch.ones(1, 3, *SIZE),))


def images() -> list[Tensor]:
    """Return two images with objects, and one without any."""
    noise = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return [noise[:1], 0.3 * noise[1:], torch.zeros(1, 3, *SIZE)]


def check(model: Detector, run: Run) -> list[int]:
    """Assert that a runtime finds the detector's objects; return their number on each image."""
    counts = []
    for image in images():
        with torch.inference_mode():
            (expected,) = model([image[0]], paste=False)
        found = {
            name: torch.from_numpy(np.array(out))
            for name, out in zip(OUTPUTS, run(image), strict=True)
        }
        num = len(expected["scores"])
        assert [len(out) for out in found.values()] == [NUM] * 4
        assert_close(found["labels"][:num], expected["labels"])
        assert_close(found["scores"][:num], expected["scores"], atol=1e-5, rtol=0)
        assert_close(found["boxes"][:num], expected["boxes"], atol=1e-3, rtol=0)
        assert_close(found["masks"][:num], expected["shares"], atol=1e-4, rtol=0)
        assert not any(found[name][num:].any() for name in OUTPUTS[:3])
        counts.append(num)
    return counts


@torch.inference_mode()
def run_torch(module: Callable[[Tensor], Sequence[Tensor]], image: Tensor) -> list[Any]:
    return [out.numpy() for out in module(image)]


@pytest.mark.parametrize(("num_classes", "score_threshold"), [(1, 0.53), (5, 0.2)])
@pytest.mark.parametrize("method", METHODS)
def test_a_graph_finds_what_its_detector_finds(
    method: str, num_classes: int, score_threshold: float
) -> None:
    model = sharp_detector(method, num_classes=num_classes, score_threshold=score_threshold)
    graph = graph_of(model, score_threshold=score_threshold)
    counts = check(model, functools.partial(run_torch, graph))
    assert any(0 < count < NUM for count in counts)
    assert counts[2] == 0


@pytest.mark.parametrize("method", METHODS)
def test_the_most_that_may_be_found(method: str) -> None:
    model = sharp_detector(method, max_detections=3, num_proposals=2000)
    graph = graph_of(model, max_detections=3)
    (image, *_) = images()
    with torch.inference_mode():
        (expected,) = model([image[0]], paste=False)
        boxes, scores, labels, masks = graph(image)
    # More proposals are requested than there are anchors, and fewer detections than are found.
    assert len(scores) == len(expected["scores"]) == 3
    for found, name in ((boxes, "boxes"), (labels, "labels"), (scores, "scores")):
        assert_close(found, expected[name], atol=1e-3, rtol=0)
    assert_close(masks, expected["shares"], atol=1e-4, rtol=0)


def test_without_masks() -> None:
    model = sharp_detector("mask_rcnn_")
    whole, boxes_only = graph_of(model), graph_of(model, masks=False)
    (image, *_) = images()
    with torch.inference_mode():
        found = boxes_only(image)
        assert len(found) == len(OUTPUTS) - 1 == 3
        for a, b in zip(found, whole(image), strict=False):
            assert torch.equal(a, b)


def test_half_precision_leaves_boxes_and_scores_in_fp32() -> None:
    model = sharp_detector("mask_rcnn_").to(torch.bfloat16)
    (image, *_) = images()
    with torch.inference_mode():
        boxes, scores, labels, masks = graph_of(model)(image)
        (expected,) = model([image[0].bfloat16()], paste=False)
    assert {t.dtype for t in (boxes, scores, masks)} == {torch.float32}
    num = len(expected["scores"])
    assert num > 0
    # Folding rounds weights differently, which changes boxes and scores by half precision.
    assert_close(scores[0], expected["scores"][0].float(), atol=0.1, rtol=0)
    assert_close(labels[0], expected["labels"][0])


@pytest.mark.parametrize("method", METHODS)
def test_torch_export_keeps_a_graph(method: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    torch.export.save(program(method), path)
    module: Any = torch.export.load(path).module()
    check(sharp_detector(method), functools.partial(run_torch, module))


@pytest.mark.parametrize("method", METHODS)
def test_onnx_runtime_runs_a_graph(method: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    with quiet():
        torch.onnx.export(
            program(method),
            (),
            str(path),
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [out.shape for out in session.get_outputs()] == [
        [NUM, 4],
        [NUM],
        [NUM],
        [NUM, 28, 28],
    ]
    check(sharp_detector(method), lambda image: session.run(None, {"image": image.numpy()}))


@pytest.mark.parametrize("method", METHODS)
def test_openvino_runs_a_traced_graph(method: str) -> None:
    openvino = pytest.importorskip("openvino")
    model = sharp_detector(method)
    with quiet(), torch.no_grad():
        converted = openvino.convert_model(
            graph_of(model),
            example_input=torch.ones(1, 3, *SIZE),
            input=[(openvino.PartialShape([1, 3, *SIZE]), openvino.Type.f32)],
        )
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()

    def run(image: Tensor) -> list[Any]:
        answers = request.infer([image.numpy()])
        return [np.array(answers[i]) for i in range(len(OUTPUTS))]

    check(model, run)


def test_boxes_are_pooled_as_from_maps_of_their_own() -> None:
    random = torch.Generator().manual_seed(0)
    size, strides = (512, 512), [4, 8, 16, 32]
    maps = [torch.randn(1, 3, size[0] // s, size[1] // s, generator=random) for s in strides]
    height, width = size
    corner = torch.rand(40, 2, generator=random) * torch.tensor([width, height]) / 2
    sides = torch.exp2(3 + 6 * torch.rand(40, 2, generator=random))
    limit = torch.tensor([width, height, width, height]).float()
    boxes = torch.minimum(torch.cat((corner, corner + sides), 1), limit)
    # On every border, without any width, and of the whole image.
    boxes[:3] = torch.tensor([[0.0, 0, width, height], [width, 9, width, 90], [0, 0, 0, 0]])
    assert roi_levels(boxes, strides).unique().tolist() == [0, 1, 2, 3]
    graph = DetectorGraph(small_detector("mask_rcnn_convnext_atto"), size=size, **SETTINGS)
    assert_close(
        graph.pool(pack(maps), boxes, 7), pool_rois(maps, strides, [boxes], 7), atol=1e-4, rtol=0
    )


def test_points_are_found_in_packed_maps() -> None:
    maps = [torch.arange(6.0).view(1, 1, 2, 3), torch.full((1, 1, 1, 1), 9.0)]
    packed = pack(maps)
    assert packed.shape == (1, 1, 4 + 3, 5)
    scales, corners = packing((8, 12), [4, 8])
    assert scales.tolist() == [1 / 4, 1 / 8]
    for map_, (x, y) in zip(maps, corners.long().tolist(), strict=True):
        height, width = map_.shape[2:]
        assert torch.equal(packed[:, :, y : y + height, x : x + width], map_)
    assert torch.equal(packed[0, 0, 0], torch.tensor([0.0, 0, 1, 2, 2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_detections": 0}, "max_detections must be positive, not 0"),
        ({"nms_threshold": 1.5}, r"nms_threshold must lie in \[0, 1\], not 1.5"),
        ({"score_threshold": -0.1}, r"score_threshold must lie in \[0, 1\], not -0.1"),
        ({"size": (64, 100)}, "multiples of 32, not 64 x 100: use 64 x 128"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_of(small_detector("mask_rcnn_convnext_atto"), **changes)
