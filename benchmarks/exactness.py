"""Check whether another version computes the same bytes: in short trainings and in outputs.

    python benchmarks/exactness.py --data-root DATA > before.json
    python benchmarks/exactness.py --data-root DATA --compare before.json

Every task is trained for a few steps through the command line, on a CPU in fp32 with one thread and
a fixed seed. The digests cover names, shapes and bytes of all weights, of the optimizer state with
the moving average, and the logged losses and scores. In addition, seeded networks of all tasks
compute outputs and gradients for a fixed input. Prints a table on standard error and one JSON
object as the last line of standard output. Only the command line, `convnext.create_model` and the
files of a run are used, so versions with other internal modules can be compared.

With DATA (or CONVNEXT_DATA), segmentation is trained on images of `camvid` and detection on those
of `nuclei_instances`; without it, on drawn squares. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Torch reads this on import; a different number of threads changes the order of sums.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
os.environ.update(THREADS)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import convnext  # noqa: E402

# Settings that a measurement would choose are fixed; `auto` chooses all others.
RUN = {"device": "cpu", "precision": "fp32", "channels_last": True, "compile": False, "seed": 7}
ONE_PROCESS = {"workers": 0}
NARROW = {"depths": [1, 1, 2, 1], "dims": [16, 16, 32, 32]}
LAYER_NORM = {"norm": "layer", "stem": "patchify", "drop_path_rate": 0.2, "changes": NARROW}
RECIPES: dict[str, dict[str, Any]] = {
    "classification": {
        "data": "digits",
        "model": "convnext_atto",
        "network": LAYER_NORM,
        "augment": {"mixup": 0.4, "cutmix": 0.5, "erasing": 0.2},
        "loss": {"label_smoothing": 0.1},
        "optim": {"batch_size": 48, "micro_batch_size": 24, "clip_grad": 1.0, "layer_decay": 0.9},
        "schedule": {"steps": 40, "warmup_steps": 5},
        "ema": {"decay": 0.9},
    },
    "classification, auto": {
        "data": "digits",
        "model": "convnext_atto",
        "network": {"changes": NARROW},
        "schedule": {"epochs": 1},
    },
    "segmentation": {
        "task": "segment",
        "model": "upernet_convnext_atto",
        "network": LAYER_NORM,
        "input": {"image_size": 96},
        "segment": {"channels": 16, "crop": 64, "jitter": [0.8, 1.2]},
        "optim": {"batch_size": 4, "micro_batch_size": 2, "lr": 2e-3},
        "schedule": {"steps": 12, "warmup_steps": 2},
        "ema": {"decay": 0.9},
    },
    "detection": {
        "task": "detect",
        "model": "mask_rcnn_convnext_atto",
        "network": {"changes": NARROW},
        "input": {"image_size": 96},
        "detect": {"channels": 16, "fc_dim": 32, "jitter": [0.8, 1.2], "crop": 96},
        "optim": {"batch_size": 4, "micro_batch_size": 2, "lr": 2e-3},
        "schedule": {"steps": 12, "warmup_steps": 2},
        "ema": {"decay": 0.9},
    },
}
# Columns of `metrics.jsonl` that do not depend on time or memory.
LEARNED = ("step", "loss", "lr", "grad_norm", "top1", "miou", "box_ap", "mask_ap")

SMALL = {"depths": (1, 1, 2, 1), "dims": (16, 16, 32, 32), "num_classes": 5}
DETECTOR = {
    **SMALL,
    "channels": 16,
    "fc_dim": 32,
    "num_proposals": 50,
    "score_threshold": 0.1,
    "max_detections": 10,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "convnext_atto": {},
    "convnext_isotropic_small": {"depths": (3,), "num_classes": 5},
    "roadmap/resnet50/resnet_baseline": {"depths": (1, 1, 1, 1), "num_classes": 5},
    "roadmap/resnet50/depthwise_conv": {"depths": (1, 1, 1, 1), "num_classes": 5},
    "upernet_convnext_atto": {**SMALL, "channels": 16, "auxiliary_channels": 16},
    "mask_rcnn_convnext_atto": DETECTOR,
    "cascade_mask_rcnn_convnext_atto": DETECTOR,
}


def main() -> int:
    """Train, compute and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-root",
        type=Path,
        default=os.environ.get("CONVNEXT_DATA") or None,
        help="folder with camvid and nuclei_instances (default: CONVNEXT_DATA, else drawn images)",
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier output")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folders here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    earlier = None if arguments.compare is None else read_output(arguments.compare)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = make_data(work / "data", arguments.data_root)
        result: dict[str, Any] = {"environment": environment(arguments.data_root), "digests": {}}
        if earlier is not None and earlier["environment"] != result["environment"]:
            parser.error(
                f"{arguments.compare} comes from {earlier['environment']}, this is "
                f"{result['environment']}: their bytes cannot be compared"
            )
        for name, recipe in RECIPES.items():
            settings = {**recipe, "loader": ONE_PROCESS, "run": RUN}
            if recipe.get("task") in data:
                settings["data"] = str(data[recipe["task"]])
            folder = (arguments.keep or work / "runs") / name.replace(", ", "_")
            result["digests"] |= {
                f"{name}: {part}": digest for part, digest in train(settings, folder, work).items()
            }
    for name, changes in NETWORKS.items():
        result["digests"] |= {f"{name}: {part}": d for part, d in compute(name, changes).items()}
    different = show(result["digests"], None if earlier is None else earlier["digests"])
    note(f"{time.perf_counter() - began:.0f} s")
    if earlier is not None:
        note(f"{len(different)} digests differ" if different else "every digest is the same")
        result["different"] = different
    print(json.dumps(result))
    return 1 if different else 0


