"""timm models with the interface of our own networks: classifier, pyramid, features, head."""

from __future__ import annotations

from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any, cast

import timm
from torch import Tensor, nn

from convnext.models.config import NetworkConfig
from convnext.models.network import Level, name_levels
from convnext.names import nearest

# The settings that timm models share with ours, under the same names.
_SHARED = ("num_classes", "in_chans", "drop_path_rate")


def list_timm_models(pattern: str) -> list[str]:
    """Return every `timm/<name>` that matches a shell pattern."""
    return [
        name for name in (f"timm/{n}" for n in timm.list_models()) if fnmatchcase(name, pattern)
    ]


class TimmNetwork(nn.Module):
    """`timm/<name>` as a classifier (N, in_chans, H, W) -> (N, num_classes) with a pyramid.

    Args:
        name: A name in timm's registry, such as `resnet50` or `swin_tiny_patch4_window7_224`.
        **changes: `num_classes`, `in_chans`, `drop_path_rate`, or an argument of the timm model.
    """

    def __init__(self, name: str, **changes: Any) -> None:
        super().__init__()
        if name not in timm.list_models():
            raise ValueError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
        self.name = f"timm/{name}"
        self.changes = changes
        try:
            self.network = timm.create_model(name, **(_any_size(name) | changes))
            _pad_to_patches(self.network)
        except TypeError as error:
            ours = {f.name for f in fields(NetworkConfig)} - set(_SHARED)
            unknown = sorted(ours & set(changes)) or sorted(set(changes) - set(_SHARED))
            raise ValueError(
                f"{self.name} does not have the setting {', '.join(unknown)}; it takes "
                f"{', '.join(_SHARED)} and the arguments of timm's {name}"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, in_chans, H, W) to logits (N, num_classes)."""
        return cast(Tensor, self.network(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images to the last map or tokens of the network, in timm's layout."""
        return cast(Tensor, self.network.forward_features(images))

    def embed(self, images: Tensor) -> Tensor:
        """Map images to pooled features (N, C), the input of the classifier."""
        features = self.network.forward_features(images)
        return cast(Tensor, self.network.forward_head(features, pre_logits=True))

    @property
    def levels(self) -> dict[str, Level]:
        """Channels and stride of each map of the pyramid.

        Raises:
            ValueError: If the network has a single scale, such as a ViT.
        """
        return name_levels(level for _, level in self._stages())

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps {"c2": (N, C, H/4, W/4), ...}, not normalized."""
        levels = self.levels
        maps = self.network.forward_intermediates(
            images,
            indices=[index for index, _ in self._stages()],
            norm=False,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return dict(zip(levels, maps, strict=True))

    @property
    def num_features(self) -> int:
        """Channels that reach the classifier."""
        return int(getattr(self.network, "head_hidden_size", self.network.num_features))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one for `num_classes` classes (0: no head)."""
        self.network.reset_classifier(num_classes)
        self.changes = self.changes | {"num_classes": num_classes}

    def drop_head(self) -> None:
        """Remove what the pyramid does not need: the classifier and the norm before it."""
        self.reset_classifier(0)
        last = self._stages()[-1][0]
        self.network.prune_intermediate_layers([last], prune_norm=True, prune_head=True)
        if hasattr(self.network, "head"):  # Some models keep a norm in it.
            self.network.head = nn.Identity()

    def _stages(self) -> list[tuple[int, Level]]:
        """Return the last four maps that timm offers, with their positions in its list."""
        info = getattr(self.network, "feature_info", [])
        levels = [Level(int(row["num_chs"]), int(row["reduction"])) for row in info]
        if not levels:
            raise ValueError(f"{self.name} does not describe its maps, so it has no pyramid")
        return list(enumerate(levels))[-4:]


def _any_size(name: str) -> dict[str, Any]:
    """Return the arguments that let a timm model take images of any size."""
    if name.startswith("swin_"):
        return {"strict_img_size": False}
    if name.startswith(("vit_", "deit")):
        return {"dynamic_img_size": True}
    return {}


def _pad_to_patches(network: nn.Module) -> None:
    """Make a model of patches that takes any size pad the last ones, as Swin's own code does."""
    patches: Any = getattr(network, "patch_embed", None)
    if getattr(patches, "strict_img_size", True) is False:
        patches.dynamic_img_pad = True
