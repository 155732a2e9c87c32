"""Run pointwise convolutions as linear layers, with the same weights.

A 1x1 convolution and a linear layer are the same matrix product. Which one is faster, forward and
backward, depends on the machine. Parameters, their names and the outputs do not change, so a run
can choose either, and its checkpoints do not depend on the choice.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PointwiseLinear(nn.Conv2d):
    """A 1x1 convolution of stride 1 that runs as a linear layer.

    The channels are moved last by a view, which costs nothing for channels_last maps.
    """

    def forward(self, input: Tensor) -> Tensor:  # N C H W -> N D H W
        """Multiply the channels of every position by the weight."""
        weight = self.weight.flatten(1)  # D C
        return F.linear(input.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module is a plain 1x1 convolution: stride 1, no padding, one group."""
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, PointwiseLinear):
        return False
    return (
        module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


def set_pointwise(model: nn.Module, *, linear: bool) -> int:
    """Run the 1x1 convolutions of a network as linear layers or as convolutions, in place.

    Returns:
        The number of these convolutions.
    """
    found = [module for module in model.modules() if is_pointwise(module)]
    for module in found:
        # The state is a convolution's in both cases; only `forward` differs.
        module.__class__ = PointwiseLinear if linear else nn.Conv2d
    return len(found)
