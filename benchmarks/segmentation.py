"""Train our UPerNet and segmentation_models_pytorch's from scratch for the same wall time.

    python benchmarks/segmentation.py DATA --minutes 20 --seeds 0 1 2 --output results

Crops, loss and optimizer are the same for both; see `by_the_clock.py`. The other package is not a
dependency: `pip install segmentation-models-pytorch`.
"""

from __future__ import annotations

import argparse
import json

import by_the_clock as clock

OURS, THEIRS = "ours", "smp"


def main() -> None:
    """Run all seeds, or with --side one network with one seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    clock.add_options(parser, (OURS, THEIRS))
    parser.add_argument("--encoder", default="tu-convnext_atto", help="of the other package")
    parser.add_argument("--channels", type=int, default=64, help="width of both heads")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--crop", type=int, default=160)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1.4e-3)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(train(arguments, arguments.side)), flush=True)
    else:
        clock.run_pairs(arguments, (OURS, THEIRS), ("miou",))


def train(arguments: argparse.Namespace, side: str) -> dict[str, object]:
    """Train one network for a fixed time; return its scores."""
    task = clock.open_task(
        arguments,
        {
            "task": "segment",
            "model": "upernet_convnext_atto",
            "input.image_size": arguments.size,
            "segment.crop": arguments.crop,
            "segment.channels": arguments.channels,
            "segment.auxiliary_weight": 0.0,
            "segment.jitter": (0.75, 1.5),
            "optim.lr": arguments.lr,
            "optim.batch_size": arguments.batch,
            "optim.micro_batch_size": arguments.batch,
        },
    )
    model = task.build_model() if side == OURS else build_other(arguments, len(task.data.classes))
    seed = arguments.seeds[0]
    scores, images = clock.train(
        task, model, lr=arguments.lr, minutes=arguments.minutes, title=f"{side} seed {seed}"
    )
    return {
        "side": side,
        "seed": seed,
        "miou": scores["miou"],
        "images": images,
        "minutes": arguments.minutes,
        "encoder": "convnext_atto" if side == OURS else arguments.encoder,
        "params": sum(p.numel() for p in model.parameters()),
    }


def build_other(arguments: argparse.Namespace, num_classes: int):  # type: ignore[no-untyped-def]
    """Build the other package's UPerNet behind the interface of our segmentors."""
    import segmentation_models_pytorch as smp
    from torch import nn

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = smp.UPerNet(
                encoder_name=arguments.encoder,
                encoder_weights=None,
                decoder_channels=arguments.channels,
                classes=num_classes,
            )

        def forward(self, images, *, heads: bool = False):  # type: ignore[no-untyped-def]
            bottom, right = (-n % 32 for n in images.shape[-2:])
            padded = nn.functional.pad(images, (0, right, 0, bottom))
            logits = self.network(padded)[..., : images.shape[-2], : images.shape[-1]]
            return {"decode": logits} if heads else logits

    return Other()


if __name__ == "__main__":
    main()
