"""Studies of any networks, ours and timm's, trained with one recipe; the table of their results."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from convnext.atomic import write_text
from convnext.models.config import FAMILY
from convnext.models.factory import check_name
from convnext.models.roadmap import PAPER_REGIMES, roadmap
from convnext.studies.plan import Entry, Paper
from convnext.studies.roadmap import paper_of, parse_value, pin_network, show, split_list
from convnext.tasks import DEFAULT, task_class, task_names, task_of_metric
from convnext.tasks.factory import dense_prefix

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
    conditions: str = ""
    """The images, split, precision and backend of the scores; "" in tables of older versions."""
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
        return task_of_metric(self.metric).metrics()[self.metric]

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
    known = (name for task in map(task_class, task_names()) for name in task.metrics())
    metric = next(name for name in known if f"best_{name}" in row)
    columns = {"score": metric, "best_score": f"best_{metric}"}
    if metric != "top1":
        kinds = {name: kind for name, kind in kinds.items() if name != "top5"}
    if "conditions" not in row:
        kinds = {name: kind for name, kind in kinds.items() if name != "conditions"}
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


# LABEL=NAME@WEIGHTS:field=value,field=value, all but the name optional.
SPEC = re.compile(
    r"(?:(?P<label>[\w.\- ]+)=)?(?P<model>[^=@:]+)"
    r"(?:@(?P<weights>[^=]+?))?(?::(?P<changes>\w+=.*))?"
)
GROUPS = (
    ("resnext", "ResNeXt"),
    ("resnet", "ResNet"),
    ("swin", "Swin"),
    ("deit", "ViT"),
    ("vit", "ViT"),
)
# The paper's names of timm models.
PAPER_NAMES = {
    "timm/deit_small_patch16_224": "DeiT-S",
    "timm/deit_base_patch16_224": "DeiT-B",
    "timm/swin_tiny_patch4_window7_224": "Swin-T",
    "timm/swin_small_patch4_window7_224": "Swin-S",
    "timm/swin_base_patch4_window7_224": "Swin-B",
    "timm/vit_small_patch16_224": "ViT-S",
    "timm/vit_base_patch16_224": "ViT-B",
    "timm/vit_large_patch16_224": "ViT-L",
    "convnext_tiny": "ConvNeXt-T",
    "convnext_small": "ConvNeXt-S",
    "convnext_base": "ConvNeXt-B",
    "convnext_large": "ConvNeXt-L",
    "convnext_isotropic_small": "ConvNeXt-S(iso)",
    "convnext_isotropic_base": "ConvNeXt-B(iso)",
    "convnext_isotropic_large": "ConvNeXt-L(iso)",
}


def entries_of(specs: Sequence[str], task: str = DEFAULT) -> list[Entry]:
    """Return an entry for every `[LABEL=]MODEL[@WEIGHTS][:field=value,...]`.

    The others are compared with the first one. Fields are those of `NetworkConfig`, or arguments of
    a timm model. For segmentation and detection, a backbone is used in UPerNet or Mask R-CNN; full
    names work too.

    Raises:
        ValueError: If a model is unknown, a field is not `field=value`, or two share a label.
    """
    entries: list[Entry] = []
    for spec in specs:
        entry = _entry(spec, departs_from=entries[0].name if entries else "", task=task)
        if entry.name in {other.name for other in entries}:
            raise ValueError(
                f"two networks are called {entry.name!r}; give one of them a label: LABEL=MODEL"
            )
        entries.append(entry)
    return entries


def rivals_of(specs: Sequence[str]) -> list[Entry]:
    """Return entries for networks that run in addition to a roadmap, without comparison.

    Raises:
        ValueError: See `entries_of`.
    """
    return [replace(entry, departs_from="") for entry in entries_of(specs)]


def _entry(spec: str, *, departs_from: str, task: str) -> Entry:
    found = SPEC.fullmatch(spec)
    if found is None:
        raise ValueError(f"{spec!r} is not [LABEL=]MODEL[@WEIGHTS][:field=value,...]")
    kind = task_class(task)
    prefix = dense_prefix(found["model"]) or ""
    model, weights = found["model"].removeprefix(prefix), found["weights"]
    prefix = prefix or kind.default_prefix()
    if bool(prefix) != bool(kind.prefixes):
        raise ValueError(
            f"{found['model']} is not a network for --task {task}; name its backbone, or change "
            "--task"
        )
    changes = {}
    for part in split_list(found["changes"] or ""):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"{part!r} in {spec!r} is not field=value")
        changes[name] = parse_value(text)
    check_name(model)
    pins = pin_network(FAMILY[model]) if model in FAMILY else {}
    all_changes = dict(changes)
    leaves: dict[str, object] = {}
    settings = {f"network.{name}": changes.pop(name) for name in list(changes) if name in _OWN}
    leaves |= settings
    if changes:
        leaves["network.changes"] = changes
    if weights:
        leaves["weights"] = weights
    label = found["label"] or found["model"].replace("timm/", "") + (
        f"@{weights}" if weights else ""
    )
    if all_changes and not found["label"]:
        label += ":" + ",".join(f"{name}={show(value)}" for name, value in all_changes.items())
    # The paper has no accuracies of changed or pretrained networks.
    of_paper = not all_changes and not weights and not kind.prefixes
    paper = paper_figures(model) if of_paper else Paper()
    return Entry(
        name=label,
        what=_describe(model, all_changes),
        group=group_of(model),
        model=prefix + model,
        changes=leaves,
        pins=pins,
        departs_from=departs_from,
        paper=paper,
    )


# Fields of the network that are also recipe settings.
_OWN = ("drop_path_rate", "layer_scale_init", "stem", "stem_stride", "norm", "head_init_scale")


def group_of(model: str) -> str:
    """Return the kind of a network, which determines its color in figures."""
    if not model.startswith("timm/"):
        return "ConvNeXt" if "isotropic" not in model else "ConvNeXt (isotropic)"
    name = model.removeprefix("timm/")
    return next((group for start, group in GROUPS if start in name), "other")


def paper_figures(model: str) -> Paper:
    """Return the paper's figures for a network trained on ImageNet-1K at 224."""
    for regime in PAPER_REGIMES:
        for rung in roadmap(regime):
            if model == f"roadmap/{regime}/{rung.name}":
                return paper_of(rung, regime)
    name = PAPER_NAMES.get(model)
    return _figures().get(name, Paper(name=name)) if name else Paper()


@cache
def _figures() -> dict[str, Paper]:
    text = (resources.files("convnext.studies") / "imagenet1k.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {
        row["model"]: Paper(
            name=row["model"],
            top1=float(row["top1"]),
            gmacs=float(row["gmacs"]),
            images_per_s=float(row["images_per_s"]),
        )
        for row in csv.DictReader(lines)
    }


def _describe(model: str, changes: dict[str, object]) -> str:
    if not changes:
        return model
    return f"{model}, " + ", ".join(f"{name} {show(value)}" for name, value in changes.items())
