"""Masks in three equivalent formats, targets cropped from them, and pasting into images."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric.plugins.precision import MixedPrecision
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from convnext.data.masks import (
    bounds_of,
    cut,
    encode,
    mask_targets,
    num_pixels,
    paste_masks,
    place,
)

HEIGHT, WIDTH = 30, 44


def ellipse() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (((x - 20) / 15) ** 2 + ((y - 14) / 9) ** 2 <= 1).astype(np.uint8)


def to_runs(bitmap: np.ndarray) -> dict[str, object]:
    flat = bitmap.T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff(np.concatenate(([0], changes, [flat.size])))
    return {"size": list(bitmap.shape), "counts": counts.tolist()}


def in_every_form(bitmap: np.ndarray) -> list[object]:
    coder = pytest.importorskip("faster_coco_eval.core.mask")
    packed = coder.encode(np.asfortranarray(bitmap))
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    # Each ring outlines a pixel: adjacent rings form one mask.
    squares = [[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for y, x in np.argwhere(bitmap)]
    return [bitmap.astype(bool), torch.from_numpy(bitmap), to_runs(bitmap), packed, text, squares]


def test_every_form_gives_the_same_part() -> None:
    bitmap = ellipse()
    for window in [(0, 0, WIDTH, HEIGHT), (7, 3, 25, 20), (0, 29, 1, 30), (43, 0, 44, 30)]:
        x1, y1, x2, y2 = window
        for mask in in_every_form(bitmap):
            part = cut(mask, window)
            assert part.dtype == np.uint8
            assert np.array_equal(part, bitmap[y1:y2, x1:x2])


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**36 - 1))
def test_bounds_of_runs_are_those_of_the_bitmap(height: int, width: int, bits: int) -> None:
    bitmap = np.array([bits >> i & 1 for i in range(height * width)], np.uint8)
    bitmap = bitmap.reshape(height, width)
    rows, columns = np.nonzero(bitmap)
    expected = None
    if len(rows):
        expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert bounds_of(to_runs(bitmap)) == expected


def test_bounds_of_polygons() -> None:
    assert bounds_of(([3, 4, 8, 1, 5, 9.5], [2, 5, 4, 5, 4, 6])) == (2, 1, 8, 9.5)
    assert bounds_of(()) is None


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False), st.data())
def test_runs_of_any_mask(height: int, width: int, random, data: st.DataObject) -> None:
    coder = pytest.importorskip("faster_coco_eval.core.mask")
    bitmap = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    bitmap = bitmap.astype(np.uint8)
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    for mask in (to_runs(bitmap), coder.encode(np.asfortranarray(bitmap))):
        assert np.array_equal(cut(mask, (x1, y1, x2, y2)), bitmap[y1:y2, x1:x2])


def test_long_runs_in_the_string_form() -> None:
    coder = pytest.importorskip("faster_coco_eval.core.mask")
    bitmap = np.zeros((700, 900), np.uint8)
    bitmap[100:650, 5:880:7] = 1
    bitmap[300, :] = 0
    packed = coder.encode(np.asfortranarray(bitmap))
    assert np.array_equal(cut(packed, (200, 90, 400, 500)), bitmap[90:500, 200:400])


def test_pixels_whose_centers_a_polygon_holds() -> None:
    window = (0, 0, 6, 4)
    # Edges through centers belong to the right and the lower neighbor, so that rings that share
    # an edge share no pixel.
    left, right = [[0.5, 0, 3.5, 0, 3.5, 4, 0.5, 4]], [[3.5, 0, 6, 0, 6, 4, 3.5, 4]]
    assert cut(left, window)[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert cut(right, window)[0].tolist() == [0, 0, 0, 1, 1, 1]
    triangle = [[0, 0, 4, 0, 0, 4]]
    assert cut(triangle, window).tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert cut(left + triangle, window)[3].tolist() == [1, 1, 1, 0, 0, 0]
    assert cut([], window).sum() == 0
    assert cut([[9, 9, 20, 9, 20, 20]], window).sum() == 0
    assert np.array_equal(cut(triangle, (1, 1, 3, 3)), [[1, 0], [0, 0]])


def test_polygons_are_close_to_those_of_coco() -> None:
    coder = pytest.importorskip("faster_coco_eval.core.mask")
    angles = np.linspace(0, 2 * np.pi, 23, endpoint=False)
    radii = 60 + 25 * np.sin(5 * angles)
    ring = np.stack((90 + radii * np.cos(angles), 100 + radii * np.sin(angles)), 1).ravel().tolist()
    theirs = coder.decode(coder.merge(coder.frPyObjects([ring], 200, 180)))
    ours = cut([ring], (0, 0, 180, 200))
    # COCO draws on a grid five times finer and rounds; only pixels on the outline may differ.
    assert (ours != theirs).sum() < 0.03 * theirs.sum()


def test_targets_are_those_of_the_whole_bitmap() -> None:
    bitmap = ellipse()
    boxes = torch.tensor(
        [
            [3.2, 2.7, 37.9, 26.1],
            [0.0, 0.0, 44.0, 30.0],
            [10.5, 5.5, 12.0, 6.0],
            [30.0, 20.0, 60.0, 50.0],
            [44.0, 30.0, 44.0, 30.0],
        ]
    )
    index = torch.zeros(5, dtype=torch.long)
    inside = boxes.minimum(torch.tensor([44.0, 30, 44, 30]))
    rois = torch.cat((torch.zeros(5, 1), inside), 1)
    whole = torch.from_numpy(bitmap).float()[None, None]
    expected = roi_align(whole, rois, 28, 1.0, 0, aligned=True)[:, 0]
    sure = (expected - 0.5).abs() > 1e-4
    for mask in in_every_form(bitmap):
        found = mask_targets([mask], index, boxes, (HEIGHT, WIDTH))
        assert found.shape == (5, 28, 28)
        assert torch.equal(found[sure], (expected >= 0.5).float()[sure])
    assert sure.float().mean() > 0.98
    assert mask_targets([], index[:0], boxes[:0], (HEIGHT, WIDTH)).shape == (0, 28, 28)


def test_a_mask_that_is_pasted_and_cut_out_is_the_same() -> None:
    torch.manual_seed(0)
    blob = torch.nn.functional.interpolate(torch.rand(3, 1, 5, 5), (28, 28), mode="bicubic")[:, 0]
    boxes = torch.tensor(
        [[4.0, 6.0, 116.0, 90.0], [30.5, 0.0, 86.5, 56.0], [0.3, 7.7, 140.9, 99.2]]
    )
    pasted = paste_masks(blob, boxes, (100, 150))
    assert pasted.dtype == torch.bool
    again = mask_targets(list(pasted), torch.arange(3), boxes, (100, 150))
    assert (again != (blob >= 0.5)).float().mean() < 0.03


def test_pasting_by_hand() -> None:
    whole = torch.ones(1, 28, 28)
    pasted = paste_masks(whole, torch.tensor([[2.0, 1.0, 5.0, 4.0]]), (6, 8))[0]
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[1:4, 2:5] = True
    assert torch.equal(pasted, expected)
    beyond = torch.tensor([[-4.0, 3.0, 3.0, 90.0], [9.0, 9.0, 12.0, 12.0]])
    first, second = paste_masks(whole.expand(2, -1, -1), beyond, (6, 8))
    assert first.nonzero().amin(0).tolist() == [3, 0]
    assert first.nonzero().amax(0).tolist() == [5, 2]
    assert not second.any()
    # Without a width: the middle of the mask, repeated on the pixels around the line.
    line = paste_masks(whole, torch.tensor([[4.0, 1.0, 4.0, 5.0]]), (6, 8))[0]
    assert line.nonzero().amin(0).tolist() == [1, 3]
    assert line.nonzero().amax(0).tolist() == [4, 4]
    assert paste_masks(whole[:0], beyond[:0], (6, 8)).shape == (0, 6, 8)


class Largest(TorchDispatchMode):
    """Records the size of the largest floating-point tensor created."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.num = max(self.num, tensor.numel())
        return out


