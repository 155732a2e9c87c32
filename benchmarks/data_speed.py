"""Time `convnext data` on large data sets: wall time, processor time and memory of two looks.

    python benchmarks/data_speed.py FOLDER                    # writes the sets, then measures
    python benchmarks/data_speed.py FOLDER --rounds 3         # three first looks each
    python benchmarks/data_speed.py FOLDER --count 200        # does it run at all?

The sets are FOLDER/classes, 100,000 small JPEG files in 100 class folders of two splits, and
FOLDER/coco, the same files (as hard links) with 9 polygons each in COCO's json. They are written
once, and kept until the folder is deleted. Every look is a process of its own with an empty cache
folder; the second look has the cache that the first one wrote. Processor time is that of the
process and its children, so waiting for other processes does not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES, NUM_OBJECTS, NUM_POINTS = 100, 9, 12
SIZE = (96, 72)
VAL_SHARE = 0.1
SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one `convnext data` took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of user and system time."""
    memory: float
    """Peak resident memory in GB, of the largest process."""


def write_images(folder: Path, count: int) -> dict[str, list[Path]]:
    """Write distinct photos into SPLIT/CLASS/NUMBER.jpg; return the files of each split."""
    rng = np.random.default_rng(0)
    files: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for i in range(count):
        split = SPLITS[int(i % round(1 / VAL_SHARE) == 0)]
        path = folder / split / f"class{i // 10 % NUM_CLASSES:03d}" / f"{i:06d}.jpg"
        files[split].append(path)
        # Drawn for files that exist too: after an interruption, the others differ from them.
        cells = rng.integers(0, 256, (6, 8, 3), np.uint8)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        image, file = Image.fromarray(cells).resize(SIZE, Image.Resampling.BILINEAR), BytesIO()
        image.save(file, "JPEG", quality=85)
        path.write_bytes(file.getvalue())
    return files


def write_coco(folder: Path, files: dict[str, list[Path]]) -> None:
    """Write COCO's json of polygons with hard links to the images."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, NUM_POINTS, endpoint=False)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, paths in files.items():
        target = folder / "annotations" / f"instances_{split}2017.json"
        if target.exists():
            continue
        images, annotations = [], []
        (folder / f"{split}2017").mkdir(exist_ok=True)
        for number, path in enumerate(paths, 1):
            link = folder / f"{split}2017" / path.name
            if not link.exists():
                os.link(path, link)
            entry = {"id": number, "file_name": path.name, "width": SIZE[0], "height": SIZE[1]}
            images.append(entry)
            radius = rng.uniform(4, 10, (NUM_OBJECTS, NUM_POINTS))
            center = rng.uniform((11, 11), (SIZE[0] - 11, SIZE[1] - 11), (NUM_OBJECTS, 2))
            x = (center[:, :1] + radius * np.cos(angles)).round(2)
            y = (center[:, 1:] + radius * np.sin(angles)).round(2)
            for k in range(NUM_OBJECTS):
                low, high = (x[k].min(), y[k].min()), (x[k].max(), y[k].max())
                width, height = round(high[0] - low[0], 2), round(high[1] - low[1], 2)
                area = (np.roll(y[k], -1) * x[k] - np.roll(x[k], -1) * y[k]).sum() / 2
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": (number + k) % 80 + 1,
                        "bbox": [low[0], low[1], width, height],
                        "area": round(float(area), 4),
                        "iscrowd": 0,
                        "segmentation": [np.stack((x[k], y[k]), 1).ravel().tolist()],
                    }
                )
        content = {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": f"thing{i}"} for i in range(1, 81)],
        }
        target.write_text(json.dumps(content))


def write_sets(folder: Path, count: int) -> None:
    """Write both data sets, unless they exist."""
    write_coco(folder / "coco", write_images(folder / "classes", count))


def look(path: Path, cache: Path, options: list[str]) -> Look:
    """Run `convnext data` in a process of its own."""
    command = [sys.executable, "-m", "convnext", "data", str(path), *options]
    started = time.perf_counter()
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    per_gb = 1e9 if platform.system() == "Darwin" else 1e6
    return Look(
        wall=time.perf_counter() - started,
        processor=usage.ru_utime + usage.ru_stime,
        memory=usage.ru_maxrss * (1 if per_gb == 1e9 else 1.024) / per_gb,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100_000, help="number of images")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=["classes", "coco"])
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="of `data`")
    given = parser.parse_args()
    # In a process of its own: a child starts with the peak memory of its parent.
    writer = multiprocessing.Process(target=write_sets, args=(given.folder, given.count))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise SystemExit("the data sets could not be written")
    results = {}
    for name in given.sets:
        looks: dict[str, list[Look]] = {"first": [], "second": []}
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for found in looks.values():
                    found.append(look(given.folder / name, Path(cache), given.options))
        for which, found in looks.items():
            middle = {
                key: round(statistics.median(asdict(one)[key] for one in found), 2)
                for key in ("wall", "processor", "memory")
            }
            results[f"{name} {which}"] = middle
            print(
                f"{name:8} {which:6} look {middle['wall']:7.1f} s, processor "
                f"{middle['processor']:7.1f} s, {middle['memory']:.2f} GB",
                flush=True,
            )
    print(json.dumps({"count": given.count, "rounds": given.rounds, "results": results}))


if __name__ == "__main__":
    main()
