"""What loading or converting weights did, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of every tensor of a source and of a network."""

    source: str
    layout: str
    loaded: int
    """Tensors of the network that now hold values of the source."""
    total: int
    """Tensors of the network."""
    renamed: int
    """Loaded tensors that have another name in the source."""
    resized: tuple[str, ...]
    """Loaded tensors that were resampled, with both shapes."""
    missing: tuple[str, ...]
    """Tensors of the network that the source does not have; they keep their values."""
    unexpected: tuple[str, ...]
    """Tensors of the source that the network has no place for."""
    head: str
    """What became of the classifier, in words."""
    head_replaced: bool
    """Whether the network keeps its own fresh classifier."""
    matched: float
    """Share of the backbone's tensors that matched, of those of either side."""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: layout {self.layout}, {self.loaded} of {self.total} tensors loaded "
            f"({100 * self.matched:.0f} % of the backbone)",
            f"head: {self.head}",
        ]
        lists = {"resized": self.resized, "missing": self.missing, "not used": self.unexpected}
        lines += [f"{what}: {shorten(names)}" for what, names in lists.items() if names]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion read and wrote."""

    source: str
    source_layout: str
    model: str
    changes: dict[str, Any]
    """Fields in which the network differs from the named one."""
    written_layout: str
    tensors: int
    dropped: tuple[str, ...]
    """Tensors of the source that have no place in the network."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        changes = ", ".join(f"{name}={value}" for name, value in self.changes.items())
        lines = [
            f"{self.source}: {self.model}{f' with {changes}' if changes else ''}, "
            f"{self.tensors} tensors from {self.source_layout} to {self.written_layout}"
        ]
        if self.dropped:
            lines.append(f"left out: {shorten(self.dropped)}")
        return "\n".join(lines)


def shorten(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
