"""One preprocessing for everything, equal to timm's bit for bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from convnext.data.images import BadImage
from convnext.data.preprocessing import DensePreprocessing, Preprocessing, fit_short_side
from convnext.data.tensors import normalize, normalize_batch, to_batch, to_tensor
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD


def make(image_size=224, crop_pct=0.875, **changes):
    given = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} | changes
    return Preprocessing(image_size=image_size, crop_pct=crop_pct, **given)


SIZES = [(500, 375), (375, 500), (224, 224), (31, 90), (90, 31), (1001, 333), (256, 256)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("image_size", "crop_pct"), [(224, 0.875), (384, 1.0), (96, 0.875), (33, 0.9)]
)
def test_equals_the_evaluation_of_timm(size, image_size, crop_pct, noise):
    from timm.data import create_transform

    image = noise(*size)
    transform = create_transform(
        (3, image_size, image_size),
        is_training=False,
        interpolation="bicubic",
        crop_pct=crop_pct,
        # The published weights for 384 pixels are evaluated without a crop.
        crop_mode="squash" if crop_pct == 1 else "center",
    )
    ours = make(image_size, crop_pct)
    assert torch.equal(torch.from_numpy(ours(image)), transform(image))


def test_pixels_and_normalize_are_the_two_halves_of_a_call(noise):
    p = make(64)
    images = [noise(80, 70, seed=seed) for seed in range(3)]
    pixels = np.stack([p.pixels(image) for image in images])
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 3, 64, 64)
    assert pixels.flags.c_contiguous
    batch = p.normalize(pixels)
    assert batch.dtype == np.float32
    for row, image in zip(batch, images, strict=True):
        assert np.array_equal(row, p(image))


@pytest.mark.parametrize("shape", [(3, 3, 20, 30), (2, 1, 9, 9), (0, 3, 8, 8), (1, 3, 1, 1)])
def test_normalize_keeps_the_memory_format_and_the_bits(shape):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mean, std = IMAGENET_MEAN[: shape[1]], IMAGENET_STD[: shape[1]]
    means, stds = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    expected = (pixels.to(torch.float32) / 255 - means) / stds
    last = pixels.contiguous(memory_format=torch.channels_last)
    window = torch.nn.functional.pad(pixels, (2, 1, 1, 3))[:, :, 1 : 1 + shape[2], 2 : 2 + shape[3]]
    for batch in (pixels, last, window):
        before = batch.clone()
        images = normalize(batch, mean, std)
        assert torch.equal(images, expected)
        assert torch.equal(batch, before)
    assert normalize(pixels, mean, std).is_contiguous()
    assert normalize(last, mean, std).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
@pytest.mark.parametrize(
    "preprocessing",
    [
        make(64, 0.875),
        make(48, 1.0, interpolation="bilinear"),
        make(40, 0.9, in_chans=1, mean=(0.449,), std=(0.226,)),
        DensePreprocessing(image_size=0, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        DensePreprocessing(image_size=60, max_size=90, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        DensePreprocessing(image_size=37, in_chans=1, mean=(0.5,), std=(0.25,)),
    ],
    ids=lambda p: f"{type(p).__name__}-{p.image_size}",
)
def test_numpy_and_torch_compute_the_same_bits(preprocessing, size, mode, noise):
    image = noise(*size, mode)
    p = preprocessing
    ours = p.normalize(p.pixels(image)[None])
    pixels = to_tensor(Image.fromarray(np.moveaxis(p.pixels(image), 0, -1).squeeze()))
    assert torch.equal(pixels, torch.from_numpy(p.pixels(image)))
    means, stds = (torch.tensor(v).view(1, -1, 1, 1) for v in (p.mean, p.std))
    assert torch.equal(to_batch(p, image), (pixels[None].float() / 255 - means) / stds)
    assert ours.tobytes() == to_batch(p, image).numpy().tobytes()


def test_a_network_that_normalizes_itself_gets_pixels(noise):
    class Inside:
        normalizes, mean, std = False, (0.5,), (0.5,)

    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(normalize_batch(Inside(), pixels), pixels.float())


def test_images_of_any_mode_are_accepted(noise):
    gray = make(16, 1.0, in_chans=1, mean=(0.5,), std=(0.25,))
    for mode in ("RGB", "L", "RGBA", "LA", "CMYK", "P"):
        assert make(16, 1.0).pixels(noise(20, 20, mode)).shape == (3, 16, 16)
        assert gray.pixels(noise(20, 20, mode)).shape == (1, 16, 16)
    assert (gray.mode, make().mode) == ("L", "RGB")


def test_an_image_of_the_right_size_is_left_alone(noise):
    image = noise(8, 8, "L")
    p = make(8, 1.0, in_chans=1, mean=(0.0,), std=(1.0,))
    assert p.pixels(image).tobytes() == image.tobytes()


def test_extreme_shapes_give_the_square():
    for size in ((1, 1), (1, 3000), (3000, 1)):
        assert make(32).pixels(Image.new("RGB", size)).shape == (3, 32, 32)
    assert fit_short_side((3, 1000), 64) == (64, 21333)


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (3, 65_000)])
@pytest.mark.parametrize(
    "preprocessing",
    [
        make(),
        make(11_000),
        make(1, 1e-4),
        make(in_chans=1, mean=(0.5,), std=(0.25,)),
        DensePreprocessing(image_size=512, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        DensePreprocessing(image_size=512, max_size=10**9, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    ],
    ids=lambda p: f"{type(p).__name__}-{p.image_size}",
)
def test_an_image_too_elongated_is_refused_before_it_is_enlarged(preprocessing, size, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", None)
    with pytest.raises(BadImage, match=r"65,000.* would become .*more than 179 million"):
        preprocessing.pixels(Image.new("RGB", size))


def test_an_image_with_many_pixels_may_be_left_as_it_is(monkeypatch):
    monkeypatch.setattr("convnext.data.preprocessing.MAX_PIXELS", 100)
    p = DensePreprocessing(image_size=0, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert p.pixels(Image.new("RGB", (20, 20))).shape == (3, 20, 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (make().to_dict() | {"crop_pct": 1e-9}, r"crop_pct is 1e-09, .* at least 0\.017"),
        (make().to_dict() | {"crop_pct": 5e-324}, "crop_pct is 5e-324"),
        (make().to_dict() | {"image_size": 10**9}, "image_size is 1,000,000,000"),
        (make().to_dict() | {"image_size": 10**9, "crop_pct": 1}, "at most 13,377"),
        (make().to_dict() | {"image_size": 10**400}, "image_size is 1"),
        (DensePreprocessing(image_size=8, mean=IMAGENET_MEAN, std=IMAGENET_STD).to_dict()
         | {"image_size": 10**9}, "at most 13,377"),
    ],
    ids=["crop", "smallest_crop", "size", "size_without_crop", "huge", "dense"],
)  # fmt: skip
def test_a_card_with_an_input_beyond_memory_is_refused(values, message):
    kind = DensePreprocessing if "max_size" in values else Preprocessing
    with pytest.raises(ValueError, match=message):
        kind.from_dict(values)


def test_a_round_trip_through_json():
    p = make(288, 0.95, interpolation="bilinear")
    again = Preprocessing.from_dict(json.loads(json.dumps(p.to_dict())))
    assert again == p
    assert hash(again) == hash(p)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 2.5}, "image_size is 2.5"),
        ({"image_size": True}, "image_size is True"),
        ({"crop_pct": 0}, "crop_pct is 0"),
        ({"crop_pct": 1.2}, r"crop_pct is 1\.2"),
        ({"crop_pct": "auto"}, "crop_pct is 'auto'"),
        ({"interpolation": "cubic"}, "interpolation is 'cubic'"),
        ({"in_chans": 4}, "in_chans is 4"),
        ({"in_chans": 1}, "mean has 3 values, but in_chans is 1"),
        ({"std": [1, 1]}, "std has 2 values"),
        ({"std": [1, 0, 1]}, "must be above 0"),
        ({"std": [0.2, 1e-320, 0.2]}, "must lie in .1e-06, 1e.06."),
        ({"mean": [0, -1e30, 0]}, "must lie within 1e.06 of 0"),
        ({"mean": "auto"}, "mean is 'auto'"),
        ({"mean": [0, None, 0]}, "must be a tuple of numbers"),
        ({"crop": 1}, "no field 'crop'; did you mean 'crop_pct'"),
    ],
)
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(make().to_dict() | changes)


def test_a_missing_value_is_named():
    values = make().to_dict()
    del values["std"], values["crop_pct"]
    with pytest.raises(ValueError, match="lacks crop_pct, std"):
        Preprocessing.from_dict(values)
