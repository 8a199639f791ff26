"""Where things are kept between runs, and how files are written: whole or not at all."""

import os
import tempfile
from pathlib import Path


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
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
