"""Signals that ask a run to end: the step is finished, the state saved, and then it leaves."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# SIGUSR1 is what SLURM sends ahead of a time limit (`#SBATCH --signal=USR1@120`).
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


class StopSignals:
    """Within the block, `received` is the name of the first such signal, or None.

    A second SIGINT, from someone who does not want to wait, raises KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Only the main thread may set handlers; elsewhere the signals are not ours to take.
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
