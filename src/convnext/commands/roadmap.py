"""`convnext roadmap`: the road as a table and a figure, walked on data, or varied at one rung."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from convnext.commands import console, print_json
from convnext.commands.recipes import make_parser, parse
from convnext.models.roadmap import REGIMES
from convnext.recipes.recipe import Recipe, change_recipe, read_recipe

DESCRIPTION = """\
The road from a ResNet to ConvNeXt, one decision per rung.

Without --data: parameters and multiply-accumulates counted on the built networks, and the paper's
accuracies. With --data every rung is trained under one recipe, with every seed; with --ablate one
decision is varied at one rung. The same command goes on where it was interrupted.

`mini` is the road at a third of the depth and a quarter of the width of ResNet-50's, for laptops
and small images.
"""
EXAMPLES = """\
examples:
  convnext roadmap --output road
  convnext roadmap --regime mini --data digits --seeds 3 --output runs/road
  convnext roadmap --regime mini --data my_photos --from kernel_7 --output runs/end
  convnext roadmap --regime mini --data my_photos --ablate kernel_size=3,5,7,9,11 --seeds 3
  convnext roadmap --data my_photos --ablate norm=batch,layer --ablate act=relu,gelu --at kernel_7
  convnext roadmap --data my_photos --ablate optim.lr=1e-3,2e-3,4e-3
  convnext roadmap --data my_photos --rival timm/swin_tiny_patch4_window7_224

