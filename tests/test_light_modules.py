"""Exported files can be used without torch: these modules import neither torch nor timm."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = (
    "convnext.data.images",
    "convnext.data.preprocessing",
    "convnext.data.drawing",
    "convnext.data.threads",
    "convnext.weights",
    "convnext.weights.checkpoint",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_imports_neither_torch_nor_timm(module: str) -> None:
    code = (
        f"import {module}, sys; "
        "print(*(m for m in ('torch', 'torchvision', 'timm') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
