"""Masks that were drawn before their photos were turned: `convnext data PATH --fix --output DIR`.

Cameras store some photos on their side, with an EXIF orientation. In the data set that is written,
every mask fits its photo as it is shown. The photos themselves do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from convnext.atomic import whole_folder
from convnext.data.bands import BandImage
from convnext.data.formats.mask_pairs import files_of
from convnext.data.images import BadImage, identify, turn_image, upright, walk_files
from convnext.data.threads import place_files
from convnext.documents import open_regular
from convnext.tasks.segmentation.data import SegmentationData, arguments_of, open_dataset
from convnext.tasks.segmentation.layout import Drawing, Pairs

OPTIONS = dict
# Formats of Pillow that keep every value of a mask.
EXACT = ("PNG", "TIFF", "BMP", "GIF", "PPM")
NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class FixReport:
    """What was done to the masks of a data set."""

    path: str
    written: str
    """The folder of the new data set."""
    turned: tuple[str, ...]
    """Masks that are turned with their photos."""
    kept: tuple[str, ...]
    """Masks of turned photos that fit them already."""
    left: tuple[tuple[str, str], ...]
    """Masks that are not changed because they need a decision, each with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for JSON."""
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print a readable report with the next command."""
        lines = [f"{self.path} -> {self.written}"]
        for what, names in (
            ("masks turned with their photos", self.turned),
            ("masks of turned photos that stay as they are", self.kept),
        ):
            if names:
                more = ", ..." if len(names) > NUM_EXAMPLES else ""
                shown = ", ".join(names[:NUM_EXAMPLES])
                lines.append(f"  {what}: {len(names):,} ({shown}{more})")
        if self.left:
            lines.append(f"  needs your decision: {len(self.left):,}")
            lines += [f"    {name}: {reason}" for name, reason in self.left[: 4 * NUM_EXAMPLES]]
        if len(self.left) > 4 * NUM_EXAMPLES:
            lines.append(f"    and {len(self.left) - 4 * NUM_EXAMPLES:,} more")
        for line in (*lines, f"\nnext: convnext data {self.written}"):
            console.print(line, markup=False, soft_wrap=True)


def fix_dataset(
    path: str,
    output: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    confirm: Callable[[FixReport], bool] | None = None,
    console: Console | None = None,
) -> FixReport:
    """Write a data set whose masks fit their photos after EXIF has turned them.

    Which masks were drawn before turning is what `exif` says, or else what their sizes show.

    Args:
        path: A folder of images and masks.
        output: A new or empty folder for the complete data set, laid out like `path`.
        options: The options of `data`.
        confirm: Is called with the changes before anything is written; False writes nothing.
        console: Console of the progress bar; None for no output.

    Raises:
        ValueError: If there is no such data set, no `output`, masks are drawn from a JSON file or
            are outside the folder, or a mask cannot be written as it is read.
    """
    if output is None:
        raise ValueError("--fix of masks writes a complete data set: give its folder as --output")
    root = Path(path)
    data = open_dataset(path, strict=False, **arguments_of(options or {}))
    turns, kept, left = _plan(data, root)
    report = FixReport(
        path=path,
        written=str(output),
        turned=tuple(file.relative_to(root).as_posix() for file in turns),
        kept=tuple(kept),
        left=tuple(left),
    )
    if confirm is not None and not confirm(report):
        raise ValueError("nothing was written")
    with whole_folder(output) as draft:
        files = [Path(name) for name in walk_files(root)]
        others = [name for name in files if root / name not in turns]
        place_files([(root / name, draft / name) for name in others], "writing files", console)
        for file, turn in turns.items():
            _write(file, draft / file.relative_to(root), turn)
    return report


