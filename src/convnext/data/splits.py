"""What is held out for validation where the data has no split of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def held_out(names: Sequence[str], share: float) -> set[str]:
    """Return the names with the smallest hashes: a share of them, at least one, never all.

    It depends on the names alone: no seed or order changes it, and new images hardly.
    """
    count = max(1, round(share * len(names))) if len(names) > 1 else 0
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(ranked[: min(count, len(names) - 1)])
