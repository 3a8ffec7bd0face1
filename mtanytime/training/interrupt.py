"""Delay an interrupt (Ctrl-C, a notebook's stop button) until the end of a training step."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType


@contextmanager
def _recorded() -> Iterator[Callable[[], bool]]:
    """Only record an interrupt (SIGINT) in the block; a second one takes effect at once. Yields whether there was one.

    The handler that is in place decides what an interrupt does. Where there is none (SIGINT is ignored), or outside
    the main thread, where Python allows no handlers, nothing is recorded.
    """
    previous = signal.getsignal(signal.SIGINT)
    received = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            previous(number, frame)
        received = True

    handled = threading.current_thread() is threading.main_thread() and callable(previous)
    if handled:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: received
    finally:
        if handled:
            signal.signal(signal.SIGINT, previous)


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Delay an interrupt until the end of the block; a second one takes effect at once."""
    previous = signal.getsignal(signal.SIGINT)
    with _recorded() as received:
        yield
    if received():
        previous(signal.SIGINT, None)


@contextmanager
def step_interrupts(
    agree: Callable[[bool], bool] | None = None,
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Yield a context for each step of a loop, at whose end an interrupt takes effect.

    Several processes of one run must all stop after the same step. They pass `agree`, which gets at the end of each
    step whether this process was interrupted, and decides for all. Interrupts between steps are then delayed, too.
    """
    if agree is None:
        yield delay_interrupt
        return

    with _recorded() as received:

        @contextmanager
        def step() -> Iterator[None]:
            yield
            if agree(received()):
                raise KeyboardInterrupt

        yield step
