"""`convnext compare`: any networks, ours and timm's, under one recipe."""

from __future__ import annotations

import shlex
from pathlib import Path

from convnext.commands import console, print_json
from convnext.commands.recipes import make_parser, parse
from convnext.commands.roadmap import add_study_options, check_study_options
from convnext.recipes.recipe import Recipe, change_recipe, read_recipe

DESCRIPTION = """\
Train networks under one recipe, with the same data order and augmentation, and compare them:
the primary metric (top-1, mIoU, box AP) over seeds, parameters, multiply-accumulates, and
throughput and memory measured here.

A network is [LABEL=]MODEL[@WEIGHTS][:field=value,...]; the others are compared with the first one.
Fields are those of NetworkConfig for networks of ours, arguments of the network for those of timm.
With @WEIGHTS (a tag, a file or a hub id) it is fine-tuned. The same command goes on where it was
interrupted, and further networks and seeds may be added.
"""
EXAMPLES = """\
examples:
  convnext compare convnext_atto timm/resnet18 --data my_photos --seeds 3
  convnext compare convnext_tiny timm/swin_tiny_patch4_window7_224 timm/resnet50 --data my_photos
  convnext compare convnext_atto 'wide=convnext_atto:dims=[64,128,256,512]' --data digits
  convnext compare convnext_tiny timm/resnet50 --data my_photos --minutes 20    # equal time
  convnext compare convnext_tiny@fb_in22k timm/resnet50@weights.safetensors --data my_photos
  convnext compare convnext_atto timm/resnet18 --task detect --data cells    # Mask R-CNN on each

Settings of the recipe are options, as for `convnext train`: --schedule.epochs 20
"""
OWN = ("models", "with_recipe", "seeds", "jobs", "minutes", "no_speed", "output")


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = make_parser(
        "compare",
        usage="convnext compare MODEL ... [--data PATH] [--setting VALUE ...]",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a network, as above")
    parser.add_argument("--with-recipe", help="a recipe's name or YAML file")
    add_study_options(parser)
    arguments, given = parse(parser, argv, OWN)
    check_study_options(arguments, given)

    from convnext.studies.compare import entries_of
    from convnext.studies.roadmap import check_settings
    from convnext.studies.study import study

    out = console(as_json=arguments.json)
    source = arguments.with_recipe
    recipe = change_recipe(read_recipe(source) if source else Recipe(), given)
    entries = entries_of(arguments.models, recipe.task)
    check_settings(recipe, entries)
    root = Path(arguments.output or Path("runs") / f"compare-{Path(recipe.data).name or 'data'}")
    results = study(
        "compare",
        f"{len(entries)} networks on {Path(recipe.data).name or recipe.data}",
        entries,
        recipe,
        num_seeds=arguments.seeds,
        root=root,
        given=given,
        command=shlex.join(["convnext", "compare", *argv]),
        processes=arguments.jobs,
        minutes=arguments.minutes,
        speed=not arguments.no_speed,
        console=out,
    )
    if arguments.json:
        print_json({"output": str(root), "results": [result.row() for result in results]})
    # As `train` ends with 1 where a run diverged: here, where nothing at all was reached.
    return 0 if any(result.score is not None for result in results) else 1
