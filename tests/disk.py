"""Import it, and `os.fsync` does not wait for the disk, which takes longer than a step of a tiny training.

That a file is whole on the disk before it is renamed matters after a power cut, which no test can make; that `os.fsync`
is called, and in which order, is tested in test_run_folder.py.
"""

import os
import stat


def _fsync(descriptor: int) -> None:
    """Wait for devices only; an error for what is not an open file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        _wait(descriptor)


if os.fsync.__module__ != __name__:
    _wait, os.fsync = os.fsync, _fsync
