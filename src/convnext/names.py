"""Names: find the one that was meant, show it safely, make it valid on every file system."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ELSEWHERE = {
    "learning_rate": "lr",
    "lr0": "lr",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "bs": "batch_size",
    "batch": "batch_size",
    "imgsz": "image_size",
    "img_size": "image_size",
    "input_size": "image_size",
    "num_workers": "workers",
    "wd": "weight_decay",
    "optimizer": "optim.name",
    "opt": "optim.name",
    "gpus": "devices",
    "nproc_per_node": "devices",
    "pretrained": "weights",
    "out_dir": "output",
    "output_dir": "output",
    "drop_path": "drop_path_rate",
    "conf": "score",
    "iou": "nms",
}
"""What other libraries call our options."""


def nearest(name: str, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """Return `"; did you mean 'x'?"`, or the choices if none is similar and there are few.

    The last part of a dotted name, such as `steps` of `schedule.steps`, means that name, and of
    several such names all of them. A name of other libraries, such as `learning_rate`, means ours.

    Args:
        name: The unknown name.
        known: The valid names.
        show: How the message writes the suggested name, such as an option with its hyphens.
    """
    known = list(known)
    leaf = name.replace("-", "_")
    if ELSEWHERE.get(leaf) in known:
        return f"; did you mean {show(ELSEWHERE[leaf])}?"
    close = [k for k in known if k.rpartition(".")[2] == leaf][:3]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(map(show, close))}?"
    plain = known if show is repr else map(show, known)
    return f"; choose one of {', '.join(plain)}" if 0 < len(known) <= 20 else ""


def nearest_names(name: str, known: Sequence[str], number: int = 3) -> str:
    """Return names for a message: all, or the nearest ones and how to list the others."""
    if len(known) <= number:
        return " or ".join(known)
    close = difflib.get_close_matches(name, known, n=number, cutoff=0.0)
    return f"{', '.join(close)} or {len(known) - number} others (see `convnext models`)"


def nearest_path(path: Path) -> str:
    """Return `"; did you mean 'runs/first'?"` for a path with typos, or an empty string."""
    found = Path()
    for part in path.parts:
        names = [entry.name for entry in found.iterdir()] if found.is_dir() else []
        close = [part] if part in names else difflib.get_close_matches(part, names, n=1, cutoff=0.6)
        if not close:
            return ""
        found /= close[0]
    return f"; did you mean {str(found)!r}?"


def count_noun(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: "1 image", "2 images", "1,000 classes"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def install_extra(name: str) -> str:
    """Return the command that installs an extra, from an index or in a checkout."""
    return f"pip install 'convnext[{name}]', or in a checkout: pip install -e '.[{name}]'"


def short_time(seconds: float) -> str:
    """Return a time below a minute with three digits: "43.1 µs", "12.3 ms", "2,310 ms"."""
    value, unit = (1000 * seconds, "ms") if seconds >= 1e-4 else (1e6 * seconds, "µs")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def text_cell(text: str) -> str:
    """Return text for a cell of a CSV file, so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows of cells as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# Characters that Windows refuses in file names, and its device names.
_REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)


def portable_name(text: str) -> str:
    """Return `text` as the name of a file or folder that every system accepts.

    Characters that Windows refuses become `_`, as do dots and spaces at the end. Device names, such
    as `aux` or `con.txt`, get a `_` in front.
    """
    name = _REFUSED.sub("_", text)
    kept = name.rstrip(". ")
    name = kept + "_" * (len(name) - len(kept))
    return f"_{name}" if not name or _DEVICES.match(name) else name


# Control characters except tab and line feed, and bytes of file names that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text with control characters as escapes: names must not control the terminal."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python maps the bytes 80 to FF of a file name to these surrogates.
    return f"\\x{code & 0xFF:02x}" if code < 0x100 or 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
