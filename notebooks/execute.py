"""Execute the notebooks from top to bottom with one line of progress each.

    python notebooks/execute.py                                  all of them, in order; the sources stay unchanged
    python notebooks/execute.py --in-place                       store the outputs in the notebooks, to commit them
    python notebooks/execute.py notebooks/00_quickstart.ipynb    only this one

Writes the executed notebooks to build/notebooks, from which docs/build.py makes the site. Stops at the first failing
cell, names it, and exits with status 1. Deletes build/runs and build/explore before executing all notebooks, so that
they do not resume earlier runs.
"""

import argparse
import asyncio
import contextlib
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from stored import normalized

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
REPORT_SECONDS = 30  # between lines about one notebook in a log, which unlike a terminal cannot rewrite its line


class Progress:
    """A line of progress (notebook, cell, seconds), rewritten in a terminal and repeated now and then in a log."""

    def __init__(self, label: str, cells: int):
        self.label, self.cells, self.cell = label, cells, 0
        self.started = self.last_report = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the notebook started."""
        return time.perf_counter() - self.started

    async def tick(self) -> None:
        """Show the state until cancelled."""
        while True:
            line = f"{self.label}  cell {self.cell} of {self.cells}, {self.seconds:.0f} s"
            if sys.stdout.isatty():
                print(f"\r{line}\x1b[K", end="", flush=True)
            elif time.perf_counter() - self.last_report >= REPORT_SECONDS:
                self.last_report = time.perf_counter()
                print(line, flush=True)
            await asyncio.sleep(0.5)

    def close(self, state: str) -> None:
        """Replace the progress line with a final one."""
        start = "\r\x1b[K" if sys.stdout.isatty() else ""
        print(f"{start}{self.label}  {self.cells} cells, {self.seconds:.1f} s{state}", flush=True)


async def execute(notebook: NotebookNode, folder: Path, progress: Progress) -> None:
    """Run every cell in a new kernel whose working directory is `folder`; outputs replace those in `notebook`."""

    def count(cell: NotebookNode, cell_index: int) -> None:
        progress.cell += 1

    def interruptible(notebook: NotebookNode) -> None:
        # nbclient's own handler of the interrupt key stops the kernel and then fails because it is gone
        with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers in event loops
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # otherwise every start warns about local sockets
        resources={"metadata": {"path": str(folder)}},
        on_notebook_start=interruptible,
        on_cell_execute=count,
        coalesce_streams=True,
        record_timing=False,
    )
    ticker = asyncio.create_task(progress.tick())
    try:
        await client.async_execute()
    except DeadKernelError:
        task = asyncio.current_task()
        if task and task.cancelling():  # the interrupt key stopped the kernel: the notebook did not fail
            raise asyncio.CancelledError from None
        raise
    finally:
        ticker.cancel()


def main(arguments: list[str] | None = None) -> int:
    """Execute the notebooks and return the exit status: 1 if a notebook failed or there was none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in this script's folder, in order")
    parser.add_argument("--in-place", action="store_true", help="store the outputs in the notebooks themselves")
    parser.add_argument("--output", type=Path, default=BUILD / "notebooks", help="default: build/notebooks")
    options = parser.parse_args(arguments)
    paths = options.notebooks or sorted(HERE.glob("*.ipynb"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"there is no notebook {', '.join(missing)}")
    if not paths:
        print(f"There are no notebooks in {HERE}.", file=sys.stderr)
        return 1

    if not options.notebooks:  # all of them: do not resume runs that earlier executions left in build/
        for name in ("runs", "explore"):
            shutil.rmtree(BUILD / name, ignore_errors=True)
    for number, path in enumerate(paths, start=1):
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        progress = Progress(f"[{number}/{len(paths)}] {path.stem}", len(code))
        try:
            asyncio.run(execute(notebook, path.resolve().parent, progress))
        except (CellExecutionError, DeadKernelError) as error:
            progress.close("  FAILED")
            text = str(error) if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            print(f"{path.name}, code cell {progress.cell} of {len(code)} failed:\n{text}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            progress.close("  interrupted")
            return 130
        progress.close("")
        target = path if options.in_place else options.output / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(normalized(notebook), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
