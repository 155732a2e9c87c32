"""`convnext evaluate`: a trained network on a labelled data set, or on what makes it fail."""

from __future__ import annotations

import argparse
from pathlib import Path
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

CORRUPT = "corrupt"


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "evaluate",
        description="Measure top-1, top-5, and precision and recall of every class (of a "
        "segmentor: mIoU and the IoU of every class; of a detector: COCO's AP), with exactly the "
        "preprocessing that the checkpoint carries; with --robustness, top-1 on corrupted images "
        "or on ImageNet-C, C-bar, A, R or Sketch instead.",
        example="convnext evaluate runs/first --data my_photos\n"
        "  convnext evaluate runs/streets --multi-scale --flip --boundary\n"
        "  convnext evaluate runs/first --robustness --severities 1 3 5 --max-images 500\n"
        "  convnext evaluate convnext_tiny.fb_in1k --robustness imagenet-c --output robustness",
    )
    parser.add_argument("source", help="a run folder, a checkpoint, or a hub id")
    parser.add_argument("--data", help="a data set (default: the one that it was trained on)")
    parser.add_argument("--split", choices=("val", "train"), default="val")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: 64)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--max-bad-share", type=float, default=0.01)
    parser.add_argument(
        "--only-best",
        action="store_true",
        help="of a run, leave out its last step with and without the moving average",
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
        help="write evaluation.json there; with --robustness, robustness.json, .csv, .svg and "
        ".png (default: the run folder)",
    )
    robustness = parser.add_argument_group("robustness")
    robustness.add_argument(
        "--robustness",
        nargs="?",
        const=CORRUPT,
        metavar="PATH",
        help="the folder of a published benchmark, recognised by its layout; without PATH, 15 "
        "corruptions are applied to the data's own images",
    )
    robustness.add_argument(
        "--corruptions", metavar="NAME,...", help="only these, such as gaussian_noise,fog"
    )
    robustness.add_argument(
        "--severities", type=int, nargs="+", metavar="N", help="only these (default: 1 2 3 4 5)"
    )
    robustness.add_argument(
        "--max-images", type=int, metavar="N", help="a random part of each condition's images"
    )
    robustness.add_argument(
        "--seed", type=int, help="of that part, and of the corruptions (default: 0)"
    )
    robustness.add_argument(
        "--workers", type=int, help="processes that read and corrupt images (default: what helps)"
    )
    group = add_looks(parser)
    group.add_argument("--boundary", action="store_true", help="measure the boundary F-score too")
    add_reported(parser, "of training")
    arguments = parser.parse_args(argv)
    if arguments.robustness is not None:
        return _run_robustness(arguments)
    for name in ("corruptions", "severities", "max_images", "seed", "workers"):
        if getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')} goes with --robustness")

    from convnext.tasks import task_class
    from convnext.tasks.trained import task_of

    out = console(as_json=arguments.json)
    task = task_of(arguments.source)
    options: dict[str, Any]
    if task == "segment":
        refuse(parser, arguments, ("batch_size", "only_best", *REPORTED), "segments")
        options = {"boundary": arguments.boundary} | looks(arguments)
    elif task == "detect":
        refuse(parser, arguments, ("batch_size", "only_best", *LOOKS, "boundary"), "detects")
        options = reported(arguments)
    else:
        refuse(parser, arguments, (*LOOKS, *REPORTED, "boundary"), "classifies")
        options = {"batch_size": arguments.batch_size, "last": not arguments.only_best}
    result = task_class(task).evaluate(
        arguments.source,
        data=arguments.data,
        split=arguments.split,
        device=arguments.device,
        precision=arguments.precision,
        max_bad_share=arguments.max_bad_share,
        fast=not arguments.no_fast,
        console=out,
        **options,
    )
    result.print(out)
    if arguments.output:
        out.print(f"written: {result.write(arguments.output)}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0


def _run_robustness(arguments: argparse.Namespace) -> int:
    from convnext.tasks.classification.robustness.run import evaluate_robustness
    from convnext.tasks.classification.robustness.table import print_robustness, write_robustness

    out = console(as_json=arguments.json)
    is_run = (Path(arguments.source) / "checkpoints").is_dir()
    output = arguments.output or (arguments.source if is_run else None)
    folder = None if output is None else Path(output)
    names = None
    if arguments.corruptions is not None:
        names = [name.strip() for name in arguments.corruptions.split(",") if name.strip()]
    result = evaluate_robustness(
        arguments.source,
        benchmark=None if arguments.robustness == CORRUPT else arguments.robustness,
        data=arguments.data,
        split=arguments.split,
        corruptions=names,
        severities=(1, 2, 3, 4, 5) if arguments.severities is None else arguments.severities,
        max_images=arguments.max_images,
        seed=arguments.seed or 0,
        output=folder,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        precision=arguments.precision,
        max_bad_share=arguments.max_bad_share,
        console=out,
    )
    if result.state.num_found:
        out.print(f"{result.state.num_found} conditions had been measured before")
    print_robustness(result, out)
    if folder is None:
        out.print("nothing was written; give --output DIR to keep the table and the figure")
    else:
        if result.state.moved:
            out.print(f"another evaluation that lay there is now {result.state.moved}.json")
        written = ", ".join(map(str, write_robustness(result, folder)))
        out.print(f"written: {written}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0
