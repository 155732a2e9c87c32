"""The verbs that train: `train` one network, or `compare` several with one recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from convnext.api.prepare import (
    TABLE,
    keep_table,
    prepare,
    prepare_resumed,
    saved_recipe,
    unused_settings,
)
from convnext.api.settings import (
    Callbacks,
    Data,
    DataPath,
    Folder,
    Models,
    Network,
    PythonOnly,
    RecipeSource,
    Settings,
    Show,
    data_path,
    given_settings,
    local_path,
    make_recipe,
    text_of,
    verb,
    with_local_data,
)
from convnext.names import portable_name

if TYPE_CHECKING:
    from torch import nn

    from convnext.api.model import Model
    from convnext.api.settings import Which
    from convnext.data.formats.tables import MemoryTable
    from convnext.recipes.recipe import Recipe
    from convnext.results import Conditions
    from convnext.studies.compare import Result
    from convnext.training.range_test import RangeTest

TaskName = Literal["classify", "detect", "segment"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, as `train` returns it."""

    folder: Path
    """Contains recipe.yaml, metrics.jsonl, checkpoints/, report.html and TensorBoard events."""
    best: Mapping[str, Any]
    """Metrics of the best weights in training's own validation, their `step`, and which `weights`
    they are (model or ema)."""
    validation: Conditions | None = None
    """The images, split, precision and backend of training's own validation."""
    name: str = ""
    """The name of the network, as `create_model` takes it."""
    data: str = ""
    steps: int = 0
    """Number of optimizer steps."""
    seconds: float = 0.0
    bad_images: Sequence[str] = ()
    """Images of training and validation that could not be read, each with the reason; they are
    skipped."""
    network: Any = field(default=None, repr=False, compare=False)
    """The `nn.Module` that was passed to `train`, if any."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, oldest first; `kind` is "train" or "val"."""
        from convnext.training.log import read_metrics

        return list(read_metrics(self.folder / "metrics.jsonl"))

    @property
    def report(self) -> Path:
        """The report, a self-contained HTML page."""
        return self.folder / "report.html"

    def model(self, which: Which = "best", *, device: str = "auto") -> Model:
        """Load the trained network.

        Args:
            which: "best" loads the weights with the best metric, "last" those of the last step.
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
            "validation": None if self.validation is None else self.validation.to_dict(),
            "steps": self.steps,
            "seconds": self.seconds,
            "bad_images": list(self.bad_images),
        }


@verb
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
    """Train a network on your images, or on the bundled data set of handwritten digits.

    Settings left at `auto` are chosen from the data, the weights and the device; every choice is
    printed with its reason.

    Args:
        recipe: The name of a bundled recipe, or a YAML file; in Python also a `Recipe`.
        data: A folder of images with classes, boxes or masks, a table of labels or a COCO JSON
            file, a URL of shards, `hf:owner/name` for a data set of the Hugging Face hub, or
            `digits` for the bundled data set; in Python also a DataFrame with the columns path and
            label (and optionally `split`, `fold` and the one that `group` names), a list of
            dictionaries with these keys, or a list of (path, label). A label may be a list of
            names, or a dictionary with the probability of every class.
        model: A name from `convnext models`, or `timm/<name>`; in Python also an `nn.Module`, of
            which a copy is trained from its current weights: a classifier, or for segmentation and
            detection a backbone with `pyramid(images) -> {"c2": ..., "c5": ...}` (such a run can
            be resumed and loaded from Python only, given a network of the same class).
        weights: Initial weights: `none`, a tag from `convnext models`, a run, a file, or a hub id.
        task: The task; by default recognized from the layout of the data.
        output: The run folder; by default a new folder under `runs/`.
        resume: Resume the run in `output`, by its saved recipe.
        progress: Where to print: True for standard output, False for nowhere, or a console.
        callbacks: One or several instances of subclasses of `convnext.Callback`, called after
            steps and evaluations. A run whose callbacks change the network does not resume bit for
            bit.
        **settings: Recipe settings by short name (`epochs=20`), by section
            (`schedule={"epochs": 20}`) or by full name (`**{"schedule.epochs": 20}`).

    Returns:
        The run: its folder, best metrics and model.

    Raises:
        TypeError: If an argument has none of the types above.
        ValueError: If the recipe, the data or the weights cannot be used, the folder already holds
            a run and `resume` is not set, or the run to resume has another network or table.
        DivergedError: If the loss is no longer finite.
        InterruptedRun: If a signal interrupted the run; its state is saved.
        LostProcessError: If another process of the run died.
    """
    table, missing = None, list[str]()
    path = local_path(data) if isinstance(data, str | Path) else None
    if not (data is None or isinstance(data, str | Path)):
        path = str(Path(output or "runs") / TABLE)
    name = name_of(model)
    given = given_settings(settings, data=path, model=name, weights=weights, task=task)
    saved = None
    if resume:
        saved = saved_recipe(output, can_start=recipe is not None or bool(given))
    folder = Path(output) if output else None
    with network_of(model) as own:
        made = prepare(recipe, given) if saved is None else prepare_resumed(saved, given)
        if not (data is None or isinstance(data, str | Path)):
            from convnext.data.formats.tables import TableColumns, missing_files, rows_of

            own_columns = getattr(made.loader, "columns", "")  # Other tasks have none.
            table = rows_of(data, TableColumns.parse(own_columns, "", made.loader.group))
            missing = missing_files(table)

        from convnext.progress import console_of
        from convnext.reports.report import write_report
        from convnext.training.run import check_request
        from convnext.training.run import train as run

        heard = check_request(made, callbacks)  # A refused run leaves no table behind.
        if table is not None:
            made, folder = keep_table(table, made, folder, resume=resume)
        out = console_of(progress)
        notes = [] if saved is None or recipe is None else unused_settings(recipe, saved, given)
        notes += _limits(made, own is not None, table, missing, bool(heard))
        for note in notes:
            out.print(note, markup=False, soft_wrap=True)
        result = run(
            made,
            output=folder,
            resume=resume,
            console=out,
            callbacks=heard,
            write_report=write_report,
        )
    shared = ("folder", "best", "validation", "data", "steps", "seconds", "bad_images")
    values = {name: getattr(result, name) for name in shared}
    return Run(name=result.model, network=own, **values)


def _limits(
    made: Recipe, own: bool, table: MemoryTable | None, missing: Sequence[str], has_callbacks: bool
) -> list[str]:
    """Return what a run from objects of this process cannot repeat, and files that do not exist."""
    notes = []
    if own:
        notes.append(
            f"{made.model} exists only in this process; elsewhere, pass a network of the same "
            "class: train(resume=True, model=...) or load(RUN, network=...). The run resumes "
            "bit for bit only if the network's state_dict is its whole state"
        )
    if table is not None:
        notes.append(f"the table is saved as {made.data}; a resumed run reads it from there")
        if missing:
            notes.append(
                f"{len(missing):,} of the {len(table):,} files do not exist, such as {missing[0]}"
            )
    if has_callbacks:
        notes.append(
            "what callbacks change is not saved: a run whose callbacks change the network or "
            "the optimizer does not resume bit for bit"
        )
    return notes


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The optimizer's parameter groups for a recipe."""

    rows: Sequence[Mapping[str, Any]]
    """`name`, `lr`, `weight_decay` and number of parameters of each group."""

    def to_dict(self) -> list[dict[str, Any]]:
        """Return plain values for JSON."""
        return [dict(row) for row in self.rows]


