"""Get feature maps at strides 4 to 32, in the same way from our networks and timm's.

python examples/04_features_for_your_own_head.py
"""

import torch

import convnext

images = torch.randn(1, 3, 128, 96)
for name in (
    "convnext_atto",
    "roadmap/resnet50/resnet_baseline",
    "timm/swin_tiny_patch4_window7_224",
):
    network = convnext.create_model(name).eval()
    with torch.inference_mode():
        maps = network.pyramid(images)
    print(name, {level: tuple(x.shape[1:]) for level, x in maps.items()})
    assert [x.shape[1] for x in maps.values()] == [
        level.channels for level in network.levels.values()
    ]
