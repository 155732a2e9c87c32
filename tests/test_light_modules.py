"""Exported files and data checks need no torch: these modules import neither torch nor timm."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = (
    "convnext.data.images",
    "convnext.data.preprocessing",
    "convnext.data.drawing",
    "convnext.data.threads",
    "convnext.data.doctor",
    "convnext.data.objects",
    "convnext.hardware.tuning_cache",
    "convnext.tasks.classification.exported",
    "convnext.tasks.classification.inspect",
    "convnext.tasks.detection.inspect",
    "convnext.tasks.factory",
    "convnext.tasks.segmentation.inspect",
    "convnext.weights",
    "convnext.weights.checkpoint",
    "convnext.weights.published",
    "convnext.weights.sources",
)


def test_a_light_module_imports_neither_torch_nor_timm() -> None:
    """One process for all, which ends at the first module that imports one of them."""
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = [m for m in ('torch', 'torchvision', 'timm') if m in sys.modules]\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
        "print('all')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "all", done.stderr


@pytest.mark.parametrize("name", ["runs/first", "convnext_tinny.fb_in1k", "absent.pth"])
def test_a_model_that_does_not_exist_is_reported_without_torch(name: str) -> None:
    code = (
        "import convnext, sys\n"
        f"try: convnext.load({name!r})\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert name in done.stdout


@pytest.mark.parametrize("pattern", ["convnext_*", "mask_rcnn_*"])
def test_models_are_listed_without_torch(pattern: str) -> None:
    code = (
        "import convnext, sys\n"
        f"print(len(convnext.find_models({pattern!r}, progress=False).rows))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) > 20


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_a_model_that_does_not_exist_is_reported_before_the_images(verb: str) -> None:
    code = (
        "import convnext, sys\n"
        f"try: convnext.{verb}('absent.pth', ['no_photo.jpg'])\n"
        "except ValueError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("there is no file or folder absent.pth")
    assert "no_photo" not in done.stdout + done.stderr