@verb
def learning_rates(
    recipe: RecipeSource | None = None,
    *,
    data: DataPath | None = None,
    model: Network | None = None,
    weights: str | None = None,
    task: TaskName | None = None,
    progress: Show = True,
    **settings: Unpack[Settings],
) -> Groups:
    """Print the optimizer's parameter groups with their learning rates, without training.

    Takes the arguments of `train`, except tables in memory, and raises the same errors.
    """
    path, name = data_path(data), name_of(model)
    given = given_settings(settings, data=path, model=name, weights=weights, task=task)

    from convnext.progress import console_of
    from convnext.training.run import show_groups

    with network_of(model):
        return Groups(rows=show_groups(prepare(recipe, given), console_of(progress)))


@dataclass(frozen=True, kw_only=True)
class RateSearch:
    """The result of a learning rate range test, and the folder of its curve."""

    folder: Path
    """Contains learning_rates.json and learning_rates.png."""
    test: RangeTest
    """The rates, the losses and the suggestion."""

    @property
    def suggestion(self) -> float | None:
        """The suggested peak learning rate; None if the loss does not fall."""
        return self.test.suggestion

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"output": str(self.folder), **self.test.to_dict()}


@verb
def find_lr(
    recipe: RecipeSource | None = None,
    *,
    data: DataPath | None = None,
    model: Network | None = None,
    weights: str | None = None,
    task: TaskName | None = None,
    lowest: float | None = None,
    highest: float | None = None,
    num_steps: int = 100,
    output: Folder | None = None,
    progress: Show = True,
    **settings: Unpack[Settings],
) -> RateSearch:
    """Suggest a learning rate: train for a few steps at growing rates, and look at the loss.

    The steps are those of `train` with the same settings; the network is then discarded. The test
    ends early when the loss diverges. The same command measures again.

    Args:
        recipe: As for `train`.
        data: As for `train`; in Python not a table in memory.
        model: As for `train`.
        weights: As for `train`.
        task: As for `train`.
        lowest: The first rate; by default a thousandth of the recipe's.
        highest: The last rate; by default 100 times the recipe's.
        num_steps: Number of steps.
        output: The folder of the curve, as PNG and JSON; by default a folder under `runs/`.
        progress: Where to print, as for `train`.
        **settings: Recipe settings, as for `train`.

    Raises:
        ValueError: If the recipe, the data or the weights cannot be used, or the rates do not grow.
    """
    path, name = data_path(data), name_of(model)
    given = given_settings(settings, data=path, model=name, weights=weights, task=task)

    import json

    from convnext.atomic import atomic_write, write_text
    from convnext.progress import console_of
    from convnext.reports.page import draw_rates
    from convnext.tasks.figures import save_bytes
    from convnext.training.range_test import range_test

    out = console_of(progress)
    with network_of(model):
        made = prepare(recipe, given)
        root = Path(output or Path("runs") / portable_name(f"find-lr-{Path(made.data).name}"))
        if root.exists() and not root.is_dir():
            raise ValueError(f"{root} is not a folder; choose another --output")
        test = range_test(made, console=out, lowest=lowest, highest=highest, num_steps=num_steps)
    found = RateSearch(folder=root, test=test)
    root.mkdir(parents=True, exist_ok=True)
    figure = draw_rates(test.rates, test.losses, test.smoothed, test.suggestion)
    with atomic_write(root / "learning_rates.png") as file:
        file.write_bytes(save_bytes(figure, "png"))
    write_text(root / "learning_rates.json", json.dumps(found.to_dict(), indent=2) + "\n")
    out.print(f"{test.reason}; the recipe has {test.auto:g}", soft_wrap=True)
    if test.suggestion is not None:
        out.print(f"suggestion: --lr {test.suggestion:g}")
    out.print(f"curve: {root / 'learning_rates.png'}", markup=False, soft_wrap=True)
    return found


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The results of a study, and the folder of its table and page."""

    folder: Path
    results: Sequence[Result]
    """One result per network, over its seeds."""

    @property
    def exit_code(self) -> int:
        """1 if no run has a score, as after a single run that diverged."""
        return 0 if any(result.score is not None for result in self.results) else 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "output": str(self.folder),
            "results": [result.row() for result in self.results],
        }


@verb
def compare(
    models: Models,
    *,
    with_recipe: RecipeSource | None = None,
    data: DataPath | None = None,
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
    """Train several networks with one recipe and compare them with the first one.

    All networks see the same data order and augmentation. The table lists the primary metric
    (top-1, mIoU or box AP) over seeds, parameters, multiply-accumulates, and the throughput and
    memory measured on this machine.

    Write a network as `[LABEL=]MODEL[@WEIGHTS][:field=value,...]`. Fields are those of
    NetworkConfig, or arguments of a timm model. With @WEIGHTS (a tag, a file or a hub id) the
    network is fine-tuned. The same command resumes an interrupted study; networks and seeds may be
    added.

    Args:
        models: Networks, written as above.
        with_recipe: The name of a bundled recipe, or a YAML file; in Python also a `Recipe`.
        data: As for `train`; in Python not a table in memory.
        task: As for `train`; for segmentation and detection, name backbones or full networks.
        seeds: Number of seeds per network.
        jobs: Number of parallel runs; 0 for one per GPU, or per CPU core.
        minutes: Training time of every network, by measured speed; 0 for equal epochs.
        speed: Measure throughput and memory.
        output: The folder of the study; by default a folder under `runs/`.
        progress: Where to print, as for `train`.
        command: The command that the study's page shows.
        **settings: Recipe settings, as for `train`.

    Raises:
        ValueError: If the options are invalid, or the folder holds another study.
        InterruptedRun: If a signal interrupted the study.
    """
    given = given_settings(settings, data=data_path(data), task=task)
    check_study(given, seeds=seeds, jobs=jobs, minutes=minutes)
    is_one = isinstance(models, str) or not isinstance(models, Iterable)
    kinds = "a network of a study is a text, [LABEL=]MODEL[@WEIGHTS]"
    names = [text_of(name, kinds) for name in ([models] if is_one else models)]

    from convnext.progress import console_of
    from convnext.studies.compare import entries_of
    from convnext.studies.roadmap import check_settings
    from convnext.studies.study import study

    recipe = with_local_data(make_recipe(with_recipe, given))
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
        command=command,
        processes=jobs,
        minutes=minutes,
        speed=speed,
        console=console_of(progress),
    )
    return StudyResult(folder=root, results=results)


def name_of(model: str | nn.Module | None) -> str | None:
    """Return the name of a network; that of an object is `given/<class>`.

    Raises:
        TypeError: If it is neither text nor a module.
    """
    if model is None or isinstance(model, str):
        return model
    from convnext.models.given import name_of_network

    return name_of_network(model)


@contextmanager
def network_of(model: str | nn.Module | None) -> Iterator[nn.Module | None]:
    """Let `create_model` build a network that is an object within the block, and yield it."""
    if model is None or isinstance(model, str):
        yield None
        return
    from convnext.models.given import provided

    with provided(model):
        yield model


def check_study(given: Mapping[str, Any], *, seeds: int, jobs: int, minutes: float) -> None:
    """Check the options of a study.

    Raises:
        ValueError: If they are invalid.
    """
    for name, value, low in (("--seeds", seeds, 1), ("--jobs", jobs, 0), ("--minutes", minutes, 0)):
        if value < low:
            raise ValueError(f"{name} is {value}, but must be at least {low}")
    if minutes and "schedule.epochs" in given:
        raise ValueError("--minutes sets the epochs of each network; leave out --epochs")
    if "model" in given or "weights" in given:
        raise ValueError(
            "a study does not take --model or --weights; write its networks as "
            "convnext compare MODEL@WEIGHTS ..."
        )
