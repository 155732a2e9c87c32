"""Sliding windows against a plain loop, scales and flips against torch, and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convnext.data.tensors import normalize_batch
from convnext.hardware.devices import Ranks
from convnext.tasks.segmentation import scores as module
from convnext.tasks.segmentation.inference import infer, segment, segment_labels
from convnext.tasks.segmentation.scores import InferenceSettings, window_starts

CPU: dict[str, Any] = {"device": torch.device("cpu"), "precision": "fp32"}


class Stand(nn.Module):
    """A segmentor whose logits depend on the whole window through its mean."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_classes, 5, padding=2)
        self.sizes: list[torch.Size] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(images.shape)
        logits: Tensor = self.conv(images + images.mean((2, 3), keepdim=True))
        return logits


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def naive(model: nn.Module, image: Tensor, window: int, stride: int) -> Any:
    """The published sliding-window average in numpy."""
    height, width = image.shape[-2:]
    sums, counts = 0.0, np.zeros((height, width))
    for i in range(max(height - window + stride - 1, 0) // stride + 1):
        for j in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(i * stride + window, height), min(j * stride + window, width)
            rows, cols = (
                slice(max(bottom - window, 0), bottom),
                slice(max(right - window, 0), right),
            )
            logits = model(image[None, :, rows, cols])[0].numpy()
            placed = np.zeros((len(logits), height, width))
            placed[:, rows, cols] = logits
            sums, counts[rows, cols] = sums + placed, counts[rows, cols] + 1
    return sums / counts


@pytest.mark.parametrize("window_batch", [1, 3, 8])
@pytest.mark.parametrize(
    ("height", "width", "window", "stride"),
    [(128, 128, 96, 64), (160, 96, 96, 64), (50, 97, 48, 32), (41, 130, 40, 40), (70, 30, 40, 7)],
)
def test_windows_against_a_plain_loop(
    height: int, width: int, window: int, stride: int, window_batch: int
) -> None:
    model, image = Stand(), picture(3, height, width)
    found = segment(model, image, window=window, stride=stride, window_batch=window_batch, **CPU)
    assert np.abs(found.numpy() - naive(model, image, window, stride)).max() < 1e-5


def test_the_default_strides_are_the_published_ones() -> None:
    for window, stride in ((512, 341), (640, 426)):
        image = torch.zeros(3, 16, window + 2 * stride)
        model = Stand(1)
        segment(model, image, window=window, window_batch=1, **CPU)
        assert [size[-1] for size in model.sizes] == [window] * 3


@given(st.integers(1, 300), st.integers(1, 120), st.data())
def test_windows_cover_an_axis(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    window = min(window, length)
    starts = window_starts(length, window, stride)
    assert starts == sorted(set(starts))
    assert set().union(*(range(s, s + window) for s in starts)) == set(range(length))


def test_a_window_that_covers_everything_is_the_whole_image() -> None:
    model, image = Stand(), picture(3, 30, 20)
    for window in (30, 31, 500):
        assert torch.equal(
            segment(model, image, window=window, **CPU), segment(model, image, **CPU)
        )


def test_a_batch_is_its_images() -> None:
    model, images = Stand(), picture(3, 3, 40, 50)
    for kinds in ({}, {"window": 32}, {"scales": (0.5, 1.0), "flip": True}):
        found = segment(model, images, size=(44, 61), **kinds, **CPU)
        assert found.shape == (3, 4, 44, 61)
        for image, scores in zip(images, found, strict=True):
            alone = segment(model, image, size=(44, 61), **kinds, **CPU)
            assert torch.allclose(alone, scores, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 50), (91, 123), (20, 17), (40, 90), (33, 50), (1, 1)])
@pytest.mark.parametrize("window", [None, 24])
def test_resizing_by_bands_is_that_of_torch(
    size: tuple[int, int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = Stand(), picture(3, 40, 50)
    logits = segment(model, image, window=window, **CPU)
    expected = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    for floats in (1, 4 * 3 * size[1], 2**24):
        monkeypatch.setattr(module, "BAND_FLOATS", floats)
        monkeypatch.setattr(module, "BLOCK_ROWS", 5)
        found = segment(model, image, window=window, size=size, **CPU)
        assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(40, 50), (200, 260)])
@pytest.mark.parametrize("window", [None, 24])
def test_views_are_averaged_as_probabilities(
    size: tuple[int, int], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BAND_FLOATS", 4 * 7 * size[1])
    model, image = Stand(), picture(3, 40, 50)
    expected, views = torch.zeros(4, *size), 0
    for sides in ((20, 25), (40, 50), (70, 88)):
        scaled = F.interpolate(image[None], sides, mode="bilinear", antialias=True)
        scaled = image[None] if sides == (40, 50) else scaled
        for turn in (lambda x: x, lambda x: x.flip(-1)):
            logits = segment(model, turn(scaled), window=window, **CPU)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            expected, views = expected + turn(logits.softmax(1))[0], views + 1
    settings = InferenceSettings(scales=(0.5, 1.0, 1.75), flip=True, window=window)
    found = segment(
        model, image, scales=(0.5, 1.0, 1.75), flip=True, window=window, size=size, **CPU
    )
    assert torch.allclose(found, expected / views, atol=1e-5)
    assert torch.allclose(found.sum(0), torch.ones(size), atol=1e-5)
    labels = segment_labels(model, image, settings=settings, size=size, **CPU)
    assert torch.equal(labels, found.argmax(0).to(torch.uint8))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 90), st.integers(1, 90), st.data())
