"""`convnext benchmark`: how fast networks are here, beside timm's form and the machine's limits."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "benchmark",
        description="Time networks on this machine: timm's form of each in eager mode, ours in "
        "eager mode, and the fastest correct form, in turns and each in a process of its own; "
        "throughput, latency, memory, and the share of what the machine can do.",
        example="convnext benchmark convnext_tiny\n"
        "  convnext benchmark convnext_tiny timm/resnet50 --batch 1 8 32 --output speed\n"
        "  convnext benchmark upernet_convnext_tiny mask_rcnn_convnext_tiny --batch 1",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="see `convnext models`")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8], metavar="N", help="default: 1 8"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side of the images, or height and width (default: 224; segmentors 512; detectors "
        "800 1280)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="of the best form (default: the fastest of fp32 and bf16)",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of all forms (default: 7)")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=("timm", "eager", "best", "int8"),
        default=["timm", "eager", "best"],
        help="which (default: timm eager best); ratios are to the first",
    )
    parser.add_argument("--output", metavar="DIR", help="write benchmark.json, .png and .svg there")
    arguments = parser.parse_args(argv)
    if arguments.size is not None and len(arguments.size) > 2:
        parser.error("--size takes one number, or height and width")
    size = None if arguments.size is None else (arguments.size[0], arguments.size[-1])

    from convnext.benchmarking.measure import benchmark
    from convnext.benchmarking.show import print_result, write_result

    out = console(as_json=arguments.json)
    result = benchmark(
        arguments.models,
        batches=arguments.batch,
        size=size,
        precision=arguments.precision,
        device=arguments.device,
        threads=arguments.threads,
        rounds=arguments.rounds,
        kinds=arguments.forms,
        note=lambda line: out.print(line, style="dim", markup=False),
    )
    print_result(result, out)
    if arguments.output:
        for path in write_result(result, arguments.output):
            out.print(f"written: {path}", soft_wrap=True)
    if arguments.json:
        print_json(result.to_dict())
    return 0
