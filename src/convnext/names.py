"""Names: suggest the one that a user probably meant, and make one valid on every file system."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, or the choices if none is similar and there are few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose one of {', '.join(known)}" if 0 < len(known) <= 20 else ""


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
