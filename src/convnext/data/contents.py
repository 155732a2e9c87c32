"""What a data set contained when a run started: its classes, annotations and pictures, as hashes.

A run keeps them in its folder. Resuming and evaluating compare them with the data of today, and
images that were trained on are recognized by their content, under any name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convnext.data.formats.records import Objects
from convnext.documents import open_regular

FILE = "data.json"
"""Its name in a run folder."""
# Files up to this size are hashed as a whole; of larger ones, blocks spread over the file.
MAX_BYTES, NUM_BLOCKS = 2**20, 64
# A split with more images is described as a whole, without its pictures: hashing takes minutes.
MAX_IMAGES = 100_000
_THREADS = 8
MAX_NAMES = 1000


class Images(Protocol):
    """The images of a split."""

    def __len__(self) -> int: ...
    def source(self, index: int) -> str: ...


@dataclass(frozen=True, kw_only=True)
class SplitContents:
    """The images of a split, in order."""

    names: Sequence[str]
    """Their files relative to the data set, or other names; one for all in very large splits."""
    annotations: Sequence[str]
    """A hash of the label, the objects or the mask of each."""
    pictures: Sequence[str]
    """A hash of each file; empty for what is not a file, and in very large splits."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a data set."""

    classes: tuple[str, ...]
    splits: Mapping[str, SplitContents] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of everything."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """Return JSON for `read_contents`."""
        return json.dumps(asdict(self)) + "\n"


def read_contents(source: str | Path) -> Contents | None:
    """Return the contents that a run recorded; None if nothing is known about them.

    Args:
        source: A run folder, or a checkpoint in one.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(source)
    if path.is_file():  # RUN/checkpoints/best.safetensors, RUN/checkpoints/step-1/model.safetensors
        path = next((p.parent for p in path.parents[:2] if p.name == "checkpoints"), path)
    path = path / FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        splits = {name: SplitContents(**split) for name, split in values["splits"].items()}
        return Contents(classes=tuple(values["classes"]), splits=splits)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error!r}; delete it to continue without it"
        raise ValueError(f"{path} is damaged: {reason}") from error


def contents_of_split(
    images: Images, annotate: Callable[[int], str], root: str | Path
) -> SplitContents:
    """Return the contents of a split.

    Args:
        images: The images.
        annotate: Returns the hash of an image's annotation, by its index.
        root: The data set, which names are relative to.
    """
    sources = [images.source(index) for index in range(len(images))]
    names = relative_names(sources, root)
    annotations = [annotate(index) for index in range(len(sources))]
    if len(sources) > MAX_IMAGES:
        names = [f"all {len(names):,} images, {hash_of_text(json.dumps(names))}"]
        return SplitContents(
            names=names, annotations=[hash_of_text(" ".join(annotations))], pictures=[]
        )
    return SplitContents(names=names, annotations=annotations, pictures=hashes_of_files(sources))


def relative_names(sources: Iterable[str], root: str | Path) -> list[str]:
    """Return paths relative to a data set, with slashes; other names are unchanged."""
    folder = os.path.abspath(root)
    base = os.path.join(os.path.dirname(folder) if os.path.isfile(folder) else folder, "")
    return [_relative(source, base) for source in sources]


def held_names(source: str | Path) -> set[str]:
    """Return the names of the images that a run held out; none if it recorded none.

    Raises:
        ValueError: If the run's file of contents is damaged.
    """
    before = read_contents(source)
    return set(before.splits["val"].names) if before and "val" in before.splits else set()


def held_positions(
    held: Collection[str], sources: Iterable[str], root: str | Path
) -> tuple[list[int], list[int]] | None:
    """Return the positions of other images and of those held out; None if none is held out."""
    parts: tuple[list[int], list[int]] = ([], [])
    for position, name in enumerate(relative_names(sources, root)):
        parts[name in held].append(position)
    return parts if parts[1] else None


