"""The splits of shards by the names of their tars, and their classes; and writing of shards."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image

from convnext.atomic import atomic_write
from convnext.data.formats.records import SPLITS
from convnext.data.images import (
    PICTURE,
    RAW,
    BadImage,
    Mode,
    decode,
    ending_of,
    read_header,
    readable_extensions,
    spread,
)
from convnext.data.preprocessing import fit_short_side
from convnext.data.samples import FileSamples, ImageListing
from convnext.data.shards import index as shard_index
from convnext.data.shards.index import (
    HEADER_BYTES,
    MAX_CLASSES,
    Listed,
    Listing,
    Places,
    ShardIndex,
    index_name,
    index_shard,
    is_header_of,
    pack_names,
)
from convnext.data.shards.samples import Keys, Shard, ShardSamples
from convnext.data.shards.store import Store

# The first name that occurs is taken.
_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing", "eval", "evaluation", "holdout"),
}
_SPLIT = re.compile(
    rf"(?:^|[-_.])({'|'.join(name for names in _NAMES.values() for name in names)})(?=[-_.\d]|$)",
    re.IGNORECASE,
)


def part_of(name: str) -> str | None:
    """Return the split in the name of a shard: "train", "val", "test" ..., or None."""
    match = _SPLIT.search(name.removesuffix(".tar"))
    return match.group(1).lower() if match else None


def choose_parts(names: Sequence[str], notes: list[str]) -> list[str]:
    """Return for each shard "train", "val", "test", or "" if it is not used, judging by the names.

    Names without a split are for training. If several are for the same split, such as "val" and
    "valid", one is chosen. Choices that the names do not make obvious are added to `notes`.
    """
    parts = [part_of(name) or "train" for name in names]
    meaning: dict[str, str] = {}
    for split, known in _NAMES.items():
        taken, *others = [name for name in known if name in parts] or [""]
        meaning[taken] = split
        notes += [f"shards named {name} are not used" for name in others]
    if "test" in meaning.values() and not any(meaning.get(part) == "val" for part in parts):
        notes.append("shards for a test are not used for validation")
    return [meaning.get(part, "") for part in parts]


def find_shards(root: Path, tars: Sequence[Path]) -> ImageListing:
    """List the images in the tar files of a folder; tars that match their index are not read.

    Raises:
        ValueError: If there are no labeled images, a label is not a class, or the shards are of a
            conversion that has not finished.
    """
    if (root / shard_index.PLAN).is_file() and not (root / shard_index.FILE).is_file():
        raise ValueError(
            f"{root} is unfinished: its conversion was interrupted before it wrote "
            f"{shard_index.FILE}. The same `convnext data FOLDER --to-shards {root}` finishes it"
        )
    notes: list[str] = []
    of_parts: list[str] = []
    parts = dict(zip(tars, choose_parts([tar.name for tar in tars], of_parts), strict=True))
    tars = [tar for tar in tars if parts[tar]]
    listing = _local_listing(root, notes)
    listed = listing.parts.values() if listing else ()
    entries = {entry.name: entry for part in listed for entry in part}
    known: dict[Path, Places] = {}
    read: dict[Path, Raw] = {}
    faults: list[str] = []
    for tar in tars:
        places = _local_places(tar, listing, entries.get(tar.name)) if listing else None
        if places is None:
            index = index_shard(tar)
            faults += index.faults
            read[tar] = Raw(str(tar), tar.stat().st_size, index)
        else:
            known[tar] = places
    absent = sorted(entries.keys() - {tar.name for tar in parts})
    if absent:
        faults.append(
            f"{shard_index.FILE} lists {len(absent):,} shards that are not there, such as "
            f"{absent[0]}"
        )
    if listing and read:
        notes.append(
            f"{shard_index.FILE} is out of date, and {len(read):,} of {len(tars):,} shards were "
            f"read to learn what is in them (such as {next(iter(read)).name})"
        )
    named = listing.classes if listing else _listed_classes(root / "classes.txt")
    if not known and not any(raw.index.images for raw in read.values()):
        raise ValueError(no_samples(str(root), len(tars), faults))
    classes, resolved = resolve(list(read.values()), named, str(root), notes)
    found = known | dict(zip(read, resolved, strict=True))
    shards = [Shard(title=str(tar), part=parts[tar], file=tar, places=found[tar]) for tar in tars]
    return found_in(root, classes, shards, notes=notes + of_parts, faults=faults)


@dataclass(frozen=True)
class Raw:
    """The contents of one tar, with its own labels."""

    title: str
    num_bytes: int
    index: ShardIndex


def resolve(
    raws: Sequence[Raw], named: tuple[str, ...] | None, where: str, notes: list[str]
) -> tuple[tuple[str, ...], list[Places]]:
    """Return the names of the classes, and the images of every shard with numbers as labels.

    Args:
        raws: The shards.
        named: The classes that `classes.txt` or an index lists; None if there is neither.
        where: The data set, for messages.
        notes: Gets a note if the classes have no names.

    Raises:
        ValueError: If a label is not a class.
    """
    if named is not None:
        classes = named
    else:
        present = {label for raw in raws for label in raw.index.labels}
        if all(isinstance(label, int) for label in present):
            count = max((int(label) for label in present), default=-1) + 1
            if count > MAX_CLASSES:
                raise ValueError(
                    f"{where} has the label {count - 1:,}; more than {MAX_CLASSES:,} classes are "
                    "refused"
                )
            classes = tuple(map(str, range(count)))
            notes.append(f"there is no classes.txt; the {count} classes are numbered")
        else:
            classes = tuple(sorted(map(str, present)))
    numbers = {name: number for number, name in enumerate(classes)}

    def number_of(raw: Raw, position: int) -> int:
        label = raw.index.labels[position]
        number = label if isinstance(label, int) and named is not None else numbers.get(str(label))
        if number is None or number >= len(classes):
            raise ValueError(
                f"{raw.title}!{raw.index.images[position].name} has the label {label!r}, but "
                f"classes.txt lists {len(classes)} classes"
            )
        return number

    return classes, [_places(raw, number_of) for raw in raws]


def _places(raw: Raw, number_of: Callable[[Raw, int], int]) -> Places:
    images = raw.index.images
    return Places(
        offsets=np.array([m.offset for m in images], np.int64),
        sizes=np.array([m.size for m in images], np.int64),
        labels=np.array([number_of(raw, i) for i in range(len(images))], np.int32),
        names=pack_names([m.name for m in images]),
        num_bytes=raw.num_bytes,
    )


def found_in(
    root: Path | str,
    classes: tuple[str, ...],
    shards: Sequence[Shard],
    *,
    notes: Sequence[str],
    faults: Sequence[str],
    store: Store | None = None,
) -> ImageListing:
    """Join the shards of all splits."""
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    # One split after the other, so that each is a range.
    ordered = sorted(shards, key=lambda shard: list(counts).index(shard.part))
    samples = ShardSamples(ordered, store=store)
    for shard in shards:
        counts[shard.part] += len(shard.places)
    ends = dict(zip(SPLITS, accumulate(counts.values()), strict=True))
    given = {shard.part for shard in shards}
    has_val = "val" in given
    return ImageListing(
        root=root,
        classes=classes,
        keys=Keys(samples),
        labels=samples.labels,
        train=range(ends["train"]),
        val=range(ends["train"], ends["val"]) if has_val else None,
        test=range(ends["val"], ends["test"]) if "test" in given else None,
        layout="shards",
        split="names of the shards" if has_val else "",
        notes=tuple(notes),
        faults=tuple(faults),
        take=samples.take,
    )


def class_lines(text: str, where: str) -> tuple[str, ...]:
    """Return the names in the text of a `classes.txt`.

    Raises:
        ValueError: If there are duplicates.
    """
    classes = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(set(classes)) < len(classes):
        raise ValueError(f"{where} lists a class twice")
    return classes


def no_samples(where: str, count: int, faults: Sequence[str]) -> str:
    """Return the message for shards without samples."""
    detail = f" ({faults[0]})" if faults else ""
    return (
        f"the {count:,} tar files in {where} hold no sample of an image with a .cls or .json "
        f"beside it{detail}"
    )


def _listed_classes(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return class_lines(text, str(path))


def _local_listing(root: Path, notes: list[str]) -> Listing | None:
    path = root / shard_index.FILE
    if not path.is_file():
        return None
    try:
        return shard_index.read_listing(path)
    except ValueError as error:
        notes.append(f"{error}; every shard was read instead")
        return None


def _local_places(tar: Path, listing: Listing, entry: Listed | None) -> Places | None:
    """Return the index of a shard, or None if the shard contradicts it."""
    index = tar.parent / index_name(tar.name)
    if entry is None or tar.stat().st_size != entry.num_bytes:
        return None
    try:
        places = shard_index.read_places(index, num_classes=len(listing.classes), with_names=True)
    except (ValueError, OSError):
        return None
    return places if agrees(places, entry) and _holds(tar, places) else None


def agrees(places: Places, entry: Listed) -> bool:
    """Tell whether a shard's `.idx` and its entry in `shards.json` match."""
    same_sum = not entry.sha256 or not places.sha256 or entry.sha256 == places.sha256
    return (len(places), places.num_bytes) == (entry.num_images, entry.num_bytes) and same_sum


