"""What the command-line tools share: errors as sentences, signals as exit codes, closed or limited streams.

A `ForerunError` or a failure of the environment (files, memory, streams, packages) becomes one sentence on standard
error and exit code 2. A signal that ends a tool gives 128 plus its number, as in a shell. Anything else is a bug in
forerun and keeps its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

from forerun.errors import ForerunError, InvalidOptionError
from forerun.logs import log_as_asked
from forerun.storage import expanded

REFUSED = 2
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
CLOSED_PIPE = 128 + 13
"""What a shell reports for a tool that SIGPIPE ends because the reader of its output has gone."""

REMEDIES = {
    errno.ENOSPC: "free some space, or choose a place with more of it",
    errno.EDQUOT: "free some space, or choose a place with more of it",
    errno.EACCES: "choose one that this user may use",
    errno.EPERM: "choose one that this user may use",
    errno.EROFS: "choose one that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or choose a smaller model or --max-length",
}
"""The remedy, by the number of an OSError; for all others, it is to check the path."""


class Ended(KeyboardInterrupt):
    """A signal that ends the tool. Libraries let a KeyboardInterrupt pass."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Shows the default after every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is False:
            return f"{action.help} (default: off)"
        shown = action.option_strings and action.default not in (None, argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if shown else action.help


class Parser(argparse.ArgumentParser):
    """Treats wrong options, and help that cannot be written, as errors like all others."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, formatter_class=Help, **options)

    def error(self, message: str) -> NoReturn:
        raise InvalidOptionError(f"{message}; {self.prog} --help lists the options.")

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def run_tool(name: str, run: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Returns the exit code of `run`. Without `argv`, the process is the tool's own, and its end is handled too."""
    own = argv is None
    arguments = list(sys.argv[1:] if argv is None else argv)
    closed = own and _open_standard_streams()
    received: list[int] = []
    try:
        with _signals(received, own), _any_character():
            try:
                if closed:
                    raise InvalidOptionError("Standard output is closed; redirect it to a file, or to /dev/null.")
                log_as_asked()
                return _flushed(run, arguments)
            except BaseException as error:
                return _code_of(name, error, received, "--json" in arguments)
    except Ended:
        return 128 + received[0]


def read_bytes(file: str, most: int) -> bytes:
    """Returns the contents of a file, or of standard input for "-". A FIFO without a writer counts as empty.

    Raises OSError, and `InvalidOptionError` for more than `most` bytes, as devices have no end.
    """
    if file == "-":
        content = _standard_input(most + 1)
    else:
        handle = os.open(expanded(file), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as opened:
            os.set_blocking(handle, True)
            content = opened.read(most + 1)
    if len(content) > most:
        raise InvalidOptionError(f"{file!r} has more than {most} bytes; give a shorter one.")
    return content


def _standard_input(most: int) -> bytes:
    """Returns standard input as UTF-8, whatever encoding Python has chosen for the stream."""
    if sys.stdin is None:
        raise InvalidOptionError("Standard input is closed; give a file, or something to read.")
    if hasattr(sys.stdin, "buffer"):
        return sys.stdin.buffer.read(most)
    return sys.stdin.read(most).encode("utf-8")  # a text stream in its place


def refuse(name: str, error: Exception, as_json: bool = False) -> int:
    """Reports an error on standard error, and as an object on standard output if `as_json`; returns exit code 2."""
    if as_json:
        _write(sys.stdout, json.dumps({"error": type(error).__name__, "message": sentence(error)}))
    _write(sys.stderr, f"{name}: {sentence(error)}")
    return REFUSED


def sentence(error: Exception) -> str:
    """Returns the message for an error that is not a bug in forerun."""
    error = _as_os_error(error)
    if isinstance(error, OSError) and error.strerror:
        names = [repr(os.fsdecode(each)) for each in (error.filename, error.filename2) if isinstance(each, str | bytes)]
        what = f"{' and '.join(names)} cannot be used" if names else "The operating system refuses"
        return f"{what} ({error.strerror}): {REMEDIES.get(error.errno or 0, 'check the path')}."
    if isinstance(error, UnicodeEncodeError):
        return f"Some text holds characters that are not {error.encoding} ({error.reason}): give UTF-8 text."
    if isinstance(error, UnicodeError):
        return f"Some text does not match its encoding ({error}): give UTF-8 text."
    if isinstance(error, ImportError):
        return f"A package that forerun needs cannot be imported ({error}): install forerun and what it needs again."
    if _lacks_memory(error):
        return "There is not enough memory: close other programs, or choose a smaller model, --dtype or --max-length."
    return str(error) if isinstance(error, ForerunError) else str(error).partition("\n")[0]


@contextlib.contextmanager
def plain_warnings(name: str, spoken: Callable[[str], str]) -> Generator[None]:
    """Shows warnings in the body, and what forerun logs, as one plain line each, which `spoken` may change."""
    import logging

    def show(message: Warning | str, *where: object) -> None:
        _write(sys.stderr, f"{name}: {spoken(' '.join(str(message).split()))}")

    log, handler = logging.getLogger("forerun"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    heard = log.hasHandlers()  # by whoever runs the tool in a process of their own
    with warnings.catch_warnings():
        warnings.showwarning = show
        if not heard:
            log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)


def _code_of(name: str, error: BaseException, received: list[int], as_json: bool) -> int:
    """Returns the exit code of an error; re-raises a bug."""
    if received:
        return 128 + received[0]  # whatever a library has turned the interruption into
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return CLOSED_PIPE
    if isinstance(error, Exception) and (isinstance(error, ForerunError) or _is_of_the_environment(error)):
        code = refuse(name, error, as_json)
        _drop_output()
        return code
    raise error


def _is_of_the_environment(error: Exception) -> bool:
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("forerun")
    return isinstance(_as_os_error(error), OSError | UnicodeError) or _lacks_memory(error)


def _as_os_error(error: Exception) -> Exception:
    """Returns the OSError that a Rust library (tokenizers, safetensors) reports as text; other errors as they are."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None or isinstance(error, ForerunError | OSError):
        return error
    return OSError(int(found[1]), os.strerror(int(found[1])))


def _lacks_memory(error: Exception) -> bool:
    """Recognizes MemoryError and torch's substitute; torch has its own class only for accelerators."""
    if isinstance(error, MemoryError):
        return True
    named = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, RuntimeError) and named


@contextlib.contextmanager
def _signals(received: list[int], own: bool) -> Generator[None]:
    """Signals that end a process raise `Ended` in the body and are recorded. The second one ends it at once.

    In the tool's `own` process, any signal after the body does so too, as the interpreter is about to stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals only to the main thread
        return
    stopping = False

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if stopping or len(received) > 1:
            os._exit(128 + received[0])
        raise Ended

    def unraisable(given: Any) -> None:
        if received:  # in a finalizer or a callback, which cannot raise
            os._exit(128 + received[0])
        hook(given)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {each: signal.getsignal(each) for each in ENDING}
    before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}  # nohup's
    try:
        for each in before:
            signal.signal(each, end)
        yield
    finally:
        stopping = own
        if not own:
            sys.unraisablehook = hook
            for each, handler in before.items():
                signal.signal(each, handler)


@contextlib.contextmanager
def _any_character() -> Generator[None]:
    """Writes characters that a stream's encoding lacks as escapes while the body runs."""
    streams = [each for each in (sys.stdout, sys.stderr) if hasattr(each, "reconfigure")]
    before = [each.errors for each in streams]
    for each in streams:
        _reconfigure(each, "backslashreplace")
    try:
        yield
    finally:
        for each, errors in zip(streams, before, strict=True):
            _reconfigure(each, errors)


def _reconfigure(stream: Any, errors: str | None) -> None:
    with contextlib.suppress(OSError, ValueError):  # the stream is closed, or its reader has gone
        stream.reconfigure(errors=errors)


def _open_standard_streams() -> bool:
    """Opens closed standard streams on the null device, so that no other file gets their numbers.

    Returns whether standard output was closed.
    """
    closed = sys.stdout is None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # `print` and argparse would use another stream instead
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    return closed


def _flushed(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Runs `run` and flushes output, as an error at the end of the process could not be caught."""
    try:
        return run(arguments)
    finally:
        if sys.exc_info()[0] in (None, SystemExit):
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OSError(error.errno, error.strerror, "<stdout>") from error


def _write(stream: TextIO | None, text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # there is no stream left to report to
        print(text, file=stream, flush=True)


def _drop_output() -> None:
    """Redirects output that can no longer be written to the null device, so that process exit does not retry."""
    for number, stream in ((1, sys.__stdout__), (2, sys.__stderr__)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
