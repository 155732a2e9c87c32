"""The GPU benchmark runs end to end on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_speed.py"


def _run(*options: str) -> dict[str, Any]:
    pytest.importorskip("triton")
    command = [sys.executable, str(SCRIPT), "--dry-run", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr[-3000:]
    tree: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return tree


@pytest.mark.slow
def test_forms_of_inference() -> None:
    tree = _run("--eager-only", "--modes", "infer", "--small")
    assert list(tree["infer_2"]) == ["timm eager", "ours eager", "ours kernels"]
    _check(tree["infer_2"])


@pytest.mark.slow
def test_all_forms_of_inference_and_training() -> None:
    tree = _run()
    for name in ("infer_1", "infer_2", "train_2"):
        assert len(tree[name]) == 6
        _check(tree[name])


def _check(forms: dict[str, Any]) -> None:
    assert forms["timm eager"]["ratio"] == 1.0
    assert all(form["difference"] < 2e-2 for form in forms.values())


@pytest.mark.slow
def test_each_kernel_alone() -> None:
    rows = _run("--kernels")["kernels"]
    forms = {(row["piece"], row["form"]) for row in rows}
    assert forms == {
        ("conv", "torch"),
        ("conv", "depthwise"),
        ("conv training", "torch"),
        ("conv training", "depthwise"),
        ("spatial", "torch"),
        ("spatial", "depthwise"),
        ("spatial", "fused"),
        ("pair", "torch"),
        ("pair", "fused"),
    }
    assert len(rows) == 4 * len(forms)
