"""Published robustness benchmarks, recognized by the layout of their folders, and their metrics.

WNID/*                        ImageNet-A, ImageNet-R (200 classes each), ImageNet-Sketch (1,000)
CORRUPTION/SEVERITY/WNID/*    ImageNet-C, ImageNet-C-bar
KIND/CORRUPTION/SEVERITY/...  the same, as unpacked from ImageNet-C's archives (noise/, blur/ ...)

Hendrycks and Dietterich (ICLR 2019): the corruption error (CE) is the sum of the top-1 errors over
the five severities, divided by the same sum for AlexNet; mCE is its mean over 15 corruptions. The
metrics are pure functions of the error under every condition.

paper.csv is a copy of the paper's Table 8. In percent: top-1 of `clean`, `imagenet-a`, `imagenet-r`
and `imagenet-sketch`, mean corruption error of `imagenet-c` relative to AlexNet, and mean error of
`imagenet-c-bar`. Rows of other families are left out. `model` and `tag` are those of
`weights.published`.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from convnext.data.formats.class_folders import listing
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES
from convnext.weights.published import find_published

Kind = Literal[
    "corrupt", "imagenet-c", "imagenet-c-bar", "imagenet-a", "imagenet-r", "imagenet-sketch"
]
TITLES: dict[Kind, str] = {
    "corrupt": "corruptions generated here",
    "imagenet-c": "ImageNet-C",
    "imagenet-c-bar": "ImageNet-C-bar",
    "imagenet-a": "ImageNet-A",
    "imagenet-r": "ImageNet-R",
    "imagenet-sketch": "ImageNet-Sketch",
}
# Hendrycks and Dietterich's four extra corruptions for validation; the mean leaves them out.
EXTRAS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
# Mintun, Kirillov and Xie, "On Interaction Between Augmentations and Corruptions to Natural
# Corruption Robustness", NeurIPS 2021. "cocentric" is the name of their folder.
C_BAR = (
    *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout"),
    *("cocentric_sine_waves", "inverse_sparkles", "perlin_noise", "plasma_noise"),
    *("single_frequency_greyscale", "sparkles"),
)
COUNTED: dict[Kind, tuple[str, ...]] = {
    "corrupt": tuple(CORRUPTIONS),
    "imagenet-c": tuple(CORRUPTIONS),
    "imagenet-c-bar": C_BAR,
}
"""The corruptions in the mean of a benchmark."""

KNOWN_LAYOUTS = (
    "looked for CORRUPTION/SEVERITY/CLASS/* with the names of ImageNet-C (gaussian_noise/1 ...) or "
    "ImageNet-C-bar (plasma_noise/1 ...), also one folder deeper, and for WordNet ids (n01440764 "
    "...) that are the classes of ImageNet-A, ImageNet-R or ImageNet-Sketch"
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A folder of labeled images."""

    corruption: str
    """Its name, or the name of the benchmark if that has only one condition."""
    severity: int
    """1 to 5, or 0 if there is none."""
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark found in a folder."""

    kind: Kind
    root: Path
    conditions: tuple[Condition, ...]
    synsets: tuple[str, ...] | None
    """Classes that the benchmark's authors restrict the logits to; None for all."""
    notes: tuple[str, ...]
    """Notes about missing conditions and classes."""


