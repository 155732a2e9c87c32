"""Change one design decision of a network and count what it costs.

python examples/02_change_one_decision.py
"""

import torch

import convnext

for changes in ({}, {"kernel_size": 3}, {"norm": "batch"}, {"depths": (2, 2, 12, 2)}):
    with torch.device("meta"):  # Shapes only: no memory is allocated.
        network = convnext.create_model("convnext_tiny", **changes)
    cost = convnext.cost(network, 224)
    print(f"{changes or 'ConvNeXt-T'}: {cost.params / 1e6:.2f} M, {cost.macs / 1e9:.3f} G MACs")
