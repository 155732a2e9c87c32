"""Time ConvNeXt on one GPU, inference and training: timm, and ours eager, compiled, with kernels.

    python benchmarks/gpu_speed.py                      # inference and training, batch 256 at 224
    python benchmarks/gpu_speed.py --kernels            # each kernel alone, per stage
    python benchmarks/gpu_speed.py --dry-run            # tiny, on a CPU: does it run at all?

Ratios are relative to timm in eager mode under autocast in channels_last, which is what most people
run. All inference backends have the same weights: timm's in fp32 under autocast, ours folded and in
bf16. A training step is forward, cross-entropy, backward and a fused AdamW step on one batch, with
fp32 weights under autocast for all. Backends take turns in every round; medians are of at least
five rounds. Small batches are measured with and without CUDA graphs. Prints tables and, as the last
line, one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import convnext
from convnext.deploy.fold import fold
from convnext.deploy.optimize import distance
from convnext.hardware.devices import autocast, environment, pick_device

NUM_CLASSES = 1000
MODES = ("infer", "train")


class Bench:
    """All backends of one network on one device."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.dry = arguments.dry_run
        self.device = torch.device("cpu") if self.dry else pick_device("cuda")
        torch.manual_seed(0)
        tiny: Any = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)} if self.dry else {}
        kernel = {"kernel_size": 3} if self.dry else {}
        model = convnext.create_model(
            arguments.model, num_classes=NUM_CLASSES, layer_scale_init=0.1, **tiny, **kernel
        )
        self.model = model.to(self.device, memory_format=torch.channels_last)
        kernel = {"kernel_sizes": 3} if self.dry else {}
        self.theirs = timm.create_model(arguments.model, num_classes=NUM_CLASSES, **tiny, **kernel)
        self.theirs.load_state_dict(convnext.export_weights(model, "timm"))
        self.theirs = self.theirs.to(self.device, memory_format=torch.channels_last)
        self.console = Console(highlight=False, width=max(130, Console().width))

    def images(self, batch: int) -> Tensor:
        size = self.arguments.size
        random = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, size, size, generator=random).to(self.device)
        return images.contiguous(memory_format=torch.channels_last)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend="aot_eager" if self.dry else "inductor")

    def with_kernels(self, model: nn.Module, images: Tensor) -> nn.Module:
        from gpu_kernels import apply_kernels
        from gpu_kernels.measure import interleaved_medians

        cache = Path(self.arguments.cache) if self.arguments.cache else None
        if self.dry:  # A dry run must not cache measurements that it only pretends to make.
            cache = Path(tempfile.mkdtemp()) / "kernels.json"
        timer = dry_timer if self.dry else interleaved_medians
        return apply_kernels(model, images, cache=cache, timer=timer, console=self.console)

    def inference(self, batch: int, *, graphs: bool) -> dict[str, Callable[[], Tensor]]:
        """Return the functions to time, by name of the backend."""
        images = self.images(batch)
        half = images.to(torch.bfloat16)
        theirs = self.theirs.eval()
        ours = fold(self.model.eval(), form="linear").to(torch.bfloat16)
        ours = ours.to(memory_format=torch.channels_last)
        kernels = self.with_kernels(ours, half)
        backends: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
            "timm eager": (self.in_autocast(theirs), images)
        }
        compile_ = not self.arguments.eager_only
        if compile_:
            backends["timm compiled"] = (self.in_autocast(self.compiled(theirs)), images)
        backends["ours eager"] = (ours, half)
        if compile_:
            backends["ours compiled"] = (self.compiled(ours), half)
        backends["ours kernels"] = (kernels, half)
        if compile_:
            backends["ours kernels compiled"] = (self.compiled(kernels), half)
        if graphs:
            for name in [name for name in backends if not self.dry]:
                function, x = backends[name]
                backends[f"{name}, graph"] = (self.graph(function, x), x)
        return {name: without_gradients(*backend) for name, backend in backends.items()}

    def graph(
        self, function: Callable[[Tensor], Tensor], example: Tensor
    ) -> Callable[[Tensor], Tensor]:
        from gpu_kernels import cuda_graph

        with torch.no_grad():
            return cuda_graph(function, example)

    def in_autocast(self, model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            with autocast(self.device, "bf16"):
                return model(images)

        return run

    def training(self, batch: int) -> dict[str, Callable[[], Tensor]]:
        """Return the training steps by name of the backend; each has a network of its own."""
        images = self.images(batch)
        labels = torch.arange(batch, device=self.device) % NUM_CLASSES
        networks: dict[str, nn.Module] = {
            "timm eager": self.theirs.train(),
            "ours eager": self.model.train(),
        }
        with autocast(self.device, "bf16"):
            networks["ours kernels"] = self.with_kernels(self.model, images)
        steps = {}
        for name, network in networks.items():
            steps[name] = self.step(network, network, images, labels)
            if not self.arguments.eager_only:
                own = copy.deepcopy(network)
                backend = f"{name.removesuffix(' eager')} compiled"
                steps[backend] = self.step(own, self.compiled(own), images, labels)
        return steps

    def step(
        self,
        network: nn.Module,
        forward: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
    ) -> Callable[[], Tensor]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

        def run() -> Tensor:
            with autocast(self.device, "bf16"):
                loss = nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return run

    def measure(self, title: str, batch: int, backends: dict[str, Callable[[], Tensor]]) -> Any:
        """Time all backends in turns, print a table, and return its rows."""
        from gpu_kernels.measure import seconds_of

        arguments = self.arguments
        outputs = {}
        for name, backend in backends.items():
            self.console.print(f"warming up: {name}")
            outputs[name] = backend().clone()
            for _ in range(0 if self.dry else 2):
                backend()
        found: dict[str, list[float]] = {name: [] for name in backends}
        steps = max(1, round(arguments.steps * 256 / max(batch, 64)))
        for _ in range(arguments.rounds):
            for name, backend in backends.items():
                found[name].append(seconds_of(backend, steps, self.device))
        base = found["timm eager"]
        table = Table(title, "images/s", "ms", "timm eager", "differs by", box=None)
        rows = {}
        for name, seconds in found.items():
            # The median of the ratios per round: a disturbance slows both sides of a round.
            ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
            median = statistics.median(seconds)
            away = distance(outputs[name], outputs["timm eager"])
            rows[name] = {
                "images_per_s": round(batch / median, 1),
                "ms": round(1000 * median, 4),
                "ratio": round(ratio, 3),
                "difference": away,
            }
            table.add_row(
                name,
                f"{batch / median:,.0f}",
                f"{1000 * median:.3f}",
                f"x {ratio:.2f}",
                f"{away:.1e}",
            )
        self.console.print(table)
        return rows

    def kernels(self) -> list[dict[str, Any]]:
        """Time each kernel alone on the maps of every stage, print a table, and return its rows."""
        from gpu_kernels.choose import call_of, inputs_of
        from gpu_kernels.measure import interleaved_medians
        from gpu_kernels.sites import Maps, variants_of
        from gpu_kernels.traffic import H200, floor_seconds, total_bytes, work_of

        columns = ("piece", "maps", "variant", "us", "GB", "of 4.3 TB/s", "of the limit", "gain")
        table, rows = Table(*columns, box=None), []
        model: Any = self.model.eval().to(torch.bfloat16)
        kernel_size = model.config.kernel_size
        for stage, stride in zip(model.stages, model.config.strides, strict=True):
            block = stage[-1]
            side = self.arguments.size // stride
            channels = block.spatial.in_channels
            maps = Maps(
                shape=(self.arguments.batch, channels, side, side),
                dtype=torch.bfloat16,
                device=self.device,
            )
            pieces = variants_of(block.spatial, training=False) | variants_of(
                block.spatial, training=True
            )
            for piece, variants in (pieces | variants_of(block, training=False)).items():
                inputs = inputs_of(piece, maps)
                calls = {
                    name: call_of(variant, inputs, piece) for name, variant in variants.items()
                }
                timer = dry_timer if self.dry else interleaved_medians
                seconds = timer(calls, self.device)
                for name, value in seconds.items():
                    work = work_of(piece, name, maps.shape, 2, kernel_size=kernel_size)
                    row = {
                        "piece": piece,
                        "shape": maps.shape,
                        "form": name,
                        "us": round(1e6 * value, 2),
                        "bytes": total_bytes(work),
                        "bandwidth_share": round(total_bytes(work) / value / H200.bytes, 4),
                        "limit_share": round(floor_seconds(work) / value, 4),
                        "gain": round(seconds["torch"] / value, 3),
                    }
                    rows.append(row)
                    table.add_row(
                        piece,
                        " x ".join(map(str, maps.shape)),
                        name,
                        f"{row['us']:,.1f}",
                        f"{total_bytes(work) / 1e9:.3f}",
                        f"{row['bandwidth_share']:.0%}",
                        f"{row['limit_share']:.0%}",
                        f"x {row['gain']:.2f}",
                    )
        self.console.print(table)
        return rows


def dry_timer(functions: Mapping[str, Callable[[], object]], device: torch.device) -> Any:
    """Call each function once and let all kernels win, so that a dry run covers them."""
    del device
    for function in functions.values():
        function()
    return {name: 1.0 if name == "torch" else 0.5 for name in functions}


def without_gradients(function: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """Return a function that calls `function` on images."""

    @torch.no_grad()
    def run() -> Tensor:
        return function(images)

    return run


def main() -> None:
    """Measure, and print tables and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--small", type=int, nargs="*", default=[1, 8], help="with CUDA graphs")
    parser.add_argument("--modes", nargs="*", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="calls per backend and round")
    parser.add_argument("--kernels", action="store_true", help="time each kernel alone")
    parser.add_argument("--eager-only", action="store_true", help="compile nothing")
    parser.add_argument("--cache", help="file of chosen kernels (default: the user's)")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.model, arguments.size, arguments.batch = "convnext_tiny", 32, 2
        arguments.small, arguments.rounds, arguments.steps = arguments.small[:1], 1, 1
        if os.environ.get("TRITON_INTERPRET") != "1":  # It must be set before Triton is imported.
            os.environ["TRITON_INTERPRET"] = "1"
            os.execv(sys.executable, [sys.executable, *sys.argv])
    elif arguments.rounds < 5:
        parser.error(f"--rounds {arguments.rounds}: medians need at least five rounds")
    bench = Bench(arguments)
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {}
    if arguments.kernels:
        result["kernels"] = bench.kernels()
    else:
        for batch in (arguments.batch, *arguments.small):
            if "infer" in arguments.modes:
                small = batch != arguments.batch
                title = f"inference, batch {batch}"
                backends = bench.inference(batch, graphs=small)
                result[f"infer_{batch}"] = bench.measure(title, batch, backends)
        if "train" in arguments.modes:
            backends = bench.training(arguments.batch)
            title = f"training, batch {arguments.batch}"
            result[f"train_{arguments.batch}"] = bench.measure(title, arguments.batch, backends)
    facts = environment(bench.device) | {
        "timm": timm.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps({"settings": vars(arguments), "environment": facts} | result))


if __name__ == "__main__":
    main()
