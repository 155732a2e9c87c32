"""Convert weights from one layout to another, and check that the outputs stay the same.

python examples/03_weights_in_and_out.py
"""

import timm
import torch

import convnext

theirs = timm.create_model("convnext_atto").eval()
ours = convnext.create_model("convnext_atto").eval()
print(convnext.load_weights(ours, theirs.state_dict()))

images = torch.randn(2, 3, 224, 224)
with torch.inference_mode():
    print(f"largest difference between logits: {(ours(images) - theirs(images)).abs().max():.1e}")

back = convnext.export_weights(ours, "timm")
assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
print("converted back without changing a bit")
