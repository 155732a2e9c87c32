"""Augmentation: its draws, which depend only on the seed, and what it leaves unchanged."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data.preprocessing import Preprocessing
from convnext.data.tensors import normalize_batch
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from convnext.tasks.classification.augment import (
    BatchAugment,
    ImageAugment,
    color_jitter,
    random_box,
    seeded,
    smooth_one_hot,
)
from convnext.tasks.classification.recipe import ClassificationAugment

NONE = ClassificationAugment(
    scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
    hflip=0.0,
    rand_augment="none",
    color_jitter=0.0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
)
PAPER = ClassificationAugment(
    scale=(0.08, 1.0),
    hflip=0.5,
    rand_augment="rand-m9-mstd0.5-inc1",
    color_jitter=0.4,
    mixup=0.8,
    cutmix=1.0,
    erasing=0.25,
)
COLOR = Preprocessing(image_size=32, crop_pct=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
GRAY = Preprocessing(image_size=32, crop_pct=1.0, in_chans=1, mean=(0.5,), std=(0.25,))


def test_without_augmentation_an_image_is_only_resized(noise):
    image = noise(50, 50)
    augmented = ImageAugment(NONE, COLOR)(image, random.Random(0))
    assert augmented.tobytes() == image.resize((32, 32), Image.Resampling.BICUBIC).tobytes()


def test_flips_are_flips(noise):
    image = noise(32, 32)
    flipped = ImageAugment(replace(NONE, hflip=1.0), COLOR)(image, random.Random(0))
    assert flipped.tobytes() == image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    turned = ImageAugment(replace(NONE, vflip=1.0), COLOR)(image, random.Random(0))
    assert turned.tobytes() == image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
@pytest.mark.parametrize("recipe", [PAPER, replace(PAPER, rand_augment="none")])
def test_an_image_depends_on_its_generator_alone(noise, recipe, preprocessing):
    image = noise(60, 45, "L" if preprocessing is GRAY else "RGB")
    augment = pickle.loads(pickle.dumps(ImageAugment(recipe, preprocessing)))
    results = []
    for _ in range(2):
        random.seed()
        np.random.seed()
        results.append([augment(image, random.Random(i)).tobytes() for i in range(30)])
    assert results[0] == results[1]
    assert len(set(results[0])) == 30


@pytest.mark.parametrize("preprocessing", [COLOR, GRAY])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m9-n3", "rand-m10-inc1-p1"])
def test_rand_augment_keeps_size_and_mode(noise, preprocessing, policy):
    image = noise(40, 40, "L" if preprocessing is GRAY else "RGB")
    augment = ImageAugment(replace(PAPER, rand_augment=policy), preprocessing)
    for i in range(150):
        augmented = augment(image, random.Random(i))
        assert (augmented.size, augmented.mode) == ((32, 32), image.mode)


def test_exact_is_pillows_way_and_the_default_a_quicker_one(noise):
    image = noise(28, 28).resize((224, 224), Image.Resampling.BICUBIC)
    quick, exact = (
        {op.name: op for op in ImageAugment(replace(PAPER, exact=e), COLOR).rand_augment.ops}
        for e in (False, True)
    )
    for name, op in sorted(exact.items()):
        op.prob = quick[name].prob = 1.0
        with seeded(1):
            slow = op(image)
        with seeded(1):
            fast = quick[name](image)
        slow, fast = (np.asarray(i).astype(float) for i in (slow, fast))
        if name.startswith(("Rotate", "Shear", "Translate")):
            assert not np.array_equal(slow, fast)
            assert np.square(slow - fast).mean() < np.square(slow - np.asarray(image)).mean() / 10
        else:
            assert np.array_equal(slow, fast)


def test_the_global_generators_are_left_as_they_were(noise):
    augment = ImageAugment(PAPER, COLOR)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    augment(noise(), random.Random(0))
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    batch = BatchAugment(PAPER, num_classes=3, label_smoothing=0.1, preprocessing=COLOR)
    batch(pixels, torch.zeros(4, dtype=torch.int64), step=0)
    with seeded(9):
        random.random()
        np.random.rand()
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_boxes_lie_inside_and_have_the_area_and_shape_that_was_asked_for():
    rng = random.Random(0)
    for width, height in ((192, 256), (8, 8), (400, 30), (1, 1)):
        for _ in range(300):
            scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
            left, top, right, bottom = random_box(width, height, scale=scale, ratio=ratio, rng=rng)
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            area = (right - left) * (bottom - top) / (width * height)
            assert area <= 1 + 1e-9
            assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_a_crop_is_the_same_part_of_a_reduced_image():
    for seed in range(50):
        boxes = [
            random_box(w, h, scale=(0.2, 1), ratio=(3 / 4, 4 / 3), rng=random.Random(seed))
            for w, h in ((400, 600), (200, 300))
        ]
        assert boxes[0] == pytest.approx([2 * edge for edge in boxes[1]])


def test_jitter_changes_colors_within_its_strength():
    image = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [color_jitter(image, 0.4, random.Random(i)).getpixel((0, 0))[0] for i in range(200)]
    assert 58 <= min(values) < 75
    assert 125 < max(values) <= 141
    assert color_jitter(image.convert("L"), 0.4, random.Random(0)).mode == "L"


def test_a_batch_depends_on_seed_step_and_part(noise):
    pixels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def run(seed=0, **key):
        augment = BatchAugment(
            PAPER, num_classes=3, label_smoothing=0.1, preprocessing=COLOR, seed=seed
        )
        return augment(pixels, labels, **key)

    images, targets = run(step=5)
    assert (images.dtype, targets.dtype) == (torch.float32, torch.float32)
    assert torch.equal(run(step=5)[0], images)
    assert torch.equal(run(step=5)[1], targets)
    for other in (run(step=6), run(step=5, part=1), run(seed=1, step=5)):
        assert not torch.equal(other[0], images)
    assert torch.allclose(targets.sum(1), torch.ones(6))


def test_without_mixing_a_batch_is_normalized_and_smoothed():
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1])
    augment = BatchAugment(NONE, num_classes=3, label_smoothing=0.1, preprocessing=COLOR)
    images, targets = augment(pixels, labels, step=0)
    assert torch.equal(images, normalize_batch(COLOR, pixels))
    assert torch.equal(targets, smooth_one_hot(labels, 3, 0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "auto"}, "still has auto"),
        ({"rand_augment": "auto"}, "still has auto"),
        ({"hflip": 1.5}, r"augment\.hflip is 1\.5"),
        ({"mixup": -1.0}, r"augment\.mixup is -1"),
        ({"scale": (0.5, 0.2)}, r"augment\.scale is 0\.5, 0\.2"),
        ({"scale": (0.0, 1.0)}, r"augment\.scale is 0\.0"),
        ({"ratio": (2.0, 1.0)}, r"augment\.ratio is 2"),
        ({"rand_augment": "augmix-m3"}, "augment.rand_augment is 'augmix-m3'"),
        ({"rand_augment": "rand-m9-q1"}, "augment.rand_augment is 'rand-m9-q1'"),
        ({"rand_augment": "rand-m9-tnone"}, "augment.rand_augment is 'rand-m9-tnone'"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ImageAugment(replace(PAPER, **changes), COLOR)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_on_a_gpu():
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, device="cuda")
    augment = BatchAugment(PAPER, num_classes=3, label_smoothing=0.1, preprocessing=COLOR)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0], device="cuda")
    first, second = (augment(pixels, labels, step=3) for _ in range(2))
    assert first[0].is_cuda
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