def _relative(source: str, base: str) -> str:
    path = os.path.abspath(source)
    return path.removeprefix(base).replace(os.sep, "/") if path.startswith(base) else source


def hashes_of_files(sources: Sequence[str | Path]) -> list[str]:
    """Return the hash of each file; "" for what is not a file."""
    with ThreadPoolExecutor(_THREADS) as pool:  # Reading and hashing run in parallel.
        return list(pool.map(hash_of_file, sources, chunksize=16))


def hash_of_file(path: str | Path) -> str:
    """Return a hash of a file's size and bytes, of large files of a sample; "" without a file."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.blake2b(str(size).encode(), digest_size=8)
            if size <= MAX_BYTES:
                found.update(file.read())
                return found.hexdigest()
            length = MAX_BYTES // NUM_BLOCKS
            for block in range(NUM_BLOCKS):
                file.seek((size - length) * block // (NUM_BLOCKS - 1))
                found.update(file.read(length))
            return found.hexdigest()
    except (OSError, ValueError):  # A name of a member of a shard, or a file that is gone.
        return ""


def hash_of_text(text: str) -> str:
    """Return a short hash of a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def hash_of_objects(objects: Objects, classes: Sequence[str]) -> str:
    """Return a short hash of the objects of an image: classes, boxes, areas, crowds and masks."""
    names = [classes[label] for label in objects.labels.tolist()]
    found = hashlib.blake2b(json.dumps(names).encode("utf-8", "surrogatepass"), digest_size=8)
    for values in (objects.boxes, objects.areas):
        found.update(np.ascontiguousarray(values, np.float64).tobytes())
    found.update(np.ascontiguousarray(objects.crowd).tobytes())
    for mask in objects.masks:
        found.update(_mask_bytes(mask))
    return found.hexdigest()


def _mask_bytes(mask: Any) -> bytes:
    if isinstance(mask, Mapping):  # Run lengths.
        return b"".join(repr(key).encode() + _mask_bytes(mask[key]) for key in sorted(mask))
    if isinstance(mask, list | tuple) and mask and not isinstance(mask[0], int | float):
        return b"".join(b"[" + _mask_bytes(ring) for ring in mask)  # Polygons.
    if isinstance(mask, list | tuple | np.ndarray):
        return np.asarray(mask, np.float64).tobytes()
    return repr(mask).encode()


def changes(before: Contents, now: Contents) -> tuple[str, ...]:
    """Return what has changed between two contents, one line each, with names."""
    found = []
    if before.classes != now.classes:
        found.append(f"the classes: {_some(before.classes)} then, {_some(now.classes)} now")
    for name, split in now.splits.items():
        if name in before.splits:
            found += _changes_of_split(name, before.splits[name], split)
    return tuple(found)


