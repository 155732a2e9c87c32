"""Every kernel compiles for a GPU without one, since the interpreter accepts more code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE = """
import warnings
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gpu_kernels import depthwise, mlp, norm
from gpu_kernels.tuning import LAUNCH, split

warnings.simplefilter("error")
SCALARS = {"eps": "fp32"} | dict.fromkeys(
    ("height", "width", "channels", "hidden", "num_rows", "rows_each"), "i32"
)


def compile_(tuner, constants, config):
    constants = constants | config.kwargs
    names = tuner.fn.arg_names
    types = {n: "constexpr" if n in constants else SCALARS.get(n, "*bf16") for n in names}
    types |= {"partial": "*fp32"} if "partial" in types else {}
    source = ASTSource(tuner.fn, types, constants, {})
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **LAUNCH}
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


for config in depthwise.FORWARD[:2]:
    compile_(depthwise._forward, {"KERNEL": 7, "HAS_BIAS": True}, config)
for config in depthwise.GRADIENT[:2]:
    compile_(depthwise._gradient, {"KERNEL": 7, "PADDED": 8}, config)
for channels in (96, 128):
    parts, width = split(channels)
    own = {"PARTS": parts, "WIDTH": width}
    flags = {"KERNEL": 7, "HAS_BIAS": True, "IS_AFFINE": True, "PADDED": 128}
    compile_(norm._forward, flags | own, norm.CONFIGS[4])
    flags = {"HAS_SCALE": True, "HAS_RESIDUAL": True, "WIDEN": False}
    compile_(mlp._forward, flags | own, mlp.CONFIGS[0])
"""


@pytest.mark.slow
def test_for_compute_capability_9(tmp_path: Path) -> None:
    pytest.importorskip("triton.backends.nvidia")
    command = [sys.executable, "-c", COMPILE]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        command,
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
