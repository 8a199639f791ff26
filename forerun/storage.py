"""The cache folder for data kept between runs, and atomic file writes.

Nothing in the cache is required: if it cannot be written or read, one warning says so, and work continues without it.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Generator, Hashable
from pathlib import Path

from forerun.errors import InvalidOptionError

BUNDLE = "bundle.json"
"""The description of a bundle, by which its folder is known."""

INCOMPLETE = ".incomplete-"
"""Begins the name of a file that is being written; one that is left was interrupted."""

log = logging.getLogger("forerun")
_said: set[Hashable] = set()


def cache_directory() -> Path | None:
    """Returns `$FORERUN_CACHE_DIR`, or `~/.cache/forerun`; None if that names the home of an unknown user."""
    chosen = os.environ.get("FORERUN_CACHE_DIR") or "~/.cache/forerun"
    try:
        return Path(chosen).expanduser()
    except RuntimeError:
        say_once(f"Nothing is kept for the next start: {chosen} does not name a home directory; set FORERUN_CACHE_DIR.")
        return None


@contextlib.contextmanager
def keeping(what: str) -> Generator[None]:
    """Continues if the body cannot store `what`; warns once per folder, of the first thing that it does not take."""
    try:
        yield
    except OSError as error:
        reason, folder = error.strerror or error, cache_directory()
        say_once(
            f"Not everything is kept for the next start: {folder} (FORERUN_CACHE_DIR) does not take the {what} "
            f"({reason}).",
            subject=folder,
        )


def say_once(sentence: str, subject: Hashable = None) -> None:
    """Logs a warning the first time that its subject, by default the sentence, comes up in this process."""
    subject = subject or sentence
    if subject not in _said:
        _said.add(subject)
        log.warning(sentence)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes under a temporary name beside `path`, then renames: readers see the whole file or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=INCOMPLETE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full-disk error names no file
        raise


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns the path with `~` expanded to a home directory. Raises `InvalidOptionError` for an impossible path."""
    text = os.path.expanduser(os.fsdecode(path))
    if "\0" in text:
        raise InvalidOptionError(f"{text!r} holds a NUL character, which no path can have; write it without.")
    if text.startswith("~"):
        raise InvalidOptionError(
            f"{text!r} names the home directory of a user whom this machine does not know; write the path in full, "
            f"or ./{text} for a file of that name."
        )
    return Path(text)


def is_bundle(path: Path) -> bool:
    """Whether a path is the folder of a bundle."""
    return (path / BUNDLE).is_file()
