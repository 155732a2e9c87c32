"""A process that runs batches of one network on one backend, on request.

Each backend has its own process, so that its memory can be measured and its settings (threads,
kept memory, compilers) do not affect others. Requests are lines of JSON on standard input, answers
are lines of JSON on another file; `convnext.benchmarking.measure` is the client.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from convnext.deploy.backends import Backend
from convnext.deploy.backends import build as build_backend
from convnext.deploy.optimize import Tunable, optimize, tuner_of
from convnext.hardware.devices import autocast, peak_memory_gb, wait_for
from convnext.hardware.system import keep_freed_memory
from convnext.hardware.tuner import samples, timed
from convnext.tasks.factory import create_model

LAYER_SCALE = 0.1
# Maximum time of a turn.
TURN_S = 5.0
# The logit of one class, where the other 80 are about 0.
HIGH_LOGIT = 20.0


def build(
    request: dict[str, Any], note: Callable[[str], None]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return a function that runs one batch, and the facts to report about it.

    `kind` is "timm" (timm's network in eager mode with default settings), "eager" (ours, in the
    same way), "best" (the result of `convnext.deploy.optimize`, or the backend in `found`), or
    "int8" (calibrated on noise, which is enough to measure speed).
    """
    device = torch.device(request["device"])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    model = _network(request).eval().to(device)
    batch = torch.randn(request["batch"], request["in_chans"], *request["size"], device=device)
    images: Any = list(batch) if isinstance(model, Tunable) else batch
    if request["kind"] not in ("best", "int8"):
        facts = {"precision": request["precision"]}
        return _as_trained(model, images, request["precision"], device), facts
    keep_freed_memory()  # `convnext predict` does the same.
    if request["kind"] == "int8":
        if isinstance(model, Tunable):
            raise ValueError("this network has no int8 backend here")
        backend = Backend(engine="openvino", pointwise="conv", precision="int8")
        quantized = build_backend(backend, model, batch, [torch.randn_like(batch)])
        return lambda: quantized(batch), {"form": "openvino int8", "precision": "int8"}
    if "found" in request:
        backend = Backend(**request["found"])
        fast, seconds = timed(lambda: tuner_of(model).build(backend, images, inplace=True))
        return _inferring(fast, images), {"build_seconds": seconds}
    best, seconds = timed(lambda: optimize(model, batch, precision=request["precision"], note=note))
    found = {
        "form": str(best.form),
        "precision": best.form.precision,
        "found": asdict(best.form),
        "search": [asdict(m) for m in best.measured],
        "build_seconds": seconds,
    }
    return _inferring(best, images), found


def _network(request: dict[str, Any]) -> nn.Module:
    if request["kind"] == "timm":
        import timm

        network: nn.Module = timm.create_model(request["timm"])
    else:
        network = create_model(request["model"])
    for name, p in network.named_parameters():
        if name.endswith("gamma"):  # Initial layer scales of 1e-6 would hide the blocks.
            nn.init.constant_(p, LAYER_SCALE)
    for head in getattr(network, "box_heads", ()):
        # Untrained detectors find nothing and skip the mask head: make every proposal an object.
        head.classifier.bias.data[0] = HIGH_LOGIT
    return network


def _as_trained(
    model: nn.Module, images: Any, precision: str, device: torch.device
) -> Callable[[], Any]:
    if device.type == "cuda":  # The usual setting on a GPU.
        model = model.to(memory_format=torch.channels_last)
        if isinstance(images, Tensor):
            images = images.contiguous(memory_format=torch.channels_last)
    infer = _inferring(model, images)

    def run() -> Any:
        with autocast(device, precision):
            return infer()

    return run


def _inferring(network: nn.Module, images: Any) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return network(images)

    return run


def main(answers: int) -> None:
    """Answer requests on a file descriptor until standard input ends."""
    channel = os.fdopen(answers, "w", encoding="utf-8")

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    run: Callable[[], Any] = lambda: None  # noqa: E731
    device = torch.device("cpu")
    libraries = peak_memory_gb(device)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "build" in request:
                device = torch.device(request["build"]["device"])
                run, answer = build(request["build"], lambda line: send({"note": line}))
                run()
                wait_for(device)
            turns = request.get("run", 0)
            (times,) = samples([run], device, rounds=turns, max_seconds=TURN_S, warmup=0)
            held = libraries if device.type == "cpu" else 0.0
            answer |= {"seconds": times, "peak_gb": peak_memory_gb(device) - held}
        except Exception as error:  # Report it, so that the other backends continue.
            answer = {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        send(answer)
