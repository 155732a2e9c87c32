"""Distributes images over shards, and writes a shard."""

from __future__ import annotations

import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convnext.atomic import atomic_write
from convnext.data.images import BadImage, Mode, decode, read_header
from convnext.data.preprocessing import fit_short_side
from convnext.data.samples import FolderSamples, spread
from convnext.data.shards import index as shard_index
from convnext.data.shards.index import Places, index_name, pack_names

# Quality of JPEG files that are encoded again.
JPEG_QUALITY = 92
# Images that are resized on trial to estimate how many fit into a shard.
NUM_TRIALS = 32
SEED = 0


@dataclass(frozen=True)
class Planned:
    """One shard before it is written."""

    part: str
    """"train" or "val"."""
    name: str
    first: int
    """Number of its first image in the order of the split."""
    indices: tuple[int, ...]
    """Its images, as indices into the samples."""


def size_scale(samples: FolderSamples, resize: int | None) -> float:
    """Estimate from a few files how much smaller they become when they are resized."""
    if resize is None:
        return 1.0
    before = after = 1
    for index in spread(len(samples), NUM_TRIALS):
        try:
            after += len(_content(samples.source(index), resize)[0])
        except BadImage:
            continue
        before += samples.num_bytes(index)
    return after / before


def plan_shards(part: str, samples: FolderSamples, shard_bytes: int, scale: float) -> list[Planned]:
    """Distribute images over shards by the sizes of their files."""
    n = len(samples)
    order = np.arange(n)
    if part == "train":
        order = np.random.Generator(np.random.PCG64(SEED)).permutation(n)
    sizes = np.array([samples.num_bytes(i) for i in order.tolist()], np.int64)
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
    samples: FolderSamples,
    resize: int | None,
    pool: ThreadPoolExecutor,
) -> list[tuple[str, str]]:
    """Write a shard and its index; return the images that could not be read."""

    def read(index: int) -> tuple[bytes, str] | BadImage:
        try:
            return _content(samples.source(index), resize)
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


def missing_images(tar: Path, shard: Planned, samples: FolderSamples) -> list[tuple[str, str]]:
    """Return the images that were left out of an existing shard, and why."""
    names = shard_index.read_names(tar.with_name(index_name(tar.name)))
    present = {name.partition(".")[0] for name in shard_index.unpack_names(names)}
    unreadable = []
    for number, index in enumerate(shard.indices):
        if _key(shard.first + number) not in present:
            try:
                _content(samples.source(index), None)
                reason = "could not be read when its shard was written"
            except BadImage as error:
                reason = error.reason
            unreadable.append((samples.source(index), reason))
    return unreadable


def _content(source: str, resize: int | None) -> tuple[bytes, str]:
    """Return the bytes of an image file that can be decoded, and its extension.

    Raises:
        BadImage: If it cannot be read.
    """
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise BadImage(source, f"cannot be read ({error})") from error
    header = read_header(content, source=source)
    short = min(header.width, header.height)
    ending = Path(source).suffix.lower()
    if resize is None or short <= resize:
        decode(content, mode="RGB", source=source)
        return content, ending
    mode: Mode = "L" if header.mode in ("1", "L", "I", "F") or header.mode[:4] == "I;16" else "RGB"
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
