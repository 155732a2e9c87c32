"""One residual block for every network from ResNet-50 to ConvNeXt, built from a table of rows.

`block_rows` is the design: a pure function from a configuration to three convolutions in order.
`Block` builds what the rows say and runs them one after the other.

Shapes: N batch, C channels, H and W positions. Every module here maps (N, C, H, W) to
(N, C', H', W') in either memory format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from convnext.models.config import ActKind, NetworkConfig, NormKind

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One convolution of a block, and whether a norm and an activation follow it."""

    name: str
    in_dim: int
    out_dim: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    bias: bool
    norm: bool
    act: bool


def block_rows(
    config: NetworkConfig, *, in_dim: int, dim: int, stride: int = 1
) -> tuple[Row, Row, Row]:
    """Return the three rows of a block, in the order in which they run (paper, Figure 4).

    Args:
        config: The network's configuration.
        in_dim: Channels that enter the block.
        dim: Narrow width of the stage, an entry of `config.dims`.
        stride: Stride of the spatial convolution.

    The spatial convolution keeps the width it finds. The only norm follows it, the only activation
    precedes the last row. Layer norm networks have biases everywhere, batch norm networks nowhere.
    """
    narrow = config.bottleneck == "narrow"
    wide = config.expansion * dim
    mid_dim, out_dim = (dim, wide) if narrow else (wide, dim)
    spatial_dim = in_dim if config.spatial_first else mid_dim
    order = ("spatial", "pwconv1") if config.spatial_first else ("pwconv1", "spatial")
    widths = {
        "spatial": (spatial_dim, spatial_dim),
        "pwconv1": (in_dim, mid_dim),
        "pwconv2": (mid_dim, out_dim),
    }

    def row(position: int, name: str) -> Row:
        spatial = name == "spatial"
        return Row(
            name=name,
            in_dim=widths[name][0],
            out_dim=widths[name][1],
            kernel_size=config.kernel_size if spatial else 1,
            stride=stride if spatial else 1,
            groups=spatial_dim if spatial and config.depthwise else 1,
            bias=has_bias(config),
            norm=config.norms == "every" or spatial,
            # "every" leaves out the last row: its activation comes after the addition.
            act=position == 1 or (config.acts == "every" and position == 0),
        )

    return row(0, order[0]), row(1, order[1]), row(2, "pwconv2")


def has_bias(config: NetworkConfig) -> bool:
    """Whether convolutions carry a bias: in layer norm networks only (docs/decisions.md, 1)."""
    return config.norm == "layer"


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over C at each position, in the dtype of its input.

    The kernel of `F.layer_norm` accumulates its statistics in fp32 whatever the input is, so an
    fp16 input of large activations does not overflow, and autocast need not widen the output.
    A view moves the channels last. This is free for channels_last tensors; others come out as
    channels_last, which is the fastest layout for the next convolution.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=LAYER_NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:  # N C H W
        x = input.permute(0, 2, 3, 1)
        if x.dtype == self.weight.dtype:
            x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        else:  # Under autocast, which would widen `F.layer_norm` and every tensor after it.
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            x, _, _ = torch.native_layer_norm(x, self.normalized_shape, weight, bias, self.eps)
        return x.permute(0, 3, 1, 2)


def make_norm(kind: NormKind, dim: int) -> nn.Module:
    """Build the norm over `dim` channels of an (N, C, H, W) map."""
    return LayerNorm2d(dim) if kind == "layer" else nn.BatchNorm2d(dim)


def make_act(kind: ActKind) -> nn.Module:
    """Build the activation; GELU is the exact one, as in the authors' code."""
    return nn.GELU() if kind == "gelu" else nn.ReLU()


