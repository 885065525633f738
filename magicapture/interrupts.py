"""Ctrl-C and requests to end, held back where they would leave half a thing done."""

from __future__ import annotations

import atexit
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK", "SIGINT")  # Ctrl-C last: it is handed back last
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))

PATIENCE = 5.0
"""Seconds in which a second Ctrl-C is taken for the first: what is done is being saved."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back until the block is done; then they do what they would have done.

    Only the main thread is ever interrupted; in another one nothing happens here.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        if _in_main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):
                    before[number] = handler
                    signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a request to end (SIGTERM, a closed terminal) raise KeyboardInterrupt as Ctrl-C does.

    Whoever presses Ctrl-C again at once does not disturb the ending. Signals that are ignored, as
    under nohup, or handled by the calling program are left as they are.
    """
    if not _in_main_thread():
        yield
        return
    last = -math.inf

    def interrupt(*_: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE:
            last = now
            raise KeyboardInterrupt

    ours = (signal.SIG_DFL, signal.default_int_handler)
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) in ours}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        if math.isfinite(last):  # nor may it while Python shuts down
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