def train(settings: Mapping[str, Any], folder: Path, work: Path) -> dict[str, str]:
    """Train through the command line; return the digests of the run's files."""
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML.
    command = [sys.executable, "-m", "convnext", "train", str(recipe), "--output", str(folder)]
    # Ignore earlier measurements of this machine.
    env = {**os.environ, **THREADS, "XDG_CACHE_HOME": str(work / "cache")}
    done = subprocess.run(
        [*command, "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    last = max((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{name: row[name] for name in LEARNED if name in row} for row in map(json.loads, lines)]
    return {
        "weights": digest(read(last / "model.safetensors")),
        "state": digest(read(last / "state.safetensors")),
        "best weights": digest(read(folder / "checkpoints" / "best.safetensors")),
        "losses and scores": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def compute(name: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a network's first weights, its outputs, and a classifier's gradients.

    The outputs are computed with weights that are derived from their names, because many layers of
    a fresh network do nothing.
    """
    torch.manual_seed(0)
    model = convnext.create_model(name, **changes)
    found = {"first weights": digest(sorted(model.state_dict().items()))}
    draw(model)
    images = torch.from_numpy(normal("images", (2, 3, 64, 64)))
    model.eval()
    if "rcnn" in name:
        with torch.no_grad():
            detections = model([images[0], images[1, :, :48]])
        assert sum(len(d["boxes"]) for d in detections), f"{name} detects nothing here"
        rows = [(f"{i}.{key}", d[key]) for i, d in enumerate(detections) for key in sorted(d)]
        return {**found, "outputs": digest(rows)}
    logits = model(images)
    logits.square().mean().backward()
    grads = [(n, p.grad) for n, p in sorted(model.named_parameters()) if p.grad is not None]
    return {**found, "outputs": digest([("logits", logits)]), "gradients": digest(grads)}


def draw(model: nn.Module) -> None:
    """Give every tensor values that are derived from its name and that affect the outputs."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            value = torch.from_numpy(normal(name, tuple(tensor.shape)))
            if tensor.dim() > 1:
                value *= (2 / tensor[0].numel()) ** 0.5
            elif name.endswith("bias") or name.endswith("running_mean"):
                value *= 0.1
            else:
                value = 1 + 0.1 * value.abs()
            tensor.copy_(value)


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a safetensors file by name."""
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes, in order."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def make_data(folder: Path, root: Path | None) -> dict[str, Path]:
    """Write small data sets for the dense tasks; return their folders by task."""
    segment, detect = folder / "segment", folder / "detect"
    for split, num in (("train", 16), ("val", 4)):
        if root is None:
            draw_segmentation(segment, split, num)
            draw_detection(detect, split, num)
        else:
            take_segmentation(segment, root / "camvid", split, num)
            take_detection(detect, root / "nuclei_instances", split, num)
    return {"segment": segment, "detect": detect}


def take_segmentation(folder: Path, source: Path, split: str, num: int) -> None:
    """Copy the first pairs of a split of a data set."""
    for kind in ("images", "annotations"):
        target = folder / kind / split
        target.mkdir(parents=True)
        for path in sorted((source / kind / split).iterdir())[:num]:
            shutil.copy(path, target)


def take_detection(folder: Path, source: Path, split: str, num: int) -> None:
    """Copy the first images of a split and their objects."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    name = f"instances_{split}.json"
    content = json.loads((source / name).read_text(encoding="utf-8"))
    images = content["images"][:num]
    ids = {image["id"] for image in images}
    objects = [row for row in content["annotations"] if row["image_id"] in ids]
    for image in images:
        target = folder / "images" / image["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "images" / image["file_name"], target)
    content |= {"images": images, "annotations": objects}
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def squares(seed: int) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Return an image of a red and a blue square, and (label, x, y, side) of each."""
    random = np.random.Generator(np.random.PCG64(seed))
    pixels = random.integers(80, 120, (80, 96, 3), dtype=np.uint8)
    found = []
    for label, color in ((1, (220, 40, 40)), (2, (40, 60, 220))):
        x, y, side = (int(random.integers(*bounds)) for bounds in ((0, 60), (0, 50), (14, 28)))
        pixels[y : y + side, x : x + side] = color
        found.append((label, x, y, side))
    return Image.fromarray(pixels), found


def draw_segmentation(folder: Path, split: str, num: int) -> None:
    """Write images of squares and their masks."""
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True)
    for i in range(num):
        image, found = squares(1000 * (split == "val") + i)
        mask = np.zeros((image.height, image.width), np.uint8)
        for label, x, y, side in found:
            mask[y : y + side, x : x + side] = label
        image.save(folder / "images" / split / f"{i:03d}.png")
        Image.fromarray(mask).save(folder / "annotations" / split / f"{i:03d}.png")


def draw_detection(folder: Path, split: str, num: int) -> None:
    """Write images of squares, and COCO's json with their polygons."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, objects = [], []
    for i in range(num):
        image, found = squares(2000 + 1000 * (split == "val") + i)
        name = f"{split}{i:03d}.png"
        image.save(folder / "images" / name)
        size = {"width": image.width, "height": image.height}
        images.append({"id": i + 1, "file_name": name, **size})
        for label, x, y, side in found:
            ring = [x, y, x + side, y, x + side, y + side, x, y + side]
            shape = {"bbox": [x, y, side, side], "area": side**2, "segmentation": [ring]}
            where = {"id": len(objects) + 1, "image_id": i + 1, "category_id": label}
            objects.append({**where, **shape, "iscrowd": 0})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def environment(root: Path | None) -> dict[str, str]:
    """Return the environment that the bytes depend on, besides the package."""
    return {
        "data": "drawn" if root is None else "camvid and nuclei_instances",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def read_output(path: Path) -> dict[str, Any]:
    """Return the last line of an earlier output."""
    found = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
    if not isinstance(found, dict) or not {"environment", "digests"} <= found.keys():
        raise SystemExit(f"{path} is not an output of this script")
    return found


def show(found: Mapping[str, str], earlier: Mapping[str, str] | None) -> list[str]:
    """Print the digests; return the names of those that differ or exist on one side only."""
    names = sorted(found.keys() | (earlier or {}).keys(), key=[*found, *(earlier or {})].index)
    different = [] if earlier is None else [n for n in names if found.get(n) != earlier.get(n)]
    width = max(map(len, names))
    for name in names:
        verdict = "" if earlier is None else "  DIFFERS" if name in different else "  same"
        note(f"{name:<{width}}  {found.get(name, 'absent')}{verdict}")
    return different


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