def test_five_hundred_objects_of_a_large_image_need_one_window_at_a_time() -> None:
    torch.manual_seed(0)
    corner = torch.rand(500, 2) * torch.tensor([1800.0, 1000.0])
    boxes = torch.cat((corner, corner + 20 + 100 * torch.rand(500, 2)), 1)
    boxes[0] = torch.tensor([0.0, 0.0, 1920.0, 1080.0])
    with Largest() as largest:
        pasted = paste_masks(torch.ones(500, 28, 28), boxes, (1080, 1920))
    assert pasted.shape == (500, 1080, 1920)
    assert pasted[0].float().mean() > 0.99
    assert largest.num <= max(2 * 1080 * 1920, 500 * 28 * 28)


def test_run_lengths_whose_sum_overflows_are_damaged() -> None:
    runs = {"size": [30, 40], "counts": np.array([2**62] * 4 + [1200])}
    assert num_pixels(runs) == -1


def test_encoding_a_large_mask_takes_little_memory() -> None:
    part = np.ones((1500, 2000), bool)
    tracemalloc.start()
    runs = encode(part, (0, 0, 2000, 1500), (1500, 2000))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert runs["counts"] == [0, part.size]
    # At most ten bytes per pixel, not eight bytes for each position.
    assert most < 10 * part.size


def test_runs_of_random_masks_come_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        size = tuple(rng.integers(1, 9, 2).tolist())
        x1, y1 = (int(rng.integers(0, side)) for side in size[::-1])
        x2, y2 = int(rng.integers(x1 + 1, size[1] + 1)), int(rng.integers(y1 + 1, size[0] + 1))
        part = rng.random((y2 - y1, x2 - x1)) < rng.choice([0.3, 0.9, 1.0])
        whole = np.zeros(size, bool)
        whole[y1:y2, x1:x2] = part
        runs = encode(part, (x1, y1, x2, y2), size)
        assert sum(runs["counts"]) == whole.size
        assert 0 not in runs["counts"][1:]
        assert (cut(runs, (0, 0, size[1], size[0])) == whole).all()


def test_masks_pass_what_casts_inputs_for_half_precision() -> None:
    """In bf16 and fp16, Fabric converts every argument of a network."""
    bitmap = ellipse()
    size = (bitmap.shape[0], bitmap.shape[1])
    placed = place(to_runs(bitmap), source=size, size=size, scale=(-1.0, 1.0), start=(size[1], 0.0))
    targets = ({"boxes": torch.zeros(1, 4), "masks": [placed]},)
    (passed,) = MixedPrecision("bf16-mixed", "cpu").convert_input(targets)
    window = (0, 0, size[1], size[0])
    assert np.array_equal(cut(passed["masks"][0], window), cut(placed, window))
    assert np.array_equal(cut(placed, window), bitmap[:, ::-1])
