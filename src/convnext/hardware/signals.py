"""Signals that ask a run to end: the step is finished, the state saved, and then it leaves."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from convnext.hardware.system import CHILD_ENDED, STOP_SIGNALS


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Make a process of the data loader ignore them, so that the last step has its data.

    SIGTERM excepted, by which the loader itself ends its processes.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


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
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # One that was not set from Python cannot be set from it.
                signal.signal(number, handler)
        self._before.clear()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
        # Such a signal often goes to every process of a run. The loader's may end by it, and torch
        # would then raise an error in the middle of the step that is to be finished.
        if CHILD_ENDED is not None:
            self._before.setdefault(CHILD_ENDED, signal.getsignal(CHILD_ENDED))
            signal.signal(CHILD_ENDED, signal.SIG_DFL)
