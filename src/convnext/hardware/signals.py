"""Signals that stop a run: it finishes its step, saves its state, and exits."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from convnext.hardware.system import CHILD_ENDED, STOP_SIGNALS


def leave_signals_to_parent(_worker: int = 0) -> None:
    """Make a data loader process ignore stop signals, so that the last step gets its data.

    Except SIGTERM, with which the loader itself ends its processes.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Catches stop signals in its block: `received` is the name of the first one, or None.

    A second SIGINT raises KeyboardInterrupt as usual.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Only the main thread may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # Python cannot restore a handler that C code has set.
                signal.signal(number, handler)
        self._before.clear()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
        # Such a signal often reaches every process of a run. It may end the loader's processes, and
        # torch would then raise an error in the middle of the last step.
        if CHILD_ENDED is not None:
            self._before.setdefault(CHILD_ENDED, signal.getsignal(CHILD_ENDED))
            signal.signal(CHILD_ENDED, signal.SIG_DFL)
