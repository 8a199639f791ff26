"""Progress of long work: named stages, shown on a terminal and timed for reports."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

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
    """Whoever does long work opens a stage around it; stages may nest."""

    seconds: dict[str, float]  # time spent in each stage so far

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A context that lasts as long as the named work."""
        ...

    def counted(self, name: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A stage whose work is counted: what it gives is told the units done and their number."""
        ...


class SilentProgress:
    """Stages are timed and not shown."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Add the time of the body to `seconds[name]`."""
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
    """Stages are timed and shown on the console: a spinner while one runs, a line when it ends."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._display: Display | None = None
        self._open_stages = 0

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Show the stage for as long as the body runs."""
        task = self._begin(name)
        started = time.perf_counter()
        finished = False
        try:
            with super().stage(name):
                yield
            finished = True
        finally:
            self._end(task)
            if finished:
                self._console.print(f"[dim]{name:<32} {time.perf_counter() - started:6.1f} s[/dim]", highlight=False)

    @contextmanager
    def counted(self, name: str) -> Generator[Callable[[int, int], None]]:
        """Show a bar for as long as the body runs."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with _display(self._console, *columns) as display:
            task = display.add_task(name, total=None)
            with SilentProgress.stage(self, name):
                yield lambda done, total: display.update(task, completed=done, total=total)

    def _begin(self, name: str) -> TaskID:
        display = self._display
        if display is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            display = _display(self._console, *columns)
            display.start()
            self._display = display
        self._open_stages += 1
        return display.add_task(name, total=None)

    def _end(self, task: TaskID) -> None:
        self._open_stages -= 1
        if self._display is None:
            return
        self._display.remove_task(task)
        if self._open_stages == 0:
            self._display.stop()
            self._display = None


def _display(console: Console, *columns: ProgressColumn) -> Display:
    """The program keeps its own sys.stdout and sys.stderr meanwhile: other threads print, and compile, as well."""
    return Display(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)


def open_progress(quiet: bool = False) -> Progress:
    """Progress on standard error where that is a terminal, silent elsewhere and when asked."""
    if quiet or not sys.stderr.isatty():
        return SilentProgress()
    # The stream of this moment: standard error may be redirected while a stage runs.
    return TerminalProgress(Console(file=sys.stderr))
