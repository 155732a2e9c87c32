"""One form of one network in a process of its own, which runs batches when it is told to.

Each form has a process, so that its memory can be told, and so that the settings of one (threads,
memory that is kept, compilers) do not reach another. Requests are lines of JSON on standard input,
answers lines on standard output; `convnext.benchmark.measure` has the other end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from convnext.device import autocast
from convnext.train.measure import peak_memory_gb


def build(request: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return what runs one batch, and what is to be told of it.

    `kind` is "timm" (its network in eager mode, memory left as it is, as most people run it),
    "eager" (ours, likewise), "best" (what `convnext.deploy.optimize` finds), or "int8" (calibrated
    on noise, which does for its speed).
    """
    device = torch.device(request["device"])
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    model = _network(request).eval().to(device)
    images = torch.randn(request["batch"], request["in_chans"], *request["size"], device=device)
    if request["kind"] not in ("best", "int8"):
        return _as_trained(model, images, request["precision"], device), {}
    if request["task"] == "detect":
        return _folded_detector(model, images, device), {"form": "folded, eager"}
    from convnext.deploy.build import build as form_runner
    from convnext.deploy.optimize import optimize

    if request["kind"] == "int8":
        from convnext.deploy.forms import Form

        form = Form(engine="openvino", pointwise="conv", precision="int8")
        runner = form_runner(form, model, images, [torch.randn_like(images)])
        return lambda: runner(images), {"form": "openvino int8"}
    began = time.perf_counter()
    best = optimize(model, images, precision=request["precision"], note=_note)
    told = {
        "form": str(best.form),
        "search": [asdict(m) for m in best.measured],
        "build_seconds": time.perf_counter() - began,
    }
    return lambda: best(images), told


def _network(request: dict[str, Any]) -> nn.Module:
    if request["kind"] == "timm":
        import timm

        network: nn.Module = timm.create_model(request["timm"])
        return network
    from convnext.family import create_model

    return create_model(request["model"])


def _as_trained(
    model: nn.Module, images: Tensor, precision: str, device: torch.device
) -> Callable[[], Any]:
    if device.type == "cuda":  # On a GPU it is what most people run.
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    given: Any = images if not hasattr(model, "rpn") else list(images)

    def run() -> Any:
        with torch.inference_mode(), autocast(device, precision):
            return model(given)

    return run


def _folded_detector(model: nn.Module, images: Tensor, device: torch.device) -> Callable[[], Any]:
    from convnext.allocator import keep_freed_memory
    from convnext.deploy.fold import fold
    from convnext.deploy.optimize import eager_form

    keep_freed_memory()
    form = eager_form(device, "fp32")
    folded = fold(model, form=form.pointwise, inplace=True).to(memory_format=torch.channels_last)
    return _as_trained(folded, images, "fp32", device)


def _note(line: str) -> None:
    print(json.dumps({"note": line}), flush=True)


def main() -> None:
    """Answer requests until there are no more."""
    run: Callable[[], Any] = lambda: None  # noqa: E731
    device = torch.device("cpu")
    libraries = peak_memory_gb(device)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "build" in request:
                device = torch.device(request["build"]["device"])
                run, answer = build(request["build"])
                run()
                _wait(device)
            times = []
            for _ in range(request.get("run", 0)):
                began = time.perf_counter()
                run()
                _wait(device)
                times.append(time.perf_counter() - began)
            held = libraries if device.type == "cpu" else 0.0
            answer |= {"seconds": times, "peak_gb": peak_memory_gb(device) - held}
        except Exception as error:  # It is told, and the other forms go on.
            answer = {"failure": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(answer), flush=True)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


if __name__ == "__main__":
    main()
