"""One form of one network in a process of its own, which runs batches when it is told to.

Each form has a process, so that its memory can be told, and so that the settings of one (threads,
memory that is kept, compilers) do not reach another. Requests are lines of JSON on standard input,
answers lines on another file; `convnext.benchmarking.measure` has the other end.
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
from convnext.hardware.devices import autocast, wait_for
from convnext.hardware.system import keep_freed_memory
from convnext.hardware.timer import samples, timed
from convnext.tasks.factory import create_model
from convnext.training.measure import peak_memory_gb

LAYER_SCALE = 0.1
# A turn of slow images ends here.
TURN_S = 5.0
# Logit of a class beside 80 others of about 0.
SURE = 20.0


def build(
    request: dict[str, Any], note: Callable[[str], None]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return what runs one batch, and what is to be told of it.

    `kind` is "timm" (its network in eager mode, memory left as it is, as most people run it),
    "eager" (ours, likewise), "best" (what `convnext.deploy.optimize` finds, or the form in
    `found`), or "int8" (calibrated on noise, which does for its speed).
    """
    device = torch.device(request["device"])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    model = _network(request).eval().to(device)
    batch = torch.randn(request["batch"], request["in_chans"], *request["size"], device=device)
    images: Any = list(batch) if isinstance(model, Tunable) else batch
    if request["kind"] not in ("best", "int8"):
        told = {"precision": request["precision"]}
        return _as_trained(model, images, request["precision"], device), told
    keep_freed_memory()  # As `convnext predict` does.
    if request["kind"] == "int8":
        if isinstance(model, Tunable):
            raise ValueError("this network has no form in int8 here")
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
        if name.endswith("gamma"):  # Fresh layer scales of 1e-6 would hide what blocks compute.
            nn.init.constant_(p, LAYER_SCALE)
    for head in getattr(network, "box_heads", ()):
        # Fresh detectors find nothing, and so run no mask head: here every proposal is an object.
        head.classifier.bias.data[0] = SURE
    return network


def _as_trained(
    model: nn.Module, images: Any, precision: str, device: torch.device
) -> Callable[[], Any]:
    if device.type == "cuda":  # On a GPU it is what most people run.
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
    """Answer requests on a file descriptor until there are no more."""
    channel = os.fdopen(answers, "w", encoding="utf-8")

    def tell(told: dict[str, Any]) -> None:
        print(json.dumps(told), file=channel, flush=True)

    run: Callable[[], Any] = lambda: None  # noqa: E731
    device = torch.device("cpu")
    libraries = peak_memory_gb(device)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "build" in request:
                device = torch.device(request["build"]["device"])
                run, answer = build(request["build"], lambda line: tell({"note": line}))
                run()
                wait_for(device)
            turns = request.get("run", 0)
            (times,) = samples([run], device, rounds=turns, max_seconds=TURN_S, warmup=0)
            held = libraries if device.type == "cpu" else 0.0
            answer |= {"seconds": times, "peak_gb": peak_memory_gb(device) - held}
        except Exception as error:  # It is told, and the other forms go on.
            answer = {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        tell(answer)
