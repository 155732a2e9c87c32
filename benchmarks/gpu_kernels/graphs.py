"""CUDA graphs: launch all kernels of a network as one.

A batch of 1 to 8 images keeps a large GPU busy for less time than Python needs to launch about 150
kernels. A graph is recorded once and replayed in one call, on buffers with fixed addresses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NUM_WARM_UPS = 3


def cuda_graph(function: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that replays `function` as a graph, for inputs like an example.

    Args:
        function: A network in evaluation mode, or any function of a tensor whose kernels do not
            depend on values. Its weights may change in place but must not be replaced.
        example: An input on a GPU; only its shape, dtype and device count.

    Returns:
        A function; every call returns a new tensor.

    Raises:
        ValueError: If the example is not on a GPU; on a call, if the input is of another kind.
    """
    if example.device.type != "cuda":
        raise ValueError(
            f"a CUDA graph needs a CUDA device, the example is on {example.device}; "
            "call the network itself there"
        )
    held = example.detach().clone()
    replay, result = _record(function, held)

    def call(x: Tensor) -> Tensor:
        if (x.shape, x.dtype, x.device) != (held.shape, held.dtype, held.device):
            raise ValueError(
                f"this graph was recorded for {_kind(held)}, not {_kind(x)}; "
                "record another with cuda_graph, or call the network itself"
            )
        held.copy_(x)
        replay()
        return result.clone()

    return call


def _kind(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def _record(
    function: Callable[[Tensor], Tensor], held: Tensor
) -> tuple[Callable[[], None], Tensor]:
    """Return the graph of a function on a buffer, and the buffer of its result."""
    # The first calls allocate memory and tune kernels, which a graph cannot record.
    with torch.no_grad():
        aside = torch.cuda.Stream(held.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(held.device))
        with torch.cuda.stream(aside):
            for _ in range(NUM_WARM_UPS):
                function(held)
        torch.cuda.current_stream(held.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function(held)
    return graph.replay, result
