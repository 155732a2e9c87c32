"""`convnext convert`: a checkpoint in another layout."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json

LAYOUTS = ("official", "timm", "torchvision", "transformers", "openmmlab", "convnext")


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "convert",
        description="Read a checkpoint in any layout and write it in another one.",
        example="convnext convert convnext_tiny_1k_224_ema.pth tiny.safetensors --to timm",
    )
    parser.add_argument("source", help="a file, a run folder or a hub id")
    parser.add_argument("target", help="a .safetensors or .pth file to write")
    parser.add_argument(
        "--to", required=True, choices=LAYOUTS, metavar="LAYOUT", help=", ".join(LAYOUTS)
    )
    parser.add_argument("--model", help="the network, where the tensors leave it open")
    arguments = parser.parse_args(argv)

    from convnext.tasks.convert import convert

    report = convert(arguments.source, arguments.target, arguments.to, model=arguments.model)
    out = console(as_json=arguments.json)
    out.print(str(report))
    out.print(f"wrote {arguments.target}")
    if arguments.json:
        print_json({"target": arguments.target, "layout": arguments.to, **report.to_dict()})
    return 0
