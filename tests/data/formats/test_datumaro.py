"""Our readers of objects against Datumaro's, which runs in an environment of its own."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_layouts import WRITERS, Truth, truth

from convnext.data.masks import area_of
from convnext.data.objects import open_dataset

SCRIPT = Path(__file__).parents[2] / "datumaro_reader.py"
_spec = importlib.util.spec_from_file_location("datumaro_reader", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reader)

Found = dict[str, list[tuple[str, list[float], list[float], int]]]
"""By image: the class, the box (x, y, width, height), the polygon, and the pixels of a bitmap."""


def images_below(root: Path) -> None:
    """Move the folders of the splits below images/, where Datumaro looks for those of COCO."""
    (root / "images").mkdir()
    for split in ("train", "val", "test"):
        (root / split).rename(root / "images" / split)


def without_subsets(root: Path) -> None:
    """Remove what Datumaro does not read of CVAT: subsets, ids that recur, and unlisted tags."""
    path = root / "annotations.xml"
    text = re.sub(r' subset="\w+"|<tag .*?</tag>', "", path.read_text())
    numbers = itertools.count()
    path.write_text(re.sub(r'<image id="\d+"', lambda _: f'<image id="{next(numbers)}"', text))


def unchanged(root: Path) -> None:
    """Leave the data set as it is."""


# Our writer, the format as Datumaro calls it, and what it needs.
FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "coco": ("coco", images_below),
    "voc": ("voc_detection", unchanged),
    "yolo": ("yolo", unchanged),
    "cvat": ("cvat", without_subsets),
    "labelme xml": ("label_me", unchanged),
    "datumaro": ("datumaro", unchanged),
}


@pytest.fixture(scope="module")
def python() -> Path:
    """Return the interpreter of the second environment."""
    found = Path(os.environ.get("CONVNEXT_DATUMARO", reader.interpreter()))
    if not found.is_file():
        pytest.skip(
            f"there is no second environment with Datumaro ({found}); make it with `python "
            "tests/datumaro_reader.py --install`, or name its interpreter in CONVNEXT_DATUMARO"
        )
    return found


def theirs(python: Path, root: Path, kind: str) -> Found:
    """Return what Datumaro reads."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), str(SCRIPT), str(root), kind]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    values: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    found: Found = {}
    for name, objects in values.items():
        rows = [(o["label"], o["box"], o["points"], o["pixels"]) for o in objects]
        if kind == "voc_detection":  # It counts pixels from 0, but Pascal VOC does from 1.
            rows = [(c, [x - 1, y - 1, w + 1, h + 1], p, n) for c, (x, y, w, h), p, n in rows]
        found[name] = sorted(rows)
    return found


def ours(root: Path) -> Found:
    """Return what our reader returns."""
    data = open_dataset(str(root), strict=False)
    found: Found = {}
    for images in data.parts.values():
        for record in images.records:
            rows = []
            for index, label in enumerate(record.objects.labels.tolist()):
                x1, y1, x2, y2 = record.objects.boxes[index].tolist()
                mask = record.objects.masks[index]
                points = (
                    [float(v) for ring in mask for v in ring]
                    if isinstance(mask, list | tuple)
                    else []
                )
                pixels = (
                    round(area_of(mask, (record.height, record.width)))
                    if isinstance(mask, dict)
                    else 0
                )
                rows.append((data.classes[label], [x1, y1, x2 - x1, y2 - y1], points, pixels))
            found[Path(record.file_name).stem] = sorted(rows)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_objects_are_those_that_datumaro_reads(name: str, tmp_path: Path, python: Path) -> None:
    kind, prepare = FORMATS[name]
    data: Truth = truth()
    WRITERS[name](tmp_path, data)
    prepare(tmp_path)
    found, expected = ours(tmp_path), theirs(python, tmp_path, kind)
    assert found.keys() == expected.keys() == {image for split in data.values() for image in split}
    for image, objects in expected.items():
        assert [row[0] for row in found[image]] == [row[0] for row in objects]
        for mine, other in zip(found[image], objects, strict=True):
            np.testing.assert_allclose(mine[1], other[1], atol=1e-3)
            assert mine[2] == pytest.approx(other[2])
            assert mine[3] == other[3]
