"""Data sets that are recognized, but cannot be read: what they are, and which conversion works."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from convnext.data.formats.class_checks import RETRIEVAL
from convnext.data.images import is_hidden

# Files that are looked at.
MAX_FILES = 5000
_AS_FOLDERS = "save each image as train/CLASS/NUMBER.png"
# A pattern of a file's path below the folder, and what the data is.
_FILES: Mapping[str, str] = {
    r"(.*/)?(train|t10k|test|emnist.*)-(images|labels).*-?idx\d-?ubyte(\.gz)?": "these are the idx "
    f"files of MNIST: torchvision.datasets.MNIST and its like read them; {_AS_FOLDERS}",
    r"(.*/)?(data_batch(_\d|\.bin)|batches\.meta|cifar-100-python/.*)": "these are the batches of "
    f"CIFAR: torchvision.datasets.CIFAR10 and CIFAR100 read them; {_AS_FOLDERS}",
    r".*\.(npz|npy|h5|hdf5|pkl|pickle)": f"its images are arrays in a file: {_AS_FOLDERS}",
    r".*\.parquet": "its images are in Parquet files: datasets.load_dataset('parquet', "
    f"data_dir=...) reads them; {_AS_FOLDERS}",
    r".*\.arrow": "its images are in Arrow files: datasets.load_from_disk reads them; "
    f"{_AS_FOLDERS}",
    r".*(\.tfrecords?|\.tfrec|\.record|tfrecord-\d+-of-\d+)": "its images are in TFRecord files: "
    "export the data set as folders, COCO or Pascal VOC, or write shards of WebDataset",
    r"(.*/)?data\.mdb|.*\.lmdb": f"its images are in an LMDB data base: {_AS_FOLDERS}",
    r".*\.rec": f"its images are in a RecordIO file: {_AS_FOLDERS}",
    r".*\.nii(\.gz)?|.*\.(nrrd|mha)": "its images are volumes: save each slice as a PNG or TIFF",
    r".*\.(mp4|avi|mov|mkv)": "it has videos: save their frames as images, and name the files by "
    "their video",
    r".*\.(zip|rar|7z|tgz|tar\.gz)": "it has archives: unpack them",
    r".*\.ndjson": "its annotations are an export of Labelbox: convert them to COCO",
    r".*\.mat": "its annotations are MATLAB files: scipy.io.loadmat reads them; write labels.csv "
    "with the columns filename, label and split, or COCO for objects",
}


def known_format(root: Path) -> str:
    """Return what a folder that cannot be read holds, and what to do; "" if it is not known."""
    files = list(islice(_files(root), MAX_FILES))
    folders = {part for file in files for part in file.split("/")[:-1]}
    if len(folders & RETRIEVAL) > 1:
        return (
            "this is data for finding persons again, such as Market-1501, which is not a task "
            "here: to classify them, sort the images into train/PERSON/"
        )
    if any(re.fullmatch(r"(.*/)?train/good/[^/]+", file) for file in files) and (
        "ground_truth" in folders
    ):
        return (
            "this is laid out like MVTec AD, whose training images are all good: finding anomalies "
            "is not a task here; to classify or segment, move images with defects into the "
            "training folders"
        )
    for pattern, text in _FILES.items():
        first = next((file for file in files if re.fullmatch(pattern, file, re.IGNORECASE)), None)
        if first is not None:
            return f"{text} (such as {first})"
    return ""


def _files(root: Path) -> Iterator[str]:
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = Path(here).relative_to(root)
        yield from ((below / name).as_posix() for name in sorted(files) if not is_hidden(name))


def with_known_format(error: ValueError, root: Path) -> ValueError:
    """Return an error that also says what the data is, if that is known."""
    known = known_format(root) if root.is_dir() else ""
    return ValueError(f"{error}. About this data: {known}") if known else error
