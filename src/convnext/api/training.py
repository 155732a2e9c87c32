"""The verbs that train: one network, several under one recipe, or the roadmap."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from convnext.api.prepare import prepare, table_of
from convnext.api.settings import Settings, given_settings, make_recipe
from convnext.api.types import (
    Callbacks,
    Data,
    Folder,
    Models,
    Network,
    PythonOnly,
    RecipeSource,
    Show,
)
from convnext.names import portable_name

if TYPE_CHECKING:
    from convnext.api.model import Model
    from convnext.api.types import Which
    from convnext.studies.results import Result

TaskName = Literal["classify", "detect", "segment"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What `train` returns."""

    folder: Path
    """With recipe.yaml, metrics.jsonl, checkpoints/, report.html and TensorBoard's events."""
    best: Mapping[str, Any]
    """Metrics of the best weights, with the `step` and the kind of `weights` (model or ema)."""
    name: str = ""
    """The name of the network, as `create_model` takes it."""
    data: str = ""
    steps: int = 0
    """Optimizer steps that were taken."""
    seconds: float = 0.0
    network: Any = field(default=None, repr=False, compare=False)
    """The module that was trained, if it was given as an object."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, oldest first: `kind` is "train" or "val"."""
        from convnext.training.log import read_metrics

        return list(read_metrics(self.folder / "metrics.jsonl"))

    @property
    def report(self) -> Path:
        """The report, a page that needs no other file."""
        return self.folder / "report.html"

    def model(self, which: Which = "best", *, device: str = "auto") -> Model:
        """Load the trained network.

        Args:
            which: "best" for the weights with the best metric, "last" for those of the last step.
            device: `cpu`, `cuda`, `mps` or `auto`.

        Raises:
            ValueError: If the run has no checkpoint.
        """
        from convnext.api.model import load

        return load(self.folder, which=which, device=device, network=self.network)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "folder": str(self.folder),
            "model": self.name,
            "data": self.data,
            "best": dict(self.best),
            "steps": self.steps,
            "seconds": self.seconds,
        }


def train(
    recipe: RecipeSource | None = None,
    *,
    data: Data | None = None,
    model: Network | None = None,
    weights: str | None = None,
    task: TaskName | None = None,
    output: Folder | None = None,
    resume: bool = False,
    progress: Show = True,
    callbacks: Callbacks = (),
    **settings: Unpack[Settings],
) -> Run:
    """Train a network on your images, or on the built-in digits.

    Settings that read `auto` are chosen from the data, the weights and the device, and explained.

    Args:
        recipe: A bundled recipe's name, or a YAML file; in Python also a `Recipe`.
        data: A folder, a CSV with the columns path and label, an address of shards, or `digits` for
            the bundled data set; in Python also a DataFrame with these columns (and perhaps
            `split`), or a list of (path, label).
        model: A name of `convnext models`, or `timm/<name>`; in Python also an `nn.Module`, of
            which a copy is trained from its present weights: a classifier, or for segmentation and
            detection a backbone with `pyramid(images) -> {"c2": ..., "c5": ...}`. Such a run is
            resumed and loaded from Python only, with the same class of network given again.
        weights: Where training starts: `none`, a tag of `convnext models`, a run, a file, or a
            hub id.
        task: What to learn; by default what the layout of the data says.
        output: The run folder; by default a new one under `runs/`.
        resume: Continue the run in `output`.
        progress: Where to print: True for standard output, False for nowhere, or a console.
        callbacks: Instances of subclasses of `convnext.training.callbacks.Callback`, called after
            steps and evaluations. A run whose callbacks change the network does not resume bit for
            bit.
        **settings: Settings of the recipe, by short name (`epochs=20`), by section
            (`schedule={"epochs": 20}`) or by full name (`**{"schedule.epochs": 20}`).

    Returns:
        The run: its folder, what it reached, and its model.

    Raises:
        ValueError: If the recipe, the data or the weights cannot be used, or the folder already
            holds a run and `resume` is not set.
        DivergedError: If the loss is no longer a number.
        InterruptedRun: If a signal asked the run to end; its state is saved.
        LostProcessError: If another process of the run is gone.
    """
    data, output = table_of(data, output)
    is_given = model is not None and not isinstance(model, str)
    own = model if is_given else None
    if is_given:
        from convnext.models.given import give

        model = give(model)  # type: ignore[arg-type]
    given = given_settings(settings, data=data, model=model, weights=weights, task=task)
    if resume:
        if is_given:
            del given["model"]  # The run knows it by this name.
        recipe, given = _resumed(recipe, given, output)
        made = make_recipe(recipe, given)
    else:
        made = prepare(recipe, given)

    from convnext.hardware.system import main_script_runs_once
    from convnext.progress import console_of
    from convnext.reports.report import write_report
    from convnext.training.run import train as run

    out = console_of(progress)
    if is_given:
        out.print(
            f"{made.model} is an object of this process: the run folder alone does not suffice to "
            "resume or load the run; give the network again",
            markup=False,
        )
    with main_script_runs_once():
        result = run(
            made,
            output=Path(output) if output else None,
            resume=resume,
            console=out,
            callbacks=callbacks,
            write_report=write_report,
        )
    return Run(
        folder=result.folder,
        best=result.best,
        name=result.model,
        data=result.data,
        steps=result.steps,
        seconds=result.seconds,
        network=own,
    )


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The optimizer's groups that a recipe makes."""

    rows: Sequence[Mapping[str, Any]]
    """`name`, `lr`, `weight_decay` and the number of parameters of each."""

    def to_dict(self) -> list[dict[str, Any]]:
        """Return plain values for JSON."""
        return [dict(row) for row in self.rows]


