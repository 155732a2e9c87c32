"""The fastest backend of a detector, found by measuring, for images of any size.

A detector's control flow depends on its data, so no compiler takes it as a whole. A backend changes
its parts: folded weights, Winograd 3x3 convolutions, RoI pooling by matrix products
(`convnext.kernels.roi_pooling`), or bf16 matrix products on devices that are faster in bf16. Box
decoding, scoring, NMS and pooling always run in fp32.

A backend is correct if its parts agree with those of the trained network (maps, anchor logits,
logits and masks of the same boxes: relative L2 distance at most 1e-4 in fp32, 6e-2 in bf16), and if
it finds nearly all detections again with the same class, place and score. It cannot find all of
them: rounding decides which of two boxes with the same score NMS keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convnext.deploy.backends import PLAIN, Backend
from convnext.deploy.fold import fold
from convnext.deploy.optimize import TOLERANCE, Measured, TunedNetwork, Tuner, cache_key
from convnext.hardware.devices import AMP_DTYPES, autocast
from convnext.hardware.peak_rates import has_fast_bf16
from convnext.hardware.tuner import BUDGET_S, Candidate, Parity, medians, samples, tune
from convnext.kernels.roi_pooling import pool_rois_by_products
from convnext.kernels.winograd import has_any, with_winograd
from convnext.tasks.detection.model.boxes import iou, stack

# Min IoU and max score difference between equal detections of a class.
SAME_IOU = 0.9
SAME_SCORE = {"fp32": 0.01, "bf16": 0.05, "fp16": 0.05}
# Min fraction of the detections, weighted by score, to be found again. Random weights are the hard
# case, since their scores hardly differ: 94 to 100 percent in fp32.
MIN_FOUND = {"fp32": 0.9, "bf16": 0.8, "fp16": 0.8}
# Number of boxes per image on which the heads are compared.
NUM_COMPARED = 50
# Time limit of the rounds with slow images.
TIMED_S = 12.0

Detected = list[dict[str, Tensor]]


class FastDetector(TunedNetwork):
    """A detector in some backend, called like a detector with images (C, H, W) of any sizes.

    It has all attributes of the detector, but cannot be trained.

    Attributes:
        form: The backend.
        ratio: Speedup over the trained network; 1 if it was not measured.
        measured: All measured backends; empty if the backend came from the cache.
    """

    def __init__(self, detector: nn.Module, backend: Backend, *, inplace: bool = False) -> None:
        super().__init__()
        self.form = backend
        self.ratio = 1.0
        self.measured = ()
        self.dtype = AMP_DTYPES.get(backend.precision, torch.float32)
        if not backend.folded:
            self.detector = detector
            return
        folded = fold(detector, form=backend.pointwise, inplace=inplace)
        if backend.dense == "winograd":
            folded = with_winograd(folded)
        if next(folded.parameters()).device.type == "cpu":
            folded.pool = pool_rois_by_products  # type: ignore[assignment]
        self.detector = folded.to(self.dtype).to(memory_format=torch.channels_last)

    def forward(self, images: Any, **options: Any) -> Any:
        """Call the detector in the backend's precision."""
        detector: Any = self.detector
        if not self.form.folded:
            with autocast(images[0].device, self.form.precision):
                return detector(images, **options)
        # Ignore the caller's autocast: the backend has its own precision.
        with torch.autocast(images[0].device.type, enabled=False):
            return detector([image.to(self.dtype) for image in images], **options)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("detector"), name)


class DetectorTuner(Tuner):
    """Finds the fastest backend of a detector; a verdict holds for images of any size."""

    def key(self, images: Sequence[Tensor], precision: str) -> str:
        """Return the key in the tuning cache."""
        return cache_key(self.model, torch.empty(0, device=images[0].device), precision)

    def first(self, device: torch.device, precision: str, *, inplace: bool) -> FastDetector:
        """Return the detector on the backend that needs no search."""
        backend = first_backend(self.model, device, precision)
        return FastDetector(self.model, backend, inplace=inplace)

    def build(
        self, backend: Backend, images: Sequence[Tensor], *, inplace: bool = False
    ) -> FastDetector:
        """Return the detector on a backend."""
        return FastDetector(self.model, backend, inplace=inplace)

    def failure(self, built: TunedNetwork, images: Sequence[Tensor]) -> str:
        """Return why a cached backend is not correct on these images; empty if it is."""
        assert isinstance(built, FastDetector)
        folded = built.form.folded
        return wrong(
            built.form, 1.0, distance_of_parts(built, self.model, images) if folded else 0.0
        )

    def search(
        self,
        images: Sequence[Tensor],
        *,
        precision: str,
        budget_s: float = BUDGET_S,
        note: Callable[[str], None] = lambda _: None,
    ) -> FastDetector:
        """Measure the backends of the detector, and return the fastest correct one.

        Raises:
            ValueError: If `precision` is int8.
        """
        if precision == "int8":
            raise ValueError("detectors do not run in int8 here; use auto, fp32 or bf16")
        return search_detector(
            self.model, images, precision=precision, budget_s=budget_s, note=note
        )


