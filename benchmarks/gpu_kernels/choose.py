"""`apply_kernels`: compare each kernel with torch's own layers on this device, keep the faster one.

Every piece of a network that a kernel could compute is built in all its variants and measured on
maps of the shape that it receives for an example. Variants whose output differs from torch's are
rejected. The fastest of the others is used if it is faster by `MIN_GAIN`. Results are cached by
device, shape and versions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from convnext.deploy.optimize import distance
from convnext.hardware.tuning_cache import TuningCache, key_of
from gpu_kernels import available
from gpu_kernels.measure import Timer, interleaved_medians
from gpu_kernels.sites import Maps, find_sites, joined, replaced, variants_of
from gpu_kernels.traffic import Piece, floor_seconds, work_of

# A smaller gain is within the noise and does not justify another variant.
MIN_GAIN = 1.03
# Max relative L2 distance to torch's layers in the same precision, which rounding explains.
MOST = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The variant of a piece that is used for maps of one shape, and the reason."""

    piece: Piece
    shape: tuple[int, ...]
    dtype: str
    option: str
    """`torch`, `depthwise` or `fused`."""
    seconds: dict[str, float]
    """Median seconds of a call by option, for the correct ones."""
    predicted: dict[str, float]
    """The minimum seconds that an H200 would need, by option."""
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """The speedup over torch's own layers."""
        return self.seconds["torch"] / self.seconds[self.option]


def apply_kernels(
    network: nn.Module,
    example: Tensor,
    *,
    cache: Path | None = None,
    timer: Timer = interleaved_medians,
    console: Console | None = None,
) -> nn.Module:
    """Return a copy of a network that uses the kernels that are faster on this device.

    In training mode only depthwise convolutions are replaced, by layers with the same names,
    parameters and gradients. In evaluation mode the blocks of ConvNeXt, folded or not, run on
    inference kernels and can no longer be trained. Kernels are compared with eager layers. Since
    `torch.compile` fuses some operations itself, compare whole networks before combining the two.

    Args:
        network: Any network, on the device of the example.
        example: Images (N, C, H, W) of the batch size and image size in use. Call this function
            under the same autocast as the network.
        cache: The file of earlier results; by default in the user's cache folder.
        timer: Measures functions side by side.
        console: Prints what was chosen.

    Returns:
        The copy, with `choices`, a list of `Choice`. It equals the original if there is no Triton
        or no GPU, or if no kernel is faster.

    Raises:
        ValueError: If the example is not a batch of images.
    """
    if example.dim() != 4 or not len(example):
        raise ValueError(f"give a batch of images (N, C, H, W), not {tuple(example.shape)}")
    console = console or Console(stderr=True)
    network = copy.deepcopy(network)
    choices: dict[str, Choice] = {}
    if available(example.device):
        known = TuningCache(cache)
        for name, kind in find_sites(network, example).items():
            site = network.get_submodule(name)
            picked: dict[Piece, nn.Module] = {}
            options = set()
            for piece, variants in variants_of(site, training=network.training).items():
                key = _key(piece, variants, kind)
                if key not in choices:
                    choices[key] = _choose(piece, variants, kind, key, known, timer)
                options.add(choices[key].option)
                picked[piece] = variants[choices[key].option]
            if options != {"torch"}:
                network = replaced(network, name, joined(picked))
        console.print(table_of(list(choices.values())))
    else:
        console.print(
            f"no kernels on {example.device}: they need an NVIDIA GPU and Triton; "
            "the network runs as it was"
        )
    cast(Any, network).choices = list(choices.values())
    return network


def _key(piece: Piece, variants: Mapping[str, nn.Module], maps: Maps) -> str:
    """Return the key of a result in the cache."""
    device = maps.device
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    weights = [(n, tuple(w.shape), w.dtype) for n, w in variants["torch"].state_dict().items()]
    facts = (piece, sorted(variants), maps.shape, maps.dtype, autocast)
    return key_of("kernel", device, *facts, repr(variants["torch"]), weights)


