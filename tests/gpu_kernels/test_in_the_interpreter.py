"""The kernels in Triton's interpreter.

It must be selected before Triton is imported, and other tests of this process may have imported it
already (torch's compiler does). So the checks run in a separate process, under names that pytest
does not collect here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("check_*.py"))


# Many kernels, each run many times: up to a minute in the interpreter.
SLOW = {"check_choose.py", "check_depthwise.py", "check_norm.py"}


@pytest.mark.parametrize(
    "name", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FILES]
)
def test_kernels_in_the_interpreter(name: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ran = subprocess.run(
        [
            *command,
            "-o",
            "python_files=check_*.py",
            f"--basetemp={tmp_path / 'own'}",
            FOLDER / name,
        ],
        cwd=root,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


def _environment() -> dict[str, str]:
    """Return the environment with the interpreter on, and without what pytest-xdist sets."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    return kept | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
