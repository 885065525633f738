"""Signals held back, and signals that end a command in good order."""

from __future__ import annotations

import signal
import threading

import pytest

from magicapture import interrupts
from magicapture.interrupts import SIGNALS, interruptible, uninterrupted


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch):
    """Python's own handlers, also where the tests run in the background and ignore Ctrl-C."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        python = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, python)
    own = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == own
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("all of it")
    assert done


def test_a_held_back_signal_does_what_it_would_have_done():
    came = []
    signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            assert not came
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for scope in (uninterrupted, interruptible):
            with scope():
                assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_request_to_end_is_a_keyboard_interrupt(name):
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(getattr(signal, name))


def test_a_second_ctrl_c_does_not_disturb_the_ending(monkeypatch):
    saved = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            saved.append(True)
    assert saved
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(interrupts, "PATIENCE", 0.0)  # and later, it is heeded again
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_is_left_alone():
    failed = []

    def enter() -> None:
        try:
            with uninterrupted(), interruptible():
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failed
