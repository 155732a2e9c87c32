"""What training shows in place of a sample that cannot be read: the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from convnext.data.images import BadImage

T = TypeVar("T")


class Substitutes(Generic[T]):
    """Opens samples by their number; one that is known to be damaged is not tried again.

    Args:
        open_sample: Returns a sample, or raises BadImage.
        reason_of: Says of sample and error what to tell the user.
        count: How many samples there are.
    """

    def __init__(
        self,
        open_sample: Callable[[int], T],
        reason_of: Callable[[int, BadImage], str],
        count: int,
    ) -> None:
        self._open, self._reason_of, self._count = open_sample, reason_of, count
        self._known: dict[int, str] = {}

    def __call__(self, index: int) -> tuple[T, int, tuple[tuple[int, str], ...]]:
        """Return a sample, its number, and those that could not be read, each with the reason.

        Raises:
            ValueError: If not one can be read.
        """
        bad: list[tuple[int, str]] = []
        for shown in ((index + k) % self._count for k in range(self._count)):
            if shown not in self._known:
                try:
                    return self._open(shown), shown, tuple(bad)
                except BadImage as error:
                    self._known[shown] = self._reason_of(shown, error)
            bad.append((shown, self._known[shown]))
        raise ValueError(f"not one training image can be used, such as {bad[-1][1]}")
