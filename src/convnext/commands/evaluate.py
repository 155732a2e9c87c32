"""`convnext evaluate`: a trained network on a labelled data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext.commands import Parser, console, print_json

if TYPE_CHECKING:
    from rich.console import Console


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "evaluate",
        description="Measure top-1, top-5, and precision and recall of every class, with exactly "
        "the preprocessing that the checkpoint carries.",
        example="convnext evaluate runs/first --data my_photos\n"
        "  convnext evaluate runs/first --robustness --max-images 500\n"
        "  convnext evaluate convnext_tiny.safetensors --robustness imagenet-c",
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
    parser.add_argument("--output", metavar="DIR", help="write evaluation.json there")
    parser.add_argument(
        "--robustness",
        nargs="?",
        const="corrupt",
        metavar="FOLDER",
        help="measure under 15 corruptions made here, or on a copy of ImageNet-A, -R, -Sketch, -C "
        "or C-bar",
    )
    parser.add_argument(
        "--corruptions", metavar="NAMES", help="only these, separated by commas: fog,snow"
    )
    parser.add_argument(
        "--severities", type=int, nargs="+", metavar="1-5", help="only these (default: all five)"
    )
    parser.add_argument(
        "--max-images",
        type=int,
        default=0,
        help="only a fixed random part of the images",
    )
    arguments = parser.parse_args(argv)
    if arguments.robustness is None and (
        arguments.corruptions or arguments.severities or arguments.max_images
    ):
        parser.error("--corruptions, --severities and --max-images belong to --robustness")

    from convnext.evaluate import evaluate, print_evaluation

    out = console(as_json=arguments.json)
    if arguments.robustness is not None:
        return _robustness(arguments, out)
    result = evaluate(
        arguments.source,
        data=arguments.data,
        split=arguments.split,
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision=arguments.precision,
        max_bad_share=arguments.max_bad_share,
        last=not arguments.only_best,
        console=out,
    )
    print_evaluation(result, out)
    if arguments.output:
        out.print(f"written: {result.write(arguments.output)}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0


def _robustness(arguments: Any, out: Console) -> int:
    """Measure under corruptions or on a benchmark, and write what was found."""
    from convnext.evaluate import evaluate_robustness
    from convnext.tasks.classification.robustness.report import print_robustness, write_robustness

    # The folder of a run is where one looks for what is known of it.
    folder = arguments.output or (arguments.source if Path(arguments.source).is_dir() else ".")
    names = [name.strip() for name in (arguments.corruptions or "").split(",") if name.strip()]
    result = evaluate_robustness(
        arguments.source,
        benchmark="" if arguments.robustness == "corrupt" else arguments.robustness,
        data=arguments.data,
        split=arguments.split,
        corruptions=names,
        severities=arguments.severities or (),
        max_images=arguments.max_images,
        device=arguments.device,
        precision=arguments.precision,
        max_bad_share=arguments.max_bad_share,
        kept=Path(folder) / "robustness_kept.json",
        console=out,
    )
    print_robustness(result, out)
    written = write_robustness(result, Path(folder))
    out.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0
