"""Print on any console: characters that its encoding lacks (β, é, block characters) are replaced, never an error."""

import sys


def printable(text: str) -> str:
    """The text with "?" for each character that stdout cannot show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def say(text: object) -> None:
    """Print a line on stdout."""
    print(printable(str(text)))


def replace_unprintable() -> None:
    """Have stdout and stderr replace what their encoding lacks, for a program of our own: the command line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
