"""Importing any module changes nothing: every public name keeps working."""

from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, convnext
for module in pkgutil.walk_packages(convnext.__path__, "convnext."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
public = [name for name in convnext.__all__ if name not in ("__version__", "FAMILY")]
wrong = [name for name in public if not callable(getattr(convnext, name))]
assert not wrong, f"no longer callable: {wrong}"
"""


def test_every_public_name_is_callable_after_all_modules_are_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
