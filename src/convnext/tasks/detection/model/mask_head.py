"""The mask head: segmentation of the object in a box."""

from __future__ import annotations

from torch import Tensor, nn

SIDE = 14
"""Side of a box's feature map, in cells; its mask has twice the resolution."""
NUM_CONVS = 4
LAST_STD = 0.01


class MaskHead(nn.Module):
    """Maps features (R, C, 14, 14) to mask logits (R, K, 28, 28) (He et al., 2017)."""

    def __init__(self, *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(NUM_CONVS)
        )
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.act = nn.ReLU()
        for layer in (*self.convs, self.upsample):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.reset_classifier(num_classes)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for conv in self.convs:
            x = self.act(conv(x))
        logits: Tensor = self.classifier(self.act(self.upsample(x)))
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one for `num_classes` classes."""
        like = self.upsample.weight
        classifier = nn.Conv2d(like.shape[1], num_classes, 1)
        # The reference scales it by fan-out like the others: a std of 0.16 for 80 classes, but 1.4
        # for one, with an initial loss of 7.
        nn.init.normal_(classifier.weight, std=LAST_STD)
        assert classifier.bias is not None
        nn.init.zeros_(classifier.bias)
        self.classifier = classifier.to(like)
