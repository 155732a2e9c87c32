"""The box head: classification and regression of boxes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

SIDE = 7
"""Side of a box's feature map, in cells."""

BoxHeadKind = Literal["two_fc", "four_conv_fc"]


class ConvNorm(nn.Sequential):
    """A 3x3 convolution, batch norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class BoxHead(nn.Module):
    """Maps features (R, C, 7, 7) to class logits (R, K + 1), background last, and deltas (R, K, 4).

    Args:
        kind: Two fully connected layers as in Mask R-CNN, or four convolutions with batch norm and
            one fully connected layer as in the cascade.
        channels: C.
        fc_dim: Width of the fully connected layers.
        num_classes: K.
    """

    def __init__(self, kind: BoxHeadKind, *, channels: int, fc_dim: int, num_classes: int) -> None:
        super().__init__()
        num_convs, num_fcs = {"two_fc": (0, 2), "four_conv_fc": (4, 1)}[kind]
        self.convs = nn.Sequential(*(ConvNorm(channels) for _ in range(num_convs)))
        in_dims = [channels * SIDE**2, *[fc_dim] * (num_fcs - 1)]
        fcs = [nn.Linear(dim, fc_dim) for dim in in_dims]
        for fc in fcs:
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)
        self.fcs = nn.ModuleList(fcs)
        self.act = nn.ReLU()
        self.fc_dim = fc_dim
        self.reset_classifier(num_classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.convs(features).flatten(1)
        for fc in self.fcs:
            x = self.act(fc(x))
        return self.classifier(x), self.regressor(x).unflatten(1, (-1, 4))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layers by new ones for `num_classes` classes."""
        like = next(self.fcs.parameters())
        self.classifier = nn.Linear(self.fc_dim, num_classes + 1).to(like)
        self.regressor = nn.Linear(self.fc_dim, 4 * num_classes).to(like)
        for layer, std in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
