"""The results of a study: one table, a row for every network and seed.

Each row repeats the network's description, its costs and the paper's figures, so that every figure
and page can be drawn from the CSV alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from convnext.atomic import write_text
from convnext.tasks import task_class, task_names, task_of_metric

FINISHED, WAITING, DIVERGED, FAILED = "finished", "waiting", "diverged", "failed"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One network and seed. A value is None if it was not measured, known or trained."""

    study: str
    """"roadmap", "ablate" or "compare"."""
    regime: str
    """The regime of the roadmap; "" for other studies."""
    entry: str
    """The network's name in this study: a roadmap step, a changed field or a model."""
    what: str
    """What changes, in a few words."""
    group: str
    """"start", "macro", "resnext", "inverted", "kernel" or "micro" in a roadmap, else a family."""
    kept: bool
    """Whether the next step of the roadmap builds on this one."""
    departs_from: str
    """The entry that it is compared with; "" for none."""
    runs_as: str
    """The entry with the same network and recipe whose runs it shares, or itself."""
    seed: int
    state: str
    """"finished", "waiting" (also of a run that was interrupted), "diverged" or "failed"."""
    score: float | None = None
    """The metric on the validation set after the last step, in percent."""
    top5: float | None = None
    loss: float | None = None
    best_score: float | None = None
    """The max over all evaluations of the run, which is biased upward."""
    epochs: float | None = None
    steps: int | None = None
    images: int | None = None
    """Training images seen."""
    num_val: int | None = None
    """The number of validation images behind the scores."""
    seconds: float | None = None
    """Training time, summed over all parts of an interrupted run."""
    reason: str = ""
    """Why a run diverged or failed."""
    image_size: int | None = None
    params: int | None = None
    macs: int | None = None
    """Multiply-accumulates of one image of `image_size`, counted here."""
    train_images_per_s: float | None = None
    infer_images_per_s: float | None = None
    train_memory: int | None = None
    """Bytes at the peak of a training step, as `convnext.studies.speed` defines them."""
    infer_memory: int | None = None
    speed_batch: int | None = None
    paper_name: str = ""
    """The paper's name of the network."""
    paper_top1: float | None = None
    """ImageNet-1K top-1 in percent, as the paper prints it."""
    paper_top1_std: float | None = None
    paper_gmacs: float | None = None
    paper_images_per_s: float | None = None
    """On the paper's device."""
    metric: str = "top1"
    """The primary metric of the task, which names the column of the score."""
    others: Mapping[str, float | None] = field(default_factory=dict)
    """Other metrics of a dense task, each with a column of its own."""

    @property
    def metric_label(self) -> str:
        """The metric as people write it."""
        return task_of_metric(self.metric).primary_label

    def row(self) -> dict[str, Any]:
        """Return the columns of the table; score columns are named after their metrics."""
        names = {"score": self.metric, "best_score": f"best_{self.metric}"}
        columns = {names.get(name, name): value for name, value in asdict(self).items()}
        del columns["metric"], columns["others"]
        if self.metric != "top1":
            del columns["top5"]
        return columns | dict(self.others)


def write_results(folder: Path, results: Sequence[Result], facts: Mapping[str, Any]) -> None:
    """Write results.csv and results.json, each atomically."""
    write_text(folder / "results.csv", results_csv(results))
    tree = dict(facts) | {"results": [result.row() for result in results]}
    write_text(folder / "results.json", json.dumps(tree, indent=1) + "\n")


def results_csv(results: Sequence[Result]) -> str:
    """Return the table as CSV, empty where a value is None."""
    text = io.StringIO()
    rows = [result.row() for result in results]
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_results(path: Path) -> list[Result]:
    """Read results.csv.

    Raises:
        ValueError: If a column is missing, or a value is not of its column's type.
    """
    kinds = {name: _kind(hint) for name, hint in get_type_hints(Result).items()}
    del kinds["metric"], kinds["others"]
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        return [_result(row, kinds) for row in rows]
    except (KeyError, ValueError, TypeError, StopIteration) as error:
        raise ValueError(f"{path} is not a table of results: {error}") from error


def _result(row: Mapping[str, str], kinds: Mapping[str, Any]) -> Result:
    metric = next(t.primary for t in map(task_class, task_names()) if f"best_{t.primary}" in row)
    columns = {"score": metric, "best_score": f"best_{metric}"}
    if metric != "top1":
        kinds = {name: kind for name, kind in kinds.items() if name != "top5"}
    values = {name: kind(row[columns.get(name, name)]) for name, kind in kinds.items()}
    others = set(row) - set(kinds) - set(columns.values())
    number = _kind(float | None)
    return Result(**values, metric=metric, others={n: number(row[n]) for n in row if n in others})


def _kind(hint: Any) -> Any:
    """Return the function that reads a cell of a type."""
    if isinstance(hint, UnionType):
        of = next(t for t in get_args(hint) if t is not type(None))
        return lambda text: of(text) if text else None
    return {"True": True, "False": False}.__getitem__ if hint is bool else hint
