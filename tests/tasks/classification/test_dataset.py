"""The data loader: the same batches with any workers; bad images are reported, not fatal."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import BadImages, ImageCache, memory_budget
from convnext.data.sampling import StepBatches
from convnext.data.tensors import to_tensor
from convnext.tasks.classification.data import open_dataset
from convnext.tasks.classification.dataset import EvalDataset, TrainDataset, collate
from convnext.tasks.classification.recipe import ClassificationAugment

AUGMENT = ClassificationAugment(
    scale=(0.35, 1.0),
    hflip=0.5,
    rand_augment="none",
    color_jitter=0.3,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
)
RAND_AUGMENT = replace(AUGMENT, rand_augment="rand-m9-mstd0.5-inc1")
COLOR = Preprocessing(image_size=16, crop_pct=0.875, mean=(0.5,) * 3, std=(0.25,) * 3)
GRAY = Preprocessing(image_size=8, crop_pct=1.0, in_chans=1, mean=(0.5,), std=(0.25,))


@pytest.fixture
def photos(make_folder):
    """Two classes of 12 and 6 images of 40 x 30 pixels, and 4 for validation."""
    counts = {"train/a": 12, "train/b": 6, "val/a": 2, "val/b": 2}
    return open_dataset(str(make_folder(counts, size=(40, 30))))


def train_set(data, preprocessing=COLOR, augment=AUGMENT, seed=0):
    return TrainDataset(data.train, augment=augment, preprocessing=preprocessing, seed=seed)


def batches(dataset, **options):
    sampler = StepBatches(dataset.samples.labels, 6, seed=0, num_steps=6)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **options)
    return list(loader)


def test_an_item_is_a_function_of_its_draw(photos):
    first, second = train_set(photos, augment=RAND_AUGMENT), train_set(photos, augment=RAND_AUGMENT)
    items = [first[(epoch, 3)] for epoch in range(5)]
    for epoch in reversed(range(5)):
        random.seed(epoch)
        assert torch.equal(second[(epoch, 3)].pixels, items[epoch].pixels)
    assert len({item.pixels.numpy().tobytes() for item in items}) == 5
    assert items[0].pixels.shape == (3, 16, 16)
    assert items[0].pixels.dtype == torch.uint8
    other = train_set(photos, augment=RAND_AUGMENT, seed=1)[(0, 3)]
    assert not torch.equal(other.pixels, items[0].pixels)


@pytest.mark.parametrize("cached", [False, True])
def test_worker_processes_change_nothing(photos, cached):
    dataset = train_set(photos, augment=RAND_AUGMENT)
    if cached:
        dataset.fill_cache(budget=10**9)
    alone, together = batches(dataset), batches(dataset, num_workers=2)
    assert len(alone) == len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.indices, other.indices)
    assert alone[0].pixels.shape == (6, 3, 16, 16)


@pytest.mark.slow
def test_spawned_processes_read_the_cache(photos):
    dataset = train_set(photos, augment=RAND_AUGMENT)
    dataset.fill_cache(budget=10**9, workers=1)
    spawned = batches(dataset, num_workers=1, multiprocessing_context="spawn")
    for one, other in zip(batches(dataset), spawned, strict=True):
        assert torch.equal(one.pixels, other.pixels)


def test_exact_pixels_are_those_of_pillow_alone(make_folder):
    counts = {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}
    data = open_dataset(str(make_folder(counts, size=(200, 150))))
    exact = train_set(data, augment=replace(RAND_AUGMENT, exact=True))
    default = train_set(data, augment=RAND_AUGMENT)
    for index in range(6):
        image = data.train.open(index, "RGB")
        expected = exact.augment(image, random.Random(f"0 2 {index}"))
        assert torch.equal(exact[(2, index)].pixels, to_tensor(expected))
        assert default[(2, index)].pixels.shape == (3, 16, 16)
    assert any(not torch.equal(exact[(2, i)].pixels, default[(2, i)].pixels) for i in range(6))


def test_an_image_found_damaged_late_changes_nothing_for_its_substitute(tmp_path, noise):
    for name in ("train/a/0", "train/a/1", "train/b/0", "train/b/1", "val/a/0", "val/b/0"):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(150, 120).save(path, quality=95)
    data = open_dataset(str(tmp_path))
    path = tmp_path / "train/a/0.jpg"
    path.write_bytes(path.read_bytes()[:-2000])  # Its header is valid.
    dataset = train_set(data)
    first, again = dataset[(0, 0)], dataset[(0, 0)]
    assert (first.position, again.position) == (1, 1)
    assert torch.equal(first.pixels, again.pixels)


def test_a_batch_is_channels_last(photos):
    (batch, *_) = batches(train_set(photos))
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)


def test_labels_belong_to_their_images(photos):
    for batch in batches(train_set(photos)):
        expected = [photos.train.labels[i] for i in batch.indices.tolist()]
        assert batch.labels.tolist() == expected


def test_the_cache_of_small_images_changes_nothing(photos):
    # A short side of 30 pixels is smaller than any crop needs, so it is kept.
    plain, cached = (train_set(photos, replace(COLOR, image_size=32)) for _ in range(2))
    assert cached.fill_cache(budget=10**9).startswith("the training images are cached in memory")
    for index in range(len(plain)):
        assert torch.equal(plain[(1, index)].pixels, cached[(1, index)].pixels)


def test_the_cache_of_large_images_is_smaller_and_nearly_the_same(make_folder):
    counts = {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1}
    root = make_folder(counts, size=(240, 180))
    for path in root.rglob("*.png"):  # Noise has no large structures; a photo does.
        with Image.open(path) as image:
            image.crop((0, 0, 12, 9)).resize((240, 180), Image.Resampling.BICUBIC).save(path)
    data = open_dataset(str(root))
    plain, cached = train_set(data), train_set(data)
    cached.fill_cache(budget=10**9)
    assert cached.cache.block.nbytes < 8 * 3 * 30 * 40
    for index in range(8):
        one, other = plain[(0, index)].pixels, cached[(0, index)].pixels
        assert (one.float() - other.float()).abs().mean() < 4


def test_what_does_not_fit_is_not_cached(photos):
    train, val = train_set(photos), EvalDataset(photos.val, COLOR)
    assert "do not fit" in train.fill_cache(budget=1000)
    assert "do not fit" in val.fill_cache(budget=1000)
    assert train.cache is None
    assert val.cache is None
    assert memory_budget() > 10**6
    assert memory_budget(workers=4) > 0


def test_evaluation_sees_the_preprocessing_and_nothing_else(photos):
    plain, cached = EvalDataset(photos.val, COLOR), EvalDataset(photos.val, COLOR)
    cached.fill_cache(budget=10**9)
    for index in range(len(photos.val)):
        expected = torch.from_numpy(COLOR.pixels(photos.val.open(index, "RGB")))
        for dataset in (plain, cached):
            item = dataset[index]
            assert torch.equal(item.pixels, expected)
            assert (item.label, item.position) == (photos.val.labels[index], index)


def test_digits_are_one_channel(photos):
    data = open_dataset("digits")
    dataset = train_set(data, GRAY)
    item = dataset[(0, 0)]
    dataset.fill_cache(budget=10**9)
    assert item.pixels.shape == (1, 8, 8)
    assert torch.equal(dataset[(0, 0)].pixels, item.pixels)
    assert EvalDataset(data.val, GRAY)[0].pixels.shape == (1, 8, 8)


@pytest.fixture
def broken(photos):
    """The same photos, but training image 2 is truncated and validation image 1 is empty."""
    path = photos.train.source(2)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
    open(photos.val.source(1), "wb").close()
    return photos


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_training_image_is_replaced_by_the_next_of_its_class(broken, cached, workers):
    dataset = train_set(broken)
    if cached:
        dataset.fill_cache(budget=10**9)
    seen = batches(dataset, num_workers=workers)
    assert all(len(batch.labels) == 6 for batch in seen)
    indices = [i for batch in seen for i in batch.indices.tolist()]
    assert 2 not in indices
    assert indices.count(3) == 4  # Two epochs, each for itself and for image 2.
    records = [record for batch in seen for record in batch.bad]
    assert {index for index, _ in records} == {2}
    bad = BadImages(broken.train, max_share=0.1)
    (new,) = bad.update(records)
    assert new.source.endswith("002.png")
    assert bad.update(records) == []
    assert len(bad) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_bad_validation_image_is_left_out(broken, cached):
    dataset = EvalDataset(broken.val, COLOR)
    if cached:
        dataset.fill_cache(budget=10**9)
    (batch,) = DataLoader(dataset, batch_size=8, collate_fn=collate)
    assert batch.indices.tolist() == [0, 2, 3]
    assert batch.labels.tolist() == [0, 1, 1]
    assert batch.pixels.shape == (3, 3, 16, 16)
    assert batch.bad == ((1, "the file is empty"),)
    nothing = collate([dataset[1]])
    assert nothing.pixels.shape == (0, 3, 16, 16)
    assert len(nothing.labels) == 0


def test_a_class_without_any_readable_image_is_an_error(broken):
    for index in range(12, 18):
        open(broken.train.source(index), "wb").close()
    with pytest.raises(ValueError, match=r"no image of the class of .* can be read"):
        train_set(broken)[(0, 14)]


def test_too_many_bad_images_end_the_run(photos):
    bad = BadImages(photos.train, max_share=0.12)  # 2 of 18
    bad.update([(0, "x"), (1, "x"), (0, "x")])
    with pytest.raises(
        ValueError, match=r"3 of 18 images .* the 2 that are allowed: .*000\.png: x"
    ):
        bad.update([(5, "y")])
    with pytest.raises(ValueError, match="max_bad_share"):
        BadImages(photos.train, max_share=0).update([(0, "x")])
    assert len(BadImages(photos.train, max_share=0.01).update([(0, "one is always allowed")])) == 1


def test_a_cache_keeps_shapes_apart_and_remembers_what_failed():
    from convnext.data.images import BadImage

    cache = ImageCache(np.array([[2, 3, 1], [1, 1, 3], [4, 4, 3]]))

    def load(index):
        if index == 1:
            raise BadImage("b", "gone")
        return np.full(cache.shapes[index], index + 1, np.uint8)

    cache.fill(load)
    assert cache[0].tolist() == np.full((2, 3, 1), 1).tolist()
    assert cache[2].shape == (4, 4, 3)
    assert (cache[2] == 3).all()
    assert cache.bad == {1: "gone"}


def test_the_real_photos_in_two_processes(shared_data):
    data = open_dataset(str(shared_data / "trashnet_photos"))
    dataset = train_set(data, replace(COLOR, image_size=64), RAND_AUGMENT)
    for one, other in zip(batches(dataset), batches(dataset, num_workers=2), strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert one.bad == ()


def test_threads_read_what_one_reads(photos, monkeypatch):
    dataset = EvalDataset(photos.train, COLOR)
    alone = [dataset[index] for index in range(len(dataset))]
    seen = set()
    read = dataset._pixels

    def watched(index):
        seen.add(threading.current_thread().name)
        return read(index)

    monkeypatch.setattr(dataset, "_pixels", watched)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        seen.clear()
        together = dataset.__getitems__(list(range(len(dataset))))
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(alone, together, strict=True))
        assert [item.label for item in together] == [item.label for item in alone]
        assert (threading.current_thread().name in seen) == (threads == 1)


def test_images_that_cannot_be_cached_are_counted_and_named(photos):
    (first, second) = (photos.train.source(i) for i in (1, 7))
    Path(first).write_bytes(b"")
    Path(second).write_bytes(Path(second).read_bytes()[:100])
    line = train_set(photos).fill_cache(budget=10**9)
    assert line.startswith("the training images are cached in memory (")
    assert line.endswith(
        f", except 2 of 18 that cannot be read (such as {first}: the file is empty)"
    )
    line = EvalDataset(photos.val, COLOR).fill_cache(budget=10**9)
    assert "cannot be read" not in line