def _holds(tar: Path, places: Places) -> bool:
    """Tell whether a tar has headers of the right sizes before its first and its last image."""
    with tar.open("rb") as file:
        for which in (0, -1) if len(places) else ():
            offset, size = int(places.offsets[which]), int(places.sizes[which])
            file.seek(max(offset - HEADER_BYTES, 0))
            if not is_header_of(file.read(HEADER_BYTES), size):
                return False
    return True


# Quality of JPEG files that are encoded again.
JPEG_QUALITY = 92
# Images that are resized on trial to estimate how many fit into a shard.
NUM_TRIALS = 32
SEED = 0


@dataclass(frozen=True)
class Planned:
    """One shard before it is written."""

    part: str
    """"train", "val" or "test"."""
    name: str
    first: int
    """Number of its first image in the order of the split."""
    indices: tuple[int, ...]
    """Its images, as indices into the samples."""


def size_scale(samples: FileSamples, resize: int | None) -> float:
    """Estimate from a few files how much smaller they become when they are resized."""
    if resize is None:
        return 1.0
    before = after = 1
    for index in spread(len(samples), NUM_TRIALS):
        try:
            after += len(_content(samples, index, resize)[0])
        except BadImage:
            continue
        before += samples.num_bytes(index)
    return after / before


def plan_shards(part: str, samples: FileSamples, shard_bytes: int, scale: float) -> list[Planned]:
    """Distribute images over shards by the sizes of their files."""
    n = len(samples)
    order = np.arange(n)
    if part == "train":
        order = np.random.Generator(np.random.PCG64(SEED)).permutation(n)
    # In the order of the files: the rows of a table are read in groups.
    sizes = np.array([samples.num_bytes(i) for i in range(n)], np.int64)[order]
    # In a tar: two headers, the image in blocks of 512 bytes, and a block for the class.
    ends = np.cumsum(np.ceil(sizes * scale / 512).astype(np.int64) * 512 + 3 * 512)
    count = max(1, -(-int(ends[-1]) // shard_bytes))
    # Shards of equal size, so that the last one is not much smaller.
    cuts = np.searchsorted(ends, np.arange(1, count) * (ends[-1] / count))
    planned: list[Planned] = []
    first = 0
    for images in np.split(order, cuts):
        if len(images):
            name = f"{part}-{len(planned):06d}.tar"
            planned.append(Planned(part, name, first, tuple(images.tolist())))
            first += len(images)
    return planned


def write_shard(
    tar: Path,
    shard: Planned,
    samples: FileSamples,
    resize: int | None,
    pool: ThreadPoolExecutor,
) -> list[tuple[str, str]]:
    """Write a shard and its index; return the images that could not be read."""

    def read(index: int) -> tuple[bytes, str] | BadImage:
        try:
            return _content(samples, index, resize)
        except BadImage as error:
            return error

    unreadable: list[tuple[str, str]] = []
    offsets: list[int] = []
    sizes: list[int] = []
    labels: list[int] = []
    names: list[str] = []
    with atomic_write(tar) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, result in enumerate(pool.map(read, shard.indices)):
                if isinstance(result, BadImage):
                    unreadable.append((result.source, result.reason))
                    continue
                content, ending = result
                label = samples.labels[shard.indices[number]]
                key = _key(shard.first + number)
                names.append(f"{key}{ending}")
                offsets.append(archive.offset + 512)
                sizes.append(len(content))
                labels.append(label)
                _add(archive, names[-1], content)
                _add(archive, f"{key}.cls", str(label).encode())
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = temporary.stat().st_size
    places = Places(
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        labels=np.array(labels, np.int32),
        names=pack_names(names),
        num_bytes=num_bytes,
        sha256=digest,
    )
    shard_index.write_places(tar.with_name(index_name(tar.name)), places)
    return unreadable


def missing_images(tar: Path, shard: Planned, samples: FileSamples) -> list[tuple[str, str]]:
    """Return the images that were left out of an existing shard, and why."""
    names = shard_index.read_names(tar.with_name(index_name(tar.name)))
    present = {name.partition(".")[0] for name in shard_index.unpack_names(names)}
    unreadable = []
    for number, index in enumerate(shard.indices):
        if _key(shard.first + number) not in present:
            try:
                _content(samples, index, None)
                reason = "could not be read when its shard was written"
            except BadImage as error:
                reason = error.reason
            unreadable.append((samples.source(index), reason))
    return unreadable


def _content(samples: FileSamples, index: int, resize: int | None) -> tuple[bytes, str]:
    """Return the bytes of an image file that can be decoded, and its extension.

    Raises:
        BadImage: If it cannot be read.
    """
    source, content = samples.source(index), samples.content(index)
    header = read_header(content, source=source)
    short = min(header.width, header.height)
    ending = Path(samples.names[index]).suffix.lower()
    if ending not in readable_extensions():  # A row of a table may have no name.
        ending = ending_of(header.format)
    # A JPEG has 8 bits and at most three bands.
    if resize is None or short <= resize or header.whole_mode is RAW:
        decode(content, mode=PICTURE, source=source)
        return content, ending
    mode: Mode = "L" if header.mode in ("1", "L") else "RGB"
    image = decode(content, mode=mode, at_least=resize, source=source)
    size = fit_short_side(image.size, resize)
    image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue(), ".jpg"


def _key(number: int) -> str:
    return f"{number:09d}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file whose header does not depend on the machine or the time."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    archive.addfile(info, io.BytesIO(content))
