"""Delay an interrupt (Ctrl-C, a notebook's stop button) until the end of a training step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Delay an interrupt (SIGINT) until the end of the block; a second one takes effect at once.

    The handler that is in place decides what an interrupt does. Where there is none (SIGINT is ignored), or outside
    the main thread, where Python allows no handlers, the block runs as it is.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    received = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            previous(number, frame)
        received = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        previous(signal.SIGINT, None)
