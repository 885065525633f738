"""A training saves itself when ComfyUI is stopped, by Ctrl-C or by the system (SIGTERM).

Nodes run in a thread that ends with the process wherever it is, so the process waits for it.
"""

from __future__ import annotations

import atexit
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import comfy.model_management as management

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a stopped ComfyUI waits for a training to save itself."""


@contextmanager
def saved_when_stopped() -> Iterator[None]:
    """Cancel what runs in this block when ComfyUI is stopped, and let the process wait for it."""
    over, stopping = threading.Event(), threading.Event()

    def wait() -> None:
        stopping.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the process is ending already
        logger.info("The training is saved before ComfyUI ends.")
        management.interrupt_current_processing()  # as Cancel does
        over.wait(PATIENCE)

    atexit.register(wait)
    try:
        with _sigterm_as_ctrl_c():
            yield
    finally:
        atexit.unregister(wait)
        over.set()
        if stopping.is_set():  # a thread that still runs while Python is taken down may crash it
            threading.Event().wait()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM stop ComfyUI as Ctrl-C does, unless somebody handles it already."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def install() -> None:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, stop)

    def remove() -> None:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    _in_main_thread(install)
    try:
        yield
    finally:
        _in_main_thread(remove)


def _in_main_thread(function: Callable[[], None]) -> None:
    """Let the server's thread, which alone may handle signals, call a function soon."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        with suppress(RuntimeError):  # its loop is closed: the process is ending
            server.loop.call_soon_threadsafe(function)
