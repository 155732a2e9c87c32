"""What YOLO's data.yaml, obj.data and lists state: the names of the classes and the split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from convnext.data.formats.located import Locator
from convnext.data.formats.paths import SPLIT_WORDS, FileIndex, split_of, suffixes
from convnext.data.formats.records import SPLITS, Fault, Split
from convnext.data.images import readable_extensions
from convnext.documents import parse_yaml, read_regular

MAX_BYTES = 16 * 2**20
_NAME_FILES = ("classes.txt", "_classes.txt", "obj.names", "_darknet.labels", "classes.names")
# The same, unless it is the file of labels of an image of this name.
_OTHER_NAME_FILES = ("labels.txt", "names.txt")
_LABEL_LINE = re.compile(r"\s*\d+(\s+[-+.\deE]+){4,}\s*")
_YAML_KEYS = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The names of the classes, and what a file states about the split."""

    file: Path
    names: dict[int, str]
    """Names by the number in the lines."""
    entries: dict[Split, tuple[str, ...]] = field(default_factory=dict)
    """Paths of each split as they are written."""
    base: str = ""
    """What the paths are relative to, as written."""
    kpt_shape: tuple[int, int] | None = None

    def short(self, index: FileIndex) -> str:
        """Return the file relative to the data."""
        is_in = self.file.is_relative_to(index.root)
        return self.file.relative_to(index.root).as_posix() if is_in else str(self.file)


@dataclass
class Splits:
    """The split of every image that has one."""

    of: dict[Path, Split] = field(default_factory=dict)
    source: str = ""
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def read_config(index: FileIndex, annotations: str = "") -> Config:
    """Return the names of the classes and what is stated about the split.

    Raises:
        ValueError: If there are no names, or files state different ones.
    """
    files = index.files
    if annotations:
        given = next(
            (p for p in (index.root / annotations, Path(annotations)) if p.is_file()), None
        )
        if given is None:
            raise ValueError(f"there is no annotation file {annotations} in {index.root} or here")
        files = [given]
    configs = []
    for path in files:
        if path.suffix.lower() not in (".yaml", ".yml"):
            continue
        try:
            config = _read_yaml(path)
        except ValueError:  # Data sets contain YAML files of other tools.
            if annotations or path.stem.lower() in ("data", "dataset"):
                raise
            config = None
        if config is not None:
            configs.append(config)
    configs += [
        config
        for path in files
        if path.name.lower() in _NAME_FILES and (config := _read_list(path)) is not None
    ]
    configs += [
        config
        for path in (() if configs else files)
        if path.name.lower() in _OTHER_NAME_FILES
        and not any(map(_LABEL_LINE.fullmatch, read_text(path).splitlines()))
        and (config := _read_list(path)) is not None
    ]
    if not configs:
        parent = index.root.absolute().parent
        above = next((n for n in ("data.yaml", "classes.txt") if (parent / n).is_file()), None)
        advice = f"; {parent / above} does: give {parent}, or" if above else ""
        raise ValueError(
            f"{index.root} does not say what its classes are called{advice or ':'} write a "
            "classes.txt with one name per line, or a data.yaml with `names`"
        )
    best = min(configs, key=lambda config: (_rank(config.file), len(config.file.parts)))
    other = next((c for c in configs if list(c.names.items()) != list(best.names.items())), None)
    if other is not None:
        raise ValueError(
            f"{best.short(index)} and {other.short(index)} list different classes; say which with "
            f"--annotations {best.short(index)}, or remove one"
        )
    darknet = None if best.entries else _read_obj_data(index)
    if darknet:
        return Config(file=best.file, names=best.names, entries=darknet, kpt_shape=best.kpt_shape)
    return best


def _rank(path: Path) -> int:
    return 0 if path.name == "data.yaml" else 1 if path.suffix.lower() in (".yaml", ".yml") else 2