def _choose(
    piece: Piece,
    variants: Mapping[str, nn.Module],
    maps: Maps,
    key: str,
    cache: TuningCache,
    timer: Timer,
) -> Choice:
    """Return the choice for a piece, from the cache or measured now."""

    def parse(value: Any) -> Choice:
        known = Choice(**(value | {"shape": tuple(value["shape"])}))
        if known.option not in variants or not known.seconds["torch"] > 0:
            raise ValueError(f"{known.option} in {known.seconds}")
        return known

    known: Choice | None = cache.load(key, parse)
    if known is not None:
        return known
    inputs = inputs_of(piece, maps)
    dtype = _dtype_of(inputs[0])
    calls = {name: call_of(variant, inputs, piece) for name, variant in variants.items()}
    expected = calls["torch"]()
    most = MOST[dtype]
    failures = {}
    for name in [name for name in calls if name != "torch"]:
        try:
            away = max(map(distance, calls[name](), expected))
            if not away <= most:
                failures[name] = f"differs by {away:.1e}, {most:.0e} are allowed"
        except Exception as error:  # A failing compiler or driver must not stop the network.
            failures[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
    right = {name: call for name, call in calls.items() if name not in failures}
    seconds = timer(right, maps.device)
    option = min(seconds, key=lambda name: seconds[name])
    if seconds["torch"] < MIN_GAIN * seconds[option]:
        option = "torch"
    choice = Choice(
        piece=piece,
        shape=maps.shape,
        dtype=str(dtype).removeprefix("torch."),
        option=option,
        seconds=seconds,
        predicted={
            name: floor_seconds(work_of(piece, name, maps.shape, dtype.itemsize))
            for name in variants
        },
        failures=failures,
    )
    cache.store(key, asdict(choice))
    return choice


def inputs_of(piece: Piece, maps: Maps) -> tuple[Tensor, ...]:
    """Return the inputs of a piece: its maps; a pair also gets those of the other half, first."""
    x = maps.draw()
    if piece != "pair":
        return (x,)
    y = x.flip(0, 2, 3).to(_dtype_of(x), memory_format=torch.channels_last)
    return (y, x)


def _dtype_of(x: Tensor) -> torch.dtype:
    """Return the dtype in which a convolution of x runs."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def call_of(
    variant: nn.Module, inputs: tuple[Tensor, ...], piece: Piece
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a function that runs a variant once: forward, and in training also backward."""
    if piece != "conv training":

        def infer() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (variant(*inputs),)

        return infer
    (x,) = inputs
    x = x.detach().requires_grad_()
    trained = [x, *(p for p in variant.parameters() if p.requires_grad)]

    def train() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = variant(x)
            return (y.detach(), *torch.autograd.grad(y, trained, y.detach()))

    return train


def table_of(choices: Sequence[Choice]) -> Table:
    """Return the choices as a table: microseconds and gains, measured and at an H200's limits."""
    columns = ("piece", "maps", "dtype", "torch", "kernels", "chosen", "gain", "at the limit")
    table = Table(*columns, box=None, title="microseconds")
    for choice in choices:
        others = [n for n in choice.predicted if n != "torch"]
        shown = [
            f"{name} {1e6 * choice.seconds[name]:.1f}" if name in choice.seconds else f"{name} -"
            for name in others
        ]
        best = min(others, key=lambda name: choice.seconds.get(name, float("inf")))
        about = best if choice.option == "torch" else choice.option
        table.add_row(
            choice.piece,
            " x ".join(map(str, choice.shape)),
            choice.dtype,
            f"{1e6 * choice.seconds['torch']:.1f}",
            ", ".join(shown),
            choice.option,
            f"x {choice.gain:.2f}",
            f"x {choice.predicted['torch'] / choice.predicted[about]:.2f} ({about})",
        )
        for name, why in choice.failures.items():
            table.add_row("", "", "", "", f"{name}: {why}", "", "", "")
    return table
