"""The average of the weights of several runs of one network: a uniform or a greedy soup.

Runs that start from the same pretrained weights and differ in their settings often average to a
network that is better than each of them, at the cost of one (Wortsman et al. 2022).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

from convnext.atomic import whole_folder, write_text
from convnext.data.contents import FILE as CONTENTS
from convnext.data.contents import held_names
from convnext.names import count_noun
from convnext.tasks import DEFAULT, task_class
from convnext.tasks.evaluation import EvaluationSettings
from convnext.tasks.trained import Opened, build, keep_channels_last, opened
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint
from convnext.weights.sources import card_or_none, open_weights

How = Literal["greedy", "uniform"]
# Fields of a network that its weights do not depend on.
_OF_TRAINING = ("drop_path_rate", "layer_scale_init", "head_init_scale", "init")
# What a run folder says about its data and its network, besides the checkpoint.
_COPIED = ("recipe.yaml", CONTENTS, "heldout.json", "model.json")


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """The average of some runs, and what the average and each of them score."""

    folder: Path
    """A run folder with the averaged weights; `load` opens it."""
    how: How
    metric: str
    """The name of the score."""
    scores: Mapping[str, float]
    """The score of each run, in percent."""
    used: tuple[str, ...]
    """The runs whose weights are averaged; the best one first."""
    score: float
    """The score of the average, in percent."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


class _Sum:
    """A running sum of weights in double precision."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.total: dict[str, Tensor] = {}
        self.count = 0

    def plus(self, weights: Mapping[str, Tensor]) -> _Sum:
        """Return the sum with more weights; counters such as those of batch norms stay."""
        found = _Sum()
        found.count = self.count + 1
        found.first = self.first or dict(weights)
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                value = tensor.double()
                found.total[name] = self.total[name] + value if self.total else value
        return found

    def mean(self) -> dict[str, Tensor]:
        """Return the average, with the types of the first weights."""
        return {
            name: (self.total[name] / self.count).to(tensor.dtype) if name in self.total else tensor
            for name, tensor in self.first.items()
        }


def average(
    sources: Sequence[str],
    *,
    output: Path,
    how: How = "greedy",
    data: str | None = None,
    device: str = "auto",
    console: Console,
) -> Averaged:
    """Average the best weights of runs, and write them as a run folder.

    The greedy average starts with the best run, and adds the others in the order of their scores,
    each if it does not lower the score. The scores are those of the images that the runs held out.

    Args:
        sources: At least two run folders or checkpoints of one network.
        output: A new or empty folder.
        how: "greedy", or "uniform" for all of them.
        data: The images to score on; by default those that the runs held out.
        device: Where to evaluate.
        console: Where to print.

    Raises:
        ValueError: If there are fewer than two, they are not of one network with the same classes,
            or they held out different images and no `data` is given.
    """
    if len(sources) < 2 or len(set(sources)) < len(sources):
        raise ValueError("average needs two or more different runs")
    cards = {source: _card_of(source) for source in sources}
    check_alike(cards)
    if data is None:
        _check_held(sources)
    card = cards[sources[0]]
    task = task_class(card.task or DEFAULT)
    metric, label = task.metric_of(card.recipe)
    settings = EvaluationSettings(data=data, device=device, console=console)

    def scores_of(source: str | Opened) -> dict[str, float]:
        return dict(task.evaluate(source, settings).scores())

    scores = {}
    for source in sources:
        scores[source] = scores_of(source)[metric]
        console.print(f"{label} {scores[source]:.2f} %  {source}", markup=False)
    ranked = sorted(sources, key=lambda source: -scores[source])
    # The place of its images, and the setting that it was trained with, come from the best run.
    base = opened(ranked[0], device)

    def score_mean(weights: _Sum) -> dict[str, float]:
        model = build(base.card)
        model.load_state_dict(weights.mean())
        model = keep_channels_last(model.to(base.device)).eval()
        return scores_of(replace(base, model=model, is_shared=False, is_best=False))

    total, used = _Sum().plus(open_weights(ranked[0])[1]), [ranked[0]]
    best: dict[str, float] = {}
    if how == "uniform":
        for source in ranked[1:]:
            total = total.plus(open_weights(source)[1])
        used, best = list(ranked), score_mean(total)
    else:
        for source in ranked[1:]:
            candidate = total.plus(open_weights(source)[1])
            found = score_mean(candidate)
            is_kept = found[metric] >= best.get(metric, scores[ranked[0]])
            verb = "with" if is_kept else "not better with"
            console.print(f"{label} {found[metric]:.2f} %  {verb} {source}", markup=False)
            if is_kept:
                total, best = candidate, found
                used.append(source)
        best = best or scores_of(ranked[0])
    result = Averaged(
        folder=output, how=how, metric=metric, scores=scores, used=tuple(used), score=best[metric]
    )
    _write(result, base.card, total.mean(), best, ranked[0])
    console.print(
        f"{label} {result.score:.2f} %  the {how} average of {count_noun(len(used), 'run')}; the "
        f"best one has {scores[ranked[0]]:.2f} %",
        markup=False,
    )
    return result


def check_alike(cards: Mapping[str, Card]) -> None:
    """Check that checkpoints are of one network.

    Raises:
        ValueError: Names the first difference.
    """
    (first, card), *others = cards.items()
    for source, other in others:
        ours, theirs = _identity(card), _identity(other)
        for name in ours.keys() | theirs.keys():
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{first} and {source} cannot be averaged: their {name} differ "
                    f"({ours.get(name)!s:.60} and {theirs.get(name)!s:.60})"
                )


def _identity(card: Card) -> dict[str, Any]:
    changes = {k: v for k, v in card.changes.items() if k not in _OF_TRAINING}
    changes = json.loads(json.dumps(changes))
    return {
        "networks": card.model,
        "classes": ", ".join(card.classes),
        "preprocessing": card.preprocessing,
        **{f"values of {name}": value for name, value in changes.items()},
    }


def _card_of(source: str) -> Card:
    card = card_or_none(source)
    if card is None:
        raise ValueError(f"{source} is not a run or a checkpoint of one; only those are averaged")
    return card


def _check_held(sources: Sequence[str]) -> None:
    """Check that runs held out the same images.

    Raises:
        ValueError: If they did not, or one does not say which.
    """
    held = {source: held_names(source) if Path(source).is_dir() else set() for source in sources}
    first = held[sources[0]]
    for source, names in held.items():
        if not names:
            raise ValueError(f"{source} does not say which images were held out; give --data PATH")
        if names != first:
            raise ValueError(
                f"{sources[0]} and {source} held out different images, so one has trained on those "
                "that would score the other; give --data PATH with images that none has seen"
            )


def _write(
    result: Averaged, card: Card, weights: dict[str, Tensor], scores: Mapping[str, float], base: str
) -> None:
    metrics = {**scores, "step": card.metrics.get("step"), "weights": f"{result.how} average"}
    with whole_folder(result.folder) as draft:
        (draft / "checkpoints").mkdir()
        path = draft / "checkpoints" / "best.safetensors"
        save_checkpoint(path, weights, replace(card, metrics=metrics))
        for name in _COPIED:
            if (file := Path(base) / name).is_file():
                shutil.copyfile(file, draft / name)
        write_text(draft / "average.json", json.dumps(result.to_dict(), indent=2) + "\n")
