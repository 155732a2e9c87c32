"""What several test files share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

# Two test processes share two cores; more threads than cores wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Give every tensor of a network a value that shows in its logits, and return it in eval mode.

    Fresh networks hide mistakes: norms that do nothing, running statistics of 0 and 1, and layer
    scales of 1e-6 that switch every block off.
    """

    def draw(model: nn.Module, seed: int = 0) -> nn.Module:
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                value = torch.rand(tensor.shape, generator=random)
                if not tensor.is_floating_point():
                    continue
                if name.endswith(("gamma", "layer_scale", "layer_scale_parameter")):
                    tensor.copy_(0.05 + 0.1 * value)
                elif tensor.ndim > 1:
                    fan_in = tensor[0].numel()
                    tensor.copy_((value - 0.5) * (12 / fan_in) ** 0.5)
                elif name.endswith(("weight", "running_var")):
                    tensor.copy_(0.5 + value)
                else:
                    tensor.copy_(0.4 * (value - 0.5))
        return model.eval()

    return draw
