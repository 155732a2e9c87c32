"""The authors' checkpoints give the same outputs here as in their code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import GOLDEN, golden_images, golden_weights, sha256
from torch import Tensor

from convnext.tasks.factory import create_model
from convnext.tasks.segmentation.model import Segmentor, cross_entropy
from convnext.weights import export_weights, load_weights

NAME = "upernet_convnext_tiny"
SIZES = [(128, 128), (160, 96)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return golden_weights(NAME)


@pytest.fixture(scope="module")
def segmentor(weights: dict[str, Tensor]) -> Segmentor:
    with torch.device("meta"):
        model = create_model(NAME)
    model = model.to_empty(device="cpu").eval()
    report = load_weights(model, weights)
    assert (report.layout, report.missing, report.unexpected) == ("official", (), ())
    assert isinstance(model, Segmentor)
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{NAME}.npz") as archive:
        return dict(archive)


def close(ours: Tensor, theirs: np.ndarray) -> bool:
    assert ours.shape == theirs.shape
    return bool(np.abs(ours.numpy() - theirs).max() < TOLERANCE)


def test_the_weights_are_those_of_the_golden_run(
    weights: dict[str, Tensor], golden: dict[str, np.ndarray]
) -> None:
    assert sha256(weights) == str(golden["weights_sha256"])


def test_names_and_shapes_go_back_as_they_came(
    segmentor: Segmentor, weights: dict[str, Tensor]
) -> None:
    exported = export_weights(segmentor, "official")
    assert exported.keys() == weights.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in weights)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_logits_and_losses(
    segmentor: Segmentor, golden: dict[str, np.ndarray], size: tuple[int, int]
) -> None:
    prefix = f"{size[0]}x{size[1]}."
    images = golden_images(*size)
    with torch.inference_mode():
        maps = segmentor.output_norms(segmentor.backbone.pyramid(images))
        logits = segmentor.heads(images, auxiliary=True)
    for i, map_ in enumerate(maps.values()):
        assert close(map_[:, ::12, ::2, ::2], golden[f"{prefix}backbone{i}"])
    assert close(logits["decode"][:, ::10], golden[f"{prefix}decode_logits"])
    assert close(logits["auxiliary"][:, ::5], golden[f"{prefix}aux_logits"])
    masks = torch.from_numpy(golden[f"{prefix}seg_label"])[None]
    decode = float(cross_entropy(logits["decode"], masks))
    auxiliary = 0.4 * float(cross_entropy(logits["auxiliary"], masks))
    assert decode == pytest.approx(float(golden[f"{prefix}loss_decode_ce"]), abs=1e-5)
    assert auxiliary == pytest.approx(float(golden[f"{prefix}loss_aux_ce_x0.4"]), abs=1e-5)


def slide(segmentor: Segmentor, images: Tensor, *, window: int, step: int) -> Tensor:
    """Return the mean logits of all windows over each pixel; the last windows end at the border."""
    height, width = images.shape[2:]
    sums = torch.zeros(1, segmentor.num_classes, height, width)
    counts = torch.zeros(height, width)
    for top in [min(y, height - window) for y in range(0, height - window + step, step)]:
        for left in [min(x, width - window) for x in range(0, width - window + step, step)]:
            here = (..., slice(top, top + window), slice(left, left + window))
            sums[here] += segmentor(images[here])
            counts[here] += 1
    return sums / counts


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["slide96_64", "whole"])
def test_logits_and_classes_of_every_pixel(
    segmentor: Segmentor, golden: dict[str, np.ndarray], mode: str, size: tuple[int, int]
) -> None:
    images = golden_images(*size)
    with torch.inference_mode():
        logits = (
            segmentor(images) if mode == "whole" else slide(segmentor, images, window=96, step=64)
        )
    prefix = f"{size[0]}x{size[1]}.{mode}"
    assert close(logits[:, ::10, ::8, ::8], golden[f"{prefix}_logits"])
    # The two best classes of a pixel may differ by less than the rounding error.
    assert (logits.argmax(1).numpy() != golden[f"{prefix}_argmax"]).sum() <= 2