Settings of the recipe are options, as for `convnext train`: --schedule.epochs 20
"""
OWN = (
    "recipe",
    "regime",
    "rungs",
    "from",
    "to",
    "ablate",
    "at",
    "rival",
    "seeds",
    "jobs",
    "minutes",
    "no_speed",
    "output",
)


def add_study_options(parser: Any) -> None:
    """Add what all studies take."""
    parser.add_argument("--seeds", type=int, help="seeds per network (default: 1)", default=1)
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at a time (default: one per GPU, or per CPU core)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="equal training time for all, by measured speed, instead of equal epochs",
    )
    parser.add_argument(
        "--no-speed", action="store_true", help="do not measure throughput and memory"
    )
    parser.add_argument("--output", help="the folder of the study (default: under runs/)")


def check_study_options(arguments: Any, given: dict[str, Any]) -> None:
    """See that the options of a study are possible.

    Raises:
        ValueError: If they are not.
    """
    for name, value, least in (
        ("--seeds", arguments.seeds, 1),
        ("--jobs", arguments.jobs, 0),
        ("--minutes", arguments.minutes, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}")
    if arguments.minutes and "schedule.epochs" in given:
        raise ValueError("--minutes gives each network its epochs; leave out --schedule.epochs")
    if "model" in given or "weights" in given:
        raise ValueError(
            "a study names its networks without --model and --weights: "
            "convnext compare MODEL@WEIGHTS ..."
        )


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = make_parser(
        "roadmap",
        usage="convnext roadmap [RECIPE] [--regime R] [--data PATH] [--setting VALUE ...]",
        description=DESCRIPTION,
        examples=EXAMPLES,
    )
    parser.add_argument("recipe", nargs="?", help="a recipe's name or YAML file")
    parser.add_argument("--regime", choices=REGIMES, default=REGIMES[0])
    parser.add_argument("--rungs", help="only these, separated by commas")
    parser.add_argument("--from", help="the first rung")
    parser.add_argument("--to", help="the last rung")
    parser.add_argument(
        "--ablate",
        action="append",
        default=[],
        metavar="FIELD=A,B",
        help="vary a field of the network or of the recipe; several make a grid",
    )
    parser.add_argument("--at", help="the rung at which --ablate varies (default: the last)")
    parser.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="MODEL",
        help="another network under the same recipe, named as for convnext compare",
    )
    add_study_options(parser)
    arguments, given = parse(parser, argv, OWN)
    out = console(as_json=arguments.json)
    # `--from` is a word of the language.
    first, last = arguments["from"] or "", arguments.to or ""
    names = [name.strip() for name in (arguments.rungs or "").split(",") if name.strip()]

    from convnext.studies.compare import rivals_of
    from convnext.studies.roadmap import ablation, choose_rungs, parse_decisions, walk

    at = arguments.at or choose_rungs(arguments.regime)[-1].name
    if arguments.ablate:
        if names or first or last:
            raise ValueError("--ablate varies one rung, named by --at; leave out --rungs")
        (rung,) = choose_rungs(arguments.regime, names=[at])
        entries = ablation(arguments.regime, at, parse_decisions(arguments.ablate, rung.config))
        title = f"{', '.join(arguments.ablate)} at {at} of the road {arguments.regime}"
    elif arguments.at:
        raise ValueError("--at names the rung of --ablate; to walk to a rung there is --to")
    else:
        rungs = choose_rungs(arguments.regime, names=names, first=first, last=last)
        entries = walk(arguments.regime, rungs)
        title = f"The road {arguments.regime}"
    entries += rivals_of(arguments.rival)
    recipe = change_recipe(read_recipe(arguments.recipe) if arguments.recipe else Recipe(), given)
    if "data" not in given and not arguments.recipe:
        if arguments.ablate:
            raise ValueError("--ablate trains networks; give it --data PATH, or --data digits")
        return _costs(arguments, recipe, out, [entry.name for entry in entries])
    check_study_options(arguments, given)
    if recipe.task != "classify":
        raise ValueError(
            f"the road is walked by classification; for --task {recipe.task} compare its rungs: "
            f"convnext compare roadmap/{arguments.regime}/kernel_7 --task {recipe.task} ..."
        )

    from convnext.studies.roadmap import check_settings
    from convnext.studies.study import study

    check_settings(recipe, entries)
    root = Path(arguments.output or Path("runs") / _folder(arguments, recipe))
    results = study(
        "ablate" if arguments.ablate else "roadmap",
        title,
        entries,
        recipe,
        num_seeds=arguments.seeds,
        root=root,
        given=given,
        regime=arguments.regime,
        command=shlex.join(["convnext", "roadmap", *argv]),
        processes=arguments.jobs,
        minutes=arguments.minutes,
        speed=not arguments.no_speed,
        console=out,
    )
    if arguments.json:
        print_json({"output": str(root), "results": [result.row() for result in results]})
    # As `train` ends with 1 where a run diverged: here, where nothing at all was reached.
    return 0 if any(result.score is not None for result in results) else 1


def _folder(arguments: Any, recipe: Recipe) -> str:
    data = Path(recipe.data).name or "data"
    parts = ["ablate" if arguments.ablate else "road", arguments.regime, data]
    if arguments.ablate:
        parts += [arguments.at] if arguments.at else []
        parts += [decision.partition("=")[0] for decision in arguments.ablate]
    return "-".join(parts)


def _costs(arguments: Any, recipe: Recipe, out: Any, names: list[str]) -> int:
    """Print what the rungs cost and what the paper reports; nothing is trained."""
    from dataclasses import asdict

    from convnext.studies.roadmap_figure import draw_staircase
    from convnext.studies.roadmap_table import print_roadmap, roadmap_rows

    size = recipe.input.image_size
    rows = roadmap_rows(arguments.regime, image_size=0 if size == "auto" else size)
    rows = [row for row in rows if row.rung in names]
    print_roadmap(rows, out)
    if arguments.output:
        stem = Path(arguments.output) / f"roadmap_{arguments.regime}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw_staircase(rows, stem, arguments.regime)
        out.print(f"figure: {stem}.svg, {stem}.png, drawn from {stem}.csv", soft_wrap=True)
    if arguments.json:
        print_json({"regime": arguments.regime, "rungs": [asdict(row) for row in rows]})
    return 0
