"""`convnext predict`: what is on images."""

from __future__ import annotations

from typing import Any

from convnext.commands import Parser, console, print_json
from convnext.commands.dense import (
    LOOKS,
    REPORTED,
    add_looks,
    add_reported,
    looks,
    refuse,
    reported,
)


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "predict",
        description="Name the classes of images, with their probabilities, using exactly the "
        "preprocessing that the checkpoint carries. A segmentor writes masks, overlays and the "
        "area of every class; a detector pictures of the objects and COCO's results.",
        example="convnext predict runs/first photo.jpg more_photos --output predictions\n"
        "  convnext predict runs/streets drive/ --output drive_masks --overlays jpg\n"
        "  convnext predict runs/cells slides/ --output cells --score 0.6",
    )
    parser.add_argument("source", help="a run folder, a checkpoint, or a hub id")
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("--topk", type=int, help="classes per image (default: 5)")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: 64)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=1.0,
        help="fail if more than this share cannot be read (default: 1)",
    )
    parser.add_argument(
        "--no-fast",
        action="store_true",
        help="run the network as it was trained, bit for bit; else work of minutes is given the "
        "fastest form on this machine",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="write predictions.json and .csv there, for a segmentor masks and overlays too, "
        "for a detector pictures (their default: predictions/)",
    )
    both = parser.add_argument_group("segmentation and detection")
    both.add_argument(
        "--overlays", choices=("png", "jpg", "none"), help="form of the pictures (default: png)"
    )
    group = add_looks(parser)
    group.add_argument("--alpha", type=float, help="strength of their colours (default: 0.55)")
    group = add_reported(parser, "0.5")
    group.add_argument("--no-names", action="store_true", help="draw no names and scores")
    group.add_argument(
        "--ids", metavar="JSON", help="COCO's json that lists the images: results have its ids"
    )
    arguments = parser.parse_args(argv)

    from convnext.data.images import image_files
    from convnext.tasks import task_class
    from convnext.tasks.trained import task_of

    out = console(as_json=arguments.json)
    images = image_files(arguments.images)  # Before a network is fetched in vain.
    task = task_of(arguments.source)
    options: dict[str, Any]
    if task == "segment":
        refuse(parser, arguments, ("topk", "batch_size", *REPORTED, "no_names", "ids"), "segments")
        options = {"output": arguments.output or "predictions"} | looks(arguments)
        for name in ("overlays", "alpha"):
            if getattr(arguments, name) is not None:
                options[name] = getattr(arguments, name)
    elif task == "detect":
        refuse(parser, arguments, ("topk", "batch_size", *LOOKS, "alpha"), "detects")
        options = {"output": arguments.output or "predictions", "names": not arguments.no_names}
        options["ids"] = arguments.ids
        options |= reported(arguments)
        if arguments.overlays is not None:
            options["overlays"] = arguments.overlays
    else:
        own = (*LOOKS, *REPORTED, "overlays", "alpha", "no_names", "ids")
        refuse(parser, arguments, own, "classifies")
        topk = 5 if arguments.topk is None else arguments.topk
        options = {"topk": topk, "batch_size": arguments.batch_size}
    result = task_class(task).predict(
        arguments.source,
        images,
        device=arguments.device,
        precision=arguments.precision,
        max_bad_share=arguments.max_bad_share,
        fast=not arguments.no_fast,
        console=out,
        **options,
    )
    result.print(out)
    if arguments.output and task == "classify":  # The others have written and said so.
        for path in result.write(arguments.output):
            out.print(f"written: {path}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0
