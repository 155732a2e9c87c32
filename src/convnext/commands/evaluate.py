"""`convnext evaluate`: a trained network on a labelled data set."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "evaluate",
        description="Measure top-1, top-5, and precision and recall of every class, with exactly "
        "the preprocessing that the checkpoint carries.",
        example="convnext evaluate runs/first --data my_photos",
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
    arguments = parser.parse_args(argv)

    from convnext.evaluate import evaluate, print_evaluation

    out = console(as_json=arguments.json)
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
