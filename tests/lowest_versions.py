"""Train, evaluate, predict and export with the lowest versions that pyproject.toml allows.

Installs them into a new environment, which needs the network and about 6 GB, and runs the three
tasks in it from the command line:

    python tests/lowest_versions.py                 # needs uv
    python tests/lowest_versions.py --python .floor/bin/python    # in an environment that exists
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
SMALL = [
    *("--schedule.steps", "4", "--optim.batch_size", "4", "--loader.workers", "0"),
    *("--run.precision", "fp32"),
]
TASKS: dict[str, list[str]] = {
    "classify": ["--model", "convnext_atto", "--input.image_size", "32"],
    "segment": ["--model", "upernet_convnext_atto", "--segment.crop", "64"],
    "detect": ["--model", "mask_rcnn_convnext_atto", "--input.image_size", "64"],
}
EXPORTS = (
    *(("onnx", "fp32", ".onnx"), ("onnx", "int8", ".onnx"), ("pt2", "fp32", ".pt2")),
    *(("openvino", "fp32", ".xml"), ("openvino", "int8", ".xml")),
)
REFUSED = {("detect", "onnx", "int8")}
"""Exports that this package refuses: OpenVINO has int8 for detectors."""


def install(folder: Path) -> Path:
    """Install the lowest versions into a new environment and return its interpreter."""
    python = folder / "bin" / "python"
    base = ["uv", "venv", "--python", "3.11", str(folder)]
    subprocess.run(base, check=True)
    lowest = ["--resolution", "lowest-direct", "--editable", f"{ROOT}[export]"]
    subprocess.run(["uv", "pip", "install", "--python", str(python), *lowest], check=True)
    return python


def make_data(task: str, root: Path) -> Path:
    """Write a small data set of a task and return the folder of its images."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    if task == "detect":
        from small_objects import coco_squares

        return coco_squares(root) / "images"
    for split in ("train", "val"):
        for k in range(8):
            label = k % 2
            pixels = generator.integers(0, 100, (64, 64, 3), dtype=np.uint8) + 100 * label
            if task == "classify":
                path = root / split / "ab"[label] / f"{k}.png"
            else:
                path = root / "images" / split / f"{k}.png"
                mask = root / "annotations" / split / f"{k}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                half = np.full((64, 64), label, np.uint8)
                half[:32] = 1 - label
                Image.fromarray(half).save(mask)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root / "val" if task == "classify" else root / "images" / "val"


def run(python: Path, *arguments: str) -> str:
    """Run a command of the package; return the end of what it printed if it fails, else ""."""
    command = [str(python), "-m", "convnext", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-1500:]


def check(python: Path, task: str, work: Path) -> list[str]:
    """Return the commands of a task that fail, each with the end of what they printed."""
    data, trained, failures = work / task, str(work / f"{task}_run"), []
    images = str(make_data(task, data))

    def attempt(*arguments: str) -> bool:
        problem = run(python, *arguments)
        print(f"{'FAILS' if problem else 'works'}  convnext {' '.join(arguments)}", flush=True)
        if problem:
            failures.append(f"convnext {' '.join(arguments)}\n{problem}")
        return not problem

    if not attempt("train", "--data", str(data), *SMALL, *TASKS[task], "--output", trained):
        return failures
    attempt("evaluate", trained)
    attempt("predict", trained, images, "--output", str(work / f"{task}_found"))
    for format, precision, suffix in EXPORTS:
        if (task, format, precision) in REFUSED:
            continue
        path = str(work / f"{task}_{precision}{suffix}")
        # A network of four steps gives no answers that could agree.
        options = ["--format", format, "--precision", precision, "--force", "--output", path]
        if attempt("export", trained, *options, "--images", images):
            attempt("predict", path, images, "--output", str(work / f"{task}_{format}_{precision}"))
    return failures


def versions(python: Path) -> str:
    """Return the installed versions of the direct dependencies."""
    code = (
        "import json; from importlib.metadata import requires, version, PackageNotFoundError\n"
        "import re\nfound = {}\n"
        "for line in requires('convnext'):\n"
        "    name = re.match(r'[\\w.-]+', line)[0]\n"
        "    try: found[name] = version(name)\n"
        "    except PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    printed = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(printed.stdout)
    return ", ".join(f"{name} {number}" for name, number in sorted(found.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all tasks, print what fails, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, help="an environment that exists")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = given.python or install(work / "environment")
        print(versions(python), flush=True)
        failures = [line for task in given.tasks for line in check(python, task, work)]
    print("\n\n".join(failures) or "all commands work")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
