"""`convnext export`: a trained network as a file for another runtime, proven on real images."""

from __future__ import annotations

import argparse
from typing import Literal

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "export",
        description="Write a classifier, a segmentor or a detector as ONNX, OpenVINO or "
        "torch.export's pt2, with its classes and preprocessing, run the file in its own runtime "
        "on real images, and keep it only if it computes what the network does.",
        example="convnext export runs/first --format onnx\n"
        "  convnext export runs/first --format openvino --precision int8\n"
        "  convnext export runs/first --format onnx --preprocess full --output flowers.onnx\n"
        "  convnext export runs/streets --format onnx --size any\n"
        "  convnext export runs/cells --format openvino --size 512x768 --masks full\n"
        "  convnext predict flowers.onnx photo.jpg",
    )
    parser.add_argument("source", help="a run folder, a checkpoint, or a hub id")
    parser.add_argument("--format", choices=("onnx", "openvino", "pt2"), required=True)
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "int8"),
        default="fp32",
        help="default: fp32",
    )
    parser.add_argument("--output", metavar="FILE", help="default: in the run folder")
    parser.add_argument(
        "--preprocess",
        choices=("none", "normalize", "full"),
        default="normalize",
        help="what of the preprocessing is in the file: none of it (it takes normalised floats, "
        "N C H W), the normalisation (it takes pixels of the network's size, uint8 N H W C; the "
        "default), or all (it takes one image of any size, uint8 1 H W C; not of a segmentor)",
    )
    parser.add_argument(
        "--logits",
        action="store_true",
        help="give logits in place of probabilities (of a segmentor: of labels)",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="fix the batch (default: open)")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="SIZE",
        help="height and width of the images: HxW, PIXELS for both, or of a segmentor `any` "
        "(default: as trained; of a detector what the images it is proven on need)",
    )
    parser.add_argument(
        "--masks",
        choices=("none", "shares", "full"),
        help="of a detector: no masks, shares of 28 x 28 cells of each box (the default), or a "
        "bitmap of the image for each object",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="images to prove the file on, and to calibrate int8 (default: the run's own data)",
    )
    parser.add_argument(
        "--num-images",
        type=int,
        metavar="N",
        help="how many at most (default: 32; int8: 500, of a detector 50)",
    )
    parser.add_argument(
        "--force", action="store_true", help="keep a file that fails its proof or is slower"
    )
    arguments = parser.parse_args(argv)

    from convnext.deploy.export import ExportSettings, export
    from convnext.tasks.trained import task_of

    out = console(as_json=arguments.json)
    if arguments.num_images is not None and arguments.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, not {arguments.num_images}")
    num = arguments.num_images
    if num is None and arguments.precision == "int8":
        num = 50 if task_of(arguments.source) == "detect" else 500
    result = export(
        arguments.source,
        settings=ExportSettings(
            format=arguments.format,
            precision=arguments.precision,
            inside=arguments.preprocess,
            answers=not arguments.logits,
            batch=arguments.batch,
            size=arguments.size,
            masks=arguments.masks,
        ),
        output=arguments.output,
        images=arguments.images,
        num_images=num or 32,
        force=arguments.force,
        note=lambda line: out.print(line, style="dim", markup=False),
    )
    result.print(out)
    if arguments.json:
        print_json(result.to_dict())
    return 0


def _size(text: str) -> tuple[int, int] | Literal["any"]:
    """Return height and width from HxW or PIXELS."""
    if text == "any":
        return "any"
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512x768, 512 or any")
    height, width = (int(sides[0]), int(sides[-1]))
    return height, width
