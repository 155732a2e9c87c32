"""Published robustness benchmarks, recognized by the layout and names of their folders.

WNID/*                        ImageNet-A, ImageNet-R (200 classes each), ImageNet-Sketch (1,000)
CORRUPTION/SEVERITY/WNID/*    ImageNet-C, ImageNet-C-bar
KIND/CORRUPTION/SEVERITY/...  the same, as unpacked from ImageNet-C's archives (noise/, blur/ ...)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from convnext.data.formats.class_folders import listing
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES

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