def test_labels_of_any_size_are_those_of_the_scores(
    height: int, width: int, rows: int, columns: int, data: st.DataObject
) -> None:
    window = data.draw(st.none() | st.integers(1, 40))
    stride = data.draw(st.integers(max(1, window // 2), window)) if window else None
    model, image = Stand(), picture(3, height, width)
    scores = segment(model, image, window=window, stride=stride, size=(rows, columns), **CPU)
    labels = segment_labels(
        model,
        image,
        settings=InferenceSettings(window=window, stride=stride),
        size=(rows, columns),
        **CPU,
    )
    assert torch.equal(labels, scores.argmax(0).to(torch.uint8))


def test_more_than_256_classes_have_labels_of_32_bits() -> None:
    model = Stand(300)
    with torch.no_grad():
        model.conv.bias[290] = 1e3
    labels = segment_labels(model, picture(3, 4, 5), **CPU)
    assert labels.dtype == torch.int32
    assert (labels == 290).all()


class Counted(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32:
                self.largest = max(self.largest, tensor.numel())
        return found


def test_a_large_image_never_has_the_scores_of_all_its_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BAND_FLOATS", 2**14)
    model, image = Stand(20), picture(3, 500, 40)
    by_windows = InferenceSettings(window=32)
    with Counted() as counted:
        labels = segment_labels(model, image, settings=by_windows, size=(900, 50), **CPU)
    assert labels.shape == (900, 50)
    assert counted.largest <= max(20 * (32 + 64) * 40, 2**14)
    twice = InferenceSettings(window=32, flip=True)
    with Counted() as counted:
        segment_labels(model, image, settings=twice, size=(900, 50), **CPU)
    assert counted.largest <= max(20 * (32 + 64) * 40, 2 * 2**14)
    with Counted() as counted:
        segment_labels(model, image, size=(900, 50), **CPU)
    assert counted.largest == 20 * 500 * 40


def test_scores_on_the_cpu_and_half_precision() -> None:
    model, image = Stand(), picture(3, 30, 40)
    exact = segment(model, image, window=20, on_cpu=True, **CPU)
    half = segment(model, image, window=20, device=torch.device("cpu"), precision="bf16")
    assert half.dtype == torch.float32
    assert torch.allclose(exact, half, atol=0.05)
    assert not torch.equal(exact, half)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "at least 1 pixel"),
        ({"stride": 3}, "without a window"),
        ({"window": 8, "stride": 9}, "pixels are left out"),
        ({"window": 8, "stride": 0}, "must be between 1"),
        ({"scales": ()}, "one or more"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"window_batch": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceSettings(**changes)


@dataclass(frozen=True)
class Item:
    pixels: Tensor
    mask: Any
    index: int
    bad: tuple[tuple[int, str], ...] = ()


class Scaling:
    """A preprocessing with outputs from -2 to nearly 2."""

    normalizes = True
    mean = (128 / 255,) * 3
    std = (64 / 255,) * 3


class Pictures:
    """Seven images of different sizes; the third cannot be read."""

    preprocessing = Scaling()

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Item:
        random = np.random.default_rng(index)
        pixels = torch.from_numpy(random.integers(0, 256, (3, 20, 24 + index), dtype=np.uint8))
        mask = random.integers(0, 4, (31, 40 + index)).astype(np.uint8)
        mask[:3] = 255
        return Item(pixels, mask, index, ((2, "damaged"),) if index == 2 else ())


class Records(dict[int, str]):
    """Bad images in the format of `BadImages`."""

    def update(self, records: Any) -> None:  # type: ignore[override]
        super().update(dict(records))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_is_inferred_at_the_size_of_its_masks(workers: int) -> None:
    model, bad, seen = Stand(), Records(), []
    model.train()
    found = list(infer(model, Pictures(), bad=bad, workers=workers, progress=seen.append, **CPU))
    assert not model.training
    assert bad == {2: "damaged"}
    assert [index for _, _, index, _ in found] == [0, 1, 3, 4, 5, 6]
    assert sum(seen) == 7
    for labels, mask, index, loss in found:
        item = Pictures()[index]
        assert np.array_equal(mask, item.mask)
        image = normalize_batch(Pictures.preprocessing, item.pixels[None])[0]
        logits = segment(model, image, size=item.mask.shape, **CPU)
        assert torch.equal(labels, logits.argmax(0).to(torch.uint8))
        target = torch.from_numpy(item.mask).long()[None]
        expected = F.cross_entropy(logits[None], target, ignore_index=255, reduction="sum")
        assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_processes_share_images_and_look_at_equally_many(count: int) -> None:
    found, dealt, bad = [], [], Records()
    for rank in range(count):
        steps: list[int] = []
        share = infer(
            Stand(),
            Pictures(),
            bad=bad,
            ranks=Ranks(rank, count),
            progress=steps.append,
            **CPU,
        )
        found += [index for _, _, index, _ in share]
        dealt.append(sum(steps))
    assert sorted(found) == [0, 1, 3, 4, 5, 6]
    assert list(bad) == [2]
    assert dealt == [-(-7 // count)] * count


def test_processes_run_the_network_equally_often_when_an_image_is_bad() -> None:
    passes = []
    for rank in range(2):
        model = Stand()
        calls: list[object] = []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for _ in infer(model, Pictures(), bad=Records(), ranks=Ranks(rank, 2), **CPU):
            pass
        passes.append(len(calls))
    assert passes == [4, 4]


def test_the_loss_of_several_views_is_that_of_their_mean() -> None:
    model = Stand()
    views = InferenceSettings(scales=(1.0, 1.5), flip=True)
    _, mask, index, loss = next(infer(model, Pictures(), bad=Records(), settings=views, **CPU))
    image = normalize_batch(Pictures.preprocessing, Pictures()[index].pixels[None])[0]
    shares = segment(model, image, scales=(1.0, 1.5), flip=True, size=mask.shape, **CPU)
    expected = F.nll_loss(shares.log()[None], mask.long()[None], ignore_index=255, reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-5)
