"""Time the input pipeline on one core in images per second: from JPEG files to a batch.

    python benchmarks/input_speed.py FOLDER                 # photos in FOLDER, timm and ours
    python benchmarks/input_speed.py FOLDER --side 1000     # other image sizes
    python benchmarks/input_speed.py FOLDER --count 8 --rounds 1 --batch 4    # does it run at all?

The photos are first rewritten with sides of `--side` pixels at quality 92, since data sets with
such small photos are rare. Each side then applies the paper's full recipe in this process with one
thread: random resized crop to 224, flip, RandAugment rand-m9-mstd0.5-inc1, mixup and cutmix,
normalization, random erasing 0.25. timm's pipeline is `create_loader` with
`FastCollateMixup` and its prefetcher, as in its train.py. Ours is the training data set, its
collation and `BatchAugment`, both by default and with `augment.exact`. They take turns on the same
files. Times are processor times, so waiting for another process does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import FastCollateMixup, create_dataset, create_loader
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor

from convnext.data.images import decode, image_files
from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import FolderSamples
from convnext.data.tensors import resize_crop, to_pixels
from convnext.hardware.devices import environment
from convnext.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from convnext.tasks.classification.augment import BatchAugment, ImageAugment, _posterize
from convnext.tasks.classification.dataset import Item, TrainDataset, collate
from convnext.tasks.classification.recipe import ClassificationAugment

SIZE, NUM_CLASSES, QUALITY = 224, 1000, 92
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
PAPER = ClassificationAugment(
    scale=(0.08, 1.0),
    hflip=0.5,
    rand_augment=RAND_AUGMENT,
    color_jitter=0.4,
    mixup=0.8,
    cutmix=1.0,
    erasing=0.25,
)
PREPROCESSING = Preprocessing(image_size=SIZE, crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)
Pass = Callable[[], Iterator[Tensor]]
"""Yields the batches of one pass over the files, fp32 (N, 3, 224, 224)."""


def write_photos(source: Path, folder: Path, *, count: int, side: int) -> list[Path]:
    """Write `count` photos with a long side of `side` pixels as folder/train/CLASS/*.jpg."""
    files = image_files([source])
    written = []
    for i in range(count):
        image = decode(files[i % len(files)], mode="RGB")
        factor = side / max(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        path = folder / "train" / f"class{i % 2}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.resize(size, Image.Resampling.BICUBIC).save(path, quality=QUALITY)
        written.append(path)
    return written


def ours(folder: Path, files: list[Path], batch_size: int, recipe: ClassificationAugment) -> Pass:
    """Return a pass over our training data set under a recipe."""
    names = [str(path.relative_to(folder)) for path in files]
    samples = FolderSamples(folder, names, [i % 2 for i in range(len(names))])
    data = TrainDataset(samples, augment=recipe, preprocessing=PREPROCESSING, seed=0)
    augment = BatchAugment(
        recipe, num_classes=NUM_CLASSES, label_smoothing=0.1, preprocessing=PREPROCESSING
    )
    rounds = iter(range(10**9))

    def one_pass() -> Iterator[Tensor]:
        number = next(rounds)
        for start in range(0, len(files), batch_size):
            draws = [(number, i) for i in range(start, min(start + batch_size, len(files)))]
            batch = collate(data.__getitems__(draws))
            yield augment(batch.pixels, batch.labels, step=number, part=start)[0]

    return one_pass


def timms(folder: Path, batch_size: int) -> Pass:
    """Return a pass over timm's loader with the same augmentation."""
    # timm's own operation fails with Pillow 13 at full strength.
    NAME_TO_OP["PosterizeIncreasing"] = _posterize
    loader: Any = create_loader(
        create_dataset("", root=str(folder / "train"), split="train", is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=batch_size,
        is_training=True,
        auto_augment=RAND_AUGMENT,
        color_jitter=0.4,
        re_prob=0.25,
        re_mode="pixel",
        interpolation="bicubic",
        num_workers=0,
        collate_fn=FastCollateMixup(
            mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=NUM_CLASSES
        ),
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    return lambda: (images for images, _ in loader)


def seconds_per_image(one_pass: Pass) -> float:
    """Return the processor seconds per image of one pass."""
    began, seen = time.process_time(), 0
    for images in one_pass():
        assert images.shape[1:] == (3, SIZE, SIZE)
        seen += len(images)
    return (time.process_time() - began) / seen


def stages(folder: Path, files: list[Path], recipe: ClassificationAugment) -> dict[str, float]:
    """Return the milliseconds per image of each stage of our default pipeline."""
    names = [str(path.relative_to(folder)) for path in files]
    samples = FolderSamples(folder, names, [0] * len(names))
    augment = ImageAugment(recipe, PREPROCESSING)
    batch_augment = BatchAugment(
        recipe, num_classes=NUM_CLASSES, label_smoothing=0.1, preprocessing=PREPROCESSING
    )
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        spent[name] = spent.get(name, 0.0) + 1000 * (time.process_time() - began) / len(files)
        return result

    def one(index: int) -> Tensor:
        rng = random.Random(index)
        read = partial(samples.open_crop, index, "RGB", draw=augment.draw(rng), size=SIZE)
        pixels, box = timed("decode", read)
        image = timed("crop", partial(resize_crop, pixels, box, SIZE, "bicubic"))
        whole = (0.0, 0.0, float(SIZE), float(SIZE))
        image = timed("flip, RandAugment", partial(augment, image, rng, whole))
        tensor: Tensor = timed("to tensor", partial(to_pixels, image))
        return tensor

    items = [Item(one(i), 0, i, ()) for i in range(len(files))]
    batch = timed("collate", partial(collate, items))
    timed("normalize, erase, mix", partial(batch_augment, batch.pixels, batch.labels, step=0))
    return spent


def main() -> None:
    """Measure, and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="a folder of photos")
    parser.add_argument("--side", type=int, default=500, help="long side of the JPEGs, in pixels")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    console = Console(highlight=False)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_photos(arguments.photos, folder, count=arguments.count, side=arguments.side)
        kilobytes = statistics.mean(path.stat().st_size for path in files) / 1000
        sides = {
            "timm": timms(folder, arguments.batch),
            "ours": ours(folder, files, arguments.batch, PAPER),
            "ours, exact": ours(folder, files, arguments.batch, replace(PAPER, exact=True)),
        }
        for one_pass in sides.values():
            seconds_per_image(one_pass)
        measured: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, one_pass in sides.items():
                measured[name].append(seconds_per_image(one_pass))
        parts = stages(folder, files, PAPER)

    table = Table("pipeline", "images/s per core", "against timm", box=None)
    rows: dict[str, dict[str, float]] = {}
    for name, found in measured.items():
        speed = 1 / statistics.median(found)
        # The median of the ratios per round: a disturbance slows both sides of a round.
        pairs = zip(measured["timm"], found, strict=True)
        ratio = statistics.median(theirs / own for theirs, own in pairs)
        rows[name] = {"images_per_s": round(speed, 1), "ratio": round(ratio, 3)}
        table.add_row(name, f"{speed:,.0f}", f"x {ratio:.2f}")
    facts = environment(torch.device("cpu")) | {
        "timm": timm.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    console.print(
        f"{len(files)} JPEGs, {arguments.side} pixels long, {kilobytes:.0f} KB on average; "
        f"{facts['cpu']}, torch {facts['torch']}, timm {facts['timm']}, {facts['date']}",
        soft_wrap=True,
    )
    console.print(table)
    console.print(
        "ours, ms per image: " + ", ".join(f"{name} {ms:.2f}" for name, ms in parts.items()),
        soft_wrap=True,
    )
    settings = vars(arguments) | {"photos": str(arguments.photos)}
    print(
        json.dumps(
            {"settings": settings, "environment": facts, "pipelines": rows}
            | {"stages_ms": {name: round(ms, 3) for name, ms in parts.items()}}
        )
    )


if __name__ == "__main__":
    main()
