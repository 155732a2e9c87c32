"""`convnext roadmap`: the table of the road, and its staircase as a figure."""

from __future__ import annotations

from pathlib import Path

from convnext.commands import Parser, console, print_json
from convnext.road import REGIMES


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "roadmap",
        description="The road from a ResNet to ConvNeXt, one decision per rung: parameters and "
        "multiply-accumulates counted on the built network, and the paper's accuracies.",
        example="convnext roadmap --regime resnet50 --output roadmap",
    )
    parser.add_argument("--regime", choices=REGIMES, default=REGIMES[0])
    parser.add_argument("--output", metavar="DIR", help="write the staircase as SVG, PNG and CSV")
    arguments = parser.parse_args(argv)

    from dataclasses import asdict

    from convnext.roadmap_table import print_roadmap, roadmap_rows
    from convnext.staircase import draw_staircase

    out = console(as_json=arguments.json)
    rows = roadmap_rows(arguments.regime)
    print_roadmap(rows, out)
    if arguments.output:
        stem = Path(arguments.output) / f"roadmap_{arguments.regime}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw_staircase(rows, stem, arguments.regime)
        out.print(f"figure: {stem}.svg, {stem}.png, drawn from {stem}.csv", soft_wrap=True)
    if arguments.json:
        print_json({"regime": arguments.regime, "rungs": [asdict(row) for row in rows]})
    return 0
