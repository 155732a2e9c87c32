"""Names: which one a user probably meant, and which ones every file system accepts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, or the choices when nothing is near and they are few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose one of {', '.join(known)}" if 0 < len(known) <= 20 else ""


# What Windows refuses in the name of a file, beside control characters, and names of its devices.
_REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\.|$)", re.IGNORECASE)


def portable_name(text: str) -> str:
    """Return `text` as the name of a file or folder that every system accepts.

    What Windows refuses becomes `_`: some characters, a dot or a blank at the end, and the names of
    its devices, such as `aux` or `con.txt`, which get one in front.
    """
    name = _REFUSED.sub("_", text)
    kept = name.rstrip(". ")
    name = kept + "_" * (len(name) - len(kept))
    return f"_{name}" if not name or _DEVICES.match(name) else name