def find_benchmark(
    path: str, *, corruptions: Sequence[str] | None = None, severities: Sequence[int] = SEVERITIES
) -> Benchmark:
    """Recognize the benchmark in a folder.

    Args:
        path: The folder.
        corruptions: The corruptions to use; by default all that exist.
        severities: The severities to use.

    Raises:
        ValueError: If it is not a known benchmark; the message says what was expected and found.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"the folder {path} does not exist; --robustness takes a benchmark folder")
    folders = {p.name: p for p in listing(root) if p.is_dir()}
    if len(folders) == 1 and not _is_known(folders):  # An archive with a top-level folder.
        root = next(iter(folders.values()))
        folders = {p.name: p for p in listing(root) if p.is_dir()}
    found = _corruption_folders(folders)
    if found:
        return _corrupted(root, found, corruptions, severities)
    if folders and all(re.fullmatch(r"n\d{8}", name) for name in folders):
        return _renditions(root, folders)
    some = ", ".join(sorted(folders)[:4]) or "no folders"
    raise ValueError(f"{path} is not a known robustness benchmark: {KNOWN_LAYOUTS}; found {some}")


@cache
def subset_synsets(name: str) -> tuple[str, ...]:
    """Return the WordNet ids of "imagenet_a", "imagenet_r" or "imagenet" from timm."""
    text = (resources.files("timm.data") / "_info" / f"{name}_synsets.txt").read_text("utf-8")
    return tuple(text.split())


def _is_known(names: Iterable[str]) -> bool:
    known = {*CORRUPTIONS, *EXTRAS, *C_BAR}
    return any(name in known or re.fullmatch(r"n\d{8}", name) for name in names)


def _corruption_folders(folders: dict[str, Path]) -> dict[str, Path]:
    """Return the folders of known corruptions, here or one level down."""
    known = {*CORRUPTIONS, *EXTRAS, *C_BAR}
    found = {name: folder for name, folder in folders.items() if name in known}
    for name, folder in folders.items():
        if name not in known and not re.fullmatch(r"n\d{8}", name):
            found |= {p.name: p for p in listing(folder) if p.is_dir() and p.name in known}
    return found


def _corrupted(
    root: Path,
    found: dict[str, Path],
    wanted: Sequence[str] | None,
    severities: Sequence[int],
) -> Benchmark:
    chosen = {name: folder for name, folder in found.items() if wanted is None or name in wanted}
    absent = [name for name in wanted or () if name not in found]
    if absent:
        raise ValueError(f"{root} has no {', '.join(absent)}; it has {', '.join(sorted(found))}")
    bar = [name for name in C_BAR if name in chosen]
    if bar and len(bar) < len(chosen):
        raise ValueError(
            f"{root} has corruptions of both ImageNet-C and ImageNet-C-bar: measure one at a time, "
            f"for example with --corruptions {','.join(bar)}"
        )
    kind: Kind = "imagenet-c-bar" if bar else "imagenet-c"
    names = C_BAR if bar else (*CORRUPTIONS, *EXTRAS)
    conditions, notes = [], []
    missing = [name for name in COUNTED[kind] if name not in found]
    if missing:
        notes.append(f"missing corruptions: {', '.join(missing)}")
    for name in (name for name in names if name in chosen):
        there = {level: chosen[name] / str(level) for level in severities}
        conditions += [
            Condition(corruption=name, severity=level, folder=folder)
            for level, folder in there.items()
            if folder.is_dir()
        ]
        gone = [str(level) for level, folder in there.items() if not folder.is_dir()]
        if gone:
            notes.append(f"{name} has no severity {', '.join(gone)}")
    if not conditions:
        raise ValueError(f"{root} has {', '.join(chosen)}, but no folders of severities 1 to 5")
    return Benchmark(
        kind=kind, root=root, conditions=tuple(conditions), synsets=None, notes=tuple(notes)
    )


def _renditions(root: Path, folders: dict[str, Path]) -> Benchmark:
    """Tell ImageNet-A, -R and -Sketch apart: by their classes, their files, then their names.

    Raises:
        ValueError: If they could be several of these, or none.
    """
    names = set(folders)
    fits: list[Kind] = [
        kind
        for kind in ("imagenet-a", "imagenet-r", "imagenet-sketch")
        if names <= set(subset_synsets(_LISTS[kind]))
    ]
    named = [kind for kind in fits if _name_of(kind) in root.name.lower().replace("_", "-")]
    if _is_sketch(folders):
        fits = [kind for kind in fits if kind == "imagenet-sketch"]
    elif named:
        fits = named[:1]
    else:  # All classes are among Sketch's 1,000, so only files and the name identify it.
        fits = [kind for kind in fits if kind != "imagenet-sketch"]
    if len(fits) != 1:
        why = "could be " + " or ".join(TITLES[k] for k in fits) if fits else "are of none of them"
        raise ValueError(
            f"{root} is not a known robustness benchmark: its {len(names):,} folders of WordNet "
            f"ids {why} (ImageNet-A and -R have 200 classes each, the files of ImageNet-Sketch are "
            "called sketch_*); if it is one, name its folder imagenet-a, imagenet-r or "
            "imagenet-sketch; for ordinary images use --data"
        )
    kind = fits[0]
    synsets = subset_synsets(_LISTS[kind])
    lacking = len(synsets) - len(names)
    return Benchmark(
        kind=kind,
        root=root,
        conditions=(Condition(corruption=kind, severity=0, folder=root),),
        synsets=None if kind == "imagenet-sketch" else synsets,
        notes=(f"{lacking:,} of its {len(synsets):,} classes are missing",) if lacking else (),
    )


_LISTS: dict[Kind, str] = {
    "imagenet-a": "imagenet_a",
    "imagenet-r": "imagenet_r",
    "imagenet-sketch": "imagenet",
}


def _name_of(kind: Kind) -> str:
    return "sketch" if kind == "imagenet-sketch" else kind


def _is_sketch(folders: dict[str, Path]) -> bool:
    """Whether the first file found has a name like those of ImageNet-Sketch."""
    files = (p.name for folder in folders.values() for p in listing(folder))
    return next(files, "").startswith("sketch_")


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
