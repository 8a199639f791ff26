"""Progress is a display on a terminal, lines in a notebook or where the cursor cannot be moved, else nothing."""

import builtins
import io
import sys

import pytest

from forerun.progress import LineProgress, SilentProgress, TerminalProgress, open_progress


class ZMQInteractiveShell:
    """A class with the name of a notebook kernel's shell."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_notebook_sees_a_line_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(open_progress()) is SilentProgress
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    progress = open_progress()
    assert isinstance(progress, LineProgress)
    assert type(open_progress(quiet=True)) is SilentProgress
    with progress.stage("trace"):
        assert stream.getvalue().split() == ["trace"]  # before the stage is done
    assert "IPython" not in sys.modules
    assert stream.getvalue().split() == ["trace", "0.0", "s"]
    assert stream.getvalue().endswith(" s\n")


def test_lines_of_stages_inside_others() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    with progress.stage("outer"):
        with progress.stage("inner"):
            pass
        with progress.counted("cases") as counted:
            for done in range(1, 21):
                counted(done, 20)
    lines = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert lines == ["outer", "inner", *["cases"] * 10, "outer"]
    assert set(progress.seconds) == {"outer", "inner", "cases"}


def test_a_stage_that_fails_shows_no_time() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    with pytest.raises(ZeroDivisionError), progress.stage("trace"):
        raise ZeroDivisionError
    assert " s" not in stream.getvalue()
    assert "trace" in progress.seconds


@pytest.mark.parametrize("term", ["dumb", "unknown", "xterm", ""])
@pytest.mark.parametrize("columns", ["1", "0", "80", "x", "99999"])
def test_any_terminal(term: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = open_progress()
    assert isinstance(progress, LineProgress if term in ("dumb", "unknown") else TerminalProgress)
    with progress.stage("outer"), progress.stage("inner"):
        pass
    with progress.counted("cases") as counted:
        counted(1, 1)
    assert "outer" in progress.seconds
    assert ("\x1b" in stream.getvalue()) == (term not in ("dumb", "unknown"))


def test_an_interrupted_stage_gives_the_cursor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = open_progress()
    with pytest.raises(KeyboardInterrupt), progress.stage("outer"), progress.stage("inner"):
        raise KeyboardInterrupt
    hidden, shown = stream.getvalue().rfind("\x1b[?25l"), stream.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown


def test_no_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert type(open_progress()) is SilentProgress
