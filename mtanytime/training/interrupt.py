"""Delay an interrupt (Ctrl-C, a notebook's stop button) until the end of a training step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_late = False  # an interrupt that came after the processes had agreed to go on


@contextmanager
def delay_interrupt(agree: Callable[[bool], bool] | None = None) -> Iterator[None]:
    """Delay an interrupt (SIGINT) until the end of the block; a second one takes effect at once.

    The handler that is in place decides what an interrupt does. Where there is none (SIGINT is ignored), or outside
    the main thread, where Python allows no handlers, the block runs as it is.

    `agree` is asked at the end of a block that raised nothing, with whether an interrupt came, and decides: several
    processes of one run must all stop after the same step. An interrupt that came too late for its answer waits for the
    next block.
    """
    global _late
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        if agree is not None and agree(False):
            raise KeyboardInterrupt
        return
    received, _late = _late, False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            previous(number, frame)
        received = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
        stop = None if agree is None else agree(received)
    finally:
        signal.signal(signal.SIGINT, previous)
    if stop is None:
        stop = received
    else:
        _late = received and not stop
    if stop:
        previous(signal.SIGINT, None)
