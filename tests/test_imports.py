"""Importing a module changes no process settings, and public names keep working."""

from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import importlib, os, pkgutil, random, signal, tempfile, warnings
import numpy, torch, PIL.Image
# What these libraries do to the process when they are imported is theirs.
import matplotlib.figure, jsonargparse, lightning_fabric, timm, torchvision
import rich.progress, rich.table  # Its styles draw random numbers.
import torch.distributed.tensor, torch._dynamo, torch._inductor.config
from jsonargparse._optionals import get_docstring_parse_options

def umask():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "file")
        os.close(os.open(path, os.O_CREAT, 0o666))
        return os.stat(path).st_mode

def state():
    return {
        "warnings": list(warnings.filters),
        "umask": umask(),
        "environment": dict(os.environ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "random": (random.getstate(), torch.get_rng_state().tolist(), [
            part.tolist() if hasattr(part, "tolist") else part for part in numpy.random.get_state()
        ]),
        "torch": (
            torch.get_default_dtype(), torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32,
            torch.backends.mkldnn.enabled, torch.multiprocessing.get_sharing_strategy(),
        ),
        "compiler": (torch._dynamo.config.recompile_limit, torch._inductor.config.freezing),
        "pillow": PIL.Image.MAX_IMAGE_PIXELS,
        "figures": dict(matplotlib.rcParams),
        "parser": dict(get_docstring_parse_options()),
    }

import convnext
before = state()
for module in pkgutil.walk_packages(convnext.__path__, "convnext."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        after = state()
        changed = [name for name in before if before[name] != after[name]]
        assert not changed, f"importing {module.name} changes {changed}"
public = [name for name in convnext.__all__ if name not in ("__version__", "FAMILY", "Prediction")]
wrong = [name for name in public if not callable(getattr(convnext, name))]
assert not wrong, f"no longer callable: {wrong}"
"""


def test_importing_every_module_changes_nothing() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
