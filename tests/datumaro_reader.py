"""Read data sets of objects with Datumaro, which needs an environment of its own.

Datumaro's requirements do not fit those of this package. This makes the environment, from the
versions in `datumaro.txt`, which needs the network and about 600 MB:

    python tests/datumaro_reader.py --install       # into .datumaro/; needs uv
    pytest -m slow tests/data/formats/test_datumaro.py

The test runs this file with the interpreter of that environment, and compares what it prints with
what our readers return:

    .datumaro/bin/python tests/datumaro_reader.py FOLDER FORMAT
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".datumaro"
VERSIONS = Path(__file__).with_name("datumaro.txt")


def install(folder: Path) -> None:
    """Install the versions of `datumaro.txt` into a new environment."""
    subprocess.run(["uv", "venv", "--python", "3.11", str(folder)], check=True)
    python = str(interpreter(folder))
    command = ["uv", "pip", "install", "--python", python, "--no-deps", "-r", str(VERSIONS)]
    subprocess.run(command, check=True)


def interpreter(folder: Path = ENVIRONMENT) -> Path:
    """Return the interpreter of the environment, which may not exist."""
    inner = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return folder.joinpath(*inner)


def read(folder: str, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Return the objects of every image by its name, as plain values.

    An object has a label, a box (x, y, width, height), and the points of its polygon, if any.
    """
    import datumaro

    dataset = datumaro.Dataset.import_from(folder, kind)
    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    found: dict[str, list[dict[str, Any]]] = {}
    for item in dataset:
        objects = found.setdefault(Path(item.id).name, [])
        # An object of COCO is a box, and a polygon or a mask of the same group.
        drawn = {one.group for one in item.annotations if one.type.name in ("polygon", "mask")}
        for one in item.annotations:
            is_repeated = one.type.name == "bbox" and one.group and one.group in drawn
            if one.type.name not in ("bbox", "polygon", "mask") or is_repeated:
                continue
            points = one.points if one.type.name == "polygon" else ()
            objects.append(
                {
                    "label": names[one.label],
                    "box": [float(value) for value in one.get_bbox()],
                    "points": [float(value) for value in points],
                    "pixels": int(one.image.sum()) if one.type.name == "mask" else 0,
                }
            )
    return found


def main() -> None:
    """Make the environment, or print the objects of a data set as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="the data set")
    parser.add_argument("format", nargs="?", help="its format, as Datumaro calls it")
    parser.add_argument("--install", action="store_true", help="make the environment")
    options = parser.parse_args()
    if options.install:
        install(ENVIRONMENT)
    else:
        print(json.dumps(read(options.folder, options.format)))


if __name__ == "__main__":
    main()
