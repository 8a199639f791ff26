"""Progress of long work: named stages, shown on a terminal and timed for reports."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Display


class Progress(Protocol):
    """Long work opens a stage around itself; stages may nest."""

    seconds: dict[str, float]  # time spent in each stage so far

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Returns a context that lasts as long as the named work."""
        ...

    def counted(self, name: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Returns a stage whose work is counted: its callback takes the units done and their total."""
        ...


class SilentProgress:
    """Times stages without showing them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Adds the time of the body to `seconds[name]`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextmanager
    def counted(self, name: str) -> Generator[Callable[[int, int], None]]:
        with self.stage(name):
            yield lambda done, total: None


class TerminalProgress(SilentProgress):
    """Times stages and shows them on the console: a spinner while one runs, a line when it ends."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._display: Display | None = None
        self._open_stages = 0

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Shows the stage while the body runs."""
        started = time.perf_counter()
        with self._shown(name), super().stage(name):
            yield
        self._console.print(f"{name:<32} {time.perf_counter() - started:6.1f} s", style="dim", highlight=False)

    @contextmanager
    def counted(self, name: str) -> Generator[Callable[[int, int], None]]:
        """Shows a bar while the body runs."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with _display(self._console, *columns) as display:
            task = display.add_task(name, total=None)
            with SilentProgress.stage(self, name):
                yield lambda done, total: display.update(task, completed=done, total=total)

    @contextmanager
    def _shown(self, name: str) -> Generator[None]:
        """Shows a line of the display that all open stages share; the display stops with the last of them."""
        self._open_stages += 1
        task: TaskID | None = None
        try:
            if self._display is None:
                columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
                self._display = _display(self._console, *columns)
                self._display.start()
            task = self._display.add_task(name, total=None)
            yield
        finally:
            self._open_stages -= 1
            display = self._display
            if display is not None and task is not None:
                display.remove_task(task)
            if display is not None and self._open_stages == 0:
                display.stop()
                self._display = None


class LineProgress(SilentProgress):
    """Times stages and writes them as lines, for output that cannot be rewritten."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._unfinished: str | None = None  # the stage whose line still lacks its time

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Writes the stage's name now and its time when the body has run."""
        self._write(f"{name:<32} ", unfinished=name)
        started = time.perf_counter()
        with super().stage(name):
            yield
        named = "" if self._unfinished == name else f"{name:<32} "
        self._write(f"{named}{time.perf_counter() - started:6.1f} s\n", continued=self._unfinished == name)

    @contextmanager
    def counted(self, name: str) -> Generator[Callable[[int, int], None]]:
        """Writes a line for every tenth of the work."""
        tenths = 0

        def count(done: int, total: int) -> None:
            nonlocal tenths
            if total and 10 * done // total > tenths:
                tenths = 10 * done // total
                self._write(f"{name:<32} {done} of {total}\n")

        with SilentProgress.stage(self, name):
            yield count

    def _write(self, text: str, unfinished: str | None = None, continued: bool = False) -> None:
        if self._unfinished is not None and not continued:
            text = f"\n{text}"
        self._unfinished = unfinished
        self._stream.write(text)
        self._stream.flush()


def _display(console: Console, *columns: ProgressColumn) -> Display:
    """Makes a display that leaves sys.stdout and sys.stderr alone, as other threads print and compile too."""
    return Display(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


def open_progress(quiet: bool = False) -> Progress:
    """Returns progress on standard error if that is a terminal or a notebook; silent otherwise, and on request.

    A terminal shows a spinner and a bar if it can move its cursor.
    """
    # The current stream: standard error may be redirected while a stage runs.
    if quiet or sys.stderr is None:
        return SilentProgress()
    console = Console(file=sys.stderr)
    if console.is_jupyter or (sys.stderr.isatty() and console.is_dumb_terminal):
        return LineProgress(sys.stderr)
    return TerminalProgress(console) if sys.stderr.isatty() else SilentProgress()
