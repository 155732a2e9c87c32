"""The images of a data set that cannot be read: counted, named, and limited."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from convnext.data.images import BadImage


class Sources(Protocol):
    """A sequence of images that knows where each lies."""

    def __len__(self) -> int: ...
    def source(self, index: int) -> str: ...


class BadImages:
    """The images of a part that could not be read, each counted once however often it is met."""

    def __init__(self, samples: Sources, *, max_share: float) -> None:
        self.samples = samples
        self.found: dict[int, BadImage] = {}
        # A single bad image ends no run, however small the data set; unless none is allowed.
        self.most = max(int(max_share * len(samples)), 1 if max_share > 0 else 0)

    def __len__(self) -> int:
        return len(self.found)

    def update(self, records: Iterable[tuple[int, str]]) -> list[BadImage]:
        """Take the `bad` of a batch; return what was not known before.

        Raises:
            ValueError: If more images are bad than allowed.
        """
        new = {i: BadImage(self.samples.source(i), r) for i, r in records if i not in self.found}
        self.found |= new
        if len(self.found) > self.most:
            some = "; ".join(str(bad) for bad in list(self.found.values())[:5])
            needed = len(self.found) / len(self.samples)
            raise ValueError(
                f"{len(self.found):,} of {len(self.samples):,} images cannot be read, more than "
                f"the {self.most:,} that are allowed: {some}. Mend or remove them (`convnext data` "
                f"lists them all), or allow more with --loader.max_bad_share {needed + 0.01:.2f}"
            )
        return list(new.values())
