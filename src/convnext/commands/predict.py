"""`convnext predict`: what is on images."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "predict",
        description="Name the classes of images, with their probabilities, using exactly the "
        "preprocessing that the checkpoint carries.",
        example="convnext predict runs/first photo.jpg more_photos --output predictions",
    )
    parser.add_argument("source", help="a run folder, a checkpoint, or a hub id")
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("--topk", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: 64)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=1.0,
        help="fail if more than this share cannot be read (default: 1)",
    )
    parser.add_argument("--output", metavar="DIR", help="write predictions.json and .csv there")
    arguments = parser.parse_args(argv)

    from convnext.predict import predict

    out = console(as_json=arguments.json)
    result = predict(
        arguments.source,
        arguments.images,
        topk=arguments.topk,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        max_bad_share=arguments.max_bad_share,
        console=out,
    )
    result.print(out)
    if arguments.output:
        for path in result.write(arguments.output):
            out.print(f"written: {path}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0