def _read_yaml(path: Path) -> Config | None:
    """Return the configuration of a YAML file; None if it has no names.

    Every scalar is text, so that `names: [yes, no]` are words.

    Raises:
        ValueError: If it is not YAML, or its names are invalid.
    """
    try:
        content = parse_yaml(read_text(path), yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: is not YAML; correct it") from error
    if not isinstance(content, dict) or "names" not in content:
        return None
    entries: dict[Split, tuple[str, ...]] = {}
    for key, value in content.items():
        split = _YAML_KEYS.get(str(key).lower())
        values = value if isinstance(value, list) else [value]
        texts = tuple(text for text in values if isinstance(text, str) and text)
        if split is not None and texts:
            entries[split] = texts
    base = content.get("path", "")
    return Config(
        file=path,
        names=_names(content["names"], path),
        entries=entries,
        base=base if isinstance(base, str) else "",
        kpt_shape=_kpt_shape(content.get("kpt_shape"), path),
    )


def _kpt_shape(value: Any, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        count, dims = (int(number) for number in value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: `kpt_shape` must be two numbers such as [17, 3]") from None
    return count, dims


def _read_list(path: Path) -> Config | None:
    lines = [line.strip() for line in read_text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    # Roboflow's `_classes.txt` has them in one line, separated by commas.
    if len(lines) == 1 and "," in lines[0] and path.name.startswith("_"):
        lines = [name.strip() for name in lines[0].split(",")]
    return Config(file=path, names=_names(lines, path)) if lines else None


def _names(value: Any, file: Path) -> dict[int, str]:
    """Return names by their numbers, which may begin at 1 or have gaps.

    Raises:
        ValueError: If they are not names.
    """
    if isinstance(value, dict):
        try:
            names = {int(key): name for key, name in value.items()}
        except (TypeError, ValueError):
            raise ValueError(f"{file}: the keys of `names` must be whole numbers") from None
    elif isinstance(value, list) and value:
        names = dict(enumerate(value))
    else:
        raise ValueError(f"{file}: `names` must list the names of the classes")
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{file}: `names` must be words, not lists")
    values = list(names.values())
    twice = next((name for name in values if not name or values.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file}: the class name {twice!r} is empty or a duplicate")
    return dict(sorted(names.items()))


def _read_obj_data(index: FileIndex) -> dict[Split, tuple[str, ...]]:
    """Return the lists that darknet's obj.data names."""
    entries: dict[Split, tuple[str, ...]] = {}
    for path in index.with_ending(".data"):
        for line in read_text(path).splitlines():
            key, _, value = line.partition("=")
            split = _YAML_KEYS.get(key.strip().lower())
            if split is not None and value.strip():
                entries[split] = (value.strip(),)
    return entries


def find_splits(index: FileIndex, config: Config) -> Splits:
    """Return the split that data.yaml, obj.data or lists state; empty if none does.

    Images of both training and validation are kept in validation only.
    """
    splits = Splits()
    found: dict[Split, list[Path]] = {}
    for split, entries in config.entries.items():
        for entry in entries:
            images = _images_of(entry, index, config, splits)
            if images is None:
                text = (
                    f"names {entry} for the {split} split, which is not below {index.root}; the "
                    "folders decide until it is corrected"
                )
                splits.faults.append(
                    Fault(kind="paths that do not exist", where=config.short(index), text=text)
                )
            else:
                found.setdefault(split, []).extend(images)
    is_yaml = config.file.suffix.lower() in (".yaml", ".yml")
    splits.source = config.short(index) if is_yaml else "obj.data"
    is_partial = any(split in config.entries and split not in found for split in ("train", "val"))
    if is_partial or not found.get("train") or not (found.get("val") or found.get("test")):
        found = _by_lists(index, splits) or ({} if is_partial else found)
    if not found.get("train"):
        splits.source = ""
        return splits
    same = set(found["train"]) == set(found.get("val", ()))
    if same:
        splits.notes.append(
            f"{splits.source} gives the same images for training and validation, so a share is "
            "held out"
        )
        found.pop("val")
    for split in reversed(SPLITS):  # Images of two splits are those of the later one.
        for image in found.get(split, ()):
            splits.of.setdefault(image, split)
    lost = len(found["train"]) - sum(split == "train" for split in splits.of.values())
    if lost > 0 and not same:
        splits.notes.append(
            f"{lost:,} training images are also validation or test images, or listed twice; they "
            "are kept out of training"
        )
    return splits


def _by_lists(index: FileIndex, splits: Splits) -> dict[Split, list[Path]]:
    """Return the images of lists such as train.txt and val.txt."""
    found: dict[Split, list[Path]] = {}
    files = []
    for path in index.with_ending(".txt"):
        split = split_of(path.stem)
        if split is not None and (images := _read_image_list(path, index, splits)):
            found.setdefault(split, []).extend(images)
            files.append(path.name)
    if found:
        splits.source = ", ".join(files)
    return found


def _images_of(entry: str, index: FileIndex, config: Config, splits: Splits) -> list[Path] | None:
    """Return the images of a folder, a list or a pattern; None if it does not exist."""
    for path in _places(entry, index, config):
        if path.is_dir() and index.fence.allows(path / "x"):
            real = path.resolve()
            folders = {image.parent for image in index.images}
            within = {f for f in folders if f.resolve().is_relative_to(real)}
            return [image for image in index.images if image.parent in within]
        if path.is_file() and index.fence.allows(path):
            return _read_image_list(path, index, splits)
    if any(sign in entry for sign in "*?["):
        pattern = PurePosixPath(entry)
        return [path for path in index.images if path.match(pattern.as_posix())] or None
    return None


def _places(entry: str, index: FileIndex, config: Config) -> Iterable[Path]:
    """Yield where a path may lead: as written, from `path`, and then inside the data."""
    home = config.file.parent
    for base in (home / config.base, home, index.root):
        yield base / entry
    for tail in suffixes(f"{config.base}/{entry}"):
        for base in (home, index.root):
            yield base / tail


def _read_image_list(path: Path, index: FileIndex, splits: Splits) -> list[Path]:
    """Return the images that a text lists, one per line."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line for line in lines if Path(line).suffix.lower() in readable_extensions()]
    if not names or len(names) < len([line for line in lines if line]) / 2:
        return []
    locator = Locator(index, (path.parent, index.root))
    found = [(name, locator.find(name, str(path))) for name in names]
    missing = [name for name, image in found if image is None]
    if missing:
        text = f"lists {len(missing):,} images that are not below {index.root}: {missing[0]}"
        splits.faults.append(
            Fault(kind="missing image files", where=str(path), text=text, count=len(missing))
        )
    splits.notes += locator.notes()
    return list(dict.fromkeys(image for _, image in found if image is not None))


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ValueError: If it cannot be read, or is far too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path}: is larger than {MAX_BYTES >> 20} MB, too large for labels")
        return read_regular(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from error