def detector_backends(model: nn.Module, device: torch.device, precision: str) -> list[Backend]:
    """Return the backends of a detector to try on a device, safest first.

    Args:
        model: A detector.
        device: The device.
        precision: `fp32` allows only fp32. `bf16` and `fp16` also try fp32, which is never less
            exact. `auto` tries fp32, and bf16 on devices that are faster in it.
    """
    on_cpu = device.type == "cpu"
    backend = Backend(pointwise="chunked" if on_cpu else "linear")
    backends = [backend]
    if on_cpu and has_any(model):
        backends.insert(0, replace(backend, dense="winograd"))
    half = precision if precision in AMP_DTYPES else "bf16"
    if precision in AMP_DTYPES or (precision == "auto" and has_fast_bf16(device)):
        backends.append(replace(backend, precision=half))  # type: ignore[arg-type]
    return backends


def first_backend(model: nn.Module, device: torch.device, precision: str) -> Backend:
    """Return the default backend of a detector, without a search.

    On a CPU that is not faster in bf16, it is fp32 with Winograd convolutions even for a network
    trained in bf16: that is faster and more exact.
    """
    backends = detector_backends(model, device, precision)
    in_half = precision in AMP_DTYPES and (device.type != "cpu" or has_fast_bf16(device))
    return backends[-1] if in_half else backends[0]


@torch.inference_mode()
def search_detector(
    model: nn.Module,
    images: Sequence[Tensor],
    *,
    precision: str = "auto",
    budget_s: float = BUDGET_S,
    note: Callable[[str], None] = lambda _: None,
) -> FastDetector:
    """Measure all backends of a detector on images (C, H, W); return the fastest correct one."""
    device = images[0].device
    expected: Detected = model(list(images), paste=False)
    start = replace(PLAIN, precision=precision if precision in AMP_DTYPES else "fp32")  # type: ignore[arg-type]

    def compare(backend: Backend, candidate: FastDetector) -> Parity:
        share = agreement(candidate(images, paste=False), expected, backend.precision)
        return Parity(
            distance_of_parts(candidate, model, images),
            TOLERANCE[backend.precision],
            failure=wrong(backend, share, 0.0),
            remark=f", {100 * share:.1f} % found again",
        )

    verdict = tune(
        Candidate(start, partial(FastDetector, model, start)),
        [
            Candidate(backend, partial(FastDetector, model, backend))
            for backend in detector_backends(model, device, precision)
        ],
        measure=lambda detectors: _seconds(detectors, images),
        compare=compare,
        budget_s=budget_s,
        note=note,
    )
    best = verdict.built
    best.ratio, best.measured = verdict.ratio, tuple(map(Measured.of, verdict.trials))
    return best


def wrong(backend: Backend, share: float, apart: float) -> str:
    """Return why a backend is not correct, given its agreement and distance; empty if it is."""
    if not apart <= TOLERANCE[backend.precision]:
        return f"outputs differ by {apart:.1e}"
    if share < MIN_FOUND[backend.precision]:
        return f"finds {100 * share:.1f} % of the network's detections"
    return ""


@torch.inference_mode()
def distance_of_parts(fast: FastDetector, model: Any, images: Sequence[Tensor]) -> float:
    """Return the max relative L2 distance between the outputs of a backend's and a network's parts.

    The parts are all maps together, the logits and deltas of all anchors, and the logits, deltas
    and masks of each stage for the network's proposals.
    """
    with torch.autocast(images[0].device.type, enabled=False):
        batch, sizes = stack(list(images), model.strides[-1])
        outputs: list[list[Tensor]] = []
        boxes: list[Tensor] = []
        own: Any = fast.detector
        for detector, dtype in ((model, batch.dtype), (own, fast.dtype)):
            maps = detector.features(batch.to(dtype))
            anchors = detector.rpn(maps)
            if not boxes:
                proposed = detector.proposals(maps, sizes, outputs=anchors)
                boxes = [own[:NUM_COMPARED] for own, _ in proposed]
            parts = [_flat(maps), *(_flat(kind) for kind in zip(*anchors, strict=True))]
            for s in range(len(model.method.stages)):
                parts += [t.float().flatten() for t in detector.box_logits(s, maps, boxes)]
                if model.config.masks:
                    parts.append(detector.mask_logits(s, maps, boxes).float().flatten())
            outputs.append(parts)
    ours, theirs = outputs[1], outputs[0]
    return max(
        float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(ours, theirs, strict=True)
    )


def _flat(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([m.float().flatten() for m in maps])


def agreement(found: Detected, expected: Detected, precision: str = "fp32") -> float:
    """Return the fraction of detections that both have, weighted by score; 1 if neither has any.

    The other side has a detection if it has one of the same class with an IoU of at least 0.9 and
    a similar score. The smaller of the two sides' fractions counts.
    """
    shares = [1.0]
    for ours, theirs in ((found, expected), (expected, found)):
        total = same = 0.0
        for a, b in zip(ours, theirs, strict=True):
            total += float(a["scores"].sum())
            if not len(a["scores"]) or not len(b["scores"]):
                continue
            overlap = iou(a["boxes"].float(), b["boxes"].float())  # M R
            alike = a["labels"][:, None] == b["labels"]
            near = (a["scores"][:, None] - b["scores"]).abs() <= SAME_SCORE[precision]
            again = ((overlap >= SAME_IOU) & alike & near).any(1)
            same += float(a["scores"][again].sum())
        if total:
            shares.append(same / total)
    return min(shares)


def _seconds(runs: Sequence[nn.Module], images: Sequence[Tensor], num: int = 5) -> list[float]:
    """Return the median seconds of each network, measured in turns."""
    calls = [partial(run, images, paste=False) for run in runs]
    device = images[0].device
    return medians(samples(calls, device, rounds=num, min_rounds=2, max_seconds=TIMED_S))
