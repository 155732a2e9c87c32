"""Checks that need OpenVINO or ONNX Runtime, each file in a separate process.

Those libraries have their own threads and allocators, which should not affect the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "runtimes"
# Minutes each: networks of default width, every format of all tasks, calibrated int8 files.
SLOW = ("check_default_width.py", "check_export_tasks.py", "check_quantize.py")
FILES = [
    pytest.param(path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
    for path in sorted(FOLDER.glob("check_*.py"))
]


@pytest.mark.parametrize("name", FILES)
def test_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options = ["-o", "python_files=check_*.py", f"--basetemp={tmp_path / 'own'}"]
    ran = subprocess.run(
        [*command, *options, str(FOLDER / name)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout
