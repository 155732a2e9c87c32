"""Backends of a detector give the same detections at any size; wrong ones are never chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.deploy import fast as fast_module
from convnext.deploy.backends import PLAIN, Backend
from convnext.deploy.fast import Fast
from convnext.hardware.devices import autocast
from convnext.kernels.roi_pooling import pool_rois_by_products
from convnext.kernels.winograd import WinogradConv
from convnext.tasks.detection.export import backend as module
from convnext.tasks.detection.export.backend import (
    DetectorTuner,
    FastDetector,
    agreement,
    detector_backends,
    distance_of_parts,
    first_backend,
    search_detector,
)

CPU = torch.device("cpu")
BACKENDS = [
    Backend(pointwise="chunked", dense="winograd"),
    Backend(pointwise="chunked"),
    Backend(pointwise="chunked", precision="bf16"),
]
KINDS = ("mask_rcnn_", "cascade_mask_rcnn_")


def _detector(prefix: str = "mask_rcnn_") -> nn.Module:
    torch.manual_seed(0)
    model = convnext.create_model(
        f"{prefix}convnext_atto",
        depths=(1, 1, 1, 1),
        dims=(8, 16, 24, 32),
        channels=64,
        fc_dim=32,
        num_classes=4,
        num_proposals=30,
        max_detections=20,
    )
    for name, p in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(p, 0.5)
        # Confident classes and distinct boxes, since rounding would decide near ties.
        if name.endswith(("classifier.weight", "objectness.weight")):
            nn.init.normal_(p, std=0.5)
    return model.eval()


def _images(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in ((96, 128), (70, 90))]


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@pytest.mark.parametrize("prefix", KINDS)
@torch.inference_mode()
def test_every_form_computes_the_same_at_any_size(backend: Backend, prefix: str) -> None:
    model = _detector(prefix)
    fast = FastDetector(model, backend)
    assert fast.detector.pool is pool_rois_by_products
    kinds = {type(m) for m in fast.modules()}
    assert (WinogradConv in kinds) == (backend.dense == "winograd")
    for images in (_images(), [torch.randn(3, 50, 60)]):
        apart = distance_of_parts(fast, model, images)
        assert 0 < apart < (2e-5 if backend.precision == "fp32" else 6e-2)
        found, expected = fast(images, paste=False), model(images, paste=False)
        assert all(len(e["scores"]) for e in expected)
        assert agreement(found, expected, backend.precision) > (
            0.9 if backend.precision == "fp32" else 0.5
        )
        assert all(f["boxes"].dtype == f["scores"].dtype == torch.float32 for f in found)
    assert fast.config is model.config or fast.config == model.config
    masks = fast(_images())[0]["masks"]
    assert masks.dtype == torch.bool
    assert masks.shape[1:] == (96, 128)


@torch.inference_mode()
def test_a_form_keeps_its_precision_whatever_the_callers() -> None:
    model, images = _detector(), _images()
    fast = FastDetector(model, BACKENDS[0])
    expected = fast(images, paste=False)
    with autocast(CPU, "bf16"):
        found = fast(images, paste=False)
    assert torch.equal(found[0]["boxes"], expected[0]["boxes"])


def test_agreement_is_of_class_place_and_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 50, 50]])
    one = {"boxes": boxes, "scores": torch.tensor([0.75, 0.25]), "labels": torch.tensor([1, 2])}
    none = {"boxes": boxes[:0], "scores": torch.zeros(0), "labels": torch.zeros(0).long()}
    assert agreement([one], [one]) == 1
    assert agreement([none], [none]) == 1
    assert agreement([none], [one]) == agreement([one], [none]) == 0
    assert agreement([one | {"labels": torch.tensor([1, 1])}], [one]) == pytest.approx(0.75)
    assert agreement([one | {"boxes": boxes + 3.0}], [one]) == pytest.approx(0)
    lower = one | {"scores": torch.tensor([0.75, 0.22])}
    assert agreement([lower], [one]) == pytest.approx(0.75)
    assert agreement([lower], [one], "bf16") == 1


def test_what_is_tried_follows_from_precision_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _detector()
    monkeypatch.setattr(module, "has_fast_bf16", lambda device: True)
    assert [f.precision for f in detector_backends(model, CPU, "fp32")] == ["fp32", "fp32"]
    assert [f.precision for f in detector_backends(model, CPU, "auto")] == ["fp32", "fp32", "bf16"]
    monkeypatch.setattr(module, "has_fast_bf16", lambda device: False)
    assert [f.precision for f in detector_backends(model, CPU, "auto")] == ["fp32", "fp32"]
    assert [f.precision for f in detector_backends(model, CPU, "bf16")] == ["fp32", "fp32", "bf16"]
    assert first_backend(model, CPU, "fp32") == first_backend(model, CPU, "bf16") == BACKENDS[0]
    monkeypatch.setattr(module, "has_fast_bf16", lambda device: True)
    assert first_backend(model, CPU, "auto") == BACKENDS[0]
    assert first_backend(model, CPU, "bf16").precision == "bf16"
    gpu = torch.device("cuda")
    assert first_backend(model, gpu, "bf16") == Backend(pointwise="linear", precision="bf16")


def test_a_wrong_form_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda *args: 0.9 * pool_rois_by_products(*args)  # noqa: E731
    monkeypatch.setattr(module, "pool_rois_by_products", wrong)
    lines: list[str] = []
    best = search_detector(_detector(), _images(), precision="fp32", note=lines.append)
    assert not best.form.folded
    assert len(best.measured) == 3
    assert all("outputs differ" in m.failure for m in best.measured[1:])
    assert all(m.seconds is None for m in best.measured[1:])


def test_a_verdict_is_remembered_for_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_seconds", lambda runs, images: [2.0, 1.0][: len(runs)])
    model, cache = _detector(), tmp_path / "forms.json"
    lines: list[str] = []
    first = convnext.optimize(model, torch.stack([torch.randn(3, 64, 96)] * 2), cache=cache)
    assert first.ratio == pytest.approx(2 ** (len(first.measured) - 1))
    again = DetectorTuner(model).find(_images(), cache=cache, note=lines.append)
    assert (again.form, again.ratio, again.measured) == (first.form, first.ratio, ())
    assert "found before" in lines[0]
    with pytest.raises(ValueError, match="detectors do not run in int8"):
        convnext.optimize(
            model,
            torch.randn(1, 3, 64, 64),
            precision="int8",
            calibration=[torch.randn(1, 3, 64, 64)],
        )


@pytest.mark.parametrize(
    ("seconds", "known"), [(1.0, None), (100.0, None), (100.0, PLAIN), (1e4, None)]
)
@torch.inference_mode()
def test_a_job_of_detection_speeds_up_by_itself(
    seconds: float, known: Backend | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_module, "seconds_left", lambda *_: seconds)
    found_before = None if known is None else fast_module.Known(known, 1.0, 0.0)
    monkeypatch.setattr(fast_module, "known_backend", lambda *_: found_before)
    searched = []

    def find(tuner: DetectorTuner, images: list[Tensor], **options: object) -> FastDetector:
        searched.append(options)
        return FastDetector(tuner.model, BACKENDS[1])

    monkeypatch.setattr(DetectorTuner, "find", find)
    model = _detector()
    expected = [model([image], paste=False) for image in _images()]
    network = Fast(model, device=CPU, precision="fp32", num_images=100, keep=False).eval()
    found = [network([image], paste=False) for image in _images()]
    assert len(searched) == (seconds == 1e4)
    if seconds == 1.0 or known is not None:
        assert network.form is None
        assert torch.equal(found[0][0]["boxes"], expected[0][0]["boxes"])
    else:
        assert network.form == BACKENDS[int(seconds == 1e4)]
    for ours, theirs in zip(found, expected, strict=True):
        assert agreement(ours, theirs) > 0.9
