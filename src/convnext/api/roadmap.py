"""The verb `roadmap`: list the costs of its steps, train them, or ablate one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from convnext.api.settings import (
    DataPath,
    Folder,
    OnCommandLine,
    PythonOnly,
    RecipeSource,
    Repeated,
    Settings,
    Show,
    Words,
    data_path,
    given_settings,
    make_recipe,
    verb,
    with_local_data,
)
from convnext.api.training import StudyResult, TaskName, check_study

if TYPE_CHECKING:
    from rich.console import Console

    from convnext.recipes.recipe import Recipe
    from convnext.studies.plan import Entry
    from convnext.studies.roadmap_figure import RoadmapRow

Regime = Literal["resnet50", "resnet200", "mini"]


@dataclass(frozen=True, kw_only=True)
class RoadmapCosts:
    """Costs of the steps of a roadmap, and their accuracies in the paper."""

    regime: str
    rows: Sequence[RoadmapRow]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"regime": self.regime, "rungs": [asdict(row) for row in self.rows]}


@verb
def run_roadmap(
    recipe: RecipeSource | None = None,
    *,
    regime: Regime = "resnet50",
    data: DataPath | None = None,
    rungs: Words = (),
    start: Annotated[str, OnCommandLine(flag="from", metavar="STEP")] = "",
    stop: Annotated[str, OnCommandLine(flag="to", metavar="STEP")] = "",
    ablate: Repeated = (),
    at: str | None = None,
    rival: Repeated = (),
    seeds: int = 1,
    jobs: int = 0,
    minutes: float = 0.0,
    speed: bool = True,
    output: Folder | None = None,
    task: TaskName | None = None,
    progress: Show = True,
    command: Annotated[str, PythonOnly()] = "",
    **settings: Unpack[Settings],
) -> StudyResult | RoadmapCosts:
    """List the roadmap from a ResNet to ConvNeXt, or run it on your data.

    Without data, lists each step's parameters, multiply-accumulates and accuracy in the paper. With
    data, trains every step with the same recipe and seeds. With `ablate`, varies settings at one
    step instead. The same command resumes an interrupted study.

    The roadmap `mini` has a third of the depth and a quarter of the width of `resnet50`, for
    laptops and small images.

    Args:
        recipe: The name of a bundled recipe, or a YAML file; in Python also a `Recipe`.
        regime: The roadmap.
        data: A data set, as for `train`; in Python not a table in memory.
        rungs: Names of the steps to include, separated by commas; by default all.
        start: The first step to include.
        stop: The last step to include.
        ablate: Vary a field of the network or of the recipe, as FIELD=A,B. May be repeated, which
            trains all combinations.
        at: The step at which `ablate` varies; by default the last.
        rival: Another network to train with the same recipe, written as for `compare`. May be
            repeated.
        seeds: Number of seeds per network.
        jobs: Number of parallel runs; 0 for one per GPU, or per CPU core.
        minutes: Training time of every network, by measured speed; 0 for equal epochs.
        speed: Measure throughput and memory.
        output: The folder of the study; by default a folder under `runs/`.
        task: Always `classify`; for other tasks give the steps to `compare`.
        progress: Where to print, as for `train`.
        command: The command that the study's page shows.
        **settings: Recipe settings, as for `train`.

    Raises:
        ValueError: If the options are invalid, or the folder holds another study.
        InterruptedRun: If a signal interrupted the study.
    """
    given = given_settings(settings, data=data_path(data), task=task)

    from convnext.progress import console_of
    from convnext.studies.compare import rivals_of
    from convnext.studies.roadmap import check_settings

    out = console_of(progress)
    decisions = [ablate] if isinstance(ablate, str) else list(ablate)
    entries, title = _entries(regime, rungs, start, stop, decisions, at)
    entries += rivals_of([rival] if isinstance(rival, str) else rival)
    made = with_local_data(make_recipe(recipe, given))
    if data is None and recipe is None:
        if decisions:
            raise ValueError("--ablate trains networks; add --data PATH, or --data digits")
        return _costs(regime, made, out, [entry.name for entry in entries], output)
    check_study(given, seeds=seeds, jobs=jobs, minutes=minutes)

    from convnext.studies.study import study
    from convnext.tasks import DEFAULT

    if made.task != DEFAULT:
        raise ValueError(
            f"the roadmap trains classifiers; for --task {made.task} compare its steps: "
            f"convnext compare roadmap/{regime}/kernel_7 --task {made.task} ..."
        )
    check_settings(made, entries)
    root = Path(output or Path("runs") / _folder(regime, made, decisions, at))
    results = study(
        "ablate" if decisions else "roadmap",
        title,
        entries,
        made,
        num_seeds=seeds,
        root=root,
        given=given,
        regime=regime,
        command=command,
        processes=jobs,
        minutes=minutes,
        speed=speed,
        console=out,
    )
    return StudyResult(folder=root, results=results)


def _entries(
    regime: Regime, rungs: Words, start: str, stop: str, decisions: list[str], at: str | None
) -> tuple[list[Entry], str]:
    """Return the networks of a study of the roadmap, and its title.

    Raises:
        ValueError: If options exclude each other, or a name is unknown.
    """
    from convnext.studies.roadmap import ablation, choose_rungs, parse_decisions, roadmap_entries

    if not decisions:
        if at:
            raise ValueError("--at needs --ablate; use --to to run the roadmap up to a step")
        chosen = choose_rungs(regime, names=list(rungs), first=start, last=stop)
        return roadmap_entries(regime, chosen), f"The roadmap {regime}"
    step = at or choose_rungs(regime)[-1].name
    if rungs or start or stop:
        raise ValueError(
            "--ablate varies one step, which --at names; leave out --rungs, --from and --to"
        )
    (rung,) = choose_rungs(regime, names=[step])
    entries = ablation(regime, step, parse_decisions(decisions, rung.config))
    return entries, f"{', '.join(decisions)} at {step} of the roadmap {regime}"


def _folder(regime: str, recipe: Recipe, ablate: Sequence[str], at: str | None) -> str:
    data = Path(recipe.data).name or "data"
    parts = ["ablate" if ablate else "road", regime, data]
    if ablate:
        parts += [at] if at else []
        parts += [decision.partition("=")[0] for decision in ablate]
    return "-".join(parts)


def _costs(
    regime: str, recipe: Recipe, out: Console, names: Sequence[str], output: str | Path | None
) -> RoadmapCosts:
    """Print the costs of the steps and the paper's accuracies; nothing is trained."""
    from convnext.studies.roadmap_figure import draw_staircase, print_roadmap, roadmap_rows

    size = recipe.input.image_size
    rows = roadmap_rows(regime, image_size=0 if size == "auto" else size)
    rows = [row for row in rows if row.rung in names]
    print_roadmap(rows, out)
    if output:
        stem = Path(output) / f"roadmap_{regime}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw_staircase(rows, stem, regime)
        out.print(
            f"figure: {stem}.svg, {stem}.png, drawn from {stem}.csv", markup=False, soft_wrap=True
        )
    return RoadmapCosts(regime=regime, rows=rows)