def learning_rates(
    recipe: RecipeSource | None = None,
    *,
    data: Data | None = None,
    model: Network | None = None,
    weights: str | None = None,
    task: TaskName | None = None,
    progress: Show = True,
    **settings: Unpack[Settings],
) -> Groups:
    """Print the optimizer's groups with their learning rates, and do not train.

    The arguments and errors are those of `train`.
    """
    given = given_settings(settings, data=data, model=model, weights=weights, task=task)

    from convnext.progress import console_of
    from convnext.training.run import show_groups

    return Groups(rows=show_groups(prepare(recipe, given), console_of(progress)))


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a study reached, and where its table and its page are."""

    folder: Path
    results: Sequence[Result]
    """One for each network, over its seeds."""

    @property
    def exit_code(self) -> int:
        """1 where nothing was reached, as where a single run diverged."""
        return 0 if any(result.score is not None for result in self.results) else 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "output": str(self.folder),
            "results": [result.row() for result in self.results],
        }


def compare(
    models: Models,
    *,
    with_recipe: RecipeSource | None = None,
    data: Data | None = None,
    task: TaskName | None = None,
    seeds: int = 1,
    jobs: int = 0,
    minutes: float = 0.0,
    speed: bool = True,
    output: Folder | None = None,
    progress: Show = True,
    command: Annotated[str, PythonOnly()] = "",
    **settings: Unpack[Settings],
) -> StudyResult:
    """Train networks under one recipe and compare them.

    The data order and the augmentation are the same for all. The primary metric (top-1, mIoU, box
    AP) over seeds, parameters, multiply-accumulates, and throughput and memory measured here are
    reported.

    A network is `[LABEL=]MODEL[@WEIGHTS][:field=value,...]`; the others are compared with the first
    one. Fields are those of NetworkConfig, or arguments of the network for those of timm. With
    @WEIGHTS (a tag, a file or a hub id) it is fine-tuned. The same command continues where it was
    interrupted, and further networks and seeds may be added.

    Args:
        models: Networks, as above.
        with_recipe: A bundled recipe's name, or a YAML file; in Python also a `Recipe`.
        data: As for `train`.
        task: As for `train`; for a dense task a backbone is enough.
        seeds: Seeds per network.
        jobs: Runs at a time; 0 for one per GPU, or per CPU core.
        minutes: Equal training time for all, by measured speed, instead of equal epochs.
        speed: Measure throughput and memory.
        output: The folder of the study; by default under `runs/`.
        progress: Where to print, as for `train`.
        command: What the page of the study shows as the command that made it.
        **settings: Settings of the recipe, as for `train`.

    Raises:
        ValueError: If the study cannot be made, or the folder holds another one.
        InterruptedRun: If a signal asked for the end.
    """
    given = given_settings(settings, data=data, task=task)
    check_study(given, seeds=seeds, jobs=jobs, minutes=minutes)
    names = [models] if isinstance(models, str) else list(models)

    from convnext.progress import console_of
    from convnext.studies.compare import entries_of
    from convnext.studies.roadmap import check_settings
    from convnext.studies.study import study

    recipe = make_recipe(with_recipe, given)
    entries = entries_of(names, recipe.task)
    check_settings(recipe, entries)
    name = portable_name(f"compare-{Path(recipe.data).name or 'data'}")
    root = Path(output or Path("runs") / name)
    results = study(
        "compare",
        f"{len(entries)} networks on {Path(recipe.data).name or recipe.data}",
        entries,
        recipe,
        num_seeds=seeds,
        root=root,
        given=given,
        command=command or shlex.join(["convnext", "compare", *names]),
        processes=jobs,
        minutes=minutes,
        speed=speed,
        console=console_of(progress),
    )
    return StudyResult(folder=root, results=results)


def _resumed(
    recipe: Any, given: dict[str, Any], output: str | Path | None
) -> tuple[Any, dict[str, Any]]:
    """Return the recipe of the run in `output`, or what starts it if there is none yet."""
    from convnext.training.distributed import started_by_launcher

    if not output:
        raise ValueError("--resume needs --output, the folder of the run to continue")
    saved = Path(output) / "recipe.yaml"
    if saved.is_file():
        if started_by_launcher():
            # It has settled how many processes there are; the run may have had others.
            given = {"run.devices": "auto", "run.num_nodes": 1} | given
        return saved, given
    # A scheduler starts the same command again and again: the first time, there is no run yet.
    if recipe is None and not given:
        raise ValueError(f"{output} is not a run folder: it has no recipe.yaml")
    return recipe, given


def check_study(given: Mapping[str, Any], *, seeds: int, jobs: int, minutes: float) -> None:
    """See that the options of a study are possible.

    Raises:
        ValueError: If they are not.
    """
    for name, value, low in (("--seeds", seeds, 1), ("--jobs", jobs, 0), ("--minutes", minutes, 0)):
        if value < low:
            raise ValueError(f"{name} is {value}, but must be at least {low}")
    if minutes and "schedule.epochs" in given:
        raise ValueError("--minutes gives each network its epochs; leave out --schedule.epochs")
    if "model" in given or "weights" in given:
        raise ValueError(
            "a study names its networks without --model and --weights: "
            "convnext compare MODEL@WEIGHTS ..."
        )
