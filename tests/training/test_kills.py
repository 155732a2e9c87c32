"""Commands that are killed at random file operations, and repeated, lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import killed
import pytest

# A hundred in all.
KILLS = {
    "classify": 30,
    "segment": 15,
    "detect": 15,
    "study": 5,
    "convert": 10,
    "to-coco": 15,
    "export": 10,
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a fork may hang on macOS")
@pytest.mark.parametrize("case", KILLS)
def test_a_killed_command_loses_nothing(case: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, killed.__file__, case, str(tmp_path / "killed"), str(KILLS[case])],
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= KILLS[case]
    assert found["losses"] == []


def test_a_command_is_killed_at_the_operation_that_was_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import killed\n"
        "work = Path(sys.argv[1]); work.mkdir()\n"
        "argv = ['convert', sys.argv[2], 'out.safetensors', '--to', 'timm']\n"
        "whole = killed.run(argv, work)\n"
        "print(whole.code, whole.operations)\n"
        "print(killed.run(argv, work, kill_at=whole.operations).code)\n"
    )
    from small_exports import small_checkpoint

    source = small_checkpoint(tmp_path / "net.safetensors")
    folders = os.pathsep.join([str(Path(killed.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "work"), source],
        env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (ended, operations), (died,) = (line.split() for line in done.stdout.splitlines())
    assert (ended, died) == ("0", "-9")
    assert int(operations) >= 3