class Block(nn.Module):
    """`act(shortcut(x) + drop_path(gamma * rows(x)))`, where `block_rows` says what is there.

    The convolutions keep the names of their rows (`spatial`, `pwconv1`, `pwconv2`). A norm is
    called `norm` when it is the only one, else `<row>_norm`.

    Attributes:
        execute: How the block is computed: layer by layer, unless `convnext.models.execution`
            sets another way. It holds no weights and does not change the result.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        in_dim: int,
        dim: int,
        stride: int = 1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.rows = block_rows(config, in_dim=in_dim, dim=dim, stride=stride)
        out_dim = self.rows[-1].out_dim
        order = []
        for row in self.rows:
            layers: dict[str, nn.Module] = {row.name: _convolution(row)}
            if row.norm:
                name = "norm" if config.norms == "one" else f"{row.name}_norm"
                layers[name] = make_norm(config.norm, row.out_dim)
            if row.act:
                layers[f"{row.name}_act"] = make_act(config.act)
            for name, layer in layers.items():
                self.add_module(name, layer)
                order.append(name)
        self.order = tuple(order)
        self.gamma = (
            nn.Parameter(torch.full((out_dim,), config.layer_scale_init))
            if config.layer_scale_init > 0
            else None
        )
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_dim != out_dim:
            self.shortcut = Projection(config, in_dim=in_dim, out_dim=out_dim, stride=stride)
        self.act = make_act(config.act) if config.acts == "every" else nn.Identity()
        self.execute: BlockExecution = PLAIN

    def forward(self, x: Tensor) -> Tensor:  # N Cin H W -> N Cout H/stride W/stride
        return self.execute(self, x)


BlockExecution = Callable[[Block, Tensor], Tensor]
"""Maps a block and its input (N, Cin, H, W) to its output."""


@dataclass(frozen=True)
class Plain:
    """Runs a block layer by layer."""

    # An object, because torch's tracer would compile a function of a module.
    def __call__(self, block: Block, x: Tensor) -> Tensor:
        """Run the layers of a block in order."""
        y = x
        for name in block.order:
            y = getattr(block, name)(y)
        if block.gamma is not None:
            y = y * block.gamma.to(y.dtype).view(-1, 1, 1)
        out: Tensor = block.act(block.shortcut(x) + block.drop_path(y))
        return out


PLAIN = Plain()


def _convolution(row: Row) -> nn.Conv2d:
    return nn.Conv2d(
        row.in_dim,
        row.out_dim,
        row.kernel_size,
        stride=row.stride,
        padding=row.kernel_size // 2,
        groups=row.groups,
        bias=row.bias,
    )


class Projection(nn.Sequential):
    """The 1x1 convolution and norm on the shortcut of a block that changes stride or width."""

    def __init__(self, config: NetworkConfig, *, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 1, stride=stride, bias=has_bias(config))
        self.norm = make_norm(config.norm, out_dim)


class Stem(nn.Sequential):
    """The first convolution, from pixels to `dims[0]` channels at `stem_stride`.

    `patchify` is one k x k stride-k convolution and a norm; a stride of 1 leaves no patches and
    takes a 3x3 kernel. An isotropic network has no norm here, as in the authors' code.
    `conv_pool` is ResNet's 7x7 stride 2, norm, activation and max pool; without the pool at
    stride 2, and with a 3x3 kernel at stride 1, as ResNets for small images have it.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim, stride = config.dims[0], config.stem_stride
        if config.stem == "patchify":
            kernel_size, conv_stride = (stride, stride) if stride > 1 else (3, 1)
        else:
            kernel_size, conv_stride = (7, 2) if stride > 1 else (3, 1)
        padding = 0 if kernel_size == conv_stride else kernel_size // 2
        self.conv = nn.Conv2d(
            config.in_chans,
            dim,
            kernel_size,
            stride=conv_stride,
            padding=padding,
            bias=has_bias(config),
        )
        if len(config.depths) > 1:
            self.norm = make_norm(config.norm, dim)
        if config.stem == "conv_pool":
            self.act = make_act(config.act)
            if stride == 4:
                self.pool = nn.MaxPool2d(3, stride=2, padding=1)


class Downsample(nn.Sequential):
    """The norm and 2x2 stride-2 convolution between two stages (paper, section 2.6)."""

    def __init__(self, config: NetworkConfig, *, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = make_norm(config.norm, in_dim)
        self.conv = nn.Conv2d(in_dim, out_dim, 2, stride=2, bias=has_bias(config))


class Head(nn.Module):
    """Global average pooling, the norm of ConvNeXt, and the classifier."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.stage_dims[-1]
        between = config.downsample == "between_stages"
        self.norm = make_norm(config.norm, dim) if between else nn.Identity()
        self.fc = nn.Linear(dim, config.num_classes) if config.num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N num_classes, or N C without classes
        out: Tensor = self.fc(self.pool(x))
        return out

    def pool(self, x: Tensor) -> Tensor:  # N C H W -> N C
        """Return the features that enter the classifier."""
        pooled: Tensor = self.norm(x.mean((2, 3), keepdim=True))
        return pooled.flatten(1)
