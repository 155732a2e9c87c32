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
    assert "Fatal" not in done.stderr, done.stderr[-3000:]
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


@pytest.mark.slow
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


NETWORK = """
import os
import signal
import torch

class Flat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 4, 4)
        self.fc = torch.nn.Linear(8, 10)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))

class Failing(Flat):
    def forward(self, images):
        if self.training and os.environ.get("LOCAL_RANK") == "1":
            raise LookupError("a mistake in the network")
        return super().forward(images)

class Dying(Flat):
    def forward(self, images):
        if self.training and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)

class Unreadable(Flat):
    def __setstate__(self, state):
        if os.environ.get("LOCAL_RANK") == "1":
            raise ValueError("only the first process can make this network")
        super().__setstate__(state)
"""


def test_a_script_trains_on_two_devices_after_failures_too(tmp_path: Path) -> None:
    """One script, because every process of it imports torch."""
    (tmp_path / "networks.py").write_text(NETWORK, encoding="utf-8")
    text = f"""
import os
import sys
import convnext
import networks
print("imported", flush=True)
OWN = {{name: value for name, value in {SHORT}.items() if name not in ("model", "network")}}
names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
before = [os.environ.get(name) for name in names]
def children():
    if sys.platform != "linux":
        return []
    listed = open(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read().split()
    return [pid for pid in listed if b"run_job" in open(f"/proc/{{pid}}/cmdline", "rb").read()]
kinds = [networks.Failing, networks.Dying, networks.Unreadable]
if sys.platform == "win32":  # SIGKILL does not exist there.
    kinds.remove(networks.Dying)
for kind in kinds:
    try:
        convnext.train(output=kind.__name__, model=kind(), devices=2, **OWN)
    except (RuntimeError, ValueError) as error:
        print(type(error).__name__, str(error), *getattr(error, "__notes__", []))
    assert not children()
    assert [os.environ.get(name) for name in names] == before
class Here(networks.Flat):
    pass
try:
    convnext.train(output="here", model=Here(), devices=2, **OWN)
except ValueError as error:
    print("refused" if "uses Here of this script or notebook" in str(error) else error)
def report(run):
    assert [os.environ.get(name) for name in names] == before
    print("steps", run.steps, flush=True)
report(convnext.train(output="own", model=networks.Flat(), devices=2, **OWN))
report(convnext.train(output="1", **{SHORT}))
report(convnext.train(output="2", devices=2, **{SHORT}))
"""
    shown = run_script(tmp_path, text)
    assert shown.startswith("imported\n")
    assert shown.count("imported") == 1
    failing = "RuntimeError process 1 of the 2 of this run: LookupError: a mistake in the network"
    assert failing in shown
    assert "in forward" in shown, "the traceback of the other process"
    if sys.platform != "win32":
        assert "LostProcessError process 1 of the 2 of this run was lost" in shown
        assert "(it ended with signal SIGKILL)" in shown
    assert "ValueError process 1 of the 2 of this run: only the first process can" in shown
    assert shown.endswith("\nrefused\n" + "steps 2\n" * 3)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for part, values in one.items():
        assert values == pytest.approx(two[part], abs=1e-5), part


CELLS = (
    "import convnext\nfrom PIL import Image",
    f"run = convnext.train(output='run', **{SHORT})",
    "model = convnext.load('run', device='cpu')",
    "result = model.predict(Image.new('L', (8, 8)), progress=False)[0]",
    "assert run.steps == 2\nassert len(result.names) == 10",
    f"run = convnext.train(output='two', devices=2, **{SHORT})\nassert run.steps == 2\nrun.best",
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
