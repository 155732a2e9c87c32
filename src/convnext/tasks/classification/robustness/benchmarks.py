"""Published robustness benchmarks: how their folders look, and how their authors score them.

ImageNet-C       CORRUPTION/SEVERITY/WNID/*       mean corruption error, relative to AlexNet
ImageNet-C-bar   CORRUPTION/SEVERITY/WNID/*       mean error
ImageNet-A, -R   WNID/*, 200 classes each         top-1 among those classes
ImageNet-Sketch  WNID/*, 1,000 classes            top-1
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext.tasks.classification.folders import subfolders
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES

# Top-1 error of AlexNet in percent, mean over the severities (Hendrycks and Dietterich 2019).
ALEXNET_ERROR = {
    "gaussian_noise": 88.6,
    "shot_noise": 89.4,
    "impulse_noise": 92.3,
    "defocus_blur": 82.0,
    "glass_blur": 82.6,
    "motion_blur": 78.6,
    "zoom_blur": 79.8,
    "snow": 86.7,
    "frost": 82.7,
    "fog": 81.9,
    "brightness": 56.5,
    "contrast": 85.3,
    "elastic_transform": 64.6,
    "pixelate": 71.8,
    "jpeg_compression": 60.7,
}
# In ImageNet-C too, but not in its score.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
# Mintun, Kirillov and Xie, "On Interaction Between Augmentations and Corruptions" (2021).
C_BAR = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One folder of classes: a corruption at a severity, or a whole benchmark of pictures."""

    corruption: str
    severity: int
    """0 where there is none."""
    path: str


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark on disk."""

    kind: str
    """"c", "c-bar" or "pictures"."""
    title: str
    conditions: Sequence[Condition]


def find_benchmark(path: str) -> Benchmark:
    """Recognise a benchmark by the names of its folders.

    Raises:
        ValueError: If the folder is none, with what was looked for.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"there is no folder {path}")
    corruptions = _corruptions(root)
    if corruptions:
        kind = "c-bar" if set(corruptions) & set(C_BAR) else "c"
        conditions = [
            Condition(corruption=name, severity=int(severity), path=str(folder))
            for name in sorted(corruptions, key=_order)
            for severity, folder in sorted(subfolders(corruptions[name]).items())
            if severity in map(str, SEVERITIES)
        ]
        title = "ImageNet-C-bar" if kind == "c-bar" else "ImageNet-C"
        return Benchmark(kind=kind, title=title, conditions=conditions)
    if subfolders(root):
        condition = Condition(corruption=root.name, severity=0, path=str(root))
        return Benchmark(kind="pictures", title=root.name, conditions=[condition])
    raise ValueError(
        f"{path} is no benchmark that is known: CORRUPTION/SEVERITY/CLASS/* as in ImageNet-C and "
        "C-bar, or CLASS/* as in ImageNet-A, -R and -Sketch"
    )


@dataclass(frozen=True, kw_only=True)
class CorruptionScore:
    """The error over the severities of one corruption, and relative to AlexNet's, in percent."""

    corruption: str
    errors: Mapping[int, float]
    """Top-1 error in percent by severity."""
    mean_error: float
    ce: float | None
    """Corruption error; None for those that have none, or with a severity missing."""


def score_corruptions(
    errors: Mapping[tuple[str, int], float], *, published: bool
) -> list[CorruptionScore]:
    """Return a score per corruption.

    Args:
        errors: Top-1 error in percent by corruption and severity.
        published: Whether the images are those of ImageNet-C, for which AlexNet's errors hold.
    """
    names = list(dict.fromkeys(name for name, _ in errors))
    scores = []
    for name in names:
        own = {severity: e for (other, severity), e in errors.items() if other == name}
        mean = statistics.fmean(own.values())
        whole = published and set(own) == set(SEVERITIES) and name in ALEXNET_ERROR
        ce = 100 * mean / ALEXNET_ERROR[name] if whole else None
        scores.append(CorruptionScore(corruption=name, errors=own, mean_error=mean, ce=ce))
    return scores


def mean_ce(scores: Sequence[CorruptionScore]) -> float | None:
    """Return the mCE: the mean of the corruption errors of all fifteen; None if one is missing."""
    found = {s.corruption: s.ce for s in scores if s.corruption in ALEXNET_ERROR}
    values = [found.get(name) for name in ALEXNET_ERROR]
    whole = [value for value in values if value is not None]
    return statistics.fmean(whole) if len(whole) == len(ALEXNET_ERROR) else None


def mean_error(scores: Sequence[CorruptionScore]) -> float:
    """Return the mean error of all corruptions but the extra ones, in percent."""
    counted = [s.mean_error for s in scores if s.corruption not in EXTRA]
    return statistics.fmean(counted or [s.mean_error for s in scores])


def _corruptions(root: Path) -> dict[str, Path]:
    """Return the folders of corruptions, also where kinds lie in folders of their own."""
    known = {*CORRUPTIONS, *EXTRA, *C_BAR}
    found: dict[str, Path] = {}
    for name, folder in subfolders(root).items():
        if name in known:
            found[name] = folder
        else:  # As in the published archives: noise/gaussian_noise/1/...
            found |= {n: f for n, f in subfolders(folder).items() if n in known}
    return found


def _order(name: str) -> tuple[int, str]:
    known = [*CORRUPTIONS, *EXTRA, *C_BAR]
    return known.index(name), name
