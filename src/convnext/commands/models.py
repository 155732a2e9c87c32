"""`convnext models`: the networks, and the weights that are published for them."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "models",
        description="List networks and published weights. The rungs of the roadmap are listed for "
        "a pattern that names them, timm's networks for one that begins with timm/, segmentors "
        "for one that begins with upernet_, detectors for mask_rcnn_ or cascade_mask_rcnn_.",
        example="convnext models 'convnext_*'\n  convnext models 'timm/swin_*'",
    )
    parser.add_argument("pattern", nargs="?", default="convnext_*", help="a shell pattern")
    arguments = parser.parse_args(argv)

    from convnext.tasks.catalogue import catalogue, print_catalogue

    rows = catalogue(arguments.pattern)
    print_catalogue(rows, console(as_json=arguments.json))
    if arguments.json:
        print_json({"models": [row.to_dict() for row in rows]})
    return 0
