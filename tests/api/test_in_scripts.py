"""Training from a notebook, and from scripts without an import guard."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from convnext.data.threads import main_script_runs_once
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
from convnext.api import evaluate_robustness
print("imported")
run = convnext.train(output="run", workers=1, loader={{"cache": False}}, **{SHORT})
print("steps", run.steps)
evaluate_robustness(
    "run", workers=1, corruptions=["fog"], severities=[1], max_images=4, progress=False
)
print("measured", __file__.endswith("script.py"))
""",
    )
    assert shown.split() == ["imported", "steps", "2", "measured", "True"]


def test_a_script_without_a_guard_compares_once(tmp_path: Path) -> None:
    settings = SHORT.replace('model="convnext_atto", ', "")
    shown = run_script(
        tmp_path,
        f"""
import convnext
print("imported")
result = convnext.compare("convnext_atto", output="study", speed=False, jobs=1, **{settings})
print("states", *(row.state for row in result.results))
""",
    )
    assert shown.split() == ["imported", "states", "finished"]
    # No command made it.
    assert "<h3>Command</h3>" not in (tmp_path / "study" / "report.html").read_text("utf-8")


def test_the_name_of_the_script_is_hidden_one_thread_at_a_time() -> None:
    main = sys.modules["__main__"]
    before = (vars(main).get("__file__"), main.__spec__)
    inside = threading.Barrier(2, timeout=10)
    seen = []

    def hide() -> None:
        inside.wait()
        for _ in range(50):
            with main_script_runs_once():
                seen.append(("__file__" in vars(main), main.__spec__))
                time.sleep(1e-4)

    threads = [threading.Thread(target=hide) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(False, None)] * 100
    assert (vars(main).get("__file__"), main.__spec__) == before


def test_a_script_trains_on_two_devices(tmp_path: Path) -> None:
    text = f"""
import os
import time
import convnext
rank = int(os.environ.get("LOCAL_RANK", 0))
names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
before = [os.environ.get(name) for name in names]
for name in ("2", "again"):
    run = convnext.train(output=name, devices=2, **{SHORT})
    assert [os.environ.get(name) for name in names] == before
    print("steps", run.steps, flush=True)
try:
    convnext.train(output="3", devices=3, **{SHORT})
except ValueError as error:
    assert "already runs in 2 processes" in str(error)
if rank:
    raise SystemExit(3)
time.sleep(7)
print("the caller lives", flush=True)
"""
    shown = run_script(tmp_path, text).split()
    assert shown == ["steps", "2"] * 4 + ["the", "caller", "lives"]
    run_script(tmp_path, f"import convnext\nconvnext.train(output='1', **{SHORT})\n")
    one = weights(tmp_path / "1")
    for name in ("2", "again"):
        two = weights(tmp_path / name)
        for part, values in one.items():
            assert values == pytest.approx(two[part], abs=1e-5), part


def test_several_devices_need_a_script(tmp_path: Path) -> None:
    code = f"import convnext\nconvnext.train(output='run', devices=2, **{SHORT})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "ValueError: training on 2 devices starts the script 2 times" in done.stderr


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