def _changes_of_split(name: str, before: SplitContents, now: SplitContents) -> list[str]:
    kind = {"train": "training", "val": "validation"}.get(name, name)
    places = {name: index for index, name in enumerate(before.names)}
    known = set(now.names)
    new = [name for name in now.names if name not in places]
    gone = [name for name in before.names if name not in known]
    both = [(index, places[name]) for index, name in enumerate(now.names) if name in places]

    def differing(field: str) -> list[str]:
        then, today = getattr(before, field), getattr(now, field)
        if not then or not today:  # Pictures of a large split are not hashed.
            return []
        return [now.names[i] for i, k in both if today[i] != then[k]]

    lines = {
        f"new {kind} images": new,
        f"{kind} images that are gone": gone,
        f"changed annotations of {kind} images": differing("annotations"),
        f"changed pictures of {kind} images": differing("pictures"),
    }
    found = [f"{what}: {len(names):,} ({_some(names)})" for what, names in lines.items() if names]
    if not found and list(before.names) != list(now.names):
        found.append(f"the order of the {kind} images")
    return found


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Evaluated images, compared with those of the run."""

    num_images: int = 0
    trained_on: tuple[str, ...] = ()
    """Images whose content the run trained on, under any name."""
    positions: tuple[int, ...] = ()
    """Their positions among the images."""
    changed: tuple[str, ...] = ()
    """What has changed since the run started, if this is its data."""
    not_compared: str = ""
    """Why it is not known which images were trained on; "" if it is known."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; at most `MAX_NAMES` images are named."""
        return {
            "num_trained_on": len(self.trained_on),
            "trained_on": list(self.trained_on[:MAX_NAMES]),
            "changed": list(self.changed),
            "not_compared": self.not_compared,
        }

    def without(self, bad: Collection[int]) -> Compared:
        """Return the comparison of the other images, without those that could not be read."""
        kept = [i for i, position in enumerate(self.positions) if position not in bad]
        return replace(
            self,
            num_images=self.num_images - len(bad),
            trained_on=tuple(self.trained_on[i] for i in kept),
            positions=tuple(self.positions[i] for i in kept),
        )

    def lines(self) -> tuple[str, ...]:
        """Return lines for the user."""
        found = [f"changed since the run started: {line}" for line in self.changed]
        if self.trained_on:
            found.append(
                f"{len(self.trained_on):,} of {self.num_images:,} images were trained on "
                f"({_some(self.trained_on)}), so the scores are higher than on new images"
            )
        if self.not_compared:
            found.append(f"it is not known whether images were trained on: {self.not_compared}")
        return tuple(found)


def split_to_evaluate(split: str, *, is_own: bool, has_val: bool, has_test: bool) -> str:
    """Return the split that an evaluation takes: "train", "val", "test" or "all".

    Args:
        split: The user's choice, or "auto".
        is_own: Whether it is the data of training, of which only held-out images are scored.
        has_val: Whether the data states a validation split.
        has_test: Whether it states a test split.
    """
    if split != "auto":
        return split
    if is_own:
        return "val"
    if has_test:
        return "test"
    return "val" if has_val else "all"


def compare_with_run(
    source: str,
    images: Images,
    annotate: Callable[[int], str],
    *,
    data: str | Path,
    classes: Sequence[str],
    own_split: str = "",
) -> Compared:
    """Compare images with those that a run trained on and held out.

    Args:
        source: The run folder, or a checkpoint in it; nothing is known about other sources.
        images: The images to evaluate on.
        annotate: Returns the hash of an image's annotation, by its index.
        data: The data set that they belong to.
        classes: Its classes.
        own_split: The split of the run's data that they are; "" if they are not one.

    Raises:
        ValueError: If the run's file of contents is damaged.
    """
    before = read_contents(source)
    if before is None:
        return Compared()
    now = contents_of_split(images, annotate, data)
    changed: tuple[str, ...] = ()
    if own_split:
        changed = changes(before, Contents(classes=tuple(classes), splits={own_split: now}))
    train = before.splits.get("train")
    known = {picture for picture in train.pictures if picture} if train else set()
    positions = tuple(i for i, picture in enumerate(now.pictures) if picture in known)
    return Compared(
        num_images=len(images),
        trained_on=tuple(now.names[i] for i in positions),
        positions=positions,
        changed=changed,
        not_compared=_not_compared(train, now),
    )


def _not_compared(train: SplitContents | None, now: SplitContents) -> str:
    """Return why images cannot be recognized by their content; "" if they can."""
    for split, what in ((train, "training"), (now, "evaluated")):
        if split is None or not split.names:
            continue
        if not split.pictures:
            return f"there are more than {MAX_IMAGES:,} {what} images, too many to hash each"
        if not any(split.pictures) and "!" in split.names[0]:
            return f"the {what} images are in shards, whose members are not hashed"
    return ""


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def hash_of_names(classes: Sequence[str], names: Sequence[str]) -> str:
    """Return a hexadecimal hash of class and file names, in order."""
    text = "\n".join((*classes, "", *names))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