def _plan(
    data: SegmentationData, root: Path
) -> tuple[dict[Path, int], list[str], list[tuple[str, str]]]:
    """Return the orientation to apply to each mask file, masks that fit, and those left.

    Raises:
        ValueError: If masks are not files in the folder, or one is of two photos that differ.
    """
    turns: dict[Path, int] = {}
    fitting: set[Path] = set()
    left: list[tuple[str, str]] = []
    for pairs in data.parts.values():
        for index in range(len(pairs)):
            mask = pairs.masks[index]
            if isinstance(mask, Drawing):
                raise ValueError(
                    f"the masks of {data.path} are drawn from a JSON file, which `convnext data "
                    f"{data.path} --layout coco --fix` fixes"
                )
            files = files_of(mask)
            try:
                turn, reason = _turn_of(pairs, index)
            except BadImage as error:
                turn, reason = 1, f"cannot be used ({error.reason})"
            if reason:
                left.append((_name(files[0], root), reason))
            for file in files:
                _name(file, root)
                if turns.get(file, turn) != turn or (turn != 1 and file in fitting):
                    raise ValueError(f"{file} is the mask of photos with different orientations")
                if turn != 1:
                    turns[file] = turn
                elif not reason:
                    fitting.add(file)
    kept = [
        _name(file, root)
        for pairs in data.parts.values()
        for index in range(len(pairs))
        if _is_turned(pairs, index)
        for file in files_of(pairs.masks[index])
        if file in fitting
    ]
    return turns, kept, left


def _name(file: Path, root: Path) -> str:
    """Return the name of a mask in the data set.

    Raises:
        ValueError: If it is outside.
    """
    if not file.is_relative_to(root):
        raise ValueError(f"{file} is outside of {root}; copy it there")
    return file.relative_to(root).as_posix()


def _is_turned(pairs: Pairs, index: int) -> bool:
    try:
        return pairs.header(index).orientation != 1
    except BadImage:
        return False


def _turn_of(pairs: Pairs, index: int) -> tuple[int, str]:
    """Return the orientation to apply to a mask, 1 for none, and why it needs a decision.

    Raises:
        BadImage: If the image or the mask cannot be read, or they do not match.
    """
    header = pairs.header(index)
    labels = pairs.mask(index, header.size)
    if header.orientation == 1:
        return 1, ""
    turn = header.orientation
    if pairs.exif == "unturned" or (not pairs.exif and pairs.is_unturned(index)):
        formats = {_format(file) for file in files_of(pairs.masks[index])}
        if not formats <= {*EXACT}:
            return 1, f"is a {', '.join(formats)} file, which would change its values: save as PNG"
        return turn, ""
    if pairs.exif or _fits_one_way(pairs, index, labels):
        return 1, ""
    return 1, "fits its photo before and after turning: give --exif turned or --exif unturned"


def _fits_one_way(pairs: Pairs, index: int, labels: np.ndarray) -> bool:
    """Whether a mask cannot be meant otherwise: its size does not fit, or it looks the same."""
    header = pairs.header(index)
    other = Pairs(**{**vars(pairs), "exif": "unturned"})
    try:
        return np.array_equal(other.mask(index, header.size), labels)
    except BadImage:
        return True


def _format(file: Path) -> str:
    with open_regular(file) as stream, identify(stream) as image:
        # Pillow does not write images of several bands or of 16 bits and three.
        return "TIFF with several bands" if isinstance(image, BandImage) else image.format or ""


def _write(source: Path, target: Path, turn: int) -> None:
    """Write a mask with an orientation applied, in its own format, with its palette.

    Raises:
        ValueError: If the file that is written has other values.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(source) as stream, identify(stream) as file:
        file.load()
        own = upright(file)
        result = turn_image(own, turn)
        kept = {"transparency": file.info["transparency"]} if "transparency" in file.info else {}
        result.save(target, format=file.format, exif=b"", **kept)
    with open_regular(target) as stream, identify(stream) as written:
        written.load()
        is_same = written.mode == result.mode and written.tobytes() == result.tobytes()
        palette = None if result.palette is None else result.getpalette()
        if not is_same or (palette is not None and written.getpalette() != palette):
            raise ValueError(f"{source} cannot be written again with the same values: save as PNG")
