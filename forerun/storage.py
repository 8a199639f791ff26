"""Where things are kept between runs, and how files are written: whole or not at all."""

import os
import tempfile
from pathlib import Path

from forerun.errors import InvalidOptionError


def cache_directory() -> Path:
    """`$FORERUN_CACHE_DIR`, or `~/.cache/forerun`."""
    chosen = os.environ.get("FORERUN_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "forerun"


def write_atomically(path: Path, text: str) -> None:
    """Write under a temporary name beside `path`, then rename: a reader sees the whole file or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".incomplete-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file by itself
        raise


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by a home directory. Raises `InvalidOptionError` for one that no file can have."""
    text = os.path.expanduser(os.fsdecode(path))
    if "\0" in text:
        raise InvalidOptionError(f"{text!r} holds a NUL character, which no path can have; write it without.")
    if text.startswith("~"):
        raise InvalidOptionError(
            f"{text!r} names the home directory of a user whom this machine does not know; write the path in full, "
            f"or ./{text} for a file of that name."
        )
    return Path(text)
