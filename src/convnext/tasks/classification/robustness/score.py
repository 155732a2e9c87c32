"""The metrics of a robustness evaluation: pure functions of the error under every condition.

Hendrycks and Dietterich (ICLR 2019): the corruption error (CE) is the sum of the top-1 errors over
the five severities, divided by the same sum for AlexNet; mCE is its mean over 15 corruptions.

paper.csv is a copy of the paper's Table 8. In percent: top-1 of `clean`, `imagenet-a`, `imagenet-r`
and `imagenet-sketch`, mean corruption error of `imagenet-c` relative to AlexNet, and mean error of
`imagenet-c-bar`. Rows of other families are left out. `model` and `tag` are those of
`weights.published`.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from convnext.tasks.classification.robustness.benchmarks import COUNTED, Kind
from convnext.tasks.classification.robustness.corruptions import SEVERITIES
from convnext.weights.published import find_published

# Top-1 error of AlexNet in percent, mean over severities, from the code of ImageNet-C's authors;
# the paper's table rounds it.
# fmt: off
ALEXNET_ERROR = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score under one condition."""

    corruption: str
    """"clean", a corruption, or a benchmark with a single condition."""
    severity: int
    """1 to 5; 0 if there is none."""
    num_correct: int
    num_images: int
    bad_images: tuple[tuple[str, str], ...] = ()
    """Images that could not be read, with the reasons; they do not count."""

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.num_correct / self.num_images

    @property
    def error(self) -> float:
        """Top-1 error in percent."""
        return 100 * (self.num_images - self.num_correct) / self.num_images


@dataclass(frozen=True, kw_only=True)
class CorruptionScore:
    """Scores of one corruption over its severities, in percent."""

    corruption: str
    errors: dict[int, float]
    """Top-1 error by severity."""
    mean_error: float
    ce: float | None
    """Corruption error relative to AlexNet; None if it is not defined."""
    counted: bool
    """Whether the mean of the benchmark includes it."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The metrics of a whole evaluation, in percent."""

    corruptions: tuple[CorruptionScore, ...]
    mean_error: float
    """Mean error, not normalized, over the corruptions in the mean."""
    mean_top1: float
    mce: float | None
    mce_withheld: str
    """Why there is no mCE; empty if there is one, or the benchmark has none."""
    clean_top1: float | None
    relative_drop: float | None
    """Percentage of the clean accuracy that is lost."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)


def summarize(
    kind: Kind, scores: Sequence[Score], *, clean: float | None, is_imagenet: bool
) -> Summary:
    """Compute the metrics of an evaluation.

    Args:
        kind: The benchmark.
        scores: One for each condition except clean.
        clean: Top-1 without corruption in percent, if known.
        is_imagenet: Whether the classes are ImageNet's, so that AlexNet's errors apply.
    """
    counted = COUNTED.get(kind)
    by_name: dict[str, dict[int, float]] = {}
    for score in scores:
        by_name.setdefault(score.corruption, {})[score.severity] = score.error
    rows = tuple(
        CorruptionScore(
            corruption=name,
            errors=errors,
            mean_error=statistics.fmean(errors.values()),
            ce=_corruption_error(name, errors) if kind == "imagenet-c" and is_imagenet else None,
            counted=counted is None or name in counted,
        )
        for name, errors in by_name.items()
    )
    # With only extra corruptions, average those, although this is not a published metric.
    error = statistics.fmean(
        [r.mean_error for r in rows if r.counted] or [r.mean_error for r in rows]
    )
    withheld = _why_no_mce(rows, is_imagenet) if kind == "imagenet-c" else ""
    mce = None
    if kind == "imagenet-c" and not withheld:
        mce = statistics.fmean(row.ce for row in rows if row.counted and row.ce is not None)
    return Summary(
        corruptions=rows,
        mean_error=error,
        mean_top1=100 - error,
        mce=mce,
        mce_withheld=withheld,
        clean_top1=clean,
        relative_drop=100 * (clean - (100 - error)) / clean if clean else None,
    )


def _corruption_error(name: str, errors: dict[int, float]) -> float | None:
    if name not in ALEXNET_ERROR or set(errors) != set(SEVERITIES):
        return None
    return 100 * sum(errors.values()) / (len(SEVERITIES) * ALEXNET_ERROR[name])


def _why_no_mce(rows: Sequence[CorruptionScore], is_imagenet: bool) -> str:
    """Return why there is no mCE; empty if there can be one."""
    if not is_imagenet:
        return "the classes are not ImageNet's, so the errors of AlexNet do not apply"
    there = {row.corruption: row for row in rows}
    missing = [name for name in ALEXNET_ERROR if name not in there]
    partial = [name for name in ALEXNET_ERROR if name in there and there[name].ce is None]
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} of 15 corruptions are missing ({', '.join(missing)})")
    if partial:
        reasons.append(f"not all five severities were measured for {', '.join(partial)}")
    return "; ".join(reasons)


SOURCE = "A ConvNet for the 2020s, Table 8"


def paper_figures(source: str) -> dict[str, float] | None:
    """Return the paper's results by benchmark for published weights, None for any others.

    Args:
        source: The source of the network. Files and runs have no results, even if the paper has
            some for their network.
    """
    published = find_published(source)
    if published is None:
        return None
    text = (resources.files(__package__) / "paper.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        if (row["model"], row["tag"]) == (published.model, published.tag):
            return {name: float(row[name]) for name in row if name not in ("model", "tag", "size")}
    return None
