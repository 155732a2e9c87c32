"""Training from a notebook, and from scripts without an import guard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convnext.weights.files import read_file

# Settings of a training that takes seconds. Batch norm would see other batches on two devices.
SHORT = """dict(
    data="digits", model="convnext_atto", schedule={"steps": 2}, device="cpu", precision="fp32",
    network={"norm": "layer", "changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    progress=False,
)"""


def run_script(folder: Path, text: str) -> str:
    script = folder / "script.py"
    script.write_text(text, encoding="utf-8")
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def weights(run: Path) -> dict[str, list[float]]:
    found, _ = read_file(run / "checkpoints" / "step-00000002" / "model.safetensors")
    return {name: tensor.flatten().tolist() for name, tensor in found.items()}


def test_a_script_without_a_guard_trains_once_under_spawn(tmp_path: Path) -> None:
    shown = run_script(
        tmp_path,
        f"""
import torch.multiprocessing
torch.multiprocessing.set_start_method("spawn")
import convnext
print("imported")
run = convnext.train(output="run", workers=1, loader={{"cache": False}}, **{SHORT})
print("steps", run.steps)
""",
    )
    assert shown.split() == ["imported", "steps", "2"]


def test_a_script_trains_on_two_devices(tmp_path: Path) -> None:
    text = f"""
import os
import convnext
run = convnext.train(output="DEVICES", devices=DEVICES, **{SHORT})
print("steps", run.steps, flush=True)
"""
    assert run_script(tmp_path, text.replace("DEVICES", "2")).split() == ["steps", "2"] * 2
    assert run_script(tmp_path, text.replace("DEVICES", "1")).split() == ["steps", "2"]
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name, values in one.items():
        assert values == pytest.approx(two[name], abs=1e-5), name


CELLS = (
    "import convnext\nfrom PIL import Image",
    f"run = convnext.train(output='run', **{SHORT})",
    "model = convnext.load('run', device='cpu')",
    "result = model.predict(Image.new('L', (8, 8)), progress=False)[0]",
    "assert run.steps == 2\nassert len(result.names) == 10\nrun.best",
)


def test_a_notebook_trains_loads_and_predicts(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        f"""
import nbformat
from nbclient import NotebookClient

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in {CELLS!r}])
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
outputs = notebook.cells[-1].outputs
assert "top1" in outputs[0]["data"]["text/plain"], outputs
""",
    )
