"""Delay an interrupt (Ctrl-C, a notebook's stop button) until the end of a training step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


@contextmanager
def step_interrupts(
    agree: Callable[[bool], bool] | None = None,
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield a context for each step of a loop, at whose end an interrupt takes effect.

    Several processes of one run must all stop after the same step. They pass `agree`, which gets at the end of each
    step whether this process was interrupted, and decides for all. Interrupts between steps are then delayed, too.
    """
    previous = signal.getsignal(signal.SIGINT)
    if agree is None:
        yield delay_interrupt
        return
    received = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            previous(number, frame)
        received = True

    @contextmanager
    def step() -> Iterator[None]:
        yield
        if agree(received):
            raise KeyboardInterrupt

    handled = threading.current_thread() is threading.main_thread() and callable(previous)
    if handled:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield step
    finally:
        if handled:
            signal.signal(signal.SIGINT, previous)
