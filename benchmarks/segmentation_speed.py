"""Time inference of UPerNet on ConvNeXt-T at 512 x 512, ours and transformers', interleaved.

    python benchmarks/segmentation_speed.py --rounds 7

Both have the same random weights. Prints a table of medians and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import convnext


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also time ours compiled",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ours = convnext.create_model("upernet_convnext_tiny").eval()
    theirs = build_theirs(ours)
    images = torch.randn(1, 3, arguments.size, arguments.size)
    last = images.contiguous(memory_format=torch.channels_last)
    channels_last = convnext.create_model("upernet_convnext_tiny").eval()
    channels_last.load_state_dict(ours.state_dict())
    channels_last = channels_last.to(memory_format=torch.channels_last)
    forms: dict[str, Callable[[], Tensor]] = {
        "transformers": lambda: theirs(images).logits,
        "ours": lambda: ours(images),
        "ours, channels_last": lambda: channels_last(last),
    }
    if arguments.compile:
        import torch._inductor.config as inductor

        inductor.freezing = True
        compiled = torch.compile(channels_last)
        forms["ours, compiled"] = lambda: compiled(last)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.no_grad():
        reference = forms["transformers"]()
        difference = {n: float((form() - reference).abs().max()) for n, form in forms.items()}
        for _ in range(arguments.rounds):
            for name, form in forms.items():
                began = time.perf_counter()
                form()
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratio = medians["transformers"] / median
        print(f"{name:22} {median:6.2f} s  x {ratio:.2f}  differs by {difference[name]:.1e}")
    print(json.dumps({"seconds": medians, "threads": arguments.threads, "size": arguments.size}))


def build_theirs(ours: nn.Module) -> nn.Module:
    """Build the network of transformers with our weights."""
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(
        hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=stages
    )
    config = UperNetConfig(
        backbone_config=backbone, num_labels=150, hidden_size=512, auxiliary_in_channels=384
    )
    theirs = UperNetForSemanticSegmentation(config).eval()
    theirs.load_state_dict(convnext.export_weights(ours, "transformers"))
    return theirs


if __name__ == "__main__":
    main()
