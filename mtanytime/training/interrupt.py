"""Hold an interrupt back until the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Hold an interrupt (SIGINT) back until the block's end; a second one goes through at once."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):  # not ours, or ignored
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
